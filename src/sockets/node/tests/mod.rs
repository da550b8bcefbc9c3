//! A scripted worker at the other end of a real channel: every message of the protocol, without Node.

mod dealing;
mod listening;
mod messages;

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
