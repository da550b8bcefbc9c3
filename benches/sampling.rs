//! What measuring costs: the CPU time of a launcher of 100 workers, and how often it wakes up; while they do
//! nothing, and while all of them do something all the time.
//!
//! ```sh
//! cargo bench --bench sampling               # prints the table
//! cargo bench --bench sampling -- --check    # and ends with 1 where a limit is exceeded
//! ```
//!
//! Counted is all that the launcher does: the looks, what the fleet makes of them, and the look at the limits
//! every five seconds. Beside it stands the same launcher with `--adapt off --guard off`, which does none of that.

mod common;

use std::process::{Child, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use common::table::{self, Row};
use common::{LAUNCHER, Nest, end, nobody_left, send};
use nix::sys::signal::Signal;
use procfs::process::Process;

const WORKERS: usize = 100;
/// A start is looked at more closely, and workers are ready after one second.
const SETTLES: Duration = Duration::from_secs(9);
/// A multiple of the launcher's own five seconds.
const MEASURED: Duration = Duration::from_secs(30);

/// The project's own limits: shares of one CPU, and wake-ups in a second.
const IDLE: f64 = 0.001;
const BUSY: f64 = 0.01;
const WAKE_UPS: f64 = 0.5;

fn main() -> anyhow::Result<ExitCode> {
    let nest = Nest::new()?;
    let worker = nest.build("worker", &["-static"])?;
    let mut rows = Vec::new();
    for (what, mode, limit) in [("idle", None, IDLE), ("working", Some("work"), BUSY)] {
        let mut both = Vec::new();
        for looks in ["on", "off"] {
            let mut command = nest.command(LAUNCHER);
            command.args([&format!("--workers={WORKERS}"), "--ready", "spawn"]);
            if looks == "off" {
                command.args(["--adapt", "off", "--guard", "off"]);
            }
            command.arg("--").args([&worker, nest.fifo()]).args(mode);
            let launcher = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
            nest.arrivals(WORKERS)?;
            both.push(Cost::of(launcher)?);
        }
        let [ours, peer] = both.as_slice() else { continue };
        rows.push(Row {
            what: format!("CPU, {WORKERS} {what} workers"),
            ours: format!("{:.3} %", ours.cpu * 100.0),
            peer: format!("off: {:.3} %", peer.cpu * 100.0),
            ratio: None,
            limit: format!("{:.1} %", limit * 100.0),
            kept: Some(ours.cpu <= limit),
        });
        let limited = mode.is_none();
        rows.push(Row {
            what: format!("wake-ups, {WORKERS} {what} workers"),
            ours: format!("{:.2}/s", ours.wake_ups),
            peer: format!("off: {:.2}/s", peer.wake_ups),
            ratio: None,
            limit: if limited { format!("{WAKE_UPS}/s") } else { String::new() },
            kept: limited.then_some(ours.wake_ups <= WAKE_UPS),
        });
    }
    nobody_left()?;
    Ok(table::end(&rows))
}

/// Of one launcher, in each second.
struct Cost {
    cpu: f64,
    wake_ups: f64,
}

impl Cost {
    /// Measures a launcher, and ends it.
    fn of(launcher: Child) -> anyhow::Result<Self> {
        std::thread::sleep(SETTLES);
        let (time, wakes) = used(&launcher)?;
        std::thread::sleep(MEASURED);
        let (time_after, wakes_after) = used(&launcher)?;
        send(&launcher, Signal::SIGTERM)?;
        let status = end(launcher)?;
        ensure!(status.success(), "the launcher ended with {status}");
        let seconds = MEASURED.as_secs_f64();
        let wakes = u32::try_from(wakes_after - wakes)?;
        let cpu = time_after.saturating_sub(time).as_secs_f64() / seconds;
        Ok(Self { cpu, wake_ups: f64::from(wakes) / seconds })
    }
}

/// CPU time of all threads, and how often one of them has gone to sleep.
fn used(launcher: &Child) -> anyhow::Result<(Duration, u64)> {
    let (mut time, mut wakes) = (Duration::ZERO, 0);
    for task in Process::new(launcher.id().cast_signed())?.tasks()? {
        let task = task?;
        // Exact, where stat counts in hundredths of a second.
        time += Duration::from_nanos(task.schedstat()?.sum_exec_runtime);
        let switches = task.status()?.voluntary_ctxt_switches;
        wakes += switches.context("no switches are counted here")?;
    }
    Ok((time, wakes))
}
