//! The JVM: the container support of `HotSpot` 25, and the heap that it takes by default. Written from the
//! described behaviour; 17 differs in that it reads its own level alone.

use std::path::{Path, PathBuf};

use super::opinion::{Belief, Lens, Taken, quotient, tighter};
use super::view::{MOUNT, RawMount, groups, join, mounts, scan, scan_count, up_to};
use crate::probe::parse::keyed;
use crate::units::{GIB, MIB};

/// A controller's place: the directory and the top of its mount.
struct Place {
    dir: PathBuf,
    top: PathBuf,
    v2: bool,
}

fn place(lens: &mut Lens<'_>, controller: &str) -> Result<Place, String> {
    let text = lens.peek("/proc/self/mountinfo");
    let all: Vec<RawMount> = mounts(&text).into_iter().flatten().collect();
    let top = Path::new(MOUNT);
    let lines = groups(&lens.peek("/proc/self/cgroup"));
    let off = |why: &str| Err(format!("turns its container support off: {why}"));
    // What lies at the usual place decides; the last mount there is the one that is seen.
    if all.iter().rfind(|mount| mount.point == top).is_some_and(RawMount::is_v2) {
        let listed = lens.peek("/sys/fs/cgroup/cgroup.controllers");
        let has =
            |name: &str| listed.split(u8::is_ascii_whitespace).any(|word| word == name.as_bytes());
        if !has("cpu") || !has("memory") {
            return off("/sys/fs/cgroup/cgroup.controllers does not list both cpu and memory");
        }
        let Some(group) = lines.iter().find(|group| group.is_unified()) else {
            return off("/proc/self/cgroup has no unified line");
        };
        let outside = group.path.windows(3).any(|part| part == b"../");
        let dir = if outside { top.to_owned() } else { join(top, &group.path) };
        return Ok(Place { dir, top: top.to_owned(), v2: true });
    }
    for name in ["memory", "cpuset", "cpu", "cpuacct"] {
        if !all.iter().any(|mount| mount.carries(name)) {
            return off(&format!("no mount of cgroup v1 has {name}, and /sys/fs/cgroup is not v2"));
        }
    }
    let listed = |mount: &&RawMount| mount.carries(controller);
    // Of several, the one at the usual place.
    let usual = all.iter().filter(listed).find(|mount| mount.point.starts_with(top));
    let (Some(mount), Some(group)) = (
        usual.or_else(|| all.iter().find(listed)),
        lines.iter().find(|group| group.has(controller)),
    ) else {
        return off(&format!("/proc/self/cgroup has no line for {controller}"));
    };
    Ok(Place { dir: v1_dir(lens, mount, &group.path), top: mount.point.clone(), v2: false })
}

/// Below a mount of the whole, the path; of exactly our group, its top; else the longest end of the
/// path that exists below it.
fn v1_dir(lens: &Lens<'_>, mount: &RawMount, path: &[u8]) -> PathBuf {
    if mount.root == b"/" {
        return join(&mount.point, path);
    }
    if mount.root == path {
        return mount.point.clone();
    }
    let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[at..]);
    let found = ends.map(|end| join(&mount.point, end)).find(|dir| lens.host.is_dir(dir));
    found.unwrap_or_else(|| mount.point.clone())
}

/// The tightest quota from our group up, of those that it can see.
pub(super) fn cpus(mut lens: Lens<'_>) -> Belief<f64> {
    let place = match place(&mut lens, "cpu") {
        Ok(place) => place,
        Err(quirk) => return Belief { quirk: Some(quirk), ..Belief::default() },
    };
    let mut limit = None;
    for dir in up_to(&place.dir, &place.top) {
        let file = dir.join(if place.v2 { "cpu.max" } else { "cpu.cfs_quota_us" });
        let Some(text) = lens.read(&file) else { continue };
        let quota = scan(&text).and_then(|(value, rest)| Some((u64::try_from(value).ok()?, rest)));
        let period = match (&quota, place.v2) {
            (Some((_, rest)), true) => scan_count(rest),
            _ => lens.read(&dir.join("cpu.cfs_period_us")).and_then(|text| scan_count(&text)),
        };
        let here = quota.zip(period).and_then(|((quota, _), period)| quotient(quota, period));
        limit =
            tighter(limit, here.map(|value| Taken { value, source: file.display().to_string() }));
    }
    Belief { limit, looks: lens.looks, ..Belief::default() }
}

/// The tightest memory limit from our group up; `ram` is the machine's.
pub(super) fn memory(mut lens: Lens<'_>, ram: u64) -> Belief<u64> {
    let place = match place(&mut lens, "memory") {
        Ok(place) => place,
        Err(quirk) => return Belief { quirk: Some(quirk), ..Belief::default() },
    };
    let mut limit = None;
    for dir in up_to(&place.dir, &place.top) {
        let file = dir.join(if place.v2 { "memory.max" } else { "memory.limit_in_bytes" });
        let value =
            lens.read(&file).and_then(|text| scan_count(&text)).filter(|bytes| *bytes < ram);
        let mut here = value.map(|value| Taken { value, source: file.display().to_string() });
        // On v1 the kernel's own minimum counts where this level has none and the tree is nested.
        let nested = || {
            lens.host
                .read(&dir.join("memory.use_hierarchy"))
                .is_ok_and(|text| scan_count(&text) == Some(1))
        };
        if here.is_none() && !place.v2 && nested() {
            let file = dir.join("memory.stat");
            let stat = lens.read(&file).unwrap_or_default();
            let value = keyed(&stat, "hierarchical_memory_limit").filter(|bytes| *bytes < ram);
            here = value.map(|value| Taken { value, source: file.display().to_string() });
        }
        limit = tighter(limit, here);
    }
    Belief { limit, looks: lens.looks, ..Belief::default() }
}

/// The default heap for so much memory, bytes: a quarter, at least 126 MiB; half, where that is less.
/// Not above 32 GiB, where pointers could no longer be compressed.
pub(super) fn heap(memory: u64) -> u64 {
    let floor = 126 * MIB;
    if memory / 2 < floor { memory / 2 } else { (memory / 4).clamp(floor, 32 * GIB) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_heap_is_a_quarter_and_in_small_containers_half() {
        assert_eq!(heap(4 * GIB), GIB);
        assert_eq!(heap(512 * MIB), 128 * MIB);
        assert_eq!(heap(256 * MIB), 126 * MIB);
        assert_eq!(heap(200 * MIB), 100 * MIB);
    }

    proptest! {
        #[test]
        fn the_heap_never_exceeds_what_is_seen(memory: u64) {
            prop_assert!(heap(memory) <= memory.div_ceil(2).min(32 * GIB));
        }
    }
}
