//! Unmodified servers that take an inherited socket, each by the custom that it knows: one socket for all
//! (`--share fd`) and one for each slot (`--share reuseport`).

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::beds::{command, skip};
use crate::load::{CLIENTS, Load, request};
use crate::support::{Run, children, throng, until};

/// What every server here answers with: who it is.
const WSGI: &str = "import os
def app(environ, start):
    start('200 OK', [('Content-Type', 'text/plain')])
    return [b'worker ' + os.environ['THRONG_WORKER_ID'].encode()]
";
const ASGI: &str = "import os
async def app(scope, receive, send):
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'text/plain')]})
    await send({'type': 'http.response.body', 'body': b'worker ' + os.environ['THRONG_WORKER_ID'].encode()})
";
const RACK: &str = "run ->(env) { [200, {'content-type' => 'text/plain'}, [\"worker #{ENV['THRONG_WORKER_ID']}\"]] }
";
/// By `Server::Starter`'s own client module. Stops between two connections.
const PERL: &str = r#"use strict; use warnings;
use Server::Starter qw(server_ports); use IO::Select; use IO::Socket::INET;
my ($fd) = values %{ server_ports() };
my $listener = IO::Socket::INET->new; $listener->fdopen($fd, 'w') or die $!; $listener->blocking(0);
my $stop = 0; $SIG{TERM} = sub { $stop = 1 };
my $ready = IO::Select->new($listener);
while (!$stop) {
    $ready->can_read(0.05) or next;
    my $client = $listener->accept or next;
    $client->blocking(1); sysread $client, my $request, 4096;
    my $text = "worker $ENV{THRONG_WORKER_ID}";
    print $client "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n$text"; close $client;
}
"#;
/// By einhorn's variables.
const EINHORN: &str = "
import os, select, signal, socket
assert os.environ['EINHORN_FD_COUNT'] == '1'
s = socket.socket(fileno=int(os.environ['EINHORN_FD_0'])); s.setblocking(False)
r, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w)
signal.signal(signal.SIGTERM, lambda *a: None)
text = b'HTTP/1.1 200 OK\\r\\n\\r\\nworker ' + os.environ['THRONG_WORKER_ID'].encode()
while r not in (ready := select.select([s, r], [], [])[0]):
    try: c, _ = s.accept()
    except BlockingIOError: continue
    c.setblocking(True); c.recv(4096); c.sendall(text); c.close()
";

/// A fleet of two on a port of its own.
struct Fleet {
    share: &'static str,
    run: Run,
    address: String,
}

impl Fleet {
    /// The words are those of the server, `ADDRESS` in them is where it is to be.
    fn start(share: &'static str, words: &[&str], prepare: impl Fn(&mut Command)) -> Self {
        let port = crate::supervise::free_port();
        let address = format!("127.0.0.1:{port}");
        let words: Vec<_> = words.iter().map(|word| word.replace("ADDRESS", &address)).collect();
        let args = ["-v", "--workers", "2", "--grace", "20s", "--share", share];
        let mut command = throng(&args);
        command.args(["--ready", "delay:400ms", "--listen", &address, "--"]).args(words);
        prepare(&mut command);
        let mut run = Run::start(&mut command);
        for _ in 0..2 {
            run.wait_log("is ready");
        }
        // Ready is a matter of time here; these are not there yet.
        until("the first answer", || request(&address).is_ok());
        Self { share, run, address }
    }

    /// New connections all the time while every worker is replaced, three times.
    fn reloads(&mut self) {
        let load = Load::on(&self.address);
        for _ in 0..3 {
            load.more(100);
            self.run.signal(Signal::SIGHUP);
            self.run.wait_log("the reload is done");
        }
        let tally = load.end(2000);
        assert!(tally.failed.is_empty(), "{}: {tally:?}", self.share);
        assert_eq!(tally.answered.len(), 2, "all take part: {:?}", tally.answered);
    }

