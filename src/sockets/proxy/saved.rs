//! What outlives a replacement of our own program: which worker is where, and every connection with its
//! two descriptors and the bytes that wait.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::{Deserialize, Serialize};

use super::super::{Connections, Key, adopt};
use super::conn::{Conn, State};
use super::core::{Core, Side};
use super::relay::End;
use super::upstream::Upstream;
use super::workers::Standing;

/// All of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Saved {
    workers: Vec<SavedWorker>,
    connections: Vec<SavedConn>,
    /// By slot: accepted and failed, of workers that have gone.
    before: BTreeMap<u32, (u64, u64)>,
    /// Where the workers' Unix sockets lie.
    pub(super) dir: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedWorker {
    key: Key,
    slot: u32,
    upstream: Upstream,
    v6: bool,
    standing: Standing,
    accepted: u64,
    failed: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedConn {
    client: SavedEnd,
    /// None where it has no worker yet.
    worker: Option<(Key, SavedEnd)>,
    /// What the client has sent and no worker has.
    unsent: String,
    flags: u8,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedEnd {
    fd: i32,
    flags: u8,
    /// Not written to it yet; each byte is the character of its number.
    rest: String,
}

impl SavedEnd {
    fn of(end: &End) -> Option<Self> {
        let fd = end.fd.as_ref()?.as_raw_fd();
        Some(Self { fd, flags: end.flags(), rest: rest(end) })
    }
}

fn rest(end: &End) -> String {
    let bytes = end.rest.as_ref().map(|rest| rest.bytes()).unwrap_or_default();
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect()
}

impl Core {
    pub(super) fn save(&self, dir: Option<PathBuf>) -> Saved {
        let workers = self.workers.iter().map(|worker| SavedWorker {
            key: worker.key,
            slot: worker.slot,
            upstream: worker.upstream.clone(),
            v6: worker.is_v6(),
            standing: worker.state,
            accepted: worker.counts.accepted,
            failed: worker.counts.failed,
        });
        let connections = self.conns.iter().filter_map(|(_, conn)| {
            let key = || Some(self.workers.get(conn.place)?.key);
            // One that is being connected is connected anew.
            let open = conn.state == State::Open;
            let worker = open.then(|| Some((key()?, SavedEnd::of(&conn.worker)?))).flatten();
            Some(SavedConn {
                client: SavedEnd::of(&conn.client)?,
                unsent: if worker.is_none() { rest(&conn.worker) } else { String::new() },
                flags: if worker.is_none() { 0 } else { conn.flags() },
                worker,
            })
        });
        let before = self.workers.before().iter();
        Saved {
            workers: workers.collect(),
            connections: connections.collect(),
            before: before
                .map(|(slot, counts)| (*slot, (counts.accepted, counts.failed)))
                .collect(),
            dir,
        }
    }

    /// Whether the descriptors of connections stay open over an exec, under their numbers.
    pub(super) fn keep_open(&self, keep: bool) {
        let flags = if keep { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
        for (_, conn) in self.conns.iter() {
            for fd in [&conn.client.fd, &conn.worker.fd].into_iter().flatten() {
                // Fails for no open descriptor.
                let _ = fcntl(fd, FcntlArg::F_SETFD(flags));
            }
        }
    }

    /// Goes on with what an earlier program left. A connection whose descriptor is not there is lost, and
    /// was so before.
    pub(super) fn restore(&mut self, saved: &Saved) {
        for (slot, (accepted, failed)) in &saved.before {
            let counts = Connections { accepted: *accepted, active: 0, failed: *failed };
            self.workers.remember(*slot, counts);
        }
        for worker in &saved.workers {
            let place = self.workers.add(worker.key, worker.slot, worker.upstream.clone());
            if let Some(new) = self.workers.get_mut(place) {
                new.state = worker.standing;
                (new.counts.accepted, new.counts.failed) = (worker.accepted, worker.failed);
                new.set_v6(worker.v6);
            }
        }
        for conn in &saved.connections {
            if let Err(error) = self.restore_one(conn) {
                tracing::warn!(
                    event = "proxy_lost",
                    "a connection was lost in the upgrade: {error}"
                );
            }
        }
    }

    fn restore_one(&mut self, saved: &SavedConn) -> io::Result<()> {
        let client = self.end(&saved.client)?;
        let mut conn = Conn::new(client, self.now);
        if let Some((key, end)) = &saved.worker {
            conn.worker = self.end(end)?;
            let place = self.workers.find(*key);
            let place = place.ok_or_else(|| io::Error::other("its worker is not known"))?;
            conn.place = place;
            conn.state = State::Open;
            conn.set(saved.flags);
            if let Some(worker) = self.workers.get_mut(place) {
                worker.counts.active += 1;
            }
        } else if !saved.unsent.is_empty() {
            let rest = self.buffers.keep(&bytes(&saved.unsent));
            conn.worker.rest = Some(Box::new(rest));
        }
        let free = saved.worker.is_none();
        self.watch_anew(conn, free)
    }

    /// What comes is told from the start: readiness is an event of its own when a descriptor is added.
    fn watch_anew(&mut self, conn: Conn, free: bool) -> io::Result<()> {
        let id = self.conns.add(conn);
        let Some(conn) = self.conns.get_mut(id) else { return Ok(()) };
        let (client, worker) = (std::mem::take(&mut conn.client), std::mem::take(&mut conn.worker));
        let watched = self
            .watch(id, Side::Client, &client)
            .and_then(|()| self.watch(id, Side::Worker, &worker));
        let Some(conn) = self.conns.get_mut(id) else { return Ok(()) };
        (conn.client, conn.worker) = (client, worker);
        if let Err(errno) = watched {
            self.close(id);
            return Err(errno.into());
        }
        if free {
            self.hold(id);
            self.look_in(0);
        }
        Ok(())
    }

    fn end(&mut self, saved: &SavedEnd) -> io::Result<End> {
        let fd: OwnedFd = adopt::take_over(saved.fd)?;
        let rest = bytes(&saved.rest);
        let rest = (!rest.is_empty()).then(|| Box::new(self.buffers.keep(&rest)));
        Ok(End::restored(fd, saved.flags, rest))
    }
}
