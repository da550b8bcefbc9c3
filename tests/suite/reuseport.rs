//! `--share reuseport`: a socket for each slot, and who gets new connections while a slot is empty, goes or is
//! given up.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::net::TcpState;

use crate::driven::Fleet;
use crate::load::{Load, request};
use crate::supervise::free_port;
use crate::support::{LIMIT, done, number, throng, until};

/// One connection after the other; stops between two. A second generation waits for the file `go`, and
/// fails where there is a file `fail`.
const SERVER: &str = "
import os, select, signal, socket, sys, time
e = os.environ
who = 'worker %s gen %s pid %d.' % (e['THRONG_WORKER_ID'], e['THRONG_WORKER_GENERATION'], os.getpid())
if e['THRONG_WORKER_GENERATION'] != '1':
    if os.path.exists(sys.argv[1] + '/fail'): sys.exit(1)
    while not os.path.exists(sys.argv[1] + '/go'): time.sleep(0.01)
s = socket.socket(fileno=3); s.setblocking(False)
r, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w)
signal.signal(signal.SIGTERM, lambda *a: None)
print('up ' + who, flush=True)
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', e['NOTIFY_SOCKET'].replace('@', '\\0', 1))
text = b'HTTP/1.1 200 OK\\r\\n\\r\\n' + who.encode()
while r not in select.select([s, r], [], [])[0]:
    try: c, _ = s.accept()
    except BlockingIOError: continue
    c.setblocking(True); c.recv(4096); c.sendall(text); c.close()
";

/// A fleet whose workers are all ready.
struct Served {
    fleet: Fleet,
    address: SocketAddr,
    /// By slot.
    pids: Vec<i32>,
}

impl Served {
    fn start(workers: usize, args: &[&str]) -> Self {
        let address: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().display().to_string();
        let mut launcher = throng(&["--share", "reuseport", "--ready", "notify"]);
        launcher.args(["--workers", &workers.to_string(), "--listen", &address.to_string()]);
        launcher.args(args);
        let mut fleet = Fleet::of(launcher, dir, &["python3", "-c", SERVER, &folder]);
        let mut up = fleet.run.wait_for(workers, "up worker ");
        up.sort();
        for _ in 0..workers {
            fleet.run.wait_log("is ready");
        }
        Self { fleet, address, pids: up.iter().map(|line| number(line, " pid ")).collect() }
    }

    fn load(&self) -> Load {
        Load::on(&self.address.to_string())
    }

    fn signal(&self, slot: usize, signal: Signal) {
        kill(Pid::from_raw(self.pids[slot - 1]), signal).unwrap();
    }

    fn file(&self, name: &str) {
        std::fs::write(self.fleet.dir.path().join(name), "").unwrap();
    }

    /// Which workers answer so many requests, in order.
    fn answers(&self, count: usize) -> Vec<i32> {
        let one = |_| number(&request(&self.address.to_string()).unwrap(), "worker ");
        let mut found: Vec<_> = (0..count).map(one).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Connections with a request in them, whose answers nobody reads yet.
    fn open(&self, count: usize) -> Vec<TcpStream> {
        let one = |_| {
            let mut stream = TcpStream::connect(self.address).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            stream
        };
        (0..count).map(one).collect()
    }

    /// How many sockets listen there.
    fn sockets(&self) -> usize {
        let all = procfs::net::tcp().unwrap().into_iter();
        all.filter(|one| one.state == TcpState::Listen && one.local_address == self.address).count()
    }

    fn stop(mut self) {
        assert_eq!(self.fleet.run.stop(), 0);
    }
}

/// The answers that come, each as which worker of which generation.
fn read(streams: Vec<TcpStream>) -> Vec<Result<(i32, i32), std::io::Error>> {
    let one = |mut stream: TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok((number(&text, "worker "), number(&text, "gen ")))
    };
    streams.into_iter().map(one).collect()
}

#[test]
fn what_waits_for_a_worker_that_died_is_served_by_the_next_one_and_the_rest_by_others() {
    let mut served = Served::start(2, &[]);
    assert_eq!(served.sockets(), 2);
    served.signal(2, Signal::SIGSTOP);
    let waiting = served.open(40);
    served.signal(2, Signal::SIGKILL);
    served.fleet.run.wait_log("worker 2 (pid");
    // Its place is empty: nothing new comes to it.
    assert_eq!(served.answers(100), [1]);
    served.file("go");
    let answers: Vec<_> = read(waiting).into_iter().map(Result::unwrap).collect();
    assert!(answers.contains(&(2, 2)), "{answers:?}");
    assert!(answers.iter().all(|who| [(1, 1), (2, 2)].contains(who)), "{answers:?}");
    served.fleet.run.wait_log("worker 2 (pid");
    assert_eq!(served.answers(100), [1, 2]);
    served.stop();
}

