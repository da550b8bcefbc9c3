//! The supervisor as a pure state machine: events with their time in, actions out.
//!
//! No clock, no system call, no I/O: a day of crashes runs in a test in a millisecond. The engine
//! performs the actions and reports what happens; the rules are the contract's "Restarts",
//! "Exit status" and "Signals to the launcher". Depends on `exit` for the statuses alone.

mod backoff;
mod messages;
mod requests;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::exit;
pub(crate) use messages::{Action, Assignment, Event, Note, Policy, Refusal, Restart, Urgency};
use worker::{End, First, Phase, Slot, SlotState, Worker};
pub(crate) use worker::{Ended, Time, WorkerKey};

/// A worker that has been ready for so long is stable: its end is no sign of a bad start.
const STABLE: Duration = Duration::from_secs(5);
/// How long a killed process may take to go, before it is left to the kernel.
const GIVE_UP: Duration = Duration::from_secs(2);

/// The stop that is under way.
#[derive(Clone, Copy, Debug)]
struct Ending {
    /// Fixed, where it was not asked for.
    status: Option<u8>,
    /// Whether somebody asked for it: asked again, it kills.
    asked: bool,
    /// Whether a worker had to be killed.
    killed: bool,
}

/// The rolling restart that is under way.
#[derive(Debug)]
struct Reload {
    /// The workers that it has not come to yet.
    waiting: VecDeque<WorkerKey>,
    /// The slots whose worker it has started anew and that is not ready yet.
    renewed: Vec<u32>,
}

/// All workers.
#[derive(Debug)]
pub(crate) struct Fleet {
    policy: Policy,
    target: u32,
    slots: BTreeMap<u32, Slot>,
    workers: BTreeMap<WorkerKey, Worker>,
    next_key: u64,
    random: fastrand::Rng,
    ending: Option<Ending>,
    reload: Option<Reload>,
    over: bool,
    any_spawned: bool,
    any_ready: bool,
    last_failure: Option<u8>,
}

impl Fleet {
    pub(crate) fn new(policy: Policy, workers: u32) -> Self {
        Self {
            random: fastrand::Rng::with_seed(policy.seed),
            policy,
            target: workers,
            slots: BTreeMap::new(),
            workers: BTreeMap::new(),
            next_key: 0,
            ending: None,
            reload: None,
            over: false,
            any_spawned: false,
            any_ready: false,
            last_failure: None,
        }
    }

