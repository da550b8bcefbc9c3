//! Processes that came to us because their parents ended: none outlives the run.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep_until};

use super::signals::Signals;
use super::spawn::wait_any;

/// A process that KILL does not end in this time is stuck in the kernel.
const PATIENCE: Duration = Duration::from_secs(1);

/// Kills and reaps every child that is left, and the children that come to us by that.
pub(super) async fn end(signals: &Signals) {
    let deadline = Instant::now() + PATIENCE;
    while has_children() {
        for child in children() {
            let _ = kill(child, Signal::SIGKILL);
        }
        // CHLD, most likely; whatever else comes is too late to matter.
        tokio::select! {
            _ = signals.next() => {}
            () = sleep_until(deadline) => return,
        }
        while wait_any().is_some() {}
    }
}

fn has_children() -> bool {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, peek) != Err(Errno::ECHILD)
}

fn children() -> Vec<Pid> {
    let me = std::process::id().cast_signed();
    let Ok(all) = procfs::process::all_processes() else { return Vec::new() };
    let ours = all.flatten().filter(|process| process.stat().is_ok_and(|stat| stat.ppid == me));
    ours.map(|process| Pid::from_raw(process.pid())).collect()
}
