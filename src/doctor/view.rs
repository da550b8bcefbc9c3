//! The raw lines of `/proc/self/cgroup` and `/proc/self/mountinfo`, as detectors see them: unlike the
//! probe's own reader these keep what is malformed, because some detectors give up there.

use std::path::{Path, PathBuf};

use super::opinion::{Belief, Lens};
use crate::probe::parse::trim;
use crate::probe::{path_of, unescape};

/// Where every detector expects the hierarchy.
pub(super) const MOUNT: &str = "/sys/fs/cgroup";

/// What is said of a detector that does not find where it is.
pub(super) fn nowhere<T>() -> Belief<T> {
    let quirk = "finds no group of its own in /proc/self/cgroup and /proc/self/mountinfo";
    Belief {
        limit: None,
        looks: Vec::new(),
        quirk: Some(quirk.to_owned()),
        told: None,
        fails: false,
    }
}

/// One line of `/proc/self/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) id: Vec<u8>,
    pub(super) controllers: Vec<u8>,
    pub(super) path: Vec<u8>,
}

impl Group {
    pub(super) fn is_unified(&self) -> bool {
        self.id == b"0" && self.controllers.is_empty()
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.split(|b| *b == b',').any(|name| name == controller.as_bytes())
    }
}

/// All lines with two colons.
pub(super) fn groups(text: &[u8]) -> Vec<Group> {
    let parts = text.split(|b| *b == b'\n').map(|line| line.splitn(3, |b| *b == b':'));
    let lines = parts.filter_map(|mut parts| {
        let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Group { id: id.to_vec(), controllers: controllers.to_vec(), path: path.to_vec() })
    });
    lines.collect()
}

/// The line that Go and Rust's library go by: v1's `cpu` before the unified one.
pub(super) fn cpu_group(groups: &[Group]) -> Option<(&Group, bool)> {
    let v1 = groups.iter().find(|group| group.has("cpu")).map(|group| (group, true));
    v1.or_else(|| groups.iter().find(|group| group.is_unified()).map(|group| (group, false)))
}

/// One mount line in its raw parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawMount {
    /// Unescaped.
    pub(super) root: Vec<u8>,
    /// As it stands in the file.
    pub(super) raw_root: Vec<u8>,
    pub(super) point: PathBuf,
    pub(super) kind: Vec<u8>,
    options: Vec<u8>,
}

impl RawMount {
    pub(super) fn is_v2(&self) -> bool {
        self.kind == b"cgroup2"
    }

    pub(super) fn carries(&self, controller: &str) -> bool {
        self.kind == b"cgroup"
            && self.options.split(|b| *b == b',').any(|name| name == controller.as_bytes())
    }

    /// What is left of `path` below this mount's root, by whole components.
    pub(super) fn inside<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let root = self.root.strip_suffix(b"/").unwrap_or(&self.root);
        let rest = path.strip_prefix(root)?;
        (rest.is_empty() || rest.starts_with(b"/")).then_some(rest)
    }
}

/// Each line; `None` for one that has not the fields of `proc(5)`.
pub(super) fn mounts(text: &[u8]) -> Vec<Option<RawMount>> {
    text.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(mount).collect()
}

fn mount(line: &[u8]) -> Option<RawMount> {
    let mut fields = line.splitn(6, |b| *b == b' ');
    let (root, point) = (fields.nth(3)?, fields.next()?);
    let rest = fields.next()?;
    let dash = rest.windows(3).position(|part| part == b" - ")?;
    let tail = trim(&rest[dash + 3..]);
    Some(RawMount {
        root: unescape(root),
        raw_root: root.to_vec(),
        point: path_of(&unescape(point)),
        kind: tail.split(|b| *b == b' ').next()?.to_vec(),
        options: tail.rsplit(|b| *b == b' ').next()?.to_vec(),
    })
}

/// `base` with a kernel path appended as a string, however many slashes and dots that makes.
pub(super) fn join(base: &Path, path: &[u8]) -> PathBuf {
    let start = path.iter().position(|b| *b != b'/').unwrap_or(path.len());
    if path[start..].is_empty() { base.to_owned() } else { base.join(path_of(&path[start..])) }
}

/// `dir` and what is above it, up to and including `top`.
pub(super) fn up_to(dir: &Path, top: &Path) -> Vec<PathBuf> {
    dir.ancestors().take_while(|level| level.starts_with(top)).map(Path::to_owned).collect()
}

/// The first `most` bytes of `/proc/self/cgroup`.
pub(super) fn own_groups(lens: &Lens<'_>, most: usize) -> Vec<u8> {
    let mut text = lens.peek("/proc/self/cgroup");
    text.truncate(most);
    text
}

/// What C's `scanf("%lld")` takes from the front, and the rest: digits behind white space, with a sign.
pub(super) fn scan(text: &[u8]) -> Option<(i64, &[u8])> {
    let text = text.trim_ascii_start();
    let (negative, digits) = match text.first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
    if end == 0 {
        return None;
    }
    let value = digits[..end]
        .iter()
        .fold(0i64, |sum, b| sum.saturating_mul(10).saturating_add(i64::from(b - b'0')));
    Some((if negative { -value } else { value }, &digits[end..]))
}

/// The same for a count; negative ones are none.
pub(super) fn scan_count(text: &[u8]) -> Option<u64> {
    scan(text).and_then(|(value, _)| u64::try_from(value).ok())
}
