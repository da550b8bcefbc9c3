//! From what there is to how many workers, with the reasons: [`Plan::new`] is pure arithmetic over
//! [`Resources`] and a [`Request`]. Depends on `probe` and `units`.

mod explain;
mod heroku;
mod limits;
mod reason;
mod runtime;
mod sizing;
mod whatif;

use std::collections::BTreeMap;

pub use heroku::{Comparison, compare, nodejs, python};
pub use reason::{Bound, Change, Choice, Edit, Given, MemoryEdit, Step, Variable};
pub use runtime::Runtime;
pub use sizing::{Headroom, MOST_WORKERS, Rounding};

use crate::probe::{Ceiling, Cpu, Resources};
use limits::Allowance;
use sizing::{Cpus, Inputs, Outcome};

/// What is asked for; [`Request::default`] asks for the best number with no hints.
#[derive(Clone, Debug)]
pub struct Request {
    /// A number that is not to be computed.
    pub workers: Option<Given<u32>>,
    /// `WEB_CONCURRENCY` with who set it, where that is advice and not an order.
    pub advice: Option<(u32, String)>,
    /// Never fewer.
    pub min_workers: Given<u32>,
    /// Never more.
    pub max_workers: Option<Given<u32>>,
    /// Private memory of one worker in bytes; `None` takes the runtime's assumed cost.
    pub worker_memory: Option<Given<u64>>,
    /// How many workers keep one CPU busy.
    pub workers_per_cpu: Given<f64>,
    /// How fractions become whole workers.
    pub cpu_round: Given<Rounding>,
    /// What stays free below a limit.
    pub headroom: Option<Given<Headroom>>,
    /// What the command runs on.
    pub runtime: Runtime,
    /// How that is known: "by its name".
    pub recognised: Option<String>,
    /// The command, for options in it that say what would be said otherwise.
    pub words: Vec<String>,
    /// Whether runtimes are told their share.
    pub runtime_env: bool,
    /// Whether the command forks the workers by itself (`--exec`).
    pub single_tree: bool,
    /// Variables that are set already, for the runtime limits not to overwrite.
    pub env: BTreeMap<String, String>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            workers: None,
            advice: None,
            min_workers: Given::default_of(1),
            max_workers: None,
            worker_memory: None,
            workers_per_cpu: Given::default_of(1.0),
            cpu_round: Given::default_of(Rounding::Nearest),
            headroom: None,
            runtime: Runtime::Other,
            recognised: None,
            words: Vec::new(),
            runtime_env: true,
            single_tree: false,
            env: BTreeMap::new(),
        }
    }
}

/// The number of workers, and everything there is to say about it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many workers to run, at least 1.
    pub workers: u32,
    /// What kept it from being another number.
    pub bound_by: Bound,
    /// Why not even one worker fits; `None` where at least one does.
    pub shortage: Option<String>,
    /// Memory for one worker in bytes; `None` where no limit is known.
    pub worker_memory: Option<u64>,
    /// Memory for all workers together in bytes.
    pub all_memory: Option<u64>,
    /// What is left below the limit that binds when others have had theirs: the same, and the headroom.
    #[cfg_attr(not(feature = "launcher"), expect(dead_code, reason = "for who enforces it"))]
    pub(crate) room: Option<u64>,
    /// What one worker is reckoned with, in bytes.
    #[cfg_attr(not(feature = "launcher"), expect(dead_code, reason = "for who enforces it"))]
    pub(crate) cost: u64,
    /// CPUs for one worker, a fraction.
    pub worker_cpus: f64,
    /// What the number was computed from.
    pub resources: Resources,
    /// The reasoning in order.
    pub steps: Vec<Step>,
    /// One line for each resource: what it allows.
    pub verdict: Vec<String>,
    /// What would give another number.
    pub changes: Vec<Change>,
    /// What a user should know before relying on it.
    pub warnings: Vec<String>,
    /// The variables that hold each worker's runtime to its share.
    pub environment: Vec<Variable>,
}

impl Plan {
    /// Computes the number of workers for what there is. Never fails: where nothing fits it is one,
    /// with a `shortage`.
    #[must_use]
    pub fn new(resources: Resources, request: &Request) -> Self {
        plan(resources, request)
    }

    /// The plan for this process, with nothing asked for.
    #[must_use]
    pub fn detect() -> Self {
        Self::new(Resources::detect(), &Request::default())
    }
}

fn plan(resources: Resources, request: &Request) -> Plan {
    let inputs = inputs(&resources, request);
    let outcome = inputs.size();
    let workers = outcome.workers;
    let budget = outcome.memory.as_ref().map(|room| room.budget);
    let per_process = resources.memory.per_process.as_ref().map_or(u64::MAX, |most| most.value);
    let share = |all: u64| (all / u64::from(workers)).min(per_process);
    let worker_memory = budget.map(share);
    let environment = if request.runtime_env {
        // Without a known limit a runtime's own defaults are as good as ours.
        let allowance = |all| Allowance {
            worker: share(all),
            all: all.min(per_process.max(share(all))),
            workers,
            cpus: resources.cpu.usable,
            single_tree: request.single_tree,
        };
        let set =
            |name: &str| request.env.get(name).filter(|value| !value.trim().is_empty()).cloned();
        budget
            .map(|all| limits::limits(request.runtime, allowance(all), &request.words, &set))
            .unwrap_or_default()
    } else {
        Vec::new()
    };
    let explained = explain::explain(&resources, request, &inputs, &outcome);
    let mut warnings = resources.warnings.clone();
    warnings.extend(explained.warnings);
    Plan {
        workers,
        bound_by: outcome.bound_by,
        shortage: explained.shortage,
        worker_memory,
        all_memory: budget,
        room: outcome.memory.as_ref().map(|room| room.free),
        cost: inputs.worker_memory,
        worker_cpus: resources.cpu.usable / f64::from(workers),
        steps: explained.steps,
        verdict: explained.verdict,
        changes: whatif::changes(&inputs, &outcome),
        warnings,
        environment,
        resources,
    }
}

fn inputs(resources: &Resources, request: &Request) -> Inputs {
    Inputs {
        ceilings: resources.memory.ceilings.clone(),
        headroom: request.headroom.as_ref().map(|given| given.value),
        worker_memory: worker_memory(request).value,
        cpus: cpus(&resources.cpu),
        workers_per_cpu: request.workers_per_cpu.value,
        rounding: request.cpu_round.value,
        task_room: resources.tasks.room,
        tasks_per_worker: request.runtime.tasks(),
        least: request.min_workers.value,
        most: request.max_workers.as_ref().map(|given| given.value),
        explicit: request.workers.as_ref().map(|given| given.value),
    }
}

fn cpus(cpu: &Cpu) -> Cpus {
    let quota = cpu.tightest.as_ref().map(|quota| quota.value.as_f64());
    // Where more is pretended than there are to run on, these do not count.
    Cpus { quota, set: cpu.set.filter(|set| f64::from(*set) >= cpu.usable) }
}

fn worker_memory(request: &Request) -> Given<u64> {
    request
        .worker_memory
        .clone()
        .unwrap_or_else(|| Given::default_of(request.runtime.worker_memory()))
}

impl Outcome {
    /// The ceiling that leaves the least memory.
    fn ceiling<'a>(&self, inputs: &'a Inputs) -> Option<&'a Ceiling> {
        self.memory.as_ref().and_then(|room| inputs.ceilings.get(room.index))
    }
}
