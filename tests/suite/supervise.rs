//! Ends and new starts, stops and statuses, orphans and leftovers: the contract's promises, kept by
//! the real binary with real processes.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Run, Source, done, gone, number, throng};

/// A fleet of shell scripts.
pub(crate) fn sh(args: &[&str], script: &str) -> Run {
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
        throng(&["--workers", "2", "--share", "off", "--", "python3", "-c", &silent])
            .env("PORT", port.to_string()),
    );
    run.wait_log(&format!("wanted port {port}"));
    assert_eq!(run.end(), 6);
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |text, line| text + " " + line + "\n")
}

/// A port that nobody has right now, and that nobody gets by chance: the kernel gives its own choice from
/// 32768 on, no test here asks for one twice, and other processes that test begin elsewhere.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(331);
    loop {
        let number = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let port = 12_000 + u16::try_from(number).unwrap();
        // On every address: some ask for all of them.
        if std::net::TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
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
    // A user who may have few processes: the launcher, its guard, two workers, and not a third.
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
        "--nproc=4",
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
    let mut command = throng(&["--workers", "3", "--share", "off", "--", "python3", "-c", &script]);
    let mut run = Run::start(command.env("PORT", port.to_string()));
    run.wait_for(3, "up id=");
    run.signal(Signal::SIGTTOU);
    run.wait_log("2 workers instead of 3");
    run.signal(Signal::SIGHUP);
    run.wait_log("the reload is done");
    assert_eq!(run.stop(), 0);
    // One that ends with 0, and one that is killed, while siblings listen.
    let script = server(port, "time.sleep(0.2 if os.environ['THRONG_WORKER_ID']=='2' else 0.6)");
    let mut command = throng(&[
        "--workers",
        "3",
        "--share",
        "off",
        "--restart",
        "never",
        "--",
        "python3",
        "-c",
        &script,
    ]);
    assert_eq!(done(command.env("PORT", port.to_string())).status, 0);
    let script = server(
        port,
        "os.kill(os.getpid(),9) if os.environ['THRONG_WORKER_GENERATION']=='1' and os.environ['THRONG_WORKER_ID']=='2' else time.sleep(1000)",
    );
    let mut command = throng(&["--workers", "3", "--share", "off", "--", "python3", "-c", &script]);
    let mut run = Run::start(command.env("PORT", port.to_string()));
    run.wait_for(4, "up id=");
    assert_eq!(run.stop(), 0);
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
    for line in &last {
        gone(number(line, "pid="));
    }
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

#[test]
fn a_worker_that_fails_for_another_reason_does_not_stop_one_that_shares_its_port() {
    let port = free_port();
    let failing = "os.environ['THRONG_WORKER_ID']=='1' and sys.exit('cannot reach the database')\ntime.sleep(1000)";
    let script = server(port, failing);
    let mut command = throng(&[
        "--workers",
        "2",
        "--share",
        "off",
        "--max-restarts",
        "3",
        "--",
        "python3",
        "-c",
        &script,
    ]);
    let mut run = Run::start(command.env("PORT", port.to_string()));
    run.wait_log("worker 1 is given up after 3 early ends");
    assert_eq!(run.stop(), 0);
    assert!(!run.text(Source::Err).contains("wanted port"));
}

#[test]
fn a_group_whose_last_end_nobody_tells_us_costs_no_grace() {
    // The leader's child has a child in the group and leaves the group itself: the grandchild's end
    // is told to the child alone, which never asks.
    let script = "import os,signal,time\n\
        if os.fork()==0:\n\
        \x20if os.fork()==0: signal.pause()\n\
        \x20os.setsid(); print('up',flush=True); signal.pause()\n\
        signal.pause()";
    let mut run = Run::start(&mut throng(&[
        "--workers",
        "2",
        "--grace",
        "1h",
        "--",
        "python3",
        "-c",
        script,
    ]));
    run.wait_for(2, "up");
    assert_eq!(run.stop(), 0);
}
