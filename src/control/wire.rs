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
    /// The last change of the number by what was measured; null where the last change was another.
    #[serde(default)]
    pub(crate) adapted: Option<Adapted>,
    pub(crate) bound_by: String,
    /// How often the launcher's own program has been replaced.
    pub(crate) upgrades: u32,
    /// Why the last program that was to come could not go on.
    pub(crate) upgrade_error: Option<String>,
    /// Whether each worker has a cgroup of its own.
    #[serde(default)]
    pub(crate) isolation: Isolation,
    pub(crate) rollout: Option<RolloutStatus>,
    /// What the last look at all of them together found; none before the first.
    pub(crate) measured: Option<GroupStatus>,
    /// Every live worker.
    pub(crate) workers: Vec<WorkerStatus>,
    /// Slots that have no worker now.
    pub(crate) vacant: Vec<SlotStatus>,
}

/// All workers together, and what there is for them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct GroupStatus {
    /// How long ago somebody looked.
    pub(crate) seconds_ago: f64,
    /// The level with the least room left.
    pub(crate) memory: Option<GroupMemory>,
    pub(crate) cpu: GroupCpu,
    /// Connections that nobody has accepted yet; none where that cannot be seen.
    pub(crate) waiting_connections: Option<u32>,
    /// The last five minutes, oldest first.
    pub(crate) history: Vec<GroupPoint>,
}

/// Of the level with the least room.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct GroupMemory {
    /// 95 % of `memory.high` where that is less.
    pub(crate) limit_bytes: u64,
    /// What cannot be reclaimed at once.
    pub(crate) used_bytes: u64,
    /// The file of the limit.
    pub(crate) source: String,
    /// The share of time in which some task stood still for want of memory.
    pub(crate) pressure: Option<f64>,
    /// How often the kernel had to reclaim at a limit since the look before.
    pub(crate) limit_hits: u64,
}

/// CPUs of the group.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct GroupCpu {
    pub(crate) usable: f64,
    /// By the workers.
    pub(crate) used: Option<f64>,
    /// The share of the quota's periods in which it was used up.
    pub(crate) throttled: Option<f64>,
}

/// One moment of all workers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct GroupPoint {
    pub(crate) seconds_ago: f64,
    pub(crate) workers: u32,
    pub(crate) used_bytes: Option<u64>,
    pub(crate) pressure: Option<f64>,
    pub(crate) cpu: f64,
    pub(crate) throttled: f64,
    pub(crate) waiting_connections: Option<u32>,
}

/// `GET /v1/history`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct History {
    pub(crate) schema: u32,
    /// Oldest first.
    pub(crate) group: Vec<GroupPoint>,
    /// Of each live worker, oldest first.
    pub(crate) workers: Vec<WorkerPoint>,
}

/// One moment of one worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WorkerPoint {
    pub(crate) id: u32,
    pub(crate) pid: i32,
    pub(crate) seconds_ago: f64,
    pub(crate) private_bytes: u64,
    pub(crate) cpu: f64,
}

/// A change of the number of workers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Adapted {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// In words.
    pub(crate) why: String,
    pub(crate) seconds_ago: f64,
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
    /// `reload`, `restart`, `renewal` or `recycling`.
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
    /// CPUs at the last look, and those of its busiest thread; none before the second one.
    pub(crate) cpu_now: Option<f64>,
    pub(crate) cpu_busiest: Option<f64>,
    /// The share of time that its main thread, or its busiest one, was ready to run and had no CPU.
    pub(crate) delayed: Option<f64>,
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

/// Of one worker, in bytes.
#[expect(clippy::struct_field_names, reason = "the names of the JSON tell the unit")]
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) private_bytes: u64,
    pub(crate) shared_bytes: u64,
    /// The most that `private_bytes` has been, also between looks, and what it did not exceed for 95 % of its
    /// life; none before the first look.
    pub(crate) peak_bytes: Option<u64>,
    pub(crate) p95_bytes: Option<u64>,
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
