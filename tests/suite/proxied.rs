//! A launcher with `--share proxy`, and a client. The worker speaks a small language of lines, so that
//! each test says what it wants to happen.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;

use crate::support::{LIMIT, Run, done, number, throng};

/// Serves lines on the port, or at the path, that `PORT` holds; `START` is put before.
pub(crate) const WORKER: &str = r"
import os, socket, struct, sys, threading
env = os.environ
START
where = env['PORT']
if where.startswith('/'):
    s = socket.socket(socket.AF_UNIX)
    s.bind(where)
elif env.get('FAMILY') == '6':
    s = socket.socket(socket.AF_INET6)
    s.bind(('::1', int(where)))
else:
    s = socket.socket()
    s.bind(('127.0.0.1', int(where)))
s.listen(4096)
print('up id=%s gen=%s pid=%d.' % (env['THRONG_WORKER_ID'], env['THRONG_WORKER_GENERATION'], os.getpid()), flush=True)
def serve(c):
    r = c.makefile('rb')
    if env.get('PROXIED'):
        head = r.read(16)
        more = r.read(struct.unpack('>H', head[14:16])[0])
        peer = head[:12] == b'\r\n\r\n\0\r\nQUIT\n' and (head[12], head[13], more)
    for line in r:
        word, *rest = line.decode().split()
        if word == 'who': c.sendall(b'id=%s gen=%s pid=%d.\n' % (env['THRONG_WORKER_ID'].encode(), env['THRONG_WORKER_GENERATION'].encode(), os.getpid()))
        elif word == 'big': c.sendall(b'x' * int(rest[0]))
        elif word == 'count': c.sendall(b'%d.\n' % len(r.read()))
        elif word == 'bye':
            c.sendall(b'bye\n')
            c.shutdown(socket.SHUT_WR)
            print('after=%d.' % len(r.read()), flush=True)
        elif word == 'hang': print('hangs', flush=True); threading.Event().wait()
        elif word == 'reset': c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); break
        elif word == 'peer':
            kind, family, b = peer
            size = 4 if family == 0x11 else 16
            text = lambda b: socket.inet_ntop(socket.AF_INET if size == 4 else socket.AF_INET6, b)
            ports = struct.unpack('>HH', b[2 * size:]) if b else (0, 0)
            c.sendall(b'none.\n' if not b else ('%s %d %s %d.\n' % (text(b[:size]), ports[0], text(b[size:2 * size]), ports[1])).encode())
    # What was started keeps the descriptor by its reader.
    r.close()
    c.close()
while True:
    c, _ = s.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
";

/// A launcher that passes connections on.
pub(crate) struct Proxied {
    pub(crate) run: Run,
    pub(crate) address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Proxied {
    /// With workers that speak the language, all of them ready.
    pub(crate) fn start(workers: usize, args: &[&str]) -> Self {
        Self::with(workers, args, "", &[])
    }

    pub(crate) fn with(workers: usize, args: &[&str], start: &str, env: &[(&str, &str)]) -> Self {
        let mut proxied = Self::begin(workers, args, start, env);
        proxied.all_ready(workers);
        proxied
    }

    /// With workers that are not awaited.
    pub(crate) fn begin(workers: usize, args: &[&str], start: &str, env: &[(&str, &str)]) -> Self {
        let code = WORKER.replace("START", start);
        Self::of(workers, args, &["python3", "-c", &code], env)
    }

    /// Of any command.
    pub(crate) fn of(workers: usize, args: &[&str], words: &[&str], env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let workers = workers.to_string();
        let mut command = throng(&["-v", "--workers", &workers, "--restart", "always"]);
        command.arg("--control").arg(dir.path().join("s"));
        if !args.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let envs = env.iter().copied();
        let mut run = Run::start(command.args(args).arg("--").args(words).envs(envs));
        let line = run.wait_log("listening on ");
        let address = line.split(' ').next_back().unwrap();
        let address = address.parse().unwrap_or_else(|_| ([127, 0, 0, 1], 1).into());
        Self { run, address, dir }
    }

    pub(crate) fn all_ready(&mut self, workers: usize) {
        for _ in 0..workers {
            self.run.wait_log("is ready");
        }
    }

    pub(crate) fn connect(&self) -> Client {
        Client::new(TcpStream::connect(self.address).unwrap())
    }

    pub(crate) fn ask(&self, args: &[&str]) -> String {
        let mut command = throng(&args[..1]);
        let answer = done(command.arg("--control").arg(self.dir.path().join("s")).args(&args[1..]));
        assert_eq!(answer.status, 0, "{answer:?}");
        answer.stdout
    }

    /// What the status says of one kind of connections, worker by worker.
    pub(crate) fn count(&self, what: &str) -> Vec<u64> {
        let status: Value =
            serde_json::from_str(&self.ask(&["status", "--format", "json"])).unwrap();
        let workers = status["workers"].as_array().unwrap();
        workers.iter().map(|worker| worker["connections"][what].as_u64().unwrap()).collect()
    }

    /// Private memory of the launcher that it has written to, in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.run.pid());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

/// One connection.
pub(crate) struct Client(pub(crate) BufReader<TcpStream>);

impl Client {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.line()
    }

    /// The next so many bytes.
    pub(crate) fn take(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Says no more.
    pub(crate) fn end(&mut self) {
        self.0.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    pub(crate) fn line(&mut self) -> String {
        let mut text = String::new();
        self.0.read_line(&mut text).unwrap();
        text.trim_end().to_owned()
    }

    /// Which worker it is with.
    #[track_caller]
    pub(crate) fn id(&mut self) -> i32 {
        number(&self.ask("who"), "id=")
    }

    /// Everything until the end, or the reset.
    pub(crate) fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).map(|_| rest)
    }
}
