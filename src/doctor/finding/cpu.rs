//! CPU time: quotas that are small, and throttling that happens.

use std::time::Duration;

use super::Severity::{Note, Problem, Warning};
use super::{Case, Finding};
use crate::doctor::why::show_cpus;
use crate::probe::parse::keyed;
use crate::probe::{Controller, chain};
use crate::units::show_duration;

/// From which share of throttled periods on it is worth a word, and from which it hurts all the time.
const SOME: u64 = 5;
const MUCH: u64 = 50;

pub(super) fn findings(case: &Case<'_>, found: &mut Vec<Finding>) {
    found.extend(below_one(case));
    for dir in chain(case.host, Controller::Cpu) {
        let file = dir.join("cpu.stat");
        let Ok(text) = case.host.read(&file) else { continue };
        let value = |key: &str| keyed(&text, key).unwrap_or(0);
        let (periods, throttled) = (value("nr_periods"), value("nr_throttled"));
        let percent = u128::from(throttled) * 100 / u128::from(periods.max(1));
        if periods == 0 || percent <= u128::from(SOME) {
            continue;
        }
        // v2 counts microseconds, v1 nanoseconds.
        let micros =
            keyed(&text, "throttled_usec").unwrap_or_else(|| value("throttled_time") / 1000);
        let severity = if percent >= u128::from(MUCH) { Problem } else { Warning };
        found.push(Finding::new(
            severity,
            "throttled",
            (file.display().to_string(), format!("nr_periods {periods}, nr_throttled {throttled}")),
            format!(
                "The quota was used up in {percent} % of all periods, and everybody in the group then stood still until the next: {} in all, {} each time.",
                span(micros),
                span(micros / throttled.max(1))
            ),
            "Raise the CPU limit, or run fewer workers and threads: they share the quota, and more of them only use it up sooner.",
        ));
        // A throttled parent shows in each group below it.
        break;
    }
}

/// Whole milliseconds.
fn span(micros: u64) -> String {
    show_duration(Duration::from_millis(micros / 1000))
}

fn below_one(case: &Case<'_>) -> Option<Finding> {
    let quota = case.plan.resources.cpu.quota.as_ref()?;
    let cpus = quota.value.as_f64();
    if cpus >= 1.0 {
        return None;
    }
    let severity = if cpus < 0.5 { Warning } else { Note };
    Some(Finding::new(
        severity,
        "quota-below-one",
        (quota.source.clone(), show_cpus(cpus)),
        format!(
            "Less than one CPU: work that takes 100 ms of CPU takes about {:.0} ms here, as the process stands still whenever its share of a period is used up. Starts are slow too.",
            (100.0 / cpus).min(1e6)
        ),
        "One worker is right for this. Give at least 1 CPU where answers must be quick; a readiness check needs a patient time-out.",
    ))
}
