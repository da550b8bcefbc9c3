//! Everything that has to outlive the replacement of our own program: which process is whose, which
//! descriptor is what, and the fleet itself. Written into a memory file as JSON; versioned, because
//! the reader is another build.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::isolate;
use crate::fleet::{self, WorkerKey};
use crate::probe::Others;
use crate::sockets::SavedProxy;
use crate::sockets::node::Saved;

/// Changes where an older reader would misunderstand.
pub(super) const VERSION: u32 = 2;

/// The whole launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) version: u32,
    /// Of the program that wrote it.
    pub(super) program: String,
    /// The command line of that program, for the way back.
    pub(super) words: Vec<Text>,
    /// How often it has been replaced so far.
    pub(super) upgrades: u32,
    /// Since the first start; what the fleet's times count from.
    pub(super) elapsed: Duration,
    pub(super) fleet: fleet::Saved,
    /// What was used when nothing of ours ran.
    pub(super) others: Others,
    /// The workers' cgroups.
    #[serde(default)]
    pub(super) isolation: Option<isolate::Saved>,
    pub(super) workers: Vec<WorkerState>,
    /// By slot.
    pub(super) rings: BTreeMap<u32, RingState>,
    pub(super) listeners: Vec<ListenerState>,
    pub(super) streams: Vec<StreamState>,
    /// The workers' channels, where they have any.
    #[serde(default)]
    pub(super) channels: Option<Saved>,
    /// The workers' `NOTIFY_SOCKET`, and our end of it.
    pub(super) name: String,
    pub(super) notify: Option<i32>,
    /// Descriptor and path.
    pub(super) control: Option<(i32, PathBuf)>,
    /// Our end of its pipe, its pid.
    pub(super) guard: Option<(i32, i32)>,
    pub(super) groups: Vec<i32>,
    /// What our readers have not taken yet: of standard output and of standard error.
    pub(super) unwritten: [Text; 2],
    pub(super) next_stream: u64,
    /// What workers get back: the signal mask and the limit of open files that we were started with.
    pub(super) mask: Vec<i32>,
    pub(super) limits: (u64, u64),
    pub(super) had_terminal: bool,
    pub(super) terminal_given: Option<i32>,
    pub(super) strangers: Vec<i32>,
    pub(super) quick_failures: BTreeMap<u32, u32>,
    /// Number, name and JSON of the last events.
    pub(super) events: Vec<(u64, String, String)>,
    /// What the proxy has under way, by the numbers that its descriptors keep.
    #[serde(default)]
    pub(super) proxy: Option<SavedProxy>,
    /// For whoever asked for this upgrade and finds the old program back.
    pub(super) upgrade_error: Option<String>,
}

impl State {
    /// The numbers of all descriptors that it names.
    pub(super) fn descriptors(&self) -> Vec<i32> {
        let streams = self.streams.iter().map(|stream| stream.fd);
        let listeners = self
            .listeners
            .iter()
            .flat_map(|listener| listener.slots.iter().map(|(_, fd)| *fd).chain([listener.fd]));
        let control = self.control.iter().map(|(fd, _)| *fd);
        let guard = self.guard.iter().map(|(fd, _)| *fd);
        let channels = self.channels.iter().flat_map(Saved::descriptors);
        let streams = streams.chain(channels);
        streams.chain(listeners).chain(self.notify).chain(control).chain(guard).collect()
    }
}

/// One process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WorkerState {
    pub(super) key: WorkerKey,
    pub(super) pid: i32,
    pub(super) slot: u32,
    pub(super) since: Duration,
    pub(super) asked: bool,
    pub(super) killed: bool,
    pub(super) reaped: bool,
    pub(super) words_from: u64,
    pub(super) status: Option<String>,
}

/// The reading end of a pipe.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StreamState {
    pub(super) fd: i32,
    pub(super) id: u64,
    pub(super) slot: u32,
    /// None where it has ended, and others still write to its pipe.
    pub(super) worker: Option<WorkerKey>,
    pub(super) is_stderr: bool,
    pub(super) unfinished: Text,
}

/// The last output of a slot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RingState {
    pub(super) total: u64,
    pub(super) most: usize,
    pub(super) bytes: Text,
}

/// A listening socket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ListenerState {
    pub(super) fd: i32,
    /// As `--listen` has it; none where it was passed to us.
    pub(super) asked: Option<String>,
    /// As it was passed to us.
    pub(super) name: Option<String>,
    /// Whether we made its file, and remove it at the end.
    pub(super) file: bool,
    /// Where each slot has a socket of its own: all of them, in the kernel's order.
    #[serde(default)]
    pub(super) slots: Vec<(Option<u32>, i32)>,
}

/// Bytes of any kind as text of JSON: each is the character of its number.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Text(String);

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| char::from(*byte)).collect())
    }
}

impl Text {
    /// What is no byte came from elsewhere, and is a question mark.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_any_kind_come_back() {
        let all: Vec<u8> = (0..=255).collect();
        let json = serde_json::to_string(&Text::from(&all[..])).unwrap();
        let back: Text = serde_json::from_str(&json).unwrap();
        assert_eq!(back.bytes(), all);
    }
}
