//! What happens to the workers, as log lines: one fact each, with fields for machines.

use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::Engine;
use crate::fleet::{Ended, Excess, Failure, Kind, Note, Why, WorkerKey};
use crate::units::{plural, show_duration, show_size};

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
            Note::Adapted { from, to, why } => say_adapted(from, to, why),
            Note::Recycled { worker, slot, private, why } => {
                self.say_recycled(worker, slot, private, why);
            }
            Note::AboveShare { worker, slot, private, share } => {
                warn!(
                    event = "above_share",
                    worker = slot,
                    pid = pid(worker),
                    memory_bytes = private,
                    share_bytes = share,
                    "worker {slot} (pid {}) has had more than its share for a while: {} of {}; --max-worker-memory auto replaces who does",
                    pid(worker),
                    show_size(private),
                    show_size(share)
                );
            }
            Note::NoRoom { used, limit } => {
                warn!(
                    event = "no_room",
                    used_bytes = used,
                    limit_bytes = limit,
                    "{} of {} are used, and there is no worker to give up: the kernel may kill one",
                    show_size(used),
                    show_size(limit)
                );
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
            Note::Rollout { .. }
            | Note::RolloutFailed { .. }
            | Note::RolloutDone { .. }
            | Note::RolloutCut { .. } => say_rollout(note),
        }
    }

    fn say_recycled(&self, worker: WorkerKey, slot: u32, private: u64, why: Excess) {
        let pid = self.running.get(&worker).map_or(0, |running| running.pid.as_raw());
        let has = show_size(private);
        let because = match why {
            Excess::Above { most } => format!("{} are allowed", show_size(most)),
            Excess::Grows { rate, left } => format!(
                "it grows by {} in a second, and {} are left",
                show_size(rate),
                show_size(left)
            ),
            Excess::Largest { used, limit } => format!(
                "{} of {} are used, and it has the most",
                show_size(used),
                show_size(limit)
            ),
        };
        warn!(
            event = "recycled",
            worker = slot,
            pid,
            memory_bytes = private,
            "worker {slot} (pid {pid}) is replaced: it has {has}, {because}"
        );
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

/// Each change has its reason in the same line.
fn say_adapted(from: u32, to: u32, cause: Why) {
    let (workers, text) = (plural(to, "worker"), why(cause));
    if let Why::Killed { slot } = cause {
        info!(
            event = "learnt",
            from,
            to,
            "{workers} instead of {from}, because worker {slot} was killed for memory; a higher limit, a reload or scale auto tries more again"
        );
    } else {
        info!(event = "adapted", from, to, reason = cause.name(), "{workers} instead of {from}: {text}");
    }
}

/// The reason for a change, in words.
pub(super) fn why(why: Why) -> String {
    let costs = |cost: Option<u64>| {
        cost.map(|cost| format!(", and a worker takes {}", show_size(cost))).unwrap_or_default()
    };
    match why {
        Why::Queue { waiting, free, cost } => {
            let wait = if waiting == 1 { "waits" } else { "wait" };
            let waiting = plural(waiting, "connection");
            format!("{waiting} {wait}, {free} % of the CPU is free{}", costs(cost))
        }
        Why::Busy { busiest, free, cost } => format!(
            "a worker keeps a CPU busy to {busiest} %, {free} % of what we may use is free{}",
            costs(cost)
        ),
        Why::Measured { cost, left } => format!(
            "measured, a worker takes {}, and {} are left",
            show_size(cost),
            show_size(left)
        ),
        Why::NoHelp => "more of them did no more work".to_owned(),
        Why::Idle { seconds } => {
            let time = show_duration(Duration::from_secs(seconds));
            format!("for {time} fewer would have done")
        }
        Why::Full { used, limit } => {
            format!("{} of {} of memory are used", show_size(used), show_size(limit))
        }
        Why::Pressure { stalled, used, limit } => format!(
            "memory is short: tasks stood still for it for {stalled} % of the time, and {} of {} are used",
            show_size(used),
            show_size(limit)
        ),
        Why::Cost { cost, limit } => format!(
            "measured, a worker takes up to {}, and {} do not hold more of that",
            show_size(cost),
            show_size(limit)
        ),
        Why::Killed { slot } => format!("worker {slot} was killed for memory"),
        Why::Relief { left } => format!("memory has room again: {} are left", show_size(left)),
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
