//! What one cgroup directory says. The two generations have other names for the same facts; both
//! fill the same structures, so that everything behind this module knows levels and no versions.
//!
//! Names and meanings: the kernel's `cgroup-v2.rst`, `cgroup-v1/memory.rst` and `scheduler/sched-bwc.rst`.

use std::io;
use std::path::Path;

use super::host::{Host, show};
use super::locate::Place;
use super::mounts::Version;
use super::parse::{self, CpuSet, Limit, keyed};
use crate::units::Fraction;

/// A value with the file that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact<T> {
    /// What the file says.
    pub value: T,
    /// The file's absolute path as the process sees it, `env:NAME` or `flag:--NAME`.
    pub source: String,
}

/// Memory at one level of the hierarchy. Sizes in bytes.
#[derive(Clone, Debug, Default)]
pub struct MemoryLevel {
    /// The directory.
    pub dir: String,
    /// Where the kernel kills.
    pub limit: Option<Fact<u64>>,
    /// Where the kernel throttles.
    pub high: Option<Fact<u64>>,
    /// How much swap this level may use; `None` where it has no such file.
    pub swap: Option<u64>,
    /// What is charged to this level, page cache included.
    pub current: Option<Fact<u64>>,
    /// Page cache that can be dropped at once.
    pub inactive_file: u64,
    /// Shared memory and files of a `tmpfs`; `None` where the kernel does not count them.
    pub shmem: Option<u64>,
    /// Kernel caches of which about half can be dropped.
    pub slab_reclaimable: u64,
    /// Whether an out-of-memory kill takes the whole group.
    pub oom_group: bool,
}

impl MemoryLevel {
    /// What is used and cannot be given back at once, in bytes: the counters are not read in one
    /// instant, so the difference saturates.
    #[must_use]
    pub fn working_set(&self) -> u64 {
        let reclaimable = self.inactive_file.saturating_add(self.slab_reclaimable / 2);
        let current = self.current.as_ref().map_or(0, |current| current.value);
        current.saturating_sub(reclaimable)
    }
}

/// Tasks (processes and threads) at one level.
#[derive(Clone, Debug)]
pub struct TaskLevel {
    /// How many there may be.
    pub limit: Fact<u64>,
    /// How many there are.
    pub current: u64,
}

/// Reads files and keeps what is odd about them.
pub(crate) struct Reader<'a> {
    pub(crate) host: &'a Host,
    pub(crate) warnings: Vec<String>,
}

