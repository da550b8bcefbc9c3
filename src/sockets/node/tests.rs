//! A scripted worker at the other end of a real channel: every message of the protocol, without Node.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::LocalSet;

use super::{Cluster, Hub, Setup};
use crate::sockets::{Address, Balance, Key, News, give_up, handed_down};

/// Reached only where something hangs.
const LIMIT: Duration = Duration::from_secs(20);
/// Nobody here inherits anything.
const END: RawFd = 30;

/// The primary with whom it tells.
struct Bed {
    hub: Hub,
    news: UnboundedReceiver<(Key, News)>,
}

/// A worker that does what it is told here.
struct Peer {
    stream: UnixStream,
    bytes: Vec<u8>,
    heard: VecDeque<(Value, Option<OwnedFd>)>,
    seq: u64,
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new()
        .block_on(&runtime, async { tokio::time::timeout(LIMIT, test()).await })
        .unwrap();
}

impl Bed {
    fn new(balance: Balance) -> Self {
        let cluster = Cluster { balance, asked: None, passed: Vec::new(), user: None, end: END };
        Self::with(Setup { cluster: Some(cluster), stop_message: None, patience: LIMIT })
    }

    fn with(setup: Setup) -> Self {
        let (tell, news) = unbounded_channel();
        Self { hub: Hub::new(setup, tell), news }
    }

    /// A worker that is online.
    fn worker(&self, key: Key, slot: u32) -> Peer {
        let (fd, env) = self.hub.join(key, slot).unwrap().unwrap();
        assert!(env.contains(&("NODE_CHANNEL_SERIALIZATION_MODE", "json".to_owned())));
        let stream = std::os::unix::net::UnixStream::from(fd);
        let stream = UnixStream::from_std(stream).unwrap();
        let mut peer = Peer { stream, bytes: Vec::new(), heard: VecDeque::new(), seq: 0 };
        peer.act(json!({ "act": "online" }));
        peer
    }

    async fn told(&mut self) -> (Key, News) {
        self.news.recv().await.unwrap()
    }
}

impl Peer {
    fn write(&self, text: &str, fd: Option<&OwnedFd>) {
        let fds = fd.map(|fd| [fd.as_raw_fd()]);
        let control = fds.as_ref().map(|fds| ControlMessage::ScmRights(fds));
        let parts = [IoSlice::new(text.as_bytes())];
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &parts, control.as_slice(), flags, None);
        assert_eq!(sent, Ok(text.len()));
    }

    fn say(&self, message: &Value) {
        self.write(&format!("{message}\n"), None);
    }

    /// A message of the cluster; returns its number.
    fn act(&mut self, mut message: Value) -> u64 {
        let seq = self.seq;
        self.seq += 1;
        message["cmd"] = "NODE_CLUSTER".into();
        message["seq"] = seq.into();
        self.say(&message);
        seq
    }

    fn query(&mut self, port: u16) -> u64 {
        self.act(json!({ "act": "queryServer", "index": 0, "data": null, "address": "127.0.0.1",
            "port": port, "addressType": 4, "backlog": 0, "flags": 0 }))
    }

    /// The next line, and the descriptor that came with it.
    async fn hear(&mut self) -> (Value, Option<OwnedFd>) {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return heard;
            }
            self.stream.readable().await.unwrap();
            self.receive();
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 4096];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let fd = self.stream.as_raw_fd();
        let result = self.stream.try_io(tokio::io::Interest::READABLE, || {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(fd, &mut parts, Some(&mut space), flags)?;
            let mut fds = Vec::new();
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(more) = control {
                    fds.extend(more);
                }
            }
            Ok((message.bytes, fds))
        });
        let Ok((length, fds)) = result else { return };
        assert!(length > 0, "the channel is closed");
        assert!(fds.len() < 2, "one descriptor for a line");
        self.bytes.extend_from_slice(&buffer[..length]);
        while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            self.heard.push_back((serde_json::from_slice(&line).unwrap(), None));
        }
        if let Some(fd) = fds.first() {
            // The kernel ends a read behind it.
            self.heard.back_mut().unwrap().1 = Some(handed_down(*fd).unwrap());
            give_up(*fd);
        }
    }

    /// Asks to listen and is answered with a socket of its own kind.
    async fn listen(&mut self, port: u16) -> (Value, Option<OwnedFd>) {
        let seq = self.query(port);
        let (reply, fd) = self.hear().await;
        let message = if fd.is_some() {
            assert_eq!(
                (&reply["cmd"], &reply["type"]),
                (&json!("NODE_HANDLE"), &json!("net.Native"))
            );
            self.say(&json!({ "cmd": "NODE_HANDLE_ACK" }));
            reply["msg"].clone()
        } else {
            reply
        };
        assert_eq!((&message["cmd"], &message["ack"]), (&json!("NODE_CLUSTER"), &json!(seq)));
        self.act(json!({ "act": "listening", "index": 0, "address": "127.0.0.1", "port": port, "addressType": 4 }));
        (message, fd)
    }

    /// A connection that is handed over: its number, and itself.
    async fn connection(&mut self) -> (u64, OwnedFd) {
        let (message, fd) = self.hear().await;
        assert_eq!(
            (&message["cmd"], &message["type"]),
            (&json!("NODE_HANDLE"), &json!("net.Native"))
        );
        assert_eq!(message["msg"]["act"], "newconn", "{message}");
        (message["msg"]["seq"].as_u64().unwrap(), fd.unwrap())
    }

    fn answer(&mut self, seq: u64, accepted: bool) {
        self.say(&json!({ "cmd": "NODE_HANDLE_ACK" }));
        self.act(json!({ "ack": seq, "accepted": accepted }));
    }

    async fn take(&mut self) -> OwnedFd {
        let (seq, fd) = self.connection().await;
        self.answer(seq, true);
        fd
    }
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn port(message: &Value) -> u16 {
    u16::try_from(message["sockname"]["port"].as_u64().unwrap()).unwrap()
}

