//! Memory: how the kernel will act at the limit, and whether what was asked for fits below it.

use std::path::Path;

use super::Severity::{Note, Problem, Warning};
use super::{Case, Finding, capital};
use crate::probe::parse::{meminfo, number, trim};
use crate::probe::{Ceiling, MemoryLevel, show};
use crate::units::{plural, show_size};

/// Beyond this a number in a limit file is the kernel's way to write "none", at any size of pages.
const UNLIMITED: u64 = 1 << 60;

pub(super) fn findings(case: &Case<'_>, found: &mut Vec<Finding>) {
    found.extend(case.evidence.memory.iter().find_map(|level| oom_group(case, level)));
    found.extend(high_without_swap(case));
    found.extend(swap_limit(case));
    found.extend(swapping(case));
    found.extend(above_ram(case));
    found.extend(does_not_fit(case));
    found.extend(overcommit(case));
}

/// A file's content for a person, where there is such a file.
pub(super) fn text_of(case: &Case<'_>, file: &Path) -> Option<String> {
    case.host.read(file).ok().map(|text| show(&text))
}

fn oom_group(case: &Case<'_>, level: &MemoryLevel) -> Option<Finding> {
    if !level.oom_group {
        return None;
    }
    let file = Path::new(&level.dir).join("memory.oom.group");
    let all = case.plan.workers > 1;
    Some(Finding::new(
        if all { Warning } else { Note },
        "oom-group",
        (file.display().to_string(), text_of(case, &file).unwrap_or_default()),
        "Where memory runs out, the kernel kills every process of this group at once: one worker that grows takes all the others and throng-rs with it.",
        "The plan keeps more free for that. Write 0 to the file, or give each worker a cgroup of its own (--isolate on), where ours can be divided. Kubernetes sets it for each container; singleProcessOOMKill in the kubelet's configuration turns that off.",
    ))
}

fn high_without_swap(case: &Case<'_>) -> Option<Finding> {
    let memory = &case.plan.resources.memory;
    let high = memory.high.as_ref()?;
    let swaps = |ceiling: &Ceiling| ceiling.swap && ceiling.high.as_ref() == Some(high);
    if memory.ceilings.iter().any(swaps) {
        return None;
    }
    Some(Finding::new(
        Warning,
        "high-without-swap",
        (high.source.clone(), high.value.to_string()),
        format!(
            "Above {} the kernel slows every process down until it has got memory back, and without swap there may be none to get: workers then neither serve nor die.",
            show_size(high.value)
        ),
        "The plan stays below 95 % of it. Better remove memory.high (MemoryHigh= in systemd) and rely on memory.max, which ends in a clear kill and a restart.",
    ))
}

/// The machine swaps, and a level with a memory limit does not limit that.
fn swap_limit(case: &Case<'_>) -> Option<Finding> {
    let limit = case.plan.resources.memory.limit.as_ref()?;
    if case.evidence.machine.swap == 0 {
        return None;
    }
    let level = case.evidence.memory.iter().find(|level| level.limit.as_ref() == Some(limit))?;
    if level.swap.is_some_and(|most| most < UNLIMITED) {
        return None;
    }
    let v1 = limit.source.contains("_in_bytes") || limit.source.ends_with("memory.stat");
    let name = if v1 { "memory.memsw.limit_in_bytes" } else { "memory.swap.max" };
    let file = Path::new(&level.dir).join(name);
    let text = text_of(case, &file).unwrap_or_else(|| "no such file".to_owned());
    Some(Finding::new(
        Warning,
        "no-swap-limit",
        (file.display().to_string(), text),
        format!(
            "The machine has {} of swap and this group may use all of it: at its limit the fleet is not killed but swapped out, and every request waits for the disk.",
            show_size(case.evidence.machine.swap)
        ),
        "Set a swap limit: --memory-swap equal to --memory for Docker, MemorySwapMax=0 for systemd.",
    ))
}

fn swapping(case: &Case<'_>) -> Option<Finding> {
    let text = case.host.read(Path::new("/proc/meminfo")).ok()?;
    let (total, free) = (meminfo(&text, "SwapTotal")?, meminfo(&text, "SwapFree")?);
    let used = total.saturating_sub(free);
    (total > 0 && used > total / 2).then(|| {
        Finding::new(
            Warning,
            "swap-in-use",
            ("/proc/meminfo", format!("SwapTotal {} kB, SwapFree {} kB", total / 1024, free / 1024)),
            format!("{} of the machine's {} of swap are in use: memory has been short already.", show_size(used), show_size(total)),
            "Look what holds it (the VmSwap lines of /proc/*/status) and run fewer workers or give the machine more memory.",
        )
    })
}

