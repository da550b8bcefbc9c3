//! One run of an init, watched from outside.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use procfs::process::{Process, Stat};

use super::setting::{Pty, Setting};

/// Far beyond what anything here takes: reached only where something hangs.
const LIMIT: Duration = Duration::from_secs(30);
/// So long is watched what does not happen.
pub(crate) const WATCH: Duration = Duration::from_secs(3);
/// A signal that everybody passes on and nobody acts on. Of two that wait, the higher one is read last: when this one has come
/// through, what was sent before has.
pub(crate) const MARKER: i32 = 64;
const GLANCE: Duration = Duration::from_millis(5);

/// What comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The run is over, with the status as a shell says it.
    End(i32),
    /// One of the awaited texts.
    Text(usize),
    /// Neither, in time.
    Nothing,
}

/// A run. Every process of it is gone with its owner.
pub(crate) struct Scene {
    pid: Pid,
    pid_1: bool,
    ends: Receiver<i32>,
    ended: Option<i32>,
    output: Receiver<Vec<u8>>,
    seen: String,
    terminal: Option<Pty>,
    reader: Option<JoinHandle<()>>,
    read_on: Arc<AtomicBool>,
}

impl Scene {
    pub(super) fn new(mut child: Child, terminal: Option<Pty>, setting: &Setting) -> Self {
        if let (Some(text), Some(mut stdin)) = (setting.input, child.stdin.take()) {
            stdin.write_all(text.as_bytes()).unwrap();
        }
        let mut from = match &terminal {
            Some(terminal) => terminal.ours.try_clone().unwrap(),
            None => File::from(OwnedFd::from(child.stdout.take().unwrap())),
        };
        let (send, output) = mpsc::channel();
        let read_on = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&read_on);
        // Ends with the last process that could write.
        let reader = thread::spawn(move || {
            let mut piece = [0; 1024];
            while asked.load(Ordering::Relaxed) {
                let mut polled = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                if poll(&mut polled, PollTimeout::from(20_u8)) == Ok(0) {
                    continue;
                }
                let Ok(read @ 1..) = from.read(&mut piece) else { break };
                if send.send(piece[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        let pid = Pid::from_raw(child.id().cast_signed());
        let (send, ends) = mpsc::channel();
        thread::spawn(move || {
            use std::os::unix::process::ExitStatusExt;
            if let Ok(status) = child.wait() {
                let _ = send.send(status.code().unwrap_or_else(|| 128 + status.signal().unwrap()));
            }
        });
        let (pid_1, ended, seen, reader) = (setting.pid_1, None, String::new(), Some(reader));
        Self { pid, pid_1, ends, ended, output, seen, terminal, reader, read_on }
    }

    /// The init, as we see it. It must have started its command.
    pub(crate) fn init(&self) -> Pid {
        if self.pid_1 { children(self.pid)[0] } else { self.pid }
    }

    /// A process by its pid in the run.
    pub(crate) fn outer(&self, inner: i32) -> Pid {
        if !self.pid_1 {
            return Pid::from_raw(inner);
        }
        let space = |pid: Pid| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let here = space(self.init());
        let mut found = all().into_iter().filter(|stat| {
            let status = fs::read_to_string(format!("/proc/{}/status", stat.pid));
            let status = status.unwrap_or_default();
            let own = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            let own = own.and_then(|pids| pids.split_whitespace().last()?.parse::<i32>().ok());
            own == Some(inner) && space(Pid::from_raw(stat.pid)) == here
        });
        Pid::from_raw(found.next().unwrap().pid)
    }

    /// Waits for one of the texts or the end; what was read up to the text is taken.
    pub(crate) fn next(&mut self, texts: &[&str], limit: Duration) -> Next {
        let deadline = Instant::now() + limit;
        loop {
            let found = |text: &&str| self.seen.find(*text).map(|at| at + text.len());
            let first = texts.iter().map(found).enumerate();
            let first = first.filter_map(|(index, at)| Some((at?, index))).min();
            if let Some((end, index)) = first {
                self.seen.drain(..end);
                return Next::Text(index);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left.min(GLANCE)) {
                Ok(piece) => self.seen.push_str(&String::from_utf8_lossy(&piece)),
                // Whatever was written has been read.
                Err(RecvTimeoutError::Disconnected) => {
                    return self.end_within(left).map_or(Next::Nothing, Next::End);
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Next::Nothing,
                Err(RecvTimeoutError::Timeout) => self.let_go(),
            }
        }
    }

    /// When the run is over nobody else may keep its terminal open, so that there is an end to what is read.
    fn let_go(&mut self) {
        if self.end_within(Duration::ZERO).is_some()
            && let Some(terminal) = &mut self.terminal
        {
            terminal.theirs = None;
        }
    }

    /// Waits for the text, and takes all up to it. Who writes it may outlive the init.
    #[track_caller]
    pub(crate) fn wait(&mut self, text: &str) {
        self.sees(text);
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }

    /// Waits until the text is there, and takes nothing.
    #[track_caller]
    pub(crate) fn sees(&mut self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(piece) => self.seen.push_str(&String::from_utf8_lossy(&piece)),
                Err(why) => panic!("no {text:?} ({why}); seen: {:?}", self.seen),
            }
        }
    }

    /// The rest of the line.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        self.sees("\n");
        let end = self.seen.find('\n').unwrap() + 1;
        self.seen.drain(..end).collect::<String>().trim_end().to_owned()
    }

    /// Waits until the process that calls itself so is up; its pid.
    #[track_caller]
    pub(crate) fn up(&mut self, name: &str) -> Pid {
        self.wait(&format!("up {name} "));
        let inner = self.line().parse().unwrap();
        self.outer(inner)
    }

    /// The numbers of the signals that `name` got until MARKER came.
    #[track_caller]
    pub(crate) fn until_marker(&mut self, name: &str) -> Vec<i32> {
        let begin = format!("got {name} ");
        let mut numbers = Vec::new();
        loop {
            self.wait(&begin);
            match self.line().parse().unwrap() {
                MARKER => return numbers,
                number => numbers.push(number),
            }
        }
    }

    pub(crate) fn end_within(&mut self, limit: Duration) -> Option<i32> {
        if self.ended.is_none() {
            self.ended = self.ends.recv_timeout(limit).ok();
        }
        self.ended
    }

    #[track_caller]
    pub(crate) fn end(&mut self) -> i32 {
        let status = self.end_within(LIMIT);
        status.unwrap_or_else(|| panic!("does not end; seen: {:?}", self.seen))
    }

    /// Everything that came, when it is over.
    #[track_caller]
    pub(crate) fn text(&mut self) -> String {
        let end = self.next(&[], LIMIT);
        assert!(matches!(end, Next::End(_)), "{end:?}; seen: {:?}", self.seen);
        self.seen.clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.init(), signal).unwrap();
    }

    pub(crate) fn press(&mut self, keys: &str) {
        let mut terminal = &self.terminal.as_ref().unwrap().ours;
        terminal.write_all(keys.as_bytes()).unwrap();
    }

    /// Makes the terminal another size.
    pub(crate) fn resize(&self) {
        let name = self.terminal.as_ref().unwrap().name();
        let status = Command::new("stty").arg("-F").arg(name).args(["rows", "33"]).status();
        assert!(status.unwrap().success(), "cannot resize a terminal");
    }

    /// The terminal goes away.
    pub(crate) fn hang_up(&mut self) {
        self.read_on.store(false, Ordering::Relaxed);
        self.reader.take().unwrap().join().unwrap();
        self.terminal = None;
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
            self.end_within(LIMIT);
        }
        // What it left came to us, and what that left comes to us in turn.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(_) => break,
                Ok(WaitStatus::StillAlive) => {
                    for child in children(getpid()) {
                        let _ = kill(child, Signal::SIGKILL);
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(_) => {}
            }
        }
    }
}

