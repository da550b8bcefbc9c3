//! A client for tests: many requests, each by a connection of its own, and what became of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::{LIMIT, until};

/// How many connect at the same time.
pub(crate) const CLIENTS: usize = 4;

/// Between two requests of a client: the processors have other tests to run.
const PAUSE: Duration = Duration::from_millis(2);

/// The body of the answer to one request; the error says how far it came.
pub(crate) fn request(address: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(LIMIT)).map_err(|error| format!("limit: {error}"))?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .map_err(|error| format!("write: {error}"))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| format!("read: {error}, {text:?}"))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("cut: {text:?}"))?;
    if head.starts_with("HTTP/1.1 200 ") && is_whole(head, body) {
        Ok(body.to_owned())
    } else {
        Err(text)
    }
}

/// Whether an answer came to its end, where it tells where that is.
fn is_whole(head: &str, body: &str) -> bool {
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let chunked = head.contains("transfer-encoding: chunked");
    length.is_none_or(|length| length.parse() == Ok(body.len()))
        && (!chunked || body.ends_with("\r\n0\r\n\r\n"))
}

/// Requests that go on until they are told to end.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Tally>>,
}

/// What became of them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// By body.
    pub(crate) answered: BTreeMap<String, usize>,
    pub(crate) failed: Vec<String>,
}

impl Load {
    pub(crate) fn on(address: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let client = |_| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            let address = address.to_owned();
            thread::spawn(move || {
                let mut tally = Tally::default();
                while !stop.load(Ordering::Relaxed) {
                    match request(&address) {
                        Ok(body) => *tally.answered.entry(body).or_default() += 1,
                        Err(why) => tally.failed.push(why),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(PAUSE);
                }
                tally
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, done, clients }
    }

    /// Waits for so many more requests.
    #[track_caller]
    pub(crate) fn more(&self, count: usize) {
        let end = self.done.load(Ordering::Relaxed) + count;
        until("so many requests", || {
            thread::sleep(PAUSE);
            self.done.load(Ordering::Relaxed) >= end
        });
    }

    /// Ends when there were at least so many in all.
    #[track_caller]
    pub(crate) fn end(self, least: usize) -> Tally {
        let left = least.saturating_sub(self.done.load(Ordering::Relaxed));
        self.more(left);
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for client in self.clients {
            let one = client.join().unwrap();
            all.failed.extend(one.failed);
            for (body, count) in one.answered {
                *all.answered.entry(body).or_default() += count;
            }
        }
        all
    }
}
