//! Ends and new starts, stops and statuses, orphans and leftovers: the contract's promises, kept by
//! the real binary with real processes.

use std::fs;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Run, Source, done, gone, number, throng};

fn sh(args: &[&str], script: &str) -> Run {
    let mut all = args.to_vec();
    all.extend(["--", "sh", "-c", script]);
    Run::start(&mut throng(&all))
}

fn status(args: &[&str], script: &str) -> i32 {
    sh(args, script).end()
}

#[test]
fn statuses_when_the_work_ends_by_itself() {
    let two = ["--workers", "2"];
    assert_eq!(status(&two, "exit 3"), 3, "every first start failed");
    assert_eq!(status(&two, "exit 0"), 1, "a server that ends has failed");
    assert_eq!(status(&two, "kill -KILL $$"), 137);
    let never = ["--workers", "2", "--restart", "never"];
    assert_eq!(status(&never, "exit 0"), 0);
    assert_eq!(status(&never, "exit $((THRONG_WORKER_INDEX * 7))"), 7);
    assert_eq!(status(&never, "kill -TERM $$"), 143);
    let on_failure = ["--workers", "2", "--restart", "on-failure"];
    assert_eq!(status(&on_failure, "exit 0"), 0);
    assert_eq!(status(&on_failure, "exit 4"), 4);
    assert_eq!(
        status(&on_failure, "exit $((THRONG_WORKER_GENERATION == 1 && THRONG_WORKER_ID == 1))"),
        0
    );
}

#[test]
fn a_failing_slot_backs_off_and_is_given_up_while_the_other_serves() {
    let script = "echo start id=$THRONG_WORKER_ID gen=$THRONG_WORKER_GENERATION; \
        [ $THRONG_WORKER_ID = 1 ] && exit 9; exec sleep 1000";
    let mut run = sh(&["--workers", "2", "--max-restarts", "3"], script);
    for (generation, ends) in [(1, "1 early end"), (2, "2 early ends")] {
        run.wait(&format!("id=1 gen={generation}"));
        run.wait_log(ends);
    }
    run.wait("id=1 gen=3");
    run.wait_log("given up after 3 early ends");
    assert_eq!(run.stop(), 0);
    let starts = run.text(Source::Out).matches("id=1").count();
    assert_eq!(starts, 3);
}

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

const DEAF: &str = "trap '' TERM INT; echo up pid=$$; while :; do sleep 0.05; done";

#[test]
fn who_does_not_obey_is_killed_with_its_group_at_the_end_of_the_grace() {
    let script = "trap '' TERM; sh -c \"trap '' TERM; echo child pid=\\$\\$; while :; do sleep 0.05; done\" & wait; wait";
    let mut run = sh(&["--workers", "2", "--grace", "300ms"], script);
    let children = run.wait_for(2, "child");
    assert_eq!(run.stop(), 137);
    children.iter().for_each(|line| gone(number(line, "pid=")));
}

#[test]
fn a_second_signal_and_quit_kill_at_once() {
    for (first, second) in [(Signal::SIGTERM, Signal::SIGTERM), (Signal::SIGINT, Signal::SIGTERM)] {
        let mut run = sh(&["--workers", "2", "--grace", "1h"], DEAF);
        run.wait_for(2, "up");
        run.signal(first);
        run.wait_log("stopping");
        run.signal(second);
        assert_eq!(run.end(), 137);
    }
    let mut run = sh(&["--workers", "2", "--grace", "1h"], DEAF);
    run.wait_for(2, "up");
    run.signal(Signal::SIGQUIT);
    assert_eq!(run.end(), 137);
}

#[test]
fn what_a_worker_leaves_behind_is_stopped_before_its_slot_starts_again() {
    let script = "[ $THRONG_WORKER_GENERATION = 1 ] && [ $THRONG_WORKER_ID = 1 ] && { sleep 1000 & echo left pid=$!; exit 1; }; \
        echo again id=$THRONG_WORKER_ID; exec sleep 1000";
    let mut run = sh(&["--workers", "2"], script);
    let left = number(&run.wait("left"), "pid=");
    run.wait("again id=1");
    assert!(kill(Pid::from_raw(left), None).is_err(), "it has gone before");
    assert_eq!(run.stop(), 0);
}

