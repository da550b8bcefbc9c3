//! A thousand starts and stops leave nothing, in a row and all at once: no orphan, no zombie, no descriptor.
//!
//! ```sh
//! cargo bench --bench churn            # 1,000 of each
//! cargo bench --bench churn -- 50
//! cargo bench --bench churn -- orphans            # a million orphans under PID 1; needs root
//! cargo bench --bench churn -- orphans 50000
//! ```
//!
//! First as many launchers, one after the other, each with a small fleet that makes it hard: an orphan
//! in a session of its own and a child that outlives its parent in the same group. This process is a
//! subreaper, so whatever a launcher left would be our child. Then as many workers of one launcher
//! come and go by TTIN and TTOU, and it has what it had before. Then as many workers of one launcher start together and stop together,
//! beside a bare `posix_spawn` loop in C. Ends with 1 where something is left.

mod common;
#[path = "common/orphans.rs"]
mod orphans;

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use common::{LAUNCHER, Nest, Private, children_of, end, me, nobody_left, send};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEFAULT_ROUNDS: usize = 1000;
const DEFAULT_ORPHANS: usize = 1_000_000;
/// The fleet, and the processes that it becomes: see `worker.c`.
const WORKERS: usize = 3;
const PROCESSES: usize = 5;
/// What the fourth worker adds: itself and its child.
const MORE_PROCESSES: usize = 2;
/// Rounds before the first measurement, in which buffers grow to their size.
const WARM_UP: usize = 400;
/// An output pipe pair of a worker that has just gone is closed at the next start.
const MORE_DESCRIPTORS: usize = 2;
/// What the allocator's fragments may add; 20,000 rounds add no more than 1,000.
const MORE_KIB: u64 = 128;
/// How often the status is asked for, and how long it may take with a thousand workers.
const ASKS: usize = 9;
const STATUS_LIMIT: Duration = Duration::from_millis(50);

fn main() -> anyhow::Result<()> {
    let given = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let nest = Nest::new()?;
    if std::env::args().any(|arg| arg == "orphans") {
        return orphans::run(&nest, given.unwrap_or(DEFAULT_ORPHANS));
    }
    let rounds = given.unwrap_or(DEFAULT_ROUNDS);
    let worker = nest.build("worker", &["-static"])?;
    launchers(&nest, &worker, rounds)?;
    workers(&nest, &worker, rounds)?;
    nobody_left()?;
    let bare = nest.build("bare", &[])?;
    let socket = nest.fifo().with_file_name("control");
    let mut command = nest.command(LAUNCHER);
    command.arg(format!("--workers={rounds}")).arg("--control").arg(&socket);
    command.arg("--").args([&worker, nest.fifo()]);
    together(&nest, "one launcher", command, rounds, Some(&socket))?;
    let mut command = nest.command(bare);
    command.arg(rounds.to_string()).args([&worker, nest.fifo()]);
    together(&nest, "a bare posix_spawn loop", command, rounds, None)
}

/// So many at once; asked how they are where they have a control socket.
fn together(
    nest: &Nest,
    whose: &str,
    mut command: Command,
    count: usize,
    control: Option<&Path>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let child = command.spawn()?;
    let up = nest.arrivals(count)?;
    let started = start.elapsed();
    let told = control.map(|socket| status(socket, count)).transpose();
    let start = Instant::now();
    send(&child, Signal::SIGTERM)?;
    let status = end(child)?;
    let stopped = start.elapsed();
    ensure!(status.success(), "{whose} ended with {status}");
    nobody_left()?;
    ensure!(up.len() == count, "{} workers came up instead of {count}", up.len());
    for pid in up {
        ensure!(kill(pid, None) == Err(Errno::ESRCH), "pid {pid} is still there");
    }
    println!(
        "{count} workers of {whose} together: up in {:.2} s, stopped in {:.2} s: status 0, no process left",
        started.as_secs_f64(),
        stopped.as_secs_f64()
    );
    if let Some(took) = told? {
        println!("  status of all of them, median of {ASKS}: {:.1} ms", took.as_secs_f64() * 1e3);
        ensure!(took < STATUS_LIMIT, "the limit is {STATUS_LIMIT:?}");
    }
    Ok(())
}

/// How long the launcher takes to say how all of its workers are.
fn status(socket: &Path, count: usize) -> anyhow::Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..ASKS {
        let start = Instant::now();
        let mut stream = UnixStream::connect(socket)?;
        write!(stream, "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        took.push(start.elapsed());
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status: serde_json::Value = serde_json::from_str(body)?;
        let workers = status["workers"].as_array().context("no workers")?;
        let measured = |worker: &&serde_json::Value| worker["memory"]["private_bytes"] != 0;
        ensure!(workers.iter().filter(measured).count() == count, "not every worker is told of");
    }
    took.sort();
    Ok(took[ASKS / 2])
}

