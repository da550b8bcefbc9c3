//! Readiness and signs of life, told by real workers in the ways that they have.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::{Run, Source, throng};

/// Python's half of `sd_notify(3)`.
const NOTIFY: &str = "import os,socket,sys,time,signal
def tell(text):
    s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)
    s.sendto(text.encode(),'\\0'+os.environ['NOTIFY_SOCKET'][1:])
";

/// A pipe with a name; a worker that reads it waits until the test writes.
struct Gate(PathBuf);

impl Gate {
    fn new(dir: &Path) -> Self {
        let path = dir.join("gate");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        Self(path)
    }

    /// Lets one reader through.
    fn open(&self) {
        OpenOptions::new().write(true).open(&self.0).unwrap().write_all(b"go\n").unwrap();
    }

    fn wait(&self) -> String {
        format!("open({:?}).readline()", self.0.display())
    }
}

fn python(args: &[&str], code: &str) -> Run {
    Run::start(throng(args).args(["--", "python3", "-uc", code]))
}

fn is_ready(run: &mut Run) {
    run.wait_log("is ready");
}

#[test]
fn a_worker_says_when_it_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::new(dir.path());
    let code = format!(
        "{NOTIFY}print('up',flush=True)\n{}\ntell('READY=1\\nSTATUS=serving')\ntime.sleep(1000)",
        gate.wait()
    );
    let mut run = python(&["--workers", "1", "--ready", "notify", "-v"], &code);
    run.wait("up");
    assert!(!run.text(Source::Err).contains("is ready"));
    gate.open();
    is_ready(&mut run);
    assert_eq!(run.stop(), 0);
}

#[test]
fn the_tool_of_systemd_speaks_to_us_too() {
    let script = "systemd-notify --ready && echo told; exec sleep 1000";
    let mut run = Run::start(&mut throng(&[
        "--workers",
        "2",
        "--ready",
        "notify",
        "-v",
        "--",
        "sh",
        "-c",
        script,
    ]));
    is_ready(&mut run);
    is_ready(&mut run);
    // It waits until what it sent has been taken in.
    run.wait_for(2, "told");
    assert_eq!(run.stop(), 0);
}

#[test]
fn nobody_else_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::new(dir.path());
    let code = format!(
        "{NOTIFY}print(os.environ['NOTIFY_SOCKET'],flush=True)\n{}\ntell('READY=1')\ntime.sleep(1000)",
        gate.wait()
    );
    let mut run = python(&["--workers", "1", "--ready", "notify", "-v"], &code);
    let name = run.wait("@throng-rs/");
    let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
    let socket = UnixDatagram::unbound().unwrap();
    for text in ["READY=1", "WATCHDOG=trigger", "\0\u{ff}", ""] {
        socket.send_to_addr(text.as_bytes(), &address).unwrap();
    }
    gate.open();
    is_ready(&mut run);
    assert_eq!(run.stop(), 0);
    assert_eq!(run.text(Source::Err).matches("is ready").count(), 1);
    assert!(!run.text(Source::Err).contains("sign of life"));
}

#[test]
fn who_is_not_ready_in_time_is_stopped_and_has_failed() {
    // A shell: it has to catch the signal before its time is over, also on a busy machine.
    let script = "trap 'exit 7' TERM; while :; do sleep 1 & wait; done";
    let args = ["--workers", "2", "--ready", "notify", "--ready-timeout", "2s"];
    let mut run = Run::start(throng(&args).args(["--", "sh", "-c", script]));
    run.wait_log("is not ready after 2s and is stopped");
    run.wait_log("all 2 workers ended before they were ready");
    assert_eq!(run.end(), 7);
}

#[test]
fn a_start_may_ask_for_more_time() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::new(dir.path());
    let code = format!(
        "{NOTIFY}tell('EXTEND_TIMEOUT_USEC=60000000')\nprint('up',flush=True)\ntime.sleep(1.5)\ntell('READY=1')\n{}",
        gate.wait()
    );
    let mut run =
        python(&["--workers", "1", "--ready", "notify", "--ready-timeout", "1s", "-v"], &code);
    run.wait("up");
    is_ready(&mut run);
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_port_of_its_own_makes_it_ready() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::new(dir.path());
    let code = format!(
        "import socket,time\nprint('up',flush=True)\n{}\ns=socket.socket()\ns.bind(('127.0.0.1',0))\ns.listen()\ntime.sleep(1000)",
        gate.wait()
    );
    let mut run = python(&["--workers", "1", "--ready", "listen", "-v"], &code);
    run.wait("up");
    assert!(!run.text(Source::Err).contains("is ready"));
    gate.open();
    is_ready(&mut run);
    assert_eq!(run.stop(), 0);
}