    /// Whether the stop has begun.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// When [`Event::Tick`] is due, if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let workers = self.workers.values().filter_map(|worker| match worker.phase {
            Phase::Starting { since } => Some(since + self.policy.ready_after),
            Phase::Ready { .. } => None,
            Phase::Stopping { kill_at } | Phase::Leftover { kill_at } => Some(kill_at),
            Phase::Killed { give_up_at } => Some(give_up_at),
        });
        let slots = self.slots.values().filter_map(|slot| match slot.state {
            SlotState::Waiting { until } => Some(until),
            _ => None,
        });
        workers.chain(slots).min()
    }

    /// Takes in what happened at `now` and says what to do about it, in this order.
    pub(crate) fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.over {
            return actions;
        }
        match event {
            Event::Start => self.fill(now, &mut actions),
            Event::Tick => {}
            Event::Refused { worker, why } => self.refused(now, worker, why, &mut actions),
            Event::Ended { worker, how, group } => {
                self.ended(now, worker, how, group, &mut actions);
            }
            Event::GroupGone { worker } => self.gone(now, worker, &mut actions),
            Event::ResizeBy(more) => {
                let workers = self.target.saturating_add_signed(more);
                self.resize(now, workers, &mut actions);
            }
            Event::Reload => self.begin_reload(now, &mut actions),
            Event::Stop(urgency) => self.stop(now, urgency, &mut actions),
            Event::Abort { status } => self.abort(now, status, &mut actions),
        }
        self.due(now, &mut actions);
        self.go_on_reloading(now, &mut actions);
        self.conclude(now, &mut actions);
        actions
    }

    /// Makes the slots match the target and starts what is empty.
    fn fill(&mut self, now: Time, actions: &mut Vec<Action>) {
        for id in 1..=self.target {
            self.slots.entry(id).or_insert_with(Slot::new);
        }
        let empty: Vec<u32> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.state == SlotState::Empty && !slot.retiring)
            .map(|(id, _)| *id)
            .collect();
        for id in empty {
            self.spawn(now, id, actions);
        }
    }

    fn spawn(&mut self, now: Time, id: u32, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        self.next_key += 1;
        let worker = WorkerKey(self.next_key);
        slot.generation += 1;
        slot.state = SlotState::Filled(worker);
        self.workers.insert(
            worker,
            Worker { slot: id, phase: Phase::Starting { since: now }, ended: None },
        );
        self.any_spawned = true;
        actions.push(Action::Spawn(Assignment {
            worker,
            slot: id,
            generation: slot.generation,
            count: self.target,
        }));
    }

    fn refused(&mut self, now: Time, key: WorkerKey, why: Refusal, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.remove(&key) else { return };
        let status = match why {
            Refusal::Resources => exit::FAILURE,
            Refusal::Command { status } => status,
        };
        let nobody_yet =
            self.workers.values().all(|worker| matches!(worker.phase, Phase::Starting { .. }));
        if let Refusal::Command { status } = why
            && !self.any_ready
            && nobody_yet
            && self.ending.is_none()
        {
            // The command is not what it seemed: nothing that is tried again will help.
            self.abort(now, status, actions);
            return;
        }
        let end = End { how: Ended::Code(status), stable: false, ready: false, asked: false };
        self.settle(now, worker.slot, end, why != Refusal::Resources, actions);
    }

    fn ended(
        &mut self,
        now: Time,
        key: WorkerKey,
        how: Ended,
        group: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(worker) = self.workers.get_mut(&key) else { return };
        if worker.ended.is_some() {
            return;
        }
        let end = match worker.phase {
            Phase::Starting { since } => {
                // The deadline may have come in the same moment.
                let ready = now >= since + self.policy.ready_after;
                End { how, stable: false, ready, asked: false }
            }
            Phase::Ready { since } => {
                End { how, stable: now >= since + STABLE, ready: true, asked: false }
            }
            _ => End { how, stable: true, ready: true, asked: true },
        };
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
            Phase::Stopping { kill_at } | Phase::Leftover { kill_at } => {
                worker.phase = Phase::Leftover { kill_at };
                actions.push(Action::AskGroup(key));
            }
            Phase::Starting { .. } | Phase::Ready { .. } => {
                worker.phase = Phase::Leftover { kill_at: now + self.policy.grace };
                actions.push(Action::Say(Note::Leftover { worker: key, slot }));
                actions.push(Action::AskGroup(key));
            }
        }
    }

    /// A worker and its whole group have gone.
    fn gone(&mut self, now: Time, key: WorkerKey, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.remove(&key) else { return };
        // A group is asked about only when its leader has ended; without that nothing is known.
        let unknown = End { how: Ended::Signal(9), stable: true, ready: true, asked: true };
        self.settle(now, worker.slot, worker.ended.unwrap_or(unknown), true, actions);
    }

    /// Decides what becomes of a slot whose worker has gone.
    fn settle(&mut self, now: Time, id: u32, end: End, counts: bool, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.state = SlotState::Empty;
        if self.ending.is_some() {
            return;
        }
        if slot.retiring {
            self.slots.remove(&id);
            return;
        }
        if end.asked {
            // Wanted again while it was being stopped.
            slot.early_ends = 0;
            self.spawn(now, id, actions);
            return;
        }
        if end.ready {
            self.any_ready = true;
        } else if self.reload.take_if(|reload| reload.renewed.contains(&id)).is_some() {
            actions.push(Action::Say(Note::ReloadStopped { slot: id }));
        }
        let lifetime_over = self.policy.lifetime.is_some_and(|lifetime| now >= lifetime);
        let again = match self.policy.restart {
            Restart::Always => !lifetime_over,
            Restart::OnFailure => !lifetime_over && !end.how.is_success(),
            Restart::Never => false,
        };
        let failed = again || !end.how.is_success();
        if slot.first == First::Open {
            slot.first = if failed && !end.ready { First::Failed } else { First::Ready };
        }
        if failed {
            // A server that ends by itself has failed, whatever it says.
            self.last_failure = Some(end.how.status().max(1));
        }
        if !again {
            slot.state = SlotState::Done { success: end.how.is_success() };
            return;
        }
        if end.stable {
            slot.early_ends = 0;
            self.spawn(now, id, actions);
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

    /// Everything whose time has come.
    fn due(&mut self, now: Time, actions: &mut Vec<Action>) {
        let keys: Vec<_> = self.workers.keys().copied().collect();
        for key in keys {
            let Some(worker) = self.workers.get_mut(&key) else { continue };
            let slot = worker.slot;
            match worker.phase {
                Phase::Starting { since } if now >= since + self.policy.ready_after => {
                    worker.phase = Phase::Ready { since: now };
                    self.any_ready = true;
                    if let Some(slot) =
                        self.slots.get_mut(&slot).filter(|slot| slot.first == First::Open)
                    {
                        slot.first = First::Ready;
                    }
                    actions.push(Action::Say(Note::Ready { worker: key, slot }));
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
        if self.ending.is_none() {
            let due =
                |slot: &Slot| matches!(slot.state, SlotState::Waiting { until } if now >= until);
            let ids: Vec<u32> =
                self.slots.iter().filter(|(_, slot)| due(slot)).map(|(id, _)| *id).collect();
            for id in ids {
                self.spawn(now, id, actions);
            }
        }
    }

    /// Ends the run where there is nothing left to do.
    fn conclude(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.ending.is_none() && self.any_spawned {
            let over =
                |slot: &Slot| matches!(slot.state, SlotState::Failed | SlotState::Done { .. });
            let success = |slot: &Slot| slot.state == SlotState::Done { success: true };
            let first_failed = |slot: &Slot| slot.first == First::Failed;
            if !self.slots.is_empty() && self.slots.values().all(over) && self.workers.is_empty() {
                let failure = self.last_failure.unwrap_or(exit::FAILURE);
                let status = if self.slots.values().all(success) { exit::SUCCESS } else { failure };
                if status != exit::SUCCESS && self.policy.restart != Restart::Never {
                    actions.push(Action::Say(Note::NoneLeft));
                }
                self.begin_end(Some(status));
            } else if !self.any_ready
                && self.slots.values().all(first_failed)
                && self.policy.restart != Restart::Never
            {
                let workers = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
                actions.push(Action::Say(Note::FirstStartsFailed { workers }));
                self.abort(now, self.last_failure.unwrap_or(exit::FAILURE), actions);
            }
        }
        if let Some(ending) = self.ending
            && self.workers.is_empty()
        {
            self.over = true;
            let asked = if ending.killed { exit::KILLED } else { exit::SUCCESS };
            actions.push(Action::Exit(ending.status.unwrap_or(asked)));
        }
    }
}
