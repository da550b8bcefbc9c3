//! All processes of the workers, by process group: looked at one by one, and only as closely as what they
//! did since the last look makes necessary.
//!
//! A process that had no page fault has the memory that it had: one file tells so. Who is
//! new is found by the names in `/proc`, of which only unknown ones are opened. Threads are looked at one by
//! one only where a process of several uses more than half a CPU: below, whether it is one that does all the
//! work makes no difference.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::Duration;

use super::process::{Files, Schedule, Stat};
use crate::fleet::Time;

/// Between two lists of all processes.
const LISTED: Duration = Duration::from_millis(4500);
/// Between two looks at those that were none of ours: a process may change its group.
const LOOKED_AGAIN: Duration = Duration::from_mins(1);
/// CPUs of a process from which on its threads count.
const BUSY: f64 = 0.5;
/// More threads than this are not told apart: a pool that large has no single busy one.
const MOST_THREADS: usize = 256;

/// One process group at one look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Group {
    /// Bytes.
    pub(super) private: u64,
    pub(super) shared: u64,
    pub(super) peak: u64,
    /// Of what is shared, what is in no file of a disk; and the most of that and of what is private together.
    pub(super) shmem: u64,
    pub(super) highest: u64,
    /// CPUs, and those of the busiest thread.
    pub(super) cpu: f64,
    pub(super) busiest: f64,
    /// The share of time that its main thread, or its busiest one, waited for a CPU.
    pub(super) delayed: f64,
    pub(super) processes: u32,
}

/// What is known of each process since the last look.
#[derive(Debug)]
pub(super) struct Processes {
    files: Files,
    ours: HashMap<i32, Process>,
    /// Looked at, and of no group that matters.
    others: HashSet<i32>,
    listed: Option<Time>,
    looked_again: Time,
    /// Some have come since somebody asked.
    new: bool,
    page: u64,
    /// Of the clock in `stat`.
    tick: Duration,
}

#[derive(Debug, Default)]
struct Process {
    stat: Stat,
    private: u64,
    shared: u64,
    /// The most that its private memory has been.
    peak: u64,
    shmem: u64,
    highest: u64,
    /// CPU time so far.
    ran: Duration,
    schedule: Option<Schedule>,
    threads: HashMap<i32, Schedule>,
}

impl Processes {
    pub(super) fn new() -> Self {
        let ticks = u32::try_from(procfs::ticks_per_second()).unwrap_or(100).max(1);
        Self {
            files: Files::default(),
            ours: HashMap::new(),
            others: HashSet::new(),
            listed: None,
            looked_again: Time::ZERO,
            new: false,
            page: procfs::page_size(),
            tick: Duration::from_secs(1) / ticks,
        }
    }

    /// Looks at the groups of these leaders; `span` since the last look.
    pub(super) fn look(
        &mut self,
        now: Time,
        span: Duration,
        leaders: &HashSet<i32>,
    ) -> HashMap<i32, Group> {
        for leader in leaders {
            self.new |= !self.ours.contains_key(leader);
            self.ours.entry(*leader).or_default();
        }
        self.others.retain(|pid| !leaders.contains(pid));
        if self.listed.is_none_or(|at| now >= at + LISTED) {
            self.listed = Some(now);
            self.list(now, leaders);
        }
        let mut groups: HashMap<i32, Group> = HashMap::new();
        let (page, tick, files) = (self.page, self.tick, &mut self.files);
        self.ours.retain(|pid, process| {
            let Some(stat) = files.stat(*pid).filter(|stat| leaders.contains(&stat.group)) else {
                return false;
            };
            let group = groups.entry(stat.group).or_default();
            if stat.zombie {
                // What is left of it has no memory; its group may live on.
                return true;
            }
            let (cpu, busiest, delayed) =
                process.look(files, *pid, stat, span.as_secs_f64(), (page, tick));
            group.private += process.private;
            group.shared += process.shared;
            group.peak += process.peak;
            group.shmem += process.shmem;
            group.highest += process.highest;
            group.cpu += cpu;
            group.busiest = group.busiest.max(busiest);
            group.delayed = group.delayed.max(delayed);
            group.processes += 1;
            true
        });
        groups
    }

