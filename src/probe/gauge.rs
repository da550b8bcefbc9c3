//! What moves while a fleet runs: how full each level is, how often the kernel had to reclaim there, how
//! long tasks stood still for want of memory, how often a CPU quota was used up.
//!
//! The same files and parsers as at the start. Where they are is found once and after a move to another
//! group; a look costs the files alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::levels::{MemoryLevel, Reader};
use super::locate::{Place, locate, unified_dir};
use super::machine::Machine;
use super::mounts::{Controller, Membership, Version};
use super::parse::{self, keyed, number, trim};
use super::{Host, mounts_of};

const MEMBERSHIP: &str = "/proc/self/cgroup";
/// How often a level hit its own limits. Since 5.2 the second file counts the groups below, too, and the first is there.
const OWN_EVENTS: [&str; 2] = ["memory.events.local", "memory.events"];
/// Of the whole machine.
const PRESSURE: &str = "/proc/pressure/memory";

/// Where to look.
#[derive(Debug)]
pub(crate) struct Gauge {
    /// The text that all of this was found by.
    membership: Vec<u8>,
    memory: Option<Place>,
    cpu: Option<Place>,
    /// `memory.pressure` of our group; none where the machine's has to do.
    pressure: Option<PathBuf>,
    /// v2: the files that are written to when a limit is hit.
    events: Vec<PathBuf>,
}

/// One look; the counters count from the beginning of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// Every level that has a limit below the machine's memory, our own first, and the machine.
    pub(crate) levels: Vec<Level>,
    /// How long some task stood still for want of memory.
    pub(crate) stalled: Option<Duration>,
    /// It is any task of the machine that stood still, and not one of our group.
    pub(crate) machine_wide: bool,
    /// How often the kernel had to reclaim at a limit: per level, our own first.
    pub(crate) hits: Vec<u64>,
    /// Periods of a quota and those in which it was used up: per level, our own first.
    pub(crate) periods: Vec<(u64, u64)>,
}

/// How full one level is, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    /// What it kills above, or throttles above where that is less.
    pub(crate) limit: u64,
    /// What cannot be reclaimed at once.
    pub(crate) used: u64,
    /// Of it, shared memory and files of a `tmpfs`; none where that is not told.
    pub(crate) shmem: Option<u64>,
    /// The file of the limit.
    pub(crate) source: String,
    /// Of the group; none for the machine.
    dir: Option<PathBuf>,
}

impl Level {
    pub(crate) fn room(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    pub(crate) fn is_machine(&self) -> bool {
        self.dir.is_none()
    }
}

/// Files that tell of themselves when memory gets scarce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notices {
    /// Takes a PSI trigger.
    pub(crate) pressure: PathBuf,
    /// v2: written to by the kernel whenever a limit is hit.
    pub(crate) events: Vec<PathBuf>,
    /// v1: directories whose usage can be given thresholds, with the limits.
    pub(crate) thresholds: Vec<(PathBuf, u64)>,
}

impl Gauge {
    pub(crate) fn find(host: &Host) -> Self {
        let read = |path: &str| host.read(Path::new(path)).unwrap_or_default();
        let membership = read(MEMBERSHIP);
        let ours = Membership::parse(&membership);
        let mounts = mounts_of(host, &read("/proc/self/mountinfo"));
        let memory = locate(host, &ours, &mounts, Controller::Memory);
        let cpu = locate(host, &ours, &mounts, Controller::Cpu);
        // Also where memory is limited by v1: tasks are counted where they are in v2's tree.
        let group = unified_dir(host, &ours, &mounts).map(|dir| dir.join("memory.pressure"));
        let pressure = group.filter(|file| host.read(file).is_ok());
        let v2 = memory.iter().filter(|place| place.version == Version::V2);
        let events = v2.flat_map(|place| &place.chain).filter_map(|dir| {
            // Only its own: a worker at the limit of a group of its own would wake us all the time.
            let files = OWN_EVENTS.map(|name| dir.join(name));
            files.into_iter().find(|file| host.exists(file))
        });
        let events = events.collect();
        Self { membership, memory, cpu, pressure, events }
    }

