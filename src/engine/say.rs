//! What happens to the workers, as log lines: one fact each, with fields for machines.

use tracing::{debug, error, info, warn};

use super::Engine;
use crate::fleet::{Ended, Note, WorkerKey};
use crate::units::{plural, show_duration};

impl Engine {
    pub(super) fn say(&self, note: Note) {
        let pid =
            |worker: WorkerKey| self.running.get(&worker).map_or(0, |running| running.pid.as_raw());
        match note {
            Note::Ready { worker, slot } => {
                debug!(
                    event = "ready",
                    worker = slot,
                    pid = pid(worker),
                    "worker {slot} (pid {}) is ready",
                    pid(worker)
                );
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
            Note::Reload { workers } => info!(
                event = "reload",
                workers,
                "restarting {} one after the other",
                plural(workers, "worker")
            ),
            Note::ReloadStopped { slot } => {
                error!(
                    event = "reload_stopped",
                    worker = slot,
                    "the new worker {slot} ended before it was ready; the reload stops and the others stay as they are"
                );
            }
            Note::Reloaded => info!(event = "reloaded", "all workers have been restarted"),
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
}
