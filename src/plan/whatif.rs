//! What would give another number. Each answer is found by computing again with the change, so it
//! cannot differ from what the changed machine would say.

use super::reason::{Bound, Change, Edit, MemoryEdit};
use super::sizing::{Inputs, Outcome, Rounding};
use crate::probe::Fact;
use crate::units::{MIB, parse_size, plural, show_number, show_size};

/// Changes beyond this help nobody decide: 16 TiB, ten thousand CPUs, as many tasks as a kernel has.
const MOST_MIB: u64 = 1 << 24;
const MOST_HUNDREDTHS: u64 = 1_000_000;
const MOST_TASKS: u64 = 1 << 22;

/// The smallest changes that give one more worker, and the cost at which there is one fewer.
pub(crate) fn changes(inputs: &Inputs, outcome: &Outcome) -> Vec<Change> {
    let search = Search { inputs, outcome };
    let mut found: Vec<_> = search.room_for_one().into_iter().collect();
    let computed = !matches!(outcome.bound_by, Bound::Explicit | Bound::MinWorkers);
    if computed {
        let single: Vec<_> = [search.more_memory(), search.more_cpu(), search.more_tasks()]
            .into_iter()
            .flatten()
            .collect();
        if single.is_empty() {
            found.extend(search.more_of_all());
        }
        found.extend(single);
        found.extend(search.no_maximum());
        found.extend(search.cheaper_workers());
        found.extend(search.dearer_workers());
    }
    found
}

/// The limits that get more memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// The one that leaves the least.
    Tightest,
    /// Every one, the machine too.
    Everywhere,
}

/// One change, in the units it is searched in.
#[derive(Clone, Copy, Debug)]
struct Try {
    mib: u64,
    at: Where,
    hundredths: u64,
    tasks: u64,
    worker_mib: Option<u64>,
    no_maximum: bool,
}

const NOTHING: Try = Try {
    mib: 0,
    at: Where::Tightest,
    hundredths: 0,
    tasks: 0,
    worker_mib: None,
    no_maximum: false,
};

struct Search<'a> {
    inputs: &'a Inputs,
    outcome: &'a Outcome,
}

