//! What workers use, by one look at all processes: memory and CPU time of each process group.

use std::collections::HashMap;
use std::time::Duration;

/// One process group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Resident memory that no file backs, in bytes: what another worker would cost again.
    pub(crate) private: u64,
    /// Resident pages of files and shared memory, in bytes; most of it is there once for all workers.
    pub(crate) shared: u64,
    pub(crate) cpu: Duration,
    pub(crate) processes: u32,
}

/// All groups by the pid of their leader. What ends meanwhile is left out.
///
/// From `stat` and `statm` (`proc_pid_statm(5)`), which cost a hundredth of `smaps_rollup`; pages that
/// a fork still shares count as private, once in each process.
pub(crate) fn by_group() -> HashMap<i32, Usage> {
    let mut found: HashMap<i32, Usage> = HashMap::new();
    let Ok(all) = procfs::process::all_processes() else { return found };
    let page = procfs::page_size();
    let ticks = procfs::ticks_per_second().max(1);
    for process in all.flatten() {
        let (Ok(stat), Ok(memory)) = (process.stat(), process.statm()) else { continue };
        // Kernel threads are in group 0 and have no memory.
        if stat.pgrp == 0 {
            continue;
        }
        let group = found.entry(stat.pgrp).or_default();
        group.private += memory.resident.saturating_sub(memory.shared) * page;
        group.shared += memory.shared * page;
        group.cpu += Duration::from_millis((stat.utime + stat.stime) * 1000 / ticks);
        group.processes += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_group_is_there_and_has_memory() {
        let ours = by_group()[&nix::unistd::getpgrp().as_raw()];
        assert!(ours.private > 100_000 && ours.shared > 100_000 && ours.processes > 0, "{ours:?}");
    }
}
