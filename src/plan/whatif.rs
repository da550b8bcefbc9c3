//! What would give another number. Each answer is found by computing again with the change, so it
//! cannot differ from what the changed machine would say.

use super::reason::{Bound, Change};
use super::sizing::{Inputs, Outcome, Rounding};
use crate::units::{MIB, show_number, show_size};

/// Changes beyond this help nobody decide.
const MOST_MEMORY: u64 = 1 << 44;

/// The smallest single changes that give one more worker, and the cost at which there is one fewer.
pub(crate) fn changes(inputs: &Inputs, outcome: &Outcome) -> Vec<Change> {
    let mut found: Vec<_> = room_for_one(inputs, outcome).into_iter().collect();
    if outcome.bound_by != Bound::Explicit && outcome.bound_by != Bound::MinWorkers {
        let single = [more_memory(inputs, outcome), more_cpu(inputs, outcome)];
        if single.iter().all(Option::is_none) {
            found.extend(more_of_both(inputs, outcome));
        }
        found.extend(single.into_iter().flatten());
        found.extend(more_tasks(inputs, outcome));
        found.extend(higher_maximum(inputs, outcome));
        found.extend(cheaper_workers(inputs, outcome));
    }
    found.extend(dearer_workers(inputs, outcome));
    found
}

/// Where not even one worker fits: what would make room for it.
fn room_for_one(inputs: &Inputs, outcome: &Outcome) -> Option<Change> {
    outcome.memory.as_ref().filter(|room| room.workers == 0)?;
    let wanted = |mib| with_memory(inputs, outcome, mib).size();
    let fits = |mib| wanted(mib).memory.is_some_and(|room| room.workers > 0);
    let mib = least(1, MOST_MEMORY / MIB, fits)?;
    let with = format!("{}, so that one fits", memory_words(outcome, mib));
    Some(Change { with, workers: wanted(mib).workers })
}

/// The least `x` in `low..=high` for which `good` holds, where it holds for every larger one too.
fn least(low: u64, high: u64, good: impl Fn(u64) -> bool) -> Option<u64> {
    if !good(high) {
        return None;
    }
    let (mut low, mut high) = (low, high);
    while low < high {
        let middle = low + (high - low) / 2;
        if good(middle) { high = middle } else { low = middle + 1 }
    }
    Some(low)
}

fn with_memory(inputs: &Inputs, outcome: &Outcome, mib: u64) -> Inputs {
    let mut changed = inputs.clone();
    let ceiling = outcome.memory.as_ref().and_then(|room| changed.ceilings.get_mut(room.index));
    if let Some(ceiling) = ceiling {
        for fact in ceiling.limit.iter_mut().chain(&mut ceiling.high) {
            fact.value = fact.value.saturating_add(mib * MIB);
        }
    }
    changed
}

fn with_cpus(inputs: &Inputs, hundredths: u64) -> Inputs {
    Inputs { cpus: inputs.cpus + hundredths_as_f64(hundredths), ..inputs.clone() }
}

#[expect(clippy::cast_precision_loss, reason = "at most a million hundredths")]
fn hundredths_as_f64(hundredths: u64) -> f64 {
    hundredths as f64 / 100.0
}

fn memory_words(outcome: &Outcome, mib: u64) -> String {
    let size = show_exact(mib);
    match &outcome.memory {
        Some(room) if room.by_high => format!("{size} more memory (memory.high and memory.max)"),
        _ => format!("{size} more memory"),
    }
}

/// Whole mebibytes, never shortened: the number below must hold for exactly this change.
fn show_exact(mib: u64) -> String {
    let shown = show_size(mib * MIB);
    if crate::units::parse_size(&shown) == Some(mib * MIB) { shown } else { format!("{mib} MiB") }
}

fn more_memory(inputs: &Inputs, outcome: &Outcome) -> Option<Change> {
    outcome.memory.as_ref()?;
    let wanted = |mib| with_memory(inputs, outcome, mib).size();
    let mib = least(1, MOST_MEMORY / MIB, |mib| wanted(mib).workers > outcome.workers)?;
    Some(Change { with: memory_words(outcome, mib), workers: wanted(mib).workers })
}

