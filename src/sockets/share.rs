//! What the ways of sharing have in common: their names, what a worker gets at its start, and what
//! they find out about it.

use std::os::fd::OwnedFd;
use std::rc::Rc;

/// How connections reach the workers (`--share`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// One listening socket for all, inherited.
    Fd,
    /// Workers bind for themselves, or have no port.
    Off,
}

impl Share {
    /// Whether we can lead new connections elsewhere, so that a worker finishes what it has before it
    /// gets its stop signal.
    pub(crate) fn drains(self) -> bool {
        match self {
            Self::Fd | Self::Off => false,
        }
    }
}

/// Names a worker for its whole life, as the fleet does; never used again.
pub(crate) type Key = u64;

/// What a worker gets at its start.
#[derive(Debug, Default)]
pub(crate) struct Equipment {
    /// Inherited from [`FIRST_FD`](super::FIRST_FD) on, in this order, and announced.
    pub(crate) sockets: Vec<Rc<OwnedFd>>,
    /// Inherited under the number after them: a channel to us.
    pub(crate) channel: Option<OwnedFd>,
    /// Of this worker alone.
    pub(crate) env: Vec<(&'static str, String)>,
}

/// What came out about a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing is under way with it any more: it may get its stop signal.
    Drained,
}

/// The connections of a worker, where we carry them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Connections {
    /// Handed to it so far.
    pub(crate) accepted: u64,
    /// Of those, open now.
    pub(crate) active: u64,
    /// Lost by it: broken off before their end.
    pub(crate) failed: u64,
}
