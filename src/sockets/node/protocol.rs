//! The lines that a Node process and its primary write to each other (`child_process` with the `json`
//! serialization, and `cluster` on top of it): read into messages, and written. Pure.

use memchr::memchr;
use serde_json::{Map, Value, json};

/// The longest line that is read; what is longer is passed over. Only a user's message can be.
pub(super) const LONGEST: usize = 1 << 20;

/// What a worker said.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    /// Its `cluster` module is there.
    Online,
    /// It wants to listen.
    Query(Box<Query>),
    /// A server of it listens.
    Listening,
    /// A server of it has closed.
    Close {
        key: String,
    },
    /// It will disconnect by itself and waits for a word.
    Leaving {
        seq: u64,
    },
    /// Whether it took a connection.
    Accepted {
        ack: u64,
        accepted: bool,
    },
    /// The last handle has arrived, or its descriptor has not.
    Ack,
    Nack,
    /// A user's message that came with a handle, which waits for an ACK.
    Handle(Value),
    /// A user's message.
    User(Value),
    /// Node's own, and nothing to us.
    Other,
}

/// `queryServer`: what a worker wants to listen on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Query {
    pub(super) seq: u64,
    /// None is every address.
    pub(super) address: Option<String>,
    pub(super) port: i64,
    pub(super) kind: Kind,
    /// The text of `kind` and of `fd` as they stand in Node's keys.
    pub(super) names: [String; 2],
    pub(super) fd: Option<i32>,
    /// Counts the servers of a worker on the same port.
    pub(super) index: u64,
    pub(super) flags: u64,
    /// What the first of all workers brings is for all: the key of its TLS tickets.
    pub(super) data: Value,
    pub(super) readable_all: bool,
    pub(super) writable_all: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
    Pipe,
    /// A descriptor's number.
    Fd,
}

/// `UV_TCP_IPV6ONLY` and `UV_UDP_IPV6ONLY`.
pub(super) const IPV6_ONLY: u64 = 1;
/// `UV_UDP_REUSEADDR`.
pub(super) const UDP_REUSE_ADDR: u64 = 4;
/// `UV_UDP_REUSEPORT`.
pub(super) const UDP_REUSE_PORT: u64 = 64;

impl Query {
    /// Node's name for what is to be shared (22 and later): with the port given, the n-th server of
    /// each worker is the same one; without, each n-th has a port of its own.
    pub(super) fn key(&self) -> String {
        let address = self.address.as_deref().unwrap_or("null");
        let [kind, fd] = &self.names;
        let key = format!("{address}:{}:{kind}:{fd}", self.port);
        if self.port == 0 { format!("{key}:{}", self.index) } else { key }
    }
}

/// Reads one line, without its end.
pub(super) fn read(line: &[u8]) -> Result<Incoming, serde_json::Error> {
    // The two that come with every connection.
    match line {
        br#"{"cmd":"NODE_HANDLE_ACK"}"# => return Ok(Incoming::Ack),
        br#"{"cmd":"NODE_HANDLE_NACK"}"# => return Ok(Incoming::Nack),
        _ => {}
    }
    // Bun marks what is its own like this.
    let line = line.strip_prefix(b"\x02").unwrap_or(line);
    let message: Value = serde_json::from_slice(line)?;
    Ok(match message["cmd"].as_str() {
        Some("NODE_CLUSTER") => cluster(&message),
        Some("NODE_HANDLE_ACK") => Incoming::Ack,
        Some("NODE_HANDLE_NACK") => Incoming::Nack,
        Some("NODE_HANDLE") => Incoming::Handle(take(message, "msg")),
        Some(cmd) if cmd.starts_with("NODE_") && cmd.len() > 5 => Incoming::Other,
        _ => Incoming::User(message),
    })
}

fn take(message: Value, name: &str) -> Value {
    match message {
        Value::Object(mut fields) => fields.remove(name).unwrap_or_default(),
        _ => Value::Null,
    }
}

fn cluster(message: &Value) -> Incoming {
    let number = |name: &str| message[name].as_u64();
    let seq = number("seq").unwrap_or_default();
    match message["act"].as_str() {
        Some("online") => Incoming::Online,
        Some("queryServer") => query(message, seq).map_or(Incoming::Other, Incoming::Query),
        Some("listening") => Incoming::Listening,
        Some("close") => match message["key"].as_str() {
            Some(key) => Incoming::Close { key: key.to_owned() },
            None => Incoming::Other,
        },
        Some("exitedAfterDisconnect") => Incoming::Leaving { seq },
        None if message["accepted"].is_boolean() => match number("ack") {
            Some(ack) => Incoming::Accepted { ack, accepted: message["accepted"] == true },
            None => Incoming::Other,
        },
        _ => Incoming::Other,
    }
}

