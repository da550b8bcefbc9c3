//! What comes with time, and what workers tell of themselves: readiness, signs of life, age, patience.

use std::time::Duration;

use super::messages::{Action, Failure, Note, Told};
use super::worker::{Cause, First, Phase, Slot, SlotState, Time, WorkerKey};
use super::{Fleet, GIVE_UP};

/// A worker that could not be renewed for its age is asked for again after this.
const AGED_AGAIN: Duration = Duration::from_mins(1);

impl Fleet {
    /// When [`Event::Tick`](super::Event::Tick) is due, if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let workers = self.workers.values().filter_map(|worker| match worker.phase {
            Phase::Starting { due } => Some(due),
            Phase::Ready => {
                let old_at = worker.old_at.filter(|_| self.may_renew_the_old());
                worker.ping_by.into_iter().chain(old_at).min()
            }
            Phase::Draining { ask_at, .. } => Some(ask_at),
            Phase::Stopping { kill_at } | Phase::Leftover { kill_at } => Some(kill_at),
            Phase::Killed { give_up_at } => Some(give_up_at),
        });
        let slots = self.slots.values().filter_map(|slot| match slot.state {
            SlotState::Waiting { until } => Some(until),
            _ => None,
        });
        workers.chain(slots).chain(self.grows_at()).min()
    }

    /// Everything whose time has come.
    pub(super) fn due(&mut self, now: Time, actions: &mut Vec<Action>) {
        let keys: Vec<_> = self.workers.keys().copied().collect();
        for key in keys {
            let Some(worker) = self.workers.get(&key) else { continue };
            let slot = worker.slot;
            match worker.phase {
                Phase::Starting { due } if now >= due => self.decide(now, key, actions),
                Phase::Ready if worker.ping_by.is_some_and(|by| now >= by) => {
                    self.hung(now, key, actions);
                }
                Phase::Draining { ask_at, kill_at } if now >= ask_at => {
                    self.drained(key, actions);
                    // Where time has jumped.
                    if now >= kill_at {
                        self.kill(now, key, actions);
                    }
                }
                Phase::Stopping { kill_at } | Phase::Leftover { kill_at } if now >= kill_at => {
                    self.kill(now, key, actions);
                }
                Phase::Killed { give_up_at } if now >= give_up_at => {
                    actions.push(Action::Say(Note::GaveUp { worker: key, slot }));
                    self.gone(now, key, actions);
                }
                _ => {}
            }
        }
        if self.ending.is_some() {
            return;
        }
        for slot in self.slots.values_mut() {
            if matches!(slot.state, SlotState::Waiting { until } if now >= until) {
                slot.state = SlotState::Empty;
            }
        }
    }

    /// One at a time, and never during a rollout.
    fn may_renew_the_old(&self) -> bool {
        self.ending.is_none() && self.rollout.is_none()
    }

    pub(super) fn renew_the_oldest(&mut self, now: Time, actions: &mut Vec<Action>) {
        if !self.may_renew_the_old() {
            return;
        }
        let old = self.workers.values_mut().filter(|worker| worker.phase == Phase::Ready);
        let old = old.filter(|worker| worker.old_at.is_some_and(|at| now >= at));
        if let Some(worker) = old.min_by_key(|worker| worker.old_at) {
            worker.old_at = Some(now + AGED_AGAIN);
            actions.push(Action::Aged { slot: worker.slot });
        }
    }

    /// The time to become ready is over.
    fn decide(&mut self, now: Time, key: WorkerKey, actions: &mut Vec<Action>) {
        let readiness = self.policy.readiness;
        if readiness.alive.is_some() {
            self.become_ready(now, key, false, actions);
        } else if readiness.lenient {
            self.become_ready(now, key, true, actions);
        } else {
            self.not_ready(now, key, actions);
        }
    }

    fn not_ready(&mut self, now: Time, key: WorkerKey, actions: &mut Vec<Action>) {
        let Some(slot) = self.workers.get(&key).map(|worker| worker.slot) else { return };
        actions.push(Action::Say(Note::NotReady { worker: key, slot }));
        if self.dismiss(now, key, Cause::NotReady) {
            actions.push(Action::AskLeader(key));
        }
        self.rollout_failed(now, slot, Failure::Late, actions);
    }

    fn become_ready(&mut self, now: Time, key: WorkerKey, late: bool, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(&key) else { return };
        let id = worker.slot;
        worker.phase = Phase::Ready;
        worker.ready_since = Some(now);
        worker.show_life(now);
        let jitter = 1.0 - self.random.f64() / 10.0;
        worker.old_at = self.policy.max_age.map(|age| now + age.mul_f64(jitter));
        self.any_ready = true;
        actions.push(Action::Say(Note::Ready { worker: key, slot: id, late }));
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.first == First::Open {
            slot.first = First::Ready;
        }
        if slot.successor == Some(key) {
            slot.successor = None;
            let before = std::mem::replace(&mut slot.state, SlotState::Filled(key));
            if let SlotState::Filled(before) = before {
                self.ask(now, before, actions);
            }
        }
        self.renewed(id);
    }

    /// What a worker says, or a look at it says.
    pub(super) fn told(
        &mut self,
        now: Time,
        key: WorkerKey,
        what: Told,
        actions: &mut Vec<Action>,
    ) {
        let ending = self.ending.is_some();
        let Some(worker) = self.workers.get_mut(&key) else { return };
        let slot = worker.slot;
        match (what, &mut worker.phase) {
            (Told::Ready, Phase::Starting { .. }) => self.become_ready(now, key, false, actions),
            (Told::Extend(time), Phase::Starting { due }) => *due = (*due).max(now + time),
            // While all stops, the time is not ours to give: whoever stops us has a limit too.
            (Told::Extend(time), Phase::Stopping { kill_at } | Phase::Draining { kill_at, .. })
                if !ending =>
            {
                *kill_at = (*kill_at).max(now + time);
            }
            (Told::Stopping, Phase::Starting { .. } | Phase::Ready) => {
                self.dismiss(now, key, Cause::Itself);
                actions.push(Action::Say(Note::Leaving { worker: key, slot }));
            }
            (Told::Ping, _) => worker.show_life(now),
            (Told::Watchdog(every), _) => {
                worker.watchdog = Some(every);
                worker.show_life(now);
            }
            (Told::Drained, Phase::Draining { .. }) => self.drained(key, actions),
            (Told::Hung, Phase::Starting { .. } | Phase::Ready) => self.hung(now, key, actions),
            _ => {}
        }
    }

    /// It has finished what it had, or its time for that is over: now it gets the stop signal.
    fn drained(&mut self, key: WorkerKey, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(&key) else { return };
        if let Phase::Draining { kill_at, .. } = worker.phase {
            worker.phase = Phase::Stopping { kill_at };
            actions.push(Action::AskLeader(key));
        }
    }

    fn hung(&mut self, now: Time, key: WorkerKey, actions: &mut Vec<Action>) {
        if !self.dismiss(now, key, Cause::Hung) {
            return;
        }
        let Some(slot) = self.workers.get(&key).map(|worker| worker.slot) else { return };
        actions.push(Action::Say(Note::Hung { worker: key, slot }));
        actions.push(Action::AbortLeader(key));
        let successor = |slot: &Slot| slot.successor == Some(key);
        if self.slots.get(&slot).is_some_and(successor) {
            self.rollout_failed(now, slot, Failure::Late, actions);
        }
    }

    pub(super) fn kill(&mut self, now: Time, key: WorkerKey, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(&key) else { return };
        if matches!(worker.phase, Phase::Killed { .. }) {
            return;
        }
        worker.phase = Phase::Killed { give_up_at: now + GIVE_UP };
        worker.cause.get_or_insert(Cause::Asked);
        if let Some(ending) = &mut self.ending {
            ending.killed = true;
        }
        actions.push(Action::Say(Note::Killing { worker: key, slot: worker.slot }));
        actions.push(Action::Kill(key));
    }
}
