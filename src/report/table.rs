//! Tables of "what if": a grid of memory by CPU, and a list of dynos; as text, CSV and JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::plan::{Bound, Comparison, Plan};
use crate::units::{show_number, show_size};

/// What fits in one imagined machine.
pub(crate) struct Entry {
    /// The dyno, where it is one.
    pub(crate) dyno: Option<&'static str>,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) cpus: f64,
    pub(crate) runtime: &'static str,
    pub(crate) plan: Plan,
    /// What a buildpack recommends there.
    pub(crate) theirs: Option<Comparison>,
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    dyno: Option<&'a str>,
    memory_bytes: u64,
    cpus: f64,
    runtime: &'a str,
    workers: u32,
    bound_by: Bound,
    fits: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    buildpack: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buildpack_workers: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buildpack_because: Option<&'a [String]>,
}

#[derive(Serialize)]
struct Table<'a> {
    schema: u32,
    rows: Vec<Row<'a>>,
}

/// Indented JSON with a newline at its end.
pub(crate) fn json(entries: &[Entry]) -> String {
    let row = |entry| {
        let entry: &Entry = entry;
        let theirs = entry.theirs.as_ref();
        Row {
            dyno: entry.dyno,
            memory_bytes: entry.memory,
            cpus: entry.cpus,
            runtime: entry.runtime,
            workers: entry.plan.workers,
            bound_by: entry.plan.bound_by,
            fits: entry.plan.shortage.is_none(),
            buildpack: theirs.map(|theirs| theirs.buildpack),
            buildpack_workers: theirs.map(|theirs| theirs.workers),
            buildpack_because: theirs.map(|theirs| theirs.because.as_slice()),
        }
    };
    let table = Table { schema: 1, rows: entries.iter().map(row).collect() };
    // Only a map with keys that are no strings could fail, and there is none.
    let mut text = serde_json::to_string_pretty(&table).unwrap_or_default();
    text.push('\n');
    text
}

/// A header and one line for each entry; no field holds a comma or a quote.
pub(crate) fn csv(entries: &[Entry]) -> String {
    let dynos = entries.iter().any(|entry| entry.dyno.is_some());
    let mut out = String::new();
    if dynos {
        out.push_str("dyno,");
    }
    out.push_str("memory_bytes,cpus,runtime,workers,bound_by,fits");
    out.push_str(if dynos { ",buildpack,buildpack_workers\n" } else { "\n" });
    for entry in entries {
        let Entry { memory, cpus, runtime, plan, .. } = entry;
        if dynos {
            let _ = write!(out, "{},", entry.dyno.unwrap_or_default());
        }
        let (workers, bound, fits) = (plan.workers, plan.bound_by.name(), plan.shortage.is_none());
        let _ = write!(out, "{memory},{cpus},{runtime},{workers},{bound},{fits}");
        if dynos {
            let theirs = entry.theirs.as_ref();
            let _ = match theirs {
                Some(theirs) => write!(out, ",{},{}", theirs.buildpack, theirs.workers),
                None => write!(out, ",,"),
            };
        }
        out.push('\n');
    }
    out
}

/// Memory downwards, CPUs across.
pub(crate) fn grid(entries: &[Entry], subject: &str, cost: &str) -> String {
    let mut out = format!("How many workers{subject} fit, by memory and CPUs\n{cost}\n\n");
    let mut cpus: Vec<f64> = Vec::new();
    let mut sizes: Vec<u64> = Vec::new();
    for entry in entries {
        if !cpus.contains(&entry.cpus) {
            cpus.push(entry.cpus);
        }
        if !sizes.contains(&entry.memory) {
            sizes.push(entry.memory);
        }
    }
    let left = sizes.iter().map(|bytes| show_size(*bytes).len()).max().unwrap_or(0);
    let _ = write!(out, "  {:left$}", "");
    for each in &cpus {
        let _ = write!(out, " {:>6} ", show_number(*each));
    }
    out.push_str("CPUs\n");
    for size in &sizes {
        let _ = write!(out, "  {:>left$}", show_size(*size));
        for each in &cpus {
            let found = entries
                .iter()
                .find(|entry| entry.memory == *size && entry.cpus.total_cmp(each).is_eq());
            let (number, mark) = found.map_or((0, ' '), |e| (e.plan.workers, mark(&e.plan)));
            let _ = write!(out, " {number:>6}{mark}");
        }
        // The last column's mark may be a space.
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out.push('\n');
    out.push_str(&legend(entries));
    out
}

/// One line for each dyno, with a buildpack's number where there is one.
pub(crate) fn dynos(entries: &[Entry], subject: &str, cost: &str) -> String {
    let buildpack = entries.iter().find_map(|entry| entry.theirs.as_ref()).map(|c| c.buildpack);
    let mut out = format!("How many workers{subject} fit in Heroku's dynos\n{cost}\n\n");
    let left = entries.iter().filter_map(|entry| entry.dyno).map(str::len).max().unwrap_or(0);
    let _ = write!(out, "  {:left$}  {:>8}  {:>4}  throng-rs", "dyno", "memory", "CPUs");
    let _ = writeln!(out, "{}", buildpack.map(|name| format!("  {name}")).unwrap_or_default());
    for entry in entries {
        let (memory, cpus) = (show_size(entry.memory), show_number(entry.cpus));
        let dyno = entry.dyno.unwrap_or_default();
        let (number, mark) = (entry.plan.workers, mark(&entry.plan));
        let _ = write!(out, "  {dyno:left$}  {memory:>8}  {cpus:>4}  {number:>8}{mark}");
        if let (Some(theirs), Some(name)) = (&entry.theirs, buildpack) {
            let _ = write!(out, "  {:>width$}", theirs.workers, width = name.len());
            if !theirs.because.is_empty() {
                let _ = write!(out, "  {}", theirs.because.join("; "));
            }
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out.push('\n');
    out.push_str(&legend(entries));
    out
}

/// What kept a number from being larger, as one sign.
fn mark(plan: &Plan) -> char {
    match plan.bound_by {
        _ if plan.shortage.is_some() => '!',
        Bound::Memory => 'm',
        Bound::Cpu => 'c',
        Bound::Tasks => 't',
        Bound::MaxWorkers => '<',
        Bound::MinWorkers => '>',
        Bound::Explicit => '=',
    }
}

/// The signs that occur.
fn legend(entries: &[Entry]) -> String {
    let all = [
        ('m', "bound by memory"),
        ('c', "bound by CPU"),
        ('t', "bound by the task limit"),
        ('<', "bound by --max-workers"),
        ('>', "raised by --min-workers"),
        ('=', "as told"),
        ('!', "not even one fits"),
    ];
    let shown = all.iter().filter(|(sign, _)| entries.iter().any(|e| mark(&e.plan) == *sign));
    let words: Vec<_> = shown.map(|(sign, words)| format!("{sign} {words}")).collect();
    format!("{}\n", words.join(", "))
}