/// Launchers that come and go.
fn launchers(nest: &Nest, worker: &Path, rounds: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut before = 0;
    for round in 0..rounds {
        launcher(nest, worker, round).with_context(|| format!("round {round} of launchers"))?;
        if round == 0 {
            before = descriptors(me())?;
        }
    }
    let after = descriptors(me())?;
    ensure!(after == before, "we had {before} descriptors open and have {after}");
    println!(
        "{rounds} launchers with {WORKERS} workers, a child and an orphan ({PROCESSES} processes) started and \
         stopped in {:.1} s: every status 0, no process left, {after} descriptors here as before",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// One start and stop; every fourth is told to stop while it is still starting.
fn launcher(nest: &Nest, worker: &Path, round: usize) -> anyhow::Result<()> {
    let mut command = nest.command(LAUNCHER);
    command.arg(format!("--workers={WORKERS}")).arg("--").args([worker, nest.fifo()]);
    let child = command.arg("family").spawn()?;
    let early = round % 4 == 3;
    let up = nest.arrivals(if early { 1 } else { PROCESSES })?;
    send(&child, if round.is_multiple_of(2) { Signal::SIGTERM } else { Signal::SIGINT })?;
    let status = end(child)?;
    // Those that told it after the signal must not be counted for the next round.
    let up = [up, nest.arrivals(0)?].concat();
    ensure!(status.success(), "the launcher ended with {status}");
    nobody_left()?;
    for pid in up {
        ensure!(kill(pid, None) == Err(Errno::ESRCH), "pid {pid} is still there");
    }
    Ok(())
}

/// Workers of one launcher that come and go.
fn workers(nest: &Nest, worker: &Path, rounds: usize) -> anyhow::Result<()> {
    let mut command = nest.command(LAUNCHER);
    command.arg("-v").arg(format!("--workers={WORKERS}")).arg("--").args([worker, nest.fifo()]);
    let mut child = command.arg("family").stderr(Stdio::piped()).spawn()?;
    let log = BufReader::new(child.stderr.take().context("no standard error")?);
    let mut log = log.lines();
    nest.arrivals(PROCESSES)?;
    for _ in 0..WARM_UP {
        more(nest, &child)?;
        fewer(&child, &mut log)?;
    }
    // A worker starts when the one before has gone with its group, so after a start all is settled.
    more(nest, &child)?;
    let before = State::of(&child)?;
    let start = Instant::now();
    for _ in 0..rounds {
        fewer(&child, &mut log)?;
        more(nest, &child)?;
    }
    let took = start.elapsed();
    let after = State::of(&child)?;
    send(&child, Signal::SIGTERM)?;
    log.try_for_each(|line| line.map(drop))?;
    let status = end(child)?;
    ensure!(status.success(), "the launcher ended with {status}");
    nobody_left()?;
    println!(
        "{rounds} workers of one launcher started and stopped in {:.1} s\n  before: {before}\n  after:  {after}",
        took.as_secs_f64()
    );
    ensure!(before.zombies + after.zombies == 0, "zombies");
    ensure!(after.children == before.children, "its children are not as before");
    ensure!(after.descriptors <= before.descriptors + MORE_DESCRIPTORS, "descriptors leak");
    ensure!(after.private.anonymous <= before.private.anonymous + MORE_KIB, "memory leaks");
    Ok(())
}

fn more(nest: &Nest, launcher: &Child) -> anyhow::Result<()> {
    send(launcher, Signal::SIGTTIN)?;
    nest.arrivals(MORE_PROCESSES).map(drop)
}

fn fewer(launcher: &Child, log: &mut Lines<BufReader<ChildStderr>>) -> anyhow::Result<()> {
    send(launcher, Signal::SIGTTOU)?;
    loop {
        let line = log.next().context("the launcher has ended")??;
        if line.contains(" ended with ") {
            return Ok(());
        }
    }
}

fn descriptors(pid: Pid) -> anyhow::Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(std::fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?.count())
}

/// What a launcher holds.
struct State {
    descriptors: usize,
    private: Private,
    children: usize,
    zombies: usize,
}

impl State {
    fn of(launcher: &Child) -> anyhow::Result<Self> {
        let pid = Pid::from_raw(launcher.id().cast_signed());
        let children = children_of(pid)?;
        let zombie = |pid: &&Pid| {
            let process = procfs::process::Process::new(pid.as_raw());
            process.and_then(|process| process.stat()).is_ok_and(|stat| stat.state == 'Z')
        };
        Ok(Self {
            descriptors: descriptors(pid)?,
            private: Private::of_both(launcher)?,
            children: children.len(),
            zombies: children.iter().filter(zombie).count(),
        })
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { descriptors, private, children, zombies } = self;
        write!(
            f,
            "{descriptors} descriptors, {} KiB private ({} of it written), {children} children, {zombies} of them zombies",
            private.total, private.anonymous
        )
    }
}