    /// Whether we are in other groups by now, where nothing that was counted before compares.
    pub(crate) fn has_moved(&self, host: &Host) -> bool {
        host.read(Path::new(MEMBERSHIP)).is_ok_and(|text| text != self.membership)
    }

    /// What cannot be read is left out.
    pub(crate) fn read(&self, host: &Host) -> Reading {
        let mut reader = Reader { host, warnings: Vec::new() };
        let mut machine = Machine::default();
        machine.probe_memory(&mut reader);
        let ram = machine.memory.clone();
        let memory = self.memory.as_ref().map(|place| reader.memory(place)).unwrap_or_default();
        let mut levels: Vec<Level> = memory.iter().filter_map(level).collect();
        levels.retain(|level| ram.as_ref().is_none_or(|ram| level.limit < ram.value));
        if let (Some(ram), Some(free)) = (ram, machine.available) {
            let used = ram.value.saturating_sub(free);
            let (limit, shmem) = (ram.value, machine.shmem);
            levels.push(Level { limit, used, shmem, source: ram.source, dir: None });
        }
        let stall = host.read(self.pressure_file()).ok();
        Reading {
            levels,
            stalled: stall.and_then(|text| stalled(&text)),
            machine_wide: self.pressure.is_none(),
            hits: self.memory.iter().flat_map(|place| hits(host, place)).collect(),
            periods: self.cpu.iter().flat_map(|place| periods(host, place)).collect(),
        }
    }

    fn pressure_file(&self) -> &Path {
        self.pressure.as_deref().unwrap_or(Path::new(PRESSURE))
    }

    /// What can tell of itself, by what the last look found.
    pub(crate) fn notices(&self, last: &Reading) -> Notices {
        let v1 = self.memory.as_ref().is_some_and(|place| place.version == Version::V1);
        let levels = last.levels.iter().filter(|_| v1);
        Notices {
            pressure: self.pressure_file().to_owned(),
            events: self.events.clone(),
            thresholds: levels
                .filter_map(|level| Some((level.dir.clone()?, level.limit)))
                .collect(),
        }
    }
}

/// None where it has no limit, or does not tell what it uses.
fn level(level: &MemoryLevel) -> Option<Level> {
    level.current.as_ref()?;
    let high = level.high.as_ref().map(|high| (high.value / 20 * 19, &high.source));
    let hard = level.limit.as_ref().map(|limit| (limit.value, &limit.source));
    let (limit, source) = hard.into_iter().chain(high).min_by_key(|(limit, _)| *limit)?;
    let dir = Some(PathBuf::from(&level.dir));
    let (used, shmem) = (level.working_set(), level.shmem);
    Some(Level { limit, used, shmem, source: source.clone(), dir })
}

fn hits(host: &Host, place: &Place) -> impl Iterator<Item = u64> {
    place.chain.iter().map(|dir| {
        let read = |name: &str| host.read(&dir.join(name)).ok();
        if place.version == Version::V1 {
            return read("memory.failcnt").and_then(|text| number(trim(&text))).unwrap_or(0);
        }
        let events = OWN_EVENTS.iter().find_map(|name| read(name));
        let events = events.unwrap_or_default();
        let count = |key| keyed(&events, key).unwrap_or(0);
        count("max").saturating_add(count("high"))
    })
}

fn periods(host: &Host, place: &Place) -> impl Iterator<Item = (u64, u64)> {
    place.chain.iter().map(|dir| {
        let text = host.read(&dir.join("cpu.stat")).unwrap_or_default();
        let count = |key| keyed(&text, key).unwrap_or(0);
        (count("nr_periods"), count("nr_throttled"))
    })
}

/// `total=` of the line `some`, microseconds (the kernel's `accounting/psi.rst`).
fn stalled(text: &[u8]) -> Option<Duration> {
    let line = parse::lines(text).find_map(|line| line.strip_prefix(b"some "))?;
    let total = parse::words(line).find_map(|word| word.strip_prefix(b"total="))?;
    number(total).map(Duration::from_micros)
}

impl Reading {
    /// The level with the least room left.
    pub(crate) fn tightest(&self) -> Option<&Level> {
        self.levels.iter().min_by_key(|level| level.room())
    }

