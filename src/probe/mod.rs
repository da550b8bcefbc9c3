//! What this process really has: memory, CPUs and tasks, each number with the file it came from.
//!
//! [`probe`] turns files into [`Evidence`]; [`Evidence::resolve`] finds what binds. Nothing here
//! decides how many workers that makes. A file that is missing, unreadable or malformed is a
//! warning, never an error and never a panic. Depends on `units` alone.

mod dynos;
mod ecs;
#[cfg(feature = "launcher")]
mod gauge;
mod host;
mod levels;
mod locate;
mod machine;
mod mounts;
#[cfg(feature = "launcher")]
mod oom;
mod others;
pub(crate) mod parse;
mod platform;
mod pretend;
mod resources;
mod rlimits;
mod surroundings;

use std::path::Path;
#[cfg(feature = "launcher")]
use std::path::PathBuf;

pub use dynos::{DYNOS, Dyno};
pub use host::Host;
pub use levels::{Fact, MemoryLevel, TaskLevel};
pub use machine::Machine;
pub use others::Others;
pub use parse::CpuSet;
pub use resources::{Ceiling, Cpu, Memory, Resources, Tasks};
pub use surroundings::Surrounding;

#[cfg(feature = "launcher")]
pub(crate) use gauge::{Gauge, Level, Notices, Reading};
#[cfg(feature = "launcher")]
pub(crate) use host::{path_of, show};
#[cfg(feature = "launcher")]
pub(crate) use mounts::LAUNCHER_GROUP;
#[cfg(feature = "launcher")]
pub(crate) use mounts::unescape;
#[cfg(feature = "launcher")]
pub(crate) use oom::{OomCause, OomLevel, oom_level, oom_levels};

use crate::units::Fraction;
use levels::Reader;
use locate::{Fit, Place, locate};
pub(crate) use mounts::Controller;
#[cfg(feature = "launcher")]
use mounts::Version;
use mounts::{Membership, Mount, parse_mountinfo};

/// Everything the probe found, before any of it is weighed.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Our own group first, then those above it.
    pub memory: Vec<MemoryLevel>,
    /// CPU quotas, as CPUs, of all levels that have one.
    pub quotas: Vec<Fact<Fraction>>,
    /// The CPUs that the cpuset controller allows.
    pub cpuset: Option<Fact<CpuSet>>,
    /// Task limits of all levels that have one.
    pub tasks: Vec<TaskLevel>,
    /// The machine around.
    pub machine: Machine,
    /// The most memory that one process may have, whatever the groups allow.
    pub per_process: Option<Fact<u64>>,
    /// What all of that is on.
    pub surroundings: Vec<Surrounding>,
    /// What was odd and how it was treated, one sentence each.
    pub warnings: Vec<String>,
}

/// Reads `host`. Takes about ten small files per cgroup level and never fails.
#[must_use]
pub fn probe(host: &Host) -> Evidence {
    let mut reader = Reader { host, warnings: Vec::new() };
    let membership = reader.content(Path::new("/proc/self/cgroup"));
    let ours = Membership::parse(membership.as_deref().unwrap_or_default());
    let mountinfo = reader.content(Path::new("/proc/self/mountinfo")).unwrap_or_default();
    let mounts = mounts_of(host, &mountinfo);
    let place = |controller| locate(host, &ours, &mounts, controller);
    let (memory, cpu) = (place(Controller::Memory), place(Controller::Cpu));
    let evidence = Evidence {
        quotas: cpu.as_ref().map(|place| reader.cpu(place)).unwrap_or_default(),
        cpuset: place(Controller::Cpuset).and_then(|place| reader.cpuset(&place)),
        tasks: place(Controller::Pids).map(|place| reader.tasks(&place)).unwrap_or_default(),
        memory: memory.as_ref().map(|place| reader.memory(place)).unwrap_or_default(),
        machine: Machine::probe(&mut reader),
        ..Evidence::default()
    };
    let limits = host.read(Path::new(rlimits::LIMITS)).unwrap_or_default();
    let tasks = rlimits::tasks(&mut reader, &limits);
    let mut warnings = reader.warnings;
    let mut doubts: Vec<_> = memory.iter().chain(&cpu).filter_map(doubt).collect();
    doubts.dedup();
    warnings.extend(doubts);
    let mut evidence = Evidence { warnings, ..evidence };
    evidence.tasks.extend(tasks);
    evidence.per_process = rlimits::memory(&limits);
    platform::overlay(host, &mut evidence);
    ecs::overlay(host, &mut evidence);
    let limit =
        evidence.memory.iter().filter_map(|level| level.limit.as_ref()).map(|l| l.value).min();
    evidence.surroundings = surroundings::find(host, &mountinfo, limit);
    evidence
}

/// What is mounted, as far as it is what it says.
fn mounts_of(host: &Host, mountinfo: &[u8]) -> Vec<Mount> {
    let mut mounts = parse_mountinfo(mountinfo);
    if host.is_live() {
        mounts.retain(machine::is_what_it_says);
    }
    mounts
}

#[cfg(feature = "launcher")]
/// The groups that we are in, and where they can be seen.
fn membership(host: &Host) -> (Membership, Vec<Mount>) {
    let read = |path: &str| host.read(Path::new(path)).unwrap_or_default();
    let ours = Membership::parse(&read("/proc/self/cgroup"));
    (ours, mounts_of(host, &read("/proc/self/mountinfo")))
}

