//! What we choose: by the plan alone, and by measuring while it runs.

use std::fmt::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
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

pub(crate) const ADAPT: &str = "--adapt on";
pub(crate) const CALIBRATED: &str = "calibrated";
/// What is run under load, with its options.
pub(crate) const WAYS: &[(&str, &[&str])] = &[(ADAPT, &["--adapt", "on"])];

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
pub(crate) fn median(method: &'static str, mut found: Vec<Found>) -> Choice {
    let kills = found.iter().map(|found| found.kills).sum();
    found.sort_by(|one, other| one.regret.total_cmp(&other.regret));
    let middle = found.get(found.len() / 2);
    let (workers, regret) = middle.map_or((0, 1.0), |found| (found.workers, found.regret));
    Choice { method, workers, regret: if kills > 0 { 1.0 } else { regret }, kills }
}

/// Runs with these options under load, and measures at the end of it.
pub(crate) fn run(
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
