//! What is seen of one step of a trial, look by look: how much memory and CPU the workers had, and whether memory
//! still rises or runs low.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::curve::Step;
use super::room::Left;
use crate::control::{LastExit, Status};
use crate::units::ratio;

/// Between two looks: each costs some milliseconds of the CPU that the workers would have, so they are frequent
/// only where memory may run low before the next one.
const LOOK: Duration = Duration::from_secs(1);
pub(super) const SOON: Duration = Duration::from_millis(250);
/// Under load before anything is measured.
pub(super) const WARM_UP: Duration = Duration::from_secs(2);
/// Memory that rises by less than that in [`WARM_UP`] stands still.
const STEADY: f64 = 0.03;

/// What the load showed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measured {
    pub(super) rate: f64,
    pub(super) failed: u64,
    pub(super) cpus: f64,
    pub(super) throttled: f64,
    pub(super) counts_requests: bool,
}

/// Why a step is broken off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// It runs low, or the kernel has killed for it.
    Memory,
    /// A worker has ended by itself: which, and how.
    Ended(String),
}

/// What was seen of one step.
#[derive(Debug)]
pub(super) struct Watch {
    begin: Instant,
    /// Of each worker: when and how much private memory.
    private: BTreeMap<i32, Vec<(Duration, u64)>>,
    /// The most that each had.
    peaks: BTreeMap<i32, u64>,
    /// When, and how much by all.
    totals: Vec<(Duration, u64)>,
    used: u64,
    room: u64,
    /// CPU seconds of each at the beginning of what is measured, and now.
    cpu: [BTreeMap<i32, f64>; 2],
    measured_from: Duration,
    /// Of each slot, and what the kernel had killed for memory, at the first look.
    before: Option<(BTreeMap<u32, u32>, u64)>,
    pub(super) cut: Option<Cut>,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            begin: Instant::now(),
            private: BTreeMap::new(),
            peaks: BTreeMap::new(),
            totals: Vec::new(),
            used: 0,
            room: u64::MAX,
            cpu: [BTreeMap::new(), BTreeMap::new()],
            measured_from: Duration::ZERO,
            before: None,
            cut: None,
        }
    }

    /// `kills`: processes of our group that the kernel has killed for memory so far.
    pub(super) fn see(&mut self, status: &Status, left: Option<Left>, kills: u64) {
        let at = self.begin.elapsed();
        let mut total = 0;
        for worker in &status.workers {
            let private = worker.memory.private_bytes;
            total += private;
            self.private.entry(worker.pid).or_default().push((at, private));
            // Also what was there between two looks.
            let peak = worker.memory.peak_bytes.unwrap_or(0).max(private);
            let most = self.peaks.entry(worker.pid).or_default();
            *most = peak.max(*most);
        }
        self.totals.push((at, total));
        self.cpu[1] = cpu(status);
        match left {
            // What others take and give back there is no matter of ours.
            Some(left) if left.machine => self.used = self.used.max(total),
            Some(left) => self.used = self.used.max(left.used),
            None => self.used = self.used.max(total),
        }
        self.room = self.room.min(left.map_or(u64::MAX, |left| left.room));
        let (slots, killed) = self.before.get_or_insert_with(|| {
            (ends(status).map(|(slot, restarts, _)| (slot, restarts)).collect(), kills)
        });
        let lost = ends(status)
            .find(|(slot, restarts, _)| *restarts > slots.get(slot).copied().unwrap_or(0));
        let cut = if left.is_some_and(|left| left.tight) || kills > *killed {
            Some(Cut::Memory)
        } else {
            lost.map(|(slot, _, end)| {
                let how = end.map_or_else(String::new, |end| format!(" with {}", end.text));
                Cut::Ended(format!("worker {slot} ended{how}"))
            })
        };
        self.cut = self.cut.take().or(cut);
    }

    pub(super) fn begin(&mut self, status: &Status) {
        self.measured_from = self.begin.elapsed();
        self.cpu[0] = cpu(status);
    }

    /// Until the next look.
    pub(super) fn pause(&self) -> Duration {
        if self.room < self.used / 2 { SOON } else { LOOK }
    }

    /// Whether memory has stood still for a while.
    pub(super) fn is_steady(&self) -> bool {
        let Some((now, last)) = self.totals.last() else { return false };
        let before = self.totals.iter().rfind(|(at, _)| *at + WARM_UP <= *now);
        before.is_some_and(|(_, before)| ratio(*last, *before) <= 1.0 + STEADY)
    }

    /// CPUs used since the beginning of what is measured.
    pub(super) fn cpus(&self, took: f64) -> f64 {
        let used = self.cpu[1]
            .iter()
            .map(|(pid, now)| (now - self.cpu[0].get(pid).copied().unwrap_or(0.0)).max(0.0));
        used.sum::<f64>() / took.max(0.001)
    }

    /// Of one worker a minute: by how much its peak of the second half is above that of the first.
    fn growth(&self) -> u64 {
        let to = self.totals.last().map_or(Duration::ZERO, |(at, _)| *at);
        let half = to.saturating_sub(self.measured_from) / 2;
        let middle = self.measured_from + half;
        // In less than that a single request shows as growth.
        if half < Duration::from_millis(1500) {
            return 0;
        }
        let peak = |seen: &[(Duration, u64)], from: Duration, to: Duration| {
            seen.iter().filter(|(at, _)| (from..=to).contains(at)).map(|(_, bytes)| *bytes).max()
        };
        let grown = self.private.values().filter_map(|seen| {
            let (first, second) =
                (peak(seen, self.measured_from, middle)?, peak(seen, middle, to)?);
            Some(second.saturating_sub(first))
        });
        let grown: Vec<u64> = grown.collect();
        let each = grown.iter().sum::<u64>() / (grown.len() as u64).max(1);
        let millis = u64::try_from(half.as_millis()).unwrap_or(u64::MAX).max(1);
        each.saturating_mul(60_000) / millis
    }

    /// The peak that 95 of 100 workers keep below.
    fn peak(&self) -> u64 {
        let mut peaks: Vec<u64> = self.peaks.values().copied().collect();
        peaks.sort_unstable();
        let at = (peaks.len() * 95).div_ceil(100).saturating_sub(1);
        peaks.get(at).copied().unwrap_or(0)
    }

    pub(super) fn step(&self, workers: u32, measured: Measured) -> Step {
        Step {
            workers,
            rate: measured.rate,
            failed: measured.failed,
            private: self.peak(),
            used: self.used,
            room: self.room,
            cpus: measured.cpus,
            throttled: measured.throttled,
            growth: self.growth(),
            cut: self.cut.is_some(),
            ended: matches!(self.cut, Some(Cut::Ended(_))),
        }
    }
}

