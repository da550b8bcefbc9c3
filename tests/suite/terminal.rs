//! One worker on a terminal: it has the terminal, the keys and the last word (`script`, bsdutils).

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

use crate::support::{LIMIT, shell_status};

/// A terminal session that types when it has read what it waits for.
pub(crate) struct Session {
    child: Child,
    keys: Option<ChildStdin>,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Session {
    pub(crate) fn start(command: &str) -> Self {
        let mut child = Command::new("script")
            // `exec`: a shell in between would get the keys' signals too.
            .args(["-qefc", &format!("exec {command}"), "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keys, mut output) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, screen) = mpsc::channel();
        // Ends with the session.
        std::thread::spawn(move || {
            let mut piece = [0; 1024];
            while let Ok(read @ 1..) = output.read(&mut piece) {
                if sender.send(piece[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keys, screen, seen: String::new() }
    }

    /// Reads what comes next; false at the end.
    fn read(&mut self) -> bool {
        match self.screen.recv_timeout(LIMIT) {
            Ok(piece) => self.seen.push_str(&String::from_utf8_lossy(&piece)),
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => panic!("nothing more comes; seen: {:?}", self.seen),
        }
        true
    }

    pub(crate) fn wait(&mut self, text: &str) {
        while !self.seen.contains(text) {
            assert!(self.read(), "no {text:?} in {:?}", self.seen);
        }
        // What was awaited is not found again.
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn end(mut self) -> i32 {
        while self.read() {}
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
    // Whoever runs the tests in the background ignores INT, and no shell below can trap it then.
    let defaults = "env --default-signal=INT,QUIT,TSTP";
    format!("{defaults} {} -q {args}", env!("CARGO_BIN_EXE_throng-rs"))
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

#[test]
fn a_job_in_the_background_leaves_the_terminal_alone() {
    let mut session = Session::start("env --default-signal=INT,QUIT,TSTP bash --norc -i");
    session.press(&format!(
        "{} &\n",
        throng("--workers 1 -- sh -c 'echo up$((1+1)); exec sleep 1000'")
    ));
    session.wait("up2");
    session.press("echo still $((40+2)) here\n");
    session.wait("still 42 here");
    session.press("kill %1; wait %1; echo st$?\n");
    session.wait("st0");
    session.press("exit 3\n");
    assert_eq!(session.end(), 3);
}

#[test]
fn a_key_does_not_stop_whom_nobody_could_wake() {
    // No shell with job control above: the process group is an orphan, and the kernel ignores the key.
    let mut session =
        Session::start(&throng("--workers 1 -- sh -c 'echo up; read line; echo got $line'"));
    session.wait("up");
    session.press("\x1a");
    session.press("on\n");
    session.wait("got on");
    assert_eq!(session.end(), 0);
}

#[test]
fn what_the_worker_leaves_behind_costs_no_grace() {
    let session = Session::start(&throng("--workers 1 --grace 1h -- sh -c 'sleep 1000 & exit 4'"));
    assert_eq!(session.end(), 4);
}
