//! Rollouts of real workers: with and without surge, what they bring in, and where they stop; and the
//! command that comes before all of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{Run, Source, done, number, throng};

/// Says who it is, and when it goes.
const WORKER: &str =
    "trap 'echo bye id=$THRONG_WORKER_ID gen=$THRONG_WORKER_GENERATION; exit 0' TERM
echo up id=$THRONG_WORKER_ID gen=$THRONG_WORKER_GENERATION pid=$$
while :; do sleep 1 & wait; done";

fn sh(args: &[&str], script: &str) -> Run {
    Run::start(throng(args).args(["-v", "--", "sh", "-c", script]))
}

/// Who is not ready yet is replaced at once, so most of these wait for it.
fn all_ready(run: &mut Run, workers: usize) {
    for _ in 0..workers {
        run.wait_log("is ready");
    }
}

#[test]
fn the_new_one_serves_before_the_old_one_goes() {
    let mut run = sh(&["--workers", "2"], WORKER);
    run.wait_for(2, "up id=");
    all_ready(&mut run, 2);
    run.signal(Signal::SIGHUP);
    run.wait_log("reloading 2 workers, one after the other: the new one is ready first");
    for id in 1..=2 {
        run.wait(&format!("up id={id} gen=2"));
        run.wait(&format!("bye id={id} gen=1"));
    }
    run.wait_log("the reload is done");
    assert_eq!(run.stop(), 0);
}

#[test]
fn without_surge_the_old_one_goes_first() {
    let mut run = sh(&["--workers", "2", "--surge", "0"], WORKER);
    run.wait_for(2, "up id=");
    all_ready(&mut run, 2);
    run.signal(Signal::SIGHUP);
    run.wait_log("the old one stops first");
    for id in 1..=2 {
        run.wait(&format!("bye id={id} gen=1"));
        run.wait(&format!("up id={id} gen=2"));
    }
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_port_that_only_one_can_have_is_given_up_first() {
    let code = "import os,socket,time
s=socket.socket()
s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)
s.bind(('127.0.0.1',int(os.environ['PORT'])))
s.listen()
print('up gen='+os.environ['THRONG_WORKER_GENERATION'],flush=True)
time.sleep(1000)";
    let port = crate::supervise::free_port();
    let mut command = throng(&["--workers", "1", "--share", "off", "--", "python3", "-c", code]);
    let mut run = Run::start(command.env("PORT", port.to_string()));
    run.wait("up gen=1");
    run.signal(Signal::SIGHUP);
    run.wait_log(&format!("worker 1 listens on port {port} by itself"));
    run.wait("up gen=2");
    run.wait_log("the reload is done");
    assert_eq!(run.stop(), 0);
}

#[test]
fn where_the_new_one_fails_the_rollout_stops_and_the_old_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad");
    let script = format!("[ -e {} ] && exit 9\n{WORKER}", bad.display());
    let mut run = sh(&["--workers", "3"], &script);
    let up = run.wait_for(3, "up id=");
    fs::write(&bad, "").unwrap();
    all_ready(&mut run, 3);
    run.signal(Signal::SIGHUP);
    run.wait_log("ended with status 9 before it was ready; the reload stops and the others stay");
    for line in &up {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.pid()));
        let pid = number(line, "pid=").to_string();
        assert!(children.unwrap().split_whitespace().any(|child| child == pid), "{line}");
    }
    // The next one finds it mended.
    fs::remove_file(&bad).unwrap();
    run.signal(Signal::SIGHUP);
    run.wait_for(3, "up id=");
    run.wait_log("the reload is done");
    assert_eq!(run.stop(), 0);
}

fn configured(dir: &Path, words: &str) -> Command {
    fs::write(dir.join("throng.toml"), words).unwrap();
    let mut command = throng(&["--workers", "2"]);
    command.current_dir(dir);
    command
}

#[test]
fn a_reload_brings_in_what_the_configuration_says_now() {
    let dir = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        format!(
            "env-file = 'env'\ncommand = ['sh', '-c', 'echo {text} $COLOR id=$THRONG_WORKER_ID; exec sleep 1000']\n"
        )
    };
    fs::write(dir.path().join("env"), "COLOR=red\n").unwrap();
    let mut run = Run::start(&mut configured(dir.path(), &file("one")));
    run.wait_for(2, "one red");
    fs::write(dir.path().join("env"), "COLOR=blue\n").unwrap();
    configured(dir.path(), &file("two"));
    run.signal(Signal::SIGHUP);
    run.wait_for(2, "two blue");
    run.wait_log("the reload is done");
    // What makes no sense changes nothing.
    configured(dir.path(), "command = 7\n");
    run.signal(Signal::SIGHUP);
    run.wait_log("nothing is reloaded, and the workers stay as they are: bad value 7 for command");
    configured(dir.path(), "command = ['no-such-program']\n");
    run.signal(Signal::SIGHUP);
    run.wait_log("no-such-program");
    assert_eq!(run.stop(), 0);
    assert_eq!(run.text(Source::Out).lines().count(), 4);
}

#[test]
fn workers_are_renewed_for_their_age_one_at_a_time() {
    let mut run = sh(&["--workers", "2", "--max-worker-age", "2s"], WORKER);
    run.wait_for(2, "gen=1");
    run.wait_log("renewing for its age 1 worker");
    run.wait("gen=2");
    run.wait("bye id=");
    run.wait_log("the renewal is done");
    run.wait_log("renewing for its age 1 worker");
    assert_eq!(run.stop(), 0);
}

#[test]
fn not_more_start_at_once_than_was_said() {
    let mut run = sh(&["--workers", "3", "--start-parallel", "1"], WORKER);
    for id in 1..=3 {
        run.wait_log(&format!("worker {id} is started"));
        run.wait_log(&format!("worker {id} (pid"));
    }
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_command_comes_before_the_first_worker_and_its_failure_ends_all() {
    let before = "echo prepared; test -z \"$THRONG_WORKER_ID\"";
    let mut run = sh(&["--workers", "2", "--before", before], WORKER);
    run.wait("prepared");
    run.wait_for(2, "up id=");
    assert_eq!(run.stop(), 0);

    let script = ["--", "sh", "-c", "echo a worker"];
    let failed = done(throng(&["--workers", "2", "--before", "exit 3"]).args(script));
    assert_eq!(failed.status, 3);
    assert!(failed.stderr.contains("--before ended with status 3"), "{}", failed.stderr);
    assert_eq!(failed.stdout, "");
}

#[test]
fn a_stop_ends_the_command_before_too() {
    let script = "trap 'echo obeyed; exit 0' TERM; echo up; while :; do sleep 1 & wait; done";
    let mut run = sh(&["--workers", "2", "--before", script], "echo a worker");
    run.wait("up");
    run.signal(Signal::SIGTERM);
    run.wait("obeyed");
    assert_eq!(run.end(), 0);
    assert!(!run.text(Source::Out).contains("a worker"));

    let script = "trap '' TERM; echo up; exec sleep 1000";
    let mut run = sh(&["--workers", "2", "--before", script, "--grace", "200ms"], "echo a worker");
    run.wait("up");
    assert_eq!(run.stop(), 137);
}
