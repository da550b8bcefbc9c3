//! What each worker has cost so far: the most that it had, how large it was when it was fresh, whether it grows.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::looks::share;
use super::measured::{Measured, Sample};
use super::worker::{Phase, Time, Worker, WorkerKey};

/// A worker that used so much of a CPU since the look before has had something to do.
const WORKS: f64 = 0.05;
/// After so long of it, what it has had at most is what it takes.
pub(super) const SHOWN: Duration = Duration::from_millis(1500);
/// No look tells more than this of what was done since the one before.
const STRETCH: Duration = Duration::from_secs(1);
/// When it has served for so long, it has loaded what it needs to begin.
const FRESH: Duration = Duration::from_secs(2);
/// Between two points of its history, of which there are so many.
const POINT: Duration = Duration::from_millis(900);
const POINTS: usize = 8;
/// What grows slower than this is no leak that anybody has to hurry for, bytes in a second.
const SLOW: u64 = 64 << 10;
/// Above its share for so long, it is warned about.
const LONG: Duration = Duration::from_mins(1);

/// One worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Life {
    pub(super) private: u64,
    /// The most so far.
    pub(super) peak: u64,
    /// When it was ready and had loaded what it needs.
    pub(super) fresh: Option<u64>,
    fresh_at: Time,
    /// How long it has had something to do.
    pub(super) worked: Duration,
    /// And how long it has used half of its share of the CPUs.
    #[serde(default)]
    pub(super) worked_hard: Duration,
    /// How long it has been larger than it may, without a break.
    pub(super) above: Duration,
    pub(super) warned: bool,
    history: VecDeque<(Time, u64)>,
}

impl Life {
    /// `busy`: somebody waits; `each`: its share of the CPUs; `span`: since the look before.
    fn take_in(
        &mut self,
        now: Time,
        worker: &Worker,
        one: &Measured,
        (busy, each): (bool, f64),
        span: Duration,
    ) {
        self.private = one.private;
        self.peak = self.peak.max(one.peak).max(one.private);
        if worker.phase != Phase::Ready {
            return;
        }
        if self.fresh.is_none() && worker.ready_since.is_some_and(|since| now >= since + FRESH) {
            (self.fresh, self.fresh_at) = (Some(one.private), now);
        }
        if busy || share(one.cpu) >= WORKS || one.active.is_some_and(|active| active > 0) {
            // Of a long time only the end is known.
            self.worked = self.worked.saturating_add(span.min(STRETCH));
        }
        if each > 0.0 && share(one.cpu) >= each / 2.0 {
            self.worked_hard = self.worked_hard.saturating_add(span.min(STRETCH));
        }
        if self.history.back().is_none_or(|(at, _)| now >= *at + POINT) {
            self.history.push_back((now, one.private));
            if self.history.len() > POINTS {
                self.history.pop_front();
            }
        }
    }

    /// Whether its peak was seen under load.
    pub(super) fn has_shown(&self) -> bool {
        self.worked >= SHOWN
    }

