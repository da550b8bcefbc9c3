//! The launcher is killed, by KILL, which nobody can answer: nobody outlives it, because a guard does.

use std::fs;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Run, Trace, children, gone, number, state, until};

/// The guard of a launcher, as soon as it waits.
fn guard(run: &Run) -> i32 {
    let mut found = Vec::new();
    until("the guard waits", || {
        found = children(run.pid(), true);
        found.first().is_some_and(|pid| {
            let pipe = fs::read_link(format!("/proc/{pid}/fd/0")).unwrap_or_default();
            pipe.to_string_lossy().starts_with("pipe:") && state(*pid) == Some('S')
        })
    });
    assert_eq!(found.len(), 1);
    found[0]
}

fn sh(trace: &Trace, args: &[&str], script: &str) -> Run {
    let mut all = args.to_vec();
    all.extend(["--", "sh", "-c", script]);
    Run::start(&mut trace.throng(&all))
}

/// Kills the launcher and waits until nothing is left of it.
#[track_caller]
fn killed(mut run: Run, trace: &Trace) {
    let guards = children(run.pid(), true);
    run.signal(Signal::SIGKILL);
    assert_eq!(run.end(), 137);
    trace.ends();
    for guard in guards {
        until("the guard has ended", || matches!(state(guard), None | Some('Z')));
    }
}

#[test]
fn nobody_outlives_a_killed_launcher() {
    for script in [
        "echo up; exec sleep 1000",
        // In the group: children, also stopped ones, a stopped worker, one who hears nothing but KILL.
        "sleep 1000 & sh -c 'sleep 1000 & exec sleep 1000' & echo up; wait",
        "sleep 1000 & kill -STOP $!; echo up; kill -STOP $$",
        "trap '' TERM INT HUP; sh -c 'while :; do sleep 0.05; done' & echo up; while :; do sleep 0.05; done",
        // Out of it: in sessions of their own, one below the other, as orphans, stopped.
        "setsid sleep 1000 & echo up; wait",
        "setsid sh -c 'setsid sleep 1000 & exec sleep 1000' & echo up; wait",
        "setsid sh -c 'setsid sleep 1000 & exit' & wait; echo up; exec sleep 1000",
        "setsid sh -c 'kill -STOP $$' & echo up; wait",
        // Who forks and ends all the time.
        "setsid sh -c 'again() { sleep 0.01; again & }; again' & echo up; exec sleep 1000",
    ] {
        let trace = Trace::new();
        let mut run = sh(&trace, &["--workers", "4"], script);
        run.wait_for(4, "up");
        killed(run, &trace);
    }
}

#[test]
fn a_group_is_known_also_where_nobody_carries_the_environment() {
    let script = "env -i /bin/sh -c 'echo bare pid=$$; exec /bin/sleep 1000' & wait";
    let trace = Trace::new();
    let mut run = sh(&trace, &["--workers", "2"], script);
    let bare: Vec<i32> = run.wait_for(2, "bare").iter().map(|line| number(line, "pid=")).collect();
    killed(run, &trace);
    for pid in bare {
        until("the group has ended", || matches!(state(pid), None | Some('Z')));
    }
}

#[test]
fn also_during_a_start() {
    let script = "setsid sleep 1000 & echo up; exec sleep 1000";
    for started in 0..8 {
        let trace = Trace::new();
        let mut run = sh(&trace, &["--workers", "8"], script);
        run.wait_log("8 workers");
        run.wait_for(started, "up");
        killed(run, &trace);
    }
}

#[test]
fn also_during_a_stop() {
    let script = "setsid sleep 1000 & trap '' TERM; echo up; while :; do sleep 0.05; done";
    let trace = Trace::new();
    let mut run = sh(&trace, &["--workers", "4", "--grace", "1h"], script);
    run.wait_for(4, "up");
    run.signal(Signal::SIGTERM);
    run.wait_log("stopping");
    killed(run, &trace);
}

