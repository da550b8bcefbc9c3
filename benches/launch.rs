//! What starting costs: `--dry-run` beside `nproc`, a fleet of 64 beside a bare `posix_spawn` loop in
//! C, and the private memory of the launcher and its guard.
//!
//! ```sh
//! cargo bench --bench launch               # prints the table
//! cargo bench --bench launch -- --check    # and ends with 1 where a limit is exceeded
//! ```
//!
//! With `THRONG_STATIC_BIN` in the environment the static build that it names is measured too. Runs
//! are paired and their order alternates, so that what else the machine does hits both alike: the
//! ratio is the median of the pairs' ratios, the times are medians.

mod common;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use common::table::{self, Build, Row, compare};
use common::{Nest, PATIENCE, Private, end, nobody_left, send};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;

const FLEET: usize = 64;
const DRY_RUN_PAIRS: usize = 300;
const FLEET_PAIRS: usize = 41;

/// The project's own limits.
const DRY_RUN_LIMIT: f64 = 2.5;
const STATIC_DRY_RUN_LIMIT: f64 = 1.5;
/// KiB of memory that a dry run may have at its peak.
const PEAK_LIMIT: i64 = 4096;
const FLEET_LIMIT: f64 = 2.0;
/// After so long an idle fleet is looked at every five seconds.
const FIRST_LOOKS: Duration = Duration::from_secs(12);
const PRIVATE_LIMIT: u64 = 1536;
/// What is kept of the workers' output, for all together.
const KEPT_OUTPUT: u64 = 512;

fn main() -> anyhow::Result<ExitCode> {
    let nest = Nest::new()?;
    // First of all: what is asked for is the largest of all children so far.
    let peak = std::env::var_os("THRONG_STATIC_BIN").map(|path| peak(&nest, &path)).transpose()?;
    let worker = nest.build("worker", &["-static"])?;
    let bare = nest.build("bare", &[])?;
    let builds = Build::all()?;
    let mut rows: Vec<Row> = peak.into_iter().collect();
    for build in &builds {
        rows.push(dry_run(&nest, build)?);
    }
    for build in &builds {
        rows.push(fleet(&nest, build, &bare, &worker)?);
    }
    let tini = tini(&nest, &worker)?;
    for build in &builds {
        for (mode, what) in [(None, "idle"), (Some("chatter"), "each wrote 100 KiB")] {
            rows.push(memory(&nest, build, &worker, mode, what, tini)?);
        }
    }
    nobody_left()?;
    Ok(table::end(&rows))
}

fn dry_run(nest: &Nest, build: &Build) -> anyhow::Result<Row> {
    let time = |mut command: Command| {
        let start = Instant::now();
        let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
        let took = start.elapsed();
        ensure!(status.success(), "{command:?} ended with {status}");
        Ok(took)
    };
    let ours = || {
        let mut command = nest.command(&build.program);
        command.arg("--dry-run");
        time(command)
    };
    let what = format!("--dry-run, {}", build.name);
    let limit = if build.name == "static" { STATIC_DRY_RUN_LIMIT } else { DRY_RUN_LIMIT };
    compare(what, "nproc", limit, DRY_RUN_PAIRS, ours, || time(nest.command("nproc")))
}

/// The most memory that a dry run has (`ru_maxrss`, which is never below what this process had when
/// it started it).
fn peak(nest: &Nest, program: &OsStr) -> anyhow::Result<Row> {
    let mut command = nest.command(program);
    command.args(["--dry-run", "--", "node", "server.js"]);
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    let most = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    Ok(Row {
        what: "peak memory of --dry-run, static".to_owned(),
        ours: format!("{most} KiB"),
        peer: String::new(),
        ratio: None,
        limit: format!("{PEAK_LIMIT} KiB"),
        kept: Some(most <= PEAK_LIMIT),
    })
}

/// From the start of `command` until `count` workers are up, after which all are stopped.
fn until_up(nest: &Nest, mut command: Command, count: usize) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    nest.arrivals(count)?;
    let took = start.elapsed();
    send(&child, Signal::SIGTERM)?;
    let status = end(child)?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(took)
}

fn fleet(nest: &Nest, build: &Build, bare: &Path, worker: &Path) -> anyhow::Result<Row> {
    let ours = || {
        let mut command = nest.command(&build.program);
        command.arg(format!("--workers={FLEET}")).arg("--").args([worker, nest.fifo()]);
        until_up(nest, command, FLEET)
    };
    let peer = || {
        let mut command = nest.command(bare);
        command.arg(FLEET.to_string()).args([worker, nest.fifo()]);
        until_up(nest, command, FLEET)
    };
    let what = format!("{FLEET} workers up, {}", build.name);
    compare(what, "posix_spawn", FLEET_LIMIT, FLEET_PAIRS, ours, peer)
}

/// tini with one worker, where it is installed.
fn tini(nest: &Nest, worker: &Path) -> anyhow::Result<Option<Private>> {
    let mut command = nest.command("tini");
    // Not PID 1 here, so it wants to be a subreaper.
    command.arg("-s").arg("--").args([worker, nest.fifo()]);
    let Ok(child) = command.spawn() else { return Ok(None) };
    nest.arrivals(1)?;
    let private = Private::of(child.id())?;
    send(&child, Signal::SIGTERM)?;
    // It passes on that its worker ended by TERM.
    end(child)?;
    Ok(Some(private))
}

/// Returns when `child` waits for something to happen; nobody tells that, so it is asked.
fn until_asleep(child: &Child) -> anyhow::Result<()> {
    let process = procfs::process::Process::new(child.id().cast_signed())?;
    let deadline = Instant::now() + PATIENCE;
    while process.stat()?.state != 'S' {
        ensure!(Instant::now() < deadline, "the launcher is still busy after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn memory(
    nest: &Nest,
    build: &Build,
    worker: &Path,
    mode: Option<&str>,
    what: &str,
    tini: Option<Private>,
) -> anyhow::Result<Row> {
    let mut command = nest.command(&build.program);
    command.arg("-v").arg(format!("--workers={FLEET}")).arg("--").args([worker, nest.fifo()]);
    command.args(mode).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let mut lines = BufReader::new(child.stderr.take().context("no standard error")?).lines();
    // The launcher itself says when it has nothing left to wait for.
    let mut ready = 0;
    while ready < FLEET {
        let line = lines.next().context("the launcher has ended")??;
        ready += usize::from(line.ends_with(" is ready"));
    }
    nest.arrivals(FLEET)?;
    // The first looks at what the workers use come sooner than later ones, and keep its code in memory.
    std::thread::sleep(FIRST_LOOKS);
    until_asleep(&child)?;
    let private = Private::of_both(&child)?;
    send(&child, Signal::SIGTERM)?;
    // Its last lines are read, so that it never writes to nobody.
    lines.try_for_each(|line| line.map(drop))?;
    let status = end(child)?;
    ensure!(status.success(), "{command:?} ended with {status}");
    let limit = PRIVATE_LIMIT + mode.map_or(0, |_| KEPT_OUTPUT);
    Ok(Row {
        what: format!("memory with guard, {FLEET} workers {what}, {}", build.name),
        ours: format!("{} KiB ({} + code)", private.total, private.anonymous),
        peer: tini.map_or_else(
            || "no tini here".to_owned(),
            |tini| format!("tini, 1: {} KiB", tini.total),
        ),
        ratio: None,
        limit: format!("{limit} KiB"),
        kept: Some(private.total <= limit),
    })
}
