//! One worker's life, and the slot it fills.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Time since the launcher started, on a clock that does not jump.
pub(crate) type Time = Duration;

/// Names one process for its whole life; never used again, unlike a pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct WorkerKey(pub(crate) u64);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ended {
    Code(u8),
    Signal(i32),
}

impl Ended {
    /// As a shell says it: the code, or 128 + signal.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }

    pub(crate) fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "status {code}"),
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "{}", name.as_str()),
                Err(_) => write!(f, "signal {signal}"),
            },
        }
    }
}

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Started, not ready yet; decided at `due` at the latest.
    Starting { due: Time },
    /// Serving.
    Ready,
    /// Gets no new work and finishes what it has; asked to stop when that is done, at `ask_at` at the latest.
    Draining { ask_at: Time, kill_at: Time },
    /// On its way out; killed at the end of its grace.
    Stopping { kill_at: Time },
    /// Its leader has ended and processes of its group live on.
    Leftover { kill_at: Time },
    /// Killed; given up where even that does not end it (a process stuck in the kernel).
    Killed { give_up_at: Time },
}

/// Why a worker is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cause {
    /// Somebody wanted that: a stop, a smaller size, a rollout.
    Asked,
    /// It said so itself (`STOPPING=1`).
    Itself,
    /// It did not become ready in time.
    NotReady,
    /// It serves no more and does not know it.
    Hung,
}

/// One process with its group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Worker {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) phase: Phase,
    pub(crate) started: Time,
    pub(crate) ready_since: Option<Time>,
    pub(crate) cause: Option<Cause>,
    /// How often it has to show that it lives; `None` where nobody looks.
    pub(crate) watchdog: Option<Duration>,
    /// When its next sign of life is due, once it is ready.
    pub(crate) ping_by: Option<Time>,
    /// When it is replaced for its age.
    pub(crate) old_at: Option<Time>,
    /// How its leader ended, while its group has not.
    pub(crate) ended: Option<End>,
}

impl Worker {
    /// Neither told to go nor gone.
    pub(crate) fn is_wanted(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Ready)
    }

    pub(crate) fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    /// It lives: the next sign is due. Only who is ready has to show it; a start has its own limit, and a
    /// stop too.
    pub(crate) fn show_life(&mut self, now: Time) {
        let every = self.watchdog.filter(|_| self.phase == Phase::Ready);
        self.ping_by = every.map(|every| now + every);
    }

    /// What its end at `now` means.
    pub(crate) fn end(&self, now: Time, how: Ended, by_age: bool) -> End {
        let reached = match self.ready_since {
            Some(since) if now >= since + super::STABLE => Reached::Stable,
            Some(_) => Reached::Ready,
            None => Reached::Nothing,
        };
        let failure = !how.is_success();
        match (self.cause, self.phase) {
            (Some(Cause::Asked), _) => End { how, failure, reached: Reached::Stable, asked: true },
            (Some(Cause::NotReady | Cause::Hung), _) => {
                End { how, failure: true, reached, asked: false }
            }
            // Who only has to live for a while may have done so in this very moment.
            (_, Phase::Starting { due }) if by_age && now >= due => {
                End { how, failure, reached: Reached::Ready, asked: false }
            }
            _ => End { how, failure, reached, asked: false },
        }
    }
}

/// How far a worker came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Reached {
    Nothing,
    Ready,
    /// It had served long enough for what was before to be forgotten.
    Stable,
}

/// The end of a leader, kept until its group has gone too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) how: Ended,
    /// Not what a worker should do: a bad status, or an end that we had to force.
    pub(crate) failure: bool,
    pub(crate) reached: Reached,
    /// Whether it was told to stop.
    pub(crate) asked: bool,
}

/// One of the places that workers fill; its id is the `THRONG_WORKER_ID`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub(crate) state: SlotState,
    /// The worker that will take the place of the one that fills it.
    pub(crate) successor: Option<WorkerKey>,
    /// Starts so far.
    pub(crate) generation: u32,
    /// Early ends in a row.
    pub(crate) early_ends: u32,
    /// Ends so far that nobody asked for and that led to another start.
    pub(crate) restarts: u32,
    /// The last end of a worker of this slot, and when.
    pub(crate) last_end: Option<(End, Time)>,
    /// What became of the very first start.
    pub(crate) first: First,
    /// No longer wanted: goes when its worker has gone.
    pub(crate) retiring: bool,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self {
            state: SlotState::Empty,
            successor: None,
            generation: 0,
            early_ends: 0,
            restarts: 0,
            last_end: None,
            first: First::Open,
            retiring: false,
        }
    }

    /// The worker that serves for this slot, or will.
    pub(crate) fn current(&self) -> Option<WorkerKey> {
        match self.state {
            SlotState::Filled(key) => Some(key),
            _ => None,
        }
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SlotState {
    /// Nobody yet.
    Empty,
    /// A worker that has not gone yet.
    Filled(WorkerKey),
    /// Nobody until then.
    Waiting { until: Time },
    /// Given up after too many early ends.
    Failed,
    /// Ended, and not to be started again.
    Done { success: bool },
}

/// The fate of a slot's first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum First {
    Open,
    Ready,
    Failed,
}
