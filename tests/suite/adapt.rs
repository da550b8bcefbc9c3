//! The number follows the load, and gives up what does not help, with the real program.

use std::os::unix::net::UnixStream;

use crate::driven::Fleet;
use crate::support::throng;

/// Connections that nobody accepts, and a fleet that may grow for them.
fn queue(words: &[&str]) -> (Fleet, Vec<UnixStream>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("listener");
    let mut launcher = throng(&["--adapt", "on", "--cpus", "1", "--share", "fd"]);
    launcher.args(["--ready", "spawn", "--listen"]).arg(format!("unix:{}", path.display()));
    let mut fleet = Fleet::of(launcher, dir, words);
    fleet.run.wait_log("worker 1 (pid");
    let clients = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
    (fleet, clients)
}

#[test]
fn workers_that_hang_are_joined_once_and_no_more() {
    let (mut fleet, clients) = queue(&["sleep", "1000"]);
    fleet.run.wait_log("3 workers instead of 1: 20 connections wait");
    fleet.run.wait_log("1 worker instead of 3: more of them did no more work");
    drop(clients);
    fleet.run.stop();
}

#[test]
fn who_cannot_start_beside_the_first_is_given_up_and_not_missed() {
    // A directory is a lock.
    let script = "mkdir \"$1\" || exit 3; exec sleep 1000";
    let lock = tempfile::tempdir().unwrap();
    let path = lock.path().join("lock");
    let (mut fleet, clients) = queue(&["sh", "-c", script, "sh", path.to_str().unwrap()]);
    fleet.run.wait_log("3 workers instead of 1: 20 connections wait");
    let line = fleet.run.wait_log("1 worker instead of 3: worker ");
    assert!(line.contains("one more than before, did not stay"), "{line}");
    let done = fleet.ask(&["status", "--check"]);
    assert_eq!(done.status, 0, "{done:?}");
    drop(clients);
    fleet.run.stop();
}