/// Whether it is the same connection: what goes in at one end comes out at the other.
fn belong(fd: OwnedFd, client: &mut TcpStream) -> bool {
    let mut server = TcpStream::from(fd);
    client.write_all(b"x").unwrap();
    let mut byte = [0];
    server.set_nonblocking(true).unwrap();
    server.read(&mut byte).is_ok()
}

fn local(fd: &OwnedFd) -> u16 {
    crate::sockets::tcp::local(fd).unwrap().unwrap().port()
}

#[test]
fn kernel_each_slot_has_a_socket_and_its_next_worker_has_the_same() {
    run(async || {
        let mut bed = Bed::new(Balance::Kernel);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        let (reply, first) = one.listen(0).await;
        assert_eq!(bed.told().await, (1, News::Listens));
        assert_eq!(
            (&reply["errno"], &reply["key"]),
            (&json!(0), &json!("127.0.0.1:0:4:undefined:0"))
        );
        let (_, second) = two.listen(0).await;
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(local(&first), local(&second));
        let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
        assert_ne!(inode(&first), inode(&second));
        let flags = nix::fcntl::fcntl(&first, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert_ne!(flags & nix::libc::O_NONBLOCK, 0, "libuv takes it as it is");
        // The worker dies; what waits for it waits for the next one.
        drop((one, first));
        bed.hub.gone(1);
        let mut next = bed.worker(3, 1);
        let (_, third) = next.listen(0).await;
        assert_ne!(inode(&third.unwrap()), inode(&second));
        assert_eq!(bed.hub.connections(3), None);
    });
}

#[test]
fn while_a_slot_is_empty_nothing_new_comes_to_it() {
    run(async || {
        let bed = Bed::new(Balance::Kernel);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        let (_, first) = one.listen(0).await;
        let (_, second) = two.listen(0).await;
        drop((one, first));
        bed.hub.gone(1);
        let listener = std::net::TcpListener::from(second.unwrap());
        for _ in 0..40 {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (taken, _) = listener.accept().unwrap();
            assert_eq!(taken.peer_addr().unwrap(), client.local_addr().unwrap());
        }
    });
}

#[test]
fn round_robin_is_strict_and_interleaved_up_to_the_window() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        let (reply, fd) = one.listen(0).await;
        assert!(fd.is_none() && reply["errno"].is_null());
        let port = port(&reply);
        two.listen(0).await;
        let mut clients: Vec<_> = (0..40).map(|_| TcpStream::connect(at(port)).unwrap()).collect();
        // Nothing is taken: each has its window, the rest waits in the kernel.
        let mut held = Vec::new();
        for (index, client) in clients.iter_mut().enumerate().take(16) {
            let peer = if index % 2 == 0 { &mut one } else { &mut two };
            let (seq, fd) = peer.connection().await;
            assert!(belong(fd, client), "connection {index}");
            held.push(seq);
        }
        for (index, seq) in held.into_iter().enumerate() {
            let peer = if index % 2 == 0 { &mut one } else { &mut two };
            peer.answer(seq, true);
        }
        for (index, client) in clients.iter_mut().enumerate().skip(16) {
            let peer = if index % 2 == 0 { &mut one } else { &mut two };
            assert!(belong(peer.take().await, client), "connection {index}");
        }
        // What was answered is heard before a question behind it is.
        let leaving = one.act(json!({ "act": "exitedAfterDisconnect" }));
        assert_eq!(one.hear().await.0["ack"], leaving);
        assert_eq!(bed.hub.connections(1).unwrap().accepted, 20);
    });
}