#[cfg(feature = "launcher")]
/// The directories of one controller as the probe finds them, our own group first.
pub(crate) fn chain(host: &Host, controller: Controller) -> Vec<PathBuf> {
    chains(host)(controller)
}

#[cfg(feature = "launcher")]
/// The same for any controller, with one look at where we are.
fn chains(host: &Host) -> impl Fn(Controller) -> Vec<PathBuf> {
    let (ours, mounts) = membership(host);
    move |controller| {
        locate(host, &ours, &mounts, controller).map(|place| place.chain).unwrap_or_default()
    }
}

#[cfg(feature = "launcher")]
/// Our own group of the memory controller, as `/proc/self/cgroup` calls it.
pub(crate) fn memory_path(host: &Host) -> Option<String> {
    let ours = Membership::parse(&host.read(Path::new("/proc/self/cgroup")).ok()?);
    let path = |version| ours.path(version, Controller::Memory);
    path(Version::V1).or(path(Version::V2)).map(|path| String::from_utf8_lossy(path).into_owned())
}

#[cfg(feature = "launcher")]
/// Our own group and those above it, where memory is a matter of cgroup v2; else why they cannot be had.
pub(crate) fn unified(host: &Host) -> Result<Vec<PathBuf>, &'static str> {
    let (ours, mounts) = membership(host);
    match locate(host, &ours, &mounts, Controller::Memory) {
        None => Err("no cgroup is mounted here"),
        Some(place) if place.version == Version::V1 => {
            Err("memory is in cgroup v1 here, and only v2 can be shared out")
        }
        Some(place) if !matches!(place.fit, Fit::Exact | Fit::ByPid) => {
            Err("our own cgroup directory cannot be seen")
        }
        Some(place) => Ok(place.chain),
    }
}

#[cfg(feature = "launcher")]
/// The files that hold the limits of all levels, as far as they are there.
pub(crate) fn limit_files(host: &Host) -> Vec<PathBuf> {
    let kinds: [(Controller, &[&str]); 4] = [
        (
            Controller::Memory,
            &["memory.max", "memory.high", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"],
        ),
        (Controller::Cpu, &["cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"]),
        (Controller::Cpuset, &["cpuset.cpus"]),
        (Controller::Pids, &["pids.max"]),
    ];
    let chain = chains(host);
    let mut found = Vec::new();
    for (controller, names) in kinds {
        for dir in chain(controller) {
            let files = names.iter().map(|name| dir.join(name));
            found.extend(files.filter(|file| host.read(file).is_ok()));
        }
    }
    found
}

/// What a reader of the report must know about how the group was found.
fn doubt(place: &Place) -> Option<String> {
    let at = place.chain.first().map(|dir| dir.display().to_string()).unwrap_or_default();
    match place.fit {
        Fit::Exact | Fit::Default => None,
        Fit::Outside => Some(
            "our cgroup lies outside of what is mounted here; its limits cannot be seen and none is taken"
                .to_owned(),
        ),
        Fit::ByPid => Some(format!(
            "our cgroup lies below its mount under an unknown name; {at} lists this process"
        )),
        Fit::Guess => Some(format!(
            "our own cgroup directory cannot be seen (moved, removed or hidden); limits are taken from {at} upwards and a tighter one may exist"
        )),
    }
}

/// Every parser of kernel text, for the fuzz targets.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &[u8]) {
    use parse::{CpuSet, cfs, cpu_max, keyed, limit, meminfo, status_field};
    let ours = Membership::parse(text);
    for controller in [Controller::Memory, Controller::Cpu, Controller::Cpuset, Controller::Pids] {
        let _ = ours.joined(controller);
    }
    let _ = (parse_mountinfo(text), mounts::unescape(text));
    let _ = (limit(text), cpu_max(text), cfs(text, Some(text)), cfs(b"1", Some(text)));
    let _ = (keyed(text, "inactive_file"), meminfo(text, "MemTotal"), status_field(text, "Uid"));
    let (list, mask) = (CpuSet::from_list(text), CpuSet::from_mask(text));
    if let (Some(list), Some(mask)) = (list, mask) {
        assert!(list.intersect(&mask).count() <= list.count());
    }
    let _ = rlimits::memory(text);
}

#[cfg(all(test, feature = "launcher"))]
mod tests {
    use super::*;

    /// A mount that is older than our cgroup namespace: our group has no name there but its members.
    #[test]
    fn our_leaf_hides_no_level_from_us() {
        let files = [
            ("/proc/self/stat", "7 (throng-rs) S 1"),
            ("/proc/self/cgroup", "0::/throng-rs.launcher\n"),
            ("/proc/self/mountinfo", "1 0 0:1 /../.. /sys/fs/cgroup rw - cgroup2 cgroup rw"),
            ("/proc/meminfo", "MemTotal: 8388608 kB\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "268435456\n"),
            ("/sys/fs/cgroup/a/b/throng-rs.launcher/cgroup.procs", "7\n"),
            ("/sys/fs/cgroup/a/b/throng-rs.launcher/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/c/throng-rs.launcher/cgroup.procs", "8\n"),
        ];
        let host = Host::from_files(files);
        let dirs = ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"].map(PathBuf::from);
        assert_eq!(unified(&host), Ok(dirs.to_vec()));
        assert_eq!(Resources::of(&host).memory.limit.unwrap().value, 256 << 20);
    }
}
