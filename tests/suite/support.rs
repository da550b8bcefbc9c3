//! Driving the real binary: a fluent command, output awaited line by line, an end that is certain.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Far beyond what anything here takes: reached only where something hangs.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// The binary, in an environment without anything that would steer it.
pub(crate) fn throng(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throng-rs"));
    command.args(args).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    command
}

/// What a finished run left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end.
pub(crate) fn done(command: &mut Command) -> Done {
    let mut run = Run::start(command);
    let status = run.end();
    Done { status, stdout: run.text(Source::Out), stderr: run.text(Source::Err) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Out,
    Err,
}

/// A running command.
pub(crate) struct Run {
    child: Child,
    lines: Receiver<(Source, String)>,
    seen: Vec<(Source, String)>,
    /// How many of `seen` have been awaited: by those who wait for workers, and for the log. The two
    /// come by different pipes, in no order.
    read: [usize; 2],
}

impl Run {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let pipes: [(Source, Box<dyn std::io::Read + Send>); 2] = [
            (Source::Out, Box::new(child.stdout.take().unwrap())),
            (Source::Err, Box::new(child.stderr.take().unwrap())),
        ];
        for (source, pipe) in pipes {
            let sender = sender.clone();
            // Ends with the pipe: when the last process that holds it has gone.
            thread::spawn(move || {
                let mut pipe = BufReader::new(pipe);
                let mut line = Vec::new();
                while matches!(pipe.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                    let text = String::from_utf8_lossy(&line).into_owned();
                    if sender.send((source, text)).is_err() {
                        break;
                    }
                    line.clear();
                }
            });
        }
        Self { child, lines, seen: Vec::new(), read: [0, 0] }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for a line of a worker that holds `text`, after those that were awaited before.
    #[track_caller]
    pub(crate) fn wait(&mut self, text: &str) -> String {
        self.wait_line(text, false)
    }

    /// Waits for a line of the launcher's own log.
    #[track_caller]
    pub(crate) fn wait_log(&mut self, text: &str) -> String {
        self.wait_line(text, true)
    }

    #[track_caller]
    fn wait_line(&mut self, text: &str, log: bool) -> String {
        let read = usize::from(log);
        let end = Instant::now() + LIMIT;
        loop {
            while let Some((_, line)) = self.seen.get(self.read[read]) {
                self.read[read] += 1;
                if line.starts_with("throng-rs: ") == log && line.contains(text) {
                    return line.trim_end().to_owned();
                }
            }
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(why) => panic!("no line with {text:?} ({why}); seen: {:#?}", self.seen),
            }
        }
    }

    /// Waits for `count` lines with `text`.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, count: usize, text: &str) -> Vec<String> {
        (0..count).map(|_| self.wait(text)).collect()
    }

    /// Waits for the end and returns the status as a shell says it.
    #[track_caller]
    pub(crate) fn end(&mut self) -> i32 {
        let end = Instant::now() + LIMIT;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("does not end; seen: {:#?}", self.seen),
            }
        }
        shell_status(self.child.wait().unwrap())
    }

    /// Waits for the process alone: others may hold its output open for longer.
    pub(crate) fn leave(&mut self) -> i32 {
        shell_status(self.child.wait().unwrap())
    }

    /// Everything that came on one stream.
    pub(crate) fn text(&self, source: Source) -> String {
        self.seen
            .iter()
            .filter(|(from, _)| *from == source)
            .map(|(_, line)| line.as_str())
            .collect()
    }

    pub(crate) fn stop(&mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        self.end()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Workers die with their launcher by PDEATHSIG. Both fail where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child whose streams the test itself holds; it ends with the test, also with one that fails.
pub(crate) struct Guarded(pub(crate) Child);

impl Guarded {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the end and returns the status as a shell says it.
    pub(crate) fn end(&mut self) -> i32 {
        shell_status(self.0.wait().unwrap())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn shell_status(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

/// The children of a launcher: its guard, or all but that.
pub(crate) fn children(launcher: Pid, guard: bool) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"));
    let is_guard = |pid: &i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name == "throng-guard\n"
    };
    let all = text.unwrap();
    let all = all.split_ascii_whitespace().map(|pid| pid.parse().unwrap());
    all.filter(|pid| is_guard(pid) == guard).collect()
}

/// Waits until `what` holds, which nobody tells us.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        thread::yield_now();
    }
}

/// The letter that `ps` shows for a process; `None` where there is none.
pub(crate) fn state(pid: i32) -> Option<char> {
    Some(procfs::process::Process::new(pid).ok()?.stat().ok()?.state)
}

/// A variable that is put into a command's environment, by which all that comes of it is found again,
/// whatever group, session or parent it has. What is left of that when this is dropped is killed.
pub(crate) struct Trace(String);

impl Trace {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(format!("{}-{count}", std::process::id()))
    }

    /// The binary with this trace.
    pub(crate) fn throng(&self, args: &[&str]) -> Command {
        let mut command = throng(args);
        self.leave(&mut command);
        command
    }

    pub(crate) fn leave(&self, command: &mut Command) {
        command.env("TEST_TRACE", &self.0);
    }

    /// Those who carry it and live, zombies do not.
    pub(crate) fn living(&self) -> Vec<i32> {
        let entry = format!("TEST_TRACE={}", self.0);
        let carries = |pid: i32| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|b| *b == 0).any(|one| one == entry.as_bytes())
        };
        let all = procfs::process::all_processes().unwrap().flatten();
        all.map(|process| process.pid()).filter(|pid| carries(*pid)).collect()
    }

    /// Waits until nobody is left.
    #[track_caller]
    pub(crate) fn ends(&self) {
        until("all processes of a run are gone", || self.living().is_empty());
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        for pid in self.living() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Waits until no process `pid` exists, zombies included.
#[track_caller]
pub(crate) fn gone(pid: i32) {
    let end = Instant::now() + LIMIT;
    while kill(Pid::from_raw(pid), None).is_ok() {
        assert!(Instant::now() < end, "pid {pid} does not go");
        thread::yield_now();
    }
}

/// The number behind `key` in a line such as `pid=12 id=3`.
#[track_caller]
pub(crate) fn number(line: &str, key: &str) -> i32 {
    let rest = line.split(key).nth(1).unwrap_or_else(|| panic!("no {key:?} in {line:?}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number behind {key:?} in {line:?}"))
}