#[test]
fn a_worker_that_dies_costs_only_what_had_arrived() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        let port = port(&one.listen(0).await.0);
        two.listen(0).await;
        let mut clients: Vec<_> = (0..4).map(|_| TcpStream::connect(at(port)).unwrap()).collect();
        // The first has arrived and is not taken, the third is on its way.
        let (_, first) = one.connection().await;
        one.say(&json!({ "cmd": "NODE_HANDLE_ACK" }));
        drop(two.take().await);
        let (_, third) = one.connection().await;
        let leaving = one.act(json!({ "act": "exitedAfterDisconnect" }));
        assert_eq!(one.hear().await.0["ack"], leaving);
        drop((one, first, third));
        bed.hub.gone(1);
        let mut got = Vec::new();
        for _ in 0..2 {
            got.push(two.take().await);
        }
        assert!(got.into_iter().any(|fd| belong(fd, &mut clients[2])));
        // The first is closed, and its client is told so.
        assert!(matches!(clients[0].read(&mut [0]), Ok(0) | Err(_)));
    });
}

#[test]
fn one_that_is_refused_goes_to_another_and_is_asked_for_again_later() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        let port = port(&one.listen(0).await.0);
        two.listen(0).await;
        let mut client = TcpStream::connect(at(port)).unwrap();
        for _ in 0..3 {
            let (seq, _) = one.connection().await;
            one.answer(seq, false);
            let (seq, _) = two.connection().await;
            two.answer(seq, false);
        }
        assert!(belong(one.take().await, &mut client));
        assert_eq!(bed.hub.connections(2).unwrap().accepted, 0);
    });
}

#[test]
fn a_worker_without_descriptors_is_left_alone_for_a_while() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let mut one = bed.worker(1, 1);
        let port = port(&one.listen(0).await.0);
        let mut client = TcpStream::connect(at(port)).unwrap();
        one.connection().await;
        let began = tokio::time::Instant::now();
        one.say(&json!({ "cmd": "NODE_HANDLE_NACK" }));
        let (seq, fd) = one.connection().await;
        assert!(began.elapsed() >= Duration::from_millis(70));
        assert!(belong(fd, &mut client));
        one.answer(seq, true);
        // In vain again and again: it is closed, and counted.
        let mut client = TcpStream::connect(at(port)).unwrap();
        for _ in 0..3 {
            one.connection().await;
            one.say(&json!({ "cmd": "NODE_HANDLE_NACK" }));
        }
        client.set_nonblocking(true).unwrap();
        while client.read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock) {
            tokio::task::yield_now().await;
        }
        assert_eq!(bed.hub.connections(1).unwrap().failed, 1);
    });
}

#[test]
fn a_reply_whose_descriptor_is_lost_comes_again_three_times() {
    run(async || {
        let bed = Bed::new(Balance::Kernel);
        let mut one = bed.worker(1, 1);
        one.query(0);
        for _ in 0..4 {
            assert!(one.hear().await.1.is_some());
            one.say(&json!({ "cmd": "NODE_HANDLE_NACK" }));
        }
        let seq = one.act(json!({ "act": "exitedAfterDisconnect" }));
        let (message, fd) = one.hear().await;
        assert_eq!((message["ack"].as_u64(), fd.is_none()), (Some(seq), true));
    });
}

