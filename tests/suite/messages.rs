//! Messages between the launcher, its workers and their siblings.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::beds::nodes::{app, runtime};
use crate::beds::skip;
use crate::support::{Done, Run, done, throng};

struct Fleet {
    run: Run,
    path: String,
    _dir: tempfile::TempDir,
}

impl Fleet {
    fn start(args: &[&str], command: &[&str], env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control").display().to_string();
        let args = [&["-v", "--control", &path][..], args, &["--"], command].concat();
        let run = Run::start(throng(&args).envs(env.iter().copied()));
        Self { run, path, _dir: dir }
    }

    fn ask(&self, args: &[&str]) -> Done {
        let mut command: Command = throng(args);
        done(command.args(["--control", &self.path]))
    }

    #[track_caller]
    fn send(&self, message: &str, id: Option<&str>) -> String {
        let args: Vec<_> = ["send", message].into_iter().chain(id).collect();
        let done = self.ask(&args);
        assert_eq!(done.status, 0, "{}", done.stderr);
        done.stdout
    }

    fn ready(mut self, workers: usize) -> Self {
        for _ in 0..workers {
            self.run.wait_log("is ready");
        }
        self
    }
}

#[test]
fn to_all_to_one_among_siblings_and_into_the_events() {
    let program = match runtime("node24") {
        Ok(program) => program,
        Err(why) => return skip("messages", &why),
    };
    let app = app("messages.js");
    let mut fleet = Fleet::start(&["--workers", "3"], &[&program, &app], &[]).ready(3);
    assert_eq!(fleet.send(r#"{"a":[1,"ä"]}"#, None), "sent to 3 workers\n");
    for line in fleet.run.wait_for(3, "heard ") {
        assert!(line.ends_with(r#" {"a":[1,"ä"]}"#), "{line}");
    }
    assert_eq!(fleet.send("plain words", Some("2")), "sent to 1 worker\n");
    assert_eq!(fleet.run.wait("heard "), r#"heard 2 "plain words""#);
    fleet.send(r#"{"ask":"others"}"#, Some("1"));
    fleet.run.wait("heard 1");
    let mut lines = fleet.run.wait_for(2, "heard ");
    lines.sort_unstable();
    let told = r#"{"throng":{"from":1,"message":"hello from 1"}}"#;
    assert_eq!(lines, [format!("heard 2 {told}"), format!("heard 3 {told}")]);
    fleet.send(r#"{"ask":3}"#, Some("1"));
    fleet.run.wait("heard 1");
    assert_eq!(fleet.run.wait("heard "), format!("heard 3 {told}"));
    // A long one is cut in the events, and only there.
    fleet.send(r#"{"big":100000}"#, Some("1"));
    let mut log = String::new();
    crate::support::until("the message is among the events", || {
        log = fleet.ask(&["events", "--format", "json"]).stdout;
        log.contains("\"cut\":true")
    });
    let ready = log
        .lines()
        .filter(|line| line.contains(r#""event":"message""#) && line.contains(r#"\"ready\""#));
    assert_eq!(ready.count(), 3, "{log}");
    assert!(log.lines().all(|line| line.len() < 5000));
    assert_eq!(fleet.ask(&["send", "1", "9"]).status, 1);
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn ready_by_message_and_shutdown_by_message_as_with_pm2() {
    let program = match runtime("node24") {
        Ok(program) => program,
        Err(why) => return skip("PM2's messages", &why),
    };
    let app = app("messages.js");
    let args = ["--workers", "2", "--ready", "notify", "--stop-message", "shutdown"];
    let mut fleet = Fleet::start(&args, &[&program, &app], &[("ON_GO", "1")]);
    fleet.run.wait_for(2, "up ");
    let log = fleet.ask(&["status", "--check"]);
    assert_eq!(log.status, 1, "it listens, and has not said so");
    // Messages reach it, since it listens.
    fleet.send("go", None);
    let mut fleet = fleet.ready(2);
    fleet.run.signal(Signal::SIGTERM);
    fleet.run.wait_for(2, "shuts down ");
    assert_eq!(fleet.run.end(), 0);
}

/// Reads and writes the lines itself.
const PYTHON: &str = r#"
import json, os, socket
s = socket.socket(fileno=int(os.environ['NODE_CHANNEL_FD']))
s.setblocking(True)
print('up', 'NODE_UNIQUE_ID' in os.environ, flush=True)
f = s.makefile('rwb', buffering=0)
f.write(b'"ready"\n')
for line in f:
    print('heard', json.loads(line), flush=True)
    f.write(json.dumps({'throng': {'to': 'others', 'message': 'x' if json.loads(line) == 1 else 0}}).encode() + b'\n') if json.loads(line) == 1 else None
"#;

#[test]
fn other_languages_have_the_same_channel_on_request() {
    let args = ["--workers", "2", "--ipc", "on", "--ready", "notify"];
    let mut fleet = Fleet::start(&args, &["python3", "-c", PYTHON], &[]);
    assert_eq!(fleet.run.wait_for(2, "up "), ["up False", "up False"]);
    let mut fleet = fleet.ready(2);
    fleet.send("1", Some("2"));
    assert_eq!(fleet.run.wait("heard "), "heard 1");
    let line = fleet.run.wait("heard ");
    assert_eq!(line, "heard {'throng': {'from': 2, 'message': 'x'}}");
    assert_eq!(fleet.run.stop(), 0);
    let mut without = Fleet::start(&["--workers", "1"], &["sleep", "1000"], &[]).ready(1);
    let refused = without.ask(&["send", "1"]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("--ipc on"), "{}", refused.stderr);
    assert_eq!(without.run.stop(), 0);
}

#[test]
fn a_stop_message_needs_a_channel() {
    let refused = done(&mut throng(&["--stop-message", "x", "--", "sleep", "1"]));
    assert_eq!(refused.status, 2);
    assert!(refused.stderr.contains("--ipc on"), "{}", refused.stderr);
}
