//! The supervisor as a pure state machine: events with their time in, actions out.
//!
//! No clock, no system call, no I/O: a day of crashes runs in a test in a millisecond. The engine
//! performs the actions and reports what happens; the rules are the contract's "Restarts",
//! "Exit status" and "Signals to the launcher". Depends on `exit` for the statuses alone.

mod adapt;
mod backoff;
mod bounds;
mod due;
mod ends;
mod follow;
mod guard;
mod lives;
mod looks;
mod measured;
mod memory;
mod messages;
mod requests;
mod rollout;
mod saved;
#[cfg(test)]
mod tests;
mod trial;
mod view;
mod why;
mod worker;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exit;
pub(crate) use adapt::Change;
use adapt::Learnt;
pub(crate) use bounds::{Adapt, Bounds, MostMemory};
pub(crate) use follow::LASTS;
use follow::Wish;
pub(crate) use measured::{Cpu, Measured, Memory, Sample};
pub(crate) use messages::{
    Action, Assignment, Event, Failure, Kind, Note, Policy, Readiness, Refusal, Restart, Told,
    Urgency,
};
use rollout::Rollout;
pub(crate) use saved::Saved;
pub(crate) use view::{FleetView, SlotView};
pub(crate) use why::{Excess, Why};
pub(crate) use worker::{Ended, Time, WorkerKey};
use worker::{First, Phase, Slot, SlotState, Worker};

/// A worker that has been ready for so long is stable: its end is no sign of a bad start.
const STABLE: Duration = Duration::from_secs(5);
/// How long a killed process may take to go, before it is left to the kernel.
const GIVE_UP: Duration = Duration::from_secs(2);
/// A stop that comes again so soon is the same one: GNU `timeout` signals its child and then its own group, in
/// which the child is, microseconds later. Nobody's patience is that short.
const SAME_STOP: Duration = Duration::from_millis(50);

/// The stop that is under way.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Ending {
    /// Fixed, where it was not asked for.
    status: Option<u8>,
    /// When somebody asked for it first: asked again, it kills.
    asked: Option<Time>,
    /// Whether a worker had to be killed.
    killed: bool,
}

/// All workers.
#[derive(Debug)]
pub(crate) struct Fleet {
    policy: Policy,
    target: u32,
    wish: Wish,
    learnt: Learnt,
    slots: BTreeMap<u32, Slot>,
    workers: BTreeMap<WorkerKey, Worker>,
    next_key: u64,
    random: fastrand::Rng,
    ending: Option<Ending>,
    rollout: Option<Rollout>,
    over: bool,
    any_spawned: bool,
    any_ready: bool,
    last_failure: Option<u8>,
}

impl Fleet {
    pub(crate) fn new(policy: Policy, bounds: Bounds) -> Self {
        Self {
            random: fastrand::Rng::with_seed(policy.seed),
            policy,
            target: bounds.workers,
            wish: Wish::new(bounds.workers),
            learnt: Learnt::new(bounds),
            slots: BTreeMap::new(),
            workers: BTreeMap::new(),
            next_key: 0,
            ending: None,
            rollout: None,
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

    /// Takes in what happened at `now` and says what to do about it, in this order.
    pub(crate) fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.over {
            return actions;
        }
        match event {
            Event::Start => self.open_slots(),
            Event::Tick => {}
            Event::Refused { worker, why } => self.refused(now, worker, why, &mut actions),
            Event::Told { worker, what } => self.told(now, worker, what, &mut actions),
            Event::Ended { worker, how, group } => {
                self.ended(now, worker, how, group, &mut actions);
            }
            Event::GroupGone { worker } => self.gone(now, worker, &mut actions),
            Event::ResizeBy(more) => {
                self.pin(now, self.target.saturating_add_signed(more), &mut actions);
            }
            Event::ResizeTo(workers) => self.pin(now, workers, &mut actions),
            Event::Free => self.free(now, &mut actions),
            Event::Planned { bounds, at_once } => {
                self.planned(now, bounds, at_once, &mut actions);
            }
            Event::OutOfMemory { slot } => self.out_of_memory(now, slot, &mut actions),
            Event::Renew { kind, slot, surge } => {
                self.renew(now, kind, slot, surge, &mut actions);
            }
            Event::Measured(sample) => self.measured(now, &sample, &mut actions),
            Event::Stop(urgency) => self.stop(now, urgency, &mut actions),
            Event::Abort { status } => self.abort(now, status, &mut actions),
        }
        self.due(now, &mut actions);
        self.grow(now, &mut actions);
        self.fill(now, &mut actions);
        self.roll_on(now, &mut actions);
        self.renew_the_oldest(now, &mut actions);
        self.conclude(now, &mut actions);
        actions
    }

    /// Makes the slots match the target.
    fn open_slots(&mut self) {
        for id in 1..=self.target {
            self.slots.entry(id).or_insert_with(Slot::new);
        }
    }

    /// Starts what is empty, no more at once than is allowed.
    fn fill(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.ending.is_some() {
            return;
        }
        let empty = |slot: &Slot| slot.state == SlotState::Empty && !slot.retiring;
        let empty: Vec<u32> =
            self.slots.iter().filter(|(_, slot)| empty(slot)).map(|(id, _)| *id).collect();
        if empty.is_empty() {
            return;
        }
        let starting = self.workers.values().filter(|worker| worker.is_starting()).count();
        let parallel = self.policy.parallel.map_or(empty.len(), |most| {
            usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(starting)
        });
        // A rollout may have taken the room already; those that it replaces will leave.
        let room =
            self.most_alive().map_or(empty.len(), |most| most.saturating_sub(self.workers.len()));
        for id in empty.into_iter().take(room.min(parallel)) {
            self.spawn(now, id, actions);
        }
    }

    /// Starts the worker of a slot, or the one that will take the place of the one that is there.
    fn spawn(&mut self, now: Time, id: u32, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        self.next_key += 1;
        let key = WorkerKey(self.next_key);
        slot.generation += 1;
        match slot.state {
            SlotState::Filled(_) => slot.successor = Some(key),
            _ => slot.state = SlotState::Filled(key),
        }
        let worker = Worker {
            slot: id,
            generation: slot.generation,
            phase: Phase::Starting { due: now + self.policy.readiness.longest() },
            started: now,
            ready_since: None,
            cause: None,
            watchdog: self.policy.watchdog,
            ping_by: None,
            old_at: None,
            ended: None,
        };
        let generation = worker.generation;
        self.workers.insert(key, worker);
        self.any_spawned = true;
        actions.push(Action::Spawn(Assignment {
            worker: key,
            slot: id,
            generation,
            count: self.target,
        }));
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
                self.begin_end(Some(status), actions);
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
