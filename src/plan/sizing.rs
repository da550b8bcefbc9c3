//! The arithmetic: how many workers fit under every ceiling. Numbers in, numbers out.
//!
//! Every rule has its reason beside it; `docs/sizing.md` tells the same to users.

use super::reason::Bound;
use crate::probe::Ceiling;
use crate::units::{GIB, MIB, ratio};

/// No fleet is larger than this, whatever a limit or a flag says.
pub const MOST_WORKERS: u32 = 10_000;

/// Tasks that are left to the launcher and to whoever has to look into a full container.
const SPARE_TASKS: u64 = 8;

/// How a fraction of a CPU becomes whole workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// A whole worker for half a CPU and more.
    Nearest,
    /// Never more workers than whole CPUs.
    Floor,
    /// A worker for every begun CPU.
    Ceil,
}

/// What is kept free below a limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Headroom {
    /// So many bytes.
    Bytes(u64),
    /// A share of the limit, 0 to 1.
    Share(f64),
}

/// How many CPUs there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cpus {
    /// CPU time per wall-clock time.
    pub(crate) quota: Option<f64>,
    /// CPUs to run on.
    pub(crate) set: Option<u32>,
}

impl Cpus {
    /// The smaller of both; one where nothing is known.
    pub(crate) fn usable(self) -> f64 {
        let set = self.set.map(f64::from);
        self.quota.into_iter().chain(set).min_by(f64::total_cmp).unwrap_or(1.0)
    }
}

/// Everything that the number depends on.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pub(crate) ceilings: Vec<Ceiling>,
    pub(crate) headroom: Option<Headroom>,
    pub(crate) worker_memory: u64,
    /// Whether that was measured under load, and is no assumption.
    pub(crate) measured: bool,
    /// What all workers have together once, bytes.
    pub(crate) shared_once: u64,
    pub(crate) cpus: Cpus,
    pub(crate) workers_per_cpu: f64,
    pub(crate) rounding: Rounding,
    pub(crate) task_room: Option<u64>,
    pub(crate) tasks_per_worker: u64,
    pub(crate) least: u32,
    pub(crate) most: Option<u32>,
    pub(crate) explicit: Option<u32>,
}

/// What memory allows, under the ceiling that leaves the least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryRoom {
    /// Which of the ceilings.
    pub(crate) index: usize,
    pub(crate) headroom: u64,
    /// Whether throttling, and not the hard limit, sets the target.
    pub(crate) by_high: bool,
    /// What all workers together may take.
    pub(crate) budget: u64,
    /// The same without headroom: what is left to the limit itself.
    pub(crate) free: u64,
    /// How many that is.
    pub(crate) workers: u32,
}

/// The number, and each rule's own answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) workers: u32,
    pub(crate) bound_by: Bound,
    pub(crate) memory: Option<MemoryRoom>,
    pub(crate) by_cpu: u32,
    pub(crate) by_tasks: Option<u32>,
}

impl Inputs {
    pub(crate) fn size(&self) -> Outcome {
        let memory = self.memory();
        let by_cpu = self.by_cpu();
        let by_tasks = self.by_tasks();
        let (workers, bound_by) = self.decide(memory.as_ref(), by_cpu, by_tasks);
        Outcome { workers, bound_by, memory, by_cpu, by_tasks }
    }

    fn decide(
        &self,
        memory: Option<&MemoryRoom>,
        by_cpu: u32,
        by_tasks: Option<u32>,
    ) -> (u32, Bound) {
        let (mut workers, mut bound) = match self.explicit {
            Some(workers) => (workers, Bound::Explicit),
            None => self.computed(memory, by_cpu, by_tasks),
        };
        if let Some(most) = self.most.filter(|most| *most < workers) {
            (workers, bound) = (most, Bound::MaxWorkers);
        }
        if workers < self.least {
            (workers, bound) = (self.least, Bound::MinWorkers);
        }
        (workers.clamp(1, MOST_WORKERS), bound)
    }

