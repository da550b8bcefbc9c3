//! What the ways of sharing have in common: their names, what a worker gets at its start, and what
//! they find out about it.

use std::os::fd::OwnedFd;
use std::rc::Rc;

/// How connections reach the workers (`--share`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// We are the cluster primary of Node's workers.
    Node,
    /// One listening socket for all, inherited.
    Fd,
    /// One for each slot, inherited.
    Reuseport,
    /// We accept, and pass bytes to a port of each worker's own.
    Proxy,
    /// Workers bind for themselves, or have no port.
    Off,
}

impl Share {
    /// Whether we can lead new connections elsewhere, so that a worker finishes what it has before it
    /// gets its stop signal.
    pub(crate) fn drains(self) -> bool {
        match self {
            Self::Node | Self::Reuseport | Self::Proxy => true,
            Self::Fd | Self::Off => false,
        }
    }

    /// Its name as a setting.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Fd => "fd",
            Self::Reuseport => "reuseport",
            Self::Proxy => "proxy",
            Self::Off => "off",
        }
    }

    /// Who may choose the worker of a connection; the first does so where nobody says otherwise.
    pub(crate) fn balances(self) -> &'static [Balance] {
        match self {
            Self::Node => &[Balance::Kernel, Balance::RoundRobin, Balance::StickyIp],
            Self::Fd | Self::Reuseport => &[Balance::Kernel],
            Self::Proxy => &[Balance::LeastConnections, Balance::RoundRobin, Balance::StickyIp],
            Self::Off => &[],
        }
    }
}

/// Who chooses the worker of a connection, and how (`--balance`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balance {
    /// The kernel, at no cost.
    Kernel,
    /// We: the worker with the fewest; in rotation where several have as few.
    LeastConnections,
    /// We: one after the other.
    RoundRobin,
    /// We: a client's address always meets the same worker, as long as that lives.
    StickyIp,
}

impl Balance {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::LeastConnections => "least-connections",
            Self::RoundRobin => "round-robin",
            Self::StickyIp => "sticky-ip",
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
    /// A server of it listens.
    Listens,
    /// It says that it is ready (`process.send('ready')`).
    SaidReady,
    /// It will go by itself.
    Leaves,
    /// It says nothing: somebody else has its channel.
    Deaf,
    /// It wants a port that somebody else has.
    PortTaken(u16),
    /// Something about it was written to the log, which is passed on when the engine has its turn.
    Said,
    /// What the way has put off for it is to be done now.
    Due,
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
