//! What is left to do when we are killed: a second process that outlives us and ends what we cannot.
//!
//! PDEATHSIG reaches the workers themselves, and nobody whom they have started. Where we are not
//! PID 1 (its end takes its whole namespace along), a guard is forked before anything else is made.
//! It reads a pipe whose other end only we hold, and learns from it which process groups there are.
//! When the pipe closes, we have gone: it kills every group that it knows, and everybody who carries
//! the mark of this run in the environment, which finds also who has left its group and its session.
//! At a normal end we kill it ourselves. [`watch`] is its own side.

mod tidy;
mod watch;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, getpid, pipe2, write};
use tracing::{debug, warn};

use super::isolate::Inheritance;
use super::spawn::{Change, fork_apart};
use watch::{RECORD, Record};

/// A guard that does not live as long as this is not replaced at once, and no start is tried sooner
/// after one that was refused.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest that a guard may take to stand for itself, in milliseconds.
const STANDS: u16 = 1000;

/// So many groups may be known by their mark alone for a moment.
const AT_MOST: usize = 16;

/// Our side of the guard.
#[derive(Debug)]
pub(super) struct Guard {
    /// Whether there is to be one.
    wanted: bool,
    /// `NAME=value` as it stands in the environment of every worker of this run, and of nobody else.
    mark: Vec<u8>,
    /// What else is to be put back.
    inheritance: Option<Inheritance>,
    /// The process groups of this run, for a guard that comes later.
    groups: BTreeSet<i32>,
    process: Option<Process>,
    /// Records that wait for the end of the turn: each wakes the guard up, and a start has many.
    pending: Vec<u8>,
    tried: Instant,
    /// A refusal has been told.
    told: bool,
}

/// A guard that runs, or has ended without our knowing it yet.
#[derive(Debug)]
struct Process {
    pid: Pid,
    /// Closes on exec; who becomes another program and stays the launcher has to hand it on.
    pipe: OwnedFd,
    /// Until the guard stands for itself: ends when it has let go of all that it had from us.
    begins: Option<OwnedFd>,
}

/// What is put into every worker's `NOTIFY_SOCKET`, and is no other run's.
pub(super) fn name() -> String {
    // The keys of a map are what std has of the kernel's random numbers.
    let random = RandomState::new().build_hasher().finish();
    format!("@throng-rs/{}-{random:016x}", getpid())
}

impl Guard {
    /// Starts a guard who looks for `mark`, where one is of use.
    pub(super) fn start(mark: Vec<u8>, wanted: bool, inheritance: Option<Inheritance>) -> Self {
        let mut guard = Self {
            inheritance,
            wanted: wanted && getpid().as_raw() != 1,
            mark,
            groups: BTreeSet::new(),
            process: None,
            pending: Vec::new(),
            tried: Instant::now(),
            told: false,
        };
        guard.renew();
        guard
    }

    /// Goes on with a guard that runs, or starts one where none was left.
    pub(super) fn resume(
        mark: Vec<u8>,
        wanted: bool,
        inheritance: Option<Inheritance>,
        process: Option<(Pid, OwnedFd)>,
        groups: impl Iterator<Item = i32>,
    ) -> Self {
        let mut guard = Self {
            inheritance,
            wanted: wanted && getpid().as_raw() != 1,
            mark,
            groups: groups.collect(),
            process: process.map(|(pid, pipe)| Process { pid, pipe, begins: None }),
            pending: Vec::new(),
            tried: Instant::now(),
            told: false,
        };
        guard.renew();
        guard
    }

