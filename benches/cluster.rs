//! Our cluster primary against Node's own, with the same workers; needs `ab`, `wrk` and Node 24
//! (`tests/beds/fetch-nodes`, or `THRONG_BENCH_NODE`).
//!
//! ```sh
//! cargo bench --bench cluster                    # everything: nine pairs of each, one after the other
//! cargo bench --bench cluster -- kernel 3        # one measure, three pairs
//! cargo bench --bench cluster -- --check         # ends with 1 where a limit is exceeded
//! ```
//!
//! - `kernel`, `round-robin`: requests a second with a new connection for each, by `ab -c64` and by `wrk`.
//! - `alone`: `kernel` beside workers that share the port by themselves, which is what there is to gain.
//! - `keep`: with 64 connections that are kept alive, in both modes.
//! - `start`: until four workers listen.
//! - `memory`: private memory of the launcher while it hands out connections.

#[path = "connections/ab.rs"]
mod ab;
mod common;
#[path = "cluster/fleet.rs"]
mod fleet;
#[path = "cluster/load.rs"]
mod load;

use std::process::ExitCode;
use std::time::Duration;

use ab::Ab;
use anyhow::ensure;
use common::table::{Row, end};
use common::{Nest, Private, nobody_left};
use fleet::{Fleet, Primary};
use load::wrk;

const PAIRS: usize = 9;
const REQUESTS: u64 = 15_000;
const MOST_MEMORY: u64 = 3 << 10;
const SETTLES: Duration = Duration::from_secs(2);

/// A measure: its name, what it is of, and the least ratio.
const RATES: &[(&str, &str, Load, &str, Primary, f64)] = &[
    ("kernel", "new connections, ab", Load::Ab, "kernel", Primary::Nodes, 1.9),
    ("kernel", "new connections, wrk", Load::Wrk, "kernel", Primary::Nodes, 1.9),
    ("alone", "beside no primary, ab", Load::Ab, "kernel", Primary::Nobodys, 0.95),
    ("round-robin", "new connections, ab", Load::Ab, "round-robin", Primary::Nodes, 1.1),
    ("round-robin", "new connections, wrk", Load::Wrk, "round-robin", Primary::Nodes, 1.1),
    ("keep", "kept alive, kernel", Load::Kept, "kernel", Primary::Nodes, 0.95),
    ("keep", "kept alive, round-robin", Load::Kept, "round-robin", Primary::Nodes, 0.95),
];

#[derive(Clone, Copy, Debug)]
enum Load {
    Ab,
    Wrk,
    Kept,
}

impl Load {
    fn rate(self, fleet: &Fleet) -> anyhow::Result<f64> {
        match self {
            Self::Ab => {
                let outcome = Ab::start(fleet.address, REQUESTS)?.end()?;
                ensure!(
                    outcome.failed == 0,
                    "{} of {} requests failed",
                    outcome.failed,
                    outcome.complete
                );
                Ok(outcome.rate)
            }
            Self::Wrk => wrk(fleet.address, true),
            Self::Kept => wrk(fleet.address, false),
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let pairs = words.iter().find_map(|word| word.parse().ok()).unwrap_or(PAIRS);
    let known = ["kernel", "alone", "round-robin", "keep", "start", "memory"];
    let named: Vec<_> = words.iter().filter(|word| word.parse::<usize>().is_err()).collect();
    for word in &named {
        ensure!(known.contains(&word.as_str()), "{word} is none of {}", known.join(", "));
    }
    let chosen = |name: &str| named.is_empty() || named.iter().any(|word| *word == name);
    let nest = Nest::new()?;
    let mut rows = Vec::new();
    for (name, what, load, balance, peer, limit) in RATES {
        if chosen(name) {
            rows.push(rates(&nest, pairs, what, *load, balance, *peer, *limit)?);
            nobody_left()?;
        }
    }
    if chosen("start") {
        rows.push(start(&nest, pairs)?);
        nobody_left()?;
    }
    if chosen("memory") {
        for balance in ["kernel", "round-robin"] {
            rows.push(memory(&nest, balance)?);
            nobody_left()?;
        }
    }
    Ok(end(&rows))
}

fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Both run all the time, and get the load in turn, each first every other time.
fn rates(
    nest: &Nest,
    pairs: usize,
    what: &str,
    load: Load,
    balance: &'static str,
    peer: Primary,
    limit: f64,
) -> anyhow::Result<Row> {
    let ours = Fleet::start(nest, Primary::Ours(balance))?;
    let node = Fleet::start(nest, peer)?;
    // What is compiled at its first use has been.
    load.rate(&ours)?;
    load.rate(&node)?;
    let (mut mine, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..pairs {
        let (one, other);
        if pair % 2 == 0 {
            one = load.rate(&ours)?;
            other = load.rate(&node)?;
        } else {
            other = load.rate(&node)?;
            one = load.rate(&ours)?;
        }
        mine.push(one);
        theirs.push(other);
        ratios.push(one / other);
    }
    ours.stop()?;
    node.stop()?;
    let ratio = median(&mut ratios);
    Ok(Row {
        what: format!("{balance}: {what}"),
        ours: format!("{:.0}/s", median(&mut mine)),
        peer: format!("{:.0}/s", median(&mut theirs)),
        ratio: Some(ratio),
        limit: format!(">= {limit}"),
        kept: Some(ratio >= limit),
    })
}

/// From the start of the primary until the last of four workers listens.
fn start(nest: &Nest, pairs: usize) -> anyhow::Result<Row> {
    let (mut mine, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=pairs {
        let mut times = [0.0, 0.0];
        for turn in 0..2 {
            let index = (pair + turn) % 2;
            let primary = [Primary::Ours("kernel"), Primary::Nodes][index];
            let fleet = Fleet::start(nest, primary)?;
            times[index] = fleet.took.as_secs_f64() * 1000.0;
            fleet.stop()?;
        }
        // The first pair finds no file in the page cache.
        if pair > 0 {
            mine.push(times[0]);
            theirs.push(times[1]);
            ratios.push(times[0] / times[1]);
        }
    }
    let ratio = median(&mut ratios);
    Ok(Row {
        what: "until four workers listen".to_owned(),
        ours: format!("{:.0} ms", median(&mut mine)),
        peer: format!("{:.0} ms", median(&mut theirs)),
        ratio: Some(ratio),
        limit: "<= 0.75".to_owned(),
        kept: Some(ratio <= 0.75),
    })
}

/// The most that the launcher has for itself while connections come.
fn memory(nest: &Nest, balance: &'static str) -> anyhow::Result<Row> {
    let fleet = Fleet::start(nest, Primary::Ours(balance))?;
    // The start's own pages are given back once all serve.
    std::thread::sleep(SETTLES);
    let load = Ab::start(fleet.address, 4 * REQUESTS)?;
    let load = std::thread::spawn(move || load.end());
    let mut most = 0;
    while !load.is_finished() {
        most = most.max(Private::of(fleet.pid())?.total);
        std::thread::sleep(Duration::from_millis(20));
    }
    let outcome = load.join().map_err(|_| anyhow::anyhow!("the load has failed"))??;
    ensure!(outcome.failed == 0, "{} of {} requests failed", outcome.failed, outcome.complete);
    fleet.stop()?;
    Ok(Row {
        what: format!("{balance}: private memory under load"),
        ours: format!("{most} KiB"),
        peer: String::new(),
        ratio: None,
        limit: format!("< {MOST_MEMORY}"),
        kept: Some(most < MOST_MEMORY),
    })
}
