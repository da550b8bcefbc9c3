//! The arithmetic: how many workers fit under every ceiling. Numbers in, numbers out.
//!
//! Every rule has its reason beside it; `docs/sizing.md` tells the same to users.

use super::reason::Bound;
use crate::probe::Ceiling;
use crate::units::{GIB, MIB};

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
            None if self.measured => (limit / 10).clamp(16 * MIB, GIB),
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

#[expect(clippy::cast_precision_loss, reason = "only compared with a fraction of CPUs")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
fn whole_number(value: f64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::Fact;

    fn ceiling(limit: u64, used: u64) -> Ceiling {
        let limit = Some(Fact { value: limit, source: String::new() });
        let used_source = None;
        Ceiling {
            limit,
            high: None,
            used,
            used_source,
            swap: true,
            oom_group: None,
            machine: false,
        }
    }

    fn quota(cpus: f64) -> Cpus {
        Cpus { quota: Some(cpus), set: None }
    }

    fn inputs() -> Inputs {
        Inputs {
            ceilings: vec![ceiling(512 * MIB, 0)],
            headroom: None,
            worker_memory: 100 * MIB,
            measured: false,
            shared_once: 0,
            cpus: quota(4.0),
            workers_per_cpu: 1.0,
            rounding: Rounding::Nearest,
            task_room: None,
            tasks_per_worker: 1,
            least: 1,
            most: None,
            explicit: None,
        }
    }

    #[test]
    fn headroom_is_a_tenth_within_bounds_and_more_without_swap() {
        let with = inputs();
        let swaps = ceiling(0, 0);
        assert_eq!(with.headroom(256 * MIB, &swaps), 48 * MIB);
        assert_eq!(with.headroom(1000 * MIB, &swaps), 100 * MIB);
        assert_eq!(with.headroom(100 * GIB, &swaps), GIB);
        let none = Ceiling { swap: false, ..ceiling(0, 0) };
        assert_eq!(with.headroom(1000 * MIB, &none), 150 * MIB);
        let measured = Inputs { measured: true, ..inputs() };
        assert_eq!(measured.headroom(500 * MIB, &none), 50 * MIB);
        assert_eq!(measured.headroom(64 * MIB, &none), 16 * MIB);
        let share = Inputs { headroom: Some(Headroom::Share(0.2)), ..inputs() };
        assert_eq!(share.headroom(1000, &none), 200);
    }

    #[test]
    fn more_is_kept_where_one_kill_takes_all() {
        let together = Ceiling { oom_group: Some("file".to_owned()), ..ceiling(0, 0) };
        assert_eq!(inputs().headroom(1000 * MIB, &together), 150 * MIB);
        let worst = Ceiling { swap: false, ..together.clone() };
        assert_eq!(inputs().headroom(1000 * MIB, &worst), 200 * MIB);
        let told = Inputs { headroom: Some(Headroom::Bytes(7)), ..inputs() };
        assert_eq!(told.headroom(1000 * MIB, &together), 7, "what was told holds");
    }

    #[test]
    fn the_least_resource_binds() {
        let outcome = inputs().size();
        assert_eq!((outcome.workers, outcome.bound_by), (4, Bound::Cpu));
        let outcome = Inputs { cpus: quota(8.0), ..inputs() }.size();
        assert_eq!((outcome.workers, outcome.bound_by), (4, Bound::Memory));
        let outcome = Inputs { task_room: Some(11), ..inputs() }.size();
        assert_eq!((outcome.workers, outcome.bound_by), (3, Bound::Tasks));
        let outcome = Inputs { most: Some(2), ..inputs() }.size();
        assert_eq!((outcome.workers, outcome.bound_by), (2, Bound::MaxWorkers));
        let outcome = Inputs { least: 6, ..inputs() }.size();
        assert_eq!((outcome.workers, outcome.bound_by), (6, Bound::MinWorkers));
        let outcome = Inputs { explicit: Some(9), ..inputs() }.size();
        assert_eq!((outcome.workers, outcome.bound_by), (9, Bound::Explicit));
    }

    #[test]
    fn an_ancestor_with_less_room_binds_before_a_tighter_limit() {
        let used_up = ceiling(GIB, 800 * MIB);
        let outcome = Inputs { ceilings: vec![ceiling(512 * MIB, 0), used_up], ..inputs() }.size();
        assert_eq!(outcome.workers, 1);
        assert_eq!(outcome.memory.map(|room| room.index), Some(1));
    }

    #[test]
    fn throttling_is_a_ceiling_too() {
        let high = Some(Fact { value: 200 * MIB, source: String::new() });
        let throttled = Ceiling { high, ..ceiling(512 * MIB, 0) };
        let room = Inputs { ceilings: vec![throttled], ..inputs() }.size().memory.unwrap();
        assert!(room.by_high);
        assert_eq!(room.budget, 190 * MIB);
    }

    #[test]
    fn fractions_are_rounded_only_at_the_end() {
        for (cpus, nearest, floor, ceil) in
            [(0.01, 1, 1, 1), (1.5, 2, 1, 2), (2.4, 2, 2, 3), (2.6, 3, 2, 3)]
        {
            let by = |rounding| Inputs { cpus: quota(cpus), rounding, ..inputs() }.by_cpu();
            assert_eq!(
                (by(Rounding::Nearest), by(Rounding::Floor), by(Rounding::Ceil)),
                (nearest, floor, ceil)
            );
        }
    }

    #[test]
    fn one_worker_runs_even_where_none_fits() {
        let outcome = Inputs { ceilings: vec![ceiling(4096, 0)], ..inputs() }.size();
        assert_eq!((outcome.workers, outcome.memory.map(|room| room.workers)), (1, Some(0)));
    }

    #[test]
    fn a_limit_at_or_above_the_machine_does_not_bind() {
        let machine = Ceiling { machine: true, ..ceiling(GIB, 0) };
        let index = |limit| {
            let ceilings = vec![ceiling(limit, 900 * MIB), machine.clone()];
            Inputs { ceilings, ..inputs() }.size().memory.map(|room| room.index)
        };
        assert_eq!(index(GIB), Some(1));
        assert_eq!(index(GIB - 1), Some(0));
    }

    prop_compose! {
        fn any_inputs()(
            limits in proptest::collection::vec((any::<u64>(), any::<u64>(), proptest::option::of(any::<u64>())), 0..4),
            ram in proptest::option::of(any::<u64>()), swap: bool, worker_memory: u64, cpus in 0.0..9000.0f64, per in 0.01..50.0f64,
            room in proptest::option::of(any::<u64>()), tasks_per_worker: u64,
            most in proptest::option::of(1u32..100), least in 1u32..3,
        ) -> Inputs {
            let ceilings = limits.into_iter().map(|(limit, used, high)| Ceiling {
                high: high.map(|value| Fact { value, source: String::new() }),
                swap,
                ..ceiling(limit, used)
            });
            // What a group uses, the machine uses.
            let used = ceilings.clone().map(|ceiling| ceiling.used).max().unwrap_or(0);
            let machine = ram.map(|ram| Ceiling { machine: true, swap, ..ceiling(ram, used) });
            Inputs { ceilings: ceilings.chain(machine).collect(), worker_memory, cpus: quota(cpus), workers_per_cpu: per,
                     task_room: room, tasks_per_worker, most: most.map(|m| m.max(least)), least, ..inputs() }
        }
    }

    proptest! {
        #[test]
        fn never_none_and_never_above_a_bound(inputs in any_inputs()) {
            let outcome = inputs.size();
            prop_assert!(outcome.workers >= 1 && outcome.workers <= MOST_WORKERS);
            prop_assert!(inputs.most.is_none_or(|most| outcome.workers <= most));
            if outcome.workers > inputs.least.max(1) {
                prop_assert!(outcome.memory.is_none_or(|room| outcome.workers <= room.workers));
                prop_assert!(outcome.by_tasks.is_none_or(|most| outcome.workers <= most));
                prop_assert!(outcome.workers <= outcome.by_cpu);
            }
        }

        #[test]
        fn more_never_gives_fewer(inputs in any_inputs(), extra: u64, cpus in 0.0..100.0f64) {
            let before = inputs.size().workers;
            let mut roomier = inputs;
            for ceiling in &mut roomier.ceilings {
                if let Some(limit) = &mut ceiling.limit {
                    limit.value = limit.value.saturating_add(extra);
                }
            }
            roomier.cpus = quota(roomier.cpus.usable() + cpus);
            roomier.task_room = roomier.task_room.map(|room| room.saturating_add(extra));
            prop_assert!(roomier.size().workers >= before);
        }
    }
}
