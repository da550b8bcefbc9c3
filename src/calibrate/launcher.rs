//! The launcher that a calibration runs: this very program, asked over its control socket as by any user.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hyper::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkdtemp};
use serde_json::json;

use super::output::Output;
use crate::control::{Instance, Status};

/// Tells the launcher that it is one of these, and whose: it ends when that one does.
pub(crate) const VARIABLE: &str = "THRONG_CALIBRATED_BY";
/// Longer than any grace that is meant.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(50);
/// How long a launcher that has closed its socket may take to end.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The launcher; it and its workers end with this.
pub(crate) struct Launcher {
    child: Child,
    output: Output,
    instance: Instance,
    _dir: Private,
}

/// A folder that only we can enter, gone with its owner.
struct Private(PathBuf);

impl Private {
    fn new() -> io::Result<Self> {
        Ok(Self(mkdtemp(&std::env::temp_dir().join("throng-rs-calibrate-XXXXXX"))?))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Launcher {
    /// Runs `program` with these words behind the way to its control socket. Must be called inside a `LocalSet`.
    pub(crate) fn start(program: &Path, args: &[OsString]) -> io::Result<Self> {
        let dir = Private::new()?;
        let control = dir.0.join("control");
        let (output, writer) = Output::new()?;
        let errors = writer.try_clone()?;
        let mut command = Command::new(program);
        command.arg("--control").arg(&control).args(args);
        command.env(VARIABLE, std::process::id().to_string());
        // A service manager that waits for us must not take it for us.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"] {
            command.env_remove(name);
        }
        let child = command.stdin(Stdio::null()).stdout(writer).stderr(errors).spawn()?;
        Ok(Self { child, output, instance: Instance { path: control }, _dir: dir })
    }

    /// How it stands; an error where it has ended, with its last words.
    pub(crate) async fn status(&mut self) -> Result<Status, String> {
        let begin = Instant::now();
        loop {
            match self.instance.status().await {
                Ok(status) => return Ok(status),
                // It may not be there yet.
                Err(error) if begin.elapsed() > PATIENCE => return Err(error),
                Err(_) => {}
            }
            self.check().await?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// An error where it has ended.
    async fn check(&mut self) -> Result<(), String> {
        let ended = self.child.try_wait().map_err(|error| error.to_string())?;
        let Some(ended) = ended else { return Ok(()) };
        // The last words may still be on their way.
        tokio::time::sleep(PAUSE).await;
        Err(format!("the workers cannot be run:\n{}", self.said(ended)))
    }

    fn said(&self, ended: ExitStatus) -> String {
        let last = self.output.last(12);
        if last.is_empty() { format!("the launcher ended with {ended}") } else { last }
    }

    /// What the workers printed last, for an error.
    pub(crate) fn last_words(&self) -> String {
        self.output.last(6)
    }

    pub(crate) async fn scale(&mut self, workers: u32) -> Result<(), String> {
        let body = json!({ "workers": workers.to_string() });
        match self.instance.ask(Method::POST, "/v1/scale", Some(body)).await {
            Ok(answer) if answer.status == 200 => Ok(()),
            // It may be about to end, and then tells better why.
            refused => {
                let begin = Instant::now();
                while begin.elapsed() < LAST_WORDS {
                    self.check().await?;
                    tokio::time::sleep(PAUSE).await;
                }
                refused?.sound().map(|_| ())
            }
        }
    }

    /// Stops it and waits for its end; kills it where that takes too long.
    pub(crate) async fn stop(mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && self.child.try_wait().is_ok_and(|end| end.is_none()) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // Its workers go with it. Both fail where it has ended.
        if self.child.try_wait().is_ok_and(|end| end.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
