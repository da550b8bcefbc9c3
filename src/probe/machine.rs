//! The machine under the groups: memory, swap and the CPUs we may run on.

use std::path::Path;

use nix::sched::sched_getaffinity;
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;

use super::levels::{Fact, Reader};
use super::mounts::{Mount, Version};
use super::parse::{CpuSet, meminfo, status_field};

pub(crate) const MEMINFO: &str = "/proc/meminfo";
const STATUS: &str = "/proc/self/status";
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// Facts about the whole machine. Sizes in bytes.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// All memory.
    pub memory: Option<Fact<u64>>,
    /// What could be had without swapping.
    pub available: Option<u64>,
    /// Shared memory and files of a `tmpfs`.
    pub shmem: Option<u64>,
    /// All swap.
    pub swap: u64,
    /// CPUs that are switched on.
    pub online: Option<CpuSet>,
    /// CPUs that this process may run on.
    pub affinity: Option<Fact<CpuSet>>,
}

impl Machine {
    pub(crate) fn probe(reader: &mut Reader<'_>) -> Self {
        let mut machine = Self::default();
        machine.probe_memory(reader);
        machine.probe_cpus(reader);
        machine
    }

    pub(super) fn probe_memory(&mut self, reader: &mut Reader<'_>) {
        let text = reader.content(Path::new(MEMINFO)).unwrap_or_default();
        let field = |name| meminfo(&text, name);
        let mut total = field("MemTotal").filter(|total| *total > 0);
        let mut source = MEMINFO.to_owned();
        self.swap = field("SwapTotal").unwrap_or(0);
        self.shmem = field("Shmem");
        // Kernels before 3.14 and gVisor have no MemAvailable.
        self.available = field("MemAvailable").or_else(|| {
            let reclaimable =
                field("Cached").unwrap_or(0).saturating_add(field("Buffers").unwrap_or(0));
            let shared = field("Shmem").unwrap_or(0);
            Some(field("MemFree")?.saturating_add(reclaimable.saturating_sub(shared)))
        });
        // lxcfs fakes the file and not the system call; whichever says less binds.
        if reader.host.is_live()
            && let Ok(info) = nix::sys::sysinfo::sysinfo()
            && total.is_none_or(|total| info.ram_total() < total)
        {
            total = Some(info.ram_total());
            "sysinfo(2)".clone_into(&mut source);
        }
        if total.is_none() {
            reader
                .warnings
                .push(format!("{MEMINFO} names no total, so only cgroup limits are known"));
        }
        self.memory = total.map(|value| Fact { value, source });
    }

    fn probe_cpus(&mut self, reader: &mut Reader<'_>) {
        let online = reader.content(Path::new(ONLINE)).and_then(|text| CpuSet::from_list(&text));
        self.online = online.filter(|set| set.count() > 0);
        let fact = |value| Fact { value, source: STATUS.to_owned() };
        self.affinity = live_affinity(reader).map(fact).or_else(|| {
            let status = reader.content(Path::new(STATUS))?;
            let list = status_field(&status, "Cpus_allowed_list").and_then(CpuSet::from_list);
            let mask = || status_field(&status, "Cpus_allowed").and_then(CpuSet::from_mask);
            let allowed = list.filter(|set| set.count() > 0).or_else(mask)?;
            // The file lists CPUs that may never be plugged in; the system call does not.
            let plugged = self.online.as_ref().map(|online| allowed.intersect(online));
            let set = plugged.filter(|set| set.count() > 0).unwrap_or(allowed);
            (set.count() > 0).then(|| fact(set))
        });
    }
}

/// `None` where nix's mask of 1024 CPUs is too short for this kernel (EINVAL): the file has them all.
fn live_affinity(reader: &Reader<'_>) -> Option<CpuSet> {
    if !reader.host.is_live() {
        return None;
    }
    let mask = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut set = CpuSet::default();
    (0..nix::sched::CpuSet::count())
        .filter(|cpu| mask.is_set(*cpu).unwrap_or(false))
        .for_each(|cpu| set.insert(cpu));
    (set.count() > 0).then_some(set)
}

/// Whether what mountinfo promises is what the path leads to: something may lie over it.
pub(crate) fn is_what_it_says(mount: &Mount) -> bool {
    let Ok(info) = statfs(&mount.point) else { return true };
    match mount.version {
        Version::V1 => info.filesystem_type() == CGROUP_SUPER_MAGIC,
        Version::V2 => info.filesystem_type() == CGROUP2_SUPER_MAGIC,
    }
}
