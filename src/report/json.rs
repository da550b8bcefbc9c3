//! The report as JSON, `schema` 1: fields may be added, none changes its meaning.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

#[cfg(feature = "launcher")]
use super::Subject;
use crate::plan::{Bound, Change, Choice, Plan, Step};
use crate::probe::Fact;

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    workers: u32,
    bound_by: Bound,
    up_to: Option<u32>,
    fits: bool,
    worker: Worker,
    resources: Resources<'a>,
    steps: &'a [Step],
    changes: &'a [Change],
    warnings: &'a [String],
    environment: BTreeMap<&'a str, &'a str>,
    settings: &'a [Choice],
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<&'a str>,
}

#[derive(Serialize)]
struct Worker {
    memory_bytes: Option<u64>,
    cpus: f64,
}

#[derive(Serialize)]
struct Resources<'a> {
    memory: Memory<'a>,
    cpu: Cpu<'a>,
    tasks: Tasks<'a>,
    runs_on: Vec<&'a str>,
}

#[derive(Serialize)]
struct Memory<'a> {
    limit_bytes: Option<u64>,
    high_bytes: Option<u64>,
    ram_bytes: Option<u64>,
    available_bytes: Option<u64>,
    per_process_bytes: Option<u64>,
    source: Option<&'a str>,
}

#[derive(Serialize)]
struct Cpu<'a> {
    quota: Option<f64>,
    set: Option<u32>,
    usable: f64,
    source: Option<&'a str>,
}

#[derive(Serialize)]
struct Tasks<'a> {
    limit: Option<u64>,
    source: Option<&'a str>,
}

/// The plan under the field names of the program's `--format json`, `schema` 1: fields may be added,
/// none changes its meaning.
impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Report::of(self).serialize(serializer)
    }
}

impl Plan {
    /// Indented JSON with a newline at its end, as the program prints it; `docs/reference.md` has the
    /// fields.
    #[must_use]
    pub fn to_json(&self) -> String {
        text(&Report::of(self))
    }
}

/// The same with what was chosen and what a worker is told beside the plan's own variables.
#[cfg(feature = "launcher")]
pub(crate) fn render(subject: &Subject<'_>) -> String {
    let environment = subject.environment.iter();
    text(&Report {
        environment: environment.map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        settings: subject.settings,
        machine: subject.machine.as_deref(),
        ..Report::of(subject.plan)
    })
}

fn text(report: &Report<'_>) -> String {
    // Only a map with keys that are no strings could fail, and there is none.
    let mut text = serde_json::to_string_pretty(report).unwrap_or_default();
    text.push('\n');
    text
}

impl<'a> Report<'a> {
    fn of(plan: &'a Plan) -> Self {
        let (memory, cpu, tasks) =
            (&plan.resources.memory, &plan.resources.cpu, &plan.resources.tasks);
        let bytes = |fact: &Option<Fact<u64>>| fact.as_ref().map(|fact| fact.value);
        let source = memory.limit.as_ref().or(memory.high.as_ref()).or(memory.ram.as_ref());
        Self {
            schema: 1,
            workers: plan.workers,
            bound_by: plan.bound_by,
            up_to: plan.up_to,
            fits: plan.shortage.is_none(),
            worker: Worker { memory_bytes: plan.worker_memory, cpus: rounded(plan.worker_cpus) },
            resources: Resources {
                memory: Memory {
                    limit_bytes: bytes(&memory.limit),
                    high_bytes: bytes(&memory.high),
                    ram_bytes: bytes(&memory.ram),
                    available_bytes: memory.available,
                    per_process_bytes: bytes(&memory.per_process),
                    source: source.map(|fact| fact.source.as_str()),
                },
                cpu: Cpu {
                    quota: cpu.quota.as_ref().map(|quota| quota.value.as_f64()),
                    set: cpu.set,
                    usable: cpu.usable,
                    source: cpu.source.as_deref(),
                },
                tasks: Tasks {
                    limit: bytes(&tasks.limit),
                    source: tasks.limit.as_ref().map(|limit| limit.source.as_str()),
                },
                runs_on: plan
                    .resources
                    .surroundings
                    .iter()
                    .map(|s| s.name.value.as_str())
                    .collect(),
            },
            steps: &plan.steps,
            changes: &plan.changes,
            warnings: &plan.warnings,
            environment: plan
                .environment
                .iter()
                .map(|variable| (variable.name.as_str(), variable.value.as_str()))
                .collect(),
            settings: &[],
            machine: None,
        }
    }
}

/// Three digits behind the point: a share is for reading, the quota is the exact number.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