#[test]
fn also_after_the_guard_was_killed_and_after_workers_came_and_went() {
    let script = "setsid sleep 1000 & echo up id=$THRONG_WORKER_ID; exec sleep 1000";
    let trace = Trace::new();
    let mut run = sh(&trace, &["-v", "--workers", "2"], script);
    let mut before = number(&run.wait_log("the guard is pid"), "pid ");
    run.wait_for(2, "up");
    for _ in 0..2 {
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        run.wait_log(&format!("the guard (pid {before}) ended with SIGKILL"));
        let now = number(&run.wait_log("the guard is pid"), "pid ");
        assert_ne!(now, before);
        before = now;
    }
    run.signal(Signal::SIGTTIN);
    run.wait("up id=3");
    run.signal(Signal::SIGTTOU);
    run.wait_log("worker 3 (pid");
    killed(run, &trace);
}

#[test]
fn the_guard_hears_nothing_but_kill_and_does_not_stay_stopped() {
    let trace = Trace::new();
    let mut run = sh(&trace, &["--workers", "2"], "setsid sleep 1000 & echo up; exec sleep 1000");
    run.wait_for(2, "up");
    let pid = guard(&run);
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGTSTP,
    ] {
        kill(Pid::from_raw(pid), signal).unwrap();
    }
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    until("the guard goes on", || state(pid) == Some('S'));
    assert_eq!(guard(&run), pid);
    killed(run, &trace);
}

#[test]
fn the_guard_holds_nothing_and_says_what_it_is() {
    let listen = format!("127.0.0.1:{}", crate::supervise::free_port());
    let args = ["--workers", "2", "--listen", &listen, "--share", "fd"];
    let trace = Trace::new();
    let mut run = sh(&trace, &args, "echo up; exec sleep 1000");
    run.wait_for(2, "up");
    let process = procfs::process::Process::new(guard(&run)).unwrap();
    let open: Vec<_> = process.fd().unwrap().flatten().map(|fd| fd.target).collect();
    assert!(matches!(open[..], [procfs::process::FDTarget::Pipe(_)]), "{open:?}");
    let stat = process.stat().unwrap();
    assert_eq!((stat.session, stat.pgrp), (process.pid, process.pid));
    // A `pkill -f` that is meant for the launcher does not find it.
    assert_eq!(process.cmdline().unwrap(), ["throng-guard"]);
    assert_eq!(process.cwd().unwrap().to_str(), Some("/"));
    // Nobody else's mark either: the guard of a launcher that is a worker itself does its work.
    assert!(process.environ().unwrap().is_empty());
    let guard = process.pid;
    assert_eq!(run.stop(), 0);
    assert_eq!(state(guard), None, "it ends before the launcher, and is reaped");
}

#[test]
fn the_guard_ends_with_every_end() {
    for (args, script, status) in [
        (&["--restart", "never"][..], "exit 0", 0),
        (&[], "exit 3", 3),
        (&["--restart", "on-failure"], "kill -KILL $$", 137),
    ] {
        let trace = Trace::new();
        let all = [args, &["-v", "--workers", "2"]].concat();
        let mut run = sh(&trace, &all, script);
        let guard = number(&run.wait_log("the guard is pid"), "pid ");
        assert_eq!(run.end(), status);
        assert_eq!(state(guard), None);
    }
}

#[test]
fn what_belongs_to_others_is_left_alone() {
    let script = "setsid sleep 1000 & echo up; exec sleep 1000";
    let (ours, theirs) = (Trace::new(), Trace::new());
    let mut other = sh(&theirs, &["--workers", "2"], script);
    other.wait_for(2, "up");
    let before = theirs.living();
    let mut run = sh(&ours, &["--workers", "2"], "env | grep ^NOTIFY_SOCKET=; exec sleep 1000");
    // One that is alike and not the same.
    let mark = run.wait("NOTIFY_SOCKET=@throng-rs/").replace("NOTIFY_SOCKET=", "");
    let mut alike = Command::new("sleep");
    theirs.leave(alike.arg("1000").env("NOTIFY_SOCKET", mark[..mark.len() - 1].to_owned() + "x"));
    let mut alike = crate::support::Guarded::start(&mut alike);
    killed(run, &ours);
    assert!(alike.0.try_wait().unwrap().is_none());
    let after = theirs.living();
    assert!(before.iter().all(|pid| after.contains(pid)), "{before:?} {after:?}");
    assert_eq!(other.stop(), 0);
}