/// A server on a port of its own that answers with what the file `status` holds.
fn web(dir: &Path) -> String {
    format!(
        "import http.server,pathlib
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status=int(pathlib.Path('{}').read_text())
        self.send_response(status if self.path=='/healthz?a=b' else 404)
        self.end_headers()
        print('asked',status,flush=True)
    def log_message(self,*a): pass
http.server.HTTPServer(('127.0.0.1',0),H).serve_forever()",
        dir.join("status").display()
    )
}

#[test]
fn a_path_that_answers_makes_it_ready_and_one_that_does_not_has_it_aborted() {
    let dir = tempfile::tempdir().unwrap();
    let status = dir.path().join("status");
    fs::write(&status, "503").unwrap();
    let code = web(dir.path());
    let path = "http:/healthz?a=b";
    let mut run = python(&["--workers", "1", "--ready", path, "--watchdog", path, "-v"], &code);
    run.wait_for(2, "asked 503");
    assert!(!run.text(Source::Err).contains("is ready"));
    fs::write(&status, "204").unwrap();
    is_ready(&mut run);
    fs::write(&status, "500").unwrap();
    // Three asks, five seconds apart.
    run.wait_for(3, "asked 500");
    run.wait_log("shows no sign of life and is aborted");
    run.wait_log("ended with SIGABRT");
    fs::write(&status, "200").unwrap();
    is_ready(&mut run);
    assert_eq!(run.stop(), 0);
}

#[test]
fn who_shows_no_more_signs_of_life_is_aborted_and_its_last_lines_are_shown() {
    let code = format!(
        "{NOTIFY}assert os.environ['WATCHDOG_USEC']=='1000000'
gen=os.environ['THRONG_WORKER_GENERATION']
tell('READY=1\\nWATCHDOG=1')
if gen=='2': print('back',flush=True)
for i in range(8 if gen=='1' else 1000):
    time.sleep(0.25)
    tell('WATCHDOG=1')
print('deadlock ahead',flush=True)
signal.signal(signal.SIGTERM,signal.SIG_IGN)
time.sleep(1000)"
    );
    let mut run = python(&["--workers", "2", "--ready", "notify", "--watchdog", "1s", "-v"], &code);
    for _ in 0..2 {
        run.wait_log("shows no sign of life and is aborted");
        run.wait_log("wrote: deadlock ahead");
    }
    // Both come back and live on.
    run.wait_for(2, "back");
    assert_eq!(run.stop(), 0);
    assert_eq!(run.text(Source::Err).matches("ended with SIGABRT").count(), 2);
}

#[test]
fn bad_rules_are_refused_with_what_is_accepted() {
    for (args, text) in [
        (["--ready", "sometimes"], "bad value \"sometimes\" for --ready: expected auto, spawn"),
        (["--ready", "http:healthz"], "http:/PATH"),
        (["--ready", "delay:"], "delay:DURATION"),
        (["--watchdog", "0s"], "bad value \"0s\" for --watchdog"),
        (["--watchdog", "http:/a b"], "http:/PATH"),
        (["--surge", "-1"], "bad value \"-1\" for --surge"),
        (["--start-parallel", "0"], "bad value \"0\" for --start-parallel"),
        (["--max-worker-age", "old"], "bad value \"old\" for --max-worker-age"),
    ] {
        let done = crate::support::done(throng(&args).args(["--", "true"]));
        assert_eq!(done.status, 2, "{args:?}");
        assert!(done.stderr.contains(text), "{args:?}: {}", done.stderr);
    }
    let fd = ["--listen", "127.0.0.1:0", "--share", "fd", "--ready", "listen", "--", "true"];
    let done = crate::support::done(&mut throng(&fd));
    assert_eq!(done.status, 2);
    assert!(done.stderr.contains("--ready notify"), "{}", done.stderr);
}
