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
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use common::{LAUNCHER, Nest, PATIENCE, Private, end, nobody_left, send};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;

const FLEET: usize = 64;
const DRY_RUN_PAIRS: usize = 300;
const FLEET_PAIRS: usize = 41;
const WARM_UP: usize = 5;

/// The project's own limits.
const DRY_RUN_LIMIT: f64 = 2.5;
const STATIC_DRY_RUN_LIMIT: f64 = 1.5;
/// KiB of memory that a dry run may have at its peak.
const PEAK_LIMIT: i64 = 4096;
const FLEET_LIMIT: f64 = 2.0;
const PRIVATE_LIMIT: u64 = 1536;

/// One line of the table.
struct Row {
    what: String,
    ours: String,
    peer: String,
    ratio: Option<f64>,
    limit: String,
    /// Nothing where there is no limit.
    kept: Option<bool>,
}

/// A launcher to measure.
struct Build {
    name: &'static str,
    program: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    // Cargo adds `--bench`, which says nothing here.
    let check = std::env::args().any(|arg| arg == "--check");
    let nest = Nest::new()?;
    // First of all: what is asked for is the largest of all children so far.
    let peak = std::env::var_os("THRONG_STATIC_BIN").map(|path| peak(&nest, &path)).transpose()?;
    let worker = nest.build("worker", &["-static"])?;
    let bare = nest.build("bare", &[])?;
    let mut builds = vec![Build { name: "dynamic", program: PathBuf::from(LAUNCHER) }];
    match std::env::var_os("THRONG_STATIC_BIN") {
        None => println!("the static build is not measured: THRONG_STATIC_BIN does not name one"),
        Some(path) => {
            let program = Path::new(&path).canonicalize();
            let program =
                program.with_context(|| format!("no static build at {}", path.display()))?;
            builds.push(Build { name: "static", program });
        }
    }
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
    print(&rows);
    let over = rows.iter().any(|row| row.kept == Some(false));
    Ok(ExitCode::from(u8::from(check && over)))
}

fn print(rows: &[Row]) {
    let line = |what: &str, ours: &str, peer: &str, ratio: &str, limit: &str, kept: &str| {
        println!("{what:<46} {ours:>26} {peer:>18} {ratio:>6} {limit:>9}  {kept}");
    };
    line("what", "ours", "peer", "ratio", "limit", "");
    for row in rows {
        let ratio = row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let kept = row.kept.map_or("", |kept| if kept { "ok" } else { "OVER" });
        line(&row.what, &row.ours, &row.peer, &ratio, &row.limit, kept);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs both `pairs` times, the other one first every second time.
fn compare(
    what: String,
    peer_name: &str,
    limit: f64,
    pairs: usize,
    mut ours: impl FnMut() -> anyhow::Result<Duration>,
    mut peer: impl FnMut() -> anyhow::Result<Duration>,
) -> anyhow::Result<Row> {
    let (mut us, mut them, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..WARM_UP + pairs {
        let (a, b) = if pair.is_multiple_of(2) {
            let a = ours()?;
            (a, peer()?)
        } else {
            let b = peer()?;
            (ours()?, b)
        };
        if pair >= WARM_UP {
            us.push(a.as_secs_f64() * 1e3);
            them.push(b.as_secs_f64() * 1e3);
            ratios.push(a.as_secs_f64() / b.as_secs_f64());
        }
    }
    let ratio = median(ratios);
    Ok(Row {
        what,
        ours: format!("{:.2} ms", median(us)),
        peer: format!("{peer_name} {:.2} ms", median(them)),
        ratio: Some(ratio),
        limit: format!("{limit:.1}"),
        kept: Some(ratio <= limit),
    })
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
    until_asleep(&child)?;
    let private = Private::of_both(&child)?;
    send(&child, Signal::SIGTERM)?;
    // Its last lines are read, so that it never writes to nobody.
    lines.try_for_each(|line| line.map(drop))?;
    let status = end(child)?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(Row {
        what: format!("memory with guard, {FLEET} workers {what}, {}", build.name),
        ours: format!("{} KiB ({} + code)", private.total, private.anonymous),
        peer: tini.map_or_else(
            || "no tini here".to_owned(),
            |tini| format!("tini, 1: {} KiB", tini.total),
        ),
        ratio: None,
        limit: format!("{PRIVATE_LIMIT} KiB"),
        kept: Some(private.total <= PRIVATE_LIMIT),
    })
}
