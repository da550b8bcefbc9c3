//! A client that keeps its connections alive and knows when it may send a request again.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Scope;

use crate::common::PATIENCE;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n";

/// What the clients have done together.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) answered: AtomicU64,
    /// Sent again, because a reused connection closed before any byte of the answer.
    pub(crate) again: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) stop: AtomicBool,
}

/// Why there is no answer.
enum Lost {
    /// Not one byte of it came.
    Untouched,
    Cut,
}

impl Kept {
    /// Starts so many clients, which go on until they are told to stop.
    pub(crate) fn start<'a>(&'a self, scope: &'a Scope<'a, '_>, clients: u64, to: SocketAddr) {
        for _ in 0..clients {
            scope.spawn(move || {
                let mut kept = None;
                while !self.stop.load(Ordering::Relaxed) {
                    self.one(&mut kept, to);
                }
            });
        }
    }

    fn one(&self, kept: &mut Option<TcpStream>, to: SocketAddr) {
        if let Some(stream) = kept {
            match exchange(stream) {
                Ok(stays) => return self.count(kept, stays),
                Err(Lost::Untouched) => self.again.fetch_add(1, Ordering::Relaxed),
                Err(Lost::Cut) => {
                    *kept = None;
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            };
        }
        *kept = TcpStream::connect(to).ok();
        let outcome = kept.as_mut().map(|stream| {
            let _ = stream.set_read_timeout(Some(PATIENCE));
            exchange(stream)
        });
        if let Some(Ok(stays)) = outcome {
            self.count(kept, stays);
        } else {
            *kept = None;
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn count(&self, kept: &mut Option<TcpStream>, stays: bool) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        if !stays {
            *kept = None;
        }
    }
}

/// One request; tells whether the connection stays.
fn exchange(stream: &mut TcpStream) -> Result<bool, Lost> {
    stream.write_all(REQUEST).map_err(|_| Lost::Untouched)?;
    let mut text = Vec::new();
    let mut part = [0; 1024];
    loop {
        let lost = if text.is_empty() { Lost::Untouched } else { Lost::Cut };
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return Err(lost),
            Ok(length) => text.extend_from_slice(&part[..length]),
        }
        // The answers of all workers here are short and alike.
        let Some(head) = text.windows(4).position(|part| part == b"\r\n\r\n") else { continue };
        let words = String::from_utf8_lossy(&text[..head]).to_ascii_lowercase();
        let length = words.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        if text.len() >= head + 4 + length {
            return Ok(!words.contains("connection: close"));
        }
    }
}
