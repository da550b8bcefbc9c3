//! Machines that nobody has: what if there were so much memory, so many CPUs?

use super::levels::Fact;
use super::resources::{Ceiling, Cpu, Memory, Resources, Tasks};
use crate::units::Fraction;

impl Resources {
    /// A container with a limit of `bytes` and a quota of `cpus`, nothing of it used, without swap, on
    /// a machine that has more of both.
    #[must_use]
    pub fn pretend(bytes: u64, cpus: Fraction) -> Self {
        let nothing = Memory {
            limit: None,
            high: None,
            ram: None,
            available: None,
            ceilings: Vec::new(),
            oom_group: false,
            per_process: None,
        };
        let nowhere = Cpu {
            quota: None,
            tightest: None,
            set: None,
            set_source: None,
            usable: 1.0,
            source: None,
        };
        let empty = Self {
            memory: nothing,
            cpu: nowhere,
            tasks: Tasks::default(),
            surroundings: Vec::new(),
            warnings: Vec::new(),
        };
        empty.pretend_memory(bytes, "pretended", false).pretend_cpus(cpus, "pretended")
    }

    /// The same machine with `bytes` of memory, nothing of it used, and swap or none; `source` says
    /// who wants that.
    #[must_use]
    pub fn pretend_memory(mut self, bytes: u64, source: &str, swap: bool) -> Self {
        let limit = Some(Fact { value: bytes, source: source.to_owned() });
        // Who is killed together is no matter of how much there is.
        let oom_group = self.memory.ceilings.iter().rev().find_map(|one| one.oom_group.clone());
        self.memory.ceilings = vec![Ceiling {
            oom_group,
            limit: limit.clone(),
            high: None,
            used: 0,
            used_source: None,
            swap,
            machine: false,
        }];
        self.memory.limit = limit;
        self.memory.high = None;
        self.memory.available = Some(bytes);
        self
    }

    /// The same machine with `cpus` CPUs (more or fewer than it has); `source` says who wants that.
    #[must_use]
    pub fn pretend_cpus(mut self, cpus: Fraction, source: &str) -> Self {
        self.cpu.quota = Some(Fact { value: cpus, source: source.to_owned() });
        self.cpu.tightest.clone_from(&self.cpu.quota);
        self.cpu.usable = cpus.as_f64();
        self.cpu.source = Some(source.to_owned());
        self
    }

    /// Whether pages can be swapped out before any limit is hit.
    #[must_use]
    pub fn swaps(&self) -> bool {
        self.memory.ceilings.iter().all(|ceiling| ceiling.swap)
    }
}
