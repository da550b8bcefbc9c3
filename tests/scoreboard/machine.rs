//! A recorded machine and what is right on it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// One folder of `fixtures/hosts`.
pub(crate) struct Machine {
    pub(crate) name: String,
    folder: PathBuf,
    pub(crate) environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// CPUs that the process may run on, and how many ids the kernel has.
    allowed: Vec<usize>,
    ids: usize,
    /// The CPUs that can be used at one time, a fraction.
    pub(crate) cpus: f64,
    /// The memory limit in bytes, where one binds.
    pub(crate) memory: Option<u64>,
    /// The machine's memory in bytes: a limit that is not below it is none.
    pub(crate) ram: u64,
}

/// All of them, by name.
pub(crate) fn all() -> Vec<Machine> {
    let hosts = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/hosts")).unwrap();
    let mut folders: Vec<PathBuf> = hosts.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders.into_iter().map(Machine::read).collect()
}

impl Machine {
    fn read(folder: PathBuf) -> Self {
        let text = |path: &str| {
            String::from_utf8_lossy(&fs::read(folder.join(path)).unwrap_or_default()).into_owned()
        };
        let expected: Value = serde_json::from_str(&text("expect.json")).unwrap();
        let status = text("proc/self/status");
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let mut recorded = field("Cpus_allowed_list:").map(list).unwrap_or_default();
        if recorded.is_empty() {
            recorded = field("Cpus_allowed:").map(mask).unwrap_or_default();
        }
        let online = list(&text("sys/devices/system/cpu/online"));
        let ids = recorded.iter().chain(&online).max().map_or(1, |last| last + 1);
        let plugged: Vec<usize> =
            recorded.iter().copied().filter(|cpu| online.contains(cpu)).collect();
        let mut allowed = if plugged.is_empty() { online } else { plugged };
        if allowed.is_empty() {
            allowed = recorded;
        }
        // A kernel never lets a process run outside of its cpuset, which a recording may have beside
        // a wider list; of what is expected only how many there are is looked at.
        match expected["cpu_set"].as_u64() {
            Some(set) => allowed.truncate(usize::try_from(set).unwrap()),
            None => {
                for set in cpusets_v1(&folder.join("sys/fs/cgroup/cpuset")) {
                    allowed.retain(|cpu| set.contains(cpu));
                }
            }
        }
        assert!(!allowed.is_empty(), "{}: no CPU is recorded", folder.display());
        #[expect(clippy::cast_precision_loss, reason = "at most some thousands")]
        let set = allowed.len() as f64;
        let environment = fs::read(folder.join("proc/self/environ")).unwrap_or_default();
        let pairs = environment.split(|b| *b == 0).filter_map(|pair| {
            let equals = pair.iter().position(|b| *b == b'=').filter(|at| *at > 0)?;
            Some((pair[..equals].to_vec(), pair[equals + 1..].to_vec()))
        });
        let ram = text("proc/meminfo").lines().find_map(|line| {
            line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok()
        });
        Self {
            name: folder.file_name().unwrap().to_str().unwrap().to_owned(),
            environment: pairs.collect(),
            allowed,
            ids,
            cpus: expected["cpu_quota"].as_f64().map_or(set, |quota| quota.min(set)),
            memory: expected["memory_limit"].as_u64(),
            ram: ram.map_or(u64::MAX, |kib| kib.saturating_mul(1024)),
            folder,
        }
    }

    /// For the child: `IDS:0,1,2`.
    pub(crate) fn cpus_argument(&self) -> String {
        let allowed: Vec<String> = self.allowed.iter().map(usize::to_string).collect();
        format!("{}:{}", self.ids, allowed.join(","))
    }

    /// Its files, in a folder that a child may change.
    pub(crate) fn copy_to(&self, folder: &Path) {
        // Whoever asks there is not the one who made it.
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
        copy(&self.folder, folder);
    }

    /// A whole number of CPUs is right where it is the exact one, rounded either way and at least 1.
    pub(crate) fn right_whole(&self, said: f64) -> bool {
        [self.cpus.floor(), self.cpus.ceil()].into_iter().any(|right| same(said, right.max(1.0)))
    }

    /// A fraction is right where it is the exact one.
    pub(crate) fn right_exact(&self, said: f64) -> bool {
        same(said, self.cpus)
    }

    /// A limit that is not below the machine's memory says that there is none.
    pub(crate) fn right_memory(&self, said: Option<u64>) -> bool {
        said.filter(|bytes| *bytes < self.ram) == self.memory
    }
}

fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * b.abs()
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            symlink(fs::read_link(path).unwrap(), target).unwrap();
        } else if kind.is_dir() && plays_unreadable(&path) {
            fs::write(&target, "").unwrap();
            fs::set_permissions(&target, Permissions::from_mode(0o000)).unwrap();
        } else if kind.is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&path, &target);
        } else {
            fs::copy(path, target).unwrap();
        }
    }
}

/// The lists of all levels of a v1 cpuset hierarchy; on v2 machines `expect.json` has the CPUs.
fn cpusets_v1(folder: &Path) -> Vec<Vec<usize>> {
    let mut found: Vec<_> =
        fs::read_to_string(folder.join("cpuset.cpus")).iter().map(|text| list(text)).collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(cpusets_v1(&entry.path()));
        }
    }
    found.retain(|set| !set.is_empty());
    found
}

/// In `fixtures/hosts` a folder in a file's place is a file that may not be read.
fn plays_unreadable(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let limit = ["memory.", "cpu.", "cpuset.", "pids."].iter().any(|start| name.starts_with(start));
    let own = path.parent().is_some_and(|folder| folder.ends_with("proc/self"));
    limit || (own && ["cgroup", "mountinfo", "status", "stat", "limits"].contains(&name))
}

/// The kernel's `0-3,8`; nothing where it is not that.
fn list(text: &str) -> Vec<usize> {
    let parts = text.trim().split(',').map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
    });
    parts
        .collect::<Option<Vec<_>>>()
        .map(|all| all.into_iter().flatten().collect())
        .unwrap_or_default()
}

/// The kernel's `00000000,000000ff`, highest first.
fn mask(text: &str) -> Vec<usize> {
    let digits: Vec<u32> = text.trim().chars().rev().filter_map(|c| c.to_digit(16)).collect();
    (0..digits.len() * 4).filter(|cpu| digits[cpu / 4] >> (cpu % 4) & 1 == 1).collect()
}