    /// What a successor goes on with: the pipe and the pid.
    pub(super) fn hand_over(&self) -> Option<(BorrowedFd<'_>, Pid)> {
        self.process.as_ref().map(|process| (process.pipe.as_fd(), process.pid))
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = i32> {
        self.groups.iter().copied()
    }

    /// The guard's own process, which is no orphan and no worker.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// A worker has started, and leads a group.
    pub(super) fn begin(&mut self, group: Pid) {
        self.groups.insert(group.as_raw());
        self.tell(Record::Begins(group.as_raw()));
    }

    /// The last of a group has gone: its number may be somebody else's from now on.
    pub(super) fn gone(&mut self, group: Pid) {
        if self.groups.remove(&group.as_raw()) {
            self.tell(Record::Gone(group.as_raw()));
        }
    }

    /// What became of a child that is no worker.
    pub(super) fn heard(&mut self, pid: Pid, change: Change) {
        if self.pid() != Some(pid) {
            return;
        }
        match change {
            // It must hear of our end.
            Change::Stopped => drop(kill(pid, Signal::SIGCONT)),
            Change::Ended(how) => {
                warn!(
                    event = "guard_ended",
                    pid = pid.as_raw(),
                    "the guard (pid {pid}) ended with {how}; a new one takes its place"
                );
                self.process = None;
                if self.tried.elapsed() >= PAUSE {
                    self.renew();
                }
            }
        }
    }

    /// When [`Guard::renew`] is due: there should be a guard and there is none.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.wanted && self.process.is_none()).then(|| self.tried + PAUSE)
    }

    /// Starts a guard that knows everything that the last one knew.
    pub(super) fn renew(&mut self) {
        if !self.wanted || self.process.is_some() {
            return;
        }
        self.tried = Instant::now();
        match self.fork() {
            Ok(process) => {
                // It has been told everything.
                self.pending.clear();
                let pid = process.pid.as_raw();
                debug!(event = "guard", pid, "the guard is pid {pid}");
                self.process = Some(process);
                self.told = false;
            }
            Err(errno) if !self.told => {
                self.told = true;
                warn!(
                    event = "guard_refused",
                    "no guard can be started: {}; until one can, what workers have started may outlive \
                     a launcher that is killed",
                    errno.desc()
                );
            }
            Err(_) => {}
        }
    }

    fn fork(&self) -> nix::Result<Process> {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        let (begins, begun) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let inheritance = self.inheritance.as_ref();
        let pid = fork_apart(|| watch::run(&theirs, &self.mark, &self.groups, inheritance))?;
        drop(begun);
        Ok(Process { pid, pipe: ours, begins: Some(begins) })
    }

    /// Waits until the guard stands for itself: before that it is in our group and carries our environment, and
    /// whoever ends us because of these would end it too.
    pub(super) fn stands(&mut self) {
        let Some(process) = &mut self.process else { return };
        let Some(begins) = process.begins.take() else { return };
        let mut end = [PollFd::new(begins.as_fd(), PollFlags::POLLIN)];
        // One that hangs is seen by its pipe.
        let _ = poll(&mut end, STANDS);
    }

    fn tell(&mut self, record: Record) {
        let bytes: [u8; RECORD] = record.into();
        self.pending.extend(bytes);
        if self.pending.len() >= AT_MOST * RECORD {
            self.pass_on();
        }
    }

    /// Tells the guard what is new. Never waits: one that does not read its pipe is replaced.
    pub(super) fn pass_on(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let Some(process) = &self.process else { return };
        // So short a write is never torn (pipe(7)). Where the guard has just been killed, CHLD says so.
        if !pending.is_empty() && write(&process.pipe, &pending) == Err(Errno::EAGAIN) {
            warn!(
                event = "guard_stuck",
                pid = process.pid.as_raw(),
                "the guard (pid {}) does not listen and is replaced",
                process.pid
            );
            // Before its pipe closes, which it would take for our end. It is reaped like any child.
            let _ = kill(process.pid, Signal::SIGKILL);
            self.process = None;
            self.renew();
        }
    }

    /// Nothing is left that it would have to end.
    pub(super) fn end(&mut self) {
        self.wanted = false;
        let Some(process) = self.process.take() else { return };
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        // Who has been reaped by somebody else's wait has left its number to others.
        if waitid(Id::Pid(process.pid), peek) != Err(Errno::ECHILD) {
            let _ = kill(process.pid, Signal::SIGKILL);
            let _ = waitpid(process.pid, None);
        }
    }
}
