//! Looks at the running fleet: what each worker costs, how full the levels of memory are, how hard the kernel
//! works for it, who waits outside. What one look finds is a [`Sample`] for the fleet, and a point in
//! short histories for whoever asks.
//!
//! Where nothing happens the looks come with the clock of the limits, every five seconds; closer ones are this
//! module's own, by [`pace`] or by what the kernel tells ([`notices`]). A look costs files: its CPU time
//! bounds how soon the next one comes.

mod history;
mod notices;
mod pace;
mod process;
mod processes;
mod queues;
mod tell;
mod worker;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::timer::Timer;
use crate::fleet::{Cpu, Measured, Memory, Sample, Time, WorkerKey};
use crate::probe::{Gauge, Host, Level, Reading};
use history::Points;
use notices::{Notice, Notices};
use processes::Processes;
use queues::Queues;
pub(super) use tell::round;
use worker::Worker;
pub(super) use worker::{Known, part};

/// The first look after a start, and the least time between a look and one that a notice wants.
const FIRST: Duration = Duration::from_secs(1);
const LEAST: Duration = Duration::from_millis(200);
/// Between two exact looks at a worker's memory, of all workers together: they cost a hundred times as much.
const EXACT: Duration = Duration::from_mins(1);
/// The share of one CPU that they may cost.
const EXACT_COST: u32 = 2000;

/// All that is kept from look to look.
pub(super) struct Measure {
    /// Looks by itself, for the fleet; else when asked.
    wanted: bool,
    host: Host,
    gauge: Option<Gauge>,
    notices: Notices,
    processes: Processes,
    queues: Queues,
    workers: BTreeMap<WorkerKey, Worker>,
    last: Option<Last>,
    points: Points<GroupPoint>,
    exact_at: Time,
    /// For the next look that does not come with the clock of the limits; made when it is first needed.
    timer: Option<Timer>,
    due: Option<Time>,
    /// No look by the clock before this, for what the last one cost.
    rest: Time,
    /// Whether the last look found that nothing happens.
    pub(super) calm: bool,
}

/// What the last look found.
struct Last {
    at: Time,
    reading: Reading,
    sample: Sample,
    source: Option<String>,
}

#[derive(Clone, Copy)]
struct GroupPoint {
    memory: Option<Memory>,
    cpu: Cpu,
    waiting: Option<u32>,
    workers: u32,
}

/// What there is to look at.
struct Subject<'a> {
    /// Every live worker, and the leader of its group.
    workers: Vec<(WorkerKey, i32)>,
    /// Listening sockets of ours, or that workers have from us.
    sockets: HashSet<u64>,
    /// Connections that we hold because nobody serves.
    held: u32,
    active: &'a dyn Fn(WorkerKey) -> Option<u32>,
    /// CPUs that may be used.
    usable: f64,
    /// A limit that no file tells, and what does.
    told: Option<(u64, String)>,
    /// Workers have limits of their own.
    divided: bool,
}

