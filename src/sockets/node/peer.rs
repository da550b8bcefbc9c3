//! A worker with a channel, and the messages of users for it.

use std::collections::VecDeque;
use std::rc::Rc;

use serde_json::Value;
use tokio::task::AbortHandle;
use tracing::warn;

use super::channel::Channel;
use super::hub::State;
use super::message::To;
use super::protocol;
use crate::sockets::Key;

/// What may wait for a worker that is not ready to listen to messages.
const MOST_HELD: usize = 32;
/// What may wait for a worker that does not read.
const MOST_UNREAD: usize = 128 << 10;
/// A worker with a channel.
pub(super) struct Peer {
    pub(super) slot: u32,
    pub(super) channel: Rc<Channel>,
    pub(super) task: Option<AbortHandle>,
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

/// Sends a user's message.
pub(super) fn post(state: &mut State, message: &Value, to: To, from: Option<Key>) -> usize {
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

pub(super) fn hears(state: &mut State, worker: Key) {
    if let Some(peer) = state.peers.get_mut(&worker)
        && !std::mem::replace(&mut peer.hears, true)
    {
        for line in std::mem::take(&mut peer.held) {
            peer.post(&line);
        }
    }
}
