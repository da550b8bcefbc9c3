//! What the fleet looks like from outside: a snapshot that decides nothing.

use super::adapt::Change;
use super::worker::{End, Phase, SlotState, Time, Worker, WorkerKey};
use super::{Fleet, Kind, STABLE};

/// The whole fleet at one moment.
#[derive(Clone, Debug)]
pub(crate) struct FleetView {
    /// How many workers there are to be.
    pub(crate) target: u32,
    /// And how many of them have to serve: those who are only being tried are not missed.
    pub(crate) needed: u32,
    /// How many the plan says, and whether somebody has said otherwise.
    pub(crate) planned: u32,
    pub(crate) pinned: bool,
    pub(crate) stopping: bool,
    /// The last change of the number.
    pub(crate) change: Option<Change>,
    /// The rollout that is under way, with the number of workers it has still to renew.
    pub(crate) rollout: Option<(Kind, usize)>,
    pub(crate) slots: Vec<SlotView>,
    pub(crate) workers: Vec<WorkerView>,
}

/// One slot.
#[derive(Clone, Debug)]
pub(crate) struct SlotView {
    pub(crate) id: u32,
    /// `empty`, `filled`, `backoff`, `failed` or `done`.
    pub(crate) state: &'static str,
    /// When the next start comes, where it waits for one.
    pub(crate) retry_at: Option<Time>,
    pub(crate) restarts: u32,
    pub(crate) last_end: Option<(End, Time)>,
}

/// One process.
#[derive(Clone, Debug)]
pub(crate) struct WorkerView {
    pub(crate) key: WorkerKey,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    /// `starting`, `ready`, `running` (ready for long enough to be stable), `draining` (others serve in its place),
    /// `stopping` or `killed`.
    pub(crate) state: &'static str,
    pub(crate) started: Time,
    pub(crate) ready: bool,
}

impl FleetView {
    /// Whether every worker serves who has to.
    pub(crate) fn is_ready(&self) -> bool {
        let serving = self.workers.iter().filter(|worker| worker.ready);
        !self.stopping && serving.count() as u64 >= u64::from(self.needed)
    }
}

impl Fleet {
    pub(crate) fn target(&self) -> u32 {
        self.target
    }

    /// How it stands at `now`.
    pub(crate) fn view(&self, now: Time) -> FleetView {
        let slots = self.slots.iter().map(|(id, slot)| SlotView {
            id: *id,
            state: match slot.state {
                SlotState::Empty => "empty",
                SlotState::Filled(_) => "filled",
                SlotState::Waiting { .. } => "backoff",
                SlotState::Failed => "failed",
                SlotState::Done { .. } => "done",
            },
            retry_at: match slot.state {
                SlotState::Waiting { until } => Some(until),
                _ => None,
            },
            restarts: slot.restarts,
            last_end: slot.last_end,
        });
        let workers = self.workers.iter().map(|(key, worker)| WorkerView {
            key: *key,
            slot: worker.slot,
            generation: worker.generation,
            state: self.state(now, worker),
            started: worker.started,
            ready: worker.phase == Phase::Ready,
        });
        let mut workers: Vec<_> = workers.collect();
        workers.sort_by_key(|worker| (worker.slot, worker.key));
        FleetView {
            target: self.target,
            needed: self.needed(),
            planned: self.wish.planned,
            pinned: self.wish.pinned,
            stopping: self.ending.is_some(),
            change: self.learnt.last,
            rollout: self
                .rollout
                .as_ref()
                .map(|rollout| (rollout.kind, rollout.waiting.len() + rollout.renewed.len())),
            slots: slots.collect(),
            workers,
        }
    }

    fn state(&self, now: Time, worker: &Worker) -> &'static str {
        match worker.phase {
            Phase::Starting { .. } => "starting",
            Phase::Ready if worker.ready_since.is_some_and(|since| now >= since + STABLE) => {
                "running"
            }
            Phase::Ready => "ready",
            Phase::Killed { .. } => "killed",
            Phase::Stopping { .. } | Phase::Leftover { .. } if self.ending.is_some() => "stopping",
            Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Leftover { .. } => "draining",
        }
    }
}