fn above_ram(case: &Case<'_>) -> Option<Finding> {
    let ram = case.evidence.machine.memory.as_ref()?;
    let pretended = case.plan.resources.memory.limit.as_ref();
    let limits = case.evidence.memory.iter().filter_map(|level| level.limit.as_ref());
    let limit = pretended
        .into_iter()
        .chain(limits)
        .find(|limit| limit.value > ram.value && limit.value < UNLIMITED)?;
    let (severity, remedy) = if limit.source.starts_with("flag:") {
        (Note, "Fine for a machine that you are about to get; leave the flag out for this one.")
    } else {
        (Warning, "Set the limit below the machine's memory, or take a larger machine.")
    };
    Some(Finding::new(
        severity,
        "limit-above-ram",
        (limit.source.clone(), limit.value.to_string()),
        format!(
            "The limit of {} is more than the {} that the machine has ({}), so it never holds: the machine runs out first, and the kernel then kills whatever it likes.",
            show_size(limit.value),
            show_size(ram.value),
            ram.source
        ),
        remedy,
    ))
}

/// Not even one worker fits, or more were asked for than do.
fn does_not_fit(case: &Case<'_>) -> Option<Finding> {
    let plan = case.plan;
    let room = plan.all_memory;
    // A shortage of tasks is told by its own rule.
    let short = room.is_some_and(|room| room < case.worker_memory);
    if let Some(shortage) = plan.shortage.as_ref().filter(|_| short) {
        let memory = &plan.resources.memory;
        let source = [&memory.limit, &memory.high, &memory.ram].into_iter().flatten();
        let source = source.min_by_key(|fact| fact.value);
        return Some(Finding::new(
            Problem,
            "does-not-fit",
            source.map_or(("unknown".to_owned(), String::new()), |fact| {
                (fact.source.clone(), fact.value.to_string())
            }),
            format!("{}.", capital(shortage)),
            "Raise the limit, or say what a worker really needs (--worker-memory).",
        ));
    }
    let room = room?;
    let need = case.worker_memory.saturating_mul(u64::from(plan.workers));
    if need <= room || plan.workers <= 1 {
        return None;
    }
    let (source, text) = match case.pinned {
        Some(pinned) => (pinned.origin.clone().unwrap_or_default(), pinned.value.to_string()),
        None => ("flag:--min-workers".to_owned(), plan.workers.to_string()),
    };
    let fit = (room / case.worker_memory.max(1)).max(1);
    Some(Finding::new(
        Problem,
        "more-than-fits",
        (source, text),
        format!(
            "{} of {} need {}, and there is room for {}: under load the kernel will kill some.",
            plural(plan.workers, "worker"),
            show_size(case.worker_memory),
            show_size(need),
            show_size(room)
        ),
        format!(
            "Leave the number out (memory is enough for {}), raise the limit, or say what a worker really needs (--worker-memory).",
            plural(fit, "worker")
        ),
    ))
}

/// The kernel promises no more memory than it has.
fn overcommit(case: &Case<'_>) -> Option<Finding> {
    let file = Path::new("/proc/sys/vm/overcommit_memory");
    let mode = case.host.read(file).ok()?;
    if number(trim(&mode)) != Some(2) {
        return None;
    }
    let text = case.host.read(Path::new("/proc/meminfo")).ok()?;
    let (limit, used) = (meminfo(&text, "CommitLimit")?, meminfo(&text, "Committed_AS")?);
    let left = limit.saturating_sub(used);
    let need = case.worker_memory.saturating_mul(u64::from(case.plan.workers));
    let short = left < need;
    Some(Finding::new(
        if short { Problem } else { Note },
        "overcommit",
        ("/proc/sys/vm/overcommit_memory", show(&mode)),
        format!(
            "The kernel refuses memory that it could not back: {} of CommitLimit {} are left (/proc/meminfo), and {} will want {}. Runtimes reserve far more than they use, so they fail first.",
            show_size(left),
            show_size(limit),
            plural(case.plan.workers, "worker"),
            show_size(need)
        ),
        "Set vm.overcommit_memory=0 (sysctl), or raise vm.overcommit_ratio.",
    ))
}
