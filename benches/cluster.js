// Node's own primary, as everybody writes it: so many workers of another script.
//
//   node cluster.js N SCRIPT
'use strict'

const cluster = require('node:cluster')
cluster.setupPrimary({ exec: process.argv[3], args: [] })
for (let index = 0; index < +process.argv[2]; index += 1) cluster.fork()
