//! What the kernel counts when memory runs out: whom it killed, and at which level there was none left.

use std::path::Path;

use super::parse::{keyed, number, trim};
use super::{Controller, Host, chain, parse};

/// The counters of one level, our own first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OomLevel {
    /// The file of its limit, and the limit in bytes.
    pub(crate) file: String,
    pub(crate) limit: Option<u64>,
    /// How often this level had nothing left. v2: also where a level below it had none (`oom` in
    /// `memory.events`); v1: how often its limit was hit (`memory.failcnt`).
    pub(crate) hits: u64,
    /// Processes of this group that were killed for memory; v2 with the groups below it.
    pub(crate) kills: u64,
}

/// What happened between two looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OomCause {
    /// How many processes of ours were killed.
    pub(crate) kills: u64,
    /// Which level had nothing left, and its limit; none where it is above all that can be seen: the machine
    /// itself, or a group around ours.
    pub(crate) level: Option<(String, u64)>,
}

/// The counters of all levels, our own first. Those of a kernel that does not count are zero.
pub(crate) fn oom_levels(host: &Host) -> Vec<OomLevel> {
    chain(host, Controller::Memory).iter().map(|dir| oom_level(host, dir)).collect()
}

/// The counters of one group.
pub(crate) fn oom_level(host: &Host, dir: &Path) -> OomLevel {
    let read = |name: &str| host.read(&dir.join(name)).unwrap_or_default();
    let limit = |name: &str| {
        let limit = match parse::limit(&read(name)) {
            parse::Limit::At(bytes) => Some(bytes),
            _ => None,
        };
        (dir.join(name).display().to_string(), limit)
    };
    let events = read("memory.events");
    if events.is_empty() {
        let (file, limit) = limit("memory.limit_in_bytes");
        let hits = number(trim(&read("memory.failcnt"))).unwrap_or(0);
        let kills = keyed(&read("memory.oom_control"), "oom_kill").unwrap_or(0);
        return OomLevel { file, limit, hits, kills };
    }
    let (file, limit) = limit("memory.max");
    let count = |key| keyed(&events, key).unwrap_or(0);
    OomLevel { file, limit, hits: count("oom"), kills: count("oom_kill") }
}

impl OomCause {
    /// What came between `before` and `after`; none where nobody of ours was killed for memory.
    pub(crate) fn between(before: &[OomLevel], after: &[OomLevel]) -> Option<Self> {
        let (own, then) = (after.first()?, before.first()?);
        // After a move to another group the counters have nothing to do with each other.
        if own.file != then.file {
            return None;
        }
        let kills = own.kills.checked_sub(then.kills).filter(|kills| *kills > 0)?;
        // A level is counted where it ran out and at those above it, so the nearest is the one.
        let hit = after.iter().zip(before).find(|(now, then)| now.hits > then.hits);
        let level = hit.and_then(|(now, _)| Some((now.file.clone(), now.limit?)));
        Some(Self { kills, level })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(own: (u64, u64), parent: (u64, u64)) -> Vec<OomLevel> {
        let events = |(oom, kills): (u64, u64)| {
            format!("low 0\nhigh 9\nmax 50\noom {oom}\noom_kill {kills}\n")
        };
        let (own, parent) = (events(own), events(parent));
        oom_levels(&Host::from_files([
            ("/proc/self/cgroup", "0::/a/b\n"),
            ("/proc/self/mountinfo", "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw"),
            ("/sys/fs/cgroup/a/b/memory.events", own.as_str()),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.events", parent.as_str()),
            ("/sys/fs/cgroup/a/memory.max", "268435456\n"),
        ]))
    }

    #[test]
    fn the_nearest_level_that_ran_out_is_named() {
        let before = v2((0, 0), (3, 5));
        assert_eq!(OomCause::between(&before, &before), None);
        let cause = OomCause::between(&before, &v2((0, 2), (4, 7))).unwrap();
        assert_eq!(cause.kills, 2);
        assert_eq!(cause.level, Some(("/sys/fs/cgroup/a/memory.max".to_owned(), 256 << 20)));
        // Somebody else below the same parent.
        assert_eq!(OomCause::between(&before, &v2((0, 0), (4, 6))), None);
        // The machine, or what lies above our view.
        assert_eq!(OomCause::between(&before, &v2((0, 1), (3, 6))).unwrap().level, None);
    }

    #[test]
    fn v1_counts_otherwise() {
        let levels = |fails: &str, kills: &str| {
            let control = format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
            oom_levels(&Host::from_files([
                ("/proc/self/cgroup", "4:memory:/\n"),
                (
                    "/proc/self/mountinfo",
                    "1 0 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
                ),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864\n"),
                ("/sys/fs/cgroup/memory/memory.failcnt", fails),
                ("/sys/fs/cgroup/memory/memory.oom_control", control.as_str()),
            ]))
        };
        let cause = OomCause::between(&levels("7\n", "0"), &levels("90\n", "1")).unwrap();
        let file = "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned();
        assert_eq!(cause, OomCause { kills: 1, level: Some((file, 64 << 20)) });
    }
}
