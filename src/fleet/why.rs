//! Why the number of workers changed, or a worker is replaced, as facts that can be told in a line.
//! Shares are in percent.

use serde::{Deserialize, Serialize};

/// Why there are to be more or fewer workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Why {
    /// Connections wait to be accepted, and there is room.
    Queue { waiting: u32, free: u32, cost: Option<u64> },
    /// A worker keeps most of a CPU busy, which is all that it can, and there is room.
    Busy { busiest: u32, free: u32, cost: Option<u64> },
    /// A worker takes less than was assumed.
    Measured { cost: u64, left: u64 },
    /// The last step up changed nothing.
    NoHelp,
    /// One who was new with the last step, in this slot, ended before it had served for long.
    CannotStart { slot: u32 },
    /// For so many seconds fewer would have done.
    Idle { seconds: u64 },
    /// More is used than is to be.
    Full { used: u64, limit: u64 },
    /// Tasks stand still for want of memory, or the kernel has to reclaim at the limit.
    Pressure { stalled: u32, used: u64, limit: u64 },
    /// If all took at once what they have taken before, it would not fit.
    Cost { cost: u64, limit: u64 },
    /// The kernel killed the worker of this slot for memory.
    Killed { slot: u32 },
    /// What was given up for memory fits again.
    Relief { left: u64 },
}

impl Why {
    /// For programs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queue { .. } => "queue",
            Self::Busy { .. } => "busy",
            Self::Measured { .. } => "measured",
            Self::NoHelp => "no_help",
            Self::CannotStart { .. } => "cannot_start",
            Self::Idle { .. } => "idle",
            Self::Full { .. } => "full",
            Self::Pressure { .. } => "pressure",
            Self::Cost { .. } => "cost",
            Self::Killed { .. } => "killed",
            Self::Relief { .. } => "relief",
        }
    }
}

/// Why a worker is replaced for its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// It has had more than it may.
    Above { most: u64 },
    /// It grows by so much in a second, and then there would be no room to replace it.
    Grows { rate: u64, left: u64 },
    /// The box is nearly full, and it stands out.
    Largest { used: u64, limit: u64 },
}
