//! One worker on a terminal: it has the terminal, the keys and the last word (`script`, bsdutils).

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::support::shell_status;

/// A terminal session that types when it has read what it waits for.
struct Session {
    child: Child,
    keys: Option<ChildStdin>,
    screen: std::process::ChildStdout,
    seen: String,
}

impl Session {
    fn start(command: &str) -> Self {
        let mut child = Command::new("script")
            // `exec`: a shell in between would get the keys' signals too.
            .args(["-qefc", &format!("exec {command}"), "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keys, screen) = (child.stdin.take(), child.stdout.take().unwrap());
        Self { child, keys, screen, seen: String::new() }
    }

    fn wait(&mut self, text: &str) {
        let mut piece = [0; 1024];
        while !self.seen.contains(text) {
            let read = self.screen.read(&mut piece).unwrap();
            assert!(read > 0, "no {text:?} in {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        // What was awaited is not found again.
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }

    fn press(&mut self, keys: &str) {
        self.keys.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    fn end(mut self) -> i32 {
        let mut rest = Vec::new();
        self.screen.read_to_end(&mut rest).unwrap();
        drop(self.keys.take());
        shell_status(self.child.wait().unwrap())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Hangs the terminal up, which ends what runs on it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn throng(args: &str) -> String {
    format!("{} -q {args}", env!("CARGO_BIN_EXE_throng-rs"))
}

#[test]
fn the_worker_has_the_terminal_and_its_status_is_ours() {
    let mut session = Session::start(&throng("--workers 1 -- sh"));
    session.press("test -t 0 && test -t 1 && echo on a $((40+2)) terminal\n");
    session.wait("on a 42 terminal");
    session.press("exit 7\n");
    assert_eq!(session.end(), 7);
}

#[test]
fn a_key_interrupts_the_worker() {
    let mut session = Session::start(&throng(
        "--workers 1 -- sh -c 'trap \"echo caught; exit 9\" INT; echo up; while :; do sleep 0.1; done'",
    ));
    session.wait("up");
    session.press("\x03");
    session.wait("caught");
    assert_eq!(session.end(), 9);
}

#[test]
fn a_key_stops_many_workers_gracefully() {
    let mut session = Session::start(&throng(
        "--workers 2 -- sh -c 'trap \"echo bye; exit\" TERM; echo up; while :; do sleep 0.1; done'",
    ));
    session.wait("up");
    session.wait("up");
    session.press("\x03");
    session.wait("bye");
    session.wait("bye");
    assert_eq!(session.end(), 0);
}

#[test]
fn a_key_suspends_and_fg_goes_on() {
    let mut session = Session::start("bash --norc -i");
    session.press(&format!(
        "{}\n",
        throng("--workers 1 -- sh -c 'echo ready$((1+1)); read line; echo got $line; exit 5'")
    ));
    session.wait("ready2");
    session.press("\x1a");
    session.wait("Stopped");
    session.press("fg\n");
    session.press("words\n");
    session.wait("got words");
    session.press("exit $?\n");
    assert_eq!(session.end(), 5);
}

#[test]
fn a_terminal_that_goes_away_stops_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("pids");
    let command = throng(&format!(
        "--workers 2 -- sh -c 'echo $$ >> {}; echo up; exec sleep 1000'",
        note.display()
    ));
    let mut session = Session::start(&command);
    session.wait("up");
    session.wait("up");
    drop(session);
    for pid in std::fs::read_to_string(&note).unwrap().lines() {
        crate::support::gone(pid.parse().unwrap());
    }
}
