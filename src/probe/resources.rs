//! From evidence to what binds: the tightest limit of each kind, and the room left under each.
//!
//! Pure arithmetic. A limit at or above the machine's memory binds nothing, which covers every way
//! in which kernels write "unlimited" (`PAGE_COUNTER_MAX` at any page size, 2^63-1, a 1 TiB default).

use super::levels::{Fact, MemoryLevel};
use super::machine::MEMINFO;
use super::{CpuSet, Evidence, Host, Surrounding, probe};
use crate::units::Fraction;

/// What this process has.
#[derive(Clone, Debug)]
pub struct Resources {
    /// Memory, in bytes.
    pub memory: Memory,
    /// CPUs, as a fraction.
    pub cpu: Cpu,
    /// Processes and threads.
    pub tasks: Tasks,
    /// What all of that is on, for the explanation alone.
    pub surroundings: Vec<Surrounding>,
    /// What was odd and how it was treated.
    pub warnings: Vec<String>,
}

impl Resources {
    /// What a process on `host` has: reads about ten small files for each cgroup level. Never fails;
    /// what could not be read or made no sense is in `warnings`.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        probe(host).resolve()
    }

    /// What this process has.
    #[must_use]
    pub fn detect() -> Self {
        Self::of(&Host::live())
    }

    /// How many threads keep the CPUs busy in one process, at least 1: the CPUs rounded up, because a
    /// thread costs no memory worth counting (Go's and the JVM's rule too), but no more than the task
    /// limit lets start.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float casts saturate"
    )]
    pub fn threads(&self) -> usize {
        let room = self.tasks.room.map_or(usize::MAX, |room| room.try_into().unwrap_or(usize::MAX));
        (self.cpu.usable.ceil() as usize).min(room).max(1)
    }
}

/// Memory in bytes.
#[derive(Clone, Debug)]
pub struct Memory {
    /// The tightest hard limit below the machine's memory.
    pub limit: Option<Fact<u64>>,
    /// The tightest level above which the kernel throttles.
    pub high: Option<Fact<u64>>,
    /// The machine's memory.
    pub ram: Option<Fact<u64>>,
    /// The smallest room over all levels and the machine.
    pub available: Option<u64>,
    /// Everything that can run out, each with what is used of it already: our own group first, the
    /// machine last. Also those that do not bind now, because the machine itself has less.
    pub ceilings: Vec<Ceiling>,
    /// Whether an out-of-memory kill takes all workers at once.
    pub oom_group: bool,
    /// The most that one process may have, where there is such a limit (`RLIMIT_AS`, `RLIMIT_DATA`).
    pub per_process: Option<Fact<u64>>,
}

/// One amount of memory that can run out: a cgroup level, or the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceiling {
    /// Where the kernel kills (or the machine ends).
    pub limit: Option<Fact<u64>>,
    /// Where the kernel throttles.
    pub high: Option<Fact<u64>>,
    /// What others use of it and will not give back, in bytes.
    pub used: u64,
    /// What tells how much is used.
    pub used_source: Option<String>,
    /// Whether pages can be swapped out before it is hit.
    pub swap: bool,
    /// The `memory.oom.group` by which a kill for want of this takes a whole group of ours, where there is one.
    pub oom_group: Option<String>,
    /// Whether it is the machine itself; no cgroup limit at or above it binds.
    pub machine: bool,
}

/// CPUs.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// The tightest quota below the machine's CPUs; CPUs per wall-clock time.
    pub quota: Option<Fact<Fraction>>,
    /// The tightest quota, also where it is above the machine's CPUs and binds nothing now.
    pub tightest: Option<Fact<Fraction>>,
    /// How many CPUs this process may run on: affinity and cpuset together.
    pub set: Option<u32>,
    /// What named the narrower of both.
    pub set_source: Option<String>,
    /// The smaller of both, never rounded.
    pub usable: f64,
    /// What gave `usable`.
    pub source: Option<String>,
}

/// Processes and threads together.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    /// The limit with the least room.
    pub limit: Option<Fact<u64>>,
    /// How many more may be started.
    pub room: Option<u64>,
}

impl Evidence {
    /// Weighs the evidence: the tightest limits, the room left, the CPUs that can be used.
    #[must_use]
    pub fn resolve(self) -> Resources {
        let mut warnings = self.warnings.clone();
        let cpu = self.cpu(&mut warnings);
        let memory = self.memory();
        let tightest =
            self.tasks.iter().min_by_key(|level| level.limit.value.saturating_sub(level.current));
        let tasks = tightest.map_or_else(Tasks::default, |level| Tasks {
            limit: Some(level.limit.clone()),
            room: Some(level.limit.value.saturating_sub(level.current)),
        });
        Resources { memory, cpu, tasks, surroundings: self.surroundings, warnings }
    }

