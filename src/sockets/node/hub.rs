//! The channels of all workers: what comes in goes to the primary and to the user, what they decide goes
//! out. One task for each channel and for each socket that we accept from.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::{Gid, Uid};
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{AbortHandle, spawn_local};
use tracing::{debug, warn};

use super::channel::{self, Channel};
use super::handle::{Carry, Connection};
use super::message::{self, To};
use super::primary::{Effect, Primary, Rules, Timer};
use super::protocol::{self, Incoming};
use crate::sockets::{Address, Balance, Connections, Key, News};

/// After an accept that failed, for want of descriptors as a rule.
const PAUSE: Duration = Duration::from_millis(100);
/// What may wait for a worker that is not ready to listen to messages.
const MOST_HELD: usize = 32;
/// What may wait for a worker that does not read.
const MOST_UNREAD: usize = 128 << 10;
/// How many buffers full are read of who has ended.
const LAST_READS: usize = 1024;

/// All channels.
#[derive(Clone)]
pub(crate) struct Hub(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub(super) state: RefCell<State>,
    pub(super) tell: UnboundedSender<(Key, News)>,
    buffer: RefCell<Vec<u8>>,
    /// Comes before a disconnect (`--stop-message`).
    stop: Option<Vec<u8>>,
    patience: Duration,
}

pub(super) struct State {
    /// None: channels for messages alone.
    pub(super) primary: Option<Primary>,
    pub(super) peers: BTreeMap<Key, Peer>,
    acceptors: BTreeMap<u64, (AbortHandle, Rc<Notify>)>,
    /// `cluster.worker.id` of the last one; Node never uses one again.
    pub(super) last_id: u64,
    /// Found to be of no use: workers get no channel any more.
    pub(super) off: bool,
}

/// A worker with a channel.
pub(super) struct Peer {
    pub(super) slot: u32,
    pub(super) channel: Rc<Channel>,
    task: Option<AbortHandle>,
    /// Messages reach it, and do not get lost before somebody listens.
    pub(super) hears: bool,
    pub(super) held: VecDeque<Vec<u8>>,
    pub(super) drains: bool,
    /// It was said that it does not read.
    pub(super) named: bool,
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
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

impl Peer {
    pub(super) fn new(slot: u32, channel: Channel) -> Self {
        Self {
            slot,
            channel: Rc::new(channel),
            task: None,
            hears: false,
            held: VecDeque::new(),
            drains: false,
            named: false,
        }
    }
}

impl Inner {
    /// Takes a peer in and listens to it.
    pub(super) fn add(self: &Rc<Self>, state: &mut State, worker: Key, mut peer: Peer) {
        let (inner, channel) = (Rc::clone(self), Rc::clone(&peer.channel));
        let task = spawn_local(async move { inner.listen(worker, &channel).await });
        peer.task = Some(task.abort_handle());
        state.peers.insert(worker, peer);
    }

    fn channel(&self, worker: Key) -> Option<Rc<Channel>> {
        self.state.borrow().peers.get(&worker).map(|peer| Rc::clone(&peer.channel))
    }

    async fn listen(self: Rc<Self>, worker: Key, channel: &Channel) {
        let mut lines = Vec::new();
        while channel.readable().await.is_ok() {
            let read = {
                let mut buffer = self.buffer.borrow_mut();
                buffer.resize(channel::BUFFER, 0);
                channel.read(&mut buffer, |line| lines.push(line.to_vec()))
            };
            for line in lines.drain(..) {
                self.hear(worker, &line);
            }
            match read {
                Some(read) if read.end => break,
                Some(read) if read.too_long => {
                    warn!(
                        event = "message_lost",
                        "a message of worker {} was dropped: it is longer than {} KiB",
                        self.slot(worker),
                        protocol::LONGEST >> 10
                    );
                }
                _ => {}
            }
        }
        self.closed(worker);
    }

