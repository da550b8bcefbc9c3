//! Limits of processes, threads and open files.

use std::path::Path;

use super::Severity::{Note, Problem, Warning};
use super::{Case, Finding};
use crate::plan::{Bound, Runtime};
use crate::probe::parse::{lines, number, words};
use crate::units::plural;

/// What a server with some hundred clients, files and pipes gets along with.
const FEW_FILES: u64 = 1024;

pub(super) fn findings(case: &Case<'_>, found: &mut Vec<Finding>) {
    found.extend(pids(case));
    found.extend(files(case));
}

fn pids(case: &Case<'_>) -> Option<Finding> {
    let tasks = &case.plan.resources.tasks;
    let (limit, room) = (tasks.limit.as_ref()?, tasks.room?);
    let each = case.runtime.unwrap_or(Runtime::Other).tasks();
    let need = each.saturating_mul(u64::from(case.plan.workers));
    let used = limit.value.saturating_sub(room);
    // The plan keeps so many free for the launcher and for who has to look into a full container.
    let severity = if room < need.saturating_add(8) {
        Problem
    } else if case.plan.bound_by == Bound::Tasks || used >= limit.value / 10 * 8 {
        Warning
    } else {
        return None;
    };
    Some(Finding::new(
        severity,
        "few-tasks",
        (limit.source.clone(), limit.value.to_string()),
        format!(
            "{used} of {} processes and threads are there already; {} of about {each} each need {need} more. At the limit fork and new threads fail with \"resource temporarily unavailable\".",
            limit.value,
            plural(case.plan.workers, "worker")
        ),
        "Raise the limit: --pids-limit for Docker, TasksMax= for systemd, podPidsLimit for the kubelet, ulimit -u for a user.",
    ))
}

fn files(case: &Case<'_>) -> Option<Finding> {
    let file = "/proc/self/limits";
    let text = case.host.read(Path::new(file)).ok()?;
    let row = lines(&text).find_map(|line| line.strip_prefix(b"Max open files"))?;
    // A word that is no number is `unlimited`.
    let mut limits = words(row).map(|word| number(word).unwrap_or(u64::MAX));
    let (soft, hard) = (limits.next()?, limits.next()?);
    if soft > FEW_FILES {
        return None;
    }
    let severity = if hard <= FEW_FILES { Warning } else { Note };
    let raise = if hard > soft {
        "Node.js, Go and the JVM raise it to the hard limit by themselves; for others ulimit -n, LimitNOFILE= or --ulimit nofile=65536."
    } else {
        "Raise the hard limit: LimitNOFILE= for systemd, --ulimit nofile=65536 for Docker."
    };
    Some(Finding::new(
        severity,
        "few-files",
        (
            file,
            format!(
                "Max open files {soft} {}",
                if hard == u64::MAX { "unlimited".to_owned() } else { hard.to_string() }
            ),
        ),
        format!(
            "A worker may have {soft} files and connections open at once; the next client is then refused (\"too many open files\")."
        ),
        raise,
    ))
}
