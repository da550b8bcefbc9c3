//! A million orphans, which end as fast as they can be made, under a launcher that is PID 1: all are
//! reaped, workers that end meanwhile are replaced, and the launcher grows by nothing. It needs root,
//! for a PID namespace.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{LAUNCHER, Nest, PATIENCE, Private, children_of, end, nobody_left};

/// What the allocator's fragments and the pages of its code may add.
const MORE_KIB: u64 = 128;

pub(crate) fn run(nest: &Nest, orphans: usize) -> anyhow::Result<()> {
    let storm = nest.build("orphans", &[])?;
    // Worker 1 makes them once and says when it is over; worker 2 ends by itself again and again.
    let script = format!(
        "case $THRONG_WORKER_ID$THRONG_WORKER_GENERATION in \
         11) echo storm; {} {orphans}; echo over; exec sleep 10000;; \
         2*) echo again; sleep 0.1; exit 1;; *) exec sleep 10000;; esac",
        storm.display()
    );
    let mut command = nest.command("unshare");
    command.args([
        "-pf",
        "--mount-proc",
        "--kill-child",
        LAUNCHER,
        "-q",
        "--max-restarts",
        "100000",
    ]);
    command.args(["--workers", "2", "--", "sh", "-c", &script]).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot run unshare")?;
    let lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
    let start = Instant::now();
    let (mut before, mut again) = (None, 0);
    for line in lines {
        match line?.as_str() {
            "storm" => {
                let launcher = launcher(&child)?;
                before = Some((launcher, Private::of(launcher.as_raw().cast_unsigned())?));
            }
            "again" => again += 1,
            "over" => break,
            _ => {}
        }
    }
    let took = start.elapsed();
    let (launcher, before) = before.context("the workers have not started; is this root?")?;
    let deadline = Instant::now() + PATIENCE;
    while zombies(launcher)? > 0 {
        ensure!(Instant::now() < deadline, "{} zombies are left", zombies(launcher)?);
        std::thread::sleep(Duration::from_millis(1));
    }
    let after = Private::of(launcher.as_raw().cast_unsigned())?;
    kill(launcher, Signal::SIGTERM)?;
    let status = end(child)?;
    ensure!(status.success(), "the launcher ended with {status}");
    nobody_left()?;
    println!(
        "{orphans} orphans in {:.1} s, no zombie left; worker 2 was started {again} times meanwhile; \
         {} KiB of memory written before, {} KiB after",
        took.as_secs_f64(),
        before.anonymous,
        after.anonymous
    );
    ensure!(again > 1 || took < Duration::from_secs(2), "worker 2 was not replaced meanwhile");
    ensure!(after.anonymous <= before.anonymous + MORE_KIB, "memory leaks");
    Ok(())
}

/// The child of `unshare`, PID 1 of its namespace.
fn launcher(unshare: &std::process::Child) -> anyhow::Result<Pid> {
    let children = children_of(Pid::from_raw(unshare.id().cast_signed()))?;
    children.first().copied().context("the launcher has ended")
}

fn zombies(launcher: Pid) -> anyhow::Result<usize> {
    let zombie = |pid: &Pid| {
        let process = procfs::process::Process::new(pid.as_raw());
        process.and_then(|process| process.stat()).is_ok_and(|stat| stat.state == 'Z')
    };
    Ok(children_of(launcher)?.iter().filter(|pid| zombie(pid)).count())
}
