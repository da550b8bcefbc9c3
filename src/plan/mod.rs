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
pub use reason::{Adapt, Bound, Change, Choice, Edit, Given, MemoryEdit, Step, Variable};
pub use runtime::Runtime;
#[cfg(feature = "launcher")]
pub(crate) use sizing::least_headroom;
pub use sizing::{Headroom, MOST_WORKERS, Rounding};

use crate::probe::{Ceiling, Cpu, Resources};
use limits::Allowance;
use sizing::{Cpus, Inputs, Outcome};

/// What a calibration has measured of a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Profiled {
    /// The file, as `profile:NAME`.
    pub source: String,
    /// Private memory of one worker under load, bytes.
    pub worker_memory: u64,
    /// What there is once for all workers, bytes.
    pub shared_once: u64,
    /// How many workers make the best of one CPU.
    pub workers_per_cpu: f64,
}

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
    /// What was measured: taken where nothing is told.
    pub profile: Option<Profiled>,
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
    /// Whether a running fleet may become another number than the one computed here.
    pub adapt: Adapt,
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
            profile: None,
            runtime: Runtime::Other,
            recognised: None,
            words: Vec::new(),
            runtime_env: true,
            single_tree: false,
            adapt: Adapt::Off,
            env: BTreeMap::new(),
        }
    }
}

/// How many workers each resource allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allows {
    /// By memory, at the cost that was reckoned with; `None` where no limit is known.
    pub memory: Option<u32>,
    /// By the CPUs.
    pub cpu: u32,
    /// By the task limit, where there is one.
    pub tasks: Option<u32>,
    /// What stays free below the limit, bytes.
    pub headroom: Option<u64>,
}

impl Allows {
    /// The most that an adapting fleet may come to; `most` is what the user allows.
    fn highest(&self, adapt: Adapt, most: Option<u32>, known_cost: bool) -> u32 {
        let beyond = match adapt {
            Adapt::Off => 0,
            Adapt::Auto => self.cpu,
            Adapt::On => MOST_WORKERS,
        };
        // A cost that was told is not measured away; nor is one that was measured under load: a worker that has
        // just begun seems cheap.
        let memory = self.memory.filter(|_| known_cost);
        [most, self.tasks, memory].into_iter().flatten().fold(beyond, u32::min)
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
    /// What each rule allows by itself.
    pub allows: Allows,
    /// How many workers there may be later, by `adapt`, where that is more than now.
    pub up_to: Option<u32>,
    /// The same in a sentence.
    pub outlook: Option<String>,
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
    let allows = Allows {
        memory: outcome.memory.as_ref().map(|room| room.workers),
        cpu: outcome.by_cpu,
        tasks: outcome.by_tasks,
        headroom: outcome.memory.as_ref().map(|room| room.headroom),
    };
    let told = request.workers.is_some() || request.single_tree;
    let highest = allows.highest(request.adapt, inputs.most, knows_cost(request));
    let up_to = Some(highest).filter(|highest| !told && *highest > workers);
    let explained = explain::explain(&resources, request, &inputs, &outcome);
    let mut warnings = resources.warnings.clone();
    warnings.extend(explained.warnings);
    Plan {
        workers,
        bound_by: outcome.bound_by,
        shortage: explained.shortage,
        worker_memory,
        all_memory: budget,
        allows,
        outlook: up_to.map(|up_to| explain::outlook(workers, up_to, request)),
        up_to,
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
        measured: profile(request).is_some(),
        shared_once: profile(request).map_or(0, |profile| profile.shared_once),
        cpus: cpus(&resources.cpu),
        workers_per_cpu: workers_per_cpu(request).value,
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
    let measured = request.profile.as_ref().map(|profile| Given {
        value: profile.worker_memory,
        origin: Some(profile.source.clone()),
    });
    request
        .worker_memory
        .clone()
        .or(measured)
        .unwrap_or_else(|| Given::default_of(request.runtime.worker_memory()))
}

/// Whether the cost of a worker is more than an assumption.
fn knows_cost(request: &Request) -> bool {
    request.worker_memory.is_some() || request.profile.is_some()
}

/// What was measured of memory, where nobody says better.
fn profile(request: &Request) -> Option<&Profiled> {
    request.profile.as_ref().filter(|_| request.worker_memory.is_none())
}

fn workers_per_cpu(request: &Request) -> Given<f64> {
    let told = &request.workers_per_cpu;
    match &request.profile {
        Some(profile) if told.origin.is_none() => {
            Given { value: profile.workers_per_cpu, origin: Some(profile.source.clone()) }
        }
        _ => told.clone(),
    }
}

impl Outcome {
    /// The ceiling that leaves the least memory.
    fn ceiling<'a>(&self, inputs: &'a Inputs) -> Option<&'a Ceiling> {
        self.memory.as_ref().and_then(|room| inputs.ceilings.get(room.index))
    }
}
