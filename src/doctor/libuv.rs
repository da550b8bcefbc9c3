//! Node.js: what libuv 1.52 makes of the files (`uv_available_parallelism`,
//! `uv_get_constrained_memory`), and the heap that V8 sizes by it. Written from the described
//! behaviour, with its known faults, because they are what users meet.

use std::path::{Path, PathBuf};

use super::opinion::{Belief, Lens, Taken, quotient, tighter};
use super::view::{Group, MOUNT, groups, join, nowhere, own_groups, scan, scan_count, up_to};
use super::why::show_cpus;
use crate::probe::parse::{lines, number, words};
use crate::probe::show;
use crate::units::{GIB, MIB};

/// It reads this much of `/proc/self/cgroup`, paths and quotas, and loses the rest.
const GROUP_BYTES: usize = 1023;
const PATH_BYTES: usize = 255;
const QUOTA_BYTES: usize = 15;

/// The group's path, if this is taken for cgroup v2: only the very first line decides.
fn unified(text: &[u8]) -> Option<&[u8]> {
    let rest = text.strip_prefix(b"0::")?;
    let path = rest.split(|b| *b == b'\n').next()?;
    path.starts_with(b"/").then_some(path)
}

/// The quota that it honours.
pub(super) fn cpus(mut lens: Lens<'_>) -> Belief<f64> {
    let text = own_groups(&lens, GROUP_BYTES);
    let Some(path) = unified(&text) else {
        let all = groups(&lens.peek("/proc/self/cgroup"));
        let quirk = mistaken(&all).map(|quirk| {
            format!("{quirk}, and the file name that it makes up for the quota there never exists")
        });
        if quirk.is_none() {
            return nowhere();
        }
        return Belief { quirk, ..Belief::default() };
    };
    let top = Path::new(MOUNT);
    let leaf = join(top, path);
    if lens.read(&leaf.join("cgroup.controllers")).is_none() {
        return Belief { looks: lens.looks, ..Belief::default() };
    }
    let mut belief = Belief::<f64>::default();
    let mut least: Option<Taken<f64>> = None;
    for dir in up_to(&leaf, top) {
        let file = dir.join("cpu.max");
        if file.as_os_str().len() > PATH_BYTES {
            belief.quirk =
                Some(format!("cuts paths at {PATH_BYTES} characters, and ours is longer"));
            continue;
        }
        let Some(text) = lens.read(&file) else { continue };
        let head = &text[..text.len().min(QUOTA_BYTES)];
        let Some(cpus) = quota(head) else { continue };
        if quota(&text).is_some_and(|whole| whole.to_bits() != cpus.to_bits()) {
            belief.quirk = Some(format!(
                "reads only the first {QUOTA_BYTES} characters of {}, \"{}\"",
                file.display(),
                show(head)
            ));
        }
        let here = Taken { value: cpus, source: file.display().to_string() };
        least = tighter(least, Some(here.clone()));
        // Each level replaces what was found below it.
        belief.limit = Some(here);
    }
    if let (Some(taken), Some(least)) = (&belief.limit, &least)
        && least.value < taken.value
    {
        belief.quirk = Some(format!(
            "keeps the outermost limit on its way up and not the tightest, {} in {}",
            show_cpus(least.value),
            least.source
        ));
    }
    Belief { looks: lens.looks, ..belief }
}

fn quota(text: &[u8]) -> Option<f64> {
    let (quota, rest) = scan(text)?;
    quotient(u64::try_from(quota).ok()?, scan_count(rest)?)
}

/// Why the branch for v1 is taken.
fn mistaken(groups: &[Group]) -> Option<String> {
    let first = groups.first()?;
    let line = [&first.id[..], &first.controllers[..], &first.path[..]].join(&b':');
    Some(format!("takes this for cgroup v1, as /proc/self/cgroup begins with \"{}\"", show(&line)))
}

/// The memory limit that it honours, bytes.
pub(super) fn memory(mut lens: Lens<'_>) -> Belief<u64> {
    let text = own_groups(&lens, GROUP_BYTES);
    let (limit, quirk) = if let Some(path) = unified(&text) {
        (memory_v2(&mut lens, path), None)
    } else {
        (memory_v1(&mut lens, &text), lost_line(&lens, &text))
    };
    let limit = tighter(limit, rlimit(&mut lens, b"Max address space"));
    let limit = tighter(limit, rlimit(&mut lens, b"Max data size"));
    Belief { limit, quirk, looks: lens.looks, ..Belief::default() }
}

