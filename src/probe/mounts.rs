//! `/proc/self/cgroup` and `/proc/self/mountinfo`: which groups we are in, and where they are mounted.
//!
//! Pure text to data. A line that does not parse is skipped: it belongs to somebody else's mount,
//! and one odd 9p or overlay line must not cost us the limit (`proc(5)`, `cgroups(7)`).

use std::path::PathBuf;

use memchr::{memchr, memmem};

use super::host::path_of;
use super::parse::{lines, trim};

/// A resource controller of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Controller {
    Memory,
    Cpu,
    Cpuset,
    Pids,
}

impl Controller {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Pids => "pids",
        }
    }
}

/// The two generations of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// Where the launcher lives inside of its own group, so that its workers can have groups beside it: the
/// kernel wants processes in the leaves alone. It has no limit of its own.
pub(crate) const LAUNCHER_GROUP: &str = "throng-rs.launcher";

/// The group that is ours to size by, also for who is in that leaf of it.
fn without_leaf(path: &[u8]) -> &[u8] {
    let parent =
        path.strip_suffix(LAUNCHER_GROUP.as_bytes()).and_then(|rest| rest.strip_suffix(b"/"));
    match parent {
        Some(b"") => b"/",
        Some(parent) => parent,
        None => path,
    }
}

/// Our own groups, as `/proc/self/cgroup` names them (never escaped there).
#[derive(Debug, Default)]
pub(crate) struct Membership {
    unified: Option<Vec<u8>>,
    /// Controllers as one line joins them, and the path.
    v1: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Membership {
    pub(crate) fn parse(text: &[u8]) -> Self {
        let mut found = Self::default();
        for line in lines(text) {
            let mut parts = line.splitn(3, |b| *b == b':');
            let (Some(id), Some(controllers), Some(path)) =
                (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let path = path.strip_suffix(b"\r").unwrap_or(path);
            if !path.starts_with(b"/") {
                continue;
            }
            if id == b"0" && controllers.is_empty() {
                found.unified.get_or_insert_with(|| without_leaf(path).to_vec());
                continue;
            }
            found.v1.push((controllers.to_vec(), path.to_vec()));
        }
        found
    }

    pub(crate) fn path(&self, version: Version, controller: Controller) -> Option<&[u8]> {
        match version {
            Version::V2 => self.unified.as_deref(),
            Version::V1 => self.line(controller).map(|(_, path)| path.as_slice()),
        }
    }

    /// The name of the folder that a line's joined controllers are usually mounted at: `cpu,cpuacct`.
    pub(crate) fn joined(&self, controller: Controller) -> Option<String> {
        self.line(controller).map(|(names, _)| String::from_utf8_lossy(names).into_owned())
    }

    fn line(&self, controller: Controller) -> Option<&(Vec<u8>, Vec<u8>)> {
        // `name=systemd` and its like are hierarchies without a controller.
        let named = |names: &[u8]| {
            names.split(|b| *b == b',').any(|name| name == controller.name().as_bytes())
        };
        self.v1.iter().find(|(names, _)| named(names))
    }
}

/// One mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) version: Version,
    /// Which group of the hierarchy is mounted, relative to our cgroup namespace.
    pub(crate) root: Vec<u8>,
    pub(crate) point: PathBuf,
    options: Vec<u8>,
}

impl Mount {
    /// Whether this mount can hold the files of `controller`; on v2 only the files themselves tell.
    pub(crate) fn carries(&self, controller: Controller) -> bool {
        self.version == Version::V2
            || self.options.split(|b| *b == b',').any(|name| name == controller.name().as_bytes())
    }
}

/// The fields of a mountinfo line that matter here, still escaped.
struct Line<'a> {
    id: &'a [u8],
    parent: &'a [u8],
    root: &'a [u8],
    point: &'a [u8],
    /// What follows ` - `: type, source and options; the source may be empty or hold spaces.
    tail: &'a [u8],
}