#[test]
fn an_orphan_that_left_its_group_does_not_outlive_the_run() {
    let script = "setsid sh -c 'echo orphan pid=$$; exec sleep 1000' & echo up; exec sleep 1000";
    let mut run = sh(&["--workers", "2"], script);
    let orphans = run.wait_for(2, "orphan");
    assert_eq!(run.stop(), 0);
    for line in &orphans {
        assert!(
            kill(Pid::from_raw(number(line, "pid=")), None).is_err(),
            "{line} outlived the run"
        );
    }
}

#[test]
fn orphans_are_reaped_as_pid_1() {
    if !nix::unistd::geteuid().is_root() {
        crate::beds::skip("orphans_are_reaped_as_pid_1", "not root");
        return;
    }
    // Twenty grandchildren end as children of PID 1; then only the known processes are left.
    let script = "for n in $(seq 20); do (sleep 0.05 &) ; done; sleep 0.5; \
        grep -h -s '^State' /proc/[0-9]*/status | grep -c Z | sed s/^/zombies=/; echo self=$$; exec sleep 1000";
    let mut command = Command::new("unshare");
    command.args([
        "-pf",
        "--mount-proc",
        "--kill-child",
        env!("CARGO_BIN_EXE_throng-rs"),
        "--workers",
        "1",
        "--restart",
        "always",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let mut run = Run::start(&mut command);
    assert_eq!(run.wait("zombies="), "zombies=0");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.pid())).unwrap();
    let inner = Pid::from_raw(children.trim().parse().unwrap());
    kill(inner, Signal::SIGTERM).unwrap();
    assert_eq!(run.end(), 0);
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
    run.wait_log("restarting 2 workers");
    run.wait("gen=2");
    run.wait("gen=2");
    run.wait_log("have been restarted");
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
    assert!(!run.text(Source::Err).contains("restarting"));
}

#[test]
fn other_signals_are_passed_on() {
    let mut run =
        sh(&["--workers", "2"], "trap 'echo usr1' USR1; echo up; while :; do sleep 0.05; done");
    run.wait_for(2, "up");
    run.signal(Signal::SIGUSR1);
    run.wait_for(2, "usr1");
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
fn a_port_that_a_sibling_has_is_named_with_the_way_out() {
    let port = free_port();
    let server = format!(
        "import socket,time\ns=socket.socket()\ns.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\n\
         s.bind(('127.0.0.1',{port}))\ns.listen()\nprint('serving',flush=True)\ntime.sleep(1000)"
    );
    let mut run = Run::start(&mut throng(&["--workers", "3", "--", "python3", "-c", &server]));
    let line = run.wait_log("wanted port");
    assert!(line.contains(&format!("--listen {port}")), "{line}");
    assert_eq!(run.end(), 1);

    // Silent about the reason, but it was told the port.
    let silent = format!(
        "import os\ntry:\n{}\nexcept OSError: os._exit(6)",
        indented(&server.replace(&port.to_string(), "int(os.environ['PORT'])"))
    );
    let mut run = Run::start(
        throng(&["--workers", "2", "--", "python3", "-c", &silent]).env("PORT", port.to_string()),
    );
    run.wait_log(&format!("wanted port {port}"));
    assert_eq!(run.end(), 6);
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!(" {line}\n")).collect()
}

/// A port that nobody has right now.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_worker_killed_by_a_real_time_signal_is_not_lost() {
    let mut run = sh(&["--workers", "2", "--restart", "never"], "kill -35 $$");
    run.wait_log("signal 35");
    assert_eq!(run.end(), 128 + 35);
}

#[test]
fn a_refused_fork_is_tried_again_and_the_rest_serves() {
    if !nix::unistd::geteuid().is_root() {
        crate::beds::skip("a_refused_fork_is_tried_again_and_the_rest_serves", "not root");
        return;
    }
    // A user who may have few processes: the launcher, two workers, and not a third.
    let throng = env!("CARGO_BIN_EXE_throng-rs");
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("throng-rs");
    fs::copy(throng, &copy).unwrap();
    let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), everyone).unwrap();
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        "54321",
        "--regid",
        "54321",
        "--clear-groups",
        "prlimit",
        "--nproc=3",
        "--",
    ]);
    command.arg(&copy).args([
        "--workers",
        "4",
        "--max-restarts",
        "1",
        "--",
        "sh",
        "-c",
        "echo up id=$THRONG_WORKER_ID; exec sleep 1000",
    ]);
    let mut run = Run::start(&mut command);
    run.wait_for(2, "up id=");
    run.wait_log("cannot be started");
    run.wait_log("starts again");
    assert_eq!(run.stop(), 0);
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
fn log_lines_as_json() {
    let run =
        done(&mut throng(&["--log-format", "json", "--workers", "2", "--", "sh", "-c", "exit 3"]));
    let lines: Vec<serde_json::Value> =
        run.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ended: Vec<_> = lines.iter().filter(|line| line["event"] == "ended").collect();
    assert_eq!(ended.len(), 2, "{}", run.stderr);
    assert_eq!(ended[0]["status"], 3);
    assert!(ended.iter().any(|line| line["worker"] == 2));
}

