//! What is known of our own group before anything is done to it, and whether it is ours to divide. The
//! decision is made from facts alone.

use std::path::{Path, PathBuf};

use crate::probe::{Host, LAUNCHER_GROUP, unified};
use crate::units::show_size;

use super::super::Sized;

/// What the groups of ours are called, so that those of a launcher that was killed can be known.
pub(in crate::engine) const OURS: &str = "throng-rs.";
/// A tree of groups may be huge; so many below ours are looked at.
const MOST_GROUPS: usize = 4096;
/// Units whose folders systemd manages by itself.
const UNITS: [&str; 3] = [".service", ".scope", ".slice"];

/// What cannot be read from a file.
pub(super) struct Means<'a> {
    /// Why a file or folder cannot be written, where it cannot.
    pub(super) locked: &'a dyn Fn(&Path) -> Option<String>,
    /// Whether systemd has given a folder away (`Delegate=`, `systemd.resource-control(5)`).
    pub(super) delegated: &'a dyn Fn(&Path) -> bool,
}

/// Our own group.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) dir: PathBuf,
    /// `cgroup.type`; the group that holds a whole machine has no such file.
    kind: Option<String>,
    /// What it can hand on to groups below it.
    pub(super) controllers: Vec<String>,
    /// What it hands on already.
    pub(super) enabled: Vec<String>,
    /// The processes in it by pid, 0 for those of another pid namespace.
    members: Vec<u32>,
    /// Groups below it that have processes.
    populated: Vec<PathBuf>,
    /// Groups below it that an earlier launcher left, and nobody is in.
    pub(super) left: Vec<PathBuf>,
    /// Why it cannot be written, where it cannot.
    locked: Option<String>,
    /// The systemd unit that it belongs to, where that keeps its groups to itself.
    unit: Option<PathBuf>,
}

impl Facts {
    /// Looks at our own group; the error says why it cannot be one of those that are divided.
    pub(super) fn read(host: &Host, means: &Means<'_>) -> Result<Self, String> {
        let chain = unified(host).map_err(str::to_owned)?;
        let dir = chain.first().ok_or("our own cgroup cannot be seen")?.clone();
        let text = |name: &str| {
            let text = host.read(&dir.join(name)).ok()?;
            Some(String::from_utf8_lossy(&text).trim().to_owned())
        };
        let words = |name: &str| -> Vec<String> {
            text(name).unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
        };
        let (mut populated, mut left) = (Vec::new(), Vec::new());
        for below in host.subdirectories(&dir, MOST_GROUPS) {
            let events = host.read(&below.join("cgroup.events")).unwrap_or_default();
            let name = below.file_name().unwrap_or_default().to_string_lossy();
            if String::from_utf8_lossy(&events).lines().any(|line| line == "populated 1") {
                populated.push(below);
            } else if name.starts_with(OURS) {
                left.push(below);
            }
        }
        // What we write to. The files say more than the folder: a namespace may own some of them alone.
        let files = ["", "cgroup.procs", "cgroup.subtree_control"];
        let locked = files.iter().find_map(|name| (means.locked)(&dir.join(name)));
        let managed = host.exists(Path::new("/run/systemd/system"));
        let is_unit = |level: &&PathBuf| {
            let name = level.file_name().unwrap_or_default().to_string_lossy();
            UNITS.iter().any(|kind| name.ends_with(kind))
        };
        let unit = chain.iter().find(is_unit).filter(|_| managed);
        let unit = unit.filter(|unit| !(means.delegated)(unit)).cloned();
        Ok(Self {
            kind: text("cgroup.type"),
            controllers: words("cgroup.controllers"),
            enabled: words("cgroup.subtree_control"),
            members: words("cgroup.procs").iter().filter_map(|pid| pid.parse().ok()).collect(),
            populated,
            left,
            locked,
            unit,
            dir,
        })
    }

