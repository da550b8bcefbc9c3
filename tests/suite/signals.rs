//! Signals to the launcher: what each does, at any moment, and what a stop leaves.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::supervise::sh;
use crate::support::{Run, Source, gone, number};

const DEAF: &str = "trap '' TERM INT; echo up pid=$$; while :; do sleep 0.05; done";

#[test]
fn a_stop_that_is_obeyed_is_a_success() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut run = sh(
            &["--workers", "3"],
            "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done",
        );
        run.wait_for(3, "up");
        run.signal(signal);
        assert_eq!(run.end(), 0);
        assert_eq!(run.text(Source::Out).matches("bye").count(), 3);
    }
}

#[test]
fn the_stop_signal_can_be_chosen() {
    let script = "trap 'echo usr1; exit' USR1; echo up; while :; do sleep 0.05; done";
    let mut run = sh(&["--workers", "2", "--stop-signal", "usr1"], script);
    run.wait_for(2, "up");
    assert_eq!(run.stop(), 0);
    assert_eq!(run.text(Source::Out).matches("usr1").count(), 2);
}

#[test]
fn who_does_not_obey_is_killed_with_its_group_at_the_end_of_the_grace() {
    let script = "trap '' TERM; sh -c \"trap '' TERM; echo child pid=\\$\\$; while :; do sleep 0.05; done\" & wait; wait";
    let mut run = sh(&["--workers", "2", "--grace", "300ms"], script);
    let children = run.wait_for(2, "child");
    assert_eq!(run.stop(), 137);
    for line in &children {
        gone(number(line, "pid="));
    }
}

#[test]
fn a_second_signal_and_quit_kill_at_once() {
    for (first, second) in [(Signal::SIGTERM, Signal::SIGTERM), (Signal::SIGINT, Signal::SIGTERM)] {
        let mut run = sh(&["--workers", "2", "--grace", "1h"], DEAF);
        run.wait_for(2, "up");
        run.signal(first);
        run.wait_log("stopping");
        // What comes within 50 ms is the same stop again, and nothing tells that they are over.
        std::thread::sleep(Duration::from_millis(60));
        run.signal(second);
        assert_eq!(run.end(), 137);
    }
    let mut run = sh(&["--workers", "2", "--grace", "1h"], DEAF);
    run.wait_for(2, "up");
    run.signal(Signal::SIGQUIT);
    assert_eq!(run.end(), 137);
}

#[test]
fn timeout_signals_twice_and_means_one_stop() {
    let mut timeout = Command::new("timeout");
    timeout.args(["1", env!("CARGO_BIN_EXE_throng-rs"), "--workers", "2", "--", "sh", "-c"]);
    timeout.arg("trap 'sleep 0.2; echo bye; exit' TERM; while :; do sleep 0.05; done");
    let mut run = Run::start(&mut timeout);
    assert_eq!(run.end(), 124);
    assert_eq!(run.text(Source::Out).matches("bye").count(), 2);
}

#[test]
fn scaling_by_signals_takes_the_highest_slot_first() {
    let mut run = sh(
        &["--workers", "2"],
        "trap 'echo bye id=$THRONG_WORKER_ID; exit' TERM; echo up id=$THRONG_WORKER_ID; while :; do sleep 0.05; done",
    );
    run.wait_for(2, "up id=");
    run.signal(Signal::SIGTTIN);
    run.wait("up id=3");
    run.signal(Signal::SIGTTOU);
    run.wait("bye id=3");
    run.signal(Signal::SIGTTOU);
    run.wait("bye id=2");
    assert_eq!(run.stop(), 0);
}