    /// The smallest of what the resources allow. Where two allow the same whole number, the one with
    /// less before rounding is named: more of the other would not help.
    fn computed(
        &self,
        memory: Option<&MemoryRoom>,
        by_cpu: u32,
        by_tasks: Option<u32>,
    ) -> (u32, Bound) {
        let mut best = (by_cpu, self.cpus.usable() * self.workers_per_cpu, Bound::Cpu);
        let by_memory = memory
            .map(|room| (room.workers, ratio(room.budget, self.worker_memory), Bound::Memory));
        let by_tasks = by_tasks.map(|workers| (workers, f64::from(workers), Bound::Tasks));
        for candidate in by_memory.into_iter().chain(by_tasks) {
            if candidate.0 < best.0 || (candidate.0 == best.0 && candidate.1 < best.1) {
                best = candidate;
            }
        }
        (best.0.max(1), best.2)
    }

    fn memory(&self) -> Option<MemoryRoom> {
        let machine = self.ceilings.iter().find(|ceiling| ceiling.machine);
        let ram = machine.and_then(|machine| machine.limit.as_ref()).map(|ram| ram.value);
        let rooms = self.ceilings.iter().enumerate();
        let rooms = rooms.filter_map(|(index, ceiling)| self.under(index, ceiling, ram));
        // The first of equals is our own group, which is the one a user can change.
        rooms.min_by_key(|room| room.budget)
    }

    /// `None` where the ceiling does not bind, because the machine itself has no more.
    fn under(&self, index: usize, ceiling: &Ceiling, ram: Option<u64>) -> Option<MemoryRoom> {
        let binds = |bytes: &u64| ceiling.machine || ram.is_none_or(|ram| *bytes < ram);
        let limit = ceiling.limit.as_ref().map(|limit| limit.value).filter(binds);
        let high = ceiling.high.as_ref().map(|high| high.value).filter(binds);
        limit.or(high)?;
        let headroom = limit.map_or(0, |limit| self.headroom(limit, ceiling));
        let hard = limit.map_or(u64::MAX, |limit| limit.saturating_sub(headroom));
        // Above memory.high tasks are throttled and never killed; without swap that is a livelock.
        let soft = high.map_or(u64::MAX, |high| high / 100 * 95 + high % 100 * 95 / 100);
        let taken = ceiling.used.saturating_add(self.shared_once);
        let budget = hard.min(soft).saturating_sub(taken);
        let workers = u32::try_from(budget / self.worker_memory.max(1)).unwrap_or(u32::MAX);
        Some(MemoryRoom {
            index,
            headroom,
            by_high: soft < hard,
            budget,
            free: limit.into_iter().chain(high).min().unwrap_or(0).saturating_sub(ceiling.used),
            workers: workers.min(MOST_WORKERS),
        })
    }

    /// Kept for the kernel, page tables, sockets and hot page cache: a tenth, within bounds; half as much
    /// again where no swap can take a peak, and also where one kill takes everybody at once.
    fn headroom(&self, limit: u64, ceiling: &Ceiling) -> u64 {
        match self.headroom {
            Some(Headroom::Bytes(bytes)) => bytes,
            Some(Headroom::Share(share)) => portion(limit, share),
            None if self.measured => least_headroom(limit),
            None => {
                let tenth = (limit / 10).clamp(48 * MIB, GIB);
                let dangers = [!ceiling.swap, ceiling.oom_group.is_some()];
                let dangers = dangers.iter().filter(|there| **there).count() as u64;
                tenth / 2 * (2 + dangers)
            }
        }
    }

    fn by_cpu(&self) -> u32 {
        let exact = self.cpus.usable() * self.workers_per_cpu;
        let whole = match self.rounding {
            Rounding::Nearest => exact.round(),
            Rounding::Floor => exact.floor(),
            Rounding::Ceil => exact.ceil(),
        };
        whole_number(whole).clamp(1, MOST_WORKERS)
    }

    fn by_tasks(&self) -> Option<u32> {
        let workers = self.task_room?.saturating_sub(SPARE_TASKS) / self.tasks_per_worker.max(1);
        Some(u32::try_from(workers).unwrap_or(u32::MAX).min(MOST_WORKERS))
    }
}

/// What stays free below a limit where what is in use was measured: a tenth, within bounds.
pub(crate) fn least_headroom(limit: u64) -> u64 {
    (limit / 10).clamp(16 * MIB, GIB)
}

/// `share` of `bytes`, rounded down.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a size needs no exact byte"
)]
pub(crate) fn portion(bytes: u64, share: f64) -> u64 {
    (bytes as f64 * share) as u64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
fn whole_number(value: f64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests;
