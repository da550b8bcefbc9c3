//! Settings of runtimes that contradict the plan: a heap larger than a worker's share, more threads
//! than the quota keeps busy.

use super::Severity::{Problem, Warning};
use super::{Case, Finding};
use crate::doctor::why::show_cpus;
use crate::plan::Runtime;
use crate::units::{MIB, parse_size, plural, show_size};

/// A heap that somebody asked for.
#[derive(Debug, PartialEq)]
enum Heap {
    Bytes(u64),
    /// Of everything that the process sees.
    Percent(f64),
}

pub(super) fn findings(case: &Case<'_>, found: &mut Vec<Finding>) {
    for (source, text, name) in options(case) {
        for (word, heap) in heaps(&text, name) {
            found.extend(too_large(case, (source.clone(), word), &heap));
        }
    }
    found.extend(plain_heap(case, "GOMEMLIMIT", parse_size));
    found.extend(plain_heap(case, "DOTNET_GCHeapHardLimit", |text| {
        u64::from_str_radix(text.trim_start_matches("0x").trim_start_matches("0X"), 16).ok()
    }));
    found.extend(threads(case));
}

/// The heap that the environment or the command tells a runtime, bytes, and where.
pub(in crate::doctor) fn told(case: &Case<'_>, runtime: Runtime) -> Option<(u64, String)> {
    let texts = options(case).into_iter().filter(|(_, _, of)| *of == runtime);
    let all = texts.flat_map(|(source, text, _)| {
        heaps(&text, runtime).into_iter().map(move |(word, heap)| (source.clone(), word, heap))
    });
    // The last one counts: later variables and the command line beat those before.
    let (source, word, heap) = all.last()?;
    let Heap::Bytes(bytes) = heap else { return None };
    let place = source.strip_prefix("env:").map_or("the command", |name| name);
    Some((bytes, format!("{word} in {place}")))
}

/// Which texts hold options of which runtime, for a command of that kind or none.
fn options(case: &Case<'_>) -> Vec<(String, String, Runtime)> {
    let wanted = |runtime| case.runtime.is_none_or(|own| own == runtime || own == Runtime::Other);
    let variables = [
        ("NODE_OPTIONS", Runtime::Node),
        ("JAVA_TOOL_OPTIONS", Runtime::Jvm),
        ("JDK_JAVA_OPTIONS", Runtime::Jvm),
        ("_JAVA_OPTIONS", Runtime::Jvm),
    ];
    let set = variables.into_iter().filter(|(_, runtime)| wanted(*runtime)).filter_map(
        |(name, runtime)| Some((format!("env:{name}"), case.env(name)?.to_owned(), runtime)),
    );
    let own = case.runtime.filter(|runtime| matches!(runtime, Runtime::Node | Runtime::Jvm));
    let words = own.map(|runtime| ("command".to_owned(), case.command.join(" "), runtime));
    set.chain(words).collect()
}

/// Every heap option of a text. Node takes underscores for dashes and a space for `=`.
fn heaps(text: &str, runtime: Runtime) -> Vec<(String, Heap)> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        if runtime == Runtime::Jvm {
            let heap = if let Some(size) = word.strip_prefix("-Xmx") {
                parse_size(size).map(Heap::Bytes)
            } else {
                let percent = word.strip_prefix("-XX:MaxRAMPercentage=");
                percent.and_then(|percent| percent.parse().ok()).map(Heap::Percent)
            };
            found.extend(heap.map(|heap| ((*word).to_owned(), heap)));
            continue;
        }
        let (name, value) =
            word.split_once('=').unwrap_or((word, words.get(at + 1).unwrap_or(&"")));
        let heap = match name.replace('_', "-").as_str() {
            "--max-old-space-size" => {
                value.parse().ok().map(|mib: u64| Heap::Bytes(mib.saturating_mul(MIB)))
            }
            "--max-old-space-size-percentage" => value.parse().ok().map(Heap::Percent),
            _ => None,
        };
        found.extend(heap.map(|heap| (format!("{name}={value}"), heap)));
    }
    found
}

fn too_large(case: &Case<'_>, source: (String, String), heap: &Heap) -> Option<Finding> {
    let plan = case.plan;
    let share = plan.worker_memory?;
    let workers = plural(plan.workers, "worker");
    let what = match heap {
        Heap::Bytes(bytes) if *bytes > share => format!(
            "Each worker may grow a heap of {}, and its share is {} ({workers} in {}). The runtime sees no reason to collect garbage before the kernel kills.",
            show_size(*bytes),
            show_size(share),
            show_size(plan.all_memory.unwrap_or(share))
        ),
        Heap::Percent(percent)
            if plan.workers > 1 && *percent * f64::from(plan.workers) > 100.0 =>
        {
            format!(
                "The percentage is of the whole container, and {workers} take it each: {:.0} % in all.",
                *percent * f64::from(plan.workers)
            )
        }
        _ => return None,
    };
    Some(Finding::new(
        Problem,
        "heap-above-share",
        source,
        what,
        format!(
            "Leave the option out, and each worker is told a heap that fits its {}; or run fewer workers (--max-workers).",
            show_size(share)
        ),
    ))
}

fn plain_heap(case: &Case<'_>, name: &str, parse: impl Fn(&str) -> Option<u64>) -> Option<Finding> {
    let text = case.env(name)?;
    let runtime = if name.starts_with("DOTNET") { Runtime::Dotnet } else { Runtime::Native };
    if case.runtime.is_some_and(|own| own != runtime && own != Runtime::Other) {
        return None;
    }
    too_large(case, (format!("env:{name}"), text.to_owned()), &Heap::Bytes(parse(text)?))
}

fn threads(case: &Case<'_>) -> Option<Finding> {
    let text = case.env("GOMAXPROCS")?;
    if case.runtime.is_some_and(|own| !matches!(own, Runtime::Native | Runtime::Other)) {
        return None;
    }
    let threads: u32 = text.parse().ok()?;
    let usable = case.plan.resources.cpu.usable;
    let most = usable.ceil().max(2.0);
    (f64::from(threads) > most).then(|| {
        Finding::new(
            Warning,
            "threads-above-quota",
            ("env:GOMAXPROCS", text),
            format!(
                "Each worker runs {threads} threads at once, and there is {} for all of them: the quota is used up early in each period, and everybody stands still for the rest.",
                show_cpus(usable)
            ),
            "Leave GOMAXPROCS out: each worker is told its share.",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heaps_are_found_in_every_spelling() {
        let node =
            |text| heaps(text, Runtime::Node).into_iter().map(|(_, heap)| heap).collect::<Vec<_>>();
        assert_eq!(node("--max-old-space-size=4096"), [Heap::Bytes(4096 * MIB)]);
        assert_eq!(node("--x --max_old_space_size 99"), [Heap::Bytes(99 * MIB)]);
        assert_eq!(node("--max-old-space-size-percentage=50"), [Heap::Percent(50.0)]);
        assert_eq!(node("--max-old-space-size"), []);
        assert_eq!(node("--max-old-space-size=99999999999999999999"), []);
        let java =
            |text| heaps(text, Runtime::Jvm).into_iter().map(|(_, heap)| heap).collect::<Vec<_>>();
        assert_eq!(java("-Xmx2g -Xms1g"), [Heap::Bytes(2 << 30)]);
        assert_eq!(java("-XX:MaxRAMPercentage=75"), [Heap::Percent(75.0)]);
        assert_eq!(java("-Xmx"), []);
    }
}
