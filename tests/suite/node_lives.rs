//! `--share node` under load: reloads, deaths, stops and upgrades, and no request is lost.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::beds::nodes::app;
use crate::node::{get, node, start};
use crate::supervise::free_port;
use crate::support::{Run, Source, Trace, number, until};

/// So many clients, each with a new connection for each request, until `requests` are done; tells how many
/// failed.
fn storm(port: u16, requests: u32, mut meanwhile: impl FnMut(&dyn Fn(u32))) -> u32 {
    let (left, failed) = (Arc::new(AtomicU32::new(requests)), Arc::new(AtomicU32::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (left, failed) = (Arc::clone(&left), Arc::clone(&failed));
            std::thread::spawn(move || {
                while left
                    .try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                    .is_ok()
                {
                    failed.fetch_add(u32::from(get(port).is_err()), Ordering::Relaxed);
                }
            })
        })
        .collect();
    // Waits until no more than so many are left.
    let wait = |more: u32| until("requests go on", || left.load(Ordering::Relaxed) <= more);
    meanwhile(&wait);
    for client in clients {
        client.join().unwrap();
    }
    failed.load(Ordering::Relaxed)
}

fn reloads_lose_nothing(balance: &str) {
    let Some(program) = node("reload", "node24") else { return };
    let port = free_port();
    let env = [("PORT", port.to_string()), ("HOST", "127.0.0.1".to_owned())];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut run = start(&["--balance", balance], &program, "server.js", &env);
    run.wait_for(2, "up ");
    for _ in 0..2 {
        run.wait_log("is ready");
    }
    let failed = storm(port, 2000, |until_left| {
        for left in [1800, 900] {
            until_left(left);
            run.signal(Signal::SIGHUP);
            run.wait_log("reload");
            run.wait_log("reload is done");
        }
    });
    assert_eq!(failed, 0, "{}", run.text(Source::Err));
    assert_eq!(run.stop(), 0);
}

#[test]
fn two_reloads_under_load_lose_nothing_by_the_kernel() {
    reloads_lose_nothing("kernel");
}

#[test]
fn two_reloads_under_load_lose_nothing_by_round_robin() {
    reloads_lose_nothing("round-robin");
}

/// One request on a connection that may have been used before; false where it was closed before any byte of
/// the answer came.
fn request(stream: &mut BufReader<TcpStream>) -> std::io::Result<bool> {
    if stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").is_err() {
        return Ok(false);
    }
    let mut line = String::new();
    match stream.read_line(&mut line) {
        Ok(0) => return Ok(false),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
        other => drop(other?),
    }
    let mut length = 0;
    while line.trim() != "" {
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
        stream.read_line(&mut line)?;
    }
    assert!(length > 0);
    stream.read_exact(&mut vec![0; length])?;
    Ok(true)
}

#[test]
fn kept_connections_that_ask_again_lose_nothing_in_a_reload() {
    let Some(program) = node("kept connections", "node24") else { return };
    let port = free_port();
    let env = [("PORT", port.to_string()), ("HOST", "127.0.0.1".to_owned())];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut run = start(&[], &program, "server.js", &env);
    for _ in 0..2 {
        run.wait_log("is ready");
    }
    let ends = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let ends = Arc::clone(&ends);
            std::thread::spawn(move || {
                let open = || BufReader::new(TcpStream::connect(("127.0.0.1", port)).unwrap());
                let mut stream = open();
                let mut fresh = true;
                let mut again = 0;
                while !ends.load(Ordering::Relaxed) {
                    if request(&mut stream).unwrap() {
                        fresh = false;
                    } else {
                        // RFC 9112, 9.3.1: only a connection that was used may be found closed.
                        assert!(!fresh, "a new connection was closed");
                        (stream, fresh) = (open(), true);
                        again += 1;
                    }
                }
                again
            })
        })
        .collect();
    run.signal(Signal::SIGHUP);
    run.wait_log("reload is done");
    ends.store(true, Ordering::Relaxed);
    let again: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(again > 0, "the old workers' connections were closed");
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_request_under_way_is_finished_and_the_worker_goes_by_itself() {
    let Some(program) = node("drain", "node24") else { return };
    let port = free_port();
    let port_text = port.to_string();
    let mut run = start(&[], &program, "server.js", &[("PORT", &port_text)]);
    for _ in 0..2 {
        run.wait_log("is ready");
    }
    let mut slow = TcpStream::connect(("127.0.0.1", port)).unwrap();
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    run.wait("began ");
    run.signal(Signal::SIGTERM);
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    assert!(text.contains("id="), "{text:?}");
    assert_eq!(run.end(), 0);
}

#[test]
fn a_killed_worker_is_replaced_at_its_sockets() {
    let Some(program) = node("kill", "node24") else { return };
    let trace = Trace::new();
    for balance in ["kernel", "round-robin"] {
        let port = free_port();
        let (app, port_text) = (app("server.js"), port.to_string());
        let args = ["-v", "--workers", "2", "--balance", balance, "--", &program, &app];
        let mut run = Run::start(trace.throng(&args).env("PORT", &port_text));
        let ups = run.wait_for(2, "up ");
        for _ in 0..2 {
            run.wait_log("is ready");
        }
        let pid = number(&ups[0], "pid=");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        run.wait_log(&format!("(pid {pid}) ended"));
        // While it is away, and when it is back; and the new one is the third for its application.
        (0..50).for_each(|_| drop(get(port).unwrap()));
        assert!(run.wait("up ").contains("id=3 "));
        run.wait_log("is ready");
        let seen: BTreeSet<_> = (0..100).map(|_| number(&get(port).unwrap(), "pid=")).collect();
        assert_eq!(seen.len(), 2);
        assert_eq!(run.stop(), 0);
    }
    trace.ends();
}

#[test]
fn everything_goes_on_through_an_upgrade() {
    let Some(program) = node("upgrade", "node24") else { return };
    for balance in ["kernel", "round-robin"] {
        let port = free_port();
        let port_text = port.to_string();
        let mut run =
            start(&["--balance", balance], &program, "server.js", &[("PORT", &port_text)]);
        let pids: BTreeSet<_> =
            run.wait_for(2, "up ").iter().map(|line| number(line, "pid=")).collect();
        for _ in 0..2 {
            run.wait_log("is ready");
        }
        let mut slow = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let request = b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        slow.write_all(request).unwrap();
        run.wait("began ");
        let failed = storm(port, 400, |until_left| {
            until_left(350);
            run.signal(Signal::SIGUSR2);
            run.wait_log("goes on in place of");
        });
        assert_eq!(failed, 0, "{}", run.text(Source::Err));
        let mut text = String::new();
        slow.read_to_string(&mut text).unwrap();
        assert!(text.contains("id="), "{text:?}");
        // The new program knows the workers and what they listen on: they are drained and replaced.
        let failed = storm(port, 400, |until_left| {
            until_left(350);
            run.signal(Signal::SIGHUP);
            run.wait_log("reload is done");
        });
        assert_eq!(failed, 0, "{}", run.text(Source::Err));
        let now: BTreeSet<_> = (0..40).map(|_| number(&get(port).unwrap(), "pid=")).collect();
        assert!(now.len() == 2 && now.is_disjoint(&pids), "{now:?} after {pids:?}");
        assert_eq!(run.stop(), 0);
    }
}
