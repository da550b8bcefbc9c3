//! How workers end, and what becomes of their slots.

use super::messages::{Action, Failure, Note, Refusal, Restart};
use super::worker::{Cause, End, Ended, First, Phase, Reached, SlotState, Time, Worker, WorkerKey};
use super::{Fleet, backoff};
use crate::exit;

impl Fleet {
    pub(super) fn refused(
        &mut self,
        now: Time,
        key: WorkerKey,
        why: Refusal,
        actions: &mut Vec<Action>,
    ) {
        let Some(worker) = self.workers.remove(&key) else { return };
        let status = match why {
            Refusal::Resources => exit::FAILURE,
            Refusal::Command { status } => status,
        };
        let id = worker.slot;
        self.rollout_failed(now, id, Failure::Refused, actions);
        if let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.successor == Some(key)) {
            slot.successor = None;
            return;
        }
        let nobody_yet = self.workers.values().all(Worker::is_starting);
        if let Refusal::Command { status } = why
            && !self.any_ready
            && nobody_yet
            && self.ending.is_none()
        {
            // The command is not what it seemed: nothing that is tried again will help.
            self.abort(now, status, actions);
            return;
        }
        let how = Ended::Code(status);
        let end = End { how, failure: true, reached: Reached::Nothing, asked: false };
        self.settle(now, key, id, end, why != Refusal::Resources, actions);
    }

    pub(super) fn ended(
        &mut self,
        now: Time,
        key: WorkerKey,
        how: Ended,
        group: bool,
        actions: &mut Vec<Action>,
    ) {
        let by_age = self.policy.readiness.alive.is_some();
        let Some(worker) = self.workers.get_mut(&key) else { return };
        if worker.ended.is_some() {
            return;
        }
        let end = worker.end(now, how, by_age);
        worker.ended = Some(end);
        let slot = worker.slot;
        actions.push(Action::Say(Note::Ended { worker: key, slot, how, asked: end.asked }));
        if !group {
            self.gone(now, key, actions);
            return;
        }
        // What a worker leaves behind would hold its port and its memory: it goes with it.
        match worker.phase {
            Phase::Killed { .. } => {}
            Phase::Draining { kill_at, .. }
            | Phase::Stopping { kill_at }
            | Phase::Leftover { kill_at } => {
                worker.phase = Phase::Leftover { kill_at };
                actions.push(Action::AskGroup(key));
            }
            Phase::Starting { .. } | Phase::Ready => {
                worker.phase = Phase::Leftover { kill_at: now + self.policy.grace };
                actions.push(Action::Say(Note::Leftover { worker: key, slot }));
                actions.push(Action::AskGroup(key));
            }
        }
    }

    /// A worker and its whole group have gone.
    pub(super) fn gone(&mut self, now: Time, key: WorkerKey, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.remove(&key) else { return };
        // A group is asked about only when its leader has ended; without that nothing is known.
        let unknown =
            End { how: Ended::Signal(9), failure: true, reached: Reached::Stable, asked: true };
        self.settle(now, key, worker.slot, worker.ended.unwrap_or(unknown), true, actions);
    }

    /// Decides what becomes of a slot one of whose workers has gone.
    fn settle(
        &mut self,
        now: Time,
        key: WorkerKey,
        id: u32,
        end: End,
        counts: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.last_end = Some((end, now));
        if slot.successor == Some(key) {
            slot.successor = None;
            if !end.asked {
                self.rollout_failed(now, id, Failure::Ended(end.how), actions);
            }
            return;
        }
        if slot.state != SlotState::Filled(key) {
            // Its successor serves already.
            return;
        }
        if let Some(successor) = slot.successor.take() {
            // It ended by itself while its successor was starting, which is what would be done anyway.
            slot.state = SlotState::Filled(successor);
            slot.restarts += u32::from(!end.asked);
            return;
        }
        slot.state = SlotState::Empty;
        if self.ending.is_some() {
            return;
        }
        if slot.retiring {
            self.slots.remove(&id);
            return;
        }
        if end.asked {
            // Wanted again while it was being stopped, or renewed.
            slot.early_ends = 0;
            return;
        }
        if end.reached >= Reached::Ready {
            self.any_ready = true;
        } else {
            self.rollout_failed(now, id, Failure::Ended(end.how), actions);
        }
        if !self.take_back(now, id, end, actions) {
            self.after_an_end_of_its_own(now, id, end, counts, actions);
        }
    }

    /// Whether and when the slot's next worker starts.
    fn after_an_end_of_its_own(
        &mut self,
        now: Time,
        id: u32,
        end: End,
        counts: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let lifetime_over = self.policy.lifetime.is_some_and(|lifetime| now >= lifetime);
        let again = match self.policy.restart {
            Restart::Always => !lifetime_over,
            Restart::OnFailure => !lifetime_over && end.failure,
            Restart::Never => false,
        };
        // A server that ends by itself has failed, whatever it says.
        let failed = again || end.failure;
        if slot.first == First::Open {
            slot.first = if failed && end.reached == Reached::Nothing {
                First::Failed
            } else {
                First::Ready
            };
        }
        if failed {
            self.last_failure = Some(end.how.status().max(1));
        }
        if !again {
            slot.state = SlotState::Done { success: !end.failure };
            actions.push(Action::Say(Note::SlotDone { slot: id }));
            return;
        }
        slot.restarts += 1;
        if end.reached == Reached::Stable {
            slot.early_ends = 0;
            return;
        }
        slot.early_ends += 1;
        let early_ends = slot.early_ends;
        if counts && early_ends >= self.policy.max_restarts.max(1) {
            slot.state = SlotState::Failed;
            actions.push(Action::Say(Note::SlotFailed { slot: id, early_ends }));
            return;
        }
        let delay = backoff::delay(early_ends, &mut self.random);
        slot.state = SlotState::Waiting { until: now + delay };
        actions.push(Action::Say(Note::Waits { slot: id, delay, early_ends }));
    }

    /// Tells a worker to stop, unless it is on its way out already.
    pub(super) fn ask(&mut self, now: Time, key: WorkerKey, actions: &mut Vec<Action>) {
        let serves = self.workers.get(&key).is_some_and(|worker| worker.phase == Phase::Ready);
        if serves && self.policy.drains {
            self.dismiss(now, key, Cause::Asked);
            if let Some(worker) = self.workers.get_mut(&key) {
                let grace = self.policy.grace;
                // The rest is for those who need the signal.
                worker.phase =
                    Phase::Draining { ask_at: now + grace / 4 * 3, kill_at: now + grace };
            }
            actions.push(Action::Drain(key));
        } else if self.dismiss(now, key, Cause::Asked) {
            actions.push(Action::AskLeader(key));
        }
    }

    /// Puts a worker on its way out; false where it was already.
    pub(super) fn dismiss(&mut self, now: Time, key: WorkerKey, cause: Cause) -> bool {
        let kill_at = now + self.policy.grace;
        let Some(worker) = self.workers.get_mut(&key).filter(|worker| worker.is_wanted()) else {
            return false;
        };
        worker.phase = Phase::Stopping { kill_at };
        worker.cause = Some(cause);
        true
    }
}
