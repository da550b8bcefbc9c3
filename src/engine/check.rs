//! Looking at a worker from outside: whether it listens, whether it answers.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::{Engine, ports};
use crate::fleet::{Told, WorkerKey};
use crate::http;

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
        let addresses = self.addresses();
        let Check::Http(path) = check else { return !addresses.is_empty() };
        for address in addresses {
            if let Ok(true) = timeout(PATIENCE, answers(address, path)).await {
                return true;
            }
        }
        false
    }
}

async fn answers(address: SocketAddr, path: &str) -> bool {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let address = SocketAddr::new(ip, address.port());
    let Ok(stream) = TcpStream::connect(address).await else { return false };
    let request = Request::get(path)
        .header("host", address.to_string())
        .header("user-agent", "throng-rs")
        .header("connection", "close")
        .body(Full::new(Bytes::new()));
    let Ok(request) = request else { return false };
    let answer = http::exchange(stream, request).await;
    answer.is_ok_and(|answer| (200..400).contains(&answer.status().as_u16()))
}

impl Engine {
    fn place(&self, leader: Pid) -> Place {
        let ours = self.sharing.ours();
        let port = self.config.env.get("PORT").and_then(|port| port.to_str()?.parse().ok());
        Place { leader, ours: Rc::new(ours), port }
    }

    /// Looks at a worker that was just started, until it serves.
    pub(super) fn look_for_readiness(&self, worker: WorkerKey, leader: Pid) -> Option<Look> {
        let check = self.config.ready_check.clone()?;
        let place = self.place(leader);
        let inbox = self.inbox.0.clone();
        let later = self.config.ready_by_listening;
        let task = tokio::task::spawn_local(async move {
            let mut pause = FIRST_LOOK;
            if later {
                // Nearly always it tells us by itself, and sooner.
                sleep(SECOND_OPINION).await;
                pause = LAST_LOOK;
            }
            while !place.holds(&check).await {
                sleep(pause).await;
                pause = pause.mul_f64(1.5).min(LAST_LOOK);
            }
            // Fails only where the engine has ended.
            let _ = inbox.send((worker, Told::Ready));
        });
        Some(Look(task.abort_handle()))
    }

    /// Looks at a worker that serves, as long as it does.
    pub(super) fn look_for_life(&mut self, worker: WorkerKey) {
        let Some(check) = self.config.health_check.clone() else { return };
        let Some(leader) = self.running.get(&worker).map(|running| running.pid) else { return };
        let place = self.place(leader);
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