impl Search<'_> {
    /// Where not even one worker fits: what would make room for it.
    fn room_for_one(&self) -> Option<Change> {
        self.outcome.memory.as_ref().filter(|room| room.workers == 0)?;
        let fits = |tried: Try| self.size(tried).memory.is_some_and(|room| room.workers > 0);
        let mut change = self.change(Self::least_memory(fits)?);
        change.with.push_str(", so that one fits");
        Some(change)
    }

    fn more_memory(&self) -> Option<Change> {
        self.outcome.memory.as_ref()?;
        Some(self.change(Self::least_memory(|tried| self.helps(tried))?))
    }

    /// At the tightest limit if that is enough, else at all of them.
    fn least_memory(good: impl Fn(Try) -> bool) -> Option<Try> {
        [Where::Tightest, Where::Everywhere].into_iter().find_map(|at| {
            let with = |mib| Try { mib, at, ..NOTHING };
            least(1, MOST_MIB, |mib| good(with(mib))).map(with)
        })
    }

    fn more_cpu(&self) -> Option<Change> {
        let step = self.cpu_step();
        let with = |steps| Try { hundredths: steps * step, ..NOTHING };
        let steps = least(1, MOST_HUNDREDTHS / step, |steps| self.helps(with(steps)))?;
        Some(self.change(with(steps)))
    }

    fn more_tasks(&self) -> Option<Change> {
        self.inputs.task_room?;
        let with = |tasks| Try { tasks, ..NOTHING };
        Some(self.change(with(least(1, MOST_TASKS, |tasks| self.helps(with(tasks)))?)))
    }

    /// Where nothing helps by itself: the least of each that does together.
    fn more_of_all(&self) -> Option<Change> {
        let step = self.cpu_step();
        let mut tried = Try {
            mib: MOST_MIB,
            at: Where::Everywhere,
            hundredths: MOST_HUNDREDTHS / step * step,
            tasks: MOST_TASKS,
            ..NOTHING
        };
        tried.mib = least(0, MOST_MIB, |mib| self.helps(Try { mib, ..tried }))?;
        let tightest = Try { at: Where::Tightest, ..tried };
        if self.helps(tightest) {
            tried = tightest;
        }
        let cpu = |steps| Try { hundredths: steps * step, ..tried };
        tried = cpu(least(0, MOST_HUNDREDTHS / step, |steps| self.helps(cpu(steps)))?);
        tried.tasks = least(0, MOST_TASKS, |tasks| self.helps(Try { tasks, ..tried }))?;
        Some(self.change(tried))
    }

    fn no_maximum(&self) -> Option<Change> {
        let freed = Try { no_maximum: true, ..NOTHING };
        (self.outcome.bound_by == Bound::MaxWorkers && self.helps(freed))
            .then(|| self.change(freed))
    }

    fn cheaper_workers(&self) -> Option<Change> {
        let current = self.inputs.worker_memory.div_ceil(MIB);
        let with = |less: u64| Try { worker_mib: Some(current - less), ..NOTHING };
        // Searched from above: the largest cost that gives more workers.
        let less = least(1, current.checked_sub(1)?, |less| self.helps(with(less)))?;
        Some(self.change(with(less)))
    }

    /// The cost is mostly an assumption, so its reader must know where the number tips.
    fn dearer_workers(&self) -> Option<Change> {
        let room = self.outcome.memory.as_ref().filter(|_| self.outcome.workers > 1)?;
        let current = self.inputs.worker_memory / MIB;
        let with = |mib| Try { worker_mib: Some(mib), ..NOTHING };
        // Beyond twice the assumption it is no longer a doubt about the assumption.
        let most = (room.budget / MIB + 1).min(2 * current);
        let fewer = |mib| self.size(with(mib)).workers < self.outcome.workers;
        let mib = least(current + 1, most, fewer)?;
        let change = self.change(with(mib));
        Some(Change { with: format!("{mib} MiB per worker, should they need that"), ..change })
    }

    fn helps(&self, tried: Try) -> bool {
        self.size(tried).workers > self.outcome.workers
    }

    fn size(&self, tried: Try) -> Outcome {
        let mut inputs = self.inputs.clone();
        let raised = self.raised(tried.at);
        for (_, ceiling) in
            inputs.ceilings.iter_mut().enumerate().filter(|(index, _)| raised.contains(index))
        {
            for fact in ceiling.limit.iter_mut().chain(&mut ceiling.high) {
                fact.value = fact.value.saturating_add(tried.mib * MIB);
            }
        }
        let edit = self.cpu_edit(tried.hundredths);
        inputs.cpus.quota = inputs.cpus.quota.map(|quota| quota + edit.0.unwrap_or(0.0));
        inputs.cpus.set = inputs.cpus.set.map(|set| set.saturating_add(edit.1.unwrap_or(0)));
        inputs.task_room = inputs.task_room.map(|room| room.saturating_add(tried.tasks));
        if let Some(mib) = tried.worker_mib {
            inputs.worker_memory = mib * MIB;
        }
        if tried.no_maximum {
            inputs.most = None;
        }
        inputs.size()
    }

    fn raised(&self, at: Where) -> Vec<usize> {
        match (at, &self.outcome.memory) {
            (Where::Tightest, Some(room)) => vec![room.index],
            _ => (0..self.inputs.ceilings.len()).collect(),
        }
    }

    /// Quotas come in hundredths of a CPU here, CPUs to run on only whole.
    fn cpu_step(&self) -> u64 {
        if self.by_set() { 100 } else { 1 }
    }

    fn by_set(&self) -> bool {
        let cpus = self.inputs.cpus;
        cpus.set.is_some_and(|set| cpus.quota.is_none_or(|quota| f64::from(set) <= quota))
    }

    /// More quota, more CPUs to run on, or both where one alone would not be enough.
    fn cpu_edit(&self, hundredths: u64) -> (Option<f64>, Option<u32>) {
        if hundredths == 0 {
            return (None, None);
        }
        let more = hundredths_as_f64(hundredths);
        let whole = u32::try_from(hundredths.div_ceil(100)).unwrap_or(u32::MAX);
        let wanted = self.inputs.cpus.usable() + more;
        let cpus = self.inputs.cpus;
        let quota = cpus.quota.filter(|quota| *quota < wanted).map(|_| more);
        let set = cpus.set.filter(|set| f64::from(*set) < wanted).map(|_| whole);
        (quota, set)
    }

    fn change(&self, tried: Try) -> Change {
        let (add_quota, add_cpus) = self.cpu_edit(tried.hundredths);
        let edit = Edit {
            add_memory: (tried.mib > 0).then(|| self.memory_edit(tried)),
            add_quota,
            add_cpus,
            add_tasks: (tried.tasks > 0).then_some(tried.tasks),
            worker_memory_bytes: tried.worker_mib.map(|mib| mib * MIB),
            no_max_workers: tried.no_maximum,
        };
        Change { with: self.words(tried, &edit), workers: self.size(tried).workers, edit }
    }

    fn memory_edit(&self, tried: Try) -> MemoryEdit {
        let raised = self.raised(tried.at).into_iter();
        let facts =
            raised.filter_map(|index| self.inputs.ceilings.get(index)).flat_map(|ceiling| {
                let source = |fact: &Fact<u64>| fact.source.clone();
                ceiling.limit.iter().chain(&ceiling.high).map(source).collect::<Vec<_>>()
            });
        MemoryEdit { bytes: tried.mib * MIB, at: facts.collect() }
    }

    fn words(&self, tried: Try, edit: &Edit) -> String {
        let mut parts = Vec::new();
        if tried.mib > 0 {
            parts.push(self.memory_words(tried));
        }
        match (edit.add_quota, edit.add_cpus) {
            (None, None) => {}
            (Some(quota), None) => parts.push(format!("{} more CPU", show_number(quota))),
            (None, Some(cpus)) => parts.push(format!("{} to run on", plural(cpus, "more CPU"))),
            (Some(quota), Some(cpus)) => {
                let quota = show_number(quota);
                parts.push(format!("{quota} more CPU and {cpus} more to run on"));
            }
        }
        if tried.tasks > 0 {
            parts.push(format!("a task limit higher by {}", tried.tasks));
        }
        parts.extend(tried.worker_mib.map(|mib| format!("--worker-memory {mib}M")));
        if tried.no_maximum {
            parts.push("no --max-workers".to_owned());
        }
        parts.join(" and ")
    }

    fn memory_words(&self, tried: Try) -> String {
        let size = show_exact(tried.mib);
        if tried.at == Where::Everywhere && self.inputs.ceilings.len() > 1 {
            return format!("{size} more memory at every level and in the machine");
        }
        let Some(room) = &self.outcome.memory else { return format!("{size} more memory") };
        let ceiling = self.inputs.ceilings.get(room.index);
        if room.by_high {
            return format!("{size} more memory (memory.high and memory.max)");
        }
        match ceiling {
            Some(ceiling) if ceiling.machine && room.index > 0 => {
                format!("{size} more memory in the machine")
            }
            // Not the nearest level, where everybody would look first.
            Some(ceiling) if room.index > 0 => {
                let source = ceiling.limit.as_ref().map_or("", |limit| limit.source.as_str());
                format!("{size} more memory in {source}")
            }
            _ => format!("{size} more memory"),
        }
    }
}

/// The least `x` in `low..=high` for which `good` holds, where it holds for every larger one too.
fn least(low: u64, high: u64, good: impl Fn(u64) -> bool) -> Option<u64> {
    if low > high || !good(high) {
        return None;
    }
    let (mut low, mut high) = (low, high);
    while low < high {
        let middle = low + (high - low) / 2;
        if good(middle) { high = middle } else { low = middle + 1 }
    }
    Some(low)
}

#[expect(clippy::cast_precision_loss, reason = "at most a million hundredths")]
fn hundredths_as_f64(hundredths: u64) -> f64 {
    hundredths as f64 / 100.0
}

/// Whole mebibytes, never shortened: the number must hold for exactly this change.
fn show_exact(mib: u64) -> String {
    let shown = show_size(mib * MIB);
    if parse_size(&shown) == Some(mib * MIB) { shown } else { format!("{mib} MiB") }
}

/// How `--cpu-round` is written.
pub(crate) fn rounding_words(rounding: Rounding) -> &'static str {
    match rounding {
        Rounding::Nearest => "rounded to the nearest",
        Rounding::Floor => "rounded down",
        Rounding::Ceil => "rounded up",
    }
}
