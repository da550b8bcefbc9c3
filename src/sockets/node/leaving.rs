//! Workers that go: told to finish, by themselves, or dead.

use tracing::warn;

use super::handle::Carry;
use super::primary::{Effect, Primary, SETTLED, Sent, Timer};
use super::protocol;
use super::queues::LOOK;
use crate::sockets::{Key, News};

impl Primary {
    /// No more for a worker: it is to finish what it has.
    /// `all`: so it is with all the others, and what waits has nobody else.
    pub(super) fn drain(&mut self, key: Key, all: bool) {
        let Some(worker) = self.workers.get_mut(&key).filter(|worker| worker.online) else {
            self.effects.push_back(Effect::Tell(key, News::Drained));
            return;
        };
        if std::mem::replace(&mut worker.drains, true) {
            return;
        }
        let slot = worker.slot;
        self.spread_again();
        // Its own queue goes with its slot; else the next worker of the slot finds what is in it.
        if !all && slot > self.slots && self.has_queue(slot) {
            let timer = Timer::Empty { worker: key, quiet: 0, looks: 0 };
            self.effects.push_back(Effect::After(LOOK, timer));
        } else {
            self.disconnect(key);
        }
    }

    pub(super) fn disconnect(&mut self, key: Key) {
        if let Some(worker) = self.workers.get_mut(&key) {
            worker.told = true;
        }
        let seq = self.next();
        self.send(key, protocol::disconnect(seq), None);
    }

    /// Goes on where an earlier program of ours was.
    pub(super) fn resume(&mut self, slots: u32) {
        let waits = self.workers.iter().filter(|(_, worker)| worker.drains && !worker.told);
        let waits: Vec<Key> = waits.map(|(key, _)| *key).collect();
        for worker in waits {
            let timer = Timer::Empty { worker, quiet: 0, looks: 0 };
            self.effects.push_back(Effect::After(LOOK, timer));
        }
        self.effects.push_back(Effect::After(SETTLED, Timer::Unused));
        let dealt = self.handles.values().filter(|h| matches!(h.carry, Carry::Dealt(_)));
        self.effects.extend(dealt.map(|handle| Effect::Accept(handle.id)));
        self.resized(slots);
        self.deal_all();
    }

    /// A worker goes by itself, or is aborted.
    pub(super) fn leaves(&mut self, key: Key) {
        if let Some(worker) = self.workers.get_mut(&key) {
            worker.leaves = true;
            self.spread_again();
        }
    }

    /// A worker hears us no more, or has ended.
    pub(super) fn gone(&mut self, key: Key) {
        let Some(worker) = self.workers.remove(&key) else { return };
        for handle in self.handles.values_mut() {
            handle.members.retain(|member| *member != key);
        }
        let (slot, slots) = (worker.slot, self.slots);
        let others = self.workers.values().any(|worker| worker.slot == slot);
        if slot > slots && !others {
            self.retire(slot);
        }
        self.spread_again();
        let mut broken = 0;
        for sent in worker.sent.into_iter().rev() {
            if let Sent::Connection { handle, arrived, connection, .. } = sent {
                // What has arrived may have been read from.
                if arrived {
                    broken += 1;
                } else {
                    self.give_back(handle, connection, key);
                }
            }
        }
        if broken > 0 {
            warn!(
                event = "connections_lost",
                connections = broken,
                "{broken} connections were lost with worker {slot}, which had them and had not answered yet"
            );
        }
        self.deal_all();
    }
}
