//! The report for people: the number, what bound it, where each input came from, what would change it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Subject;
use crate::plan::{Bound, Plan};
use crate::units::{plural, printable, show_number, show_size};

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

/// The whole report.
pub(crate) fn render(subject: &Subject<'_>, color: bool) -> String {
    let plan = subject.plan;
    let paint = |code: &str, text: &str| {
        let text = printable(text);
        if color { format!("{code}{text}{RESET}") } else { text.into_owned() }
    };
    let mut out = String::new();
    let number = paint(BOLD, &plural(plan.workers, "worker"));
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{number}{}, {}", printable(subject.command), share(plan));
    let _ = writeln!(out, "{}", verdict(plan));
    if let Some(outlook) = &plan.outlook {
        let _ = writeln!(out, "{}.", printable(outlook));
    }
    for warning in &plan.warnings {
        let _ = writeln!(out, "{} {}", paint(YELLOW, "warning:"), printable(warning));
    }
    out.push('\n');
    let name_width = plan.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
    let value_width = plan.steps.iter().map(|step| step.value.chars().count()).max().unwrap_or(0);
    for step in &plan.steps {
        let source = step
            .source
            .as_ref()
            .map(|source| format!("{}  ", printable(source)))
            .unwrap_or_default();
        let because = paint(DIM, &step.because);
        let _ = writeln!(
            out,
            "  {:name_width$}  {:>value_width$}  {source}{because}",
            step.name, step.value
        );
    }
    if !plan.changes.is_empty() {
        out.push_str("\nWhat would change the number\n");
        for change in &plan.changes {
            let _ = writeln!(out, "  with {}: {}", change.with, plural(change.workers, "worker"));
        }
    }
    let reasons: BTreeMap<_, _> =
        plan.environment.iter().map(|v| (v.name.as_str(), v.because.as_str())).collect();
    out.push_str("\nWhat each worker is told\n");
    for (name, value) in subject.environment {
        let because = reasons
            .get(name.as_str())
            .map(|because| paint(DIM, &format!("  {because}")))
            .unwrap_or_default();
        let _ = writeln!(out, "  {name}={}{because}", printable(value));
    }
    if !subject.settings.is_empty() {
        out.push_str("\nWhat was chosen\n");
        for choice in subject.settings {
            let _ = writeln!(
                out,
                "  {} = {}  {}",
                choice.name,
                printable(&choice.value),
                printable(&choice.source)
            );
        }
    }
    if let Some(machine) = &subject.machine {
        let _ = writeln!(out, "\nOn {machine}");
    }
    out
}

/// The same in a few lines, for the log at a start.
pub(crate) fn brief(plan: &Plan, subject: &str) -> Vec<String> {
    let mut lines = vec![
        format!("{}{subject}, {}", plural(plan.workers, "worker"), share(plan)),
        verdict(plan),
    ];
    lines.extend(plan.outlook.clone());
    lines.extend(
        plan.changes
            .first()
            .map(|change| format!("with {}: {}", change.with, plural(change.workers, "worker"))),
    );
    lines
}

fn share(plan: &Plan) -> String {
    let cpus = show_number(plan.worker_cpus);
    let cpus = match cpus.as_str() {
        "1" => "1 CPU".to_owned(),
        "0" => format!("{:.4} CPU", plan.worker_cpus),
        _ if plan.worker_cpus < 1.0 => format!("{cpus} CPU"),
        _ => format!("{cpus} CPUs"),
    };
    let each = if plan.workers == 1 { "with" } else { "each with" };
    match plan.worker_memory {
        Some(bytes) => format!("{each} {} and {cpus}", show_size(bytes)),
        None => format!("{each} {cpus}"),
    }
}

fn verdict(plan: &Plan) -> String {
    let why = match plan.bound_by {
        Bound::Memory => "Bound by memory",
        Bound::Cpu => "Bound by CPU",
        Bound::Tasks => "Bound by the task limit",
        Bound::MaxWorkers => "Bound by --max-workers",
        Bound::MinWorkers => "Raised by --min-workers",
        Bound::Explicit => "As told",
    };
    format!("{why}: {}.", plan.verdict.join("; "))
}
