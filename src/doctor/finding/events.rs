//! What memory limits have done already: the kernel's counters of our own group.

use std::path::{Path, PathBuf};

use super::Severity::{Note, Problem, Warning};
use super::{Case, Finding};
use crate::probe::parse::{keyed, lines, number, trim, words};
use crate::probe::show;
use crate::units::plural;

/// Share of time, in percent, in which somebody waited for memory.
const PRESSURE: f64 = 10.0;

pub(super) fn findings(case: &Case<'_>, found: &mut Vec<Finding>) {
    if let Some(own) = case.evidence.memory.first().map(|level| Path::new(&level.dir)) {
        // A platform's variable stands among the levels and is no directory.
        if own.is_absolute() {
            events(case, own, found);
            v1(case, own, found);
        }
    }
    found.extend(pressure(case));
}

fn events(case: &Case<'_>, own: &Path, found: &mut Vec<Finding>) {
    let file = own.join("memory.events");
    let Ok(text) = case.host.read(&file) else { return };
    let count = |key: &str| keyed(&text, key).filter(|count| *count > 0);
    let of = |key: &str, count: u64| (file.display().to_string(), format!("{key} {count}"));
    if let Some(kills) = count("oom_kill") {
        found.push(killed(of("oom_kill", kills), kills));
    }
    if let Some(times) = count("high") {
        found.push(Finding::new(
            Warning,
            "throttled-for-memory",
            of("high", times),
            format!("The group has been above memory.high {}: its processes were slowed down to make them give memory back.", plural(times, "time")),
            "Run fewer workers, or raise memory.high (MemoryHigh= in systemd).",
        ));
    }
    if let Some(times) = count("max") {
        found.push(Finding::new(
            Note,
            "limit-reached",
            of("max", times),
            format!("The group has been at its limit {}; the kernel then dropped page cache to make room. Harmless while that is all it has to do.", plural(times, "time")),
            "Watch whether the number grows under load; if it does, leave more free (--headroom).",
        ));
    }
}

fn killed(source: (String, String), kills: u64) -> Finding {
    Finding::new(
        Problem,
        "oom-kills",
        source,
        format!(
            "The kernel has killed {} of this group for want of memory.",
            if kills == 1 { "1 process".to_owned() } else { format!("{kills} processes") }
        ),
        "Raise the limit, or say what a worker really needs (--worker-memory), so that fewer run.",
    )
}

fn v1(case: &Case<'_>, own: &Path, found: &mut Vec<Finding>) {
    let file = own.join("memory.failcnt");
    let text = case.host.read(&file).unwrap_or_default();
    if let Some(times) = number(trim(&text)).filter(|times| *times > 0) {
        found.push(Finding::new(
            Note,
            "limit-reached",
            (file.display().to_string(), show(&text)),
            format!("The group has been at its limit {}; the kernel then dropped page cache to make room. Harmless while that is all it has to do.", plural(times, "time")),
            "Watch whether the number grows under load; if it does, leave more free (--headroom).",
        ));
    }
    let file = own.join("memory.oom_control");
    let Ok(text) = case.host.read(&file) else { return };
    let source = |line: String| (file.display().to_string(), line);
    if let Some(kills) = keyed(&text, "oom_kill").filter(|kills| *kills > 0) {
        found.push(killed(source(format!("oom_kill {kills}")), kills));
    }
    if keyed(&text, "oom_kill_disable") == Some(1) {
        found.push(Finding::new(
            Problem,
            "oom-kill-disabled",
            source("oom_kill_disable 1".to_owned()),
            "Where memory runs out, nobody is killed: every process that asks for more stands still until somebody frees some, and that is for ever.",
            "Leave --oom-kill-disable out (Docker), or write 0 to the file.",
        ));
    }
    if keyed(&text, "under_oom") == Some(1) {
        found.push(Finding::new(
            Problem,
            "out-of-memory-now",
            source("under_oom 1".to_owned()),
            "The group is out of memory at this moment.",
            "Raise the limit or stop something in it.",
        ));
    }
}

/// PSI: somebody has to wait for memory much of the time.
fn pressure(case: &Case<'_>) -> Option<Finding> {
    let own =
        case.evidence.memory.first().map(|level| Path::new(&level.dir).join("memory.pressure"));
    let files = own.into_iter().chain([PathBuf::from("/proc/pressure/memory")]);
    let (file, text) = files
        .into_iter()
        .find_map(|file| Some((case.host.read(&file).ok()?, file)))
        .map(|(text, file)| (file, text))?;
    let line = lines(&text).find(|line| line.starts_with(b"some "))?;
    let share = words(line).find_map(|word| word.strip_prefix(b"avg60="))?;
    let share: f64 = std::str::from_utf8(share).ok()?.parse().ok()?;
    (share.is_finite() && share >= PRESSURE).then(|| {
        Finding::new(
            Warning,
            "memory-pressure",
            (file.display().to_string(), show(line)),
            format!("In the last minute something here waited for memory {share} % of the time."),
            "Run fewer workers or give more memory: a fleet that waits for memory is slower than a smaller one that does not.",
        )
    })
}
