//! The reasons behind a number, as data: the text report, the JSON and the log all render these.

use serde::Serialize;

/// A setting and who chose it.
#[derive(Clone, Debug, PartialEq)]
pub struct Given<T> {
    /// The value in force.
    pub value: T,
    /// `flag:--NAME`, `env:NAME`, `file:PATH` or `None` for the default.
    pub origin: Option<String>,
}

impl<T> Given<T> {
    /// A value that nobody asked for.
    pub const fn default_of(value: T) -> Self {
        Self { value, origin: None }
    }

    /// Whether it came from exactly there.
    #[must_use]
    pub fn is_from(&self, origin: &str) -> bool {
        self.origin.as_deref() == Some(origin)
    }
}

/// Whether a running fleet follows what is measured (`--adapt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adapt {
    /// Up to what the CPU rule allows, once the cost of a worker has been measured.
    Auto,
    /// Beyond the CPU rule, too, while the load shows that it helps.
    On,
    /// The number that was computed stays.
    Off,
}

/// What kept the number from being larger (or smaller, for `MinWorkers`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// No more workers fit in memory.
    Memory,
    /// More would only take turns on the CPUs.
    Cpu,
    /// `pids.max` leaves no room for more processes and threads.
    Tasks,
    /// `--max-workers`.
    MaxWorkers,
    /// `--min-workers` raised the number above what fits.
    MinWorkers,
    /// `--workers` or `WEB_CONCURRENCY`.
    Explicit,
}

impl Bound {
    /// The name, as in the JSON report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Tasks => "tasks",
            Self::MaxWorkers => "max-workers",
            Self::MinWorkers => "min-workers",
            Self::Explicit => "explicit",
        }
    }
}

/// One line of the reasoning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What this is, in two or three words.
    pub name: String,
    /// Its value with a unit.
    pub value: String,
    /// Where the value was read: a path, `env:NAME`, `flag:--NAME`; `None` where it was computed.
    pub source: Option<String>,
    /// Why it is what it is, or why it counts.
    pub because: String,
}

impl Step {
    pub(crate) fn new(
        name: &str,
        value: impl Into<String>,
        source: Option<&str>,
        because: impl Into<String>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            value: value.into(),
            source: source.map(str::to_owned),
            because: because.into(),
        }
    }
}

/// A change of the machine or the settings that gives another number; computing again with it gives
/// exactly `workers`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The change, to be read after "with".
    pub with: String,
    /// The number it gives.
    pub workers: u32,
    /// The same change for programs.
    pub edit: Edit,
}

/// What to change. Everything that is named changes together; what is `None` or `false` stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Edit {
    /// More memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_memory: Option<MemoryEdit>,
    /// More CPU time per wall-clock time, in CPUs, where a quota binds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_quota: Option<f64>,
    /// More CPUs to run on, where their number binds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_cpus: Option<u32>,
    /// So many more processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_tasks: Option<u64>,
    /// This `--worker-memory` in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_memory_bytes: Option<u64>,
    /// No `--max-workers`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_max_workers: bool,
}

/// More memory at one limit or at several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryEdit {
    /// So many bytes more, each.
    pub bytes: u64,
    /// Where: the sources of the limits, hard ones and those that throttle.
    pub at: Vec<String>,
}

/// A variable that a worker gets, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Why it is set.
    pub because: String,
}

/// A setting that somebody chose, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// Its name: the long flag without dashes.
    pub name: &'static str,
    /// Its text; several values are separated by spaces.
    pub value: String,
    /// `flag:--NAME`, `env:NAME` or `file:PATH`.
    pub source: String,
}