    fn slot(&self, worker: Key) -> u32 {
        self.state.borrow().peers.get(&worker).map_or(0, |peer| peer.slot)
    }

    /// A worker has closed its end, or disconnected.
    fn closed(self: &Rc<Self>, worker: Key) {
        let mut state = self.state.borrow_mut();
        let Some(peer) = state.peers.get_mut(&worker) else { return };
        // This very task.
        peer.task = None;
        let drains = peer.drains;
        state.peers.remove(&worker);
        if let Some(primary) = &mut state.primary {
            primary.gone(worker);
            self.perform(&mut state);
        }
        if drains {
            let _ = self.tell.send((worker, News::Drained));
        }
    }

    /// One line of a worker.
    fn hear(self: &Rc<Self>, from: Key, line: &[u8]) {
        let mut state = self.state.borrow_mut();
        let Some(peer) = state.peers.get_mut(&from) else { return };
        let message = match protocol::read(line) {
            Ok(message) => message,
            Err(error) => {
                let slot = peer.slot;
                debug!(
                    event = "no_message",
                    worker = slot,
                    "worker {slot} wrote what is no JSON into its channel: {error}"
                );
                return;
            }
        };
        match message {
            Incoming::User(value) => self.user(&mut state, from, &value),
            Incoming::Handle(value) => {
                // Until this comes, the worker sends nothing more at all.
                peer.channel.push(protocol::HANDLE_ACK.to_vec(), None);
                self.user(&mut state, from, &value);
            }
            message => {
                if matches!(message, Incoming::Ack | Incoming::Nack) {
                    peer.channel.confirmed();
                }
                let listens = matches!(message, Incoming::Listening);
                if let Some(primary) = &mut state.primary {
                    primary.hear(from, message);
                    self.perform(&mut state);
                }
                if listens {
                    hears(&mut state, from);
                }
            }
        }
    }

    fn user(&self, state: &mut State, from: Key, value: &Value) {
        let Some(peer) = state.peers.get(&from) else { return };
        let slot = peer.slot;
        if let Some((to, message)) = message::envelope(value) {
            let message = message::from(slot, message);
            post(state, &message, to, Some(from));
            return;
        }
        message::record(slot, value);
        if value == "ready" {
            let _ = self.tell.send((from, News::SaidReady));
        }
    }

    fn with_primary(self: &Rc<Self>, act: impl FnOnce(&mut Primary)) {
        let mut state = self.state.borrow_mut();
        if let Some(primary) = &mut state.primary {
            act(primary);
            self.perform(&mut state);
        }
    }

    /// Does what the primary has decided.
    pub(super) fn perform(self: &Rc<Self>, state: &mut State) {
        let State { primary: Some(primary), peers, acceptors, .. } = state else { return };
        while let Some(effect) = primary.effects.pop_front() {
            match effect {
                Effect::Send { to, line, fd } => {
                    if let Some(peer) = peers.get(&to) {
                        peer.channel.push(line, fd);
                    }
                }
                Effect::Tell(worker, news) => {
                    let _ = self.tell.send((worker, news));
                }
                Effect::Wake(id) => {
                    if let Some((_, wake)) = acceptors.get(&id).filter(|_| primary.has_room(id)) {
                        wake.notify_one();
                    }
                }
                Effect::Stop(id) => {
                    if let Some((task, _)) = acceptors.remove(&id) {
                        task.abort();
                    }
                }
                Effect::After(time, timer) => self.after(time, timer),
                Effect::Accept(id) => {
                    let dealt = primary.handles.values().find(|handle| handle.id == id);
                    let Some(Carry::Dealt(dealt)) = dealt.map(|handle| &handle.carry) else {
                        continue;
                    };
                    match self.acceptor(id, &dealt.bound.fd, dealt.sockname.is_some()) {
                        Ok(acceptor) => drop(acceptors.insert(id, acceptor)),
                        Err(error) => {
                            warn!(
                                event = "cannot_accept",
                                "connections cannot be accepted: {error}"
                            );
                        }
                    }
                }
            }
        }
    }