#[test]
fn sticky_ip_keeps_to_the_slot_of_an_address_through_replacements() {
    run(async || {
        let bed = Bed::new(Balance::StickyIp);
        let mut peers = vec![bed.worker(1, 1), bed.worker(2, 2), bed.worker(3, 3)];
        let port = port(&peers[0].listen(0).await.0);
        peers[1].listen(0).await;
        peers[2].listen(0).await;
        let clients: Vec<_> = (0..6).map(|_| TcpStream::connect(at(port)).unwrap()).collect();
        // All come from one address, so to one worker.
        let mut chosen = None;
        for _ in 0..clients.len() {
            let [one, two, three] = &mut peers[..] else { panic!("three") };
            let (index, (seq, _)) = tokio::select! {
                connection = one.connection() => (0, connection),
                connection = two.connection() => (1, connection),
                connection = three.connection() => (2, connection),
            };
            peers[index].answer(seq, true);
            assert_eq!(*chosen.get_or_insert(index), index);
        }
        let chosen = chosen.unwrap();
        let slot = u32::try_from(chosen).unwrap() + 1;
        drop(peers.swap_remove(chosen));
        bed.hub.gone(u64::from(slot));
        let mut next = bed.worker(9, slot);
        next.listen(0).await;
        let _client = TcpStream::connect(at(port)).unwrap();
        next.take().await;
    });
}

#[test]
fn a_drained_worker_hears_so_gets_nothing_new_and_its_replacement_has_its_sockets() {
    run(async || {
        for balance in [Balance::Kernel, Balance::RoundRobin] {
            let mut bed = Bed::new(balance);
            let mut one = bed.worker(1, 1);
            let (reply, fd) = one.listen(0).await;
            let port = fd.as_ref().map_or_else(|| port(&reply), local);
            assert_eq!(bed.told().await, (1, News::Listens));
            bed.hub.drain(1, false);
            assert_eq!(one.hear().await.0["act"], "disconnect");
            one.act(json!({ "act": "close", "key": reply["key"] }));
            // Nobody listens, and nobody is refused.
            let mut client = TcpStream::connect(at(port)).unwrap();
            drop((one, fd));
            assert_eq!(bed.told().await, (1, News::Drained));
            let mut next = bed.worker(2, 1);
            let (_, fd) = next.listen(0).await;
            if let Some(fd) = fd {
                let (taken, _) = std::net::TcpListener::from(fd).accept().unwrap();
                assert_eq!(taken.peer_addr().unwrap(), client.local_addr().unwrap());
            } else {
                assert!(belong(next.take().await, &mut client));
            }
        }
    });
}

#[test]
fn a_server_that_closes_for_good_leaves_its_port() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let mut one = bed.worker(1, 1);
        let (reply, _) = one.listen(0).await;
        one.act(json!({ "act": "close", "key": reply["key"] }));
        let seq = one.act(json!({ "act": "exitedAfterDisconnect" }));
        assert_eq!(one.hear().await.0["ack"], seq);
        // The task that held it is gone with the next turn.
        tokio::task::yield_now().await;
        assert!(TcpStream::connect(at(port(&reply))).is_err());
    });
}

#[test]
fn errors_have_their_number_and_the_data_of_who_asked_first() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let holder = std::net::TcpListener::bind(at(0)).unwrap();
        let taken = holder.local_addr().unwrap().port();
        let mut one = bed.worker(1, 1);
        let seq = one.query(taken);
        let (reply, _) = one.hear().await;
        assert_eq!(
            (&reply["errno"], &reply["ack"]),
            (&json!(-(Errno::EADDRINUSE as i32)), &json!(seq))
        );
        drop(holder);
        // The key is forgotten: it may try again.
        let (reply, _) = one.listen(taken).await;
        assert!(reply["errno"].is_null());
        one.query(taken);
        let (reply, _) = one.hear().await;
        assert_eq!(reply["errno"], -(Errno::EADDRINUSE as i32), "twice in one process");
        let ask = |keys: &str| {
            json!({ "act": "queryServer", "index": 0, "data": { "ticketKeys": keys }, "address": "127.0.0.1",
                "port": 0, "addressType": 4, "flags": 0 })
        };
        one.act(ask("aa"));
        assert_eq!(one.hear().await.0["data"]["ticketKeys"], "aa");
        let mut two = bed.worker(2, 2);
        two.act(ask("bb"));
        assert_eq!(two.hear().await.0["data"]["ticketKeys"], "aa", "one key for all");
    });
}