    /// Finds who has come, by the names in `/proc`.
    fn list(&mut self, now: Time, leaders: &HashSet<i32>) {
        let Ok(names) = fs::read_dir("/proc") else { return };
        let pids: HashSet<i32> =
            names.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        if now >= self.looked_again + LOOKED_AGAIN {
            self.looked_again = now;
            self.others.clear();
        }
        self.others.retain(|pid| pids.contains(pid));
        for pid in pids {
            if self.ours.contains_key(&pid) || self.others.contains(&pid) {
                continue;
            }
            let Some(stat) = self.files.stat(pid) else { continue };
            if leaders.contains(&stat.group) {
                self.ours.insert(pid, Process::default());
                self.new = true;
            } else {
                self.others.insert(pid);
            }
        }
    }

    /// Whether processes have come since this was asked.
    pub(super) fn take_new(&mut self) -> bool {
        std::mem::take(&mut self.new)
    }

    /// The processes of a group, as the last look found them.
    pub(super) fn members(&self, leader: i32) -> Vec<i32> {
        let theirs = self.ours.iter().filter(|(_, process)| process.stat.group == leader);
        theirs.map(|(pid, _)| *pid).collect()
    }

    /// How much of what counts as private a group would free if it went: pages that a fork still shares are
    /// divided by those who have them. None where the kernel does not tell.
    pub(super) fn true_share(&mut self, leader: i32) -> Option<f64> {
        let (mut own, mut counted) = (0, 0);
        for pid in self.members(leader) {
            own += self.files.own_share(pid)?;
            let (resident, shared) = self.files.pages(pid)?;
            counted += resident.saturating_sub(shared) * self.page;
        }
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let share = own as f64 / counted as f64;
        (counted > 0).then(|| share.clamp(0.01, 1.0))
    }
}

impl Process {
    /// CPUs, those of the busiest thread, and the share of time it waited for one.
    fn look(
        &mut self,
        files: &mut Files,
        pid: i32,
        stat: Stat,
        span: f64,
        (page, tick): (u64, Duration),
    ) -> (f64, f64, f64) {
        let known = self.stat.started == stat.started;
        if !known {
            // It is new, or another one under the same number.
            *self = Self::default();
        }
        let before = std::mem::replace(&mut self.stat, stat);
        let ran =
            Files::ran(pid).unwrap_or_else(|| tick * u32::try_from(stat.ticks).unwrap_or(u32::MAX));
        let used = ran.saturating_sub(std::mem::replace(&mut self.ran, ran));
        if !known || (stat.faults, stat.pages) != (before.faults, before.pages) {
            if let Some((resident, shared)) = files.pages(pid) {
                self.private = resident.saturating_sub(shared) * page;
                self.shared = shared * page;
            }
            let sizes = files.sizes(pid).unwrap_or_default();
            self.shmem = sizes.shmem.min(self.shared);
            let peak = sizes.highest.saturating_sub(sizes.shmem);
            self.peak = self.peak.max(peak).max(self.private);
            self.highest = self.highest.max(sizes.highest).max(self.private + self.shmem);
        }
        if known && used.is_zero() {
            return (0.0, 0.0, 0.0);
        }
        let schedule = files.schedule(pid, pid);
        let scheduled = std::mem::replace(&mut self.schedule, schedule);
        if !known || span <= 0.0 {
            return (0.0, 0.0, 0.0);
        }
        let cpu = used.as_secs_f64() / span;
        let share = |time: Duration| (time.as_secs_f64() / span).min(1.0);
        let mut delayed =
            schedule.zip(scheduled).map_or(0.0, |(now, then)| share(now.since(then).waited));
        let mut busiest = cpu.min(1.0);
        if cpu > BUSY && (2..=MOST_THREADS as u64).contains(&stat.threads) {
            if let Some(thread) = self.busiest(files, pid) {
                (busiest, delayed) = (share(thread.ran), share(thread.waited));
            }
        } else {
            self.threads.clear();
        }
        (cpu, busiest.min(cpu), delayed)
    }

