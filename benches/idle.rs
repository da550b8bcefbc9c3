//! What eight workers that do nothing cost: how often the launcher wakes up, and its private memory.
//!
//! ```sh
//! cargo bench --bench idle               # prints the table
//! cargo bench --bench idle -- --check    # and ends with 1 where a limit is exceeded
//! ```
//!
//! With `THRONG_STATIC_BIN` in the environment the static build that it names is measured too. Counted
//! are all threads of the launcher and all of its children that are no workers. Beside it stands tini
//! with one worker, where it is installed.

mod common;

use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use common::table::{self, Build, Row};
use common::{Nest, Private, children_of, end, nobody_left, send};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use procfs::process::Process;

const WORKERS: usize = 8;
/// Nobody says when all is done that follows a start: workers are ready after one second.
const SETTLES: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(20);

/// The project's own limits: wake-ups in a second, and KiB of the static build.
const WAKE_UPS: f64 = 0.5;
const PRIVATE: u64 = 1024;

fn main() -> anyhow::Result<ExitCode> {
    let nest = Nest::new()?;
    let worker = nest.build("worker", &["-static"])?;
    let mut tini = nest.command("tini");
    // Not PID 1 here, so it wants to be a subreaper.
    tini.args(["-s", "--"]).args([&worker, nest.fifo()]);
    let builds = Build::all()?;
    let mut ours = Vec::new();
    for build in &builds {
        let mut command = nest.command(&build.program);
        command.arg(format!("--workers={WORKERS}")).arg("--").args([&worker, nest.fifo()]);
        ours.push(Idle::start(&nest, command, WORKERS)?);
    }
    let peer = Idle::start(&nest, tini, 1).ok();
    std::thread::sleep(SETTLES);
    // All at once: they do not disturb each other, which is what is measured.
    let before =
        ours.iter().chain(&peer).map(Idle::wake_ups).collect::<anyhow::Result<Vec<_>>>()?;
    std::thread::sleep(IDLE);
    let after = ours.iter().chain(&peer).map(Idle::wake_ups).collect::<anyhow::Result<Vec<_>>>()?;
    let rates: Vec<f64> =
        before.iter().zip(&after).map(|(before, after)| rate(after - before)).collect();
    let rows = rows(&builds, &ours, peer.as_ref(), &rates)?;
    for idle in ours {
        let status = idle.stop()?;
        ensure!(status.success(), "the launcher ended with {status}");
    }
    // It passes on that its worker ended by TERM.
    peer.map(Idle::stop).transpose()?;
    nobody_left()?;
    Ok(table::end(&rows))
}

fn rate(wake_ups: u64) -> f64 {
    f64::from(u32::try_from(wake_ups).unwrap_or(u32::MAX)) / IDLE.as_secs_f64()
}

fn rows(
    builds: &[Build],
    ours: &[Idle],
    peer: Option<&Idle>,
    rates: &[f64],
) -> anyhow::Result<Vec<Row>> {
    let none = || "no tini here".to_owned();
    let beside = peer.and(rates.last()).map_or_else(none, |rate| format!("tini, 1: {rate:.2}/s"));
    let mut rows = Vec::new();
    for (build, rate) in builds.iter().zip(rates) {
        rows.push(Row {
            what: format!("wake-ups, {WORKERS} idle workers, {}", build.name),
            ours: format!("{rate:.2}/s"),
            peer: beside.clone(),
            ratio: None,
            limit: format!("{WAKE_UPS}/s"),
            kept: Some(*rate <= WAKE_UPS),
        });
    }
    let peer = peer.map(Idle::private).transpose()?;
    for (build, idle) in builds.iter().zip(ours) {
        let (total, anonymous) = idle.private()?;
        let limited = build.name == "static";
        rows.push(Row {
            what: format!("private memory, {WORKERS} idle workers, {}", build.name),
            ours: format!("{total} KiB ({anonymous} + code)"),
            peer: peer.map_or_else(none, |(total, _)| format!("tini, 1: {total} KiB")),
            ratio: None,
            limit: if limited { format!("{PRIVATE} KiB") } else { String::new() },
            kept: limited.then_some(total <= PRIVATE),
        });
    }
    Ok(rows)
}

/// A launcher with its workers.
struct Idle {
    launcher: Child,
    /// The launcher and its helpers.
    own: Vec<Pid>,
}

impl Idle {
    fn start(nest: &Nest, mut command: Command, workers: usize) -> anyhow::Result<Self> {
        let launcher = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let workers = nest.arrivals(workers)?;
        let pid = Pid::from_raw(launcher.id().cast_signed());
        let mut own = children_of(pid)?;
        own.retain(|child| !workers.contains(child));
        own.push(pid);
        Ok(Self { launcher, own })
    }

    /// So often has a thread of theirs gone to sleep until now; each sleep ends with a wake-up.
    fn wake_ups(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for pid in &self.own {
            for task in Process::new(pid.as_raw())?.tasks()? {
                let status = task?.status()?;
                sum += status.voluntary_ctxt_switches.context("no switches are counted here")?;
            }
        }
        Ok(sum)
    }

    /// KiB in all, and those that were written to.
    fn private(&self) -> anyhow::Result<(u64, u64)> {
        let mut sum = (0, 0);
        for pid in &self.own {
            let private = Private::of(pid.as_raw().cast_unsigned())?;
            sum = (sum.0 + private.total, sum.1 + private.anonymous);
        }
        Ok(sum)
    }

    fn stop(self) -> anyhow::Result<std::process::ExitStatus> {
        send(&self.launcher, Signal::SIGTERM)?;
        end(self.launcher)
    }
}