    fn after(self: &Rc<Self>, time: Duration, timer: Timer) {
        let inner = Rc::downgrade(self);
        spawn_local(async move {
            tokio::time::sleep(time).await;
            if let Some(inner) = inner.upgrade() {
                inner.with_primary(|primary| primary.due(timer));
            }
        });
    }

    /// Waits for a cluster worker to say that it is there.
    pub(super) fn expect(self: &Rc<Self>, worker: Key) {
        let patience = self.patience;
        let inner = Rc::downgrade(self);
        spawn_local(async move {
            tokio::time::sleep(patience).await;
            let Some(inner) = inner.upgrade() else { return };
            let state = inner.state.borrow();
            let missing = state.primary.as_ref().is_some_and(|primary| !primary.is_online(worker));
            if missing && state.peers.contains_key(&worker) {
                let _ = inner.tell.send((worker, News::Deaf));
            }
        });
    }

    fn acceptor(
        self: &Rc<Self>,
        id: u64,
        fd: &OwnedFd,
        tcp: bool,
    ) -> io::Result<(AbortHandle, Rc<Notify>)> {
        let fd = fd.try_clone()?;
        let wake = Rc::new(Notify::new());
        wake.notify_one();
        let (inner, woken) = (Rc::clone(self), Rc::clone(&wake));
        let listener = if tcp {
            let listener = std::net::TcpListener::from(fd);
            listener.set_nonblocking(true)?;
            Listener::Tcp(TcpListener::from_std(listener)?)
        } else {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            Listener::Unix(UnixListener::from_std(listener)?)
        };
        let task = spawn_local(async move { inner.accept(id, &listener, &woken).await });
        Ok((task.abort_handle(), wake))
    }

    /// Accepts while somebody takes it; the rest waits in the kernel.
    async fn accept(self: Rc<Self>, id: u64, listener: &Listener, wake: &Notify) {
        loop {
            while !self.state.borrow().primary.as_ref().is_some_and(|primary| primary.has_room(id))
            {
                wake.notified().await;
            }
            match listener.next().await {
                Ok(connection) => self.with_primary(|primary| primary.take(id, connection)),
                // The client has gone already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    debug!(event = "cannot_accept", "a connection cannot be accepted: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Sends a user's message.
fn post(state: &mut State, message: &Value, to: To, from: Option<Key>) -> usize {
    let line = protocol::line(message);
    let mut count = 0;
    for (key, peer) in &mut state.peers {
        let meant = match to {
            To::All => true,
            To::Others => Some(*key) != from,
            To::One(slot) => peer.slot == slot,
        };
        if meant && !peer.channel.is_closed() {
            count += usize::from(peer.post(&line));
        }
    }
    count
}

fn hears(state: &mut State, worker: Key) {
    if let Some(peer) = state.peers.get_mut(&worker)
        && !std::mem::replace(&mut peer.hears, true)
    {
        for line in std::mem::take(&mut peer.held) {
            peer.post(&line);
        }
    }
}

impl Peer {
    /// False where it is dropped, because the worker does not read.
    fn post(&mut self, line: &[u8]) -> bool {
        if !self.hears {
            let room = self.held.len() < MOST_HELD;
            if room {
                self.held.push_back(line.to_vec());
            }
            return room;
        }
        if self.channel.backlog() + line.len() > MOST_UNREAD.max(line.len()) {
            if !std::mem::replace(&mut self.named, true) {
                warn!(
                    event = "message_lost",
                    worker = self.slot,
                    "worker {} does not read its messages; what it has no room for is dropped",
                    self.slot
                );
            }
            return false;
        }
        self.channel.push(line.to_vec(), None);
        true
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// The next connection: not blocking, since libuv takes it as it is.
    async fn next(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Connection::new(stream.into_std()?.into(), Some(peer.ip())))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Connection::new(stream.into_std()?.into(), None))
            }
        }
    }
}
