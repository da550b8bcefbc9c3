//! The scoreboard as a page.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use serde_json::Value;
use throng_rs::units::{show_number, show_size};

use super::machine::Machine;

/// One machine with what everybody said on it.
pub(crate) struct Row {
    pub(crate) machine: Machine,
    pub(crate) said: Value,
}

/// An answer as it is shown, and whether it is right.
struct Cell {
    text: String,
    right: bool,
}

impl Cell {
    fn show(&self) -> String {
        format!("{}{}", self.text, if self.right { "" } else { " ✗" })
    }
}

impl Row {
    /// Ours, the standard library's, `num_cpus`'.
    fn cpus(&self) -> [Cell; 3] {
        let whole = |name: &str| {
            let said = &self.said[name];
            let right = said.as_f64().is_some_and(|said| self.machine.right_whole(said));
            Cell { text: said.as_str().map_or_else(|| said.to_string(), str::to_owned), right }
        };
        let ours = self.said["ours"]["cpus"].as_f64();
        let ours = Cell {
            text: ours.map_or_else(|| "panics".to_owned(), show_cpus),
            right: ours.is_some_and(|said| self.machine.right_exact(said)),
        };
        [ours, whole("std"), whole("num_cpus")]
    }

    /// Ours, `sysinfo`'s for the system, `sysinfo`'s for the process.
    fn memory(&self) -> [Cell; 3] {
        let cell = |said: &Value| {
            if let Value::String(text) = said {
                return Cell { text: text.clone(), right: false };
            }
            let below = said.as_u64().filter(|bytes| *bytes < self.machine.ram);
            Cell { text: show_memory(below), right: self.machine.right_memory(below) }
        };
        let ours = &self.said["ours"];
        let ours = if ours.is_object() { &ours["memory"] } else { ours };
        [cell(ours), cell(&self.said["sysinfo_system"]), cell(&self.said["sysinfo_process"])]
    }
}

fn show_cpus(cpus: f64) -> String {
    // Two digits would show a hundredth of a hundredth as nothing.
    if cpus < 0.01 { format!("{cpus:.6}") } else { show_number(cpus) }
}

fn show_memory(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "none".to_owned(), show_size)
}

/// The whole page.
pub(crate) struct Page {
    rows: Vec<Row>,
}

impl Page {
    pub(crate) fn new(rows: Vec<Row>) -> Self {
        Self { rows }
    }

    pub(crate) fn render(&self) -> String {
        let mut page = format!(
            include_str!("head.md"),
            machines = self.rows.len(),
            rustc = rustc(),
            num_cpus = version("num_cpus"),
            sysinfo = version("sysinfo"),
        );
        page.push_str("\n| | CPUs right | memory limit right |\n|---|---|---|\n");
        let right = |pick: &dyn Fn(&Row) -> bool| {
            format!("{} of {}", self.rows.iter().filter(|row| pick(row)).count(), self.rows.len())
        };
        for (who, cpus, memory) in [
            ("throng-rs", Some(0), Some(0)),
            ("`std::thread::available_parallelism`", Some(1), None),
            ("`num_cpus::get`", Some(2), None),
            ("`sysinfo::System::cgroup_limits`", None, Some(1)),
            ("`sysinfo::Process::cgroup_limits`", None, Some(2)),
        ] {
            let cpus: Option<usize> = cpus;
            let memory: Option<usize> = memory;
            let cpus = cpus.map(|at| right(&|row| row.cpus()[at].right)).unwrap_or_default();
            let memory = memory.map(|at| right(&|row| row.memory()[at].right)).unwrap_or_default();
            let _ = writeln!(page, "| {who} | {cpus} | {memory} |");
        }
        page.push_str("\n## Each machine\n\n");
        page.push_str("| machine | CPUs | throng-rs | std | num_cpus | memory limit | throng-rs | sysinfo, system | sysinfo, process |\n");
        page.push_str("|---|---|---|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let cells = |cells: [Cell; 3]| cells.map(|cell| cell.show()).join(" | ");
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} |",
                row.machine.name,
                show_cpus(row.machine.cpus),
                cells(row.cpus()),
                show_memory(row.machine.memory),
                cells(row.memory()),
            );
        }
        page
    }
}

/// Where the page differs. Another compiler may have another standard library: then only what is
/// right and what we say is compared.
pub(crate) fn differences(written: &str, now: &str) -> String {
    let same_compiler = written.lines().any(|line| line.contains(&rustc()));
    let lines = |page: &str| -> Vec<String> {
        if same_compiler {
            return page.lines().map(str::to_owned).collect();
        }
        let rows = page.lines().skip_while(|line| *line != "## Each machine").filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let ours: Option<Vec<&str>> =
                [1, 2, 3, 6, 7].into_iter().map(|at| cells.get(at).copied()).collect();
            ours.map(|ours| ours.join(" | "))
        });
        rows.collect()
    };
    let (written, now) = (lines(written), lines(now));
    let mut found = String::new();
    for line in written.iter().filter(|line| !now.contains(line)) {
        let _ = writeln!(found, "- {line}");
    }
    for line in now.iter().filter(|line| !written.contains(line)) {
        let _ = writeln!(found, "+ {line}");
    }
    if found.is_empty() && written != now {
        found.push_str("the lines are the same in another order or number\n");
    }
    found
}

/// `rustc 1.95.0`, without the day it was built.
fn rustc() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(" (").next().unwrap().trim().to_owned()
}

/// What the lock file holds of a package.
fn version(package: &str) -> String {
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    let name = format!("name = \"{package}\"\nversion = \"");
    let rest = lock.split(name.as_str()).nth(1).unwrap();
    rest.split('"').next().unwrap().to_owned()
}