impl Measure {
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            host: Host::live(),
            gauge: None,
            notices: Notices::default(),
            processes: Processes::new(),
            queues: Queues::default(),
            workers: BTreeMap::new(),
            last: None,
            points: Points::new(),
            exact_at: Time::ZERO,
            timer: None,
            due: None,
            rest: Time::ZERO,
            calm: false,
        }
    }

    /// Returns when it is time for a look, and what told so where it is not the time alone.
    pub(super) async fn next(&mut self) -> Option<Notice> {
        let ticks = async {
            match &self.timer {
                Some(timer) => timer.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ticks => {
                self.due = None;
                None
            }
            notice = self.notices.next() => Some(notice),
        }
    }

    /// A worker has been started, or was taken over: its beginning is looked at.
    pub(super) fn started(&mut self, now: Time) {
        if self.wanted {
            self.look_in(now, FIRST);
        }
    }

    /// The next look comes so soon at the latest.
    fn look_in(&mut self, now: Time, wait: Duration) {
        if self.due.is_some_and(|at| at <= now + wait) {
            return;
        }
        if self.timer.is_none() {
            self.timer = Timer::new();
        }
        if let Some(timer) = &self.timer {
            timer.set(wait);
            self.due = Some(now + wait);
        }
    }

    fn look(&mut self, now: Time, subject: &Subject<'_>) -> Sample {
        let moved = |gauge: &Gauge| gauge.has_moved(&self.host);
        if self.gauge.as_ref().is_some_and(moved) {
            self.gauge = None;
            // What was counted there compares with nothing here.
            self.last = None;
        }
        let gauge = self.gauge.get_or_insert_with(|| Gauge::find(&self.host));
        let reading = gauge.read(&self.host);
        let span = self.last.as_ref().map_or(Duration::ZERO, |last| now.saturating_sub(last.at));
        let leaders: HashSet<i32> = subject.workers.iter().map(|(_, leader)| *leader).collect();
        let groups = self.processes.look(now, span, &leaders);
        if self.processes.take_new() {
            self.queues.forget_others();
        }
        self.workers.retain(|key, _| subject.workers.iter().any(|(live, _)| live == key));
        let shmem = groups.values().map(|group| group.shmem).sum();
        let own = own_part(shmem, reading.tightest().and_then(|level| level.shmem));
        let mut workers = Vec::with_capacity(subject.workers.len());
        for (key, leader) in &subject.workers {
            let group = groups.get(leader).copied().unwrap_or_default();
            let worker = self.workers.entry(*key).or_insert_with(Worker::new);
            let active = (subject.active)(*key);
            workers.push(worker.take_in(now, span, *key, group, part(group.shmem, own), active));
        }
        let members = || leaders.iter().flat_map(|leader| self.processes.members(*leader));
        let waiting = self.queues.look(now, &subject.sockets, || members().collect());
        let waiting = match (waiting, subject.held) {
            (None, 0) => None,
            (waiting, held) => Some(waiting.unwrap_or(0).saturating_add(held)),
        };
        let before = self.last.as_ref().map(|last| &last.reading);
        let cpu = Cpu {
            usable: subject.usable,
            used: workers.iter().map(|worker| worker.cpu).sum(),
            throttled: before.map_or(0.0, |before| reading.throttled_since(before)),
        };
        let (memory, source) = memory(&reading, before, span, subject, &workers).unzip();
        let memory = memory.map(|memory: Memory| {
            let rest = memory.shmem.saturating_sub(part(shmem, own));
            Memory { shmem: rest, ..memory }
        });
        let sample = Sample { span, memory, cpu, waiting, workers };
        self.points.add(
            now,
            GroupPoint {
                memory,
                cpu,
                waiting,
                workers: u32::try_from(sample.workers.len()).unwrap_or(u32::MAX),
            },
        );
        self.last = Some(Last { at: now, reading, sample: sample.clone(), source });
        sample
    }

    /// Looks exactly at the worker for which that was longest ago, where it is time for one.
    fn look_exactly(&mut self, now: Time, workers: &[(WorkerKey, i32)]) {
        if now < self.exact_at {
            return;
        }
        let last = |key: &WorkerKey| self.workers.get(key).and_then(|worker| worker.exact_at);
        let Some((key, leader)) = workers.iter().min_by_key(|(key, _)| last(key)) else { return };
        let begun = cpu_time();
        let share = self.processes.true_share(*leader);
        let cost = cpu_time().saturating_sub(begun);
        self.exact_at = now + EXACT.max(cost * EXACT_COST);
        if let Some(worker) = self.workers.get_mut(key) {
            worker.learn(now, share);
        }
    }

    /// What is known of a worker beyond this moment.
    pub(super) fn of(&self, worker: WorkerKey) -> Known {
        self.workers.get(&worker).map(Worker::known).unwrap_or_default()
    }
}

/// The level with the least room, and what names it. A limit that no file tells counts the workers
/// themselves.
fn memory<'a>(
    reading: &'a Reading,
    before: Option<&Reading>,
    span: Duration,
    subject: &'a Subject<'_>,
    workers: &[Measured],
) -> Option<(Memory, String)> {
    let told = subject.told.as_ref().map(|(limit, source)| {
        let private: u64 = workers.iter().map(|worker| worker.private).sum();
        let shared = workers.iter().map(|worker| worker.shared).max().unwrap_or(0);
        (*limit, private.saturating_add(shared), source)
    });
    let level = reading.tightest();
    let told = told.filter(|(limit, used, _)| {
        level.is_none_or(|level| limit.saturating_sub(*used) < level.room())
    });
    let of_level = |level: &'a Level| (level.limit, level.used, &level.source);
    let (limit, used, source) = told.or(level.map(of_level))?;
    let machine = told.is_none() && level.is_some_and(Level::is_machine);
    // Who stands still anywhere in the machine tells nothing of a group that has room.
    let pressed = before.filter(|_| machine || !reading.machine_wide);
    let stalled = pressed.and_then(|before| reading.stalled_since(before, span));
    let hits = before.map_or(0, |before| reading.hits_since(before));
    // The machine's own memory is nobody's share.
    let divided = subject.divided && !machine;
    let of_group = level.filter(|_| told.is_none() && !machine);
    let shmem = of_group.and_then(|level| level.shmem).unwrap_or(0);
    Some((Memory { limit, used, stalled, hits, divided, shmem }, source.clone()))
}

/// How much of the shared memory that workers have mapped is each one's own: all of it, unless they have mapped more
/// than there is; then some of them have the same.
fn own_part(mapped: u64, there: Option<u64>) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a ratio of sizes")]
    let part = |there: u64| (there as f64 / mapped as f64).min(1.0);
    there.filter(|there| *there < mapped).map_or(1.0, part)
}

