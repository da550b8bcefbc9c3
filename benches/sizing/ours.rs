//! What we choose: by the plan alone, by measuring while it runs, and by a calibration before.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::boxes::{Group, Size};
use crate::brute::regret;
use crate::common::Nest;
use crate::fleet::{Fleet, launcher, patience};
use crate::kinds::Kind;
use crate::load::Load;
use crate::page::Choice;

/// How long the load lasts before anything counts.
const LEARN: Duration = Duration::from_secs(30);
const MEASURE: Duration = Duration::from_secs(5);
/// No calibration takes longer.
const LONGEST: Duration = Duration::from_mins(5);

pub(crate) const ADAPT: &str = "--adapt on";
pub(crate) const CALIBRATED: &str = "calibrated";

/// A way of ours to find the number by measuring.
pub(crate) struct Way {
    /// On the command line of this benchmark.
    pub(crate) name: &'static str,
    /// In the table.
    pub(crate) title: &'static str,
    run: fn(&Nest, &Kind, &Size, f64, usize) -> anyhow::Result<Vec<Found>>,
}

pub(crate) const WAYS: &[Way] = &[
    Way { name: "adapt", title: ADAPT, run: adapt },
    Way { name: "calibrate", title: CALIBRATED, run: calibrated },
];

impl Way {
    /// The median of so many runs, beside the best rate there is.
    pub(crate) fn choose(
        &self,
        nest: &Nest,
        kind: &Kind,
        size: &Size,
        best: f64,
        runs: usize,
    ) -> anyhow::Result<Choice> {
        Ok(median(self.title, (self.run)(nest, kind, size, best, runs)?))
    }
}

fn adapt(
    nest: &Nest,
    kind: &Kind,
    size: &Size,
    best: f64,
    runs: usize,
) -> anyhow::Result<Vec<Found>> {
    (0..runs).map(|_| run(nest, kind, size, best, ADAPT, &["--adapt", "on"])).collect()
}

fn calibrated(
    nest: &Nest,
    kind: &Kind,
    size: &Size,
    best: f64,
    runs: usize,
) -> anyhow::Result<Vec<Found>> {
    let profile = nest.fifo().with_file_name("throng.profile.json");
    let path = profile.display().to_string();
    let kills = calibrate(nest, kind, size, &path)?;
    let mut found = Vec::new();
    for _ in 0..runs {
        found.push(run(nest, kind, size, best, CALIBRATED, &["--profile", &path])?);
    }
    fs::remove_file(&profile).context("the calibration has left no profile")?;
    if let Some(found) = found.first_mut() {
        // It must not have cost anybody his life either.
        found.kills += kills;
    }
    Ok(found)
}

/// Runs the calibration in a box of its own; the kills in it.
fn calibrate(nest: &Nest, kind: &Kind, size: &Size, profile: &str) -> anyhow::Result<u64> {
    let group = Group::new(size)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = launcher(nest, &group);
    command.arg("calibrate").args(kind.options()).args(["--profile", profile]);
    command.args(["--listen", &address.to_string(), "--"]).args(kind.words()?);
    let begin = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let ended = loop {
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        if let Err(error) = crate::rest(Duration::from_millis(100)) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        if begin.elapsed() > LONGEST {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{} in {}: the calibration does not end", kind.name, size.name);
        }
    };
    let mut text = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut text)?;
    }
    ensure!(ended.success(), "the calibration ends with {ended}: {text}");
    let told: Vec<&str> = text
        .lines()
        .filter(|line| {
            line.contains(" give ") || line.contains(" gives ") || line.starts_with("one worker")
        })
        .collect();
    println!(
        "{:<13} {:<9} calibrated in {} s: {}",
        kind.name,
        size.name,
        begin.elapsed().as_secs(),
        told.join("; ")
    );
    group.kills()
}

/// The number of a dry run in the box.
pub(crate) fn plan(nest: &Nest, kind: &Kind, size: &Size) -> anyhow::Result<u32> {
    let group = Group::new(size)?;
    let mut command = launcher(nest, &group);
    command.args(["--dry-run", "--format", "json", "--"]).args(kind.words()?);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the dry run ends with {}", output.status);
    let plan: Value = serde_json::from_slice(&output.stdout)?;
    let workers = plan["workers"].as_u64().context("no number in the plan")?;
    Ok(workers.try_into()?)
}

/// One run that finds its number by itself.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) workers: u64,
    pub(crate) regret: f64,
    pub(crate) kills: u64,
}

/// The median run; a kill in any of them counts.
fn median(method: &'static str, mut found: Vec<Found>) -> Choice {
    let kills = found.iter().map(|found| found.kills).sum();
    found.sort_by(|one, other| one.regret.total_cmp(&other.regret));
    let middle = found.get(found.len() / 2);
    let (workers, regret) = middle.map_or((0, 1.0), |found| (found.workers, found.regret));
    Choice { method, workers, regret: if kills > 0 { 1.0 } else { regret }, kills }
}

/// Runs with these options under load, and measures at the end of it.
fn run(
    nest: &Nest,
    kind: &Kind,
    size: &Size,
    best: f64,
    name: &str,
    options: &[&str],
) -> anyhow::Result<Found> {
    let group = Group::new(size)?;
    let watch = group.watch();
    let fleet = Fleet::start(nest, &group, kind, options)?;
    ensure!(
        fleet.settle(patience(8))?,
        "{} in {}: the workers do not come up",
        kind.name,
        size.name
    );
    let load = Load::start(fleet.address)?;
    let (begin, mut numbers) = (Instant::now(), Vec::new());
    while begin.elapsed() < LEARN {
        if let Ok(status) = fleet.status() {
            let workers = status["target"].as_u64().unwrap_or_default();
            if numbers.last().is_none_or(|(_, last)| *last != workers) {
                numbers.push((begin.elapsed().as_secs_f64(), workers));
            }
        }
        crate::rest(Duration::from_millis(250))?;
    }
    let rate = load.rate(MEASURE)?;
    let status = fleet.status()?;
    let (failed, free) = (load.failed(), watch.end()?);
    fleet.stop()?;
    drop(load);
    let kills = group.kills()?;
    let workers = status["target"].as_u64().context("no number in the status")?;
    let regret = regret(rate, kills, best);
    let mut story = String::new();
    for (at, workers) in numbers {
        // Writing to a string does not fail.
        let _ = write!(story, " {at:.1}s:{workers}");
    }
    println!(
        "{:<13} {:<9} {name}: N={workers} {rate:.1}/s, regret {regret:.2}, {:.0} % free at least, {failed} failed, {kills} killed;{story}",
        kind.name,
        size.name,
        free * 100.0
    );
    Ok(Found { workers, regret, kills })
}
