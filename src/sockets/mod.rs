//! Listening sockets and the ways in which workers learn of them. Depends on `units` alone.

mod adopt;
mod dialects;
mod listen;
pub(crate) mod node;
mod passed;
mod proxy;
mod reuseport;
mod share;
mod slots;
mod steer;
mod tcp;

pub(crate) use adopt::{above, give_up, handed_down};
pub(crate) use dialects::{FIRST_FD, variables};
pub(crate) use listen::{Address, Binding, LONGEST_PATH, Listener};
pub(crate) use passed::Passed;
pub(crate) use proxy::{Options as ProxyOptions, Proxy, Saved as SavedProxy, Upstream};
pub(crate) use reuseport::Reuseport;
pub(crate) use share::{Balance, Connections, Equipment, Key, News, Share};
pub(crate) use slots::Slots;
pub(crate) use tcp::{BACKLOG, revive};
