//! The channels of all workers: what comes in goes to the primary and to the user, what they decide goes
//! out. One task for each channel and for each socket that we accept from.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::{Gid, Uid};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;

use super::channel;
use super::handle::Carry;
use super::message::To;
use super::peer::{Peer, hears, post};
use super::primary::{Primary, Rules};
use super::protocol;
use crate::sockets::{Address, Balance, Connections, Key, News};

/// How many buffers full are read of who has ended.
const LAST_READS: usize = 1024;

/// All channels.
#[derive(Clone)]
pub(crate) struct Hub(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub(super) state: RefCell<State>,
    pub(super) tell: UnboundedSender<(Key, News)>,
    pub(super) buffer: RefCell<Vec<u8>>,
    /// Comes before a disconnect (`--stop-message`).
    stop: Option<Vec<u8>>,
    pub(super) patience: Duration,
}

pub(super) struct State {
    /// None: channels for messages alone.
    pub(super) primary: Option<Primary>,
    pub(super) peers: BTreeMap<Key, Peer>,
    pub(super) acceptors: BTreeMap<u64, (AbortHandle, Rc<Notify>)>,
    /// `cluster.worker.id` of the last one; Node never uses one again.
    pub(super) last_id: u64,
    /// Found to be of no use: workers get no channel any more.
    pub(super) off: bool,
}

/// How channels are used.
pub(crate) struct Setup {
    /// None: for messages alone.
    pub(crate) cluster: Option<Cluster>,
    pub(crate) stop_message: Option<Value>,
    /// A cluster worker says that it is there before any code of the user runs: after so long, somebody
    /// else has its channel.
    pub(crate) patience: Duration,
}

/// What a primary has to know.
pub(crate) struct Cluster {
    pub(crate) balance: Balance,
    /// The address of `--listen`.
    pub(crate) asked: Option<Address>,
    /// Sockets that were passed to us; workers have them from descriptor 3 on.
    pub(crate) passed: Vec<Rc<OwnedFd>>,
    /// Whom workers run as, where that is not us.
    pub(crate) user: Option<(Uid, Gid)>,
    /// Our own descriptors stay clear of the numbers below this.
    pub(crate) end: i32,
}