    /// How often the kernel had to reclaim at any limit since `before`.
    pub(crate) fn hits_since(&self, before: &Self) -> u64 {
        let pairs = self.hits.iter().zip(&before.hits);
        pairs.map(|(now, then)| now.saturating_sub(*then)).sum()
    }

    /// The share of `span` in which some task stood still for want of memory.
    pub(crate) fn stalled_since(&self, before: &Self, span: Duration) -> Option<f64> {
        let stood = self.stalled?.checked_sub(before.stalled?)?;
        (!span.is_zero()).then(|| (stood.as_secs_f64() / span.as_secs_f64()).min(1.0))
    }

    /// The share of periods in which a quota was used up, of the level where that was worst.
    pub(crate) fn throttled_since(&self, before: &Self) -> f64 {
        let share = |(now, then): (&(u64, u64), &(u64, u64))| {
            let periods = now.0.saturating_sub(then.0);
            let throttled = now.1.saturating_sub(then.1).min(periods);
            #[expect(clippy::cast_precision_loss, reason = "periods since the last look")]
            let share = throttled as f64 / periods.max(1) as f64;
            share
        };
        self.periods.iter().zip(&before.periods).map(share).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;

    /// Files of a container on a v2 host, as a kernel 6.8 wrote them.
    fn v2(more: &[(&str, &str)]) -> Host {
        let mut files = vec![
            ("/proc/self/cgroup", "0::/pod/web\n"),
            ("/proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"),
            ("/proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 100 kB\nMemAvailable: 6291456 kB\n"),
            ("/proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=77\n"),
            ("/sys/fs/cgroup/pod/web/memory.max", "536870912\n"),
            ("/sys/fs/cgroup/pod/web/memory.high", "max\n"),
            ("/sys/fs/cgroup/pod/web/memory.current", "314572800\n"),
            (
                "/sys/fs/cgroup/pod/web/memory.stat",
                "anon 104857600\nfile 167772160\nshmem 5242880\nslab_reclaimable 20971520\ninactive_file 104857600\n",
            ),
            (
                "/sys/fs/cgroup/pod/web/memory.pressure",
                "some avg10=1.20 avg60=0.30 avg300=0.05 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
            ),
            ("/sys/fs/cgroup/pod/web/memory.events", "low 0\nhigh 3\nmax 40\noom 0\noom_kill 0\n"),
            (
                "/sys/fs/cgroup/pod/web/memory.events.local",
                "low 0\nhigh 2\nmax 30\noom 0\noom_kill 0\n",
            ),
            (
                "/sys/fs/cgroup/pod/web/cpu.stat",
                "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 1000\nnr_throttled 100\nthrottled_usec 7\n",
            ),
            ("/sys/fs/cgroup/pod/memory.max", "max\n"),
            ("/sys/fs/cgroup/pod/memory.high", "629145600\n"),
            ("/sys/fs/cgroup/pod/memory.current", "471859200\n"),
            ("/sys/fs/cgroup/pod/cpu.stat", "usage_usec 5\nnr_periods 0\nnr_throttled 0\n"),
        ];
        files.retain(|(path, _)| !more.iter().any(|(name, _)| name == path));
        files.extend(more);
        Host::from_files(files)
    }

    #[test]
    fn each_level_with_what_it_cannot_give_back() {
        let host = v2(&[]);
        let gauge = Gauge::find(&host);
        let reading = gauge.read(&host);
        let found: Vec<_> = reading.levels.iter().map(|level| (level.limit, level.used)).collect();
        // current − inactive_file − ½ slab_reclaimable; 0.95 of memory.high; the machine.
        assert_eq!(
            found,
            [(512 * MIB, 190 * MIB), (570 * MIB, 450 * MIB), (8192 * MIB, 2048 * MIB)]
        );
        let tightest = reading.tightest().unwrap();
        assert_eq!(tightest.source, "/sys/fs/cgroup/pod/memory.high");
        assert_eq!((reading.levels[0].shmem, tightest.shmem), (Some(5 * MIB), None));
        assert_eq!(reading.stalled, Some(Duration::from_millis(1500)));
        assert_eq!(reading.hits, [32, 0, 0]);
        assert_eq!(reading.periods[..2], [(1000, 100), (0, 0)]);
        let notices = gauge.notices(&reading);
        assert_eq!(notices.pressure, Path::new("/sys/fs/cgroup/pod/web/memory.pressure"));
        assert_eq!(notices.events, [Path::new("/sys/fs/cgroup/pod/web/memory.events.local")]);
        assert_eq!(notices.thresholds, []);
    }

    #[test]
    fn what_came_between_two_looks() {
        let before = v2(&[]);
        let gauge = Gauge::find(&before);
        let after = v2(&[
            (
                "/sys/fs/cgroup/pod/web/memory.pressure",
                "some avg10=9.00 avg60=0.30 avg300=0.05 total=1750000\n",
            ),
            ("/sys/fs/cgroup/pod/web/memory.events.local", "low 0\nhigh 2\nmax 37\n"),
            ("/sys/fs/cgroup/pod/web/cpu.stat", "nr_periods 1050\nnr_throttled 140\n"),
        ]);
        let (first, second) = (gauge.read(&before), gauge.read(&after));
        assert_eq!(second.stalled_since(&first, Duration::from_secs(5)), Some(0.05));
        assert_eq!(second.stalled_since(&first, Duration::ZERO), None);
        assert_eq!(second.hits_since(&first), 7);
        assert!((second.throttled_since(&first) - 0.8).abs() < 1e-9);
        assert!(first.throttled_since(&first).abs() < 1e-9);
        // Counters that begin anew, as after a move.
        assert_eq!(first.hits_since(&second), 0);
        assert_eq!(first.stalled_since(&second, Duration::from_secs(1)), None);
    }

    #[test]
    fn a_move_to_another_group_is_seen() {
        let host = v2(&[]);
        let gauge = Gauge::find(&host);
        assert!(!gauge.has_moved(&host));
        let elsewhere = v2(&[("/proc/self/cgroup", "0::/pod\n")]);
        assert!(gauge.has_moved(&elsewhere));
        assert_eq!(Gauge::find(&elsewhere).read(&elsewhere).levels.len(), 2);
    }

    #[test]
    fn v1_and_hybrids() {
        let host = Host::from_files([
            ("/proc/self/cgroup", "4:memory:/box\n2:cpu,cpuacct:/box\n0::/box\n"),
            (
                "/proc/self/mountinfo",
                "1 0 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                 2 0 0:2 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                 3 0 0:3 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            ),
            ("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 6291456 kB\n"),
            ("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "268435456\n"),
            ("/sys/fs/cgroup/memory/box/memory.usage_in_bytes", "209715200\n"),
            (
                "/sys/fs/cgroup/memory/box/memory.stat",
                "total_inactive_file 52428800\nshmem 4096\ntotal_shmem 8192\n",
            ),
            ("/sys/fs/cgroup/memory/box/memory.failcnt", "12\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/box/cpu.stat", "nr_periods 10\nnr_throttled 4\n"),
            ("/sys/fs/cgroup/unified/box/memory.pressure", "some avg10=0.00 total=5\n"),
        ]);
        let gauge = Gauge::find(&host);
        let reading = gauge.read(&host);
        let tightest = reading.tightest().unwrap();
        assert_eq!((tightest.limit, tightest.used), (256 * MIB, 150 * MIB));
        assert_eq!(tightest.shmem, Some(8192));
        assert_eq!((reading.hits[0], reading.periods[0]), (12, (10, 4)));
        assert_eq!(reading.stalled, Some(Duration::from_micros(5)));
        let dir = PathBuf::from("/sys/fs/cgroup/memory/box");
        assert_eq!(gauge.notices(&reading).thresholds, [(dir, 256 * MIB)]);
    }

    #[test]
    fn a_machine_that_tells_nothing() {
        let host = Host::from_files([("/proc/meminfo", "")]);
        let reading = Gauge::find(&host).read(&host);
        assert_eq!((reading.tightest(), reading.stalled), (None, None));
        for text in ["", "some", "some total=x", "full avg10=0 total=3\n"] {
            assert_eq!(stalled(text.as_bytes()), None, "{text}");
        }
    }
}
