// A worker with an event loop: every request is in hand at once, and computing holds up all of them.
//
//   node sizing.js cpu|wait|leak
'use strict'

const http = require('node:http')

const work = {
  cpu (done) {
    // 12 ms of CPU time, however much of a CPU there is.
    const begin = process.cpuUsage()
    for (;;) {
      const { user, system } = process.cpuUsage(begin)
      if (user + system >= 12000) return done()
      for (let i = 0, sum = 0; i < 20000; i++) sum += i
    }
  },
  wait (done) { setTimeout(done, 100) },
  leak (done) { setTimeout(done, 20) }
}[process.argv[2]]

if (process.argv[2] === 'leak' && process.env.THRONG_WORKER_ID === '1') {
  // 5 MB a second, every page of it written.
  const leaked = []
  setInterval(() => leaked.push(Buffer.alloc(500000, 'x')), 100)
}

const server = http.createServer((_, response) => work(() => response.end('ok\n')))
server.listen({ port: +process.env.PORT, host: '127.0.0.1' })