/// That this thread has used.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;

    fn subject(told: Option<u64>, divided: bool) -> Subject<'static> {
        Subject {
            workers: Vec::new(),
            sockets: HashSet::new(),
            held: 0,
            active: &|_| None,
            usable: 1.0,
            told: told.map(|mib| (mib * MIB, "flag:--memory".to_owned())),
            divided,
        }
    }

    fn reading(used: u64) -> Reading {
        let used = (used << 10).to_string();
        let host = Host::from_files([
            ("/proc/self/cgroup", "0::/\n"),
            ("/proc/self/mountinfo", "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 8000000 kB\n"),
            ("/sys/fs/cgroup/memory.max", "536870912\n"),
            ("/sys/fs/cgroup/memory.current", &format!("{used}000")),
            ("/sys/fs/cgroup/memory.pressure", &format!("some avg10=0.00 total={used}\n")),
        ]);
        Gauge::find(&host).read(&host)
    }

    fn worker(private: u64, shared: u64) -> Measured {
        Measured {
            worker: WorkerKey(1),
            private: private * MIB,
            peak: private * MIB,
            shared: shared * MIB,
            cpu: 0.0,
            busiest: 0.0,
            delayed: 0.0,
            active: None,
        }
    }

    #[test]
    fn a_limit_that_was_told_counts_the_workers_and_shared_pages_once() {
        let workers = [worker(40, 30), worker(50, 20)];
        let span = Duration::from_secs(1);
        let look = |told: Option<u64>| {
            memory(&reading(200), None, span, &subject(told, false), &workers).unwrap()
        };
        let (of_the_group, source) = look(None);
        assert_eq!((of_the_group.limit, source.as_str()), (512 * MIB, "/sys/fs/cgroup/memory.max"));
        let (tighter, source) = look(Some(128));
        assert_eq!((tighter.limit, tighter.used), (128 * MIB, 120 * MIB));
        assert_eq!(source, "flag:--memory");
        // A wish changes nothing of what the kernel does.
        assert_eq!(look(Some(4096)).0, of_the_group);
    }

    #[test]
    fn what_has_no_look_before_it_has_no_rates() {
        let span = Duration::from_secs(1);
        let (first, second) = (reading(100), reading(200));
        let none = subject(None, false);
        assert_eq!(memory(&first, None, Duration::ZERO, &none, &[]).unwrap().0.stalled, None);
        let (found, _) = memory(&second, Some(&first), span, &none, &[]).unwrap();
        assert_eq!((found.stalled, found.hits), (Some(0.1024), 0));
    }

    #[test]
    fn shared_memory_is_ones_own_unless_there_is_less_of_it() {
        let is = |mapped: u64, there: Option<u64>, want: f64| {
            assert!((own_part(mapped, there) - want).abs() < 1e-9, "{mapped} {there:?}");
        };
        is(400, Some(400), 1.0);
        is(400, Some(900), 1.0);
        is(400, Some(100), 0.25);
        is(400, Some(0), 0.0);
        is(400, None, 1.0);
        is(0, Some(0), 1.0);
    }

    #[test]
    fn pressure_of_the_whole_machine_is_none_of_a_group() {
        let look = |total: u64, limit: u64| {
            let (total, limit) = (format!("some avg10=0.00 total={total}\n"), limit.to_string());
            let host = Host::from_files([
                ("/proc/self/cgroup", "4:memory:/\n"),
                ("/proc/self/mountinfo", "1 0 0:1 / /sys/fs/cgroup rw - cgroup cgroup rw,memory\n"),
                ("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 6000000 kB\n"),
                ("/proc/pressure/memory", &total),
                ("/sys/fs/cgroup/memory.limit_in_bytes", &limit),
                ("/sys/fs/cgroup/memory.usage_in_bytes", "209715200"),
            ]);
            Gauge::find(&host).read(&host)
        };
        let span = Duration::from_secs(1);
        let stalled = |limit: u64| {
            let (first, second) = (look(100_000, limit), look(600_000, limit));
            memory(&second, Some(&first), span, &subject(None, false), &[]).unwrap().0.stalled
        };
        assert_eq!(stalled(256 * MIB), None);
        assert_eq!(stalled(7000 * MIB), Some(0.5), "the machine itself has the least room");
    }

    #[test]
    fn a_group_is_divided_and_a_machine_is_not() {
        let divided = |reading: &Reading| {
            let subject = subject(None, true);
            memory(reading, None, Duration::ZERO, &subject, &[]).unwrap().0.divided
        };
        assert!(divided(&reading(200)));
        let machine =
            Host::from_files([("/proc/meminfo", "MemTotal: 8192 kB\nMemAvailable: 9 kB\n")]);
        assert!(!divided(&Gauge::find(&machine).read(&machine)));
    }
}
