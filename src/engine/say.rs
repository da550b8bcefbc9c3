//! What happens to the workers, as log lines: one fact each, with fields for machines.

use tracing::{debug, error, info, warn};

use super::Engine;
use crate::fleet::{Ended, Failure, Kind, Note, WorkerKey};
use crate::units::{plural, show_duration};

/// How many of its last lines are shown of a worker that hangs.
const LAST_LINES: usize = 10;

impl Engine {
    pub(super) fn say(&self, note: Note) {
        let pid =
            |worker: WorkerKey| self.running.get(&worker).map_or(0, |running| running.pid.as_raw());
        match note {
            Note::Ready { .. }
            | Note::NotReady { .. }
            | Note::Hung { .. }
            | Note::Leaving { .. } => {
                self.say_state(note);
            }
            Note::Ended { worker, slot, how, asked } => self.say_ended(worker, slot, how, asked),
            Note::Waits { slot, delay, early_ends } => {
                let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                let delay = show_duration(delay);
                info!(
                    event = "backoff",
                    worker = slot,
                    early_ends,
                    delay_ms = ms,
                    "worker {slot} starts again in {delay} ({} in a row)",
                    plural(early_ends, "early end")
                );
            }
            Note::SlotFailed { slot, early_ends } => {
                error!(
                    event = "failed",
                    worker = slot,
                    early_ends,
                    "worker {slot} is given up after {} in a row",
                    plural(early_ends, "early end")
                );
            }
            // Its end has been said.
            Note::SlotDone { .. } => {}
            Note::Leftover { worker, slot } => {
                info!(
                    event = "leftover",
                    worker = slot,
                    pid = pid(worker),
                    "worker {slot} left processes behind, which are stopped before it starts again"
                );
            }
            Note::Killing { worker, slot } => {
                warn!(
                    event = "kill",
                    worker = slot,
                    pid = pid(worker),
                    "worker {slot} (pid {}) and its process group are killed",
                    pid(worker)
                );
            }
            Note::GaveUp { worker, slot } => {
                error!(
                    event = "stuck",
                    worker = slot,
                    pid = pid(worker),
                    "worker {slot} (pid {}) does not end even by KILL and is left to the kernel",
                    pid(worker)
                );
            }
            Note::Stopping { workers } => {
                info!(event = "stopping", workers, "stopping {}", plural(workers, "worker"));
            }
            Note::Adapted { .. }
            | Note::Recycled { .. }
            | Note::AboveShare { .. }
            | Note::NoRoom { .. } => self.say_measured(note),
            Note::Resized { from, to } => {
                info!(event = "resized", from, to, "{} instead of {from}", plural(to, "worker"));
            }
            Note::FirstStartsFailed { workers: 1 } => {
                error!(
                    event = "first_starts_failed",
                    workers = 1,
                    "the worker ended before it was ready, so nothing is tried again"
                );
            }
            Note::FirstStartsFailed { workers } => {
                error!(
                    event = "first_starts_failed",
                    workers,
                    "all {workers} workers ended before they were ready, so nothing is tried again"
                );
            }
            Note::NoneLeft => {
                error!(event = "none_left", "no worker is left that may be started again");
            }
            Note::Rollout { .. }
            | Note::RolloutFailed { .. }
            | Note::RolloutDone { .. }
            | Note::RolloutCut { .. } => say_rollout(note),
        }
    }

    fn say_ended(&self, worker: WorkerKey, slot: u32, how: Ended, asked: bool) {
        let Some(running) = self.running.get(&worker) else { return };
        let (pid, age) = (running.pid.as_raw(), self.now().saturating_sub(running.since));
        let ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let status = how.status();
        let text =
            format!("worker {slot} (pid {pid}) ended with {how} after {}", show_duration(age));
        // On a terminal the worker speaks for itself, and its status is ours.
        if asked || how.is_success() || self.config.terminal {
            debug!(event = "ended", worker = slot, pid, status, age_ms = ms, asked, "{text}");
        } else {
            warn!(event = "ended", worker = slot, pid, status, age_ms = ms, asked, "{text}");
        }
    }

    /// What a worker that lives is found to be.
    fn say_state(&self, note: Note) {
        let pid =
            |worker: WorkerKey| self.running.get(&worker).map_or(0, |running| running.pid.as_raw());
        let time = || show_duration(self.config.policy.readiness.timeout);
        match note {
            Note::Ready { worker, slot, late: false } => {
                debug!(
                    event = "ready",
                    worker = slot,
                    pid = pid(worker),
                    "worker {slot} (pid {}) is ready",
                    pid(worker)
                );
            }
            Note::Ready { worker, slot, late: true } => {
                warn!(
                    event = "ready",
                    worker = slot,
                    pid = pid(worker),
                    late = true,
                    "worker {slot} (pid {}) has not said that it is ready and is taken for it after {}; --ready says what to wait for",
                    pid(worker),
                    time()
                );
            }
            Note::NotReady { worker, slot } => {
                error!(
                    event = "not_ready",
                    worker = slot,
                    pid = pid(worker),
                    "worker {slot} (pid {}) is not ready after {} and is stopped",
                    pid(worker),
                    time()
                );
            }
            Note::Hung { worker, slot } => self.say_hung(worker, slot),
            Note::Leaving { worker, slot } => {
                info!(
                    event = "leaving",
                    worker = slot,
                    pid = pid(worker),
                    "worker {slot} (pid {}) says that it is stopping",
                    pid(worker)
                );
            }
            _ => {}
        }
    }

    /// With its last words: they are most of what can be known about it.
    fn say_hung(&self, worker: WorkerKey, slot: u32) {
        let Some(running) = self.running.get(&worker) else { return };
        let pid = running.pid.as_raw();
        error!(
            event = "hung",
            worker = slot,
            pid,
            "worker {slot} (pid {pid}) shows no sign of life and is aborted"
        );
        let words = running.last_words();
        let words = String::from_utf8_lossy(&words);
        let lines: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).collect();
        for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
            error!(event = "last_words", worker = slot, pid, "worker {slot} wrote: {line}");
        }
    }
}

fn say_rollout(note: Note) {
    match note {
        Note::Rollout { kind, workers, surge } => {
            let way = match surge {
                0 => "the old one stops first".to_owned(),
                1 => "the new one is ready first".to_owned(),
                more => format!("{more} new ones are ready first"),
            };
            let what = match kind {
                Kind::Reload => "reloading",
                Kind::Restart => "restarting",
                Kind::Aged => "renewing for its age",
                Kind::Grown => "recycling for its memory",
            };
            let event = kind.name();
            let count = plural(workers, "worker");
            info!(event, workers, surge, "{what} {count}, one after the other: {way}");
        }
        Note::RolloutFailed { kind, slot, why } => {
            let why = failure(slot, why);
            error!(
                event = "reload_stopped",
                kind = kind.name(),
                worker = slot,
                "{why}; the {} stops and the others stay as they are",
                kind.name()
            );
        }
        Note::RolloutDone { kind } => {
            info!(event = "reloaded", kind = kind.name(), "the {} is done", kind.name());
        }
        Note::RolloutCut { kind } => {
            info!(event = "reload_cut", kind = kind.name(), "the {} is broken off", kind.name());
        }
        _ => {}
    }
}

/// Why a rollout stopped.
pub(super) fn failure(slot: u32, why: Failure) -> String {
    match why {
        Failure::Ended(how) => {
            format!("the new worker {slot} ended with {how} before it was ready")
        }
        Failure::Late => format!("the new worker {slot} was not ready in time"),
        Failure::Refused => format!("the new worker {slot} could not be started"),
    }
}
