//! The curve as text.

use std::fmt::Write;

use super::curve::{Bound, Curve, Step};
use crate::units::{plural, show_number, show_size};

/// The longest bar.
const WIDTH: f64 = 30.0;

/// The head of the table.
pub(crate) fn head(counts_requests: bool) -> String {
    let rate = if counts_requests { "answers/s" } else { "CPUs used" };
    format!(
        "{:>7}  {rate:>9}  {:>10}  {:>8}  {:>5}  {:>9}",
        "workers", "one worker", "in use", "CPUs", "throttled"
    )
}

/// One line of it, as it comes.
pub(crate) fn line(step: &Step) -> String {
    let mut line = format!(
        "{:>7}  {:>9}  {:>10}  {:>8}  {:>5.2}  {:>7.0} %",
        step.workers,
        show_number((step.rate * 100.0).round() / 100.0),
        show_size(step.private),
        show_size(step.used),
        step.cpus,
        step.throttled * 100.0
    );
    if step.ended {
        line.push_str("  a worker ended");
    } else if step.cut {
        line.push_str("  memory ran low");
    } else if step.failed > 0 {
        let _ = write!(line, "  {} failed", step.failed);
    }
    line
}

/// The curve with bars, and what it means.
pub(crate) fn table(curve: &Curve, counts_requests: bool) -> String {
    let mut out = String::new();
    let best = curve.steps.iter().map(|step| step.rate).fold(0.0, f64::max);
    for step in &curve.steps {
        let bar = bar(step.rate, best);
        let mark = if step.workers == curve.knee.workers { "  <- enough" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{:>7}  {bar}{mark}", step.workers);
    }
    let unit = if counts_requests {
        "answers a second"
    } else {
        "CPUs used by the workers, as the load told no rate"
    };
    let why = match curve.bound {
        Bound::Cpu => "the CPUs are in full use",
        Bound::Memory => "no more fit in memory",
        Bound::Load => "more do not help under this load",
        Bound::Workers => "no more may run (--max-workers, or the limit of tasks)",
        Bound::Ended => "where there were more, a worker ended by itself",
    };
    let knee = &curve.knee;
    let _ = writeln!(
        out,
        "\n{} {} {} {unit}: {why}",
        plural(knee.workers, "worker"),
        if knee.workers == 1 { "gives" } else { "give" },
        show_number((knee.rate * 100.0).round() / 100.0)
    );
    let once = match curve.shared {
        0 => String::new(),
        shared => format!("; {} are there once for all", show_size(shared)),
    };
    let _ = writeln!(out, "one worker costs {} under load{once}", show_size(curve.cost));
    let each = knee.cpus / f64::from(knee.workers);
    let _ = writeln!(
        out,
        "each uses {each:.3} CPUs; the quota was used up in {:.0} % of its periods",
        knee.throttled * 100.0
    );
    if curve.growth > 0 {
        let _ = writeln!(
            out,
            "warning: a worker still grew by {} a minute: what it costs in the end is not known; see --max-worker-memory",
            show_size(curve.growth)
        );
    }
    out
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 30")]
fn bar(rate: f64, best: f64) -> String {
    let part = if best > 0.0 { (rate / best).clamp(0.0, 1.0) } else { 0.0 };
    "#".repeat((part * WIDTH).round() as usize)
}