/// Any signal by its number, real-time ones too. A process that has gone is no failure.
pub(crate) fn send(pid: Pid, number: i32) {
    let mut command = Command::new("kill");
    command.args([format!("-{number}"), pid.to_string()]).stderr(Stdio::null());
    command.status().unwrap();
}

/// `TERM`; real-time signals have a number only.
pub(crate) fn name(number: i32) -> String {
    let known = Signal::try_from(number);
    known.map_or_else(|_| number.to_string(), |signal| signal.as_str()[3..].to_owned())
}

fn all() -> Vec<Stat> {
    let all = procfs::process::all_processes().unwrap();
    all.flatten().filter_map(|process| process.stat().ok()).collect()
}

/// The processes whose parent this is, zombies among them.
pub(crate) fn children(parent: Pid) -> Vec<Pid> {
    let theirs = all().into_iter().filter(|stat| stat.ppid == parent.as_raw());
    theirs.map(|stat| Pid::from_raw(stat.pid)).collect()
}

/// Nothing where it has gone.
pub(crate) fn stat(pid: Pid) -> Option<Stat> {
    Process::new(pid.as_raw()).ok()?.stat().ok()
}

/// Whether it is there and has not ended.
pub(crate) fn lives(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z')
}

/// Asks until it holds: for what sends no event to us.
pub(crate) fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !holds() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(GLANCE);
    }
    true
}
