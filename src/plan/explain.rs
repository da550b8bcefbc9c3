//! The reasoning in words: each input with its file, what each resource allows, what to be warned of.

use super::reason::{Adapt, Given, Step};
use super::sizing::{Headroom, Inputs, MOST_WORKERS, MemoryRoom, Outcome};
use super::whatif::rounding_words;
use super::{Request, knows_cost, worker_memory, workers_per_cpu};
use crate::probe::{Ceiling, Resources};
use crate::units::{plural, show_number, show_size};

pub(crate) struct Explained {
    pub(crate) steps: Vec<Step>,
    pub(crate) verdict: Vec<String>,
    pub(crate) warnings: Vec<String>,
    /// Why not even one worker fits.
    pub(crate) shortage: Option<String>,
}

pub(crate) fn explain(
    resources: &Resources,
    request: &Request,
    inputs: &Inputs,
    outcome: &Outcome,
) -> Explained {
    let mut told =
        Explained { steps: Vec::new(), verdict: Vec::new(), warnings: Vec::new(), shortage: None };
    for surrounding in &resources.surroundings {
        let name = &surrounding.name;
        told.step("runs on", &name.value, Some(&name.source), &surrounding.because);
    }
    told.memory(resources, request, inputs, outcome);
    told.per_process(resources, inputs, outcome);
    told.cpu(resources, request, outcome);
    told.tasks(resources, inputs, outcome);
    told.settings(request, outcome);
    told.warn(resources, inputs, outcome);
    told
}

/// What may become of the number, for who wonders at it: "2 now, up to 4 once measured".
pub(crate) fn outlook(now: u32, up_to: u32, request: &Request) -> String {
    let what = if knows_cost(request) { "under load" } else { "once measured" };
    let most = match up_to {
        MOST_WORKERS => "as many as memory holds".to_owned(),
        most => format!("up to {most}"),
    };
    match request.adapt {
        Adapt::On => format!("{now} now, {most} {what}, while the load shows that more help"),
        _ => format!("{now} now, {most} {what}"),
    }
}

impl Explained {
    fn step(
        &mut self,
        name: &str,
        value: impl Into<String>,
        source: Option<&str>,
        because: impl Into<String>,
    ) {
        self.steps.push(Step::new(name, value, source, because));
    }

    fn memory(
        &mut self,
        resources: &Resources,
        request: &Request,
        inputs: &Inputs,
        outcome: &Outcome,
    ) {
        let (Some(room), Some(ceiling)) = (&outcome.memory, outcome.ceiling(inputs)) else {
            self.step(
                "memory",
                "unknown",
                None,
                "no limit and no /proc/meminfo: only the CPUs count",
            );
            return;
        };
        self.ceiling(resources, request, ceiling, room, inputs.measured);
        if ceiling.used > 0 {
            self.step(
                "in use",
                show_size(ceiling.used),
                ceiling.used_source.as_deref(),
                "by others below the same limit, page cache that can be dropped left out",
            );
        }
        if inputs.shared_once > 0 {
            let because = "measured: there once for all workers";
            let source = request.profile.as_ref().map(|profile| profile.source.as_str());
            self.step("shared once", show_size(inputs.shared_once), source, because);
        }
        self.step(
            "left for workers",
            show_size(room.budget),
            None,
            "the limit less all of the above",
        );
        let cost = worker_memory(request);
        let because = if inputs.measured {
            "measured under load by calibrate".to_owned()
        } else if cost.origin.is_some() {
            "private memory, as told".to_owned()
        } else {
            let known = request.recognised.as_ref().map(|how| format!(", {how}"));
            let name = request.runtime.name();
            format!("assumed for {name}{}; --worker-memory says better", known.unwrap_or_default())
        };
        self.step("one worker", show_size(cost.value), cost.origin.as_deref(), because);
        let words = format!(
            "{} of {} in {}",
            plural(room.workers, "worker"),
            show_size(cost.value),
            show_size(room.budget)
        );
        self.verdict.push(format!("memory allows {words}"));
    }