#[test]
fn launchers_below_launchers() {
    let inner = format!(
        "exec {} --workers 2 -- sh -c 'setsid sleep 1000 & echo up; exec sleep 1000'",
        env!("CARGO_BIN_EXE_throng-rs")
    );
    let trace = Trace::new();
    let mut run = sh(&trace, &["--workers", "2"], &inner);
    run.wait_for(4, "up");
    killed(run, &trace);
}

#[test]
fn as_pid_1_there_is_no_guard() {
    if !nix::unistd::geteuid().is_root() {
        crate::beds::skip("as_pid_1_there_is_no_guard", "not root");
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["-pf", "--mount-proc", "--kill-child", env!("CARGO_BIN_EXE_throng-rs")]);
    command.args(["--workers", "2", "--", "sh", "-c", "echo up; exec sleep 1000"]);
    let trace = Trace::new();
    trace.leave(&mut command);
    let mut run = Run::start(&mut command);
    run.wait_for(2, "up");
    let launcher = Pid::from_raw(children(run.pid(), false)[0]);
    assert!(children(launcher, true).is_empty());
    kill(launcher, Signal::SIGKILL).unwrap();
    run.end();
    trace.ends();
}

#[test]
fn a_guard_that_does_not_listen_is_replaced_and_nobody_waits_for_it() {
    // Only the freezer stops a process without its parent's being told.
    let Some(freezer) = Freezer::new() else {
        crate::beds::skip(
            "a_guard_that_does_not_listen_is_replaced_and_nobody_waits_for_it",
            "no cgroup v1 freezer that is ours to write",
        );
        return;
    };
    let script = "setsid sleep 1000 & echo up id=$THRONG_WORKER_ID; exec sleep 1000";
    let trace = Trace::new();
    let mut run = sh(&trace, &["-v", "--workers", "2"], script);
    let first = number(&run.wait_log("the guard is pid"), "pid ");
    run.wait_for(2, "up");
    freezer.freeze(first);
    // Its pipe is filled up with what it would not understand.
    let mut how = fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut how, nix::libc::O_NONBLOCK);
    let mut pipe = how.write(true).open(format!("/proc/{first}/fd/0")).unwrap();
    while std::io::Write::write(&mut pipe, &[9; 8]).is_ok() {}
    drop(pipe);
    run.signal(Signal::SIGTTIN);
    run.wait_log("does not listen");
    assert_ne!(number(&run.wait_log("the guard is pid"), "pid "), first);
    run.wait("up id=3");
    freezer.thaw();
    gone(first);
    killed(run, &trace);
}

/// A cgroup whose processes stand still.
struct Freezer(std::path::PathBuf);

impl Freezer {
    fn new() -> Option<Self> {
        let path = format!("/sys/fs/cgroup/freezer/throng-test-{}", std::process::id());
        fs::create_dir(&path).ok()?;
        let freezer = Self(path.into());
        freezer.0.join("freezer.state").exists().then_some(freezer)
    }

    fn freeze(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
        fs::write(self.0.join("freezer.state"), "FROZEN").unwrap();
        let state = || fs::read_to_string(self.0.join("freezer.state")).unwrap();
        until("the process is frozen", || state() == "FROZEN\n");
    }

    fn thaw(&self) {
        fs::write(self.0.join("freezer.state"), "THAWED").unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        // Goes when its last process has gone.
        until("the cgroup can be removed", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_refused_guard_is_told_and_comes_later() {
    // No descriptor is left when the guard has to be replaced.
    let trace = Trace::new();
    let mut run = sh(&trace, &["-v", "--workers", "2"], "echo up; exec sleep 1000");
    let guard = number(&run.wait_log("the guard is pid"), "pid ");
    run.wait_for(2, "up");
    crate::faults::limit_files(run.pid(), 3);
    kill(Pid::from_raw(guard), Signal::SIGKILL).unwrap();
    run.wait_log("no guard can be started");
    crate::faults::limit_files(run.pid(), 1024);
    run.wait_log("the guard is pid");
    killed(run, &trace);
}
