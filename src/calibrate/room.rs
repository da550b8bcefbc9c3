//! What memory is left beside a calibration, at every level that can run out.

use crate::plan::least_headroom;
use crate::probe::Reading;

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

/// The level with the least room; none where no limit is known.
pub(crate) fn left(reading: &Reading) -> Option<Left> {
    let rooms = reading.levels.iter().map(|level| {
        let headroom = least_headroom(level.limit);
        let target = level.limit.saturating_sub(headroom);
        Left {
            used: level.used,
            room: target.saturating_sub(level.used),
            tight: level.used > target.saturating_add(headroom / 2),
            machine: level.is_machine(),
        }
    });
    rooms.min_by_key(|left| left.room)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Gauge, Host};
    use crate::units::{GIB, MIB};

    fn now(current: &str) -> Left {
        let host = Host::from_files([
            ("/proc/self/cgroup", "0::/a\n"),
            ("/proc/self/mountinfo", "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw"),
            ("/proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 100 kB\nMemAvailable: 6291456 kB\n"),
            ("/sys/fs/cgroup/a/memory.max", "268435456\n"),
            ("/sys/fs/cgroup/a/memory.current", current),
            ("/sys/fs/cgroup/a/memory.stat", "inactive_file 10485760\nslab_reclaimable 2097152\n"),
        ]);
        left(&Gauge::find(&host).read(&host)).unwrap()
    }

    #[test]
    fn a_tenth_stays_free_and_what_can_be_dropped_is_not_used() {
        let left = now("62914560\n");
        assert_eq!(left.used, (60 - 10 - 1) * MIB);
        assert_eq!(left.room, 268_435_456 - 26_843_545 - left.used);
        assert!(!left.tight && !left.machine);
        // 256 MiB less 11: in the headroom's last half.
        let left = now("268435456\n");
        assert_eq!(left.room, 0);
        assert!(left.tight);
    }

    #[test]
    fn without_a_limit_it_is_the_machine() {
        let host = Host::from_files([(
            "/proc/meminfo",
            "MemTotal: 8388608 kB\nMemFree: 100 kB\nMemAvailable: 6291456 kB\n",
        )]);
        let left = left(&Gauge::find(&host).read(&host)).unwrap();
        assert!(left.machine);
        assert_eq!(left.used, 2 * GIB);
    }
}
