//! A cgroup for each worker, where our own group is ours to divide (cgroup v2): one that takes more than its
//! share is killed alone, also where the group around us dies as a whole (`memory.oom.group`).
//!
//! The kernel wants processes in the leaves alone, so the launcher moves into a leaf of its own first, and
//! back at its end: nothing is left. What a killed launcher leaves is the guard's to remove.

mod facts;
mod shares;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::bail;
use nix::libc;
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::spawn::attribute;
use super::{Config, Isolate, Sized};
use crate::control;
use crate::fleet::{Assignment, WorkerKey};
use crate::probe::{Host, LAUNCHER_GROUP, OomLevel, oom_level};
use crate::units::show_size;
use facts::{Facts, Means, OURS, too_tight};
use shares::Shares;

/// What the groups of workers share out: memory is the point, CPU by equal weights where it is there.
const CONTROLLERS: [&str; 2] = ["memory", "cpu"];

/// The groups, or why there are none.
pub(super) struct Isolation {
    tree: Option<Tree>,
    why_not: String,
}

/// Our own group, divided.
struct Tree {
    dir: PathBuf,
    /// What we let it hand on, and take back at the end.
    enabled: Vec<String>,
    /// Whether it is ours to put back; not before a successor has come to stay.
    owned: bool,
    shares: Option<Shares>,
    groups: BTreeMap<WorkerKey, Group>,
    /// Groups without a worker that somebody is still in.
    lingering: Vec<PathBuf>,
}

/// One worker's.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Group {
    dir: PathBuf,
    slot: u32,
    /// Its memory.max, bytes.
    limit: Option<u64>,
}

/// For the program that takes our place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    dir: Option<PathBuf>,
    enabled: Vec<String>,
    groups: Vec<(WorkerKey, Group)>,
    lingering: Vec<PathBuf>,
    why_not: String,
}

/// What has to be put back where we cannot do it any more: the group, and what it no longer hands on.
#[derive(Clone, Debug)]
pub(super) struct Inheritance {
    pub(super) dir: CString,
    pub(super) order: CString,
}

impl Isolation {
    /// Divides our group, where that is wanted and can be had. An error says why what was asked for cannot be.
    pub(super) fn begin(config: &Config) -> anyhow::Result<Self> {
        let none = |why_not: String| Self { tree: None, why_not };
        if config.isolate == Isolate::Off {
            return Ok(none("--isolate off".to_owned()));
        }
        match divide(config) {
            Ok(tree) => Ok(Self { tree: Some(tree), why_not: String::new() }),
            Err(why) if config.isolate == Isolate::On => {
                bail!("cannot isolate the workers (--isolate on): {why}")
            }
            Err(why) => {
                debug!(event = "isolate", on = false, "the workers are not isolated: {why}");
                Ok(none(why))
            }
        }
    }

    /// Goes on with the groups of an earlier program; they are not ours to remove before [`Self::own`].
    pub(super) fn adopt(saved: Option<&Saved>, sized: &Sized) -> Self {
        let Some(saved) = saved else {
            return Self { tree: None, why_not: "the program before this one did not".to_owned() };
        };
        let tree = saved.dir.as_ref().map(|dir| Tree {
            dir: dir.clone(),
            enabled: saved.enabled.clone(),
            owned: false,
            shares: Shares::of(sized),
            groups: saved.groups.iter().cloned().collect(),
            lingering: saved.lingering.clone(),
        });
        Self { tree, why_not: saved.why_not.clone() }
    }

    pub(super) fn own(&mut self) {
        if let Some(tree) = &mut self.tree {
            tree.owned = true;
        }
    }

    pub(super) fn save(&self) -> Saved {
        let tree = self.tree.as_ref();
        let groups = tree.iter().flat_map(|tree| tree.groups.iter());
        Saved {
            dir: tree.map(|tree| tree.dir.clone()),
            enabled: tree.map(|tree| tree.enabled.clone()).unwrap_or_default(),
            groups: groups.map(|(worker, group)| (*worker, group.clone())).collect(),
            lingering: tree.map(|tree| tree.lingering.clone()).unwrap_or_default(),
            why_not: self.why_not.clone(),
        }
    }

    pub(super) fn inheritance(&self) -> Option<Inheritance> {
        let tree = self.tree.as_ref()?;
        let dir = CString::new(tree.dir.as_os_str().as_bytes()).ok()?;
        Some(Inheritance { dir, order: CString::new(order('-', &tree.enabled)).ok()? })
    }

    /// As the control interface tells it.
    pub(super) fn status(&self) -> control::Isolation {
        let group = self.tree.as_ref().map(|tree| tree.dir.display().to_string());
        let on = group.is_some();
        control::Isolation { on, group, why_not: (!on).then(|| self.why_not.clone()) }
    }

    /// A worker's limit, bytes.
    pub(super) fn limit(&self, worker: WorkerKey) -> Option<u64> {
        self.tree.as_ref()?.groups.get(&worker)?.limit
    }

    /// What a worker's group is called.
    pub(super) fn name(&self, worker: WorkerKey) -> Option<String> {
        let group = self.tree.as_ref()?.groups.get(&worker)?;
        Some(group.dir.file_name()?.to_string_lossy().into_owned())
    }

    /// What the kernel has counted in a worker's group.
    pub(super) fn counted(&self, worker: WorkerKey) -> Option<OomLevel> {
        let group = self.tree.as_ref()?.groups.get(&worker)?;
        Some(oom_level(&Host::live(), &group.dir))
    }

