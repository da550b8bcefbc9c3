//! `--share proxy`: workers that start, end, hang and are replaced while clients are there.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::proxied::{Client, Proxied};
use crate::support::{number, until};

/// HTTP/1.1 with connections that stay open; each answer takes a moment.
const WEB: &str = "
import http.server, os, socketserver, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    def do_GET(self):
        text = b'pid=%d.' % os.getpid()
        self.send_response(200)
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024
Server(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
";

fn web(workers: usize) -> Proxied {
    let mut proxied = Proxied::of(workers, &[], &["python3", "-c", WEB], &[]);
    proxied.all_ready(workers);
    proxied
}

/// One request on a connection: the pid that answered, or whether any byte of an answer had come.
fn get(stream: &mut TcpStream, last: bool) -> Result<i32, bool> {
    let close = if last { "Connection: close\r\n" } else { "" };
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{close}\r\n");
    stream.write_all(request.as_bytes()).map_err(|_| false)?;
    let mut text = Vec::new();
    while !text.ends_with(b".") {
        let mut piece = [0; 1024];
        match stream.read(&mut piece) {
            Ok(count) if count > 0 => text.extend(&piece[..count]),
            _ => return Err(!text.is_empty()),
        }
    }
    Ok(number(&String::from_utf8(text).unwrap(), "pid="))
}

/// Clients that ask until they are told to stop, and how it went.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    asked: AtomicUsize,
    failed: AtomicUsize,
}

impl Load {
    /// A new connection for each request.
    fn fresh(&self, address: SocketAddr) {
        while !self.over.load(Ordering::Relaxed) {
            let answer = TcpStream::connect(address).map(|mut stream| get(&mut stream, true));
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.failed.fetch_add(usize::from(!matches!(answer, Ok(Ok(_)))), Ordering::Relaxed);
        }
    }

    /// One connection for many; asks again where a used one was closed before any byte of the answer
    /// (RFC 9112, 9.3.1).
    fn lasting(&self, address: SocketAddr) {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut used = false;
        while !self.over.load(Ordering::Relaxed) {
            let mut answer = get(&mut stream, false);
            if answer == Err(false) && used {
                stream = TcpStream::connect(address).unwrap();
                answer = get(&mut stream, false);
            }
            used = true;
            self.asked.fetch_add(1, Ordering::Relaxed);
            if answer.is_err() {
                self.failed.fetch_add(1, Ordering::Relaxed);
                (stream, used) = (TcpStream::connect(address).unwrap(), false);
            }
        }
    }
}

#[test]
fn a_reload_under_load_fails_nobody() {
    let mut proxied = web(2);
    let load = Load::default();
    let address = proxied.address;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| load.fresh(address));
            scope.spawn(|| load.lasting(address));
        }
        let mut rounds = 0;
        while rounds < 2 || load.asked.load(Ordering::Relaxed) < 2000 {
            proxied.ask(&["reload"]);
            rounds += 1;
        }
        load.over.store(true, Ordering::Relaxed);
    });
    assert_eq!(load.failed.into_inner(), 0, "of {}", load.asked.into_inner());
    assert_eq!(proxied.run.stop(), 0);
}

#[test]
fn requests_of_one_connection_stay_with_one_worker() {
    let mut proxied = Proxied::start(2, &["--grace", "60s"]);
    let mut client = proxied.connect();
    let worker = client.ask("who");
    proxied.run.signal(Signal::SIGHUP);
    proxied.run.wait_log(") is ready");
    // Whatever one sends is the worker's to understand: a request, the rest of one, or what a tunnel carries.
    for _ in 0..20 {
        client.say("GET / HTTP/1.1");
        assert_eq!(client.ask("who"), worker);
    }
    client.end();
    proxied.run.wait_log("the reload is done");
    assert_eq!(proxied.run.stop(), 0);
}

#[test]
fn who_drains_finishes_what_was_asked_and_lets_go_of_what_is_idle() {
    let mut proxied = Proxied::start(1, &["--grace", "60s"]);
    let (mut busy, mut idle, mut fresh) = (proxied.connect(), proxied.connect(), proxied.connect());
    let first = idle.ask("who");
    busy.id();
    // Asked, and not answered before the end of what it sends.
    busy.say("count");
    proxied.run.signal(Signal::SIGHUP);
    proxied.run.wait_log(") is ready");
    // One that has not said anything belongs to nobody, and one that is idle is closed.
    assert_ne!(fresh.ask("who"), first);
    assert_eq!(idle.rest().unwrap(), b"");
    let active = || proxied.count("active");
    until("only the one that waits is left", || active().contains(&1) && active().len() == 2);
    busy.say("xyz");
    busy.end();
    assert_eq!(busy.rest().unwrap(), b"4.\n");
    proxied.run.wait_log("the reload is done");
    assert_eq!(proxied.run.stop(), 0);
}