    /// Bytes in a second, where it has grown all the time: what goes up and down is no growth.
    pub(super) fn growth(&self) -> u64 {
        let half = self.history.len() / 2;
        if half < 2 {
            return 0;
        }
        let points = || self.history.iter().map(|(_, bytes)| *bytes);
        let before = points().take(half).max().unwrap_or(0);
        let since = points().skip(half).min().unwrap_or(0);
        let (Some((from, first)), Some((to, last))) = (self.history.front(), self.history.back())
        else {
            return 0;
        };
        let ms = u64::try_from(to.saturating_sub(*from).as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = last.saturating_sub(*first).saturating_mul(1000) / ms;
        if since > before && rate >= SLOW { rate } else { 0 }
    }

    /// Larger than at its start by half, and it still grows.
    pub(super) fn has_grown(&self) -> bool {
        let fresh = self.fresh.unwrap_or(u64::MAX);
        self.growth() > 0 && self.private >= fresh.saturating_add(fresh / 2)
    }

    /// And as fast as ever: who fills caches grows slower and slower.
    pub(super) fn leaks(&self) -> bool {
        let Some(((now, _), fresh)) = self.history.back().zip(self.fresh) else { return false };
        let ms = now.saturating_sub(self.fresh_at).as_millis();
        let ms = u64::try_from(ms).unwrap_or(u64::MAX).max(1);
        let ever = self.private.saturating_sub(fresh).saturating_mul(1000) / ms;
        self.has_grown() && self.growth() >= ever / 4 * 3
    }

    /// Counts the time for which it is larger than `most`.
    pub(super) fn weigh(&mut self, most: u64, span: Duration) {
        self.above =
            if self.private > most { self.above.saturating_add(span) } else { Duration::ZERO };
    }

    /// Whether it is to be warned about now.
    pub(super) fn is_long_above(&mut self) -> bool {
        let due = self.above >= LONG && !self.warned;
        self.warned |= due;
        due
    }
}

/// All workers that live, and what is known of those before them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Lives {
    #[serde(with = "pairs")]
    all: BTreeMap<WorkerKey, Life>,
    /// The most that one of those took that are gone.
    gone: Option<u64>,
    /// What a fresh one takes.
    fresh: Option<u64>,
}

impl Lives {
    pub(super) fn take_in(
        &mut self,
        now: Time,
        sample: &Sample,
        workers: &BTreeMap<WorkerKey, Worker>,
        busy: bool,
    ) {
        let costs = |life: &Life| (life.has_shown() && !life.leaks()).then_some(life.peak);
        let gone = self.all.iter().filter(|(key, _)| !workers.contains_key(key));
        let gone = gone.filter_map(|(_, life)| costs(life)).max();
        self.gone = gone.or(self.gone);
        self.all.retain(|key, _| workers.contains_key(key));
        // Who has one thread uses one CPU at most.
        let count = u32::try_from(sample.workers.len()).unwrap_or(u32::MAX).max(1);
        let each = (share(sample.cpu.usable) / f64::from(count)).min(1.0);
        for one in &sample.workers {
            let Some(worker) = workers.get(&one.worker) else { continue };
            let life = self.all.entry(one.worker).or_default();
            life.take_in(now, worker, one, (busy, each), sample.span);
        }
        let fresh = self.all.values().filter_map(|life| life.fresh).max();
        self.fresh = fresh.or(self.fresh);
    }

    pub(super) fn of(&self, key: WorkerKey) -> Option<&Life> {
        self.all.get(&key)
    }

    pub(super) fn of_mut(&mut self, key: WorkerKey) -> Option<&mut Life> {
        self.all.get_mut(&key)
    }

    /// What one takes under load, where that has been seen: the largest counts.
    pub(super) fn cost(&self) -> Option<u64> {
        self.largest(|_| true)
    }

    /// The same without those that leak.
    pub(super) fn steady_cost(&self) -> Option<u64> {
        self.largest(|life| !life.leaks())
    }

    fn largest(&self, counts: impl Fn(&Life) -> bool) -> Option<u64> {
        let shown = self.all.values().filter(|life| life.has_shown() && counts(life));
        shown.map(|life| life.peak).max().or(self.gone).filter(|cost| *cost > 0)
    }

    /// What one takes that has just become ready.
    pub(super) fn fresh(&self) -> Option<u64> {
        self.fresh
    }

    pub(super) fn forget_cost(&mut self) {
        self.gone = None;
    }
}

/// A map whose keys are no texts, as a list.
mod pairs {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{BTreeMap, Life, WorkerKey};

    pub(super) fn serialize<S: Serializer>(
        all: &BTreeMap<WorkerKey, Life>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(all)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<WorkerKey, Life>, D::Error> {
        Vec::deserialize(from).map(|all: Vec<(WorkerKey, Life)>| all.into_iter().collect())
    }
}
