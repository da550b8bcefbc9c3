//! Opinions that can be had on the spot: the kernel's mask, Rust's standard library, `sysinfo`. They
//! look at the real machine by themselves, so none is asked about a recorded one.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};

/// How many CPUs `sched_getaffinity(2)` allows; `None` where nix's mask of 1024 is too short.
pub(super) fn affinity() -> Option<u32> {
    let mask = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let cpus = (0..CpuSet::count()).filter(|cpu| mask.is_set(*cpu).unwrap_or(false)).count();
    u32::try_from(cpus).ok().filter(|cpus| *cpus > 0)
}

/// `std::thread::available_parallelism`. Not to be asked where its own reading would panic.
pub(super) fn parallelism() -> Option<u32> {
    let cpus = std::thread::available_parallelism().ok()?;
    u32::try_from(cpus.get()).ok()
}

/// What `sysinfo` says, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sysinfo {
    /// `System::total_memory`.
    pub(super) total: Option<u64>,
    /// `System::cgroup_limits`, which looks at the top of the mount alone.
    pub(super) system: Option<u64>,
    /// `Process::cgroup_limits` of this process.
    pub(super) process: Option<u64>,
}

pub(super) fn sysinfo() -> Sysinfo {
    let Ok(mut system) = System::new() else { return Sysinfo::default() };
    system.refresh_memory();
    let process = get_current_pid().ok().and_then(|pid| {
        let one = ProcessesToUpdate::Some(&[pid]);
        system.refresh_processes_specifics(one, false, ProcessRefreshKind::nothing());
        system.process(pid)?.cgroup_limits().map(|limits| limits.total_memory)
    });
    Sysinfo {
        total: Some(system.total_memory()).filter(|total| *total > 0),
        system: system.cgroup_limits().map(|limits| limits.total_memory),
        process,
    }
}
