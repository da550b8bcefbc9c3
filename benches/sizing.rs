//! How good the number of workers is: regret against the best that brute force finds, ours and others'.
//!
//! ```sh
//! cargo bench --bench sizing                          # everything: two hours
//! cargo bench --bench sizing -- --quick               # two boxes, four loads, one run of each
//! cargo bench --bench sizing -- --brute               # the curves and the rules of others alone
//! cargo bench --bench sizing -- --ours                # ours alone, beside the curves that are there
//! cargo bench --bench sizing -- --ours --way adapt    # without the calibrations
//! cargo bench --bench sizing -- --runs 1              # one run of each way of ours, and not three
//! cargo bench --bench sizing -- --only sync-wait --size 256M-0.5
//! cargo bench --bench sizing -- --check               # ends with 1 where a limit is exceeded
//! ```
//!
//! Real servers, one process a worker, in real cgroups of four sizes; the clients are outside. At every number of
//! workers that matters the throughput is measured. The best is the most over all numbers that ended without an
//! OOM kill and left 8 % of the limit free at all times; regret is what a number loses of that, and everything
//! where the kernel killed. The curves are kept in `target/sizing/curves.json` (`--ours` and `--curves` measure
//! only those that are missing).
//! It needs root and cgroups that can be made; nothing but loopback is used.

#[path = "sizing/boxes.rs"]
mod boxes;
#[path = "sizing/brute.rs"]
mod brute;
mod common;
#[path = "sizing/fleet.rs"]
mod fleet;
#[allow(dead_code, reason = "the benchmark of a leak uses the rest of it")]
#[path = "sizing/kinds.rs"]
mod kinds;
#[allow(dead_code, reason = "as above")]
#[path = "sizing/load.rs"]
mod load;
#[path = "sizing/methods.rs"]
mod methods;
#[path = "sizing/ours.rs"]
mod ours;
#[path = "sizing/page.rs"]
mod page;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use boxes::{SIZES, Size};
use brute::Curve;
use common::{Nest, nobody_left};
use kinds::{KINDS, Kind};
use methods::METHODS;
use nix::sys::signal::{SigSet, Signal};
use page::{Cell, Choice};