#[test]
fn a_handle_of_the_user_is_acknowledged_and_what_is_unknown_does_no_harm() {
    run(async || {
        let bed = Bed::new(Balance::Kernel);
        let mut one = bed.worker(1, 1);
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        for line in [
            "no json",
            "",
            "\u{2}{}",
            "[",
            "{\"cmd\":\"NODE_CLUSTER\",\"act\":\"news\"}",
            "{\"cmd\":\"NODE_SOCKET_ALL_CLOSED\"}",
            "{\"cmd\":\"NODE_CLUSTER\",\"act\":\"queryServer\"}",
            "{\"cmd\":\"NODE_HANDLE_ACK\"}",
            "{\"cmd\":\"NODE_HANDLE_NACK\"}",
            "{\"cmd\":\"NODE_CLUSTER\",\"ack\":99,\"accepted\":false}",
            "{\"cmd\":\"NODE_CLUSTER\",\"act\":\"close\",\"key\":\"none\"}",
        ] {
            one.write(&format!("{line}\n"), None);
        }
        one.act(json!({ "act": "online" }));
        one.write(
            "{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Socket\",\"msg\":\"here\"}\n",
            Some(&file),
        );
        assert_eq!(one.hear().await.0, json!({ "cmd": "NODE_HANDLE_ACK" }));
    });
}

#[test]
fn messages_reach_workers_that_listen_and_their_siblings() {
    run(async || {
        let mut bed = Bed::new(Balance::RoundRobin);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        // Before a worker listens, a message would be lost in it.
        assert_eq!(bed.hub.send(&json!({ "first": 1 }), None), 2);
        one.listen(0).await;
        two.listen(0).await;
        assert_eq!(one.hear().await.0, json!({ "first": 1 }));
        assert_eq!(two.hear().await.0, json!({ "first": 1 }));
        assert_eq!(bed.hub.send(&json!("x"), Some(2)), 1);
        assert_eq!(two.hear().await.0, json!("x"));
        one.say(&json!({ "throng": { "to": "others", "message": [1] } }));
        let from = |message: Value| json!({ "throng": { "from": 1, "message": message } });
        assert_eq!(two.hear().await.0, from(json!([1])));
        one.say(&json!({ "throng": { "to": "all", "message": 2 } }));
        assert_eq!(one.hear().await.0, from(json!(2)));
        assert_eq!(two.hear().await.0, from(json!(2)));
        one.say(&json!("ready"));
        let mut told = Vec::new();
        while told.len() < 3 {
            told.push(bed.told().await);
        }
        assert_eq!(told[2], (1, News::SaidReady));
    });
}

#[test]
fn who_does_not_read_costs_no_memory_and_nobody_waits() {
    run(async || {
        let bed = Bed::with(Setup { cluster: None, stop_message: None, patience: LIMIT });
        let (fd, env) = bed.hub.join(1, 1).unwrap().unwrap();
        assert!(!env.iter().any(|(name, _)| *name == "NODE_UNIQUE_ID"));
        bed.hub.ready(1);
        let message = json!("x".repeat(10_000));
        let sent = (0..1000).filter(|_| bed.hub.send(&message, None) == 1).count();
        assert!((10..200).contains(&sent), "{sent}");
        // What was taken arrives whole.
        let mut stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(false).unwrap();
        let expected = sent * (10_000 + 3);
        let read = std::thread::spawn(move || {
            let mut buffer = vec![0; expected];
            stream.read_exact(&mut buffer).map(|()| memchr::memchr_iter(b'\n', &buffer).count())
        });
        while !read.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(read.join().unwrap().unwrap(), sent);
    });
}

#[test]
fn a_stop_message_comes_first_and_a_plain_channel_drains_when_it_closes() {
    run(async || {
        let stop_message = Some(json!("shutdown"));
        let mut bed = Bed::with(Setup { cluster: None, stop_message, patience: LIMIT });
        let mut one = bed.worker(1, 1);
        bed.hub.ready(1);
        bed.hub.drain(1, true);
        assert_eq!(one.hear().await.0, json!("shutdown"));
        drop(one);
        assert_eq!(bed.told().await, (1, News::Drained));
    });
}

#[test]
fn one_that_leaves_by_itself_is_heard_and_one_that_says_nothing_is_named() {
    run(async || {
        let cluster = Cluster {
            balance: Balance::Kernel,
            asked: None,
            passed: Vec::new(),
            user: None,
            end: END,
        };
        let patience = Duration::from_millis(50);
        let mut bed = Bed::with(Setup { cluster: Some(cluster), stop_message: None, patience });
        let mut one = bed.worker(1, 1);
        let seq = one.act(json!({ "act": "exitedAfterDisconnect" }));
        assert_eq!(one.hear().await.0["ack"], seq);
        assert_eq!(bed.told().await, (1, News::Leaves));
        let _silent = bed.hub.join(2, 2).unwrap().unwrap();
        assert_eq!(bed.told().await, (2, News::Deaf));
        assert!(!bed.hub.give_up() && bed.hub.give_up());
        assert!(bed.hub.join(3, 3).unwrap().is_none());
    });
}

