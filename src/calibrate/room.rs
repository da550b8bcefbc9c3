//! What memory is left beside a calibration, at every level that can run out, and how the quota fares.

use std::path::{Path, PathBuf};

use crate::probe::{Controller, Host, Resources, chain, parse};
use crate::units::{GIB, MIB};

/// What is kept free below a limit: a tenth, since what is in use is measured.
const LEAST_FREE: u64 = 16 * MIB;

/// Memory now, at the level with the least room, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) used: u64,
    /// Above the headroom.
    pub(crate) room: u64,
    /// Whether the headroom itself is half gone.
    pub(crate) tight: bool,
    /// Whether it is the machine itself, on which others come and go.
    pub(crate) machine: bool,
}

/// Everything that can run out, found once.
#[derive(Clone, Debug)]
pub(crate) struct Gauge(Vec<Level>);

#[derive(Clone, Debug)]
struct Level {
    /// What may be used.
    target: u64,
    headroom: u64,
    /// What tells how much is.
    file: PathBuf,
    machine: bool,
}

impl Gauge {
    pub(crate) fn new(resources: &Resources) -> Self {
        let levels = resources.memory.ceilings.iter().filter_map(|ceiling| {
            let file = PathBuf::from(ceiling.used_source.as_ref()?);
            let limit = ceiling.limit.as_ref().map(|limit| limit.value);
            let headroom = limit.map_or(0, |limit| (limit / 10).clamp(LEAST_FREE, GIB));
            let hard = limit.map_or(u64::MAX, |limit| limit.saturating_sub(headroom));
            let soft = ceiling.high.as_ref().map_or(u64::MAX, |high| high.value / 100 * 95);
            let (target, machine) = (hard.min(soft), ceiling.machine);
            (target < u64::MAX).then_some(Level { target, headroom, file, machine })
        });
        Self(levels.collect())
    }

    /// The level with the least room; none where no limit is known.
    pub(crate) fn left(&self, host: &Host) -> Option<Left> {
        let rooms = self.0.iter().filter_map(|level| {
            let used = level.used(host)?;
            let room = level.target.saturating_sub(used);
            let tight = used > level.target.saturating_add(level.headroom / 2);
            Some(Left { used, room, tight, machine: level.machine })
        });
        rooms.min_by_key(|left| left.room)
    }
}

impl Level {
    /// What is in use and cannot be dropped at once.
    fn used(&self, host: &Host) -> Option<u64> {
        let text = host.read(&self.file).ok()?;
        if self.machine {
            let (all, free) =
                (parse::meminfo(&text, "MemTotal")?, parse::meminfo(&text, "MemAvailable")?);
            return Some(all.saturating_sub(free));
        }
        let current = parse::number(parse::trim(&text))?;
        let stat = host.read(&self.file.parent().unwrap_or(Path::new("/")).join("memory.stat"));
        let stat = stat.unwrap_or_default();
        // The total_ keys of v1 include the groups below, as its usage does.
        let inactive = parse::keyed(&stat, "total_inactive_file")
            .or_else(|| parse::keyed(&stat, "inactive_file"));
        let slab = parse::keyed(&stat, "slab_reclaimable").unwrap_or(0);
        Some(current.saturating_sub(inactive.unwrap_or(0).saturating_add(slab / 2)))
    }
}

/// The quota's periods since the group was made, and those in which it was used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Throttling {
    periods: u64,
    throttled: u64,
}

impl Throttling {
    /// Of the nearest level that counts them.
    pub(crate) fn now(host: &Host) -> Self {
        let levels = chain(host, Controller::Cpu);
        let stats = levels.iter().filter_map(|dir| host.read(&dir.join("cpu.stat")).ok());
        let mut counted = stats.filter_map(|stat| {
            let count = |key| parse::keyed(&stat, key);
            let (periods, throttled) = (count("nr_periods")?, count("nr_throttled")?);
            (periods > 0).then_some(Self { periods, throttled })
        });
        counted.next().unwrap_or_default()
    }

    /// The share of the periods since then in which the quota was used up.
    #[expect(clippy::cast_precision_loss, reason = "a few periods")]
    pub(crate) fn since(self, before: Self) -> f64 {
        let periods = self.periods.saturating_sub(before.periods);
        let throttled = self.throttled.saturating_sub(before.throttled);
        if periods == 0 { 0.0 } else { throttled.min(periods) as f64 / periods as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(current: &str) -> Host {
        Host::from_files([
            ("/proc/self/cgroup", "0::/a\n"),
            ("/proc/self/mountinfo", "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw"),
            ("/sys/fs/cgroup/a/memory.max", "268435456\n"),
            ("/sys/fs/cgroup/a/memory.current", current),
            ("/sys/fs/cgroup/a/memory.stat", "inactive_file 10485760\nslab_reclaimable 2097152\n"),
            ("/sys/fs/cgroup/a/cpu.stat", "nr_periods 40\nnr_throttled 10\n"),
        ])
    }

    #[test]
    fn a_tenth_stays_free_and_what_can_be_dropped_is_not_used() {
        let host_then = host("62914560\n");
        let gauge = Gauge::new(&Resources::of(&host_then));
        let left = gauge.left(&host_then).unwrap();
        assert_eq!(left.used, (60 - 10 - 1) * MIB);
        assert_eq!(left.room, 268_435_456 - 26_843_545 - left.used);
        assert!(!left.tight && !left.machine);
        // 256 MiB less 11: in the headroom's last half.
        let left = gauge.left(&host("268435456\n")).unwrap();
        assert_eq!(left.room, 0);
        assert!(left.tight);
    }

    #[test]
    fn shares_of_periods() {
        let now = Throttling::now(&host("0\n"));
        assert!((now.since(Throttling::default()) - 0.25).abs() < 1e-9);
        assert!(now.since(now).abs() < 1e-9);
    }
}
