//! A cluster primary for Node that is not Node: its workers are `cluster` workers, ask us what to listen on,
//! and send messages. Elsewhere the same channel carries messages alone.
//!
//! The protocol is Node's own between its primary and its workers (lib/internal/cluster), the same from 18
//! to 26; `docs/connections.md` says what of it a user sees. [`protocol`] reads and writes lines, [`primary`]
//! and [`deal`] decide, [`hub`] and [`work`] carry out.

mod bind;
mod channel;
mod deal;
mod handle;
mod hub;
mod leaving;
mod message;
mod peer;
mod primary;
mod protocol;
mod queues;
mod saved;
#[cfg(test)]
mod tests;
mod work;

pub(crate) use hub::{Cluster, Hub, Setup};
#[cfg(fuzzing)]
pub(crate) use protocol::fuzz;
pub(crate) use saved::Saved;
