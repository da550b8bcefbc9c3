//! What goes into the fleet and what comes out of it.

use std::time::Duration;

use super::worker::{Ended, WorkerKey};

/// Which ends are followed by a new start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

/// The rules that hold for a whole run.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) restart: Restart,
    /// Early ends in a row after which a slot is given up.
    pub(crate) max_restarts: u32,
    /// Between the stop signal and KILL.
    pub(crate) grace: Duration,
    /// Alive for so long counts as ready.
    pub(crate) ready_after: Duration,
    /// Bounds of the number of workers, 1 at least.
    pub(crate) least: u32,
    pub(crate) most: u32,
    /// No start later than this.
    pub(crate) lifetime: Option<Duration>,
    /// Of the jitter.
    pub(crate) seed: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Begin.
    Start,
    /// The deadline that was asked for has come.
    Tick,
    /// A worker could not be started.
    Refused { worker: WorkerKey, why: Refusal },
    /// A worker's leader has ended; `group` tells whether processes of its group live on.
    Ended { worker: WorkerKey, how: Ended, group: bool },
    /// The last process of a worker's group has gone.
    GroupGone { worker: WorkerKey },
    /// Run so many more, or fewer, workers.
    ResizeBy(i32),
    /// Replace every worker, one after the other.
    Reload,
    /// Stop, by request.
    Stop(Urgency),
    /// Stop because going on makes no sense, and end with this status.
    Abort { status: u8 },
}

/// Why a worker could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No processes, memory or descriptors: it may work later.
    Resources,
    /// The command itself: 126 or 127.
    Command { status: u8 },
}

/// How soon to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Ask, then kill at the end of the grace; asked again, kill now.
    Graceful,
    /// Kill now.
    Now,
}

/// What the engine has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Spawn(Assignment),
    /// The stop signal, to the leader.
    AskLeader(WorkerKey),
    /// The stop signal, to what is left of the group.
    AskGroup(WorkerKey),
    /// KILL, to the whole group.
    Kill(WorkerKey),
    Say(Note),
    /// All is over.
    Exit(u8),
}

/// A worker to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) worker: WorkerKey,
    /// From 1.
    pub(crate) slot: u32,
    /// From 1, counted in the slot.
    pub(crate) generation: u32,
    /// How many workers there are to be.
    pub(crate) count: u32,
}

/// A fact for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Ready {
        worker: WorkerKey,
        slot: u32,
    },
    Ended {
        worker: WorkerKey,
        slot: u32,
        how: Ended,
        asked: bool,
    },
    /// The slot's next start comes after this wait.
    Waits {
        slot: u32,
        delay: Duration,
        early_ends: u32,
    },
    SlotFailed {
        slot: u32,
        early_ends: u32,
    },
    Leftover {
        worker: WorkerKey,
        slot: u32,
    },
    Killing {
        worker: WorkerKey,
        slot: u32,
    },
    GaveUp {
        worker: WorkerKey,
        slot: u32,
    },
    Stopping {
        workers: u32,
    },
    Resized {
        from: u32,
        to: u32,
    },
    FirstStartsFailed {
        workers: u32,
    },
    NoneLeft,
    Reload {
        workers: u32,
    },
    ReloadStopped {
        slot: u32,
    },
    Reloaded,
}
