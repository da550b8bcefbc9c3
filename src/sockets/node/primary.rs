//! What a cluster primary decides: who listens on what, and what each message of a worker leads to.
//!
//! It opens sockets, and does nothing else: what is to be sent, accepted or awaited comes out as effects.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid};
use tracing::{info, warn};

use super::bind::{Target, errno, unblock};
use super::handle::{self, Carry, Connection, Handle};
use super::protocol::{self, Incoming, Query};
use crate::sockets::{Address, Balance, Connections, Key, News};

/// No program listens on more.
const MOST_HANDLES: usize = 1024;
/// How often a handle that did not arrive is sent again, as Node does it.
const TRIES: u32 = 3;
/// After the first server of a worker listens, so long until what nobody listens on any more is closed.
pub(super) const SETTLED: Duration = Duration::from_secs(5);
/// What is to be done.
#[derive(Debug)]
pub(super) enum Effect {
    /// A line for a worker, and the descriptor that goes with it.
    Send {
        to: Key,
        line: Vec<u8>,
        fd: Option<Rc<OwnedFd>>,
    },
    Tell(Key, News),
    /// Accept from this handle, while [`Primary::has_room`].
    Accept(u64),
    /// There may be room again.
    Wake(u64),
    /// The handle has gone.
    Stop(u64),
    /// Call [`Primary::due`] then.
    After(Duration, Timer),
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// A worker that had no room for a descriptor may have it now.
    Unpause(Key),
    /// Workers that refused a connection may take it now.
    Unpark(u64),
    /// A worker's queue may be empty.
    Empty { worker: Key, quiet: u32, looks: u32 },
    /// Handles that nobody uses any more.
    Unused,
}

/// Where a worker stands.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each comes and goes by itself")]
pub(super) struct Worker {
    pub(super) slot: u32,
    pub(super) online: bool,
    /// A server of it listens.
    pub(super) listens: bool,
    /// Nothing new for it.
    pub(super) leaves: bool,
    /// Told to disconnect, or about to be.
    pub(super) drains: bool,
    pub(super) told: bool,
    /// A descriptor did not arrive: it has none left, and gets nothing for a while.
    pub(super) paused: bool,
    /// Turns that it could not take for want of room.
    pub(super) missed: u32,
    /// What was sent with a descriptor and is not settled, in the order of sending.
    pub(super) sent: VecDeque<Sent>,
    pub(super) connections: Connections,
}

/// A line with a descriptor, and our own copy of that.
#[derive(Debug)]
pub(super) enum Sent {
    Connection { handle: u64, seq: u64, arrived: bool, connection: Connection },
    Reply { line: Vec<u8>, fd: Rc<OwnedFd>, tries: u32 },
}

impl Sent {
    fn is_under_way(&self) -> bool {
        match self {
            Self::Connection { arrived, .. } => !arrived,
            Self::Reply { .. } => true,
        }
    }
}

/// What does not change.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) balance: Balance,
    /// The address of `--listen`.
    pub(super) asked: Option<Address>,
    /// Sockets that were passed to us, which a worker knows by their numbers.
    pub(super) passed: Vec<Rc<OwnedFd>>,
    /// Whom workers run as, where that is not us.
    pub(super) user: Option<(Uid, Gid)>,
    /// Descriptors of workers have numbers below this.
    pub(super) end: RawFd,
}

/// The primary.
#[derive(Debug)]
pub(super) struct Primary {
    pub(super) rules: Rules,
    /// One count for all workers, as Node has it.
    pub(super) seq: u64,
    pub(super) next_handle: u64,
    /// How many slots there are.
    pub(super) slots: u32,
    pub(super) workers: BTreeMap<Key, Worker>,
    /// By what workers call them.
    pub(super) handles: BTreeMap<String, Handle>,
    pub(super) effects: VecDeque<Effect>,
}

