//! The control interface: HTTP with JSON over a Unix socket, and its client.
//!
//! The server decides nothing: every request becomes a [`Call`] that whoever runs the fleet answers.
//! Depends on `http` and `log`; knows nothing of processes.

mod api;
mod client;
mod follow;
mod place;
mod wire;

use std::sync::{Arc, RwLock};

use tokio::sync::{broadcast, mpsc, oneshot};

pub(crate) use api::serve;
pub(crate) use client::{Answer, Instance, NotOne, Selector};
pub(crate) use follow::prefixed;
pub(crate) use place::{Place, Socket};
pub(crate) use wire::{
    Adapted, Connections, GroupCpu, GroupMemory, GroupPoint, GroupStatus, History, Isolation,
    LastExit, Memory, RolloutStatus, SlotStatus, Status, WorkerPoint, WorkerStatus,
};

/// What is asked of the fleet.
#[derive(Debug, PartialEq)]
pub(crate) enum Ask {
    Status,
    /// The last minutes of all workers.
    History,
    Scale(Scale),
    /// Answered when it is over.
    Reload,
    /// One worker, by its slot; answered when it is over.
    Restart(u32),
    Stop,
    /// A signal's number, and the slot of the only worker that gets it.
    Signal {
        number: i32,
        worker: Option<u32>,
    },
    /// A message for the workers, or for those of a slot.
    Send {
        message: serde_json::Value,
        worker: Option<u32>,
    },
    /// What is kept of the output of a slot, or of all.
    Logs(Option<u32>),
    /// Replace the program of the launcher itself; answered where it cannot be done.
    Upgrade,
}

/// How many workers there shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    To(u32),
    By(i32),
    /// The computed number.
    Auto,
}

impl Scale {
    pub(crate) const FORMS: &'static str = "a whole number from 1, +N, -N or auto";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            _ if text.starts_with(['+', '-']) => {
                text.parse().ok().filter(|by| *by != 0).map(Self::By)
            }
            _ => text.parse().ok().filter(|workers| *workers > 0).map(Self::To),
        }
    }
}

/// What the fleet answers.
#[derive(Debug)]
pub(crate) enum Reply {
    Json(serde_json::Value),
    /// What is kept of the output.
    Logs(Vec<u8>),
    /// With an HTTP status.
    Refused(u16, String),
}

/// A question, and where its answer goes.
pub(crate) type Call = (Ask, oneshot::Sender<Reply>);

/// What the server needs of whoever runs the fleet.
#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) calls: mpsc::Sender<Call>,
    /// Each piece of output with the slot it comes from; whole lines.
    pub(crate) output: broadcast::Sender<(u32, Arc<[u8]>)>,
    /// The sizing report, as JSON.
    pub(crate) plan: Arc<RwLock<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_they_are_written() {
        for (text, want) in [
            ("3", Some(Scale::To(3))),
            ("+2", Some(Scale::By(2))),
            ("-1", Some(Scale::By(-1))),
            ("auto", Some(Scale::Auto)),
        ] {
            assert_eq!(Scale::parse(text), want);
        }
        for text in ["", "0", "+0", "-0", "x", "1.5", "99999999999", "--1", "+"] {
            assert_eq!(Scale::parse(text), None, "{text}");
        }
    }
}