    fn memory(&self) -> Memory {
        let ram = self.machine.memory.clone();
        let binds = |fact: &&Fact<u64>| ram.as_ref().is_none_or(|ram| fact.value < ram.value);
        let least = |pick: fn(&MemoryLevel) -> Option<&Fact<u64>>| {
            self.memory.iter().filter_map(pick).filter(binds).min_by_key(|fact| fact.value).cloned()
        };
        let limit = least(|level| level.limit.as_ref());
        let room = |level: &MemoryLevel| {
            Some(level.limit.as_ref()?.value.saturating_sub(level.working_set()))
        };
        let available = self.memory.iter().filter_map(room).chain(self.machine.available).min();

        // Swap helps where the machine has some and every level lets us use it. A level without that
        // file has the swap controller off, and is taken for one that grants nothing beyond its limit.
        let allowed = self.memory.iter().filter_map(|level| level.swap).min();
        let swaps =
            |unknown: bool| self.machine.swap > 0 && allowed.map_or(unknown, |most| most > 0);
        // The kernel kills the highest group that says so, up to the level that ran out.
        let killed = |levels: &[MemoryLevel]| {
            let group = levels.iter().rev().find(|level| level.oom_group)?;
            Some(format!("{}/memory.oom.group", group.dir.trim_end_matches('/')))
        };
        let mut ceilings: Vec<Ceiling> = self
            .memory
            .iter()
            .enumerate()
            .filter(|(_, level)| level.limit.is_some() || level.high.is_some())
            .map(|(depth, level)| Ceiling {
                oom_group: killed(&self.memory[..=depth]),
                limit: level.limit.clone(),
                high: level.high.clone(),
                used: level.working_set(),
                used_source: level.current.as_ref().map(|current| current.source.clone()),
                swap: swaps(false),
                machine: false,
            })
            .collect();
        if let Some(ram) = &ram {
            let used = self.machine.available.map_or(0, |free| ram.value.saturating_sub(free));
            let limit = Some(ram.clone());
            let used_source = self.machine.available.map(|_| MEMINFO.to_owned());
            let swap = swaps(true);
            let oom_group = killed(&self.memory);
            let machine = true;
            ceilings.push(Ceiling {
                limit,
                high: None,
                used,
                used_source,
                swap,
                oom_group,
                machine,
            });
        }
        Memory {
            high: least(|level| level.high.as_ref()),
            oom_group: self.memory.iter().any(|level| level.oom_group),
            per_process: self.per_process.clone(),
            limit,
            ram,
            available,
            ceilings,
        }
    }

    fn cpu(&self, warnings: &mut Vec<String>) -> Cpu {
        let machine = &self.machine;
        let set = self.usable_set(warnings);
        let online = machine.online.as_ref().map(CpuSet::count);
        let most = online.into_iter().chain(set.as_ref().map(|set| set.value.count())).max();
        let binds = |quota: &&Fact<Fraction>| {
            most.is_none_or(|most| quota.value.as_f64() < f64::from(most))
        };
        let tightest = self.quotas.iter().min_by_key(|quota| quota.value).cloned();
        let quota = tightest.as_ref().filter(binds).cloned();
        let count = set.as_ref().map(|set| set.value.count());
        let set_source = set.as_ref().map(|set| set.source.clone());
        let by_quota = quota.as_ref().map(|quota| (quota.value.as_f64(), quota.source.clone()));
        let by_set = set.map(|set| (f64::from(set.value.count()), set.source));
        let (usable, source) = match (by_quota, by_set) {
            (Some(quota), Some(set)) if set.0 < quota.0 => (set.0, Some(set.1)),
            (Some(quota), _) => (quota.0, Some(quota.1)),
            (None, Some(set)) => (set.0, Some(set.1)),
            (None, None) => {
                warnings.push("no file names the CPUs of this process; one is assumed".to_owned());
                (1.0, None)
            }
        };
        Cpu { quota, tightest, set: count, set_source, usable, source }
    }

    fn usable_set(&self, warnings: &mut Vec<String>) -> Option<Fact<CpuSet>> {
        let online = self
            .machine
            .online
            .clone()
            .map(|value| Fact { value, source: "/sys/devices/system/cpu/online".to_owned() });
        match (self.machine.affinity.clone().or(online), self.cpuset.clone()) {
            (Some(affinity), Some(cpuset)) => {
                let both = affinity.value.intersect(&cpuset.value);
                if both.count() == 0 {
                    warnings.push(format!(
                        "{} and {} have no CPU in common; the latter is ignored",
                        affinity.source, cpuset.source
                    ));
                    return Some(affinity);
                }
                let narrower = both.count() < affinity.value.count();
                let source = if narrower { cpuset.source } else { affinity.source };
                Some(Fact { value: both, source })
            }
            (affinity, cpuset) => affinity.or(cpuset),
        }
    }
}
