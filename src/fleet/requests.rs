//! What is asked of the fleet: another size, a reload, a stop.

use std::collections::VecDeque;

use super::worker::{Phase, Slot, SlotState, Worker};
use super::{Action, Ending, Fleet, GIVE_UP, Note, Reload, Time, Urgency, WorkerKey};

impl Fleet {
    pub(super) fn resize(&mut self, now: Time, workers: u32, actions: &mut Vec<Action>) {
        let workers = workers.clamp(self.policy.least, self.policy.most);
        if self.ending.is_some() || workers == self.target {
            return;
        }
        actions.push(Action::Say(Note::Resized { from: self.target, to: workers }));
        self.target = workers;
        let mut leaving = Vec::new();
        self.slots.retain(|id, slot| {
            slot.retiring = *id > workers;
            match slot.state {
                SlotState::Filled(key) if slot.retiring => {
                    leaving.push(key);
                    true
                }
                _ => !slot.retiring,
            }
        });
        // The highest slot leaves first.
        for key in leaving.into_iter().rev() {
            self.ask(now, key, actions);
        }
        self.fill(now, actions);
    }

    pub(super) fn begin_reload(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.ending.is_some() {
            return;
        }
        let mut present: Vec<_> =
            self.workers.iter().filter(|(_, worker)| worker.ended.is_none()).collect();
        present.sort_by_key(|(_, worker)| worker.slot);
        let waiting: VecDeque<_> = present.into_iter().map(|(key, _)| *key).collect();
        let workers = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        actions.push(Action::Say(Note::Reload { workers }));
        // What was given up gets another chance: a reload is how a mended command is brought in.
        let mut renewed = Vec::new();
        for (id, slot) in &mut self.slots {
            if slot.state == SlotState::Failed {
                (slot.state, slot.early_ends) = (SlotState::Empty, 0);
                renewed.push(*id);
            }
        }
        self.reload = Some(Reload { waiting, renewed });
        self.fill(now, actions);
    }

    /// The next worker of a reload goes when everybody else serves.
    pub(super) fn go_on_reloading(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.ending.is_some() {
            self.reload = None;
        }
        let Some(reload) = &mut self.reload else { return };
        let serving = |worker: &Worker| matches!(worker.phase, Phase::Ready { .. });
        let waits = |slot: &Slot| matches!(slot.state, SlotState::Waiting { .. });
        if !self.workers.values().all(serving) || self.slots.values().any(waits) {
            return;
        }
        reload.renewed.clear();
        while let Some(key) = reload.waiting.pop_front() {
            if let Some(worker) = self.workers.get(&key) {
                reload.renewed.push(worker.slot);
                self.ask(now, key, actions);
                return;
            }
        }
        self.reload = None;
        actions.push(Action::Say(Note::Reloaded));
    }

    /// Tells a worker to stop, unless it is told already.
    pub(super) fn ask(&mut self, now: Time, key: WorkerKey, actions: &mut Vec<Action>) {
        let kill_at = now + self.policy.grace;
        let Some(worker) = self.workers.get_mut(&key) else { return };
        if matches!(worker.phase, Phase::Starting { .. } | Phase::Ready { .. }) {
            worker.phase = Phase::Stopping { kill_at };
            actions.push(Action::AskLeader(key));
        }
    }

    pub(super) fn stop(&mut self, now: Time, urgency: Urgency, actions: &mut Vec<Action>) {
        let asked_before = self.ending.is_some_and(|ending| ending.asked);
        if asked_before || urgency == Urgency::Now {
            self.begin_end(None);
            let keys: Vec<_> = self.workers.keys().copied().collect();
            for key in keys {
                self.kill(now, key, actions);
            }
            return;
        }
        let workers = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
        actions.push(Action::Say(Note::Stopping { workers }));
        self.begin_end(None);
        if let Some(ending) = &mut self.ending {
            ending.asked = true;
        }
        self.ask_all(now, actions);
    }

    pub(super) fn abort(&mut self, now: Time, status: u8, actions: &mut Vec<Action>) {
        if self.ending.is_none() {
            self.begin_end(Some(status));
            self.ask_all(now, actions);
        }
    }

    pub(super) fn begin_end(&mut self, status: Option<u8>) {
        self.ending.get_or_insert(Ending { status, asked: false, killed: false });
        for slot in self.slots.values_mut() {
            if matches!(slot.state, SlotState::Waiting { .. }) {
                slot.state = SlotState::Empty;
            }
        }
    }

    pub(super) fn ask_all(&mut self, now: Time, actions: &mut Vec<Action>) {
        let keys: Vec<_> = self.workers.keys().copied().collect();
        for key in keys {
            self.ask(now, key, actions);
        }
    }

    pub(super) fn kill(&mut self, now: Time, key: WorkerKey, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(&key) else { return };
        if matches!(worker.phase, Phase::Killed { .. }) {
            return;
        }
        worker.phase = Phase::Killed { give_up_at: now + GIVE_UP };
        if let Some(ending) = &mut self.ending {
            ending.killed = true;
        }
        actions.push(Action::Say(Note::Killing { worker: key, slot: worker.slot }));
        actions.push(Action::Kill(key));
    }
}