    /// Why the group is not to be divided by the process `own`; the first reason of several.
    pub(super) fn obstacle(&self, own: u32) -> Option<String> {
        let dir = self.dir.display();
        match self.kind.as_deref() {
            None => {
                return Some(format!("{dir} holds the whole machine; start in a group of our own"));
            }
            Some("domain") => {}
            Some(kind) => {
                return Some(format!("{dir} is a \"{kind}\" group, which has no memory to divide"));
            }
        }
        if !self.controllers.iter().any(|name| name == "memory") {
            return Some(format!("{dir} has no memory controller (cgroup.controllers)"));
        }
        if let Some(unit) = &self.unit {
            let unit = unit.file_name().unwrap_or_default().to_string_lossy();
            return Some(format!(
                "systemd keeps the cgroup of {unit} to itself; add Delegate=yes to the unit"
            ));
        }
        if let Some(why) = &self.locked {
            return Some(why.clone());
        }
        let foreign = self.members.iter().filter(|pid| **pid != own).count();
        if foreign > 0 {
            let who = match foreign {
                1 => "another process".to_owned(),
                many => format!("{many} other processes"),
            };
            return Some(format!("{dir} holds {who}; start with exec, in a group of our own"));
        }
        if let Some(group) = self.populated.first() {
            let name = group.file_name().unwrap_or_default().to_string_lossy();
            let leaf = if name == LAUNCHER_GROUP { " (another launcher's)" } else { "" };
            return Some(format!("{} holds processes{leaf} beside us", group.display()));
        }
        None
    }
}