#[test]
fn a_kill_costs_only_what_the_dead_worker_had_been_handed() {
    let mut proxied = Proxied::start(2, &["--balance", "round-robin"]);
    let mut clients: Vec<_> = (0..12).map(|_| proxied.connect()).collect();
    // Some have said nothing yet, and some wait for an answer.
    let mut silent = clients.split_off(6);
    let first = proxied.connect().ask("who");
    let (victim, id) = (number(&first, "pid="), number(&first, "id="));
    for client in &mut clients {
        client.say("hang");
    }
    proxied.run.wait_for(6, "hangs");
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    proxied.run.wait_log("ended with SIGKILL");
    for client in &mut silent {
        assert_ne!(number(&client.ask("who"), "pid="), victim);
    }
    proxied.run.wait_log("is ready");
    until("the lost ones are counted", || proxied.count("failed").iter().sum::<u64>() == 3);
    let place = usize::try_from(id).unwrap() - 1;
    assert_eq!(proxied.count("failed")[place], 3, "by the slot that lost them");
    // The other three still wait.
    assert_eq!(proxied.count("active").iter().sum::<u64>(), 3 + 6);
    assert_eq!(proxied.run.stop(), 0);
}

#[test]
fn clients_wait_for_the_first_worker() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let start = format!("open('{}').read()", gate.display());
    let mut proxied = Proxied::begin(1, &[], &start, &[]);
    let mut clients: Vec<_> = (0..20).map(|_| proxied.connect()).collect();
    for client in &mut clients {
        client.say("who");
    }
    fs::write(&gate, "go").unwrap();
    for client in &mut clients {
        assert_eq!(number(&client.line(), "id="), 1);
    }
    assert_eq!(proxied.count("accepted"), [20]);
    assert_eq!(proxied.run.stop(), 0);
}

#[test]
fn a_worker_that_refuses_costs_no_request() {
    // The first says that it serves and does not listen.
    let start = "
import time
if env['THRONG_WORKER_ID'] == '1':
    n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    n.sendto(b'READY=1', '\\0' + env['NOTIFY_SOCKET'][1:] if env['NOTIFY_SOCKET'][0] == '@' else env['NOTIFY_SOCKET'])
    print('up refuses', flush=True)
    time.sleep(1000)
";
    let mut proxied = Proxied::with(2, &["--balance", "round-robin"], start, &[]);
    for _ in 0..20 {
        assert_eq!(proxied.connect().id(), 2);
    }
    assert_eq!(proxied.count("accepted"), [0, 20]);
    assert_eq!(proxied.run.stop(), 0);
}

#[test]
fn a_worker_that_closes_without_a_word_is_taken_at_its_word() {
    let server = "
import os, socket
s = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))
while True: s.accept()[0].close()
";
    let mut proxied = Proxied::of(2, &[], &["python3", "-c", server], &[]);
    proxied.all_ready(2);
    // It lives on, so this was no death that another worker could make good.
    assert_eq!(proxied.connect().rest().unwrap(), b"");
    assert_eq!(proxied.count("failed"), [0, 0]);
    assert_eq!(proxied.count("accepted").iter().sum::<u64>(), 1);
    assert_eq!(proxied.run.stop(), 0);
}

#[test]
fn who_waits_outside_at_a_stop_is_served_and_nobody_comes_after() {
    let mut proxied = Proxied::start(1, &["--grace", "60s"]);
    let mut asked = proxied.connect();
    asked.say("count");
    let mut quiet = proxied.connect();
    quiet.id();
    proxied.run.signal(Signal::SIGSTOP);
    let mut outside: Vec<Client> = (0..5).map(|_| proxied.connect()).collect();
    for client in &mut outside {
        client.say("who");
    }
    proxied.run.signal(Signal::SIGTERM);
    proxied.run.signal(Signal::SIGCONT);
    for client in &mut outside {
        assert_eq!(number(&client.line(), "id="), 1);
    }
    assert_eq!(quiet.rest().unwrap(), b"");
    assert!(TcpStream::connect(proxied.address).is_err());
    asked.end();
    assert_eq!(asked.rest().unwrap(), b"0.\n");
    assert_eq!(proxied.run.end(), 0);
}

#[test]
fn connections_outlive_an_upgrade() {
    const SIZE: usize = 32 << 20;
    let mut proxied = Proxied::start(2, &[]);
    let mut asked = proxied.connect();
    asked.say("count");
    asked.say("before");
    let mut silent = proxied.connect();
    let who = silent.ask("who");
    let mut large = proxied.connect();
    // More than all the buffers on the way hold.
    large.say(&format!("big {SIZE}"));
    let mut fresh = proxied.connect();
    let mut many: Vec<_> = (0..200).map(|_| proxied.connect()).collect();
    for client in &mut many {
        client.id();
    }
    let active: u64 = proxied.count("active").iter().sum();
    for _ in 0..2 {
        proxied.run.signal(Signal::SIGUSR2);
        proxied.run.wait_log("goes on in place of");
        assert_eq!(proxied.count("active").iter().sum::<u64>(), active);
    }
    asked.say("after");
    asked.end();
    assert_eq!(asked.rest().unwrap(), b"13.\n");
    assert_eq!(silent.ask("who"), who);
    fresh.id();
    for client in &mut many {
        client.id();
    }
    assert!(large.take(SIZE).iter().all(|byte| *byte == b'x'));
    assert_eq!(number(&large.ask("who"), "gen="), 1);
    assert_eq!(proxied.count("failed"), [0, 0]);
    drop((many, silent, large, fresh));
    until("all have ended", || proxied.count("active") == [0, 0]);
    proxied.ask(&["reload"]);
    assert_eq!(number(&proxied.connect().ask("who"), "gen="), 2);
    assert_eq!(proxied.run.stop(), 0);
}
