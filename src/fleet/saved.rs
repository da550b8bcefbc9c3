//! The fleet in a form that another process can go on with: the same launcher after it has replaced
//! its own program. The policy is not part of it; the successor has its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rollout::Rollout;
use super::worker::{Slot, Worker, WorkerKey};
use super::{Bounds, Ending, Fleet, Learnt, Policy, Wish};

/// Everything that a fleet knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    target: u32,
    wish: Wish,
    /// None from a program that learnt nothing.
    #[serde(default)]
    learnt: Option<Learnt>,
    slots: BTreeMap<u32, Slot>,
    workers: Vec<(WorkerKey, Worker)>,
    next_key: u64,
    random: u64,
    ending: Option<Ending>,
    rollout: Option<Rollout>,
    any_spawned: bool,
    any_ready: bool,
    last_failure: Option<u8>,
}

impl Fleet {
    pub(crate) fn save(&self) -> Saved {
        Saved {
            target: self.target,
            wish: self.wish,
            learnt: Some(self.learnt.clone()),
            slots: self.slots.clone(),
            workers: self.workers.iter().map(|(key, worker)| (*key, worker.clone())).collect(),
            next_key: self.next_key,
            random: self.random.get_seed(),
            ending: self.ending,
            rollout: self.rollout.clone(),
            any_spawned: self.any_spawned,
            any_ready: self.any_ready,
            last_failure: self.last_failure,
        }
    }

    pub(crate) fn restore(policy: Policy, bounds: Bounds, saved: Saved) -> Self {
        let mut wish = saved.wish;
        if wish.level == 0 {
            wish.level = saved.target;
        }
        let mut learnt = saved.learnt.unwrap_or_else(|| Learnt::new(bounds));
        learnt.bounds = bounds;
        Self {
            policy,
            target: saved.target,
            wish,
            learnt,
            slots: saved.slots,
            workers: saved.workers.into_iter().collect(),
            next_key: saved.next_key,
            random: fastrand::Rng::with_seed(saved.random),
            ending: saved.ending,
            rollout: saved.rollout,
            over: false,
            any_spawned: saved.any_spawned,
            any_ready: saved.any_ready,
            last_failure: saved.last_failure,
        }
    }
}