impl Reader<'_> {
    /// The content, or nothing: a missing file is no constraint, an unreadable one is a warning.
    pub(crate) fn content(&mut self, path: &Path) -> Option<Vec<u8>> {
        match self.host.read(path) {
            Ok(content) => Some(content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.warnings.push(format!(
                    "{} could not be read ({error}) and is left out",
                    path.display()
                ));
                None
            }
        }
    }

    fn parsed<T>(
        &mut self,
        path: &Path,
        parse: impl FnOnce(&mut Self, &[u8]) -> Limit<T>,
    ) -> Option<Fact<T>> {
        let content = self.content(path)?;
        match parse(self, &content) {
            Limit::At(value) => Some(Fact { value, source: path.display().to_string() }),
            Limit::Unlimited => None,
            Limit::Malformed => {
                let text = show(&content);
                self.warnings.push(format!(
                    "{} holds \"{text}\", which is no limit, and is ignored",
                    path.display()
                ));
                None
            }
        }
    }

    fn limit(&mut self, path: &Path) -> Option<Fact<u64>> {
        self.parsed(path, |_, text| parse::limit(text))
    }

    /// A counter that only refines the answer: silent where it is not there.
    fn counter(&mut self, path: &Path) -> Option<u64> {
        parse::number(parse::trim(&self.host.read(path).ok()?))
    }

    fn sourced(&mut self, path: &Path) -> Option<Fact<u64>> {
        let value = self.counter(path)?;
        Some(Fact { value, source: path.display().to_string() })
    }

    /// Memory at every level of `place`, our own first.
    pub(crate) fn memory(&mut self, place: &Place) -> Vec<MemoryLevel> {
        match place.version {
            Version::V2 => place.chain.iter().map(|dir| self.memory_v2(dir)).collect(),
            Version::V1 => self.memory_v1(place),
        }
    }

    fn memory_v2(&mut self, dir: &Path) -> MemoryLevel {
        let stat = self.host.read(&dir.join("memory.stat")).unwrap_or_default();
        // A proposed kernel file with the minimum over all levels, also the invisible ones.
        let effective = self.limit(&dir.join("memory.max.effective"));
        let limit = tighter(effective, self.limit(&dir.join("memory.max")));
        let swap = self.host.read(&dir.join("memory.swap.max")).ok();
        MemoryLevel {
            dir: dir.display().to_string(),
            limit,
            high: self.limit(&dir.join("memory.high")),
            swap: swap.and_then(|text| match parse::limit(&text) {
                Limit::At(bytes) => Some(bytes),
                Limit::Unlimited => Some(u64::MAX),
                Limit::Malformed => None,
            }),
            current: self.sourced(&dir.join("memory.current")),
            inactive_file: keyed(&stat, "inactive_file").unwrap_or(0),
            shmem: keyed(&stat, "shmem"),
            slab_reclaimable: keyed(&stat, "slab_reclaimable").unwrap_or(0),
            oom_group: self.counter(&dir.join("memory.oom.group")) == Some(1),
        }
    }

    fn memory_v1(&mut self, place: &Place) -> Vec<MemoryLevel> {
        let mut levels = Vec::new();
        // Without it (kernels before 5.11 allowed that) a parent's limit does not count our pages.
        let nested = |this: &mut Self, dir: &Path| {
            this.counter(&dir.join("memory.use_hierarchy")) != Some(0)
        };
        let mut hierarchical = None;
        let mut own = true;
        for (depth, dir) in place.chain.iter().enumerate() {
            // A level is charged to its parent where the parent's flag says so (mem_cgroup_css_alloc).
            let flag = nested(self, dir);
            if depth > 0 && !(own && flag) {
                break;
            }
            own = flag;
            let (mut level, stat) = self.memory_v1_level(dir);
            if depth == 0 {
                let file = dir.join("memory.stat");
                hierarchical = keyed(&stat, "hierarchical_memory_limit")
                    .map(|value| Fact { value, source: file.display().to_string() });
                level.limit = tighter(level.limit, hierarchical.clone());
            } else if let (Some(limit), Some(least)) = (&level.limit, &hierarchical)
                && limit.value < least.value
            {
                // The kernel's own minimum is above this: somewhere between, the hierarchy is cut.
                break;
            }
            levels.push(level);
        }
        levels
    }

    fn memory_v1_level(&mut self, dir: &Path) -> (MemoryLevel, Vec<u8>) {
        let stat = self.host.read(&dir.join("memory.stat")).unwrap_or_default();
        let limit = self.limit(&dir.join("memory.limit_in_bytes"));
        let with_swap_file = dir.join("memory.memsw.limit_in_bytes");
        let with_swap = self.counter(&with_swap_file);
        let swap =
            with_swap.zip(limit.as_ref()).map(|(both, limit)| both.saturating_sub(limit.value));
        // Memory and swap together cannot be less than memory alone; an emulation that says so means it.
        let both =
            with_swap.map(|value| Fact { value, source: with_swap_file.display().to_string() });
        let limit = if limit.is_some() { tighter(limit, both) } else { limit };
        // The total_ keys include the groups below, as usage_in_bytes does.
        let total = |key: &str| keyed(&stat, &format!("total_{key}")).or_else(|| keyed(&stat, key));
        let level = MemoryLevel {
            dir: dir.display().to_string(),
            swap,
            current: self.sourced(&dir.join("memory.usage_in_bytes")),
            inactive_file: total("inactive_file").unwrap_or(0),
            shmem: total("shmem"),
            slab_reclaimable: total("slab_reclaimable").unwrap_or(0),
            limit,
            high: None,
            oom_group: false,
        };
        (level, stat)
    }

    /// The CPU quotas of all levels.
    pub(crate) fn cpu(&mut self, place: &Place) -> Vec<Fact<Fraction>> {
        let quotas = place.chain.iter().filter_map(|dir| match place.version {
            Version::V2 => self.parsed(&dir.join("cpu.max"), |_, text| parse::cpu_max(text)),
            Version::V1 => self.parsed(&dir.join("cpu.cfs_quota_us"), |this, quota| {
                let period = this.host.read(&dir.join("cpu.cfs_period_us")).ok();
                parse::cfs(quota, period.as_deref())
            }),
        });
        quotas.collect()
    }

    /// The CPUs that the nearest level with such a file allows.
    pub(crate) fn cpuset(&mut self, place: &Place) -> Option<Fact<CpuSet>> {
        let names: &[&str] = match place.version {
            Version::V2 => &["cpuset.cpus.effective"],
            Version::V1 => &["cpuset.effective_cpus", "cpuset.cpus"],
        };
        let files = place.chain.iter().flat_map(|dir| names.iter().map(move |name| dir.join(name)));
        for file in files {
            let Some(text) = self.content(&file) else { continue };
            match CpuSet::from_list(&text) {
                // Empty means that the controller is off, not that there are no CPUs.
                Some(set) if set.count() == 0 => {}
                Some(value) => return Some(Fact { value, source: file.display().to_string() }),
                None => self.warnings.push(format!(
                    "{} holds \"{}\", which is no list of CPUs, and is ignored",
                    file.display(),
                    show(&text)
                )),
            }
        }
        None
    }

    /// The task limits of all levels.
    pub(crate) fn tasks(&mut self, place: &Place) -> Vec<TaskLevel> {
        let levels = place.chain.iter().filter_map(|dir| {
            let limit = self.limit(&dir.join("pids.max"))?;
            Some(TaskLevel { limit, current: self.counter(&dir.join("pids.current")).unwrap_or(0) })
        });
        levels.collect()
    }
}

fn tighter(a: Option<Fact<u64>>, b: Option<Fact<u64>>) -> Option<Fact<u64>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.value < a.value { b } else { a }),
        (a, b) => a.or(b),
    }
}
