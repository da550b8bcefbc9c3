//! `--share proxy`: what happens to bytes, ends and addresses on their way through the launcher.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

use crate::faults::limit_files;
use crate::proxied::{Client, Proxied, WORKER};
use crate::support::{Run, done, number, throng, until};

#[test]
fn connections_go_to_workers_in_turn_and_are_counted() {
    let mut proxied = Proxied::start(3, &["--balance", "round-robin"]);
    let mut clients: Vec<_> = (0..6).map(|_| proxied.connect()).collect();
    let ids: Vec<_> = clients.iter_mut().map(Client::id).collect();
    assert_eq!(ids[..3], ids[3..], "strictly in turn");
    assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    assert_eq!(proxied.count("active"), [2, 2, 2]);
    clients.truncate(1);
    until("the ends have been seen", || proxied.count("active").iter().sum::<u64>() == 1);
    assert_eq!(proxied.count("accepted"), [2, 2, 2]);
    assert_eq!(proxied.count("failed"), [0, 0, 0]);
    assert_eq!(proxied.run.stop(), 0);
}

#[test]
fn the_one_with_the_fewest_gets_the_next() {
    let proxied = Proxied::start(2, &[]);
    let mut held: Vec<Vec<Client>> = vec![Vec::new(), Vec::new()];
    for _ in 0..6 {
        let mut client = proxied.connect();
        let id = usize::try_from(client.id()).unwrap();
        held[id - 1].push(client);
    }
    assert_eq!((held[0].len(), held[1].len()), (3, 3));
    // One of them loses two, and gets the next two.
    held[0].truncate(1);
    until("the ends have been seen", || proxied.count("active") == [1, 3]);
    let mut next: Vec<_> = (0..2).map(|_| proxied.connect()).collect();
    assert!(next.iter_mut().all(|client| client.id() == 1));
}

#[test]
fn each_way_ends_by_itself() {
    let mut proxied = Proxied::start(1, &[]);
    // The client's end reaches the worker, and the answer comes all the same.
    let mut client = proxied.connect();
    client.say("count");
    client.0.get_mut().write_all(&vec![b'x'; 100_000]).unwrap();
    client.end();
    assert_eq!(client.line(), "100000.");
    assert_eq!(client.rest().unwrap(), b"");
    // The worker's end reaches the client, and what he says then comes all the same.
    let mut client = proxied.connect();
    assert_eq!(client.ask("bye"), "bye");
    assert_eq!(client.rest().unwrap(), b"");
    client.0.get_mut().write_all(&vec![b'x'; 50_000]).unwrap();
    client.end();
    proxied.run.wait("after=50000.");
    assert_eq!(proxied.count("failed"), [0]);
}

#[test]
fn a_reset_is_passed_on_as_one() {
    let proxied = Proxied::start(1, &[]);
    let mut client = proxied.connect();
    client.id();
    client.say("reset");
    assert_eq!(client.rest().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxied.count("failed"), [1]);
    // And of a client: the worker is rid of it.
    let mut client = proxied.connect();
    client.id();
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(client.0.get_ref(), sockopt::Linger, &now).unwrap();
    drop(client);
    until("its end has been seen", || proxied.count("active") == [0]);
    assert_eq!(proxied.count("failed"), [1]);
}

#[test]
fn who_does_not_read_is_waited_for_in_bounded_memory() {
    const SIZE: usize = 64 << 20;
    let proxied = Proxied::start(1, &[]);
    let mut client = proxied.connect();
    client.id();
    let before = proxied.memory();
    // A worker whose client does not read.
    client.say(&format!("big {SIZE}"));
    client.0.get_ref().set_nonblocking(true).unwrap();
    let mut waiting: i32 = -1;
    let mut same = 0;
    until("no more comes", || {
        let mut byte = vec![0; SIZE];
        let flags = nix::sys::socket::MsgFlags::MSG_PEEK;
        let now = nix::sys::socket::recv(client.0.get_ref().as_raw_fd(), &mut byte, flags);
        let now = i32::try_from(now.unwrap_or(0)).unwrap();
        same = if now > 0 && now == waiting { same + 1 } else { 0 };
        waiting = now;
        same > 20
    });
    assert!(usize::try_from(waiting).unwrap() < SIZE);
    let more = proxied.memory() - before;
    assert!(more < 1024, "{more} KiB more");
    client.0.get_ref().set_nonblocking(false).unwrap();
    let mut got = vec![0; SIZE];
    client.0.read_exact(&mut got).unwrap();
    assert!(got.iter().all(|byte| *byte == b'x'));
    // A client whose worker does not read.
    client.say("hang");
    client.0.get_ref().set_nonblocking(true).unwrap();
    let (mut sent, mut refused) = (0, 0);
    until("no more goes", || {
        match client.0.get_mut().write(&vec![b'x'; 1 << 16]) {
            Ok(count) => (sent, refused) = (sent + count, 0),
            Err(_) => refused += 1,
        }
        refused > 1000
    });
    let more = proxied.memory() - before;
    assert!(sent > 1 << 16 && more < 1024, "{sent} bytes sent, {more} KiB more");
    // Others are served meanwhile, and one of whom there is only half a line.
    let mut slow = proxied.connect();
    slow.0.get_mut().write_all(b"wh").unwrap();
    for _ in 0..20 {
        assert_eq!(proxied.connect().id(), 1);
    }
    slow.0.get_mut().write_all(b"o").unwrap();
    assert_eq!(number(&slow.ask(""), "id="), 1);
}