/// Of each slot: how often a worker of it has ended unasked, and how the last one did.
fn ends(status: &Status) -> impl Iterator<Item = (u32, u32, Option<&LastExit>)> {
    let live = status.workers.iter().map(|one| (one.id, one.restarts, one.last_exit.as_ref()));
    live.chain(status.vacant.iter().map(|one| (one.id, one.restarts, one.last_exit.as_ref())))
}

fn cpu(status: &Status) -> BTreeMap<i32, f64> {
    status.workers.iter().map(|worker| (worker.pid, worker.cpu_seconds)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn watch(seen: &[&[u64]]) -> Watch {
        let at = |index: usize| Duration::from_secs(index as u64);
        let mut watch = Watch::new();
        for (pid, bytes) in seen.iter().enumerate() {
            let seen = bytes.iter().enumerate().map(|(index, bytes)| (at(index), *bytes));
            let pid = i32::try_from(pid).unwrap();
            watch.private.insert(pid, seen.collect());
            watch.peaks.insert(pid, *bytes.iter().max().unwrap());
        }
        let most = seen.iter().map(|seen| seen.len()).max().unwrap();
        let total = |index: usize| seen.iter().map(|seen| seen[index]).sum();
        watch.totals = (0..most).map(|index| (at(index), total(index))).collect();
        watch
    }

    #[test]
    fn growth_is_of_the_peaks() {
        // It breathes, as with requests that come and go.
        assert_eq!(watch(&[&[10, 50, 10, 50, 10, 50, 10, 50, 10]]).growth(), 0);
        // Both by 10 a second.
        let growing: &[u64] = &[10, 20, 30, 40, 50, 60, 70, 80, 90];
        assert_eq!(watch(&[growing, growing]).growth(), 600);
    }

    #[test]
    fn one_of_twenty_may_be_dearer() {
        let cheap: &[u64] = &[5, 10];
        let mut workers = vec![cheap; 19];
        workers.push(&[5, 1000]);
        assert_eq!(watch(&workers).peak(), 10);
        assert_eq!(watch(&[cheap, &[7, 20]]).peak(), 20);
    }

    fn status(restarts: u32) -> Status {
        let end = json!({"status": 137, "text": "SIGKILL", "asked": false, "seconds_ago": 0.1});
        let slot = json!({"id": 2, "state": "backoff", "retry_in_seconds": 1, "restarts": restarts, "last_exit": end});
        serde_json::from_value(json!({
            "schema": 1, "version": "", "name": null, "pid": 1, "command": [], "uptime_seconds": 1, "ready": false,
            "stopping": false, "target": 1, "planned": 1, "pinned": true, "bound_by": "", "upgrades": 0,
            "upgrade_error": null, "rollout": null, "measured": null, "workers": [], "vacant": [slot],
        }))
        .unwrap()
    }

    #[test]
    fn who_is_killed_for_memory_is_told_from_who_ends() {
        let cut = |restarts, kills| {
            let mut watch = Watch::new();
            watch.see(&status(1), None, 4);
            assert_eq!(watch.cut, None, "that was before");
            watch.see(&status(restarts), None, kills);
            watch.step(2, Measured::default())
        };
        assert!(!cut(1, 4).cut);
        let ended = cut(2, 4);
        assert!(ended.cut && ended.ended);
        let killed = cut(2, 5);
        assert!(killed.cut && !killed.ended);
    }

    #[test]
    fn steady_is_what_rises_no_more() {
        assert!(!watch(&[&[100]]).is_steady());
        assert!(!watch(&[&[100, 110, 120, 130]]).is_steady());
        assert!(watch(&[&[100, 110, 120, 121, 121]]).is_steady());
    }
}
