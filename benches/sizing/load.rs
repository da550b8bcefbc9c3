//! Clients that ask again as soon as they are answered, each on a new connection: what waits for a worker may go
//! to any that is free. They run outside of the box.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt::Linger};

/// How many ask at the same time.
pub(crate) const CLIENTS: usize = 48;

/// How long a client waits for an answer; who is that slow serves nobody.
const LONGEST: Duration = Duration::from_secs(20);
/// How long until a client sees that it is over.
const TICK: Duration = Duration::from_millis(200);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
    over: AtomicBool,
}

/// The clients at work; they stop when this is dropped.
pub(crate) struct Load {
    counts: Arc<Counts>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(to: SocketAddr) -> anyhow::Result<Self> {
        let counts = Arc::new(Counts::default());
        let mut load = Self { counts, clients: Vec::new() };
        for _ in 0..CLIENTS {
            let counts = Arc::clone(&load.counts);
            let client = Builder::new().stack_size(64 << 10).spawn(move || {
                while !counts.over.load(Ordering::Relaxed) {
                    if ask(to, &counts.over).is_some() {
                        counts.answered.fetch_add(1, Ordering::Relaxed);
                    } else {
                        counts.failed.fetch_add(1, Ordering::Relaxed);
                        // Nobody may listen yet.
                        sleep(Duration::from_millis(20));
                    }
                }
            });
            load.clients.push(client.context("cannot start a client")?);
        }
        Ok(load)
    }

    /// Answers a second from now on.
    pub(crate) fn rate(&self, time: Duration) -> anyhow::Result<f64> {
        let count = || self.counts.answered.load(Ordering::Relaxed);
        let (begin, before) = (Instant::now(), count());
        crate::rest(time)?;
        #[expect(clippy::cast_precision_loss, reason = "so many answers never come")]
        let answers = (count() - before) as f64;
        Ok(answers / begin.elapsed().as_secs_f64())
    }

    pub(crate) fn answered(&self) -> u64 {
        self.counts.answered.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.counts.failed.load(Ordering::Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.counts.over.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

/// One request; `Some` where the answer is good.
fn ask(to: SocketAddr, over: &AtomicBool) -> Option<()> {
    let mut stream = TcpStream::connect(to).ok()?;
    stream.set_read_timeout(Some(TICK)).ok()?;
    // The server closes first; a reset afterwards leaves no port in TIME_WAIT here.
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, Linger, &linger).ok()?;
    stream.write_all(REQUEST).ok()?;
    let (mut text, mut part) = (Vec::new(), [0; 512]);
    let begin = Instant::now();
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(length) => text.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if over.load(Ordering::Relaxed) || begin.elapsed() > LONGEST {
                    return None;
                }
            }
            Err(_) => return None,
        }
    }
    let good = text.starts_with(b"HTTP/1.") && text.get(8..13) == Some(b" 200 ");
    (good && text.ends_with(b"ok\n")).then_some(())
}