#[test]
fn listen_narrows_what_a_worker_asks_for_and_what_was_passed_has_its_number() {
    run(async || {
        let passed = std::net::TcpListener::bind(at(0)).unwrap();
        let there = passed.local_addr().unwrap();
        let port = std::net::TcpListener::bind(at(0)).unwrap().local_addr().unwrap().port();
        let cluster = Cluster {
            balance: Balance::RoundRobin,
            asked: Some(Address::Tcp(at(port))),
            passed: vec![std::rc::Rc::new(OwnedFd::from(passed))],
            user: None,
            end: END,
        };
        let bed = Bed::with(Setup { cluster: Some(cluster), stop_message: None, patience: LIMIT });
        let mut one = bed.worker(1, 1);
        one.act(json!({ "act": "queryServer", "index": 0, "address": null, "port": port, "addressType": 4 }));
        let (reply, _) = one.hear().await;
        assert_eq!(reply["sockname"]["address"], "127.0.0.1");
        one.act(json!({ "act": "queryServer", "index": 0, "address": null, "port": null, "addressType": null, "fd": 3 }));
        let (reply, _) = one.hear().await;
        assert_eq!(reply["sockname"]["port"], there.port());
        let mut client = TcpStream::connect(there).unwrap();
        assert!(belong(one.take().await, &mut client));
        one.act(json!({ "act": "queryServer", "index": 0, "address": null, "port": null, "addressType": null, "fd": 4 }));
        assert_eq!(one.hear().await.0["errno"], -(Errno::EBADF as i32));
    });
}

#[test]
fn everything_goes_on_in_another_program() {
    run(async || {
        for balance in [Balance::RoundRobin, Balance::Kernel] {
            let before = Bed::new(balance);
            let (mut one, mut two) = (before.worker(1, 1), before.worker(2, 2));
            let (reply, fd) = one.listen(0).await;
            let port = fd.as_ref().map_or_else(|| port(&reply), local);
            drop(fd);
            two.listen(0).await;
            // Half a line is read, a connection is with a worker that has not answered, one waits.
            let mut clients = Vec::new();
            let mut held = None;
            if balance == Balance::RoundRobin {
                clients.push(TcpStream::connect(at(port)).unwrap());
                held = Some(one.connection().await.0);
            }
            one.write("{\"throng\":{\"to\":\"oth", None);
            two.act(json!({ "act": "exitedAfterDisconnect" }));
            two.hear().await;
            let mut kept = Vec::new();
            let saved = before.hub.save(&mut |fd| {
                let copy = fd.try_clone_to_owned()?;
                kept.push(copy);
                Ok(kept.last().unwrap().as_raw_fd())
            });
            let saved = serde_json::to_string(&saved.unwrap()).unwrap();
            let saved: super::Saved = serde_json::from_str(&saved).unwrap();
            let mut numbers = saved.descriptors();
            let mut all: Vec<_> = kept.iter().map(AsRawFd::as_raw_fd).collect();
            numbers.sort_unstable();
            all.sort_unstable();
            assert_eq!(numbers, all, "each is named once");
            // As an exec leaves it: what was here is gone, but for what is kept.
            before.hub.forget();
            drop(before);
            let after = Bed::new(balance);
            after.hub.restore(&saved).unwrap();
            drop(kept);
            after.hub.resume(2);
            one.write("ers\",\"message\":7}}\n", None);
            assert_eq!(two.hear().await.0["throng"]["message"], 7);
            if let Some(seq) = held {
                one.answer(seq, true);
                clients.push(TcpStream::connect(at(port)).unwrap());
                // The other one is leaving.
                let (_, fd) = one.connection().await;
                assert!(belong(fd, &mut clients[1]));
                assert_eq!(after.hub.connections(1).unwrap().accepted, 1);
            }
            // The third worker is the third for Node too.
            let (_end, env) = after.hub.join(3, 2).unwrap().unwrap();
            assert!(env.contains(&("NODE_UNIQUE_ID", "3".to_owned())));
        }
    });
}
