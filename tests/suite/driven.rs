//! A launcher with a control socket of its own, and its commands against it.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::support::{Done, Run, done, throng};

/// Says who it is, and good bye at TERM.
pub(crate) const WORKER: &str = "trap 'echo bye id=$THRONG_WORKER_ID; exit 0' TERM
echo up id=$THRONG_WORKER_ID gen=$THRONG_WORKER_GENERATION pid=$$
while :; do sleep 1 & wait; done";

/// A launcher under control.
pub(crate) struct Fleet {
    pub(crate) run: Run,
    pub(crate) dir: tempfile::TempDir,
}

impl Fleet {
    /// Runs `words` by `launcher`, which has its options already.
    pub(crate) fn of(mut launcher: Command, dir: tempfile::TempDir, words: &[&str]) -> Self {
        launcher.arg("-v").arg("--control").arg(dir.path().join("s"));
        let run = Run::start(launcher.arg("--").args(words));
        Self { run, dir }
    }

    pub(crate) fn start(args: &[&str], script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::of(throng(args), dir, &["sh", "-c", script])
    }

    /// Waits for two workers to be ready; what they say of themselves, in their order.
    pub(crate) fn both_ready(&mut self) -> Vec<String> {
        let mut up = self.run.wait_for(2, "up id=");
        up.sort();
        for _ in 0..2 {
            self.run.wait_log("is ready");
        }
        up
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub(crate) fn client(&self, args: &[&str]) -> Command {
        let mut command = throng(&args[..1]);
        command.arg("--control").arg(self.socket()).args(&args[1..]);
        command
    }

    pub(crate) fn ask(&self, args: &[&str]) -> Done {
        done(&mut self.client(args))
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let done = self.ask(&[args, &["--format", "json"]].concat());
        assert_eq!(done.status, 0, "{done:?}");
        serde_json::from_str(&done.stdout).unwrap()
    }

    /// The processes of all workers, in the order of their slots.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let status = self.json(&["status"]);
        let workers = status["workers"].as_array().unwrap().iter();
        workers.map(|worker| i32::try_from(worker["pid"].as_i64().unwrap()).unwrap()).collect()
    }
}
