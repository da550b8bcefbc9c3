//! What is measured.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ab::{AT_ONCE, Ab, Outcome};
use crate::common::Nest;
use crate::common::table::Row;
use crate::fleet::{Fleet, Mode};
use crate::keep::Kept;

const REQUESTS: u64 = 200_000;
const RELOADS: u64 = 10;
const WORKERS: u32 = 4;
/// Enough for the one that is killed each second to have served for five: what dies sooner waits before it
/// is started again, longer each time.
const MANY: u32 = 8;
const SECONDS: u64 = 20;
/// Points of a hundred.
const MOST_UNEVEN: f64 = 2.0;

fn row(mode: &Mode, what: &str, ours: String, limit: &str, kept: bool) -> Row {
    let (what, peer) = (format!("{}: {what}", mode.name), String::new());
    Row { what, ours, peer, ratio: None, limit: limit.to_owned(), kept: Some(kept) }
}

/// New connections, and all workers are replaced again and again.
pub(crate) fn reload(nest: &Nest, mode: &Mode, requests: Option<u64>) -> anyhow::Result<Row> {
    let fleet = Fleet::start(nest, mode, WORKERS)?;
    let requests = requests.unwrap_or(REQUESTS);
    let mut all = Outcome::default();
    let mut reloads = 0;
    // Until both are done: no reload without load.
    while reloads < RELOADS || all.complete < requests {
        let ab = Ab::start(fleet.address, requests.div_ceil(RELOADS))?;
        if reloads < RELOADS {
            fleet.ask(&["reload"])?;
            reloads += 1;
        }
        add(&mut all, ab.end()?);
    }
    fleet.stop()?;
    let ours = format!("{} of {} failed, {reloads} reloads", all.failed, all.complete);
    Ok(row(mode, "new connections", ours, "0 failed", all.failed == 0))
}

fn add(all: &mut Outcome, one: Outcome) {
    all.complete += one.complete;
    all.failed += one.failed;
    all.rate = one.rate;
}

/// Connections that stay.
pub(crate) fn keep_alive(nest: &Nest, mode: &Mode, requests: Option<u64>) -> anyhow::Result<Row> {
    let fleet = Fleet::start(nest, mode, WORKERS)?;
    let requests = requests.unwrap_or(REQUESTS);
    let kept = Kept::default();
    let outcome = thread::scope(|scope| {
        kept.start(scope, AT_ONCE, fleet.address);
        let answered = || kept.answered.load(Ordering::Relaxed);
        let mut reloads = 0;
        let outcome = loop {
            let due = requests / RELOADS * reloads;
            if reloads < RELOADS && answered() >= due {
                if let Err(error) = fleet.ask(&["reload"]) {
                    break Err(error);
                }
                reloads += 1;
            } else if answered() >= requests || kept.failed.load(Ordering::Relaxed) > requests {
                break Ok(reloads);
            }
            thread::sleep(Duration::from_millis(10));
        };
        kept.stop.store(true, Ordering::Relaxed);
        outcome
    });
    let reloads = outcome?;
    fleet.stop()?;
    let (answered, again, failed) =
        (kept.answered.into_inner(), kept.again.into_inner(), kept.failed.into_inner());
    let ours =
        format!("{failed} of {} failed, {again} sent again, {reloads} reloads", answered + failed);
    Ok(row(mode, "kept alive", ours, "0 failed", failed == 0))
}

/// The worker that has lived longest is killed each second.
pub(crate) fn kill_one_a_second(
    nest: &Nest,
    mode: &Mode,
    seconds: Option<u64>,
) -> anyhow::Result<Row> {
    let fleet = Fleet::start(nest, mode, MANY)?;
    let seconds = seconds.filter(|seconds| *seconds <= 600).unwrap_or(SECONDS);
    let mut all = Outcome::default();
    let mut killed = BTreeSet::new();
    let address = fleet.address;
    let load = thread::scope(|scope| {
        let load = scope.spawn(move || -> anyhow::Result<Outcome> {
            let mut all = Outcome::default();
            let begin = std::time::Instant::now();
            while begin.elapsed() < Duration::from_secs(seconds) {
                add(&mut all, Ab::start(address, 10_000)?.end()?);
            }
            Ok(all)
        });
        while !load.is_finished() {
            thread::sleep(Duration::from_secs(1));
            let workers = fleet.workers()?;
            let oldest = workers.iter().max_by(|one, other| one.1.total_cmp(other.1));
            let (pid, _) = oldest.context("no worker is left")?;
            kill(Pid::from_raw(*pid), Signal::SIGKILL)?;
            killed.insert(*pid);
        }
        load.join().map_err(|_| anyhow::anyhow!("the load has failed"))?
    })?;
    add(&mut all, load);
    // Bytes that wait in a worker's queue are lost with it too, and only the proxy knows of them.
    let carried = mode.name == "proxy";
    let (what, limit) = if carried {
        ("lost by its count", "no more than had been handed over")
    } else {
        ("open", "no more than they had accepted")
    };
    let counts = fleet.counts()?;
    let dead = counts.iter().filter(|one| killed.contains(&one.pid));
    let had: u64 =
        if carried { fleet.lost()? } else { dead.map(|one| one.accepted - one.over).sum() };
    fleet.stop()?;
    let ours = format!(
        "{} of {} failed, {} workers killed, which had {had} {what}",
        all.failed,
        all.complete,
        killed.len()
    );
    Ok(row(mode, "KILL each second", ours, limit, all.failed <= had))
}

/// How many connections each worker gets.
pub(crate) fn shares(nest: &Nest, mode: &Mode, requests: Option<u64>) -> anyhow::Result<Row> {
    let fleet = Fleet::start(nest, mode, WORKERS)?;
    let requests = requests.unwrap_or(REQUESTS);
    let outcome = Ab::start(fleet.address, requests)?.end()?;
    let mut by_slot = BTreeMap::<u32, u32>::new();
    for one in fleet.counts()? {
        *by_slot.entry(one.slot).or_default() += u32::try_from(one.accepted)?;
    }
    fleet.stop()?;
    ensure!(by_slot.len() == WORKERS as usize, "not all workers took part: {by_slot:?}");
    let all: u32 = by_slot.values().sum();
    let share = |count: &u32| 100.0 * f64::from(*count) / f64::from(all);
    let even = 100.0 / f64::from(WORKERS);
    let shares: Vec<String> =
        by_slot.values().map(|count| format!("{:.2} %", share(count))).collect();
    let most = by_slot.values().map(|count| (share(count) - even).abs()).fold(0.0, f64::max);
    let ours = format!(
        "{} of {}, {:.0}/s, {} failed",
        shares.join(" "),
        outcome.complete,
        outcome.rate,
        outcome.failed
    );
    let limit = format!("within {MOST_UNEVEN} points");
    let kept = most <= MOST_UNEVEN && outcome.failed == 0;
    Ok(row(mode, "shares", ours, &limit, kept))
}