    /// The most memory that all of a worker had, bytes.
    pub(super) fn peak(&self, worker: WorkerKey) -> Option<u64> {
        let group = self.tree.as_ref()?.groups.get(&worker)?;
        // From Linux 5.19 on.
        number(&Host::live(), &group.dir.join("memory.peak"))
    }

    /// A group for a worker that is about to start, by its `cgroup.procs`; `target`: how many there are to be.
    pub(super) fn make(&mut self, to: Assignment, target: u32) -> io::Result<Option<OwnedFd>> {
        let Some(tree) = &mut self.tree else { return Ok(None) };
        let dir = tree.dir.join(format!("{OURS}worker-{}.{}", to.slot, to.worker.0));
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                warn!(
                    event = "isolate",
                    worker = to.slot,
                    "cannot make {}: {error}",
                    dir.display()
                );
                return Err(error);
            }
            _ => {}
        }
        // All of a worker goes at once: what is left of it would serve nobody. Older kernels have no such file.
        let _ = put(&dir, "memory.oom.group", "1");
        let procs = writable(&dir.join("cgroup.procs"));
        tree.groups.insert(to.worker, Group { dir, slot: to.slot, limit: None });
        tree.share_out(target);
        procs.map(|file| Some(file.into()))
    }

    /// The last of a worker has gone, or it never came.
    pub(super) fn gone(&mut self, worker: WorkerKey, target: u32) {
        let Some(tree) = &mut self.tree else { return };
        let Some(group) = tree.groups.remove(&worker) else { return };
        tree.lingering.push(group.dir);
        tree.tidy();
        tree.share_out(target);
    }

    /// KILL for all of a worker, also who has left its process group.
    pub(super) fn kill(&self, worker: WorkerKey) {
        let group = self.tree.as_ref().and_then(|tree| tree.groups.get(&worker));
        if let Some(group) = group {
            // From Linux 5.14 on.
            let _ = put(&group.dir, "cgroup.kill", "1");
        }
    }

    /// Another number of workers, or another limit of all of them.
    pub(super) fn share_out(&mut self, target: u32, sized: &Sized) {
        if let Some(tree) = &mut self.tree {
            tree.shares = Shares::of(sized);
            tree.tidy();
            tree.share_out(target);
        }
    }
}

impl Tree {
    /// Gives each group its share: what is too much for a moment comes in steps, at the next looks.
    fn share_out(&mut self, target: u32) {
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
    fn tidy(&mut self) {
        self.lingering.retain(|dir| match fs::remove_dir(dir) {
            Ok(()) => false,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        });
    }

    /// Puts everything back as it was.
    fn put_back(&self) {
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

impl Drop for Isolation {
    fn drop(&mut self) {
        if let Some(tree) = self.tree.as_ref().filter(|tree| tree.owned) {
            tree.put_back();
        }
    }
}

/// Looks whether our group is ours to divide, and does it; the error is the reason why not.
fn divide(config: &Config) -> Result<Tree, String> {
    let means = Means { locked: &locked, delegated: &is_delegated };
    let facts = Facts::read(&Host::live(), &means)?;
    if let Some(why) = facts.obstacle(std::process::id()) {
        return Err(why);
    }
    if config.terminal {
        return Err(
            "what the one worker on the terminal puts into the background is its user's".to_owned()
        );
    }
    if let Some(why) = too_tight(&config.sized) {
        if config.isolate == Isolate::Auto || config.sized.budget.is_none() {
            return Err(why);
        }
        warn!(
            event = "isolate",
            "{why}: the kernel may kill workers that would get along without --isolate"
        );
    }
    for dir in &facts.left {
        // Who came back meanwhile keeps it.
        let _ = fs::remove_dir(dir);
    }
    let tree = enter(&facts, Shares::of(&config.sized)).map_err(|error| error.to_string())?;
    let each = tree.shares.map(|shares| shares.each(u64::from(config.sized.workers), 0));
    info!(
        event = "isolate",
        on = true,
        group = %tree.dir.display(),
        limit_bytes = each,
        "each worker has a group of its own below {}, with {} of memory at most",
        tree.dir.display(),
        each.map_or_else(|| "no limit".to_owned(), show_size)
    );
    Ok(tree)
}

/// Moves us into a leaf, and lets the group hand on what the workers share.
fn enter(facts: &Facts, shares: Option<Shares>) -> io::Result<Tree> {
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
fn order(sign: char, names: &[String]) -> String {
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
    let stat = String::from_utf8_lossy(&stat);
    let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let inactive = inactive.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    number(host, &dir.join("memory.current")).unwrap_or(u64::MAX).saturating_sub(inactive)
}

fn number(host: &Host, file: &Path) -> Option<u64> {
    String::from_utf8_lossy(&host.read(file).ok()?).trim().parse().ok()
}

/// Without waiting: a limit below what is in use would else be reached for inside of the write, by
/// reclaim and kills (the kernel's `cgroup-v2.rst`, "memory.max").
fn writable(path: &Path) -> io::Result<fs::File> {
    let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
    opened.inspect_err(|error| debug!(event = "isolate", "{}: {error}", path.display()))
}

fn put(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = dir.join(name);
    let written = writable(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| named(&path, &error))
}

/// With the path; the kind stays.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} cannot be written: {error}", path.display()))
}

fn locked(path: &Path) -> Option<String> {
    let errno = access(path, AccessFlags::W_OK).err()?;
    Some(format!("{} cannot be written ({})", path.display(), errno.desc()))
}

/// systemd marks what it gives away: for whoever may see such marks, and from 251 on for everybody.
fn is_delegated(dir: &Path) -> bool {
    [c"user.delegate", c"trusted.delegate"].iter().any(|name| attribute(dir, name) == Some(b'1'))
}