    /// A worker that is killed takes with it no more than it had accepted: of each client, the one
    /// connection that it had.
    fn kills(&mut self) {
        let load = Load::on(&self.address);
        let victims = children(self.run.pid(), false);
        for pid in &victims {
            load.more(100);
            kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
            self.run.wait_log(&format!("(pid {pid}) ended with SIGKILL"));
            self.run.wait_log("is ready");
        }
        let tally = load.end(2000);
        assert!(tally.failed.len() <= 2 * CLIENTS, "{:?}", tally.failed);
        assert!(tally.answered.len() <= 2, "{:?}", tally.answered);
    }

    fn stop(mut self) {
        assert_eq!(self.run.stop(), 0);
    }
}

/// Both ways, reloaded under load, and killed.
fn serves(program: &str, words: &[&str], prepare: impl Fn(&mut Command)) {
    if let Err(reason) = command(program) {
        skip(program, &reason);
        return;
    }
    for share in ["fd", "reuseport"] {
        let mut fleet = Fleet::start(share, words, &prepare);
        // At its stop signal uvicorn closes what it has accepted and not read from yet: on one socket for
        // all there is nothing else that such a connection could come to.
        if (program, share) != ("uvicorn", "fd") {
            fleet.reloads();
        }
        fleet.kills();
        fleet.stop();
    }
}

fn in_folder(name: &str, text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name), text).unwrap();
    dir
}

#[test]
fn gunicorn_by_listen_fds() {
    let dir = in_folder("app.py", WSGI);
    let here = dir.path().to_str().unwrap();
    serves("gunicorn", &["gunicorn", "--chdir", here, "app:app"], |_| {});
}

#[test]
fn uvicorn_by_its_descriptor() {
    let dir = in_folder("app.py", ASGI);
    let here = dir.path().to_str().unwrap();
    let words = ["uvicorn", "--fd", "3", "--app-dir", here, "--log-level", "warning", "app:app"];
    serves("uvicorn", &words, |_| {});
}

#[test]
fn puma_by_socket_activation() {
    let dir = in_folder("config.ru", RACK);
    let file = dir.path().join("config.ru").display().to_string();
    serves("puma", &["puma", "--quiet", "-b", "tcp://ADDRESS", &file], |command| {
        command.env("HOME", dir.path());
    });
}

#[test]
fn perl_by_server_starter() {
    let module = Command::new("perl").args(["-MServer::Starter", "-e", "1"]).output();
    if !module.is_ok_and(|output| output.status.success()) {
        skip("Server::Starter", "no such Perl module; tests/beds/install brings it");
        return;
    }
    serves("perl", &["perl", "-e", PERL], |_| {});
}

#[test]
fn what_knows_einhorn() {
    serves("python3", &["python3", "-c", EINHORN], |_| {});
}

#[test]
fn a_rust_server_by_listenfd() {
    let own = std::env::current_exe().unwrap().display().to_string();
    let words = [&own, "--exact", "inherit::serve_by_listenfd", "--nocapture"];
    serves("sh", &words, |command| {
        command.env("SERVE_BY_LISTENFD", "1");
    });
}

/// No test: the server of the one above, in a process of its own.
#[test]
fn serve_by_listenfd() {
    use tokio::io::Interest;
    use tokio::signal::unix::{SignalKind, signal};

    if std::env::var_os("SERVE_BY_LISTENFD").is_none() {
        return;
    }
    let listener = listenfd::ListenFd::from_env().take_tcp_listener(0).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let text =
        format!("HTTP/1.1 200 OK\r\n\r\nworker {}", std::env::var("THRONG_WORKER_ID").unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut stop = signal(SignalKind::terminate()).unwrap();
        loop {
            let stream = tokio::select! {
                _ = stop.recv() => return,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            // The whole request is one segment; readiness may be a false alarm.
            let mut request = [0; 4096];
            let _ = stream.async_io(Interest::READABLE, || stream.try_read(&mut request)).await;
            let _ = stream.try_write(text.as_bytes());
        }
    });
}
