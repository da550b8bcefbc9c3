//! What was measured and what follows from it, as log lines: each change with its reason.

use std::time::Duration;

use tracing::{info, warn};

use super::Engine;
use crate::fleet::{Excess, Note, Why, WorkerKey};
use crate::units::{plural, show_duration, show_size};

impl Engine {
    pub(super) fn say_measured(&self, note: Note) {
        let pid =
            |worker: WorkerKey| self.running.get(&worker).map_or(0, |running| running.pid.as_raw());
        match note {
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
            _ => {}
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
            Excess::Largest { used, limit } => {
                format!("{} of {} are used, and it has the most", show_size(used), show_size(limit))
            }
        };
        warn!(
            event = "recycled",
            worker = slot,
            pid,
            memory_bytes = private,
            "worker {slot} (pid {pid}) is replaced: it has {has}, {because}"
        );
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
        info!(
            event = "adapted",
            from,
            to,
            reason = cause.name(),
            "{workers} instead of {from}: {text}"
        );
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
        Why::CannotStart { slot } => format!("worker {slot}, one more than before, did not stay"),
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