fn query(message: &Value, seq: u64) -> Option<Box<Query>> {
    let number = |name: &str| message[name].as_u64().unwrap_or_default();
    let fd = message["fd"].as_i64().and_then(|fd| i32::try_from(fd).ok()).filter(|fd| *fd >= 0);
    let (kind, name) = match &message["addressType"] {
        Value::String(name) if name == "udp4" => (Kind::Udp4, "udp4"),
        Value::String(name) if name == "udp6" => (Kind::Udp6, "udp6"),
        Value::Number(number) if number.as_i64() == Some(4) => (Kind::Tcp4, "4"),
        Value::Number(number) if number.as_i64() == Some(6) => (Kind::Tcp6, "6"),
        Value::Number(number) if number.as_i64() == Some(-1) => (Kind::Pipe, "-1"),
        _ if fd.is_some() => (Kind::Fd, "null"),
        _ => return None,
    };
    let fd_name = match message.get("fd") {
        Some(fd) => fd.to_string(),
        None => "undefined".to_owned(),
    };
    Some(Box::new(Query {
        seq,
        address: message["address"].as_str().map(str::to_owned),
        port: message["port"].as_i64().unwrap_or(-1),
        kind,
        names: [name.to_owned(), fd_name],
        fd: fd.filter(|_| kind == Kind::Fd),
        index: number("index"),
        flags: number("flags"),
        data: message["data"].clone(),
        readable_all: message["readableAll"] == true,
        writable_all: message["writableAll"] == true,
    }))
}