#[test]
fn hup_restarts_one_after_the_other_and_is_nothing_under_nohup() {
    let script = "echo up id=$THRONG_WORKER_ID gen=$THRONG_WORKER_GENERATION; exec sleep 1000";
    let mut run = sh(&["--workers", "2"], script);
    run.wait_for(2, "up id=");
    run.signal(Signal::SIGHUP);
    run.wait_log("reloading 2 workers");
    run.wait("gen=2");
    run.wait("gen=2");
    run.wait_log("the reload is done");
    assert_eq!(run.stop(), 0);

    let mut command = Command::new("env");
    command.args([
        "--ignore-signal=HUP",
        env!("CARGO_BIN_EXE_throng-rs"),
        "--workers",
        "2",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let mut run = Run::start(&mut command);
    run.wait_for(2, "up id=");
    run.signal(Signal::SIGHUP);
    assert_eq!(run.stop(), 0);
    assert!(!run.text(Source::Err).contains("reloading"));
}

#[test]
fn a_reload_gives_what_was_given_up_another_chance() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad");
    fs::write(&bad, "").unwrap();
    let script = format!(
        "echo up id=$THRONG_WORKER_ID; [ $THRONG_WORKER_ID = 2 ] && [ -e {} ] && exit 5; exec sleep 1000",
        bad.display()
    );
    let mut run = sh(&["--workers", "2", "--max-restarts", "2"], &script);
    run.wait_log("given up");
    fs::remove_file(&bad).unwrap();
    run.signal(Signal::SIGHUP);
    run.wait_log("the reload is done");
    assert_eq!(crate::support::children(run.pid(), false).len(), 2);
    assert_eq!(run.stop(), 0);
}

#[test]
fn other_signals_are_passed_on() {
    let mut run = sh(
        &["--workers", "2"],
        "trap 'echo usr1' USR1; trap 'echo real-time' 35; echo up; while :; do sleep 0.05; done",
    );
    run.wait_for(2, "up");
    run.signal(Signal::SIGUSR1);
    run.wait_for(2, "usr1");
    // A real-time signal has a number only; `kill` knows it.
    Command::new("kill").args(["-35", &run.pid().to_string()]).status().unwrap();
    run.wait_for(2, "real-time");
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_stopped_worker_still_stops() {
    let mut run = sh(&["--workers", "2"], "echo up pid=$$; exec sleep 1000");
    for line in run.wait_for(2, "up") {
        kill(Pid::from_raw(number(&line, "pid=")), Signal::SIGSTOP).unwrap();
    }
    assert_eq!(run.stop(), 0);
}

#[test]
fn workers_stop_and_go_on_with_us() {
    let mut run = sh(&["--workers", "2"], "echo up pid=$$; exec sleep 1000");
    let pids: Vec<i32> = run.wait_for(2, "up").iter().map(|line| number(line, "pid=")).collect();
    let state = |pid: i32| procfs::process::Process::new(pid).unwrap().stat().unwrap().state;
    let become_ = |pid: i32, stopped: bool| {
        let end = std::time::Instant::now() + crate::support::LIMIT;
        while (state(pid) == 'T') != stopped {
            assert!(std::time::Instant::now() < end, "{pid} is {}", state(pid));
            std::thread::yield_now();
        }
    };
    for signal_after in [None, Some(Signal::SIGTTIN)] {
        run.signal(Signal::SIGTSTP);
        for pid in &pids {
            become_(*pid, true);
        }
        become_(run.pid().as_raw(), true);
        run.signal(Signal::SIGCONT);
        // A stop signal right behind takes a CONT back that nobody has read yet.
        if let Some(signal) = signal_after {
            run.signal(signal);
        }
        for pid in &pids {
            become_(*pid, false);
        }
    }
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_stopped_group_goes_on_for_the_stop_also_as_pid_1() {
    if !nix::unistd::geteuid().is_root() {
        crate::beds::skip("a_stopped_group_goes_on_for_the_stop_also_as_pid_1", "not root");
        return;
    }
    let script = "trap 'exit 0' TERM; echo up; while :; do sleep 0.2; done";
    let mut command = Command::new("unshare");
    command.args([
        "-pf",
        "--mount-proc",
        "--kill-child",
        env!("CARGO_BIN_EXE_throng-rs"),
        "--workers",
        "2",
        "--grace",
        "1h",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let mut run = Run::start(&mut command);
    run.wait_for(2, "up");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.pid())).unwrap();
    let inner = Pid::from_raw(children.trim().parse().unwrap());
    kill(inner, Signal::SIGTSTP).unwrap();
    kill(inner, Signal::SIGTERM).unwrap();
    assert_eq!(run.end(), 0);
}

#[test]
fn an_early_stop_signal_is_not_lost() {
    // Whenever it comes, the run ends; what there is of it by then ends with it.
    for _ in 0..20 {
        let mut run = sh(&["--workers", "3"], "exec sleep 1000");
        run.wait_log("3 workers");
        assert!([0, 143].contains(&run.stop()));
    }
}

#[test]
fn scaling_keeps_within_the_bounds() {
    let bounds = ["--workers", "2", "--min-workers", "2", "--max-workers", "3"];
    let mut run =
        sh(&bounds, "echo up id=$THRONG_WORKER_ID of=$THRONG_WORKER_COUNT; exec sleep 1000");
    run.wait_for(2, "of=2");
    run.signal(Signal::SIGTTIN);
    run.wait("up id=3 of=3");
    run.signal(Signal::SIGTTIN);
    run.signal(Signal::SIGTTOU);
    run.wait_log("2 workers instead of 3");
    run.signal(Signal::SIGTTOU);
    assert_eq!(run.stop(), 0);
    let log = run.text(Source::Err);
    assert!(!log.contains("4 workers instead") && !log.contains("1 worker instead"), "{log}");
}
