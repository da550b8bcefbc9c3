//! What is asked of the fleet: another size, a stop.

use super::messages::{Action, Note, Urgency};
use super::why::Why;
use super::worker::{SlotState, Time, WorkerKey};
use super::{Ending, Fleet, SAME_STOP};

impl Fleet {
    /// `why`: what was measured, where that is what asks for it.
    pub(super) fn resize(
        &mut self,
        now: Time,
        workers: u32,
        why: Option<Why>,
        actions: &mut Vec<Action>,
    ) {
        let workers = workers.clamp(self.policy.least, self.policy.most);
        if self.ending.is_some() || workers == self.target {
            return;
        }
        let (from, to) = (self.target, workers);
        actions.push(Action::Say(match why {
            Some(why) => Note::Adapted { from, to, why },
            None => Note::Resized { from, to },
        }));
        self.learnt.changed(now, from, to, why);
        self.target = workers;
        let mut leaving = Vec::new();
        let mut gone = Vec::new();
        for (id, slot) in &mut self.slots {
            slot.retiring = *id > workers;
            if !slot.retiring {
                continue;
            }
            leaving.extend(slot.current().into_iter().chain(slot.successor));
            gone.push((*id, slot.current().is_none() && slot.successor.is_none()));
        }
        for (id, empty) in gone {
            self.renewed(id);
            if empty {
                self.slots.remove(&id);
            }
        }
        // The highest slot leaves first.
        for key in leaving.into_iter().rev() {
            self.ask(now, key, actions);
        }
        self.open_slots();
    }

    pub(super) fn stop(&mut self, now: Time, urgency: Urgency, actions: &mut Vec<Action>) {
        let asked = self.ending.and_then(|ending| ending.asked);
        if urgency == Urgency::Graceful && asked.is_some_and(|at| now < at + SAME_STOP) {
            return;
        }
        if asked.is_some() || urgency == Urgency::Now {
            self.begin_end(None, actions);
            for key in self.keys() {
                self.kill(now, key, actions);
            }
            return;
        }
        let workers = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
        actions.push(Action::Say(Note::Stopping { workers }));
        self.begin_end(None, actions);
        if let Some(ending) = &mut self.ending {
            ending.asked = Some(now);
        }
        self.ask_all(now, actions);
    }

    pub(super) fn abort(&mut self, now: Time, status: u8, actions: &mut Vec<Action>) {
        if self.ending.is_none() {
            self.begin_end(Some(status), actions);
            self.ask_all(now, actions);
        }
    }

    pub(super) fn begin_end(&mut self, status: Option<u8>, actions: &mut Vec<Action>) {
        self.ending.get_or_insert(Ending { status, asked: None, killed: false });
        if let Some(rollout) = self.rollout.take() {
            actions.push(Action::Say(Note::RolloutCut { kind: rollout.kind }));
        }
        for slot in self.slots.values_mut() {
            if matches!(slot.state, SlotState::Waiting { .. }) {
                slot.state = SlotState::Empty;
            }
        }
    }

    fn ask_all(&mut self, now: Time, actions: &mut Vec<Action>) {
        for key in self.keys() {
            self.ask(now, key, actions);
        }
    }

    fn keys(&self) -> Vec<WorkerKey> {
        self.workers.keys().copied().collect()
    }
}
