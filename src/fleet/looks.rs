//! The last looks at the whole fleet: what of them lasts is a load, what comes and goes is none.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::measured::{Measured, Sample};
use super::worker::Time;

/// As many as decisions look back on.
const KEPT: usize = 4;
/// An event loop this busy has no time left.
const BUSIEST: f64 = 0.85;
/// What is one CPU and no more, as exactly as it is measured.
const ONE: f64 = 1.15;
/// A CPU this full, of what we may use, is full.
pub(super) const FULL: f64 = 0.9;
/// So many of the periods throttled: the quota is what holds the workers up.
const THROTTLED: f64 = 0.5;

/// A number that came from outside: never negative, never more than any machine has.
pub(super) fn share(value: f64) -> f64 {
    if value.is_finite() { value.clamp(0.0, 1e6) } else { 0.0 }
}

/// In percent, for a text.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
pub(super) fn percent(value: f64) -> u32 {
    (share(value) * 100.0).round() as u32
}

/// What of a look is looked back on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Look {
    pub(super) at: Time,
    pub(super) span: Duration,
    pub(super) usable: f64,
    pub(super) used: f64,
    pub(super) throttled: f64,
    pub(super) waiting: Option<u32>,
    /// The busiest worker: of its threads, or altogether where it is one that one lock holds up.
    pub(super) busiest: f64,
    /// Every worker has something under way.
    pub(super) all_active: bool,
    pub(super) memory: u64,
    pub(super) limit: u64,
    pub(super) stalled: f64,
    pub(super) hits: u64,
    /// Of the memory, what cannot be dropped as page cache can: that of the workers alone, and shared memory.
    #[serde(alias = "private")]
    pub(super) hard: u64,
}

impl Look {
    pub(super) fn of(now: Time, sample: &Sample) -> Self {
        let memory = sample.memory.filter(|memory| memory.limit > 0).unwrap_or_default();
        let workers = &sample.workers;
        // One lock can hold a worker of many threads to one CPU; who uses more has none.
        let locked = |one: &Measured| Some(share(one.cpu)).filter(|cpu| *cpu <= ONE);
        let busiest = |one: &Measured| share(one.busiest).max(locked(one).unwrap_or(0.0));
        let active = |one: &Measured| one.active.is_some_and(|active| active > 0);
        // Where workers have limits of their own, the level has none left only where it was hit itself.
        let theirs = memory.divided && memory.hits == 0;
        let stalled = memory.stalled.filter(|_| !theirs);
        Self {
            at: now,
            span: sample.span,
            usable: share(sample.cpu.usable),
            used: share(sample.cpu.used),
            throttled: share(sample.cpu.throttled).min(1.0),
            waiting: sample.waiting,
            busiest: workers.iter().map(busiest).fold(0.0, f64::max),
            all_active: !workers.is_empty() && workers.iter().all(active),
            memory: memory.used,
            limit: memory.limit,
            stalled: stalled.map_or(0.0, share).min(1.0),
            hits: memory.hits,
            hard: workers.iter().fold(memory.shmem, |sum, one| sum.saturating_add(one.private)),
        }
    }

    /// Somebody waits to be served.
    pub(super) fn has_queue(&self) -> bool {
        self.waiting.is_some_and(|waiting| waiting > 0)
    }

    /// Where queues cannot be seen, it counts that nobody is without work.
    pub(super) fn is_pressed(&self) -> bool {
        self.has_queue() || self.busiest >= BUSIEST || (self.waiting.is_none() && self.all_active)
    }

    /// No more work would be done by more workers.
    pub(super) fn is_full(&self) -> bool {
        self.used >= FULL * self.usable || self.throttled >= THROTTLED
    }

    /// Of the CPUs that we may use.
    pub(super) fn free(&self) -> f64 {
        if self.usable > 0.0 { (1.0 - self.used / self.usable).max(0.0) } else { 0.0 }
    }
}

/// The last ones, the newest at the end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Looks(VecDeque<Look>);

impl Looks {
    pub(super) fn push(&mut self, look: Look) {
        self.0.push_back(look);
        if self.0.len() > KEPT {
            self.0.pop_front();
        }
    }

    pub(super) fn last(&self) -> Option<&Look> {
        self.0.back()
    }

    /// Those whose whole time lies after `since`.
    pub(super) fn since(&self, since: Time) -> impl DoubleEndedIterator<Item = &Look> + Clone {
        self.0.iter().filter(move |look| look.at.saturating_sub(look.span) >= since)
    }

    /// Whether it was so at two of the last three.
    pub(super) fn mostly(&self, so: impl Fn(&Look) -> bool) -> bool {
        self.0.iter().rev().take(3).filter(|look| so(look)).count() >= 2
    }
}

/// What some looks have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Load {
    /// CPUs used, on the average and at most, and the most that waited.
    pub(super) used: f64,
    pub(super) most: f64,
    pub(super) waiting: u32,
}

impl Load {
    pub(super) fn of<'a>(looks: impl Iterator<Item = &'a Look> + Clone) -> Option<Self> {
        let time: f64 = looks.clone().map(|look| look.span.as_secs_f64()).sum();
        let work: f64 = looks.clone().map(|look| look.used * look.span.as_secs_f64()).sum();
        let used = if time > 0.0 { work / time } else { looks.clone().next()?.used };
        let most = looks.clone().map(|look| look.used).fold(0.0, f64::max);
        let waiting = looks.filter_map(|look| look.waiting).max().unwrap_or(0);
        Some(Self { used, most, waiting })
    }
}
