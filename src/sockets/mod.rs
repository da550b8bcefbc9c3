//! Listening sockets and the ways in which workers learn of them. Depends on `units` alone.

mod adopt;
mod dialects;
mod listen;
mod passed;
mod share;

pub(crate) use adopt::{give_up, handed_down};
pub(crate) use dialects::{FIRST_FD, variables};
pub(crate) use listen::{Address, Listener};
pub(crate) use passed::Passed;
pub(crate) use share::{Connections, Equipment, Key, News, Share};