/// Set by a signal that ends us: everything is put away then.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Sleeps, but for a signal.
fn rest(time: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    loop {
        ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}

/// What was asked for.
#[derive(Debug, Default)]
struct Asked {
    quick: bool,
    /// Whether what we choose by measuring is left out.
    brute: bool,
    /// Whether the curves of the last run are taken.
    curves: bool,
    runs: Option<usize>,
    ways: Vec<String>,
    only: Vec<String>,
    size: Vec<String>,
}

impl Asked {
    fn read() -> anyhow::Result<Self> {
        let mut asked = Self::default();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a value"));
            match word.as_str() {
                "--quick" => asked.quick = true,
                "--brute" => asked.brute = true,
                "--ours" | "--curves" => asked.curves = true,
                "--runs" => asked.runs = Some(value()?.parse().context("--runs wants a number")?),
                "--only" => asked.only.push(value()?),
                "--way" => asked.ways.push(value()?),
                "--size" => asked.size.push(value()?),
                // Cargo adds the first; the table looks at the second.
                "--bench" | "--check" => {}
                _ => bail!("unknown word {word}"),
            }
        }
        let kinds: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        let sizes: Vec<_> = SIZES.iter().map(|size| size.name).collect();
        let ways: Vec<_> = ours::WAYS.iter().map(|way| way.name).collect();
        for (named, all) in [(&asked.only, &kinds), (&asked.size, &sizes), (&asked.ways, &ways)] {
            if let Some(name) = named.iter().find(|name| !all.contains(&name.as_str())) {
                bail!("{name} is none of {}", all.join(", "));
            }
        }
        Ok(asked)
    }

    fn cells(&self) -> Vec<(&'static Kind, &'static Size)> {
        let wanted = |named: &[String], name: &str, quick: bool| {
            if named.is_empty() {
                quick || !self.quick
            } else {
                named.iter().any(|one| one == name)
            }
        };
        let sizes = SIZES.iter().filter(|size| wanted(&self.size, size.name, size.quick));
        let kinds = |size| {
            let kinds = KINDS.iter().filter(|kind| wanted(&self.only, kind.name, kind.quick));
            kinds.map(move |kind| (kind, size))
        };
        sizes.flat_map(kinds).collect()
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let asked = Asked::read()?;
    obey()?;
    let nest = Nest::new()?;
    let begin = Instant::now();
    let mut store = Store::open(asked.curves)?;
    let cells = asked.cells();
    let mut done = Vec::new();
    for (at, (kind, size)) in cells.iter().enumerate() {
        let minutes = begin.elapsed().as_secs() / 60;
        println!(
            "--- {} in {}: {} of {}, {minutes} min",
            kind.name,
            size.name,
            at + 1,
            cells.len()
        );
        done.push(cell(&nest, &asked, kind, size, &mut store)?);
        nobody_left()?;
    }
    println!("\n{} cells in {} min\n", done.len(), begin.elapsed().as_secs() / 60);
    Ok(page::end(&done))
}

fn cell(
    nest: &Nest,
    asked: &Asked,
    kind: &Kind,
    size: &Size,
    store: &mut Store,
) -> anyhow::Result<Cell> {
    let name = format!("{} {}", kind.name, size.name);
    let mut curve = match store.curves.get(&name) {
        Some(curve) => curve.clone(),
        None => brute::curve(nest, kind, size, asked.quick)?,
    };
    let planned = ours::plan(nest, kind, size)?;
    let mut choices = Vec::new();
    let rules = METHODS.iter().map(|method| (method.name, (method.number)(size)));
    for (method, workers) in rules.chain([("our plan alone", planned)]) {
        if let Entry::Vacant(vacant) = curve.0.entry(workers) {
            vacant.insert(brute::at(nest, kind, size, workers, asked.quick)?);
        }
        choices.push((method, workers));
    }
    store.keep(&name, &curve)?;
    let (best, rate) = curve.best().with_context(|| format!("{name}: no number is sound"))?;
    // Only now is the best of the curve known.
    let choices = choices.into_iter().map(|(method, workers)| {
        let regret = curve.regret(workers).unwrap_or(1.0);
        Choice { method, workers: u64::from(workers), regret, kills: curve.0[&workers].kills }
    });
    let mut choices: Vec<_> = choices.collect();
    if !asked.brute {
        let runs = asked.runs.unwrap_or(if asked.quick { 1 } else { 3 });
        let asked_for = |way: &&ours::Way| {
            asked.ways.is_empty() || asked.ways.iter().any(|name| name == way.name)
        };
        for way in ours::WAYS.iter().filter(asked_for) {
            choices.push(way.choose(nest, kind, size, rate, runs)?);
        }
    }
    Ok(Cell { name, best, rate, choices })
}

/// The curves of the last run.
struct Store {
    path: PathBuf,
    curves: BTreeMap<String, Curve>,
}

impl Store {
    fn open(again: bool) -> anyhow::Result<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sizing");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join("curves.json");
        let curves = match fs::read(&path) {
            Ok(bytes) if again => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} holds no curves; remove it", path.display()))?,
            _ => BTreeMap::new(),
        };
        Ok(Self { path, curves })
    }

    fn keep(&mut self, name: &str, curve: &Curve) -> anyhow::Result<()> {
        if self.curves.insert(name.to_owned(), curve.clone()).as_ref() == Some(curve) {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(&self.curves)?;
        fs::write(&self.path, text).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// INT and TERM end the run by an error, so that everything is put away.
fn obey() -> anyhow::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    // Before any other thread; children get an empty mask from the standard library.
    signals.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}
