//! A worker that leaks, in a box of 256 MiB, under load: with the guard nobody is killed for memory and no request
//! fails; without it, this is what would have happened.
//!
//! ```sh
//! cargo bench --bench leak                  # five minutes with the guard, one without, for each way of sharing
//! cargo bench --bench leak -- --seconds 60  # shorter
//! cargo bench --bench leak -- --check       # ends with 1 where a limit is exceeded
//! ```
//!
//! Worker 1 of two leaks 5 MB a second, whatever it is asked; the other one does not. The clients are outside of the
//! box. It needs root and cgroups that can be made; nothing but loopback is used.

#[path = "sizing/boxes.rs"]
#[allow(dead_code, reason = "the sizes are those of the other benchmark")]
mod boxes;
mod common;
#[path = "sizing/fleet.rs"]
#[allow(dead_code, reason = "it is shared")]
mod fleet;
#[path = "sizing/kinds.rs"]
#[allow(dead_code, reason = "it is shared")]
mod kinds;
#[path = "sizing/load.rs"]
#[allow(dead_code, reason = "it is shared")]
mod load;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use boxes::{Group, Size};
use common::table::{self, Row};
use common::{Nest, nobody_left};
use fleet::{Fleet, patience};
use kinds::{Kind, LEAKING};
use load::Load;

const SIZE: Size = Size { name: "256M-1.0", memory: 256, cpus: 1.0, quick: true };
/// With the guard; without it a part of that shows enough.
const LONG: Duration = Duration::from_mins(5);
const SHORT: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(500);

#[expect(clippy::unnecessary_wraps, reason = "the other benchmark can be interrupted there")]
fn rest(time: Duration) -> anyhow::Result<()> {
    std::thread::sleep(time);
    Ok(())
}

fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().collect();
    let seconds = words.iter().position(|word| word == "--seconds");
    let seconds = seconds.and_then(|at| words.get(at + 1)).map(|word| word.parse());
    let long = seconds.transpose().context("--seconds wants a number")?;
    let long = long.map_or(LONG, Duration::from_secs);
    let nest = Nest::new()?;
    let mut rows = Vec::new();
    for kind in LEAKING {
        let with = run(&nest, kind, &[], long)?;
        rows.push(with.row("requests failed, guard on", with.failed, "0", with.failed == 0));
        rows.push(with.row("killed for memory, guard on", with.kills, "0", with.kills == 0));
        // A leak that would do no harm shows nothing.
        let without = run(&nest, kind, &["--guard", "off"], long.min(SHORT))?;
        rows.push(without.row("requests failed, guard off", without.failed, "", true));
        let harm = without.kills > 0;
        rows.push(without.row("killed for memory, guard off", without.kills, "some", harm));
    }
    Ok(table::end(&rows))
}

/// What came of it.
struct Outcome {
    kind: &'static str,
    time: Duration,
    answered: u64,
    failed: u64,
    kills: u64,
    /// How many of worker 1 there were.
    generations: u64,
    /// The least share of the limit that was free.
    free: f64,
}

impl Outcome {
    fn row(&self, what: &str, count: u64, limit: &str, kept: bool) -> Row {
        let Self { kind, time, answered, generations, free, .. } = self;
        println!(
            "{kind}, {what}: {} s, worker 1 was started {generations} times, {:.0} % free at least",
            time.as_secs(),
            free * 100.0
        );
        Row {
            what: format!("{kind}: {what}"),
            ours: count.to_string(),
            peer: format!("of {answered}"),
            ratio: None,
            limit: limit.to_owned(),
            kept: Some(kept),
        }
    }
}

fn run(nest: &Nest, kind: &Kind, options: &[&str], time: Duration) -> anyhow::Result<Outcome> {
    let group = Group::new(&SIZE)?;
    let watch = group.watch();
    let options = [&["--workers", "2"], options].concat();
    let fleet = Fleet::start(nest, &group, kind, &options)?;
    ensure!(fleet.settle(patience(2))?, "{}: the workers do not come up", kind.name);
    let load = Load::start(fleet.address)?;
    let (begin, mut generations) = (Instant::now(), 0);
    while begin.elapsed() < time {
        if let Ok(status) = fleet.status() {
            let workers = status["workers"].as_array().cloned().unwrap_or_default();
            let first = workers.iter().filter(|worker| worker["id"] == 1);
            let newest = first.filter_map(|worker| worker["generation"].as_u64()).max();
            generations = generations.max(newest.unwrap_or_default());
        }
        rest(LOOK)?;
    }
    let (answered, failed, free) = (load.answered(), load.failed(), watch.end()?);
    let kills = group.kills()?;
    // Those that are under way are answered before the workers go.
    drop(load);
    fleet.stop()?;
    drop(group);
    nobody_left()?;
    Ok(Outcome { kind: kind.name, time, answered, failed, kills, generations, free })
}
