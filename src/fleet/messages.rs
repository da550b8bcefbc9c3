//! What goes into the fleet and what comes out of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bounds::{Adapt, Bounds, MostMemory};
use super::measured::Sample;
use super::why::{Excess, Why};
use super::worker::{Ended, WorkerKey};

/// Which ends are followed by a new start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

/// When a worker counts as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// Alive for so long is enough.
    pub(crate) alive: Option<Duration>,
    /// The longest that it may take otherwise.
    pub(crate) timeout: Duration,
    /// After the time-out it is taken for ready (queue workers never listen), instead of failed.
    pub(crate) lenient: bool,
}

impl Readiness {
    /// The longest that the decision takes.
    pub(crate) fn longest(&self) -> Duration {
        // Not even `spawn` is ready before the engine has started it.
        self.alive.unwrap_or(self.timeout).max(Duration::from_nanos(1))
    }
}

/// The rules that hold for a whole run.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) restart: Restart,
    /// Early ends in a row after which a slot is given up.
    pub(crate) max_restarts: u32,
    /// Between the first word of a stop and KILL.
    pub(crate) grace: Duration,
    /// Whether a worker that serves is drained before it gets the stop signal: its connections are ours to
    /// lead elsewhere.
    pub(crate) drains: bool,
    pub(crate) readiness: Readiness,
    /// How often a worker has to show that it lives.
    pub(crate) watchdog: Option<Duration>,
    /// How old a worker may become, less up to a tenth, so that those that started together do not
    /// go together.
    pub(crate) max_age: Option<Duration>,
    /// How many may be starting at once.
    pub(crate) parallel: Option<u32>,
    /// Bounds of the number of workers, 1 at least.
    pub(crate) least: u32,
    pub(crate) most: u32,
    /// Whether the number follows what is measured.
    pub(crate) adapt: Adapt,
    /// Whether the guard acts before the kernel kills.
    pub(crate) guard: bool,
    /// Which workers are replaced for their memory.
    pub(crate) most_memory: MostMemory,
    /// No start later than this.
    pub(crate) lifetime: Option<Duration>,
    /// Of the jitter.
    pub(crate) seed: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// Begin.
    Start,
    /// The deadline that was asked for has come.
    Tick,
    /// A worker could not be started.
    Refused { worker: WorkerKey, why: Refusal },
    /// A worker said something, or was found to be so.
    Told { worker: WorkerKey, what: Told },
    /// A worker's leader has ended; `group` tells whether processes of its group live on.
    Ended { worker: WorkerKey, how: Ended, group: bool },
    /// The last process of a worker's group has gone.
    GroupGone { worker: WorkerKey },
    /// Run so many more, or fewer, workers, whatever the plan says from now on.
    ResizeBy(i32),
    /// Run so many workers, whatever the plan says from now on.
    ResizeTo(u32),
    /// Run as many workers as the plan says.
    Free,
    /// What there is allows so many workers now. Fewer at once; more when that has held for a while, or
    /// also `at_once`, which forgets what was learnt of memory.
    Planned { bounds: Bounds, at_once: bool },
    /// The kernel killed the worker of this slot for memory.
    OutOfMemory { slot: u32 },
    /// Replace every worker, or the one of `slot`. Up to `surge` new ones may run beside those that they
    /// replace; with none, the old one goes first.
    Renew { kind: Kind, slot: Option<u32>, surge: u32 },
    /// Somebody has looked at what the workers use and what there is.
    Measured(Box<Sample>),
    /// Stop, by request.
    Stop(Urgency),
    /// Stop because going on makes no sense, and end with this status.
    Abort { status: u8 },
}

/// What a worker tells of itself, or a look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It serves.
    Ready,
    /// It will end by itself.
    Stopping,
    /// It needs so long from now on, to start or to stop.
    Extend(Duration),
    /// It lives.
    Ping,
    /// It will show so often that it lives.
    Watchdog(Duration),
    /// It serves no more.
    Hung,
    /// Nothing is under way with it any more.
    Drained,
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

/// Why workers are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// All of them, by request.
    Reload,
    /// One, by request.
    Restart,
    /// One, for its age.
    Aged,
    /// One, for its memory.
    Grown,
}

impl Kind {
    /// `reload`, `restart`, `renewal` or `recycling`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Restart => "restart",
            Self::Aged => "renewal",
            Self::Grown => "recycling",
        }
    }
}

/// Why a rollout stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The new worker ended before it was ready.
    Ended(Ended),
    /// It did not become ready in time.
    Late,
    /// It could not be started.
    Refused,
}

/// What the engine has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Spawn(Assignment),
    /// Give it no new work, and tell when it has finished what it has ([`Told::Drained`]).
    Drain(WorkerKey),
    /// The stop signal, to the leader.
    AskLeader(WorkerKey),
    /// The stop signal, to what is left of the group.
    AskGroup(WorkerKey),
    /// ABRT, to the leader: a core dump or a stack trace tells where it hangs.
    AbortLeader(WorkerKey),
    /// KILL, to the whole group.
    Kill(WorkerKey),
    /// The worker of this slot has reached its age: find out what surge there is room for, and renew it.
    Aged {
        slot: u32,
    },
    /// The worker of this slot has too much memory: find out whether there is room for a new one, which takes
    /// `fresh` bytes, beside it, and replace it.
    Recycle {
        slot: u32,
        fresh: u64,
    },
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
    /// `late`: taken for ready because its time was over.
    Ready {
        worker: WorkerKey,
        slot: u32,
        late: bool,
    },
    /// Not ready in time: it is stopped.
    NotReady {
        worker: WorkerKey,
        slot: u32,
    },
    Hung {
        worker: WorkerKey,
        slot: u32,
    },
    /// It says that it is going.
    Leaving {
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
    /// Its worker has ended, and nobody takes its place.
    SlotDone {
        slot: u32,
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
    /// The same, by what was measured.
    Adapted {
        from: u32,
        to: u32,
        why: Why,
    },
    /// A worker is replaced for its memory.
    Recycled {
        worker: WorkerKey,
        slot: u32,
        private: u64,
        why: Excess,
    },
    /// It has had more than its share for long; told once.
    AboveShare {
        worker: WorkerKey,
        slot: u32,
        private: u64,
        share: u64,
    },
    /// The box is about to be killed, and there is nobody to give up.
    NoRoom {
        used: u64,
        limit: u64,
    },
    FirstStartsFailed {
        workers: u32,
    },
    NoneLeft,
    Rollout {
        kind: Kind,
        workers: u32,
        surge: u32,
    },
    RolloutFailed {
        kind: Kind,
        slot: u32,
        why: Failure,
    },
    RolloutDone {
        kind: Kind,
    },
    /// A stop, or another rollout, came first.
    RolloutCut {
        kind: Kind,
    },
}
