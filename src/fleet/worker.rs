//! One worker's life, and the slot it fills.

use std::fmt;
use std::time::Duration;

/// Time since the launcher started, on a clock that does not jump.
pub(crate) type Time = Duration;

/// Names one process for its whole life; never used again, unlike a pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkerKey(pub(crate) u64);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Started, not ready yet.
    Starting { since: Time },
    /// Serving.
    Ready { since: Time },
    /// Told to stop; killed at the end of its grace.
    Stopping { kill_at: Time },
    /// Its leader has ended and processes of its group live on.
    Leftover { kill_at: Time },
    /// Killed; given up where even that does not end it (a process stuck in the kernel).
    Killed { give_up_at: Time },
}

/// One process with its group.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) slot: u32,
    pub(crate) phase: Phase,
    /// How its leader ended, while its group has not.
    pub(crate) ended: Option<End>,
}

/// The end of a leader, kept until its group has gone too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) how: Ended,
    /// Whether it had served long enough for what was before to be forgotten.
    pub(crate) stable: bool,
    /// Whether it had been ready at all.
    pub(crate) ready: bool,
    /// Whether it was told to stop.
    pub(crate) asked: bool,
}

/// One of the places that workers fill; its id is the `THRONG_WORKER_ID`.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) state: SlotState,
    /// Starts so far.
    pub(crate) generation: u32,
    /// Early ends in a row.
    pub(crate) early_ends: u32,
    /// What became of the very first start.
    pub(crate) first: First,
    /// No longer wanted: goes when its worker has gone.
    pub(crate) retiring: bool,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self {
            state: SlotState::Empty,
            generation: 0,
            early_ends: 0,
            first: First::Open,
            retiring: false,
        }
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    Empty,
    /// A worker that has not gone yet.
    Filled(WorkerKey),
    /// Nobody until then.
    Waiting {
        until: Time,
    },
    /// Given up after too many early ends.
    Failed,
    /// Ended, and not to be started again.
    Done {
        success: bool,
    },
}

/// The fate of a slot's first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    Open,
    Ready,
    Failed,
}
