//! What the plan allows the number of workers to be, and who may move it within that.

use serde::{Deserialize, Serialize};

/// Whether the number follows what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adapt {
    /// Up to what the CPU rule allows, as far as memory does.
    Auto,
    /// Beyond the CPU rule, too, while the load shows that it helps.
    On,
    /// The printed number stays.
    Off,
}

/// A worker that has more memory than this is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MostMemory {
    Off,
    /// Its share of the plan.
    Share,
    /// Bytes.
    Size(u64),
}

/// What came of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bounds {
    /// The number that was printed.
    pub(crate) workers: u32,
    /// What the CPU rule allows.
    pub(crate) by_cpu: u32,
    /// Never more: by tasks, by `--max-workers`, and by memory where a worker's cost was told.
    pub(crate) most: u32,
    /// Somebody has said the number: nothing but the guard moves it.
    pub(crate) told: bool,
    /// Memory of one worker, bytes.
    pub(crate) share: Option<u64>,
    /// Memory of all workers together, bytes.
    pub(crate) budget: Option<u64>,
    /// What that was computed from, bytes: the limit, or the machine's memory. None from a program that did
    /// not tell.
    #[serde(default)]
    pub(crate) limit: Option<u64>,
    /// What is to stay free below the limit, bytes, where that was said.
    pub(crate) headroom: Option<u64>,
}

impl Bounds {
    /// This number and no other, as long as the plan says so.
    #[cfg(test)]
    pub(crate) fn of(workers: u32) -> Self {
        Self {
            workers,
            by_cpu: workers,
            most: workers,
            told: false,
            share: None,
            budget: None,
            limit: None,
            headroom: None,
        }
    }

    /// Whether anything is tighter than it was.
    pub(super) fn less_memory_than(&self, before: &Self) -> bool {
        matches!((self.budget, before.budget), (Some(now), Some(then)) if now < then)
    }

    pub(super) fn more_memory_than(&self, before: &Self) -> bool {
        matches!((self.budget, before.budget), (Some(now), Some(then)) if now > then)
    }
}
