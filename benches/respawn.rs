//! From a worker's death to its successor's first instruction, beside a bare `waitpid` and
//! `posix_spawn` loop in C.
//!
//! ```sh
//! cargo bench --bench respawn               # prints the table
//! cargo bench --bench respawn -- --check    # and ends with 1 where a limit is exceeded
//! ```
//!
//! With `THRONG_STATIC_BIN` in the environment the static build that it names is measured too. Only a
//! worker that was stable is replaced at once, so many become stable together and are killed one after
//! the other, each in a pair with one of the bare loop; the order of a pair alternates.

mod common;

use std::cell::RefCell;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use common::table::{self, Build, Row, WARM_UP, compare};
use common::{Nest, end, nobody_left, now, send};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PAIRS: usize = 60;
const WORKERS: usize = WARM_UP + PAIRS;
/// The project's own limit.
const LIMIT: f64 = 3.0;
/// A worker is ready after one second and stable five seconds later; nothing tells the second.
const UNTIL_STABLE: Duration = Duration::from_millis(6500);

fn main() -> anyhow::Result<ExitCode> {
    let nest = Nest::new()?;
    let worker = nest.build("worker", &["-static"])?;
    let bare = nest.build("respawn", &[])?;
    let rows: anyhow::Result<Vec<Row>> =
        Build::all()?.iter().map(|build| respawn(&nest, build, &bare, &worker)).collect();
    let rows = rows?;
    nobody_left()?;
    Ok(table::end(&rows))
}

fn respawn(nest: &Nest, build: &Build, bare: &Path, worker: &Path) -> anyhow::Result<Row> {
    let mut command = nest.command(&build.program);
    command.arg(format!("--workers={WORKERS}")).arg("--").args([worker, nest.fifo()]).arg("stamp");
    let ours = Fleet::start(nest, command)?;
    let mut command = nest.command(bare);
    command.arg(WORKERS.to_string()).args([worker, nest.fifo()]).arg("stamp");
    let theirs = Fleet::start(nest, command)?;
    std::thread::sleep(UNTIL_STABLE);
    let what = format!("a stable worker is replaced, {}", build.name);
    let row = compare(
        what,
        "posix_spawn",
        LIMIT,
        PAIRS,
        || ours.kill_one(nest),
        || theirs.kill_one(nest),
    )?;
    ours.stop()?;
    theirs.stop()?;
    Ok(row)
}

/// A supervisor, and those of its workers that have not been killed yet.
struct Fleet {
    supervisor: Child,
    workers: RefCell<Vec<Pid>>,
}

impl Fleet {
    fn start(nest: &Nest, mut command: Command) -> anyhow::Result<Self> {
        let supervisor = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let workers = nest.stamps(WORKERS)?.into_iter().map(|(pid, _)| pid).collect();
        Ok(Self { supervisor, workers: RefCell::new(workers) })
    }

    fn kill_one(&self, nest: &Nest) -> anyhow::Result<Duration> {
        let worker = self.workers.borrow_mut().pop().context("too few workers")?;
        let killed = now()?;
        kill(worker, Signal::SIGKILL)?;
        let stamps = nest.stamps(1)?;
        ensure!(stamps.len() == 1, "more than one worker was started: {stamps:?}");
        stamps[0].1.checked_sub(killed).context("a worker came up before the other was killed")
    }

    fn stop(self) -> anyhow::Result<()> {
        send(&self.supervisor, Signal::SIGTERM)?;
        let status = end(self.supervisor)?;
        ensure!(status.success(), "a supervisor ended with {status}");
        Ok(())
    }
}
