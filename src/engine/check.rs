//! Looking at a worker from outside: whether it listens, whether it answers.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::{Engine, ports};
use crate::fleet::{Told, WorkerKey};
use crate::http;
use crate::sockets::{News, Upstream};

/// What is looked at, at the start or all the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// A port that the worker itself has opened.
    Listen,
    /// This path on that port, answered with a status from 200 to 399.
    Http(String),
}

/// The first looks at a start follow each other fast, the later ones do not.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_millis(500);
/// The first look at a worker that tells us itself what it listens on.
const SECOND_OPINION: Duration = Duration::from_secs(1);
/// Who listens by then, and elsewhere than it was told, will not come.
const LATE: Duration = Duration::from_secs(2);
/// How often a worker that serves is asked, and how long it may take.
const EVERY: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(5);
/// So many of the last asks have to fail until it counts as hung.
const FAILURES: usize = 3;
const OF: usize = 5;

/// A task that ends with whom it is about.
pub(super) struct Look(AbortHandle);

impl Drop for Look {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where to look.
struct Place {
    leader: Pid,
    /// Sockets that the worker has from us: there, the kernel answers for it.
    ours: Rc<HashSet<u64>>,
    port: Option<u16>,
    /// Where it was told to listen, where it has a place of its own.
    upstream: Option<Upstream>,
}

impl Place {
    fn addresses(&self) -> Vec<SocketAddr> {
        let mut found = ports::listening(self.leader, &self.ours);
        if let Some(port) = self.port {
            found.retain(|address| address.port() == port);
        }
        found
    }

    async fn holds(&self, check: &Check) -> bool {
        match (check, &self.upstream) {
            (Check::Listen, Some(Upstream::Unix(socket))) => {
                UnixStream::connect(socket).await.is_ok()
            }
            // The look at all processes only where somebody answers.
            (Check::Listen, Some(Upstream::Port(port))) => {
                accepts(*port).await && !self.addresses().is_empty()
            }
            (Check::Listen, None) => !self.addresses().is_empty(),
            (Check::Http(path), Some(Upstream::Unix(socket))) => {
                let asked = async {
                    let Ok(stream) = UnixStream::connect(socket).await else { return false };
                    answers(stream, "localhost", path).await
                };
                timeout(PATIENCE, asked).await.unwrap_or(false)
            }
            (Check::Http(path), _) => {
                for address in self.addresses() {
                    let asked = answers_at(address, path);
                    if timeout(PATIENCE, asked).await.unwrap_or(false) {
                        return true;
                    }
                }
                false
            }
        }
    }

    /// Ports that it listens on in place of the one that it was told.
    fn elsewhere(&self) -> Vec<u16> {
        let all = ports::listening(self.leader, &self.ours);
        let told = |address: &SocketAddr| Some(address.port()) == self.port;
        if all.iter().any(told) {
            return Vec::new();
        }
        all.iter().map(SocketAddr::port).collect()
    }
}

impl Place {
    /// Says where a worker listens that was told another place; false where it does not listen at all.
    fn warn_of_other_ports(&self, slot: u32) -> bool {
        let Some(told) = &self.upstream else { return true };
        let other = self.elsewhere();
        let Some(port) = other.first() else { return false };
        warn!(
            event = "other_port",
            worker = slot,
            port,
            "worker {slot} listens on port {port}, and connections are passed to the one that PORT holds, {told}: let the server listen on PORT, or give it by --template and {{port}}"
        );
        true
    }
}

/// Whether anybody listens on this port of this machine.
async fn accepts(port: u16) -> bool {
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    for ip in [v4, v6] {
        if timeout(PATIENCE, TcpStream::connect((ip, port)))
            .await
            .is_ok_and(|stream| stream.is_ok())
        {
            return true;
        }
    }
    false
}

async fn answers_at(address: SocketAddr, path: &str) -> bool {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let address = SocketAddr::new(ip, address.port());
    let Ok(stream) = TcpStream::connect(address).await else { return false };
    answers(stream, &address.to_string(), path).await
}

async fn answers(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    host: &str,
    path: &str,
) -> bool {
    let request = Request::get(path)
        .header("host", host)
        .header("user-agent", "throng-rs")
        .header("connection", "close")
        .body(Full::new(Bytes::new()));
    let Ok(request) = request else { return false };
    let answer = http::exchange(stream, request).await;
    answer.is_ok_and(|answer| (200..400).contains(&answer.status().as_u16()))
}

impl Engine {
    fn place(&self, worker: WorkerKey, leader: Pid) -> Place {
        let ours = self.sharing.ours();
        let upstream = self.sharing.upstream(worker);
        let told = || self.config.env.get("PORT").and_then(|port| port.to_str()?.parse().ok());
        let port = match &upstream {
            Some(Upstream::Port(port)) => Some(*port),
            Some(Upstream::Unix(_)) => None,
            None => told(),
        };
        Place { leader, ours: Rc::new(ours), port, upstream }
    }

    /// Looks at a worker that was just started, until it serves.
    pub(super) fn look_for_readiness(
        &self,
        worker: WorkerKey,
        slot: u32,
        leader: Pid,
    ) -> Option<Look> {
        let check = self.config.ready_check.clone()?;
        let place = self.place(worker, leader);
        let (inbox, teller) = (self.inbox.0.clone(), self.sharing.teller());
        let later = self.config.ready_by_listening;
        let begun = Instant::now();
        let mut warned = place.upstream.is_none();
        let task = tokio::task::spawn_local(async move {
            let mut pause = FIRST_LOOK;
            if later {
                // Nearly always it tells us by itself, and sooner.
                sleep(SECOND_OPINION).await;
                pause = LAST_LOOK;
            }
            while !place.holds(&check).await {
                if !warned && begun.elapsed() >= LATE {
                    warned = place.warn_of_other_ports(slot);
                    // Fails only where the engine has ended.
                    let _ = teller.send((worker.0, News::Said));
                }
                sleep(pause).await;
                pause = pause.mul_f64(1.5).min(LAST_LOOK);
            }
            let _ = inbox.send((worker, Told::Ready));
        });
        Some(Look(task.abort_handle()))
    }

    /// Looks at a worker that serves, as long as it does.
    pub(super) fn look_for_life(&mut self, worker: WorkerKey) {
        let Some(check) = self.config.health_check.clone() else { return };
        let Some(leader) = self.running.get(&worker).map(|running| running.pid) else { return };
        let place = self.place(worker, leader);
        let inbox = self.inbox.0.clone();
        let task = tokio::task::spawn_local(async move {
            let mut last = VecDeque::with_capacity(OF);
            loop {
                sleep(EVERY).await;
                let failed = !place.holds(&check).await;
                if last.len() == OF {
                    last.pop_front();
                }
                last.push_back(failed);
                if last.iter().filter(|failed| **failed).count() >= FAILURES {
                    let _ = inbox.send((worker, Told::Hung));
                    return;
                }
            }
        });
        if let Some(running) = self.running.get_mut(&worker) {
            running.look = Some(Look(task.abort_handle()));
        }
    }
}
