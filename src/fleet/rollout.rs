//! Replacing workers one after the other: all of them, one by request, one for its age.
//!
//! With surge the new worker becomes ready first and the old one drains then; without, the old one
//! goes first. Where a new one does not become ready the rollout stops and the old ones stay.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::Fleet;
use super::messages::{Action, Failure, Kind, Note};
use super::worker::{Slot, SlotState, Time, Worker, WorkerKey};

/// The rollout that is under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Rollout {
    pub(super) kind: Kind,
    surge: u32,
    /// The workers that it has not come to yet.
    pub(super) waiting: VecDeque<WorkerKey>,
    /// The slots whose new worker is not ready yet.
    pub(super) renewed: BTreeSet<u32>,
    /// Those that were there before and have to go.
    before: BTreeSet<WorkerKey>,
}

impl Fleet {
    pub(super) fn renew(
        &mut self,
        now: Time,
        kind: Kind,
        slot: Option<u32>,
        surge: u32,
        actions: &mut Vec<Action>,
    ) {
        if self.ending.is_some() {
            return;
        }
        let ids: Vec<u32> = match slot {
            Some(id) => self.slots.contains_key(&id).then_some(id).into_iter().collect(),
            None => self.slots.keys().copied().collect(),
        };
        if ids.is_empty() || (matches!(kind, Kind::Aged | Kind::Grown) && self.rollout.is_some()) {
            return;
        }
        if kind == Kind::Restart && self.rollout.is_some() {
            self.renew_too(ids[0]);
            return;
        }
        self.cut_rollout(now, actions);
        let mut rollout = Rollout {
            kind,
            surge,
            waiting: VecDeque::new(),
            renewed: BTreeSet::new(),
            before: BTreeSet::new(),
        };
        let mut asked = Vec::new();
        for id in ids {
            let Some(slot) = self.slots.get_mut(&id).filter(|slot| !slot.retiring) else {
                continue;
            };
            match slot.state {
                SlotState::Filled(key) => {
                    rollout.before.insert(key);
                    // Who does not serve yet is no loss: it need not wait for its turn.
                    if self.workers.get(&key).is_some_and(Worker::is_starting) {
                        rollout.renewed.insert(id);
                        asked.push(key);
                    } else {
                        rollout.waiting.push_back(key);
                    }
                }
                // What waits or was given up gets another chance: so a mended command is brought in.
                SlotState::Failed | SlotState::Waiting { .. } | SlotState::Empty => {
                    (slot.state, slot.early_ends) = (SlotState::Empty, 0);
                    rollout.renewed.insert(id);
                }
                SlotState::Done { .. } if kind == Kind::Restart => {
                    (slot.state, slot.early_ends) = (SlotState::Empty, 0);
                    rollout.renewed.insert(id);
                }
                SlotState::Done { .. } => {}
            }
        }
        let workers = rollout.waiting.len() + rollout.renewed.len();
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        actions.push(Action::Say(Note::Rollout { kind, workers, surge }));
        self.rollout = Some(rollout);
        for key in asked {
            self.ask(now, key, actions);
        }
        self.fill(now, actions);
    }

    /// How many may be alive at once during a rollout with surge. The room of a slot that is done or was
    /// given up is not its to use: an order may fill that slot at any time.
    pub(super) fn most_alive(&self) -> Option<usize> {
        let surge =
            self.rollout.as_ref().map(|rollout| rollout.surge).filter(|surge| *surge > 0)?;
        let over = |slot: &&Slot| {
            slot.retiring || matches!(slot.state, SlotState::Failed | SlotState::Done { .. })
        };
        let slots = self.slots.values().filter(|slot| !over(slot)).count();
        Some(slots + usize::try_from(surge).ok()?)
    }

    /// One more for the rollout that is under way; whom it has renewed is new already.
    fn renew_too(&mut self, id: u32) {
        let Some((rollout, slot)) = self.rollout.as_mut().zip(self.slots.get_mut(&id)) else {
            return;
        };
        let Some(key) = slot.current() else {
            (slot.state, slot.early_ends) = (SlotState::Empty, 0);
            return;
        };
        if !rollout.renewed.contains(&id) && !rollout.waiting.contains(&key) {
            rollout.before.insert(key);
            rollout.waiting.push_back(key);
        }
    }

    /// Goes on to the next worker where everybody else serves.
    pub(super) fn roll_on(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.ending.is_some() {
            self.cut_rollout(now, actions);
        }
        loop {
            let most = self.most_alive();
            let Some(rollout) = &mut self.rollout else { return };
            let Some(key) = rollout.waiting.front().copied() else { break };
            let slot = self.workers.get(&key).filter(|worker| worker.is_wanted());
            let Some(id) = slot.map(|worker| worker.slot) else {
                // It has gone its own way, and who came after it is new.
                rollout.waiting.pop_front();
                continue;
            };
            let at_once = usize::try_from(rollout.surge.max(1)).unwrap_or(usize::MAX);
            let elsewhere =
                |worker: &Worker| worker.is_starting() && !rollout.renewed.contains(&worker.slot);
            let unsettled = self.workers.values().any(elsewhere)
                || self
                    .slots
                    .values()
                    .any(|slot| matches!(slot.state, SlotState::Waiting { .. } | SlotState::Empty));
            let full = most.is_some_and(|most| self.workers.len() >= most);
            if rollout.renewed.len() >= at_once || unsettled || full {
                return;
            }
            rollout.waiting.pop_front();
            rollout.renewed.insert(id);
            if rollout.surge == 0 {
                self.ask(now, key, actions);
            } else {
                self.spawn(now, id, actions);
            }
        }
        let Some(rollout) = &self.rollout else { return };
        let drained = !self.workers.keys().any(|key| rollout.before.contains(key));
        if rollout.renewed.is_empty() && drained {
            let kind = rollout.kind;
            self.rollout = None;
            actions.push(Action::Say(Note::RolloutDone { kind }));
        }
    }

    /// The new worker of a slot serves, or the slot is no longer wanted.
    pub(super) fn renewed(&mut self, id: u32) {
        if let Some(rollout) = &mut self.rollout {
            rollout.renewed.remove(&id);
        }
    }

    /// The new worker of `id` is not what it should be: the rollout stops there.
    pub(super) fn rollout_failed(
        &mut self,
        now: Time,
        id: u32,
        why: Failure,
        actions: &mut Vec<Action>,
    ) {
        if let Some(rollout) = self.rollout.take_if(|rollout| rollout.renewed.contains(&id)) {
            let kind = rollout.kind;
            actions.push(Action::Say(Note::RolloutFailed { kind, slot: id, why }));
            self.send_successors_away(now, actions);
        }
    }

    fn cut_rollout(&mut self, now: Time, actions: &mut Vec<Action>) {
        if let Some(rollout) = self.rollout.take() {
            actions.push(Action::Say(Note::RolloutCut { kind: rollout.kind }));
            self.send_successors_away(now, actions);
        }
    }

    /// The old ones stay, so those that were to replace them have nothing to do.
    fn send_successors_away(&mut self, now: Time, actions: &mut Vec<Action>) {
        let keys: Vec<_> = self.slots.values().filter_map(|slot| slot.successor).collect();
        for key in keys {
            self.ask(now, key, actions);
        }
    }
}