/// A server that shares its port by itself, and one that says that it cannot have it and ends well.
fn server(port: u16, after: &str) -> String {
    format!(
        "import os,socket,sys,time\ns=socket.socket()\ns.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEPORT,1)\n\
         s.bind(('127.0.0.1',{port}))\ns.listen()\nprint('up id='+os.environ['THRONG_WORKER_ID'],flush=True)\n{after}"
    )
}

#[test]
fn a_shared_port_is_nobodys_fault() {
    let port = free_port();
    let script = server(port, "time.sleep(1000)");
    let mut command = throng(&["--workers", "3", "--", "python3", "-c", &script]);
    let mut run = Run::start(command.env("PORT", port.to_string()));
    run.wait_for(3, "up id=");
    run.signal(Signal::SIGTTOU);
    run.wait_log("2 workers instead of 3");
    run.signal(Signal::SIGHUP);
    run.wait_log("have been restarted");
    assert_eq!(run.stop(), 0);
    // One that ends with 0, and one that is killed, while siblings listen.
    let script = server(port, "time.sleep(0.2 if os.environ['THRONG_WORKER_ID']=='2' else 0.6)");
    let mut command =
        throng(&["--workers", "3", "--restart", "never", "--", "python3", "-c", &script]);
    assert_eq!(done(command.env("PORT", port.to_string())).status, 0);
    let script = server(
        port,
        "os.kill(os.getpid(),9) if os.environ['THRONG_WORKER_GENERATION']=='1' and os.environ['THRONG_WORKER_ID']=='2' else time.sleep(1000)",
    );
    let mut command = throng(&["--workers", "3", "--", "python3", "-c", &script]);
    let mut run = Run::start(command.env("PORT", port.to_string()));
    run.wait_for(4, "up id=");
    assert_eq!(run.stop(), 0);
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
    run.wait_log("have been restarted");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.pid())).unwrap();
    assert_eq!(children.split_whitespace().count(), 2);
    assert_eq!(run.stop(), 0);
}

#[test]
fn workers_stop_and_go_on_with_us() {
    let mut run = sh(&["--workers", "2"], "echo up pid=$$; while :; do sleep 0.05; done");
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
        pids.iter().for_each(|pid| become_(*pid, true));
        become_(run.pid().as_raw(), true);
        run.signal(Signal::SIGCONT);
        // A stop signal right behind takes a CONT back that nobody has read yet.
        if let Some(signal) = signal_after {
            run.signal(signal);
        }
        pids.iter().for_each(|pid| become_(*pid, false));
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
fn a_chain_of_escaped_processes_does_not_outlive_the_run() {
    let script = "import os,signal,sys\nsignal.signal(signal.SIGTERM,signal.SIG_IGN)\n\
        for n in range(60):\n if os.fork(): break\n os.setsid()\nelse: print('last pid=%d'%os.getpid(),flush=True)\nsignal.pause()";
    let mut run = Run::start(&mut throng(&[
        "--workers",
        "2",
        "--grace",
        "200ms",
        "--",
        "python3",
        "-c",
        script,
    ]));
    let last = run.wait_for(2, "last");
    assert_eq!(run.stop(), 137);
    last.iter().for_each(|line| gone(number(line, "pid=")));
}

#[test]
fn who_was_here_before_us_is_not_ours_to_end() {
    let script = format!(
        "sleep 1000 & echo before pid=$!; exec {} --workers 2 -- sleep 1000",
        env!("CARGO_BIN_EXE_throng-rs")
    );
    let mut run = Run::start(Command::new("sh").args(["-c", &script]));
    let before = Pid::from_raw(number(&run.wait("before"), "pid="));
    run.wait_log("2 workers");
    run.signal(Signal::SIGTERM);
    let status = run.leave();
    assert!([0, 143].contains(&status), "{status}");
    kill(before, Signal::SIGKILL).unwrap();
}