    /// The limit of one process, where it is less than a worker's share or than its cost.
    fn per_process(&mut self, resources: &Resources, inputs: &Inputs, outcome: &Outcome) {
        let Some(most) = &resources.memory.per_process else { return };
        let share = outcome.memory.as_ref().map(|room| room.budget / u64::from(outcome.workers));
        if share.is_none_or(|share| most.value >= share) && most.value >= inputs.worker_memory {
            return;
        }
        let size = show_size(most.value);
        let because =
            "no process may have more (RLIMIT_AS or RLIMIT_DATA); a limit of each, not of all";
        self.step("per process", &size, Some(&most.source), because);
        if most.value < inputs.worker_memory {
            let cost = show_size(inputs.worker_memory);
            let shortage =
                format!("no worker of {cost} fits in the {size} that one process may have");
            self.warnings.push(format!("{shortage}; raise `ulimit -v` and `ulimit -d`"));
            self.shortage = Some(shortage);
        }
    }

    fn ceiling(
        &mut self,
        resources: &Resources,
        request: &Request,
        ceiling: &Ceiling,
        room: &MemoryRoom,
        measured: bool,
    ) {
        let tightest = resources.memory.limit.as_ref();
        if let Some(limit) = &ceiling.limit {
            let (name, because) = if resources.memory.ram.as_ref() == Some(limit) {
                let because = if tightest.is_some() {
                    "the machine itself has less room left than the limit"
                } else {
                    "no limit below the machine's memory"
                };
                ("machine memory", because)
            } else if tightest == Some(limit) {
                ("memory limit", "the kernel kills above it")
            } else {
                ("memory limit", "a level above ours, with less room left than our own")
            };
            let because = match unit_of(&limit.source) {
                Some(unit) => format!("{because}; set for {unit} by systemd or whoever manages it"),
                None => because.to_owned(),
            };
            self.step(name, show_size(limit.value), Some(&limit.source), because);
            if room.by_high {
                // The headroom below the hard limit plays no part where throttling comes first.
            } else {
                let because = match &request.headroom {
                    Some(Given { value: Headroom::Share(_), .. }) => {
                        "a share of the limit, as told"
                    }
                    Some(_) => "as told",
                    None if measured => {
                        "a tenth, 16 MiB to 1 GiB: what the workers use under load was measured"
                    }
                    None => match (ceiling.swap, ceiling.oom_group.is_some()) {
                        (true, false) => {
                            "a tenth, 48 MiB to 1 GiB: kernel, page tables, sockets, hot files"
                        }
                        (false, false) => {
                            "15 %, 72 MiB to 1.5 GiB, as no swap takes a peak: kernel, page tables, sockets, hot files"
                        }
                        (true, true) => {
                            "15 %, 72 MiB to 1.5 GiB, as memory.oom.group takes all at once: kernel, page tables, sockets, hot files"
                        }
                        (false, true) => {
                            "20 %, 96 MiB to 2 GiB, as no swap takes a peak and memory.oom.group takes all at once: kernel, page tables, sockets, hot files"
                        }
                    },
                };
                let origin = request.headroom.as_ref().and_then(|given| given.origin.as_deref());
                self.step("headroom", show_size(room.headroom), origin, because);
            }
        }
        if let Some(high) = &ceiling.high {
            let because = if room.by_high {
                "above it the kernel throttles: 95 % of it is the target"
            } else {
                "throttling; above what the hard limit leaves"
            };
            self.step("memory.high", show_size(high.value), Some(&high.source), because);
        }
    }

    fn cpu(&mut self, resources: &Resources, request: &Request, outcome: &Outcome) {
        let cpu = &resources.cpu;
        if let Some(quota) = &cpu.quota {
            self.step(
                "CPU quota",
                plural_cpus(quota.value.as_f64()),
                Some(&quota.source),
                "CPU time per wall-clock time, never rounded here",
            );
        }
        if let Some(set) = cpu.set {
            let source = cpu.set_source.as_deref();
            self.step("CPUs to run on", set.to_string(), source, "affinity and cpuset together");
        }
        let per_cpu = workers_per_cpu(request);
        if per_cpu.origin.is_some() {
            let told = request.workers_per_cpu.origin.is_some();
            let because = if told { "as told" } else { "measured under load by calibrate" };
            let value = show_number(per_cpu.value);
            self.step("workers per CPU", value, per_cpu.origin.as_deref(), because);
        }
        let round = &request.cpu_round;
        if round.origin.is_some() {
            self.step(
                "CPU rounding",
                rounding_words(round.value),
                round.origin.as_deref(),
                "as told",
            );
        }
        let factor = match show_number(per_cpu.value).as_str() {
            "1" => String::new(),
            many => format!(" × {many}"),
        };
        let words = format!("{}{factor}, {}", plural_cpus(cpu.usable), rounding_words(round.value));
        self.verdict.push(format!("CPU allows {} ({words})", plural(outcome.by_cpu, "worker")));
    }

