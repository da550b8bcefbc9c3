# A worker that answers one request at a time, from the standard library: wsgiref on the inherited socket.
#
#   python3 sizing.py cpu|wait|mixed|hungry|growing
import os
import signal
import socket
import sys
import time
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

MIB = 1 << 20


def compute(milliseconds):
    # So much CPU time, however much of a CPU there is.
    end = time.process_time() + milliseconds / 1e3
    while time.process_time() < end:
        sum(range(200))


def cpu():
    compute(12)


def wait():
    time.sleep(0.1)


def mixed():
    compute(10)
    time.sleep(0.05)


def hungry():
    # As who resizes a picture: 24 MiB, in use from the first byte to the answer.
    picture = bytearray(24 * MIB)
    picture[:: os.sysconf('SC_PAGE_SIZE')] = b'x' * (len(picture) // os.sysconf('SC_PAGE_SIZE'))
    compute(2)
    time.sleep(0.06)


CACHE = []


def growing():
    # A cache that is full after 64 requests, at 32 MiB; the oldest makes room.
    CACHE.append(b'x' * (MIB // 2))
    del CACHE[:-64]
    compute(4)
    time.sleep(0.04)


WORK = {work.__name__: work for work in (cpu, wait, mixed, hungry, growing)}[sys.argv[1]]


def application(environ, start_response):
    WORK()
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [b'ok\n']


class Server(WSGIServer):
    busy = stopping = False

    def stop(self, *_):
        # What is under way is answered first.
        self.stopping = True
        if not self.busy:
            os._exit(0)

    def get_request(self):
        self.busy = True
        try:
            return super().get_request()
        except OSError:
            # Another worker was faster.
            self.done()
            raise

    def shutdown_request(self, request):
        super().shutdown_request(request)
        self.done()

    def done(self):
        self.busy = False
        if self.stopping:
            os._exit(0)

    def server_bind(self):
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()


class Handler(WSGIRequestHandler):
    def address_string(self):
        return self.client_address[0]

    def log_message(self, *_):
        pass


def ready():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        # One that begins with @ has no file.
        told.connect(os.environ['NOTIFY_SOCKET'].replace('@', '\0', 1))
        told.send(b'READY=1')


server = Server(('127.0.0.1', 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=3)
# Who is woken for a connection that another takes must not wait for the next one.
server.socket.setblocking(False)
server.server_bind()
server.set_app(application)
signal.signal(signal.SIGTERM, server.stop)
ready()
server.serve_forever(poll_interval=3600)
