//! What reading a machine costs: the whole probe of machines that are held in memory, so that no
//! system call is in the figures, and what a mountinfo line of 100 KB adds to it, beside the parser
//! of the `procfs` crate on the same text.
//!
//! ```sh
//! cargo bench --bench probe               # prints the table
//! cargo bench --bench probe -- --check    # and ends with 1 where a limit is exceeded
//! ```
//!
//! Runs of ours and of the peer alternate, so that what else the machine does hits both alike; a
//! figure is the median of batches, the ratio the median of the pairs' ratios.

use std::fs;
use std::hint::black_box;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use procfs::FromBufRead;
use procfs::process::MountInfos;
use throng_rs::{Host, Resources};

const BATCHES: usize = 61;
/// Calls in one batch: a batch must be long beside the resolution of the clock.
const CALLS: u32 = 200;

/// The project's own limits: a line of 100 KB costs microseconds. The rest is a lookup and a copy
/// for each of up to a hundred files; measured are 20 to 90.
const LONG_LINE_LIMIT: f64 = 50.0;
const PROBE_LIMIT: f64 = 250.0;

const LONG: &str = "v2-long-overlay-100k";
const MOUNTINFO: &str = "/proc/self/mountinfo";
/// From the simplest to the widest of the recorded machines.
const MACHINES: &[&str] =
    &["v2-private-ns", "v2-systemd-nested-slices", "v1-slurm", "v1-k8s-long-lines"];

type Machine = Vec<(PathBuf, Vec<u8>)>;

/// A recorded machine, held in memory.
fn load(name: &str) -> anyhow::Result<Machine> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hosts").join(name);
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder);
        for entry in entries.with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = fs::read(&path);
                let content = content.with_context(|| format!("cannot read {}", path.display()))?;
                files.push((Path::new("/").join(path.strip_prefix(&root)?), content));
            }
        }
    }
    Ok(files)
}

/// Microseconds of one call, as the mean of a batch.
fn batch(call: &mut impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        call();
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median microseconds of both, and the median of their ratios.
fn pairs(mut ours: impl FnMut(), mut peer: impl FnMut()) -> (f64, f64, f64) {
    let (mut us, mut them, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    batch(&mut ours);
    batch(&mut peer);
    for pair in 0..BATCHES {
        let (a, b) = if pair.is_multiple_of(2) {
            let a = batch(&mut ours);
            (a, batch(&mut peer))
        } else {
            let b = batch(&mut peer);
            (batch(&mut ours), b)
        };
        us.push(a);
        them.push(b);
        ratios.push(a / b);
    }
    (median(us), median(them), median(ratios))
}

fn line(what: &str, ours: f64, peer: Option<(f64, f64)>, limit: Option<f64>) -> bool {
    let peer = peer.map(|(time, ratio)| format!("procfs {time:>8.2} us  ratio {ratio:.3}"));
    let kept = limit.is_none_or(|limit| ours <= limit);
    let limit = limit.map_or_else(String::new, |limit| {
        format!("limit {limit:.0} us  {}", if kept { "ok" } else { "OVER" })
    });
    println!("{what:<52} {ours:>9.2} us   {:<36} {limit}", peer.unwrap_or_default());
    kept
}

fn main() -> anyhow::Result<ExitCode> {
    // Cargo adds `--bench`, which says nothing here.
    let check = std::env::args().any(|arg| arg == "--check");
    let mut kept = true;
    for name in MACHINES {
        let host = Host::from_files(load(name)?);
        let probe = || drop(black_box(Resources::of(black_box(&host))));
        let (ours, ..) = pairs(probe, || ());
        kept &= line(&format!("the whole probe of {name}"), ours, None, Some(PROBE_LIMIT));
    }

    let long = load(LONG)?;
    let text = long.iter().find(|(path, _)| path == Path::new(MOUNTINFO));
    let text = text.map(|(_, content)| content.clone()).context("no mountinfo recorded")?;
    let longest = text.split(|b| *b == b'\n').map(<[u8]>::len).max().unwrap_or(0);
    ensure!(longest > 90_000, "the longest line of {LONG} has {longest} bytes");
    let short: Machine = long
        .iter()
        .map(|(path, content)| {
            let lines = content.split_inclusive(|b| *b == b'\n').filter(|line| line.len() < 4096);
            (path.clone(), lines.flatten().copied().collect())
        })
        .collect();
    let (long, short) = (Host::from_files(long), Host::from_files(short));
    let (with, without, _) = pairs(
        || drop(black_box(Resources::of(black_box(&long)))),
        || drop(black_box(Resources::of(black_box(&short)))),
    );
    let added = with - without;
    kept &= line(&format!("a line of {longest} bytes adds"), added, None, Some(LONG_LINE_LIMIT));

    let (ours, peer, ratio) = pairs(
        || drop(black_box(Resources::of(black_box(&long)))),
        || drop(black_box(MountInfos::from_buf_read(Cursor::new(black_box(&text))))),
    );
    line("the whole probe with that line, mountinfo alone", ours, Some((peer, ratio)), None);
    Ok(ExitCode::from(u8::from(check && !kept)))
}
