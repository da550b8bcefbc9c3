//! The JSON of the control interface, for both ends. Fields may be added; none changes its meaning
//! while `schema` is 1.

use serde::{Deserialize, Serialize};

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) schema: u32,
    pub(crate) version: String,
    /// By `--name`.
    pub(crate) name: Option<String>,
    /// Of the launcher.
    pub(crate) pid: u32,
    pub(crate) command: Vec<String>,
    pub(crate) uptime_seconds: f64,
    /// Whether every wanted worker serves.
    pub(crate) ready: bool,
    pub(crate) stopping: bool,
    /// How many workers there shall be.
    pub(crate) target: u32,
    /// How many the plan says.
    pub(crate) planned: u32,
    /// Whether somebody has said another number, which stays until `scale auto`.
    pub(crate) pinned: bool,
    pub(crate) bound_by: String,
    /// How often the launcher's own program has been replaced.
    pub(crate) upgrades: u32,
    /// Why the last program that was to come could not go on.
    pub(crate) upgrade_error: Option<String>,
    /// Whether each worker has a cgroup of its own.
    #[serde(default)]
    pub(crate) isolation: Isolation,
    pub(crate) rollout: Option<RolloutStatus>,
    /// Every live worker.
    pub(crate) workers: Vec<WorkerStatus>,
    /// Slots that have no worker now.
    pub(crate) vacant: Vec<SlotStatus>,
}

/// The workers' cgroups.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Isolation {
    pub(crate) on: bool,
    /// Below which group they are.
    pub(crate) group: Option<String>,
    /// Why there are none.
    pub(crate) why_not: Option<String>,
}

/// The rollout that is under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RolloutStatus {
    /// `reload`, `restart` or `renewal`.
    pub(crate) kind: String,
    /// Workers that it has still to renew.
    pub(crate) left: usize,
}

/// One live worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WorkerStatus {
    /// The slot; in a rollout the old and the new worker share it.
    pub(crate) id: u32,
    pub(crate) pid: i32,
    /// `starting`, `ready`, `running` (ready for 5 s), `draining`, `stopping`, `killed`.
    pub(crate) state: String,
    pub(crate) ready: bool,
    pub(crate) generation: u32,
    pub(crate) uptime_seconds: f64,
    /// Of the slot: ends that nobody had asked for.
    pub(crate) restarts: u32,
    /// Of its whole process group.
    pub(crate) memory: Memory,
    pub(crate) cpu_seconds: f64,
    pub(crate) processes: u32,
    /// Where we carry them.
    pub(crate) connections: Option<Connections>,
    /// What it says of itself (`STATUS=`).
    pub(crate) status_text: Option<String>,
    /// Of the one before it in the slot.
    pub(crate) last_exit: Option<LastExit>,
}

/// Of one worker.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Connections {
    /// Handed to it so far.
    pub(crate) accepted: u64,
    /// Of those, open now; null where workers do not tell when one ends (`--share node`).
    pub(crate) active: Option<u64>,
    /// Lost by it: broken off before their end.
    pub(crate) failed: u64,
}

/// Bytes.
#[expect(clippy::struct_field_names, reason = "the names of the JSON tell the unit")]
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) private_bytes: u64,
    pub(crate) shared_bytes: u64,
    /// Of its own cgroup, where it has one.
    #[serde(default)]
    pub(crate) limit_bytes: Option<u64>,
}

/// How a worker ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LastExit {
    /// The code, or 128 + signal.
    pub(crate) status: u8,
    /// In words: `status 1`, `SIGKILL`.
    pub(crate) text: String,
    pub(crate) asked: bool,
    pub(crate) seconds_ago: f64,
}

/// A slot without a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SlotStatus {
    pub(crate) id: u32,
    /// `backoff`, `failed`, `done` or `empty`.
    pub(crate) state: String,
    pub(crate) retry_in_seconds: Option<f64>,
    pub(crate) restarts: u32,
    pub(crate) last_exit: Option<LastExit>,
}