    /// What the thread that ran most did since the last look; none where that did not see them.
    fn busiest(&mut self, files: &mut Files, pid: i32) -> Option<Schedule> {
        let names = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let ids = names.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut now = HashMap::new();
        for id in ids.take(MOST_THREADS) {
            if let Some(schedule) = files.schedule(pid, id) {
                now.insert(id, schedule);
            }
        }
        let before = std::mem::replace(&mut self.threads, now);
        if before.is_empty() {
            return None;
        }
        let since = self.threads.iter().filter_map(|(id, now)| Some(now.since(*before.get(id)?)));
        // Where the kernel does not count, all are zero.
        since.max_by_key(|thread| thread.ran).filter(|thread| !thread.ran.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;

    /// A process that leads a group of its own, ended when dropped.
    struct Own(Child);

    impl Own {
        fn sh(script: &str) -> Self {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null());
            Self(command.process_group(0).spawn().unwrap())
        }

        fn leader(&self) -> i32 {
            self.0.id().cast_signed()
        }
    }

    impl Drop for Own {
        fn drop(&mut self) {
            let leader = nix::unistd::Pid::from_raw(self.leader());
            let _ = nix::sys::signal::killpg(leader, nix::sys::signal::Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }

    /// Looks until `wanted` holds.
    fn until(processes: &mut Processes, leader: i32, wanted: impl Fn(&Group) -> bool) -> Group {
        let begun = Instant::now();
        let mut last = Duration::ZERO;
        let leaders = HashSet::from([leader]);
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let now = begun.elapsed();
            // Each list is due.
            processes.listed = None;
            let groups = processes.look(now, now.saturating_sub(last), &leaders);
            last = now;
            if let Some(group) = groups.get(&leader).filter(|group| wanted(group)) {
                return *group;
            }
            assert!(now < Duration::from_secs(30), "{groups:?}");
        }
    }

    #[test]
    fn a_group_is_all_of_its_processes() {
        let own = Own::sh("sleep 1000 & sleep 1000 & wait");
        let mut processes = Processes::new();
        let group = until(&mut processes, own.leader(), |group| group.processes == 3);
        assert!(group.private > 100_000 && group.peak >= group.private, "{group:?}");
        assert_eq!(processes.members(own.leader()).len(), 3);
        // Nobody does anything: nothing changes.
        let idle = until(&mut processes, own.leader(), |group| group.cpu < 0.01);
        assert_eq!((idle.private, idle.processes), (group.private, 3));
    }

    #[test]
    fn who_works_is_seen_and_so_is_who_waits_for_a_cpu() {
        let own = Own::sh("while :; do :; done");
        let mut processes = Processes::new();
        let group = until(&mut processes, own.leader(), |group| group.cpu > 0.1);
        assert!(group.busiest > 0.1 && group.busiest <= 1.0, "{group:?}");
        assert!((0.0..=1.0).contains(&group.delayed));
    }

    #[test]
    fn one_busy_thread_among_several_is_told_apart() {
        // A process with threads: this one, whose own group has others in it as well.
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let spin = {
            let stop = std::sync::Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let pid = std::process::id().cast_signed();
        let mut files = Files::default();
        let mut process = Process::default();
        let begun = Instant::now();
        let found = loop {
            let _ = process.busiest(&mut files, pid);
            std::thread::sleep(Duration::from_millis(50));
            let thread = process.busiest(&mut files, pid);
            if thread.is_some_and(|thread| thread.ran > Duration::from_millis(5)) {
                break thread;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{thread:?}");
        };
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        spin.join().unwrap();
        assert!(found.unwrap().ran <= begun.elapsed());
    }

    #[test]
    fn what_a_process_had_between_two_looks_stays_known() {
        let mut own = Own::sh("read -r _; x=$(head -c 32M /dev/zero | tr '\\0' x); x=; sleep 1000");
        let mut processes = Processes::new();
        let before = until(&mut processes, own.leader(), |group| group.processes == 1);
        assert!(before.peak < 16 << 20, "{before:?}");
        std::io::Write::write_all(own.0.stdin.as_mut().unwrap(), b"\n").unwrap();
        // No look sees it at its largest, but by chance; its sleep says that it has given back.
        let group = until(&mut processes, own.leader(), |group| {
            group.peak > 32 << 20 && group.private < 16 << 20 && group.processes == 2
        });
        assert!(group.peak < 256 << 20, "{group:?}");
    }

    #[test]
    fn pages_that_a_fork_still_shares_are_told_apart() {
        let script =
            "x=$(head -c 32M /dev/zero | tr '\\0' x); (sleep 1000; :) & (sleep 1000; :) & wait";
        let own = Own::sh(script);
        let mut processes = Processes::new();
        let group = until(&mut processes, own.leader(), |group| group.processes == 5);
        assert!(group.private > 90 << 20, "{group:?}");
        let share = processes.true_share(own.leader()).unwrap();
        assert!(share > 0.2 && share < 0.6, "{share}");
    }
}