/// A line of JSON.
pub(super) fn line(message: &Value) -> Vec<u8> {
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// A line that a descriptor goes with, around the message that it belongs to.
fn with_handle(message: &Value, udp: bool) -> Vec<u8> {
    let kind = if udp { "dgram.Native" } else { "net.Native" };
    line(&json!({ "cmd": "NODE_HANDLE", "type": kind, "msg": message }))
}

fn reply(key: &str, errno: i32, ack: u64, data: &Value, seq: u64) -> Map<String, Value> {
    let message = json!({
        "cmd": "NODE_CLUSTER", "errno": errno, "key": key, "ack": ack, "data": data, "seq": seq,
    });
    match message {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// The answer to `queryServer` that a listening descriptor, or a bound one, goes with.
pub(super) fn shared(key: &str, ack: u64, data: &Value, seq: u64, udp: bool) -> Vec<u8> {
    with_handle(&Value::Object(reply(key, 0, ack, data, seq)), udp)
}

/// The answer where connections will be handed out one by one; a pipe has no `sockname`.
pub(super) fn dealt(
    key: &str,
    ack: u64,
    data: &Value,
    seq: u64,
    sockname: Option<std::net::SocketAddr>,
) -> Vec<u8> {
    let mut reply = reply(key, 0, ack, data, seq);
    reply.insert("errno".to_owned(), Value::Null);
    if let Some(name) = sockname {
        let family = if name.is_ipv4() { "IPv4" } else { "IPv6" };
        let name =
            json!({ "address": name.ip().to_string(), "family": family, "port": name.port() });
        reply.insert("sockname".to_owned(), name);
    }
    line(&Value::Object(reply))
}

/// The answer where it cannot be had.
pub(super) fn refused(key: &str, errno: i32, ack: u64, data: &Value, seq: u64) -> Vec<u8> {
    line(&Value::Object(reply(key, -errno.abs(), ack, data, seq)))
}

/// A connection, whose descriptor goes with it.
pub(super) fn connection(key: &str, seq: u64) -> Vec<u8> {
    with_handle(&json!({ "cmd": "NODE_CLUSTER", "act": "newconn", "key": key, "seq": seq }), false)
}

/// What lets a worker close its servers, finish its requests and go.
pub(super) fn disconnect(seq: u64) -> Vec<u8> {
    line(&json!({ "cmd": "NODE_CLUSTER", "act": "disconnect", "seq": seq }))
}

/// The word that a worker waits for.
pub(super) fn acknowledge(ack: u64, seq: u64) -> Vec<u8> {
    line(&json!({ "cmd": "NODE_CLUSTER", "ack": ack, "seq": seq }))
}

/// A handle of a user has arrived.
pub(super) const HANDLE_ACK: &[u8] = b"{\"cmd\":\"NODE_HANDLE_ACK\"}\n";

/// Bytes as they come, cut into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Inside of a line that is too long.
    skips: bool,
}

impl Lines {
    pub(super) fn restore(bytes: Vec<u8>, skips: bool) -> Self {
        Self { bytes, skips }
    }

    /// What has come of a line that has no end yet, and whether it is passed over.
    pub(super) fn rest(&self) -> (&[u8], bool) {
        (&self.bytes, self.skips)
    }

    /// Takes bytes in and hands out the lines that they end; true where one was too long.
    pub(super) fn take(&mut self, mut bytes: &[u8], mut out: impl FnMut(&[u8])) -> bool {
        let mut too_long = false;
        while let Some(end) = memchr(b'\n', bytes) {
            let (head, tail) = bytes.split_at(end);
            bytes = &tail[1..];
            if std::mem::take(&mut self.skips) {
                continue;
            }
            if self.bytes.is_empty() {
                out(head);
            } else {
                self.bytes.extend_from_slice(head);
                out(&std::mem::take(&mut self.bytes));
            }
        }
        if self.skips {
            return false;
        }
        if self.bytes.len() + bytes.len() > LONGEST {
            too_long = true;
            self.skips = true;
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(bytes);
        }
        too_long
    }
}

/// All that comes from outside, for the fuzz targets: whatever it is, cut anywhere, it is read the same.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8], cut: usize) {
    let mut all = Vec::new();
    Lines::default().take(bytes, |line| all.push(line.to_vec()));
    let mut parts = Vec::new();
    let mut lines = Lines::default();
    for part in bytes.chunks(cut.max(1)) {
        lines.take(part, |line| parts.push(line.to_vec()));
    }
    assert_eq!(all, parts);
    for line in all {
        if let Ok(Incoming::Query(query)) = read(&line) {
            let _ = super::bind::Target::of(&query, None).map(|target| target.to_string());
            let _ = query.key();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Incoming {
        read(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_node_says() {
        assert_eq!(of(r#"{"cmd":"NODE_CLUSTER","act":"online","seq":0}"#), Incoming::Online);
        assert_eq!(
            of("\u{2}{\"cmd\":\"NODE_CLUSTER\",\"act\":\"online\",\"seq\":0}"),
            Incoming::Online
        );
        let Incoming::Query(query) = of(
            r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,"port":3100,"addressType":4,"backlog":0,"seq":1}"#,
        ) else {
            panic!("no query")
        };
        assert_eq!(query.key(), "null:3100:4:undefined");
        let Incoming::Query(query) = of(
            r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":3,"data":{"ticketKeys":"ab"},"address":"::1","port":0,"addressType":6,"flags":1,"seq":9}"#,
        ) else {
            panic!("no query")
        };
        assert_eq!((query.key().as_str(), query.flags, query.seq), ("::1:0:6:undefined:3", 1, 9));
        assert_eq!(query.data["ticketKeys"], "ab");
        let Incoming::Query(query) = of(
            r#"{"cmd":"NODE_CLUSTER","act":"queryServer","address":null,"port":0,"addressType":"udp4","fd":-1,"index":0}"#,
        ) else {
            panic!("no query")
        };
        assert_eq!((query.kind, query.key().as_str()), (Kind::Udp4, "null:0:udp4:-1:0"));
        let Incoming::Query(query) = of(
            r#"{"cmd":"NODE_CLUSTER","act":"queryServer","address":null,"port":null,"addressType":null,"fd":9,"index":0}"#,
        ) else {
            panic!("no query")
        };
        assert_eq!((query.kind, query.fd), (Kind::Fd, Some(9)));
        assert_eq!(
            of(r#"{"cmd":"NODE_CLUSTER","ack":11,"accepted":true,"seq":3}"#),
            Incoming::Accepted { ack: 11, accepted: true }
        );
        assert_eq!(
            of(r#"{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":4}"#),
            Incoming::Leaving { seq: 4 }
        );
        assert_eq!(of(r#"{ "cmd": "NODE_HANDLE_ACK" }"#), Incoming::Ack);
    }

    #[test]
    fn what_belongs_to_node_and_what_to_the_user() {
        assert_eq!(of(r#"{"cmd":"NODE_SOCKET_GET_COUNT","key":"x"}"#), Incoming::Other);
        assert_eq!(of(r#"{"cmd":"NODE_CLUSTER","act":"news","seq":1}"#), Incoming::Other);
        for text in [r#"{"cmd":"NODE_"}"#, r#""ready""#, "17", "null", r#"{"cmd":7}"#, "[1]"] {
            assert_eq!(of(text), Incoming::User(serde_json::from_str(text).unwrap()), "{text}");
        }
        assert_eq!(
            of(r#"{"cmd":"NODE_HANDLE","type":"net.Socket","msg":"here"}"#),
            Incoming::Handle("here".into())
        );
        for text in ["", "{", "\u{2}", "ready", "{\"a\":}"] {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn lines_come_out_whole_however_they_are_cut() {
        let text = "{\"a\":\"ä\"}\n\n17\nrest".as_bytes();
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for part in text.chunks(size) {
                assert!(!lines.take(part, |line| found.push(line.to_vec())));
            }
            assert_eq!(found, ["{\"a\":\"ä\"}".as_bytes(), b"", b"17"]);
            assert_eq!(lines.rest().0, b"rest");
        }
    }

    #[test]
    fn a_line_without_end_takes_no_memory_and_the_next_one_counts() {
        let mut lines = Lines::default();
        let part = vec![b'x'; LONGEST / 2 + 1];
        let none = |_: &[u8]| panic!("a line");
        assert!(!lines.take(&part, none));
        assert!(lines.take(&part, none), "said once");
        assert!(!lines.take(&part, none));
        assert_eq!(lines.rest().0.len(), 0);
        let mut found = Vec::new();
        lines.take(b"xx\n1\n", |line| found.push(line.to_vec()));
        assert_eq!(found, [b"1"]);
    }
}