fn more_cpu(inputs: &Inputs, outcome: &Outcome) -> Option<Change> {
    let wanted = |hundredths| with_cpus(inputs, hundredths).size();
    let hundredths = least(1, 1_000_000, |more| wanted(more).workers > outcome.workers)?;
    let with = format!("{} more CPU", show_number(hundredths_as_f64(hundredths)));
    Some(Change { with, workers: wanted(hundredths).workers })
}

/// Where neither alone helps: the memory for one more, then the CPU for it.
fn more_of_both(inputs: &Inputs, outcome: &Outcome) -> Option<Change> {
    outcome.memory.as_ref()?;
    let plenty = 1_000_000;
    let both = |mib, hundredths| with_cpus(&with_memory(inputs, outcome, mib), hundredths).size();
    let mib = least(1, MOST_MEMORY / MIB, |mib| both(mib, plenty).workers > outcome.workers)?;
    let hundredths = least(1, plenty, |more| both(mib, more).workers > outcome.workers)?;
    let with = format!(
        "{} and {} more CPU",
        memory_words(outcome, mib),
        show_number(hundredths_as_f64(hundredths))
    );
    Some(Change { with, workers: both(mib, hundredths).workers })
}

fn more_tasks(inputs: &Inputs, outcome: &Outcome) -> Option<Change> {
    let room = inputs.task_room.filter(|_| outcome.bound_by == Bound::Tasks)?;
    let wanted =
        |more| Inputs { task_room: Some(room.saturating_add(more)), ..inputs.clone() }.size();
    let more = least(1, 1 << 22, |more| wanted(more).workers > outcome.workers)?;
    Some(Change { with: format!("a task limit higher by {more}"), workers: wanted(more).workers })
}

fn higher_maximum(inputs: &Inputs, outcome: &Outcome) -> Option<Change> {
    if outcome.bound_by != Bound::MaxWorkers {
        return None;
    }
    let freed = Inputs { most: None, ..inputs.clone() }.size();
    (freed.workers > outcome.workers)
        .then(|| Change { with: "no --max-workers".to_owned(), workers: freed.workers })
}

fn cheaper_workers(inputs: &Inputs, outcome: &Outcome) -> Option<Change> {
    let current = inputs.worker_memory.div_ceil(MIB);
    let wanted = |mib: u64| Inputs { worker_memory: mib * MIB, ..inputs.clone() }.size();
    // Searched from above: the largest cost that gives more workers.
    let less =
        least(1, current.checked_sub(1)?, |less| wanted(current - less).workers > outcome.workers)?;
    let mib = current - less;
    Some(Change { with: format!("--worker-memory {mib}M"), workers: wanted(mib).workers })
}

/// The cost is mostly an assumption, so its reader must know where the number tips.
fn dearer_workers(inputs: &Inputs, outcome: &Outcome) -> Option<Change> {
    let room = outcome.memory.as_ref()?;
    let wanted = |mib: u64| Inputs { worker_memory: mib * MIB, ..inputs.clone() }.size();
    let current = inputs.worker_memory / MIB;
    if outcome.workers < 2 || matches!(outcome.bound_by, Bound::Explicit | Bound::MinWorkers) {
        return None;
    }
    // Beyond twice the assumption it is no longer a doubt about the assumption.
    let mib = least(current + 1, (room.budget / MIB + 1).min(2 * current), |mib| {
        wanted(mib).workers < outcome.workers
    })?;
    Some(Change {
        with: format!("{mib} MiB per worker, should they need that"),
        workers: wanted(mib).workers,
    })
}

/// How `--cpu-round` is written.
pub(crate) fn rounding_words(rounding: Rounding) -> &'static str {
    match rounding {
        Rounding::Nearest => "rounded to the nearest",
        Rounding::Floor => "rounded down",
        Rounding::Ceil => "rounded up",
    }
}