impl Primary {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            seq: 0,
            next_handle: 0,
            slots: 0,
            workers: BTreeMap::new(),
            handles: BTreeMap::new(),
            effects: VecDeque::new(),
        }
    }

    /// A worker is to start.
    pub(super) fn joins(&mut self, worker: Key, slot: u32) {
        self.slots = self.slots.max(slot);
        self.workers.insert(worker, Worker { slot, ..Worker::default() });
    }

    pub(super) fn is_online(&self, worker: Key) -> bool {
        self.workers.get(&worker).is_some_and(|worker| worker.online)
    }

    /// A message of a worker that is the primary's business.
    pub(super) fn hear(&mut self, from: Key, message: Incoming) {
        let Some(worker) = self.workers.get_mut(&from) else { return };
        match message {
            Incoming::Online => worker.online = true,
            Incoming::Query(query) => self.query(from, &query),
            Incoming::Listening => {
                if !std::mem::replace(&mut worker.listens, true) {
                    self.effects.push_back(Effect::After(SETTLED, Timer::Unused));
                }
                self.effects.push_back(Effect::Tell(from, News::Listens));
            }
            Incoming::Close { key } => self.close(from, &key),
            Incoming::Leaving { seq } => {
                let known = std::mem::replace(&mut worker.leaves, true) || worker.drains;
                let own = self.next();
                self.send(from, protocol::acknowledge(seq, own), None);
                self.spread_again();
                if !known {
                    self.effects.push_back(Effect::Tell(from, News::Leaves));
                }
            }
            Incoming::Ack => self.arrived(from),
            Incoming::Nack => self.lost(from),
            Incoming::Accepted { ack, accepted } => self.accepted(from, ack, accepted),
            Incoming::Handle(_) | Incoming::User(_) | Incoming::Other => {}
        }
    }

    pub(super) fn next(&mut self) -> u64 {
        let seq = self.seq;
        self.seq += 1;
        seq
    }

    pub(super) fn send(&mut self, to: Key, line: Vec<u8>, fd: Option<Rc<OwnedFd>>) {
        self.effects.push_back(Effect::Send { to, line, fd });
    }

    fn query(&mut self, from: Key, query: &Query) {
        let Some(slot) =
            self.workers.get(&from).filter(|worker| !worker.drains).map(|worker| worker.slot)
        else {
            return;
        };
        let mut key = query.key();
        let has = |key: &str| self.handles.get(key).is_some_and(|h| h.members.contains(&from));
        let twice = has(&key);
        if twice {
            // Twice in one process: as without a cluster, by a second bind of its own.
            key = format!("{key}:{}", query.index);
        }
        let taken = has(&key);
        let result =
            if taken { Err(Errno::EADDRINUSE) } else { self.join(from, slot, &key, query) };
        if let Err(errno) = result {
            let data = self.handles.get(&key).map_or(&query.data, |handle| &handle.data).clone();
            let seq = self.next();
            self.send(from, protocol::refused(&key, errno as i32, query.seq, &data, seq), None);
            let port = u16::try_from(query.port).unwrap_or_default();
            if errno == Errno::EADDRINUSE && port != 0 && !twice {
                self.effects.push_back(Effect::Tell(from, News::PortTaken(port)));
            }
        }
    }

    /// Makes a worker a member of a handle, which is opened where it is not there, and answers it.
    fn join(&mut self, from: Key, slot: u32, key: &str, query: &Query) -> Result<(), Errno> {
        if !self.handles.contains_key(key) {
            let handle = self.open(query)?;
            let id = handle.id;
            let accepts = matches!(handle.carry, Carry::Dealt(_));
            self.handles.insert(key.to_owned(), handle);
            if accepts {
                self.effects.push_back(Effect::Accept(id));
            }
        }
        let seq = self.next();
        let Some(handle) = self.handles.get_mut(key) else { return Err(Errno::EINVAL) };
        let (data, ack) = (&handle.data, query.seq);
        let shared = match &mut handle.carry {
            Carry::Shared { bound, udp } => Some((Rc::clone(&bound.fd), *udp)),
            Carry::Slots(slots) => {
                Some((slots.socket(slot).map_err(|error| errno(&error))?, false))
            }
            Carry::Dealt(_) => None,
        };
        if let Some((fd, _)) = &shared {
            unblock(fd)?;
        }
        let line = match (&shared, &handle.carry) {
            (Some((_, udp)), _) => protocol::shared(key, ack, data, seq, *udp),
            (None, Carry::Dealt(dealt)) => protocol::dealt(key, ack, data, seq, dealt.sockname),
            (None, _) => return Err(Errno::EINVAL),
        };
        handle.members.push(from);
        let id = handle.id;
        match shared {
            Some((fd, _)) => self.reply(from, line, fd, 0),
            None => self.send(from, line, None),
        }
        self.spread(key);
        self.deal(id);
        Ok(())
    }

    fn reply(&mut self, to: Key, line: Vec<u8>, fd: Rc<OwnedFd>, tries: u32) {
        if let Some(worker) = self.workers.get_mut(&to) {
            let copy = Sent::Reply { line: line.clone(), fd: Rc::clone(&fd), tries };
            worker.sent.push_back(copy);
            self.send(to, line, Some(fd));
        }
    }

    fn open(&mut self, query: &Query) -> Result<Handle, Errno> {
        if self.handles.len() >= MOST_HANDLES {
            return Err(Errno::EMFILE);
        }
        let asked = &self.rules.asked;
        let target = Target::of(query, asked.as_ref())?;
        let opened = handle::open(&target, &self.rules);
        if let Err(errno) = opened {
            warn!(event = "cannot_listen", address = %target, "a worker cannot listen on {target}: {}", errno.desc());
        }
        let carry = opened?;
        if let Some(asked) = asked.as_ref().filter(|asked| !target.is(asked)) {
            warn!(
                event = "another_port",
                "a worker asks for {target}, which is not the {asked} of --listen: does the server read PORT?"
            );
        }
        self.next_handle += 1;
        let (id, data) = (self.next_handle, query.data.clone());
        let handle = Handle { id, target, data, members: Vec::new(), carry };
        let address = handle.address();
        info!(event = "listening", address, "listening on {address}, for the workers");
        Ok(handle)
    }

    /// A server of a worker has closed.
    fn close(&mut self, from: Key, key: &str) {
        let Some(handle) = self.handles.get_mut(key) else { return };
        handle.members.retain(|member| *member != from);
        // One that is told to go leaves what it listened on to its replacement.
        let goes = self.workers.get(&from).is_some_and(|worker| worker.drains || worker.leaves);
        if handle.members.is_empty() && !goes {
            self.forget(key);
        } else {
            self.spread(key);
        }
    }

    fn forget(&mut self, key: &str) {
        if let Some(handle) = self.handles.remove(key) {
            let address = handle.address();
            info!(event = "closed", address, "nobody listens on {address} any more");
            self.effects.push_back(Effect::Stop(handle.id));
        }
    }

    /// A handle has arrived.
    fn arrived(&mut self, from: Key) {
        let Some(worker) = self.workers.get_mut(&from) else { return };
        let Some(at) = worker.sent.iter().position(Sent::is_under_way) else { return };
        match &mut worker.sent[at] {
            Sent::Connection { arrived, .. } => *arrived = true,
            Sent::Reply { .. } => drop(worker.sent.remove(at)),
        }
    }

    /// A handle has not: its receiver has no descriptors left.
    fn lost(&mut self, from: Key) {
        let Some(worker) = self.workers.get_mut(&from) else { return };
        let Some(at) = worker.sent.iter().position(Sent::is_under_way) else { return };
        match worker.sent.remove(at) {
            Some(Sent::Reply { line, fd, tries }) if tries < TRIES => {
                self.reply(from, line, fd, tries + 1);
            }
            Some(Sent::Connection { handle, mut connection, .. }) => {
                connection.lost += 1;
                self.pause(from);
                self.give_back(handle, connection, from);
            }
            _ => {}
        }
    }

    /// What has waited for its time.
    pub(super) fn due(&mut self, timer: Timer) {
        match timer {
            Timer::Unpause(worker) => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.paused = false;
                }
                self.deal_all();
            }
            Timer::Unpark(handle) => self.unpark(handle),
            Timer::Empty { worker, quiet, looks } => self.empty(worker, quiet, looks),
            Timer::Unused => self.forget_unused(),
        }
    }

    /// Closes what was kept for a replacement, where all that could use it listen on something else.
    fn forget_unused(&mut self) {
        let mut here = self.workers.values().filter(|worker| !worker.drains && !worker.leaves);
        if !here.all(|worker| worker.listens) || self.workers.is_empty() {
            return;
        }
        let unused = self.handles.iter().filter(|(_, handle)| handle.members.is_empty());
        let unused: Vec<String> = unused.map(|(key, _)| key.clone()).collect();
        for key in &unused {
            self.forget(key);
        }
    }
}
