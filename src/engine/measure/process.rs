//! What the kernel tells of one process: the few fields that a look needs, out of the files of `proc(5)`.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::probe::parse::{number, status_field, words};

/// No file that is read here is anywhere near this long.
const LONGEST: u64 = 16 << 10;

/// Reads one file after the other into the same buffer.
#[derive(Debug, Default)]
pub(super) struct Files {
    buffer: Vec<u8>,
}

impl Files {
    /// None where the process has gone, or the kernel or a sandbox does not tell.
    pub(super) fn read(&mut self, path: &str) -> Option<&[u8]> {
        self.buffer.clear();
        File::open(path).ok()?.take(LONGEST).read_to_end(&mut self.buffer).ok()?;
        Some(&self.buffer)
    }

    pub(super) fn stat(&mut self, pid: i32) -> Option<Stat> {
        Stat::parse(self.read(&format!("/proc/{pid}/stat"))?)
    }

    /// CPU time of all its threads, to the nanosecond: in the hundredths of `stat` a worker that mostly waits
    /// has used none between two looks, or one too many.
    pub(super) fn ran(pid: i32) -> Option<Duration> {
        let time = clock_gettime(ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).ok()?).ok()?;
        Some(Duration::from(time))
    }

    /// Resident and shared, in pages.
    pub(super) fn pages(&mut self, pid: i32) -> Option<(u64, u64)> {
        let mut numbers = words(self.read(&format!("/proc/{pid}/statm"))?).map(number);
        let (_, resident, shared) = (numbers.next(), numbers.next()??, numbers.next()??);
        Some((resident, shared))
    }

    pub(super) fn sizes(&mut self, pid: i32) -> Option<Sizes> {
        Sizes::parse(self.read(&format!("/proc/{pid}/status"))?)
    }

    /// How long a thread ran, and how long it was ready and did not.
    pub(super) fn schedule(&mut self, pid: i32, thread: i32) -> Option<Schedule> {
        let path = if pid == thread {
            format!("/proc/{pid}/schedstat")
        } else {
            format!("/proc/{pid}/task/{thread}/schedstat")
        };
        Schedule::parse(self.read(&path)?)
    }

    /// Anonymous memory with each page divided by those who share it, bytes.
    pub(super) fn own_share(&mut self, pid: i32) -> Option<u64> {
        own_share(self.read(&format!("/proc/{pid}/smaps_rollup"))?)
    }
}

/// Of `stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) zombie: bool,
    pub(super) group: i32,
    /// Page faults: without any, no memory has come.
    pub(super) faults: u64,
    /// CPU time in ticks of the clock.
    pub(super) ticks: u64,
    pub(super) threads: u64,
    /// In ticks since the boot: tells a pid from the same pid later.
    pub(super) started: u64,
    pub(super) pages: u64,
}

impl Stat {
    fn parse(text: &[u8]) -> Option<Self> {
        // A name may hold spaces and parentheses; nothing after it does.
        let name = text.iter().rposition(|byte| *byte == b')')?;
        let fields: Vec<&[u8]> = words(&text[name + 1..]).take(22).collect();
        let field = |at: usize| number(fields.get(at)?);
        Some(Self {
            zombie: matches!(fields.first()?, [b'Z' | b'X', ..]),
            group: i32::try_from(field(2)?).ok()?,
            faults: field(7)?.wrapping_add(field(9)?),
            ticks: field(11)?.saturating_add(field(12)?),
            threads: field(17)?,
            started: field(19)?,
            pages: field(21)?,
        })
    }
}

/// Of `schedstat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) ran: Duration,
    pub(super) waited: Duration,
}

impl Schedule {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut times = words(text).map(number);
        let (ran, waited) = (times.next()??, times.next()??);
        Some(Self { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited) })
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(before.ran),
            waited: self.waited.saturating_sub(before.waited),
        }
    }
}

/// Of `status`, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The most that it can have had at once without what is in files now.
    pub(super) highest: u64,
    /// Shared memory, mapped files of a `tmpfs` or a memfd: it cannot be dropped as page cache can.
    pub(super) shmem: u64,
}

impl Sizes {
    fn parse(status: &[u8]) -> Option<Self> {
        let highest = kib(status, "VmHWM")?;
        let files = kib(status, "RssFile").unwrap_or(0);
        let shmem = kib(status, "RssShmem").unwrap_or(0);
        Some(Self { highest: highest.saturating_sub(files), shmem })
    }
}

fn own_share(rollup: &[u8]) -> Option<u64> {
    // Kernels before 5.4 do not tell the kinds apart; what is private and written to is nearest.
    kib(rollup, "Pss_Anon").or_else(|| kib(rollup, "Private_Dirty"))
}

/// A field in kB, as bytes.
fn kib(text: &[u8], name: &str) -> Option<u64> {
    let value = words(status_field(text, name)?).next()?;
    Some(number(value)?.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = b"4242 (a) b (c) S 1 4240 4240 0 -1 4194560 5104 900 7 3 120 30 5 5 20 0 11 0 \
            8211 1112334336 20480 18446744073709551615 1 1 0 0";
        let stat = Stat::parse(text).unwrap();
        let want = Stat {
            zombie: false,
            group: 4240,
            faults: 5111,
            ticks: 150,
            threads: 11,
            started: 8211,
            pages: 20480,
        };
        assert_eq!(stat, want);
        assert!(
            Stat::parse(b"1 (x) Z 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0").unwrap().zombie
        );
        for cut in [&b""[..], b"1 (x", b"1 (x) S", b"1 (x) S 1 1 1 0 -1 0 0"] {
            assert_eq!(Stat::parse(cut), None);
        }
    }

    #[test]
    fn the_peak_is_without_files() {
        let status = b"Name:\tnode\nVmPeak:\t  900 kB\nVmHWM:\t   81920 kB\nVmRSS:\t   61440 kB\n\
            RssAnon:\t   20480 kB\nRssFile:\t   40000 kB\nRssShmem:\t     960 kB\n";
        let sizes = Sizes { highest: (81920 - 40000) << 10, shmem: 960 << 10 };
        assert_eq!(Sizes::parse(status), Some(sizes));
        // Of a kernel thread, which has none.
        assert_eq!(Sizes::parse(b"Name:\tkworker\n"), None);
    }

    #[test]
    fn what_is_shared_is_divided() {
        let rollup =
            b"55d0-7ffe ---p 00000000 00:00 0    [rollup]\nRss:   9000 kB\nPss:  4000 kB\n\
            Pss_Dirty: 2000 kB\nPss_Anon:         1500 kB\nPrivate_Dirty:  1200 kB\n";
        assert_eq!(own_share(rollup), Some(1500 << 10));
        assert_eq!(own_share(b"Rss: 9 kB\nPrivate_Dirty:   12 kB\n"), Some(12 << 10));
        let schedule = Schedule::parse(b"201152860 3265871 79\n").unwrap();
        assert_eq!(schedule.waited, Duration::from_nanos(3_265_871));
        assert_eq!(Schedule::parse(b"1"), None);
    }

    #[test]
    fn our_own_process_is_told_of() {
        let mut files = Files::default();
        let pid = std::process::id().cast_signed();
        let stat = files.stat(pid).unwrap();
        assert_eq!(stat.group, nix::unistd::getpgrp().as_raw());
        let (resident, shared) = files.pages(pid).unwrap();
        assert!(resident > shared && stat.pages > 0);
        assert!(files.sizes(pid).unwrap().highest > 100_000);
        assert_eq!(files.stat(i32::MAX), None);
    }
}