/// Why the branch for v1 does not find its group.
fn lost_line(lens: &Lens<'_>, text: &[u8]) -> Option<String> {
    let has = |groups: &[Group]| groups.iter().any(|group| group.has("memory"));
    let all = groups(&lens.peek("/proc/self/cgroup"));
    match (has(&groups(text)), has(&all)) {
        (true, _) => None,
        (false, true) => Some(format!(
            "reads only the first {GROUP_BYTES} bytes of /proc/self/cgroup, and the memory line comes later"
        )),
        (false, false) => mistaken(&all),
    }
}

/// `min(memory.high, memory.max)` of our own group; unknown where either is missing or 0.
fn memory_v2(lens: &mut Lens<'_>, path: &[u8]) -> Option<Taken<u64>> {
    let dir = join(Path::new(MOUNT), path);
    let max = amount(lens, &dir.join("memory.max"));
    let high = amount(lens, &dir.join("memory.high"));
    smaller(max?, high?)
}

fn memory_v1(lens: &mut Lens<'_>, text: &[u8]) -> Option<Taken<u64>> {
    let top = Path::new(MOUNT).join("memory");
    let own = groups(text).into_iter().find(|group| group.controllers == b"memory");
    let mut pair = |dir: PathBuf| {
        let limit = amount(lens, &dir.join("memory.limit_in_bytes"));
        let soft = amount(lens, &dir.join("memory.soft_limit_in_bytes"));
        Some((limit?, soft?))
    };
    let (limit, soft) =
        own.and_then(|own| pair(join(&top, &own.path))).or_else(|| pair(top.clone()))?;
    smaller(limit, soft)
}

/// A file's number, `max` as the largest; `None` where there is none or it is 0.
fn amount(lens: &mut Lens<'_>, file: &Path) -> Option<Taken<u64>> {
    let text = lens.read(file)?;
    let value = match text.strip_prefix(b"max") {
        Some(_) => u64::MAX,
        // A negative number wraps.
        None => scan(&text).map(|(value, _)| u64::try_from(value).unwrap_or(u64::MAX))?,
    };
    (value > 0).then(|| Taken { value, source: file.display().to_string() })
}

fn smaller(a: Taken<u64>, b: Taken<u64>) -> Option<Taken<u64>> {
    // What the kernel writes for "no limit" on v1, with pages of 4 KiB.
    const UNLIMITED: u64 = i64::MAX as u64 & !4095;
    tighter(Some(a), Some(b)).filter(|taken| taken.value < UNLIMITED)
}

/// Since 1.52.1 the limits of one process count as limits of all.
fn rlimit(lens: &mut Lens<'_>, name: &[u8]) -> Option<Taken<u64>> {
    let text = lens.peek("/proc/self/limits");
    let row = lines(&text).find_map(|line| line.strip_prefix(name))?;
    let value = words(row).next().and_then(number)?;
    let name = String::from_utf8_lossy(name);
    Some(Taken { value, source: format!("/proc/self/limits ({name})") })
}

/// V8's heap for so much memory, bytes: half of it for the old generation, 256 MiB to 2 GiB (4 GiB
/// from 15 GiB of memory on), and three semi-spaces of a 128th of that, at most 16 MiB each.
pub(super) fn heap(memory: u64) -> u64 {
    let most = if memory / GIB >= 15 { 4 * GIB } else { 2 * GIB };
    let old = (memory / 2).clamp(256 * MIB, most);
    old + 3 * (old / 128).clamp(MIB, 16 * MIB)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_heap_is_half_of_what_is_seen_within_bounds() {
        // node#64646: a container of 256 MiB gets a heap of 262 MiB.
        assert_eq!(heap(256 * MIB) / MIB, 262);
        assert_eq!(heap(512 * MIB) / MIB, 262);
        assert_eq!(heap(4 * GIB) / MIB, 2096);
        assert_eq!(heap(16 * GIB) / MIB, 4144);
        assert_eq!(heap(u64::MAX) / MIB, 4144);
    }

    proptest! {
        #[test]
        fn more_memory_never_gives_a_smaller_heap(a: u64, b: u64) {
            prop_assert!(heap(a.min(b)) <= heap(a.max(b)));
            prop_assert!(heap(a) >= 256 * MIB && heap(a) <= 4 * GIB + 48 * MIB);
        }
    }
}