#[test]
fn two_thousand_that_are_silent_cost_little() {
    let mut proxied = Proxied::start(2, &[]);
    // Python has a thread for each, with a small stack.
    let before = proxied.memory();
    let mut clients: Vec<_> = (0..2000).map(|_| proxied.connect()).collect();
    for client in &mut clients {
        client.id();
    }
    assert_eq!(proxied.count("active"), [1000, 1000]);
    let more = proxied.memory() - before;
    assert!(more < 600, "{more} KiB more");
    for client in &mut clients {
        client.id();
    }
    assert_eq!(proxied.run.stop(), 0);
}

/// A connection from an address of loopback.
fn from(ip: Ipv4Addr, to: SocketAddr) -> Client {
    let fd: OwnedFd =
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(ip, 0))).unwrap();
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    connect(fd.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
    Client::new(fd.into())
}

#[test]
fn an_address_meets_the_same_worker() {
    let mut proxied = Proxied::start(3, &["--balance", "sticky-ip"]);
    let ips: Vec<_> = (1..=20).map(|last| Ipv4Addr::new(127, 0, 0, last)).collect();
    let ask = |proxied: &Proxied| -> Vec<i32> {
        ips.iter().map(|ip| from(*ip, proxied.address).id()).collect()
    };
    let first = ask(&proxied);
    assert_eq!(ask(&proxied), first);
    assert!((1..=3).all(|id| first.contains(&id)), "{first:?}");
    // Also when all of them are others.
    proxied.ask(&["reload"]);
    assert_eq!(ask(&proxied), first);
    assert_eq!(proxied.run.stop(), 0);
}

#[test]
fn a_worker_is_told_who_its_client_is() {
    let proxied =
        Proxied::with(1, &["--proxy-protocol", "--listen", "[::]:0"], "", &[("PROXIED", "1")]);
    let port = proxied.address.port();
    for to in ["127.0.0.1", "::1"] {
        let mut client = Client::new(TcpStream::connect((to, port)).unwrap());
        let own = client.0.get_ref().local_addr().unwrap().port();
        assert_eq!(client.ask("peer"), format!("{to} {own} {to} {port}."));
    }
    let mut client = from(Ipv4Addr::new(127, 0, 0, 9), ([127, 0, 0, 1], port).into());
    assert!(client.ask("peer").starts_with("127.0.0.9 "));
}

#[test]
fn both_ends_may_be_of_version_six() {
    let proxied = Proxied::with(1, &["--listen", "[::1]:0"], "", &[("FAMILY", "6")]);
    assert!(proxied.address.is_ipv6());
    assert_eq!(proxied.connect().id(), 1);
    assert_eq!(proxied.connect().id(), 1);
}

#[test]
fn both_ends_may_be_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front");
    let listen = format!("unix:{}", path.display());
    let mut proxied = Proxied::with(2, &["--listen", &listen, "--upstream", "unix"], "", &[]);
    let ask = || {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"who\n").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        number(&text, "id=")
    };
    assert_ne!(ask(), ask());
    // Behind a folder of the workers' own, which goes with the launcher.
    let environ = std::fs::read(format!(
        "/proc/{}/environ",
        crate::support::children(proxied.run.pid(), false)[0]
    ))
    .unwrap();
    let place = environ.split(|byte| *byte == 0).find_map(|one| one.strip_prefix(b"PORT="));
    let place = PathBuf::from(String::from_utf8(place.unwrap().to_vec()).unwrap());
    assert!(place.exists());
    proxied.ask(&["reload"]);
    assert!(!place.exists(), "the file of a worker goes with it");
    assert_ne!(ask(), ask());
    assert_eq!(proxied.run.stop(), 0);
    assert!(!place.parent().unwrap().exists());
    assert!(!path.exists());
}

