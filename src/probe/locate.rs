//! Where our own cgroup directory lies, and the chain of directories above it that we can see.
//!
//! The path in `/proc/self/cgroup` is relative to the cgroup namespace, the mount may show any part
//! of the hierarchy, and either may be older than the other; `cgroup_namespaces(7)` has the cases.

use std::path::{Path, PathBuf};

use super::host::{Host, path_of};
use super::mounts::{Controller, LAUNCHER_GROUP, Membership, Mount, Version};
use super::parse::{lines, number, trim, words};

/// A hostile or huge tree must not hold up the start: after so many directories the search gives up.
const MAX_SEARCHED: usize = 4096;

/// Where a controller's files were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) version: Version,
    /// From our own group up to the highest that is visible.
    pub(crate) chain: Vec<PathBuf>,
    pub(crate) fit: Fit,
}

/// How our directory was found, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    /// The path below the mounted root leads to a directory that exists.
    Exact,
    /// The mount is older than our namespace: found below it by our own process id.
    ByPid,
    /// Moved or unknown: the nearest directory that can be ours. Its limits bind, others may too.
    Guess,
    /// No mount is listed: one of the places where the files usually are.
    Default,
    /// What is mounted does not hold our group: none of its limits are ours.
    Outside,
}

/// Finds the directory of `controller`, or nothing where no limit of it can be read.
pub(crate) fn locate(
    host: &Host,
    ours: &Membership,
    mounts: &[Mount],
    controller: Controller,
) -> Option<Place> {
    let mounted =
        |version: &Version| mounts.iter().any(|m| m.version == *version && m.carries(controller));
    let listed = |version: &Version| ours.path(*version, controller).is_some();
    // v1 where it has both a membership and a mount, for each controller by itself: hybrids split them.
    let versions = [Version::V1, Version::V2];
    let chosen = versions.iter().find(|version| listed(version) && mounted(version));
    // Membership unreadable, or a mount that nothing is listed for: what is mounted still binds.
    let Some(version) = chosen.or_else(|| versions.iter().find(|version| mounted(version))) else {
        return default_place(host, ours, controller);
    };
    let path = ours.path(*version, controller);
    best(host, path, mounts.iter().filter(|m| m.version == *version && m.carries(controller)))
}

/// Our directory in the tree of v2, whatever controllers it has; none where it cannot be told.
#[cfg(feature = "launcher")]
pub(crate) fn unified_dir(host: &Host, ours: &Membership, mounts: &[Mount]) -> Option<PathBuf> {
    let path = ours.path(Version::V2, Controller::Memory)?;
    let place = best(host, Some(path), mounts.iter().filter(|m| m.version == Version::V2))?;
    if place.fit > Fit::ByPid {
        return None;
    }
    place.chain.into_iter().next()
}

/// The best view of our group, with the levels above it that only a wider mount shows: they bind too.
fn best<'a>(
    host: &Host,
    path: Option<&[u8]>,
    mounts: impl Iterator<Item = &'a Mount>,
) -> Option<Place> {
    let mut views: Vec<_> = mounts
        .map(|mount| match resolve(host, path, mount) {
            Some((dir, fit)) => (fit, chain(&dir, &mount.point), mount),
            None => (Fit::Outside, Vec::new(), mount),
        })
        .collect();
    views.sort_by_key(|(fit, _, mount)| {
        let usual = mount.point.starts_with("/sys/fs/cgroup");
        (*fit, !usual, usize::MAX - components(&mount.root).len())
    });
    let mut views = views.into_iter();
    let (fit, mut chain, mount) = views.next()?;
    if fit <= Fit::ByPid {
        let wider =
            views.filter(|view| view.0 <= Fit::ByPid).map(|view| view.1).max_by_key(Vec::len);
        chain.extend(wider.into_iter().flatten().skip(chain.len()));
    }
    Some(Place { version: mount.version, chain, fit })
}

/// `dir` and its parents up to and including `top`.
fn chain(dir: &Path, top: &Path) -> Vec<PathBuf> {
    dir.ancestors().take_while(|level| level.starts_with(top)).map(Path::to_owned).collect()
}

/// Our directory below one mount. `None`: we are outside of what it shows, so nothing there binds us.
fn resolve(host: &Host, path: Option<&[u8]>, mount: &Mount) -> Option<(PathBuf, Fit)> {
    // Membership unreadable (AppArmor in snaps, hidepid): what is mounted is the best guess.
    let Some(path) = path else { return Some((mount.point.clone(), Fit::Guess)) };
    let (path, dead) = match path.strip_suffix(b" (deleted)") {
        Some(alive) if !exists_below(host, mount, path) => (alive, true),
        _ => (path, false),
    };
    let (root, path) = without_common_dots(components(&mount.root), components(path));
    let above = |parts: &[&[u8]]| parts.iter().take_while(|part| **part == b"..").count();
    if above(&path) > 0 {
        return None;
    }
    match above(&root) {
        0 => {}
        depth if depth == root.len() => {
            return Some(match find_by_pid(host, &mount.point, depth, &path) {
                Some(dir) => (dir, Fit::ByPid),
                None => (mount.point.clone(), Fit::Guess),
            });
        }
        // The mount shows a branch beside the one that our namespace is in.
        _ => return None,
    }
    let inner = path.strip_prefix(root.as_slice());
    if let Some(inner) = inner {
        let dir = join(&mount.point, inner);
        if host.is_dir(&dir) {
            return Some((dir, Fit::Exact));
        }
        if !dead && let Some(moved) = longest_suffix(host, mount, &path[1.min(path.len())..]) {
            return Some((moved, Fit::Guess));
        }
        // The group itself is gone; those above it still hold what we use.
        let alive = dir.ancestors().find(|level| *level == mount.point || host.is_dir(level));
        return Some((alive.unwrap_or(&mount.point).to_owned(), Fit::Guess));
    }
    let found = longest_suffix(host, mount, &path);
    Some((found.unwrap_or_else(|| mount.point.clone()), Fit::Guess))
}