/// A worker's end of a channel, and the variables that tell it so, but for the number.
pub(crate) type End = (OwnedFd, Vec<(&'static str, String)>);

impl Hub {
    pub(crate) fn new(setup: Setup, tell: UnboundedSender<(Key, News)>) -> Self {
        let rules = setup.cluster.map(|cluster| Rules {
            balance: cluster.balance,
            asked: cluster.asked,
            passed: cluster.passed,
            user: cluster.user,
            end: cluster.end,
        });
        let state = State {
            primary: rules.map(Primary::new),
            peers: BTreeMap::new(),
            acceptors: BTreeMap::new(),
            last_id: 0,
            off: false,
        };
        Self(Rc::new(Inner {
            state: RefCell::new(state),
            tell,
            buffer: RefCell::default(),
            stop: setup.stop_message.map(|message| protocol::line(&message)),
            patience: setup.patience,
        }))
    }

    /// A channel for a worker; none where channels were found to be of no use.
    pub(crate) fn join(&self, worker: Key, slot: u32) -> io::Result<Option<End>> {
        let mut state = self.0.state.borrow_mut();
        if state.off {
            return Ok(None);
        }
        let (channel, theirs) = channel::pair()?;
        let mut env = vec![("NODE_CHANNEL_SERIALIZATION_MODE", "json".to_owned())];
        if state.primary.is_some() {
            state.last_id += 1;
            env.push(("NODE_UNIQUE_ID", state.last_id.to_string()));
        }
        if let Some(primary) = &mut state.primary {
            primary.joins(worker, slot);
        }
        self.0.add(&mut state, worker, Peer::new(slot, channel));
        self.0.expect(worker);
        Ok(Some((theirs, env)))
    }

    /// No worker gets a channel from now on; whether that was so already.
    pub(crate) fn give_up(&self) -> bool {
        std::mem::replace(&mut self.0.state.borrow_mut().off, true)
    }

    /// Whether workers are told by it to go.
    pub(crate) fn drains(&self) -> bool {
        self.0.stop.is_some() || self.0.state.borrow().primary.is_some()
    }

    /// Messages reach a worker from now on.
    pub(crate) fn ready(&self, worker: Key) {
        hears(&mut self.0.state.borrow_mut(), worker);
    }

    /// No more for a worker; [`News::Drained`] follows. `all`: so it is with all the others.
    pub(crate) fn drain(&self, worker: Key, all: bool) {
        let mut state = self.0.state.borrow_mut();
        let drained = || {
            // Fails only where the engine has ended.
            let _ = self.0.tell.send((worker, News::Drained));
        };
        let Some(peer) = state.peers.get_mut(&worker).filter(|peer| !peer.channel.is_closed())
        else {
            return drained();
        };
        peer.drains = true;
        if let Some(stop) = &self.0.stop {
            peer.channel.push(stop.clone(), None);
        }
        match &mut state.primary {
            Some(primary) => {
                primary.drain(worker, all);
                self.0.perform(&mut state);
            }
            None if self.0.stop.is_none() => drained(),
            // It is asked, and its channel closes when it goes.
            None => {}
        }
    }

    /// A worker goes by itself, or is aborted.
    pub(crate) fn leaves(&self, worker: Key) {
        self.0.with_primary(|primary| primary.leaves(worker));
    }

    /// Its leader has ended, or was never started.
    pub(crate) fn gone(&self, worker: Key) {
        let Some(channel) = self.0.channel(worker) else { return };
        // What it said last.
        for _ in 0..LAST_READS {
            let mut lines = Vec::new();
            let read = {
                let mut buffer = self.0.buffer.borrow_mut();
                buffer.resize(channel::BUFFER, 0);
                channel.read_last(&mut buffer, |line| lines.push(line.to_vec()))
            };
            for line in &lines {
                self.0.hear(worker, line);
            }
            if read.is_none_or(|read| read.end) {
                break;
            }
        }
        let mut state = self.0.state.borrow_mut();
        state.peers.remove(&worker);
        if let Some(primary) = &mut state.primary {
            primary.gone(worker);
            self.0.perform(&mut state);
        }
    }

    pub(crate) fn resized(&self, slots: u32) {
        self.0.with_primary(|primary| primary.resized(slots));
    }

    /// Nobody will fill a slot again.
    pub(crate) fn vacant(&self, slot: u32) {
        self.0.with_primary(|primary| primary.vacant(slot));
    }

    /// Null where the kernel carries them.
    pub(crate) fn connections(&self, worker: Key) -> Option<Connections> {
        let state = self.0.state.borrow();
        let primary = state.primary.as_ref()?;
        if primary.rules.balance == Balance::Kernel {
            return None;
        }
        primary.workers.get(&worker).map(|worker| worker.connections)
    }

    /// The sockets that workers have from us.
    pub(crate) fn sockets(&self, mut each: impl FnMut(std::os::fd::BorrowedFd<'_>)) {
        let state = self.0.state.borrow();
        for handle in state.primary.iter().flat_map(|primary| primary.handles.values()) {
            match &handle.carry {
                Carry::Shared { bound, .. } => each(bound.fd.as_fd()),
                Carry::Dealt(dealt) => each(dealt.bound.fd.as_fd()),
                Carry::Slots(slots) => slots.members().for_each(|(_, fd)| each(fd)),
            }
        }
    }

    /// Sends a user's message to every worker, or to those of one slot; returns how many.
    pub(crate) fn send(&self, message: &Value, slot: Option<u32>) -> usize {
        let mut state = self.0.state.borrow_mut();
        let to = slot.map_or(To::All, To::One);
        post(&mut state, message, to, None)
    }
}

#[cfg(test)]
impl Hub {
    /// Lets go of everything, as an exec does.
    pub(super) fn forget(&self) {
        let mut state = self.0.state.borrow_mut();
        state.peers.clear();
        for (_, (task, _)) in std::mem::take(&mut state.acceptors) {
            task.abort();
        }
        state.primary = None;
    }
}
