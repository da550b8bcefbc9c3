//! Our own group, divided: its parts, what each may have, and how it is put back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::facts::{Facts, OURS};
use super::shares::{self, Shares};
use crate::fleet::WorkerKey;
use crate::probe::{Host, LAUNCHER_GROUP, parse};

/// What the groups of workers share out: memory is the point, CPU by equal weights where it is there.
const CONTROLLERS: [&str; 2] = ["memory", "cpu"];

/// Our own group, divided.
pub(super) struct Tree {
    pub(super) dir: PathBuf,
    /// What we let it hand on, and take back at the end.
    pub(super) enabled: Vec<String>,
    /// Whether it is ours to put back; not before a successor has come to stay.
    pub(super) owned: bool,
    pub(super) shares: Option<Shares>,
    pub(super) groups: BTreeMap<WorkerKey, Group>,
    /// Groups without a worker that somebody is still in.
    pub(super) lingering: Vec<PathBuf>,
}

/// One worker's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Group {
    pub(super) dir: PathBuf,
    pub(super) slot: u32,
    /// Its memory.max, bytes.
    pub(super) limit: Option<u64>,
    /// Kills that have been told of.
    #[serde(default)]
    pub(super) told: u64,
}

impl Tree {
    /// Gives each group its share: what is too much for a moment comes in steps, at the next looks.
    pub(super) fn share_out(&mut self, target: u32) {
        let Some(shares) = self.shares else { return };
        // A slot with two workers in a rollout counts once: there was room for both, or there were not two.
        let slots: BTreeSet<u32> = self.groups.values().map(|group| group.slot).collect();
        let workers = (slots.len() as u64).max(u64::from(target));
        let host = Host::live();
        let lost = self
            .lingering
            .iter()
            .filter_map(|dir| number(&host, &dir.join("memory.current")))
            .sum();
        let each = shares.each(workers, lost);
        for group in self.groups.values_mut().filter(|group| group.limit != Some(each)) {
            let limit = match group.limit {
                Some(now) if now > each => shares::next(now, each, in_use(&host, &group.dir)),
                _ => each,
            };
            if group.limit == Some(limit) {
                continue;
            }
            match bound(&group.dir, limit) {
                Ok(()) => group.limit = Some(limit),
                Err(error) => warn!(
                    event = "isolate",
                    worker = group.slot,
                    "worker {} keeps its old limit of memory: {error}",
                    group.slot
                ),
            }
        }
    }

    /// Removes the groups that nobody is in any more.
    pub(super) fn tidy(&mut self) {
        self.lingering.retain(|dir| match fs::remove_dir(dir) {
            Ok(()) => false,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        });
    }

    /// Puts everything back as it was.
    pub(super) fn put_back(&self) {
        // First, because a group that hands on controllers takes no processes.
        if let Err(error) = put(&self.dir, "cgroup.subtree_control", &order('-', &self.enabled)) {
            warn!(event = "isolate", "groups are left behind: {error}");
            return;
        }
        let host = Host::live();
        for dir in host.subdirectories(&self.dir, usize::MAX) {
            if dir.file_name().is_some_and(|name| name.as_bytes().starts_with(OURS.as_bytes())) {
                // We ourselves, and who was put beside us (`docker exec`).
                let members = host.read(&dir.join("cgroup.procs")).unwrap_or_default();
                for pid in String::from_utf8_lossy(&members).lines() {
                    // Who has just gone need not move.
                    let _ = put(&self.dir, "cgroup.procs", pid);
                }
                if let Err(error) = fs::remove_dir(&dir) {
                    warn!(event = "isolate", "{} is left behind: {error}", dir.display());
                }
            }
        }
    }
}

/// Moves us into a leaf, and lets the group hand on what the workers share.
pub(super) fn enter(facts: &Facts, shares: Option<Shares>) -> io::Result<Tree> {
    let dir = facts.dir.clone();
    let leaf = dir.join(LAUNCHER_GROUP);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(named(&leaf, &error));
        }
        _ => {}
    }
    let wanted = CONTROLLERS.iter().filter(|name| {
        facts.controllers.iter().any(|there| there == *name)
            && !facts.enabled.iter().any(|on| on == *name)
    });
    let mut enabled: Vec<String> = wanted.map(|name| (*name).to_owned()).collect();
    let entered = put(&leaf, "cgroup.procs", "0").and_then(|()| {
        let on = |enabled: &[String]| put(&dir, "cgroup.subtree_control", &order('+', enabled));
        on(&enabled).or_else(|_| {
            // The CPU controller refuses groups with real-time processes.
            enabled.retain(|name| name == "memory");
            on(&enabled)
        })
    });
    if let Err(error) = entered {
        let _ = put(&dir, "cgroup.procs", "0");
        let _ = fs::remove_dir(&leaf);
        return Err(error);
    }
    Ok(Tree { dir, enabled, owned: true, shares, groups: BTreeMap::new(), lingering: Vec::new() })
}

/// `+memory +cpu`, as `cgroup.subtree_control` takes it.
pub(super) fn order(sign: char, names: &[String]) -> String {
    let words: Vec<String> = names.iter().map(|name| format!("{sign}{name}")).collect();
    words.join(" ")
}

/// Sets what a group may have: the lower of both values must never be above the other on the way.
fn bound(dir: &Path, limit: u64) -> io::Result<()> {
    put(dir, "memory.high", &shares::high(limit).to_string())?;
    put(dir, "memory.max", &limit.to_string())
}

/// What a group uses and cannot give back, bytes.
fn in_use(host: &Host, dir: &Path) -> u64 {
    let stat = host.read(&dir.join("memory.stat")).unwrap_or_default();
    let inactive = parse::keyed(&stat, "inactive_file").unwrap_or(0);
    number(host, &dir.join("memory.current")).unwrap_or(u64::MAX).saturating_sub(inactive)
}

pub(super) fn number(host: &Host, file: &Path) -> Option<u64> {
    parse::number(parse::trim(&host.read(file).ok()?))
}

/// Without waiting: a limit below what is in use would else be reached for inside of the write, by
/// reclaim and kills (the kernel's `cgroup-v2.rst`, "memory.max").
pub(super) fn writable(path: &Path) -> io::Result<fs::File> {
    let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
    opened.inspect_err(|error| debug!(event = "isolate", "{}: {error}", path.display()))
}

pub(super) fn put(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = dir.join(name);
    let written = writable(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| named(&path, &error))
}

/// With the path; the kind stays.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} cannot be written: {error}", path.display()))
}
