// A worker of Node's: PORT on loopback, and where a folder is named, how many connections it has accepted and how
// many of them are over, which survives its death: DIR/SLOT.PID, two numbers of eight bytes (see server.c).
//
// With REUSEPORT it shares that by itself, with no primary in between.
//
//   node server.js [DIR]
'use strict'

const http = require('node:http')
const server = http.createServer((_, response) => response.end('ok\n'))
const dir = process.argv[2]
if (dir) {
  const fs = require('node:fs')
  const file = fs.openSync(`${dir}/${process.env.THRONG_WORKER_ID}.${process.pid}`, 'w')
  const counts = Buffer.alloc(16)
  const count = at => {
    counts.writeBigUInt64LE(counts.readBigUInt64LE(at) + 1n, at)
    fs.writeSync(file, counts, 0, 16, 0)
  }
  fs.writeSync(file, counts, 0, 16, 0)
  server.on('connection', socket => { count(0); socket.on('close', () => count(8)) })
}
const options = { port: +process.env.PORT, host: '127.0.0.1', reusePort: !!process.env.REUSEPORT }
server.listen(options, () => console.log('up'))
