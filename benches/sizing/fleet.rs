//! A launcher with its workers, in a box.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::boxes::Group;
use crate::common::{self, LAUNCHER, Nest, PATIENCE, end, send};
use crate::kinds::Kind;

/// A shell goes in first and becomes the launcher, which dies with us.
const ENTER: &str = "for door in $DOORS; do echo $$ >\"$door\" || exit 1; done; exec \"$@\"";

pub(crate) struct Fleet {
    child: Option<Child>,
    pub(crate) address: SocketAddr,
    control: PathBuf,
}

/// The launcher in the box, with these words.
pub(crate) fn launcher(nest: &Nest, group: &Group) -> Command {
    let mut command = nest.command("setpriv");
    let doors = group.doors();
    let doors: Vec<_> = doors.iter().map(|door| door.display().to_string()).collect();
    command.env("DOORS", doors.join(" "));
    command.args(["--pdeathsig", "KILL", "sh", "-c", ENTER, "sh", LAUNCHER]);
    command
}

impl Fleet {
    pub(crate) fn start(
        nest: &Nest,
        group: &Group,
        kind: &Kind,
        options: &[&str],
    ) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let control = nest.fifo().with_file_name("control");
        let mut command = launcher(nest, group);
        // A worker that is killed is started again, as often as it takes.
        command.args(["--max-restarts", "1000000", "--grace", "8s"]);
        command.args(kind.options()).args(options);
        command.args(["--listen", &address.to_string()]).arg("--control").arg(&control);
        command.arg("--").args(kind.words()?);
        let child = command.stderr(Stdio::null()).spawn().context("cannot run setpriv")?;
        Ok(Self { child: Some(child), address, control })
    }

    /// Waits until all workers that there should be serve, or for so long: more than fit never do.
    pub(crate) fn settle(&self, longest: Duration) -> anyhow::Result<bool> {
        let begin = Instant::now();
        while !self.status().is_ok_and(|status| status["ready"] == true) {
            if begin.elapsed() > longest {
                return Ok(false);
            }
            crate::rest(Duration::from_millis(50))?;
        }
        Ok(true)
    }

    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        common::status(&self.control)
    }

    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        if let Some(child) = self.child.take() {
            send(&child, Signal::SIGTERM)?;
            // Where workers had to be killed, that is no matter here.
            end(child)?;
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How long so many workers may take to come up.
pub(crate) fn patience(workers: u32) -> Duration {
    (Duration::from_secs(5) + workers * Duration::from_millis(500)).min(PATIENCE)
}
