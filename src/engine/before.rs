//! The command that runs once, before the first worker.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::time::Instant;
use tracing::{error, info};

use super::Engine;
use super::spawn::{Change, Launch, Waited, send, wait_any};
use crate::exit;
use crate::fleet::Ended;

/// How long a killed one may take to go.
const GIVE_UP: Duration = Duration::from_secs(2);

impl Engine {
    /// Runs it to its end; a status where the launch ends with it.
    pub(super) async fn before(&mut self) -> anyhow::Result<Option<u8>> {
        let Some(text) = self.config.before.clone() else { return Ok(None) };
        let words = ["sh", "-c", &text].map(OsString::from);
        let launch = Launch {
            program: Path::new("/bin/sh"),
            words: &words,
            env: self.config.env.of_nobody(),
            stdin: Stdio::null(),
            stdout: Stdio::inherit(),
            stderr: Stdio::inherit(),
            sockets: &[],
            channel: None,
            terminal: None,
            cgroup: None,
        };
        info!(event = "before", "before the first worker: {text}");
        self.pass_own_lines();
        let pid = self.spawner.spawn(launch).context("cannot run the command of --before")?;
        self.guard.begin(pid);
        let (how, stop) = self.wait_for(pid).await?;
        self.guard.gone(pid);
        let status = how.map_or(exit::KILLED, Ended::status);
        match (stop, how) {
            (Some(Signal::SIGKILL), _) => Ok(Some(exit::KILLED)),
            (Some(_), _) => Ok(Some(exit::SUCCESS)),
            (None, Some(how)) if how.is_success() => Ok(None),
            (None, _) => {
                error!(
                    event = "before_failed",
                    status,
                    "the command of --before ended with {}, so no worker is started: {text}",
                    how.map_or_else(|| "nothing".to_owned(), |how| how.to_string())
                );
                Ok(Some(status))
            }
        }
    }

    /// Its end, and the last signal that it got because we are to stop.
    async fn wait_for(&mut self, pid: Pid) -> anyhow::Result<(Option<Ended>, Option<Signal>)> {
        let mut stop = None;
        let mut deadline: Option<Instant> = None;
        loop {
            self.pass_own_lines();
            let received = tokio::select! {
                biased;
                received = self.signals.next() => Some(received.context("cannot read signals")?),
                () = super::until(deadline) => None,
            };
            match received.map(|received| received.signal) {
                Some(Some(Signal::SIGCHLD)) => {
                    let mut ended = None;
                    while let Some(Waited { pid: child, change, .. }) = wait_any() {
                        if let Change::Ended(how) = change
                            && child == pid
                        {
                            ended = Some(how);
                        }
                    }
                    if ended.is_some() {
                        // What it left in the background may go on, but not beyond a stop.
                        if stop.is_some() {
                            let _ = killpg(pid, Signal::SIGKILL);
                        }
                        return Ok((ended, stop));
                    }
                }
                Some(Some(Signal::SIGTERM | Signal::SIGINT)) if stop.is_none() => {
                    stop = Some(self.config.stop_signal);
                    deadline = Some(Instant::now() + self.config.policy.grace);
                    let _ = killpg(pid, self.config.stop_signal);
                    let _ = killpg(pid, Signal::SIGCONT);
                }
                None if stop == Some(Signal::SIGKILL) => return Ok((None, stop)),
                None | Some(Some(Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT)) => {
                    stop = Some(Signal::SIGKILL);
                    deadline = Some(Instant::now() + GIVE_UP);
                    let _ = killpg(pid, Signal::SIGKILL);
                }
                Some(Some(Signal::SIGUSR1)) => send(pid, Signal::SIGUSR1 as i32),
                // The rest is about a fleet, which is not there yet.
                Some(_) => {}
            }
        }
    }
}