/// Why limits of their own would do the workers no good; what is reckoned, not what is there.
pub(super) fn too_tight(sized: &Sized) -> Option<String> {
    let Some(budget) = sized.bounds.budget else {
        return Some("no limit of memory is known that could be shared out".to_owned());
    };
    let each = budget / u64::from(sized.bounds.workers.max(1));
    // Shares that hold nobody would kill those who now get along by using what others leave.
    (each < sized.cost).then(|| {
        let (each, cost) = (show_size(each), show_size(sized.cost));
        format!("a share of {each} is less than the {cost} that a worker is reckoned with")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw";

    fn look(
        files: &[(&str, &str)],
        delegated: bool,
        locked: Option<&'static str>,
    ) -> Result<Facts, String> {
        let host = Host::from_files(files.iter().copied());
        let locked = |_: &Path| locked.map(str::to_owned);
        Facts::read(&host, &Means { locked: &locked, delegated: &|_| delegated })
    }

    fn service(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        let mut files = vec![
            ("/proc/self/cgroup", "0::/system.slice/app.service\n"),
            ("/proc/self/mountinfo", ROOT),
            ("/sys/fs/cgroup/system.slice/app.service/cgroup.type", "domain\n"),
            ("/sys/fs/cgroup/system.slice/app.service/cgroup.controllers", "cpu memory pids\n"),
            ("/sys/fs/cgroup/system.slice/app.service/cgroup.procs", "42\n"),
        ];
        for (path, text) in more {
            files.retain(|(known, _)| known != path);
            files.push((path, text));
        }
        files
    }

    fn obstacle(more: &[(&'static str, &'static str)], delegated: bool) -> Option<String> {
        look(&service(more), delegated, None).unwrap().obstacle(42)
    }

    #[test]
    fn a_group_of_our_own_is_divided() {
        let facts = look(&service(&[]), false, None).unwrap();
        assert_eq!(facts.obstacle(42), None);
        assert_eq!(facts.dir, Path::new("/sys/fs/cgroup/system.slice/app.service"));
        assert_eq!(facts.controllers, ["cpu", "memory", "pids"]);
    }

    #[test]
    fn systemd_has_to_give_it_away() {
        let systemd = ("/run/systemd/system/x", "");
        let why = obstacle(&[systemd], false).unwrap();
        assert!(why.contains("app.service") && why.contains("Delegate=yes"), "{why}");
        assert_eq!(obstacle(&[systemd], true), None);
        // Inside of a unit that is delegated; and beside all units.
        let below = |path: &'static str, group: &'static str, procs, kind, controllers| {
            vec![
                ("/proc/self/cgroup", path),
                (procs, "42"),
                (kind, "domain"),
                (controllers, "memory"),
                (group, ""),
                ("/proc/self/mountinfo", ROOT),
                systemd,
            ]
        };
        let own = below(
            "0::/own\n",
            "/sys/fs/cgroup/own/x",
            "/sys/fs/cgroup/own/cgroup.procs",
            "/sys/fs/cgroup/own/cgroup.type",
            "/sys/fs/cgroup/own/cgroup.controllers",
        );
        assert_eq!(look(&own, false, None).unwrap().obstacle(42), None);
    }

    #[test]
    fn each_reason_is_told() {
        let group = "/sys/fs/cgroup/system.slice/app.service";
        for (file, text, want) in [
            (
                "/sys/fs/cgroup/system.slice/app.service/cgroup.type",
                "domain threaded\n",
                "\"domain threaded\"",
            ),
            (
                "/sys/fs/cgroup/system.slice/app.service/cgroup.controllers",
                "cpu pids\n",
                "no memory controller",
            ),
            (
                "/sys/fs/cgroup/system.slice/app.service/cgroup.procs",
                "42\n7\n",
                "holds another process",
            ),
            (
                "/sys/fs/cgroup/system.slice/app.service/cgroup.procs",
                "42\n0\n0\n",
                "holds 2 other processes",
            ),
            (
                "/sys/fs/cgroup/system.slice/app.service/other/cgroup.events",
                "populated 1\nfrozen 0\n",
                "other holds processes",
            ),
            (
                "/sys/fs/cgroup/system.slice/app.service/throng-rs.launcher/cgroup.events",
                "populated 1\n",
                "another launcher's",
            ),
        ] {
            let why = obstacle(&[(file, text)], false).unwrap_or_default();
            assert!(why.contains(want) && why.contains(group), "{file}: {why:?}, not {want}");
        }
        let why = look(&service(&[]), false, Some("it is read-only")).unwrap().obstacle(42);
        assert_eq!(why.as_deref(), Some("it is read-only"));
    }

    #[test]
    fn the_group_of_a_whole_machine_is_not_divided_and_that_of_a_container_is() {
        let files = |more: &[(&'static str, &'static str)]| {
            let mut files = vec![
                ("/proc/self/cgroup", "0::/\n"),
                ("/proc/self/mountinfo", ROOT),
                ("/sys/fs/cgroup/cgroup.controllers", "memory\n"),
                ("/sys/fs/cgroup/cgroup.procs", "1\n"),
            ];
            files.extend(more);
            look(&files, false, None).unwrap().obstacle(1)
        };
        assert!(files(&[]).unwrap().contains("whole machine"));
        assert_eq!(files(&[("/sys/fs/cgroup/cgroup.type", "domain\n")]), None);
    }

    #[test]
    fn what_a_killed_launcher_left_is_known_and_no_obstacle() {
        let facts = look(
            &service(&[
                (
                    "/sys/fs/cgroup/system.slice/app.service/throng-rs.worker-1.4/cgroup.events",
                    "populated 0\n",
                ),
                ("/sys/fs/cgroup/system.slice/app.service/.control/cgroup.events", "populated 0\n"),
            ]),
            false,
            None,
        );
        let facts = facts.unwrap();
        assert_eq!(facts.obstacle(42), None);
        assert_eq!(facts.left, [facts.dir.join("throng-rs.worker-1.4")]);
    }

    #[test]
    fn memory_in_v1_is_told() {
        let why = look(
            &[
                ("/proc/self/cgroup", "4:memory:/a\n0::/a\n"),
                (
                    "/proc/self/mountinfo",
                    "1 0 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n2 0 0:2 / /sys/fs/cgroup/unified rw - cgroup2 cgroup rw",
                ),
                ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1\n"),
            ],
            false,
            None,
        );
        assert!(why.unwrap_err().contains("cgroup v1"));
    }
}
