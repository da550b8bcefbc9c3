//! The modes that are measured, and a launcher that runs one of them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::{self, LAUNCHER, Nest, PATIENCE, end, send};

/// One way of sharing.
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    /// Beside `--listen`.
    pub(crate) options: &'static [&'static str],
    /// The program of a worker and its arguments; the folder is where it counts, as `server.c` does.
    pub(crate) worker: fn(&Nest, &Path) -> anyhow::Result<Vec<PathBuf>>,
    /// What is measured of it.
    pub(crate) measures: &'static [&'static str],
}

const EVERYTHING: &[&str] = &["reload", "keep", "kill", "shares"];

/// Every mode. One more is one more entry here.
pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "fd",
        options: &["--share", "fd", "--ready", "notify"],
        worker: server,
        measures: &["reload", "keep", "kill"],
    },
    Mode {
        name: "reuseport",
        options: &["--share", "reuseport", "--ready", "notify"],
        worker: server,
        measures: EVERYTHING,
    },
    Mode { name: "node", options: &["--share", "node"], worker: node, measures: EVERYTHING },
    Mode {
        name: "node-round-robin",
        options: &["--share", "node", "--balance", "round-robin"],
        worker: node,
        measures: EVERYTHING,
    },
    Mode { name: "proxy", options: &["--share", "proxy"], worker: node, measures: EVERYTHING },
];

/// `server.js`.
fn node(_: &Nest, counts: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/server.js");
    Ok(vec![crate::common::nodes::node()?, server, counts.to_owned()])
}

/// `server.c`.
fn server(nest: &Nest, counts: &Path) -> anyhow::Result<Vec<PathBuf>> {
    Ok(vec![nest.build("server", &["-static"])?, counts.to_owned()])
}

/// A launcher with its workers.
pub(crate) struct Fleet {
    child: Child,
    pub(crate) address: SocketAddr,
    control: PathBuf,
    counts: tempfile::TempDir,
}

/// What one worker process has done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) slot: u32,
    pub(crate) pid: i32,
    pub(crate) accepted: u64,
    pub(crate) over: u64,
}

impl Fleet {
    pub(crate) fn start(nest: &Nest, mode: &Mode, workers: u32) -> anyhow::Result<Self> {
        let counts = tempfile::tempdir().context("cannot make a temporary folder")?;
        let words = (mode.worker)(nest, counts.path())?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let control = counts.path().join("control");
        let mut command = nest.command(LAUNCHER);
        // A death that we cause is no failure of the worker.
        command.args(["-q", "--max-restarts", "1000", "--workers", &workers.to_string()]);
        command.args(mode.options).args(["--listen", &address.to_string()]);
        command.arg("--control").arg(&control).arg("--").args(words);
        let child = command.stderr(Stdio::inherit()).spawn().context("cannot run the launcher")?;
        let fleet = Self { child, address, control, counts };
        let begin = Instant::now();
        while !fleet.status().is_ok_and(|status| status["ready"] == true) {
            ensure!(begin.elapsed() < PATIENCE, "the workers are not ready in {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(fleet)
    }

    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        common::status(&self.control)
    }

    /// One of our own commands against it.
    pub(crate) fn ask(&self, args: &[&str]) -> anyhow::Result<String> {
        common::ask(&self.control, args)
    }

    /// The processes of the workers, with how long each has run, in seconds.
    pub(crate) fn workers(&self) -> anyhow::Result<BTreeMap<i32, f64>> {
        let status = self.status()?;
        let workers = status["workers"].as_array().context("no workers in the status")?;
        let one = |worker: &Value| {
            let pid = i32::try_from(worker["pid"].as_i64()?).ok()?;
            Some((pid, worker["uptime_seconds"].as_f64()?))
        };
        workers.iter().map(|worker| one(worker).context("a worker without pid")).collect()
    }

    /// Connections that workers have lost, by the count of a launcher that carries them.
    pub(crate) fn lost(&self) -> anyhow::Result<u64> {
        let status = self.status()?;
        let workers = status["workers"].as_array().context("no workers in the status")?;
        let lost = workers.iter().map(|worker| worker["connections"]["failed"].as_u64());
        lost.sum::<Option<u64>>().context("the status counts no connections")
    }

    /// What all worker processes have done, also those that are no more.
    pub(crate) fn counts(&self) -> anyhow::Result<Vec<Counts>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.counts.path())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((slot, pid)) = name.split_once('.') else { continue };
            let (Ok(slot), Ok(pid)) = (slot.parse(), pid.parse()) else { continue };
            let bytes = fs::read(&path)?;
            let number = |at: usize| -> anyhow::Result<u64> {
                let bytes = bytes.get(at..at + 8).context("a worker has not counted")?;
                Ok(u64::from_ne_bytes(bytes.try_into()?))
            };
            found.push(Counts { slot, pid, accepted: number(0)?, over: number(8)? });
        }
        Ok(found)
    }

    pub(crate) fn stop(self) -> anyhow::Result<()> {
        send(&self.child, Signal::SIGTERM)?;
        let status = end(self.child)?;
        ensure!(status.success(), "the launcher ends with {status}");
        Ok(())
    }
}
