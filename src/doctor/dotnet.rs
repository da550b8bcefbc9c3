//! .NET: the limits that its GC and its thread pool go by. Written from the described behaviour.

use std::path::{Path, PathBuf};

use super::opinion::{Belief, Lens, Taken, tighter};
use super::view::{MOUNT, RawMount, groups, join, mounts, nowhere, scan, scan_count};
use crate::probe::parse::keyed;
use crate::units::MIB;

/// The controller's directory, the top of its mount, and the generation.
fn place(lens: &Lens<'_>, controller: &str) -> Option<(PathBuf, PathBuf, bool)> {
    let text = lens.peek("/proc/self/mountinfo");
    let all: Vec<RawMount> = mounts(&text).into_iter().flatten().collect();
    let lines = groups(&lens.peek("/proc/self/cgroup"));
    let v2 = all.iter().rfind(|mount| mount.point == Path::new(MOUNT)).is_some_and(RawMount::is_v2);
    let (mount, group) = if v2 {
        // Any kind that begins with "cgroup" will do, and the last one wins.
        (
            all.iter().rfind(|mount| mount.kind.starts_with(b"cgroup"))?,
            lines.iter().find(|group| group.is_unified())?,
        )
    } else {
        (
            all.iter().rfind(|mount| mount.carries(controller))?,
            lines.iter().find(|group| group.has(controller))?,
        )
    };
    // A prefix of the text, not of whole components.
    let root: &[u8] = if mount.root == b"/" { b"" } else { &mount.root };
    let rest = group.path.strip_prefix(root).unwrap_or(&group.path);
    Some((join(&mount.point, rest), mount.point.clone(), v2))
}

/// The quota of our own group.
pub(super) fn cpus(mut lens: Lens<'_>) -> Belief<f64> {
    let Some((dir, _, v2)) = place(&lens, "cpu") else { return nowhere() };
    let file = dir.join(if v2 { "cpu.max" } else { "cpu.cfs_quota_us" });
    let Some(text) = lens.read(&file) else {
        return Belief { looks: lens.looks, ..Belief::default() };
    };
    let quota = scan(&text);
    let period = match quota {
        Some((_, rest)) if v2 => scan_count(rest),
        _ => lens.read(&dir.join("cpu.cfs_period_us")).and_then(|text| scan_count(&text)),
    };
    let taken = quota.zip(period).filter(|((quota, _), period)| *period > 0 && (v2 || *quota > 0));
    let limit = taken.map(|((quota, _), period)| {
        let source = file.display().to_string();
        #[expect(clippy::cast_precision_loss, reason = "a quota in microseconds")]
        let value = quota as f64 / period as f64;
        // A quota of less than a period is one CPU, and so is one that makes no sense.
        Taken { value: value.max(0.0), source }
    });
    Belief { limit, looks: lens.looks, ..Belief::default() }
}

/// The tightest limit from our group up, the top of the mount left out.
pub(super) fn memory(mut lens: Lens<'_>) -> Belief<u64> {
    // Above this a limit of v1 is none.
    const UNLIMITED: u64 = 0x7FFF_FFFF_0000_0000;
    let Some((dir, top, v2)) = place(&lens, "memory") else { return nowhere() };
    if !v2 {
        let nested = lens
            .host
            .read(&dir.join("memory.use_hierarchy"))
            .is_ok_and(|text| scan_count(&text) == Some(1));
        let file = dir.join(if nested { "memory.stat" } else { "memory.limit_in_bytes" });
        let text = lens.read(&file).unwrap_or_default();
        let value =
            if nested { keyed(&text, "hierarchical_memory_limit") } else { scan_count(&text) };
        let value = value.filter(|bytes| *bytes <= UNLIMITED);
        let limit = value.map(|value| Taken { value, source: file.display().to_string() });
        return Belief { limit, looks: lens.looks, ..Belief::default() };
    }
    let mut limit = None;
    let above =
        dir.ancestors().skip(1).take_while(|level| level.starts_with(&top) && *level != top);
    for level in std::iter::once(dir.as_path()).chain(above) {
        let file = level.join("memory.max");
        let value = lens.read(&file).and_then(|text| scan_count(&text));
        limit =
            tighter(limit, value.map(|value| Taken { value, source: file.display().to_string() }));
    }
    // "The mount directory does not contain memory.max", which a bind mount or a namespace makes wrong.
    let unread = (dir != top).then(|| lens.host.read(&top.join("memory.max")).ok()).flatten();
    let unread = unread.and_then(|text| scan_count(&text));
    let quirk = unread
        .filter(|bytes| limit.as_ref().is_none_or(|limit| *bytes < limit.value))
        .map(|_| "leaves the top of the mount out on its way up".to_owned());
    Belief { limit, looks: lens.looks, quirk, ..Belief::default() }
}

/// The hard limit of its heap under a memory limit, bytes: three quarters, at least 20 MiB.
pub(super) fn heap(limit: u64) -> u64 {
    (limit / 4 * 3).max(20 * MIB)
}
