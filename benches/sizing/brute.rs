//! The throughput at every number of workers, by trying.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use crate::boxes::{Group, Size};
use crate::common::Nest;
use crate::fleet::{Fleet, patience};
use crate::kinds::Kind;
use crate::load::Load;

/// A number that leaves less of the limit free is no choice that anybody should make.
pub(crate) const LEAST_FREE: f64 = 0.08;
/// Long enough for forty periods of the quota.
const MEASURE: Duration = Duration::from_secs(4);
const QUICK: Duration = Duration::from_secs(3);
/// The first numbers; around the best of them all are tried.
const GRID: &[u32] = &[1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64];
/// Who is that much slower than the best, twice in a row, will not be better with more.
const HOPELESS: f64 = 0.8;
/// So many in a row without any gain end the search.
const FLAT: usize = 4;
/// A gain that is more than noise.
const GAIN: f64 = 1.03;

/// What came out at one number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// Good answers a second.
    pub(crate) rate: f64,
    /// The least share of the limit that was free.
    pub(crate) free: f64,
    pub(crate) kills: u64,
    pub(crate) failed: u64,
}

impl Point {
    fn counts(&self) -> bool {
        self.kills == 0 && self.free >= LEAST_FREE
    }
}

/// All that was tried, by the number of workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Curve(pub(crate) BTreeMap<u32, Point>);

impl Curve {
    /// The best number that anybody should choose.
    pub(crate) fn best(&self) -> Option<(u32, f64)> {
        let sound = self.0.iter().filter(|(_, point)| point.counts());
        sound.map(|(n, point)| (*n, point.rate)).max_by(|one, other| one.1.total_cmp(&other.1))
    }

    /// How much of the best is lost with this number; everything, where somebody was killed.
    pub(crate) fn regret(&self, workers: u32) -> Option<f64> {
        let point = self.0.get(&workers)?;
        Some(regret(point.rate, point.kills, self.best()?.1))
    }
}

pub(crate) fn regret(rate: f64, kills: u64, best: f64) -> f64 {
    if kills > 0 { 1.0 } else { (1.0 - rate / best).max(0.0) }
}

/// Tries numbers until more are of no use.
pub(crate) fn curve(nest: &Nest, kind: &Kind, size: &Size, quick: bool) -> anyhow::Result<Curve> {
    let mut curve = Curve::default();
    let (mut best, mut worse, mut flat) = (0.0_f64, 0, 0);
    for workers in GRID {
        let point = at(nest, kind, size, *workers, quick)?;
        curve.0.insert(*workers, point);
        flat = if point.rate > best * GAIN { 0 } else { flat + 1 };
        best = best.max(point.rate);
        worse = if point.rate < best * HOPELESS { worse + 1 } else { 0 };
        // What does not fit with so many does not fit with more.
        if !point.counts() || worse >= 2 || flat >= FLAT {
            break;
        }
    }
    refine(nest, kind, size, quick, &mut curve)?;
    Ok(curve)
}

/// Tries those beside the best that the grid left out, as long as that helps.
fn refine(
    nest: &Nest,
    kind: &Kind,
    size: &Size,
    quick: bool,
    curve: &mut Curve,
) -> anyhow::Result<()> {
    for _ in 0..4 {
        let Some((best, _)) = curve.best() else { return Ok(()) };
        // In the middle of the gap above it; below the best the curve still rises.
        let above = curve.0.range(best + 1..).next().map(|(above, _)| best.midpoint(*above));
        let Some(middle) = above.filter(|middle| *middle > best) else { return Ok(()) };
        let before = curve.best();
        let point = at(nest, kind, size, middle, quick)?;
        curve.0.insert(middle, point);
        // Where a sound one is no gain the top has been reached.
        if point.counts() && curve.best() == before {
            return Ok(());
        }
    }
    Ok(())
}

/// Measures one number.
pub(crate) fn at(
    nest: &Nest,
    kind: &Kind,
    size: &Size,
    workers: u32,
    quick: bool,
) -> anyhow::Result<Point> {
    let group = Group::new(size)?;
    let watch = group.watch();
    let number = workers.to_string();
    let options = ["-q", "--workers", &number, "--adapt", "off", "--guard", "off"];
    let fleet = Fleet::start(nest, &group, kind, &options)?;
    fleet.settle(patience(workers))?;
    let load = Load::start(fleet.address)?;
    crate::rest(kind.warm_up)?;
    let rate = load.rate(if quick { QUICK } else { MEASURE })?;
    ensure!(rate > 0.0, "{} in {}: {workers} workers answer nothing", kind.name, size.name);
    let failed = load.failed();
    let free = watch.end()?;
    fleet.stop()?;
    drop(load);
    let point = Point { rate, free, kills: group.kills()?, failed };
    let Point { rate, free, kills, .. } = point;
    println!(
        "{:<13} {:<9} N={workers:<3} {rate:>7.1}/s  {:>4.0} % free{}",
        kind.name,
        size.name,
        free * 100.0,
        match (kills, failed) {
            (0, 0) => String::new(),
            (0, failed) => format!("  {failed} failed"),
            (kills, failed) => format!("  {kills} killed, {failed} failed"),
        }
    );
    Ok(point)
}
