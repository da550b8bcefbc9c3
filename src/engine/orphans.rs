//! Processes that came to us because their parents ended: none outlives the run.

use std::collections::HashMap;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::signals::Signals;
use super::spawn::wait_any;

/// So long may pass without one that ends; KILL does not end what is stuck in the kernel.
const PATIENCE: Duration = Duration::from_secs(1);

/// Kills and reaps every process below us, but for `strangers` and what belongs to them.
pub(super) async fn end(signals: &Signals, strangers: &[Pid]) {
    while wait_any().is_some() {}
    let mut deadline = Instant::now() + PATIENCE;
    while has_children() {
        if listed().is_some_and(|children| children.iter().all(|pid| strangers.contains(pid))) {
            return;
        }
        let left = descendants(strangers);
        if left.is_empty() {
            return;
        }
        for pid in &left {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        // CHLD, most likely; whatever else comes is too late to matter.
        tokio::select! {
            _ = signals.next() => {}
            () = sleep_until(deadline) => {
                warn!(event = "left_behind", count = left.len(), "{} adopted processes do not end and are left behind", left.len());
                return;
            }
        }
        while wait_any().is_some() {
            deadline = Instant::now() + PATIENCE;
        }
    }
}

fn has_children() -> bool {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, peek) != Err(Errno::ECHILD)
}

/// Our children right now.
pub(super) fn children() -> Vec<Pid> {
    if !has_children() {
        return Vec::new();
    }
    let seen = || by_parent().remove(&std::process::id().cast_signed()).unwrap_or_default();
    listed().unwrap_or_else(seen)
}

/// The kernel's own list of them, where it has one (`CONFIG_PROC_CHILDREN`). It may miss some while
/// others leave it (proc(5)), which is when they are reaped: nobody but us does that.
fn listed() -> Option<Vec<Pid>> {
    let text = std::fs::read_to_string("/proc/thread-self/children").ok()?;
    text.split_ascii_whitespace().map(|pid| pid.parse().ok().map(Pid::from_raw)).collect()
}

/// Everybody below us, by one look at all processes.
fn descendants(strangers: &[Pid]) -> Vec<Pid> {
    let mut by_parent = by_parent();
    let mut found = Vec::new();
    let mut parents = vec![std::process::id().cast_signed()];
    while let Some(parent) = parents.pop() {
        let children = by_parent.remove(&parent).unwrap_or_default();
        for child in children.into_iter().filter(|child| !strangers.contains(child)) {
            parents.push(child.as_raw());
            found.push(child);
        }
    }
    found
}

fn by_parent() -> HashMap<i32, Vec<Pid>> {
    let mut found: HashMap<i32, Vec<Pid>> = HashMap::new();
    let Ok(all) = procfs::process::all_processes() else { return found };
    for stat in all.flatten().filter_map(|process| process.stat().ok()) {
        found.entry(stat.ppid).or_default().push(Pid::from_raw(stat.pid));
    }
    found
}