/// The directory that the end of `path` names below the mount: a group that was moved as a whole.
fn longest_suffix(host: &Host, mount: &Mount, path: &[&[u8]]) -> Option<PathBuf> {
    (0..path.len()).map(|skip| join(&mount.point, &path[skip..])).find(|dir| host.is_dir(dir))
}

fn exists_below(host: &Host, mount: &Mount, path: &[u8]) -> bool {
    let (root, path) = without_common_dots(components(&mount.root), components(path));
    path.strip_prefix(root.as_slice()).is_some_and(|inner| host.is_dir(&join(&mount.point, inner)))
}

fn components(path: &[u8]) -> Vec<&[u8]> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect()
}

/// Both paths are relative to our namespace's root, so `..`s that both begin with cancel out.
fn without_common_dots<'a>(
    mut root: Vec<&'a [u8]>,
    mut path: Vec<&'a [u8]>,
) -> (Vec<&'a [u8]>, Vec<&'a [u8]>) {
    let both = root.iter().zip(&path).take_while(|(r, p)| **r == b".." && **p == b"..").count();
    root.drain(..both);
    path.drain(..both);
    (root, path)
}

fn join(base: &Path, parts: &[&[u8]]) -> PathBuf {
    let mut path = base.to_owned();
    // A `..` inside a kernel path cannot be; one in a forged file must not lead out of the mount.
    path.extend(parts.iter().filter(|part| **part != b"..").map(|part| path_of(part)));
    path
}

/// The directory exactly `depth` levels below `top` that, with `path` appended, lists our process.
fn find_by_pid(host: &Host, top: &Path, depth: usize, path: &[&[u8]]) -> Option<PathBuf> {
    let pid = own_pid(host)?;
    let mut level = vec![top.to_owned()];
    let mut searched = 0;
    for _ in 0..depth {
        let mut below = Vec::new();
        for dir in &level {
            below.extend(host.subdirectories(dir, MAX_SEARCHED));
            searched += 1;
            if searched + below.len() > MAX_SEARCHED {
                return None;
            }
        }
        level = below;
    }
    let holds =
        |dir: &PathBuf| lists(host, dir, pid) || lists(host, &dir.join(LAUNCHER_GROUP), pid);
    level.into_iter().map(|dir| join(&dir, path)).find(holds)
}

fn lists(host: &Host, dir: &Path, pid: u64) -> bool {
    // A threaded group refuses cgroup.procs (EOPNOTSUPP) but has cgroup.threads; v1 calls that tasks.
    ["cgroup.procs", "cgroup.threads", "tasks"].iter().any(|name| {
        let content = host.read(&dir.join(name)).unwrap_or_default();
        lines(&content).any(|line| number(trim(line)) == Some(pid))
    })
}

fn own_pid(host: &Host) -> Option<u64> {
    if host.is_live() {
        return Some(u64::from(std::process::id()));
    }
    words(&host.read(Path::new("/proc/self/stat")).ok()?).next().and_then(number)
}

/// Where no mount is listed: the usual folders, if they hold the files (Heroku's Cedar has the bare file).
fn default_place(host: &Host, ours: &Membership, controller: Controller) -> Option<Place> {
    let with = |version, top: PathBuf| {
        let path = ours.path(version, controller).unwrap_or(b"/");
        let dir = join(&top, &components(path));
        let dir = if host.is_dir(&dir) { dir } else { top.clone() };
        Place { version, chain: chain(&dir, &top), fit: Fit::Default }
    };
    let sys = Path::new("/sys/fs/cgroup");
    let v2 = [sys.to_owned(), sys.join("unified")].into_iter().find(|top| {
        let has = |name| host.read(&top.join(name)).is_ok();
        has("cgroup.controllers") || has("memory.max")
    });
    // `cpu,cpuacct` is often there without a link named `cpu`.
    let names = ours.joined(controller).into_iter().chain([controller.name().to_owned()]);
    let v1 = names.map(|name| sys.join(name)).find(|dir| host.is_dir(dir));
    match (v1, v2) {
        (Some(top), None) => Some(with(Version::V1, top)),
        (Some(top), Some(_)) if ours.path(Version::V1, controller).is_some() => {
            Some(with(Version::V1, top))
        }
        (_, Some(top)) => Some(with(Version::V2, top)),
        (None, None) => None,
    }
}
