//! `--listen` with `--share fd`: one socket, bound by us, inherited by every worker in all dialects.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use crate::supervise::free_port;
use crate::support::{Run, done, number, throng};

/// Serves the inherited descriptor 3 and answers with its own pid.
const SERVER: &str = "
import os, socket
s = socket.socket(fileno=3)
print('up fds=%s own=%s names=%s einhorn=%s:%s starter=%s.' % (os.environ['LISTEN_FDS'],
    os.environ['LISTEN_PID'] == str(os.getpid()), os.environ['LISTEN_FDNAMES'],
    os.environ['EINHORN_FD_COUNT'], os.environ['EINHORN_FD_0'], os.environ['SERVER_STARTER_PORT']), flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b'pid=%d.' % os.getpid())
    c.close()
";

/// The same on all that are inherited.
const FAMILIES: &str = "
import os, select, socket
all = [socket.socket(fileno=3 + i) for i in range(int(os.environ['LISTEN_FDS']))]
print('up fds=%d' % len(all), flush=True)
while True:
    for s in select.select(all, [], [])[0]:
        c, _ = s.accept()
        c.sendall(b'pid=%d.' % os.getpid())
        c.close()
";

fn answer(mut connection: impl Read) -> i32 {
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    number(&text, "pid=")
}

#[test]
fn one_tcp_socket_in_every_dialect() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let args =
        ["--workers", "3", "--listen", &address, "--share", "fd", "--", "python3", "-c", SERVER];
    let mut run = Run::start(&mut throng(&args));
    for line in run.wait_for(3, "up ") {
        assert_eq!(
            line,
            format!("up fds=1 own=True names={port} einhorn=1:3 starter={address}=3.")
        );
    }
    // Connections wait in the one socket while every worker is replaced: none is refused.
    let pids: std::collections::BTreeSet<i32> =
        (0..200).map(|_| answer(TcpStream::connect(&address).unwrap())).collect();
    assert!(!pids.is_empty());
    // One is left: when all first starts end before they are ready, the run ends.
    for pid in pids.iter().take(2) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        // Not before it has gone: what a dying worker has accepted goes with it.
        run.wait_log(&format!("(pid {pid}) ended"));
        assert_ne!(answer(TcpStream::connect(&address).unwrap()), *pid);
    }
    assert_eq!(run.stop(), 0);
    assert!(TcpStream::connect(&address).is_err(), "the socket goes with us");
}

#[test]
fn several_sockets_in_order_and_a_unix_socket_that_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let unix = format!("unix:{}", path.display());
    let listen = format!("{unix} 127.0.0.1:0");
    let mut command = throng(&["--workers", "2", "--share", "fd", "--", "python3", "-c", SERVER]);
    let mut run = Run::start(command.env("THRONG_LISTEN", &listen));
    let line = run.wait("up ");
    assert!(line.contains("fds=2 ") && line.contains("einhorn=2:3"), "{line}");
    assert!(line.contains(&format!("starter={}=3;127.0.0.1:", path.display())), "{line}");
    answer(UnixStream::connect(&path).unwrap());
    let second = done(&mut throng(&["--listen", &unix, "--share", "fd", "--", "true"]));
    assert_eq!(second.status, 1, "{}", second.stderr);
    assert_eq!(run.stop(), 0);
    assert!(!path.exists());
}

#[test]
fn a_port_that_somebody_has_is_named_with_its_holder() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let run = done(&mut throng(&["--listen", &address, "--share", "fd", "--", "true"]));
    assert_eq!(run.status, 1);
    assert!(run.stderr.contains(&address), "{}", run.stderr);
    assert!(run.stderr.contains(&format!("pid {}", std::process::id())), "{}", run.stderr);
}

#[test]
fn both_families_by_name_are_two_sockets_and_a_port_alone_is_one() {
    if std::net::TcpListener::bind("[::]:0").is_err() {
        eprintln!("skipped: no IPv6 here");
        return;
    }
    let port = free_port();
    for (listen, fds) in [(format!("[::]:{port} 0.0.0.0:{port}"), 2), (port.to_string(), 1)] {
        for share in ["fd", "reuseport"] {
            let args = ["--workers", "1", "--restart", "always", "--share", share];
            let mut command = throng(&args);
            command.env("THRONG_LISTEN", &listen).args(["--", "python3", "-c", FAMILIES]);
            let mut run = Run::start(&mut command);
            assert_eq!(run.wait("up "), format!("up fds={fds}"), "{listen}");
            for ip in ["127.0.0.1", "[::1]"] {
                answer(TcpStream::connect(format!("{ip}:{port}")).unwrap());
            }
            assert_eq!(run.stop(), 0);
        }
    }
}

#[test]
fn what_the_kernel_does_is_not_ours_to_balance() {
    for (share, says) in
        [("fd", "knows kernel"), ("reuseport", "knows kernel"), ("off", "spreads no")]
    {
        let args = ["--share", share, "--balance", "sticky-ip", "--listen", "0", "--", "true"];
        // Without a way there is nothing to listen for.
        let without: Vec<_> =
            args.iter().filter(|word| !["--listen", "0"].contains(*word)).collect();
        let all: Vec<&str> = match share {
            "off" => without.into_iter().copied().collect(),
            _ => args.to_vec(),
        };
        let run = done(&mut throng(&all));
        assert_eq!(run.status, 2, "{}", run.stderr);
        assert!(run.stderr.contains("--balance is sticky-ip"), "{}", run.stderr);
        assert!(run.stderr.contains(&format!("--share {share} {says}")), "{}", run.stderr);
    }
    let args = ["--share", "fd", "--balance", "kernel", "--listen", "127.0.0.1:0"];
    let run = done(throng(&args).args(["--restart", "never", "--", "true"]));
    assert_eq!(run.status, 0, "{}", run.stderr);
}

#[test]
fn the_demo_answers_with_worker_pid_and_budget() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut run = Run::start(&mut throng(&[
        "demo",
        "--workers",
        "2",
        "--memory",
        "512M",
        "--listen",
        &address,
    ]));
    run.wait(&format!("http://{address}/"));
    let mut connection = TcpStream::connect(&address).unwrap();
    connection.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.contains("of 2, pid ") && text.contains("memory budget 217 MiB"), "{text}");
    assert_eq!(run.stop(), 0);
}
