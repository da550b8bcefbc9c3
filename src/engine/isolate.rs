//! A cgroup for each worker, where our own group is ours to divide (cgroup v2): one that takes more than its
//! share is killed alone, also where the group around us dies as a whole (`memory.oom.group`).
//!
//! The kernel wants processes in the leaves alone, so the launcher moves into a leaf of its own first, and
//! back at its end: nothing is left. What a killed launcher leaves is the guard's to remove.

mod facts;
mod shares;
mod tree;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::bail;
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::spawn::attribute;
use super::{Config, Isolate, Sized};
use crate::control;
use crate::fleet::{Assignment, WorkerKey};
use crate::probe::{Host, OomLevel, oom_level};
use crate::units::show_size;
pub(super) use facts::OURS;
use facts::{Facts, Means, too_tight};
use shares::Shares;
use tree::{Group, Tree, enter, number, order, put, writable};

/// The groups, or why there are none.
pub(super) struct Isolation {
    tree: Option<Tree>,
    why_not: String,
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

    /// Whether workers have limits of their own.
    pub(super) fn has_limits(&self) -> bool {
        self.tree.as_ref().is_some_and(|tree| tree.shares.is_some())
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

    /// So many kills in a worker's group have been told of.
    pub(super) fn told(&mut self, worker: WorkerKey, kills: u64) {
        let tree = self.tree.as_mut();
        if let Some(group) = tree.and_then(|tree| tree.groups.get_mut(&worker)) {
            group.told = kills;
        }
    }

    /// Kills in a group whose worker is known to have been killed, that came after it was told.
    pub(super) fn untold(&self, worker: WorkerKey) -> u64 {
        let group = self.tree.as_ref().and_then(|tree| tree.groups.get(&worker));
        let told = group.map_or(0, |group| group.told);
        let counted = if told > 0 { self.counted(worker) } else { None };
        counted.map_or(0, |counted| counted.kills.saturating_sub(told))
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
        tree.groups.insert(to.worker, Group { dir, slot: to.slot, limit: None, told: 0 });
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
        if config.isolate == Isolate::Auto || config.sized.bounds.budget.is_none() {
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
    let each = tree.shares.map(|shares| shares.each(u64::from(config.sized.bounds.workers), 0));
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

fn locked(path: &Path) -> Option<String> {
    let errno = access(path, AccessFlags::W_OK).err()?;
    Some(format!("{} cannot be written ({})", path.display(), errno.desc()))
}

/// systemd marks what it gives away: for whoever may see such marks, and from 251 on for everybody.
fn is_delegated(dir: &Path) -> bool {
    [c"user.delegate", c"trusted.delegate"].iter().any(|name| attribute(dir, name) == Some(b'1'))
}
