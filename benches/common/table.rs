//! What was measured, beside its limit.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::LAUNCHER;

/// Pairs that are not counted.
pub(crate) const WARM_UP: usize = 5;

/// One line of the table.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) ours: String,
    pub(crate) peer: String,
    pub(crate) ratio: Option<f64>,
    pub(crate) limit: String,
    /// Nothing where there is no limit.
    pub(crate) kept: Option<bool>,
}

/// A launcher to measure.
pub(crate) struct Build {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
}

impl Build {
    /// This profile's, and the static one where `THRONG_STATIC_BIN` names it.
    pub(crate) fn all() -> anyhow::Result<Vec<Self>> {
        let mut builds = vec![Self { name: "dynamic", program: PathBuf::from(LAUNCHER) }];
        match std::env::var_os("THRONG_STATIC_BIN") {
            None => {
                println!("the static build is not measured: THRONG_STATIC_BIN does not name one");
            }
            Some(path) => {
                let program = Path::new(&path).canonicalize();
                let program =
                    program.with_context(|| format!("no static build at {}", path.display()))?;
                builds.push(Self { name: "static", program });
            }
        }
        Ok(builds)
    }
}

/// Prints the table. The status is 1 where `--check` was given and a limit is exceeded.
pub(crate) fn end(rows: &[Row]) -> ExitCode {
    print(rows);
    // Cargo adds `--bench`, which says nothing here.
    let check = std::env::args().any(|arg| arg == "--check");
    let over = rows.iter().any(|row| row.kept == Some(false));
    ExitCode::from(u8::from(check && over))
}

fn print(rows: &[Row]) {
    let line = |what: &str, ours: &str, peer: &str, ratio: &str, limit: &str, kept: &str| {
        println!("{what:<46} {ours:>26} {peer:>18} {ratio:>6} {limit:>9}  {kept}");
    };
    line("what", "ours", "peer", "ratio", "limit", "");
    for row in rows {
        let ratio = row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let kept = row.kept.map_or("", |kept| if kept { "ok" } else { "OVER" });
        line(&row.what, &row.ours, &row.peer, &ratio, &row.limit, kept);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs both `pairs` times, the other one first every second time.
pub(crate) fn compare(
    what: String,
    peer_name: &str,
    limit: f64,
    pairs: usize,
    mut ours: impl FnMut() -> anyhow::Result<Duration>,
    mut peer: impl FnMut() -> anyhow::Result<Duration>,
) -> anyhow::Result<Row> {
    let (mut us, mut them, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..WARM_UP + pairs {
        let (a, b) = if pair.is_multiple_of(2) {
            let a = ours()?;
            (a, peer()?)
        } else {
            let b = peer()?;
            (ours()?, b)
        };
        if pair >= WARM_UP {
            us.push(a.as_secs_f64() * 1e3);
            them.push(b.as_secs_f64() * 1e3);
            ratios.push(a.as_secs_f64() / b.as_secs_f64());
        }
    }
    let ratio = median(ratios);
    Ok(Row {
        what,
        ours: format!("{:.2} ms", median(us)),
        peer: format!("{peer_name} {:.2} ms", median(them)),
        ratio: Some(ratio),
        limit: format!("{limit:.1}"),
        kept: Some(ratio <= limit),
    })
}
