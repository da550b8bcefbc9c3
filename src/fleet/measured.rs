//! What one look at the running fleet measured: all that the controller and the guard know of the world.
//!
//! Who looks fills it in; nothing here is computed over several looks but what says so. Memory is in bytes, CPU
//! in CPUs (1.0: one CPU all of the time), times are shares of the time since the look before, 0 to 1.

use std::time::Duration;

use super::worker::WorkerKey;

/// One look.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    /// Since the look before; zero for the first, which has no rates.
    pub(crate) span: Duration,
    /// None where no limit and no memory of the machine is known.
    pub(crate) memory: Option<Memory>,
    pub(crate) cpu: Cpu,
    /// Connections that nobody has accepted yet, on all sockets of ours or of the workers; none where that
    /// cannot be seen.
    pub(crate) waiting: Option<u32>,
    /// Every live worker, by its key.
    pub(crate) workers: Vec<Measured>,
}

/// The level with the least room left: a group's limit, or the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// What it kills above, or throttles above where that is less.
    pub(crate) limit: u64,
    /// What it uses that cannot be reclaimed: working set, `limits.md` section 3, step 9.
    pub(crate) used: u64,
    /// PSI `some`: a task stood still for want of memory.
    pub(crate) stalled: Option<f64>,
    /// How often the kernel had to reclaim at the limit since the look before (`max` and `high` in
    /// `memory.events`; `memory.failcnt`).
    pub(crate) hits: u64,
    /// Workers have limits of their own below it: whoever is at his own stands still too (`stalled`), and does no
    /// harm to the others (`hits` does not count it).
    pub(crate) divided: bool,
    /// Of what is used, shared memory and files of a `tmpfs` that are no worker's own: nothing of it can be dropped.
    pub(crate) shmem: u64,
}

/// The CPU of the whole group, and of the machine where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    /// What we may use: quota, set.
    pub(crate) usable: f64,
    /// What our workers used.
    pub(crate) used: f64,
    /// Of the quota's periods, those in which it was used up.
    pub(crate) throttled: f64,
}

/// One worker: its whole process group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    pub(crate) worker: WorkerKey,
    /// Memory that another worker would cost again, also such as could be shared and is not.
    pub(crate) private: u64,
    /// The most that this has been since it was started, also between looks.
    pub(crate) peak: u64,
    /// Pages of files and shared memory, most of which are there once for all.
    pub(crate) shared: u64,
    /// CPUs used.
    pub(crate) cpu: f64,
    /// The busiest of its threads, CPUs: an event loop cannot use more than one.
    pub(crate) busiest: f64,
    /// Ready to run and without a CPU.
    pub(crate) delayed: f64,
    /// Connections under way, where we carry them.
    pub(crate) active: Option<u32>,
}
