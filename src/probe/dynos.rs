//! Heroku's dynos: what each size of them has.

/// One size of dyno, with the figures of Heroku's "Dyno types" and its Python buildpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dyno {
    /// Its name, or names where several are the same machine.
    pub name: &'static str,
    /// Memory quota in MiB; above it a dyno swaps (R14).
    pub memory_mib: u64,
    /// CPUs that `nproc` shows.
    pub cpus: u32,
    /// Whether the CPUs are shared with other dynos.
    pub shared_cpus: bool,
    /// Memory in MiB at which it is killed (R15).
    pub kill_mib: u64,
}

const fn dyno(name: &'static str, memory_mib: u64, cpus: u32, kill_mib: u64) -> Dyno {
    Dyno { name, memory_mib, cpus, shared_cpus: false, kill_mib }
}

/// Every size, smallest first.
pub const DYNOS: &[Dyno] = &[
    Dyno { shared_cpus: true, ..dyno("Eco Basic Standard-1X", 512, 8, 1024) },
    Dyno { shared_cpus: true, ..dyno("Standard-2X", 1024, 8, 2048) },
    dyno("Performance-M", 2560, 2, 5120),
    dyno("Performance-L", 14_336, 8, 28_672),
    dyno("Performance-L-RAM", 30_720, 4, 36_864),
    dyno("Performance-XL", 63_488, 8, 75_776),
    dyno("Performance-2XL", 129_024, 16, 154_624),
];
