//! The control interface of the real binary, by its own commands and by curl.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::driven::{Fleet, WORKER};
use crate::support::{Done, Run, Source, done, gone, number, throng};

impl Fleet {
    /// Two workers, both ready.
    fn of_two() -> Self {
        let mut fleet = Self::start(&["--workers", "2"], WORKER);
        fleet.both_ready();
        fleet
    }

    /// One exchange by hand: the whole answer.
    pub(crate) fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn post(&self, path: &str, body: &str) -> String {
        self.raw(&format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }
}

#[test]
fn status_tells_all_of_each_worker() {
    let mut fleet = Fleet::of_two();
    let status = fleet.json(&["status"]);
    assert_eq!(status["pid"], fleet.run.pid().as_raw());
    assert_eq!((&status["target"], &status["ready"]), (&2.into(), &true.into()));
    let workers = status["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2);
    for (index, worker) in workers.iter().enumerate() {
        assert_eq!(worker["id"], index + 1);
        assert_eq!(worker["state"], "ready");
        assert!(worker["memory"]["private_bytes"].as_u64().unwrap() > 10_000, "{worker}");
        assert!(worker["memory"]["shared_bytes"].as_u64().unwrap() > 100_000, "{worker}");
        assert_eq!(worker["processes"], 2, "the shell and its sleep: {worker}");
        assert_eq!(worker["connections"], Value::Null);
        assert_eq!(worker["last_exit"], Value::Null);
        let pid = worker["pid"].as_i64().unwrap();
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(command.starts_with("sh\0"), "{command}");
    }
    let text = fleet.ask(&["status"]).stdout;
    assert!(text.starts_with("2 of 2 workers ready, pid "), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    // A crash leaves its trace.
    let pid = i32::try_from(workers[1]["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    fleet.run.wait("up id=2 gen=2");
    let worker = fleet.json(&["status"])["workers"][1].take();
    assert_eq!((&worker["restarts"], &worker["generation"]), (&1.into(), &2.into()));
    assert_eq!(worker["last_exit"]["status"], 137);
    assert_eq!(worker["last_exit"]["text"], "SIGKILL");
    let plan = fleet.raw("GET /v1/plan HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(plan.contains("\"bound_by\""), "{plan}");
    assert_eq!(fleet.run.stop(), 0);
    assert!(!fleet.socket().exists());
}

#[test]
fn check_is_a_health_check() {
    let script = "echo up; [ $THRONG_WORKER_ID = 1 ] && systemd-notify --ready; read x < gate; systemd-notify --ready; exec sleep 1000";
    let dir = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&dir.path().join("gate"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut command = throng(&["--workers", "2", "--ready", "notify", "-v", "--chdir"]);
    command.arg(dir.path()).arg("--control").arg(dir.path().join("s"));
    let run = Run::start(command.args(["--", "sh", "-c", script]));
    let mut fleet = Fleet { run, dir };
    fleet.run.wait_for(2, "up");
    fleet.run.wait_log("worker 1 (pid");
    let check = fleet.ask(&["status", "--check"]);
    assert_eq!((check.status, check.stdout.as_str()), (1, "not ready: 1 of 2 workers serve\n"));
    fs::write(fleet.dir.path().join("gate"), "\n\n").unwrap();
    fleet.run.wait_log("worker 2 (pid");
    let check = fleet.ask(&["status", "--check"]);
    assert_eq!((check.status, check.stdout.as_str()), (0, "ready: 2 of 2 workers serve\n"));
    fleet.run.stop();
    let nobody = fleet.ask(&["status", "--check"]);
    assert_eq!(nobody.status, 1);
    assert!(nobody.stderr.contains("no launcher answers at"), "{}", nobody.stderr);
}

#[test]
fn the_size_follows_and_keeps_within_its_bounds() {
    let mut fleet = Fleet::start(&["--workers", "2", "--max-workers", "4"], WORKER);
    fleet.run.wait_for(2, "up id=");
    for (size, told) in [
        ("+1", "3 workers instead of 2\n"),
        ("-2", "1 worker instead of 3\n"),
        ("9", "4 workers instead of 1; 9 is outside of 1 to 4 (--min-workers, --max-workers)\n"),
        ("auto", "2 workers instead of 4\n"),
    ] {
        assert_eq!(fleet.ask(&["scale", size]).stdout, told);
    }
    for bad in ["0", "x", "-0", "1.5"] {
        let done = fleet.ask(&["scale", bad]);
        assert_eq!(done.status, 2);
        assert!(done.stderr.contains(bad), "{}", done.stderr);
    }
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn reload_and_restart_wait_for_their_end() {
    let mut fleet = Fleet::of_two();
    assert_eq!(fleet.ask(&["reload"]).stdout, "all workers are replaced\n");
    let status = fleet.json(&["status"]);
    assert!(status["workers"].as_array().unwrap().iter().all(|worker| worker["generation"] == 2));
    assert_eq!(status["rollout"], Value::Null);
    assert_eq!(fleet.json(&["restart", "2"])["done"], true);
    let status = fleet.json(&["status"]);
    assert_eq!(status["workers"][0]["generation"], 2);
    assert_eq!(status["workers"][1]["generation"], 3);
    let nobody = fleet.ask(&["restart", "7"]);
    assert_eq!((nobody.status, nobody.stderr.as_str()), (1, "throng-rs: there is no worker 7\n"));
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn a_reload_that_fails_says_why_and_fails() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad");
    let mut fleet =
        Fleet::start(&["--workers", "2"], &format!("[ -e {} ] && exit 9\n{WORKER}", bad.display()));
    for _ in 0..2 {
        fleet.run.wait_log("is ready");
    }
    fs::write(&bad, "").unwrap();
    let failed = fleet.ask(&["reload"]);
    fleet.run.wait_log("the reload stops");
    assert_eq!(failed.status, 1);
    assert!(
        failed.stderr.contains("the new worker 1 ended with status 9 before it was ready"),
        "{}",
        failed.stderr
    );
    assert_eq!(fleet.json(&["status"])["ready"], true);
    // A stop in the middle of one ends it with that reason.
    fs::remove_file(&bad).unwrap();
    let mut reload = Run::start(&mut fleet.client(&["reload"]));
    fleet.run.wait_log("reloading 2 workers");
    assert_eq!(fleet.run.stop(), 0);
    assert_eq!(reload.end(), 1);
    let told = reload.text(Source::Err);
    assert!(told.contains("broken off by a stop"), "{told}");
}

#[test]
fn signals_go_to_whom_they_are_meant_for() {
    let script = "trap 'echo got id=$THRONG_WORKER_ID' USR1
echo up id=$THRONG_WORKER_ID
while :; do sleep 1 & wait; done";
    let mut fleet = Fleet::start(&["--workers", "2"], script);
    fleet.run.wait_for(2, "up id=");
    assert_eq!(fleet.ask(&["signal", "USR1", "2"]).stdout, "sent to 1 worker\n");
    fleet.run.wait("got id=2");
    assert_eq!(fleet.json(&["signal", "sigusr1"])["signalled"], 2);
    fleet.run.wait("got id=");
    fleet.run.wait("got id=");
    let bad = fleet.ask(&["signal", "HUPP"]);
    assert_eq!(bad.status, 2);
    assert!(bad.stderr.contains("\"HUPP\""), "{}", bad.stderr);
    assert_eq!(fleet.ask(&["signal", "USR1", "5"]).status, 1);
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn output_is_kept_and_followed() {
    let script = "echo line of $THRONG_WORKER_ID; echo error of $THRONG_WORKER_ID >&2
trap 'echo more of $THRONG_WORKER_ID' USR1
echo up
while :; do sleep 1 & wait; done";
    let mut fleet = Fleet::start(&["--workers", "2"], script);
    fleet.run.wait_for(2, "up");
    let two = fleet.ask(&["logs", "2"]).stdout;
    assert!(two.contains("line of 2\n") && !two.contains("of 1"), "{two}");
    let all = fleet.ask(&["logs"]).stdout;
    for line in ["[1] line of 1\n", "[2] line of 2\n"] {
        assert!(all.contains(line), "{all}");
    }
    assert!(fleet.json(&["logs", "1"])["lines"][0].is_string());
    let mut follow = Run::start(&mut fleet.client(&["logs", "1", "-f"]));
    follow.wait("up");
    fleet.ask(&["signal", "USR1"]);
    follow.wait("more of 1");
    assert_eq!(fleet.ask(&["logs", "9"]).status, 1);
    assert_eq!(fleet.run.stop(), 0);
    assert_eq!(follow.end(), 0, "it ends with the launcher");
    assert!(!follow.text(Source::Out).contains("more of 2"));
}

#[test]
fn the_ring_keeps_the_last_lines_whole() {
    let script = "seq -f 'line %07g of many more' 1 20000; echo done; exec sleep 1000";
    let mut fleet = Fleet::start(&["--workers", "2"], script);
    fleet.run.wait_for(2, "done");
    let kept = fleet.ask(&["logs", "1"]).stdout;
    assert!(kept.len() > 50_000 && kept.len() <= 64 << 10, "{}", kept.len());
    assert!(kept.lines().rev().skip(1).all(|line| line.len() == 25), "no line is cut");
    assert!(kept.ends_with("line 0020000 of many more\ndone\n"));
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn events_tell_what_happened_and_go_on() {
    let mut fleet = Fleet::of_two();
    let events = fleet.ask(&["events", "--format", "json"]).stdout;
    let events: Vec<Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!((count("started"), count("ready"), count("plan") > 0), (2, 2, true));
    let numbers: Vec<_> = events.iter().map(|event| event["number"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    let mut follow = Run::start(&mut fleet.client(&["events", "-f"]));
    follow.wait("worker 2 (pid");
    let pid = number(&fleet.ask(&["logs", "1"]).stdout, "pid=");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    follow.wait("ended with SIGKILL");
    assert_eq!(fleet.run.stop(), 0);
    assert_eq!(follow.end(), 0);
}

#[test]
fn stop_waits_for_the_end() {
    let fleet = Fleet::of_two();
    let pid = fleet.run.pid().as_raw();
    let stopped = fleet.ask(&["stop"]);
    assert_eq!((stopped.status, stopped.stdout.as_str()), (0, "stopped\n"));
    let mut run = fleet.run;
    assert_eq!(run.end(), 0);
    gone(pid);
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    let mut fleet = Fleet::of_two();
    for (path, body, status, text) in [
        ("/v1/scale", "{", 400, "no valid JSON"),
        ("/v1/scale", "{}", 400, "bad workers null"),
        ("/v1/scale", "{\"workers\":0}", 400, "bad workers 0"),
        ("/v1/signal", "{\"signal\":\"NOPE\"}", 400, "bad signal \\\"NOPE\\\""),
        ("/v1/signal", "{\"signal\":\"TERM\",\"worker\":\"x\"}", 400, "bad worker"),
        ("/v1/workers/x/restart", "", 400, "bad worker"),
        ("/v1/workers/99/restart", "", 404, "there is no worker 99"),
        ("/v1/nothing", "", 404, "no such path"),
        ("/v1/status", "", 405, "another method"),
    ] {
        let answer = fleet.post(path, body);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path} {body}: {answer}");
        assert!(answer.contains("{\"error\":\"") && answer.contains(text), "{path}: {answer}");
    }
    let large = "x".repeat(100 << 10);
    let answer = fleet.post("/v1/scale", &large);
    assert!(
        answer.starts_with("HTTP/1.1 413") && answer.contains("larger than 64 KiB"),
        "{answer}"
    );
    for garbage in ["\0\0\0\r\n\r\n", "GET\r\n\r\n", "PUT / HTTP/9.9\r\n\r\n"] {
        assert!(fleet.raw(garbage).starts_with("HTTP/1.1 400"));
    }
    assert_eq!(fleet.json(&["status"])["ready"], true);
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn who_does_not_read_is_not_waited_for() {
    let script = "while :; do seq 1 20000; echo round; done";
    let mut fleet = Fleet::start(&["--workers", "2"], script);
    fleet.run.wait("round");
    let mut idle = Vec::new();
    for path in ["/v1/events", "/v1/logs?follow=true", "/v1/workers/1/logs?follow=true"] {
        let mut stream = UnixStream::connect(fleet.socket()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        idle.push(stream);
    }
    // And one that never finishes its question.
    let mut half = UnixStream::connect(fleet.socket()).unwrap();
    half.write_all(b"POST /v1/stop HTTP/1.1\r\nContent-Le").unwrap();
    fleet.run.wait_for(20, "round");
    assert_eq!(fleet.json(&["status"])["target"], 2);
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn other_users_are_refused() {
    let mut fleet = Fleet::of_two();
    let as_nobody = |fleet: &Fleet| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        command.args(["curl", "-s", "--max-time", "10", "--unix-socket"]);
        done(command.arg(fleet.socket()).arg("http://x/v1/status"))
    };
    fs::set_permissions(fleet.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mode = fs::metadata(fleet.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_ne!(as_nobody(&fleet).status, 0, "the file keeps others out");
    // And who gets by it is told apart by the kernel.
    fs::set_permissions(fleet.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let told = as_nobody(&fleet).stdout;
    assert!(told.contains("only the user of the launcher and root are admitted"), "{told}");
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn a_start_clears_away_what_killed_launchers_left() {
    let told = alone(
        "start() { throng-rs -q --workers 1 -- sleep 1000 & last=$!; until [ -S /run/throng-rs/$last.sock ]; do :; done; }
start; kill -KILL $last; wait $last
start; lives=$last
start; ls /run/throng-rs | wc -l; [ -S /run/throng-rs/$lives.sock ] && echo lives
kill $lives $last; wait",
    );
    assert_eq!(told.stdout.split_whitespace().collect::<Vec<_>>(), ["2", "lives"], "{told:?}");
}

/// In namespaces of its own, where /run is empty and nothing survives.
fn alone(script: &str) -> Done {
    let dir = Path::new(env!("CARGO_BIN_EXE_throng-rs")).parent().unwrap();
    let script = format!("mount -t tmpfs none /run || exit 8\n{script}");
    let mut command = Command::new("unshare");
    command.args(["-mpf", "--mount-proc", "--kill-child", "sh", "-c", &script]).env_clear();
    done(command.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin", dir.display())))
}

#[test]
fn the_only_instance_is_found_and_several_are_listed() {
    let told = alone(
        "throng-rs -q --workers 1 --name one -- sleep 1000 & one=$!
throng-rs -q --workers 1 --name two -- sleep 1001 & two=$!
until [ -S /run/throng-rs/$one.sock ] && [ -S /run/throng-rs/$two.sock ]; do :; done
throng-rs status && exit 9
throng-rs status --name two | head -1
throng-rs stop --name two
wait $two
throng-rs status | head -1
kill -KILL $one; wait $one
throng-rs status
ls /run/throng-rs
throng-rs -q --workers 1 --control /run/taken -- sleep 1000 & three=$!
until [ -S /run/taken ]; do :; done
throng-rs -q --workers 1 --control /run/taken -- sleep 1002
echo second=$?
THRONG_CONTROL=/run/taken throng-rs stop
wait $three",
    );
    assert_eq!(told.status, 0, "{told:?}");
    let lines: Vec<&str> = told.stdout.lines().collect();
    assert!(lines[0].starts_with("two: ") && lines[1] == "stopped", "{told:?}");
    assert!(lines[2].starts_with("one: "), "{told:?}");
    assert_eq!(lines[3..], ["second=1", "stopped"], "the file of a killed one is cleared away");
    for text in ["several launchers are running", "name one, sleep 1000", "name two, sleep 1001"] {
        assert!(told.stderr.contains(text), "{told:?}");
    }
    assert!(told.stderr.contains("no launcher of this user is running here"), "{told:?}");
    assert!(told.stderr.contains("cannot make the control socket /run/taken"), "{told:?}");
}
