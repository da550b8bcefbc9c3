//! What runs all the time: a task for each channel, and one for each socket that we accept from.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tracing::{debug, warn};

use super::channel::{self, Channel};
use super::handle::{Carry, Connection};
use super::hub::{Inner, State};
use super::message;
use super::peer::{Peer, hears, post};
use super::primary::{Effect, Primary, Timer};
use super::protocol::{self, Incoming};
use crate::sockets::{Key, News};

/// So long after its channel has closed it is known whether a worker has ended.
const ENDED: Duration = Duration::from_secs(1);
/// After an accept that failed, for want of descriptors as a rule.
const PAUSE: Duration = Duration::from_millis(100);
impl Inner {
    /// Takes a peer in and listens to it.
    pub(super) fn add(self: &Rc<Self>, state: &mut State, worker: Key, mut peer: Peer) {
        let (inner, channel) = (Rc::clone(self), Rc::clone(&peer.channel));
        let task = spawn_local(async move { inner.listen(worker, &channel).await });
        peer.task = Some(task.abort_handle());
        state.peers.insert(worker, peer);
    }

    pub(super) fn channel(&self, worker: Key) -> Option<Rc<Channel>> {
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
        let silent = state.primary.as_ref().is_some_and(|primary| !primary.is_online(worker));
        if silent && !drains {
            // Closed by what stands between us; or it has ended, which will be known by then.
            let tell = self.tell.clone();
            spawn_local(async move {
                tokio::time::sleep(ENDED).await;
                let _ = tell.send((worker, News::Deaf));
            });
        }
        if let Some(primary) = &mut state.primary {
            primary.gone(worker);
            self.perform(&mut state);
        }
        if drains {
            let _ = self.tell.send((worker, News::Drained));
        }
    }

    /// One line of a worker.
    pub(super) fn hear(self: &Rc<Self>, from: Key, line: &[u8]) {
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

    pub(super) fn with_primary(self: &Rc<Self>, act: impl FnOnce(&mut Primary)) {
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