    fn tasks(&mut self, resources: &Resources, inputs: &Inputs, outcome: &Outcome) {
        let (Some(limit), Some(workers)) = (&resources.tasks.limit, outcome.by_tasks) else {
            return;
        };
        let room = inputs.task_room.unwrap_or(0);
        let because = format!("processes and threads; {room} more may start, 8 are kept free");
        self.step("task limit", limit.value.to_string(), Some(&limit.source), because);
        let each = plural(inputs.tasks_per_worker, "task");
        self.verdict.push(format!("the task limit allows {} of {each}", plural(workers, "worker")));
    }

    fn settings(&mut self, request: &Request, outcome: &Outcome) {
        if let Some(workers) = &request.workers {
            self.step(
                "workers",
                workers.value.to_string(),
                workers.origin.as_deref(),
                "as told; nothing is computed",
            );
        }
        if let Some((advised, by)) = &request.advice {
            let because =
                format!("advice of {by}, not an order: {} was computed here", outcome.workers);
            self.step("WEB_CONCURRENCY", advised.to_string(), Some("env:WEB_CONCURRENCY"), because);
        }
        if let Some(most) = &request.max_workers {
            self.step("at most", plural(most.value, "worker"), most.origin.as_deref(), "as told");
        }
        if request.min_workers.origin.is_some() {
            let least = &request.min_workers;
            self.step(
                "at least",
                plural(least.value, "worker"),
                least.origin.as_deref(),
                "as told",
            );
        }
    }

    fn warn(&mut self, resources: &Resources, inputs: &Inputs, outcome: &Outcome) {
        let cost = show_size(inputs.worker_memory);
        if let Some(room) = &outcome.memory {
            let left = show_size(room.budget);
            let total = u64::from(outcome.workers).saturating_mul(inputs.worker_memory);
            if room.workers == 0 {
                let shortage =
                    format!("not even one worker of {cost} fits in the {left} that are left");
                self.warnings
                    .push(format!("{shortage}; it is run all the same (--strict refuses)"));
                self.shortage = Some(shortage);
            } else if total > room.budget {
                let workers = plural(outcome.workers, "worker");
                let total = show_size(total);
                self.warnings.push(format!(
                    "{workers} of {cost} need {total}, but {left} are left: the kernel may kill some"
                ));
            }
        }
        if outcome.by_tasks == Some(0) {
            let shortage = "the task limit leaves no room for a worker".to_owned();
            self.warnings.push(format!("{shortage}; starting one may fail"));
            self.shortage.get_or_insert(shortage);
        }
        if let Some(file) = outcome.ceiling(inputs).and_then(|ceiling| ceiling.oom_group.as_ref()) {
            self.warnings.push(format!("{file} is 1: where memory runs out, the kernel kills all workers and the launcher at once; write 0 to it, or see that each worker gets a group of its own (--isolate)"));
        }
        if let Some(ram) = &resources.memory.ram
            && let Some(limit) = &resources.memory.limit
            && limit.value > ram.value
        {
            let (limit, ram) = (show_size(limit.value), show_size(ram.value));
            self.warnings
                .push(format!("the pretended {limit} are more than the {ram} of this machine"));
        }
    }
}

/// The systemd unit whose group a limit file belongs to.
fn unit_of(source: &str) -> Option<&str> {
    let folder = source.rsplit('/').nth(1)?;
    let kinds = [".slice", ".service", ".scope"];
    kinds.iter().any(|kind| folder.ends_with(kind)).then_some(folder)
}

fn plural_cpus(cpus: f64) -> String {
    let shown = show_number(cpus);
    // A quota of one millisecond must not read as none.
    let shown = if shown == "0" && cpus > 0.0 { format!("{cpus:.4}") } else { shown };
    if shown == "1" { "1 CPU".to_owned() } else { format!("{shown} CPUs") }
}