#[test]
fn a_slot_that_goes_serves_what_waits_for_it_and_gets_nothing_more() {
    let mut served = Served::start(3, &["--grace", "60s"]);
    served.signal(3, Signal::SIGSTOP);
    let waiting = served.open(60);
    served.fleet.run.signal(Signal::SIGTTOU);
    served.fleet.run.wait_log("2 workers instead of 3");
    assert_eq!(served.answers(100), [1, 2]);
    served.signal(3, Signal::SIGCONT);
    let answers: Vec<_> = read(waiting).into_iter().map(Result::unwrap).collect();
    assert!(answers.contains(&(3, 1)), "{answers:?}");
    served.fleet.run.wait_log("worker 3 (pid");
    until("the socket has gone", || served.sockets() == 2);
    // And comes again with its slot.
    served.fleet.run.signal(Signal::SIGTTIN);
    served.fleet.run.wait("up worker 3 gen 1");
    served.fleet.run.wait_log("is ready");
    assert_eq!(served.sockets(), 3);
    assert_eq!(served.answers(100), [1, 2, 3]);
    served.stop();
}

#[test]
fn a_slot_that_is_given_up_leaves_nobody_waiting() {
    let mut served = Served::start(2, &["--max-restarts", "2"]);
    served.file("fail");
    served.signal(2, Signal::SIGSTOP);
    let waiting = served.open(40);
    served.signal(2, Signal::SIGKILL);
    served.fleet.run.wait_log("worker 2 is given up");
    served.fleet.run.wait_log("connections that waited for worker 2 were closed");
    let answers = read(waiting);
    assert!(answers.iter().any(Result::is_err));
    assert!(answers.iter().flatten().all(|who| *who == (1, 1)), "{answers:?}");
    assert_eq!(served.answers(100), [1]);
    served.stop();
}

#[test]
fn without_surge_the_place_of_a_worker_is_led_around_until_the_next_one_serves() {
    let mut served = Served::start(2, &["--surge", "0"]);
    served.file("go");
    let load = served.load();
    for _ in 0..3 {
        load.more(50);
        served.fleet.run.signal(Signal::SIGHUP);
        served.fleet.run.wait_log("the reload is done");
    }
    let tally = load.end(500);
    assert!(tally.failed.is_empty(), "{tally:?}");
    served.stop();
}

#[test]
fn an_upgrade_keeps_the_sockets_of_all_slots_and_what_is_known_of_them() {
    let mut served = Served::start(3, &[]);
    served.file("go");
    let load = served.load();
    load.more(50);
    served.fleet.run.signal(Signal::SIGUSR2);
    served.fleet.run.wait_log("goes on in place of");
    load.more(50);
    assert_eq!(served.sockets(), 3);
    // A slot goes, one is emptied, one comes: all by what was handed down.
    served.fleet.run.signal(Signal::SIGTTOU);
    served.fleet.run.wait_log("worker 3 (pid");
    until("the socket has gone", || served.sockets() == 2);
    served.fleet.run.signal(Signal::SIGHUP);
    served.fleet.run.wait_log("the reload is done");
    served.fleet.run.signal(Signal::SIGTTIN);
    served.fleet.run.wait("up worker 3 gen 1");
    served.fleet.run.wait_log("is ready");
    load.more(50);
    let tally = load.end(500);
    assert!(tally.failed.is_empty(), "{tally:?}");
    assert_eq!(served.answers(100), [1, 2, 3]);
    served.stop();
}

#[test]
fn a_second_run_of_the_same_user_is_found_before_it_gets_anything() {
    let served = Served::start(2, &[]);
    let address = served.address.to_string();
    for share in ["reuseport", "fd"] {
        let second = done(&mut throng(&["--listen", &address, "--share", share, "--", "true"]));
        assert_eq!(second.status, 1, "{}", second.stderr);
        let holder = format!("pid {} (throng-rs) listens there", served.fleet.run.pid());
        assert!(second.stderr.contains(&holder), "{}", second.stderr);
    }
    assert_eq!(served.answers(100), [1, 2]);
    served.stop();
}

#[test]
fn beside_a_unix_socket_which_is_one_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let unix = format!("unix:{}", path.display());
    let mut served = Served::start(2, &["--listen", &unix, "--socket-mode", "600"]);
    assert_eq!(mode(&path), 0o600);
    let pids = [1, 2].map(|slot| served.pids[slot - 1]);
    let inodes = pids.map(|pid| [3, 4].map(|fd| inode(pid, fd)));
    assert_ne!(inodes[0][0], inodes[1][0], "each has its own on TCP");
    assert_eq!(inodes[0][1], inodes[1][1], "and all the same on Unix");
    // Whoever comes later learns who is there.
    let second = done(&mut throng(&["--listen", &unix, "--share", "reuseport", "--", "true"]));
    let holder = format!("pid {} (throng-rs) listens there", served.fleet.run.pid());
    assert!(second.status == 1 && second.stderr.contains(&holder), "{}", second.stderr);
    assert!(path.exists());
    served.fleet.run.signal(Signal::SIGTERM);
    assert_eq!(served.fleet.run.end(), 0);
    assert!(!path.exists());
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().mode() & 0o777
}

fn inode(pid: i32, fd: i32) -> String {
    std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap().display().to_string()
}
