//! What is known of one worker: its last look, where its memory was over its life, the last minutes.

use std::time::Duration;

use super::history::{Points, Sketch};
use super::processes::Group;
use crate::fleet::{Measured, Time, WorkerKey};

/// One worker, for as long as it lives.
#[derive(Debug)]
pub(super) struct Worker {
    /// How much of what counts as private is its own, where an exact look has told.
    share: Option<f64>,
    /// The last exact look.
    pub(super) exact_at: Option<Time>,
    /// Of its shared memory, what it had to itself at the last look.
    own: u64,
    /// The most that its private memory was seen to be.
    most: u64,
    sizes: Sketch,
    points: Points<Point>,
    last: Option<Measured>,
    /// Rates need two looks.
    looks: u32,
}

/// One moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) private_kib: u32,
    pub(super) cpu: f32,
}

/// What is known beyond this moment, as far as it was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::engine) struct Known {
    /// Of what counts as private.
    pub(in crate::engine) share: Option<f64>,
    /// Of what counts as shared, bytes.
    pub(in crate::engine) own: u64,
    pub(in crate::engine) peak: Option<u64>,
    pub(in crate::engine) p95: Option<u64>,
    /// CPUs; those of the busiest thread; the share of time that it waited for one.
    pub(in crate::engine) cpu: Option<f64>,
    pub(in crate::engine) busiest: Option<f64>,
    pub(in crate::engine) delayed: Option<f64>,
}

impl Worker {
    pub(super) fn new() -> Self {
        Self {
            share: None,
            exact_at: None,
            own: 0,
            most: 0,
            sizes: Sketch::default(),
            points: Points::new(),
            last: None,
            looks: 0,
        }
    }

    /// Takes in what a look found, `span` after the one before. `own`: how much of its shared memory nobody else has.
    pub(super) fn take_in(
        &mut self,
        now: Time,
        span: Duration,
        worker: WorkerKey,
        group: Group,
        own: u64,
        active: Option<u32>,
    ) -> Measured {
        let share = self.share.unwrap_or(1.0);
        let private = part(group.private, share).saturating_add(own);
        self.own = own;
        self.most = self.most.max(private);
        // A worker that has just come is no older than this look.
        self.sizes.add(private, if self.looks > 0 { span } else { Duration::ZERO });
        self.looks = self.looks.saturating_add(1);
        let private_kib = u32::try_from(private >> 10).unwrap_or(u32::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "for a curve")]
        self.points.add(now, Point { private_kib, cpu: group.cpu as f32 });
        let measured = Measured {
            worker,
            private,
            peak: part(group.peak, share).saturating_add(own).min(group.highest).max(self.most),
            shared: group.shared.saturating_sub(own),
            cpu: group.cpu,
            busiest: group.busiest,
            delayed: group.delayed,
            active,
        };
        self.last = Some(measured);
        measured
    }

    /// Takes in an exact look; none where the kernel would not tell.
    pub(super) fn learn(&mut self, now: Time, share: Option<f64>) {
        self.exact_at = Some(now);
        let Some(share) = share else { return };
        let before = self.share.replace(share);
        if before.is_none() && share < 0.9 {
            // What was kept so far counted pages of others.
            self.most = 0;
            self.sizes = Sketch::default();
        }
    }

    pub(super) fn known(&self) -> Known {
        let rates = self.last.filter(|_| self.looks > 1);
        Known {
            share: self.share,
            own: self.own,
            peak: self.last.map(|last| last.peak),
            p95: self.sizes.quantile(0.95),
            cpu: rates.map(|last| last.cpu),
            busiest: rates.map(|last| last.busiest),
            delayed: rates.map(|last| last.delayed),
        }
    }

    pub(super) fn points(&self) -> impl Iterator<Item = (Time, Point)> {
        self.points.iter()
    }
}

/// A share of `bytes`.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a ratio of sizes"
)]
pub(in crate::engine) fn part(bytes: u64, share: f64) -> u64 {
    (bytes as f64 * share) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;

    const KEY: WorkerKey = WorkerKey(7);

    fn group(private: u64, peak: u64) -> Group {
        Group {
            private: private * MIB,
            peak: peak * MIB,
            highest: 2 * peak * MIB,
            cpu: 0.5,
            processes: 3,
            ..Group::default()
        }
    }

    fn look(worker: &mut Worker, second: u64, group: Group) -> Measured {
        worker.take_in(Duration::from_secs(second), Duration::from_secs(1), KEY, group, 0, Some(2))
    }

    #[test]
    fn the_peak_never_falls_and_rates_need_two_looks() {
        let mut worker = Worker::new();
        look(&mut worker, 1, group(100, 150));
        assert_eq!((worker.known().cpu, worker.known().peak), (None, Some(150 * MIB)));
        // Its child, which had the most, has gone.
        let measured = look(&mut worker, 2, group(40, 60));
        assert_eq!((measured.private, measured.peak), (40 * MIB, 100 * MIB));
        assert_eq!((worker.known().cpu, measured.active), (Some(0.5), Some(2)));
    }

    #[test]
    fn shared_memory_that_nobody_else_has_is_its_own() {
        let mut worker = Worker::new();
        let group = Group { shared: 90 * MIB, highest: 130 * MIB, ..group(40, 60) };
        let span = Duration::from_secs(1);
        let measured = worker.take_in(Duration::ZERO, span, KEY, group, 80 * MIB, None);
        assert_eq!((measured.private, measured.shared), (120 * MIB, 10 * MIB));
        assert_eq!(measured.peak, 130 * MIB, "never both at once");
        assert_eq!(worker.known().own, 80 * MIB);
    }

    #[test]
    fn pages_that_forks_share_count_once_when_that_is_known() {
        let mut worker = Worker::new();
        look(&mut worker, 1, group(300, 300));
        look(&mut worker, 2, group(300, 300));
        worker.learn(Duration::from_secs(3), Some(0.5));
        let measured = look(&mut worker, 4, group(300, 320));
        assert_eq!((measured.private, measured.peak), (150 * MIB, 160 * MIB));
        let p95 = worker.known().p95.unwrap();
        assert!(p95.abs_diff(150 * MIB) < 5 * MIB, "{p95}");
        // One that cannot be looked at any more keeps what was known.
        worker.learn(Duration::from_secs(5), None);
        assert_eq!(worker.known().share, Some(0.5));
    }
}
