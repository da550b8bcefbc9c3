//! What a look leads to: the fleet is told, and whoever asks for the status.

use std::time::Duration;

use tracing::debug;

use super::notices::Notice;
use super::{LEAST, Last, Measure, Subject, cpu_time, pace};
use crate::control::{GroupCpu, GroupMemory, GroupPoint, GroupStatus, History, WorkerPoint};
use crate::engine::{Engine, ports};
use crate::fleet::{Event, Sample, Time, WorkerKey};
use crate::sockets::Share;

/// A start is recent for so long.
const YOUNG: Duration = Duration::from_secs(3);
/// A status that is asked for where nobody looks: not twice within this.
const FRESH: Duration = Duration::from_millis(200);
/// The longest rest after a look that cost much.
const LONGEST_REST: Duration = Duration::from_mins(1);

impl Engine {
    /// The clock has ticked, or limits have moved.
    pub(in crate::engine) fn look_by_the_clock(&mut self) {
        let now = self.now();
        if !self.measure.wanted || now < self.measure.rest {
            return;
        }
        self.look_at_use();
        let Measure { notices, gauge, last, .. } = &mut self.measure;
        if let (Some(gauge), Some(last)) = (gauge, last) {
            let tightest = last.reading.tightest();
            let others = last.reading.machine_wide;
            let plenty = tightest.is_none_or(|level| {
                level.room() >= level.limit / 4 || (others && !level.is_machine())
            });
            notices.arm(gauge.notices(&last.reading), plenty);
        }
    }

    /// The timer has ticked, or the kernel has told something.
    pub(in crate::engine) fn look_soon(&mut self, notice: Option<Notice>) {
        let now = self.now();
        if let Some(notice) = notice {
            debug!(event = "notice", "{}: looking at once", notice.words());
            let last = self.measure.last.as_ref().map(|last| last.at);
            if let Some(wait) = last.and_then(|at| (at + LEAST).checked_sub(now)) {
                return self.measure.look_in(now, wait);
            }
        }
        self.look_at_use();
    }

    /// Looks, and lets the fleet know.
    fn look_at_use(&mut self) {
        if self.fleet.is_ending() {
            return;
        }
        let now = self.now();
        let before = self.measure.last.as_ref().and_then(|last| last.sample.memory);
        let begun = cpu_time();
        let (sample, young) = self.sample();
        let cost = cpu_time().saturating_sub(begun);
        let wait = pace::next(&sample, before, young, cost);
        self.measure.rest = now + (cost * pace::COST).min(LONGEST_REST);
        self.measure.calm = wait.is_none();
        if let Some(wait) = wait {
            self.measure.look_in(now, wait);
        }
        self.tell(Event::Measured(Box::new(sample)));
    }

    /// One look; and whether a start is recent.
    fn sample(&mut self) -> (Sample, bool) {
        let now = self.now();
        let (sharing, config) = (&self.sharing, &self.config);
        let mut sockets = sharing.ours();
        sockets.extend(config.listeners.iter().filter_map(|listener| ports::inode(&listener.fd)));
        // Who hands a connection over does not hear of its end.
        let carried = config.share != Share::Node;
        let active = |worker: WorkerKey| {
            let active = sharing.connections(worker).filter(|_| carried)?.active;
            Some(u32::try_from(active).unwrap_or(u32::MAX))
        };
        let running = self.running.iter();
        let young = running.clone().any(|(_, running)| now < running.since + YOUNG);
        let subject = Subject {
            workers: running.map(|(key, running)| (*key, running.pid.as_raw())).collect(),
            sockets,
            held: sharing.held(),
            active: &active,
            usable: config.sized.cpus,
            told: config.sized.told.clone(),
            divided: self.isolation.has_limits(),
        };
        let sample = self.measure.look(now, &subject);
        self.measure.look_exactly(now, &subject.workers);
        (sample, young)
    }

    /// For the status, where nobody looks otherwise.
    pub(in crate::engine) fn look_when_asked(&mut self) {
        let now = self.now();
        let fresh = |last: &Last| now < last.at + FRESH;
        if !self.measure.wanted && !self.measure.last.as_ref().is_some_and(fresh) {
            // Nobody decides anything by it.
            let _ = self.sample();
        }
    }

    /// The last points of all.
    pub(in crate::engine) fn history(&self) -> History {
        let now = self.now();
        let slots = self
            .running
            .iter()
            .filter_map(|(key, running)| Some((running, self.measure.workers.get(key)?)));
        let workers = slots.flat_map(|(running, worker)| {
            worker.points().map(move |(at, point)| WorkerPoint {
                id: running.slot,
                pid: running.pid.as_raw(),
                seconds_ago: ago(now, at),
                private_bytes: u64::from(point.private_kib) << 10,
                cpu: round(f64::from(point.cpu)),
            })
        });
        History { schema: 1, group: self.measure.points(now), workers: workers.collect() }
    }
}

impl Measure {
    /// What the last look found of all together.
    pub(in crate::engine) fn status(&self, now: Time) -> Option<GroupStatus> {
        let Last { at, sample, source, .. } = self.last.as_ref()?;
        let rates = !sample.span.is_zero();
        Some(GroupStatus {
            seconds_ago: ago(now, *at),
            memory: sample.memory.zip(source.clone()).map(|(memory, source)| GroupMemory {
                limit_bytes: memory.limit,
                used_bytes: memory.used,
                source,
                pressure: memory.stalled.map(round),
                limit_hits: memory.hits,
            }),
            cpu: GroupCpu {
                usable: sample.cpu.usable,
                used: rates.then(|| round(sample.cpu.used)),
                throttled: rates.then(|| round(sample.cpu.throttled)),
            },
            waiting_connections: sample.waiting,
            history: self.points(now),
        })
    }

    fn points(&self, now: Time) -> Vec<GroupPoint> {
        let points = self.points.iter().map(|(at, point)| GroupPoint {
            seconds_ago: ago(now, at),
            workers: point.workers,
            used_bytes: point.memory.map(|memory| memory.used),
            pressure: point.memory.and_then(|memory| memory.stalled).map(round),
            cpu: round(point.cpu.used),
            throttled: round(point.cpu.throttled),
            waiting_connections: point.waiting,
        });
        points.collect()
    }
}

/// To a tenth.
fn ago(now: Time, at: Time) -> f64 {
    (now.saturating_sub(at).as_secs_f64() * 10.0).round() / 10.0
}

/// To a thousandth.
pub(in crate::engine) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