impl<'a> Line<'a> {
    /// Looks no further than ` - `: the options behind it, which an overlay fills with kilobytes, are
    /// nobody's business unless the mount is a cgroup's.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut rest = line;
        let mut field = || {
            let space = memchr(b' ', rest)?;
            let field = &rest[..space];
            rest = &rest[space + 1..];
            Some(field)
        };
        let (id, parent, _device) = (field()?, field()?, field()?);
        let (root, point) = (field()?, field()?);
        let dash = memmem::find(rest, b" - ")?;
        Some(Self { id, parent, root, point, tail: &rest[dash + 3..] })
    }

    fn version(&self) -> Option<Version> {
        let kind = memchr(b' ', self.tail).unwrap_or(self.tail.len());
        match &self.tail[..kind] {
            b"cgroup" => Some(Version::V1),
            b"cgroup2" => Some(Version::V2),
            _ => None,
        }
    }

    fn mount(&self) -> Option<Mount> {
        let version = self.version()?;
        let (root, point) = (unescape(self.root), unescape(self.point));
        if !root.starts_with(b"/") || !point.starts_with(b"/") {
            return None;
        }
        let options = trim(self.tail).rsplit(|b| *b == b' ').next()?.to_vec();
        Some(Mount { version, root, point: path_of(&point), options })
    }

    /// Whether `self`, a later line, lies over `earlier` so that paths no longer lead to it:
    /// the same mount point, or one above it on the same parent mount.
    fn hides(&self, earlier: &Line<'_>) -> bool {
        if self.point == earlier.point {
            return true;
        }
        let above =
            earlier.point.strip_prefix(self.point).is_some_and(|rest| rest.starts_with(b"/"));
        above && self.parent == earlier.parent && self.id != earlier.id
    }
}

/// The cgroup mounts that can be reached, in the order of the file. Nothing is copied of a line that
/// is not a cgroup's.
pub(crate) fn parse_mountinfo(text: &[u8]) -> Vec<Mount> {
    let mut found: Vec<(Line<'_>, Mount)> = Vec::new();
    for line in lines(text).filter_map(Line::parse) {
        found.retain(|(earlier, _)| !line.hides(earlier));
        if let Some(mount) = line.mount() {
            found.push((line, mount));
        }
    }
    found.into_iter().map(|(_, mount)| mount).collect()
}

/// `\040` and its like back to the byte: mountinfo escapes space, tab, newline and backslash.
pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if let (b'\\', &[a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) = (byte, after) {
            plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = &after[3..];
        } else {
            plain.push(byte);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn membership_keeps_colons_and_skips_junk() {
        let text = b"12:cpu,cpuacct:/a:b\n1:name=systemd:/x\n0::/app one\n::\nbad\n9:memory:rel\n";
        let ours = Membership::parse(text);
        assert_eq!(ours.path(Version::V1, Controller::Cpu), Some(&b"/a:b"[..]));
        assert_eq!(ours.path(Version::V2, Controller::Memory), Some(&b"/app one"[..]));
        assert_eq!(ours.path(Version::V1, Controller::Memory), None);
    }

    #[test]
    fn who_is_in_the_launchers_leaf_is_in_the_group_around_it() {
        for (path, want) in [
            ("/box/throng-rs.launcher", "/box"),
            ("/throng-rs.launcher", "/"),
            ("/throng-rs.launcher/throng-rs.launcher", "/throng-rs.launcher"),
            ("/box/not-throng-rs.launcher", "/box/not-throng-rs.launcher"),
            ("/box/throng-rs.launcher/x", "/box/throng-rs.launcher/x"),
        ] {
            let ours = Membership::parse(format!("0::{path}\n").as_bytes());
            assert_eq!(ours.path(Version::V2, Controller::Memory), Some(want.as_bytes()), "{path}");
        }
    }

    #[test]
    fn later_mounts_hide_earlier_ones() {
        let text = b"30 1 0:1 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
            31 30 0:2 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
            32 30 0:3 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,cpu\n\
            33 30 0:4 / /mnt/cg\\0402 ro shared:1 master:2 - cgroup2 none rw\n\
            34 30 0:5 / /mnt ro - tmpfs tmpfs rw\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 1);
        assert!(mounts[0].carries(Controller::Cpu) && !mounts[0].carries(Controller::Memory));
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"/a\\040b\\134x2d\\"), b"/a b\\x2d\\");
        assert_eq!(unescape(b"\\400\\04"), b"\\400\\04");
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (parse_mountinfo(&text), Membership::parse(&text), unescape(&text));
        }
    }
}