#[test]
fn where_descriptors_run_out_clients_wait_and_the_launcher_works_on() {
    let mut proxied = Proxied::start(1, &[]);
    let mut served: Vec<_> = (0..10).map(|_| proxied.connect()).collect();
    for client in &mut served {
        client.id();
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", proxied.run.pid())).unwrap().count();
    limit_files(proxied.run.pid(), u32::try_from(open).unwrap() + 3);
    // More than there is room for: the last wait in the kernel's queue.
    let mut waiting: Vec<_> = (0..10).map(|_| proxied.connect()).collect();
    for client in &mut waiting {
        client.say("who");
    }
    proxied.run.wait_log("no connection can be accepted at the moment");
    served[0].id();
    limit_files(proxied.run.pid(), u32::try_from(open).unwrap() + 200);
    for client in &mut waiting {
        assert_eq!(number(&client.line(), "id="), 1);
    }
    assert_eq!(proxied.run.stop(), 0);
}

#[test]
fn no_more_are_let_in_than_the_limit_of_open_files_allows() {
    let dir = tempfile::tempdir().unwrap();
    let binary = env!("CARGO_BIN_EXE_throng-rs");
    let line = format!(
        "ulimit -n 60; exec {binary} --workers 1 --restart always --control {} --listen 127.0.0.1:0 -- python3 -c \"$0\"",
        dir.path().join("s").display()
    );
    let code = WORKER.replace("START", "");
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", &line, &code]).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    let mut run = Run::start(&mut shell);
    let line = run.wait_log("listening on ");
    let address: SocketAddr = line.split(' ').next_back().unwrap().parse().unwrap();
    let connect = || Client::new(TcpStream::connect(address).unwrap());
    let mut inside: Vec<_> = (0..15).map(|_| connect()).collect();
    for client in &mut inside {
        client.id();
    }
    let mut outside: Vec<_> = (0..5).map(|_| connect()).collect();
    run.wait_log("as many as the limit of open files allows");
    drop(inside);
    for client in &mut outside {
        client.id();
    }
    assert_eq!(run.stop(), 0);
}

#[test]
fn the_proxy_is_what_a_port_of_our_own_or_a_listener_asks_for() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let code = WORKER.replace("START", "print('told', env['PORT'], flush=True)");
    let mut command = throng(&["-v", "--workers", "2", "--", "python3", "-c", &code]);
    let mut run = Run::start(command.env("PORT", port.to_string()));
    run.wait_log(&format!("listening on [::]:{port}"));
    let told = run.wait_for(2, "told ");
    run.wait_log(") is ready");
    run.wait_log(") is ready");
    assert_ne!(told[0], told[1]);
    for line in &told {
        let own: u16 = line.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(own != port && !(32768..=60999).contains(&own), "{line}");
    }
    assert_ne!(Client::new(TcpStream::connect(("127.0.0.1", port)).unwrap()).id(), 0);
    assert_eq!(run.stop(), 0);
    for (args, want) in [
        (&["--share", "proxy"][..], "--share is proxy and needs --listen ADDR or PORT"),
        (
            &["--share", "off", "--proxy-protocol"],
            "--proxy-protocol is about connections that we pass on",
        ),
        (
            &["--share", "proxy", "--listen", "1", "--balance", "kernel"],
            "knows least-connections, round-robin, sticky-ip",
        ),
        (&["--share", "proxy", "--listen", "1", "--exec"], "nobody stays to pass connections on"),
        (&["--share", "proxy", "--upstream", "x"], "\"x\""),
    ] {
        let run = done(throng(args).args(["--", "true"]));
        assert!(run.status == 2 && run.stderr.contains(want), "{}", run.stderr);
    }
}

#[test]
fn a_worker_that_listens_elsewhere_is_named() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = format!("env['PORT'] = '{other}'");
    let mut proxied = Proxied::begin(1, &[], &start, &[]);
    let line = proxied.run.wait_log("worker 1 listens on port");
    assert!(line.contains(&format!("port {other}, and connections are passed to")), "{line}");
    assert_eq!(proxied.run.stop(), 0);
}
