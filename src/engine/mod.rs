//! The only place that spawns, reaps, signals and reads clocks: it performs what the fleet decides
//! and tells it what happens. One thread; the runtime is tokio's single-threaded one, and nothing
//! here may use its blocking pool, because children are made by fork.

mod diagnose;
mod environment;
mod orphans;
mod output;
mod ports;
mod program;
mod say;
mod signals;
mod sink;
mod spawn;
mod user;
mod watch;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill, killpg, raise};
use nix::unistd::{Pid, getpgrp, tcsetpgrp};
use tokio::task::LocalSet;
use tracing::{error, warn};

pub(crate) use environment::Environment;
pub(crate) use ports::holder;
pub(crate) use program::{expand, find, head};
pub(crate) use spawn::replace;
pub(crate) use user::User;

use crate::exit;
use crate::fleet::{Action, Assignment, Event, Fleet, Policy, Refusal, Time, Urgency, WorkerKey};
use crate::log;
use crate::sockets::Listener;
use output::{Stream, Tail, pipe};
use signals::{Received, Signals};
use sink::{Sink, StreamId};
use spawn::{Change, Launch, Spawner, keep_zombies, wait_any};

/// How long the last lines may take to be read when all is over.
const LAST_FLUSH: Duration = Duration::from_secs(2);

/// What to run, and how.
pub(crate) struct Config {
    pub(crate) program: PathBuf,
    pub(crate) words: Vec<OsString>,
    /// Whether placeholders in the words are replaced.
    pub(crate) template: bool,
    pub(crate) env: Environment,
    pub(crate) policy: Policy,
    pub(crate) workers: u32,
    pub(crate) stop_signal: Signal,
    pub(crate) prefix: Prefix,
    /// Whether the one worker has our terminal.
    pub(crate) terminal: bool,
    pub(crate) user: Option<User>,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) listeners: Vec<Listener>,
}

/// What each line of a worker begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    None,
    Plain,
    Colored,
}

/// Runs the fleet to its end and returns the exit status.
pub(crate) fn run(config: Config) -> anyhow::Result<u8> {
    keep_zombies().context("cannot reset SIGCHLD")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the event loop")?;
    let status = LocalSet::new().block_on(&runtime, async { Engine::new(config)?.run().await });
    log::release();
    status
}

/// One process.
struct Running {
    pid: Pid,
    slot: u32,
    since: Time,
    /// Reaped: its pid may be somebody else's by now, its group is ours as long as it has members.
    reaped: bool,
    streams: Vec<Rc<Stream>>,
    tail: Rc<RefCell<Tail>>,
}

struct Engine {
    config: Config,
    fleet: Fleet,
    spawner: Spawner,
    signals: Rc<Signals>,
    started: Instant,
    running: BTreeMap<WorkerKey, Running>,
    stdout: Rc<Sink>,
    stderr: Rc<Sink>,
    /// Every stream that has not ended, also of workers that have.
    streams: Vec<Rc<Stream>>,
    next_stream: u64,
    hup_ignored: bool,
    had_terminal: bool,
    exit: Option<u8>,
}

/// Our own lines, beside those of the workers.
const OWN_LINES: StreamId = StreamId(0);

impl Engine {
    fn new(mut config: Config) -> anyhow::Result<Self> {
        let hup_ignored = signals::was_ignored(Signal::SIGHUP);
        let signals = Signals::block().context("cannot collect signals")?;
        if !config.terminal {
            // Orphans of a worker come to us and not to PID 1. An interactive shell's do not: what
            // it leaves in the background is meant to stay.
            set_child_subreaper(true).context("cannot become a subreaper")?;
        }
        let sockets: io::Result<Vec<_>> =
            config.listeners.iter().map(|listener| listener.fd.try_clone()).collect();
        let sockets = sockets.context("cannot copy a listening socket")?;
        let (user, dir) = (config.user.take(), config.dir.take());
        let spawner = Spawner::new(signals.inherited, user, dir, &sockets);
        let spawner = spawner.context("cannot prepare for starting workers")?;
        let sink = |fd: io::Result<Sink>| fd.map(Rc::new).context("cannot write to our own output");
        let (stdout, stderr) = (sink(Sink::new(io::stdout()))?, sink(Sink::new(io::stderr()))?);
        for sink in [&stdout, &stderr] {
            let sink = Rc::clone(sink);
            tokio::task::spawn_local(async move { sink.serve().await });
        }
        log::hold();
        Ok(Self {
            fleet: Fleet::new(config.policy.clone(), config.workers),
            config,
            spawner,
            signals: Rc::new(signals),
            started: Instant::now(),
            running: BTreeMap::new(),
            stdout,
            stderr,
            streams: Vec::new(),
            next_stream: OWN_LINES.0,
            hup_ignored,
            had_terminal: has_terminal(),
            exit: None,
        })
    }

    fn now(&self) -> Time {
        self.started.elapsed()
    }

    async fn run(mut self) -> anyhow::Result<u8> {
        self.tell(Event::Start);
        loop {
            self.pass_own_lines();
            if let Some(status) = self.exit {
                self.finish().await;
                return Ok(status);
            }
            let signals = Rc::clone(&self.signals);
            let deadline = self.fleet.deadline().map(|at| (self.started + at).into());
            tokio::select! {
                biased;
                received = signals.next() => self.signal(received.context("cannot read signals")?),
                () = until(deadline) => self.tell(Event::Tick),
            }
        }
    }

    /// Lets the fleet take an event in and performs what it decides.
    fn tell(&mut self, event: Event) {
        // What cannot be started is an event of its own, which may lead to more.
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.fleet.step(self.started.elapsed(), event) {
                match action {
                    Action::Spawn(to) => {
                        if let Err(why) = self.spawn(to) {
                            events.push(Event::Refused { worker: to.worker, why });
                        }
                    }
                    Action::AskLeader(worker) => self.ask(worker, false),
                    Action::AskGroup(worker) => self.ask(worker, true),
                    Action::Kill(worker) => self.signal_group(worker, Signal::SIGKILL),
                    Action::Say(note) => self.say(note),
                    Action::Exit(status) => self.exit = Some(status),
                }
            }
        }
    }

    fn spawn(&mut self, to: Assignment) -> Result<(), Refusal> {
        match self.try_spawn(to) {
            Ok(running) => {
                let pid = running.pid.as_raw();
                tracing::debug!(
                    event = "started",
                    worker = to.slot,
                    pid,
                    "worker {} is started as pid {pid}",
                    to.slot
                );
                self.running.insert(to.worker, running);
                Ok(())
            }
            Err(error) => {
                let why = refusal(&error);
                let program = self.config.program.display();
                error!(
                    event = "refused",
                    worker = to.slot,
                    "worker {} cannot be started: {program}: {error}{}",
                    to.slot,
                    hint(&error, why)
                );
                Err(why)
            }
        }
    }

    fn try_spawn(&mut self, to: Assignment) -> io::Result<Running> {
        let port = self.config.env.get("PORT").map(|port| port.to_string_lossy().into_owned());
        let words = if self.config.template {
            let mut values = vec![
                ("id", to.slot.to_string()),
                ("index", (to.slot - 1).to_string()),
                ("workers", to.count.to_string()),
            ];
            values.extend(port.map(|port| ("port", port)));
            expand(&self.config.words, &values)
        } else {
            self.config.words.clone()
        };
        let tail = Rc::new(RefCell::new(Tail::default()));
        let mut streams = Vec::new();
        // A single worker writes by itself: there is nobody to mix with, and nothing to copy.
        let direct = self.config.terminal || (to.count == 1 && self.config.prefix == Prefix::None);
        let (stdin, stdout, stderr) = if direct {
            let stdin = if self.config.terminal { Stdio::inherit() } else { Stdio::null() };
            (stdin, Stdio::inherit(), Stdio::inherit())
        } else {
            let prefix = self.prefix(to.slot);
            let mut piped = |sink: &Rc<Sink>| -> io::Result<Stdio> {
                let (ours, theirs) = pipe(self.spawner.user.as_ref())?;
                self.next_stream += 1;
                let id = StreamId(self.next_stream);
                let stream =
                    Stream::new(id, ours, Rc::clone(sink), prefix.clone(), Rc::clone(&tail))?;
                streams.push(Rc::new(stream));
                Ok(Stdio::from(theirs))
            };
            (Stdio::null(), piped(&self.stdout)?, piped(&self.stderr)?)
        };
        let terminal = io::stdin();
        let pid = self.spawner.spawn(Launch {
            program: &self.config.program,
            words: &words,
            env: self.config.env.of(to),
            stdin,
            stdout,
            stderr,
            terminal: self.config.terminal.then(|| terminal.as_fd()),
            cgroup: None,
        })?;
        self.streams.retain(|stream| !stream.has_ended());
        for stream in &streams {
            self.streams.push(Rc::clone(stream));
            let stream = Rc::clone(stream);
            tokio::task::spawn_local(async move { stream.serve().await });
        }
        Ok(Running { pid, slot: to.slot, since: self.now(), reaped: false, streams, tail })
    }

    fn prefix(&self, slot: u32) -> Vec<u8> {
        // Six colours that are read on dark and light ground.
        let color = 31 + slot % 6;
        match self.config.prefix {
            Prefix::None => Vec::new(),
            Prefix::Plain => format!("[{slot}] ").into_bytes(),
            Prefix::Colored => format!("\x1b[{color}m[{slot}]\x1b[0m ").into_bytes(),
        }
    }

    /// The stop signal, and CONT after it: a stopped process could not obey.
    fn ask(&self, worker: WorkerKey, group: bool) {
        let Some(running) = self.running.get(&worker) else { return };
        for signal in [self.config.stop_signal, Signal::SIGCONT] {
            if group {
                self.signal_group(worker, signal);
            } else if !running.reaped {
                // It has not been reaped, so the pid is its own; an ended process takes no harm.
                let _ = kill(running.pid, signal);
            }
        }
    }

    fn signal_group(&self, worker: WorkerKey, signal: Signal) {
        if let Some(running) = self.running.get(&worker) {
            // ESRCH: they have gone in the meantime.
            let _ = killpg(running.pid, signal);
        }
    }

    fn signal_all(&self, signal: Signal) {
        for running in self.running.values().filter(|running| !running.reaped) {
            let _ = kill(running.pid, signal);
        }
    }

    fn signal(&mut self, received: Received) {
        match received.signal {
            Signal::SIGCHLD => self.reap(),
            Signal::SIGTERM | Signal::SIGINT => self.tell(Event::Stop(Urgency::Graceful)),
            Signal::SIGQUIT => self.tell(Event::Stop(Urgency::Now)),
            Signal::SIGHUP => self.hangup(received),
            Signal::SIGTTIN if received.by_process => self.tell(Event::ResizeBy(1)),
            Signal::SIGTTOU if received.by_process => self.tell(Event::ResizeBy(-1)),
            Signal::SIGTSTP => {
                for worker in self.running.keys() {
                    self.signal_group(*worker, Signal::SIGSTOP);
                }
                // As PID 1 the kernel takes no notice, and we stay to hear CONT.
                let _ = raise(Signal::SIGSTOP);
            }
            Signal::SIGCONT => {
                self.give_terminal();
                for worker in self.running.keys() {
                    self.signal_group(*worker, Signal::SIGCONT);
                }
            }
            // The kernel speaks to us alone there: a window has changed, we wrote to nobody.
            Signal::SIGTTIN | Signal::SIGTTOU | Signal::SIGPIPE => {}
            Signal::SIGUSR2 => warn!(
                event = "signal",
                "USR2 is kept for an upgrade of throng-rs itself and is not passed on"
            ),
            other if received.by_process => self.signal_all(other),
            _ => {}
        }
    }

    fn hangup(&mut self, received: Received) {
        if self.hup_ignored {
            return;
        }
        let terminal_gone = self.had_terminal && (!received.by_process || !has_terminal());
        self.tell(if terminal_gone { Event::Stop(Urgency::Graceful) } else { Event::Reload });
    }

    fn give_terminal(&self) {
        if self.config.terminal
            && let Some(running) = self.running.values().find(|running| !running.reaped)
        {
            let _ = tcsetpgrp(io::stdin(), running.pid);
        }
    }

    /// Takes in every child that has ended: all are reaped first, so that the members of a group
    /// that went together are not mistaken for a rest of it.
    fn reap(&mut self) {
        let mut ended = Vec::new();
        while let Some((pid, change)) = wait_any() {
            let known =
                self.running.iter_mut().find(|(_, running)| running.pid == pid && !running.reaped);
            match (known, change) {
                (Some((key, running)), Change::Ended(how)) => {
                    running.reaped = true;
                    ended.push((*key, how));
                }
                (Some(_), Change::Stopped) => self.stopped_by_terminal(),
                (None, _) => {}
            }
        }
        for (worker, how) in ended {
            self.last_words(worker);
            let port = self.wanted_port(worker);
            let group = self.running.get(&worker).is_some_and(|running| group_lives(running.pid));
            self.tell(Event::Ended { worker, how, group });
            if !group {
                self.running.remove(&worker);
            }
            if let Some(port) = port {
                self.port_taken(&port, how);
            }
        }
        // The last of a group may have been an adopted orphan that was just reaped.
        let left = |running: &Running| running.reaped && !group_lives(running.pid);
        let gone: Vec<_> =
            self.running.iter().filter(|(_, running)| left(running)).map(|(key, _)| *key).collect();
        for worker in gone {
            self.tell(Event::GroupGone { worker });
            self.running.remove(&worker);
        }
    }

    /// The one worker that has the terminal was stopped by a key: so are we, until somebody says CONT.
    fn stopped_by_terminal(&self) {
        if self.config.terminal {
            self.take_terminal();
            let _ = raise(Signal::SIGSTOP);
        }
    }

    fn take_terminal(&self) {
        if self.config.terminal {
            let _ = tcsetpgrp(io::stdin(), getpgrp());
        }
    }

    /// Passes on what a worker wrote before it ended.
    fn last_words(&self, worker: WorkerKey) {
        if let Some(running) = self.running.get(&worker) {
            running.streams.iter().for_each(|stream| stream.catch_up());
        }
    }

    fn pass_own_lines(&self) {
        for (name, sink) in [("standard output", &self.stdout), ("standard error", &self.stderr)] {
            if let Some((errno, bytes)) = sink.take_lost() {
                warn!(
                    event = "output_lost",
                    bytes,
                    "{bytes} bytes of the workers' {name} were lost: {}",
                    errno.desc()
                );
            }
        }
        if self.stdout.take_broken() {
            warn!(
                event = "output_gone",
                "nobody reads standard output any more; what the workers write there is dropped"
            );
        }
        let lines = log::take();
        // A reader that stands still costs our lines, never the supervision.
        if !self.stderr.is_full() {
            self.stderr.push(OWN_LINES, b"", &lines);
        }
    }

    /// Leaves nothing behind: no process that came to us, no line that was written.
    async fn finish(&mut self) {
        self.take_terminal();
        if !self.config.terminal {
            orphans::end(&self.signals).await;
        }
        let drained = async {
            for stream in &self.streams {
                stream.flush().await;
            }
            self.pass_own_lines();
            self.stdout.drained().await;
            self.stderr.drained().await;
        };
        let _ = tokio::time::timeout(LAST_FLUSH, drained).await;
    }
}

/// Waits for `deadline`, or for ever where there is none.
async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn group_lives(leader: Pid) -> bool {
    killpg(leader, None) != Err(Errno::ESRCH)
}

fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Whether it may work later, or never.
fn refusal(error: &io::Error) -> Refusal {
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    match errno {
        Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::ENOSPC => {
            Refusal::Resources
        }
        Errno::ENOENT => Refusal::Command { status: exit::NOT_FOUND },
        _ => Refusal::Command { status: exit::CANNOT_EXECUTE },
    }
}

fn hint(error: &io::Error, why: Refusal) -> &'static str {
    match (why, error.raw_os_error().map(Errno::from_raw)) {
        (_, Some(Errno::EAGAIN)) => "; raise pids.max or `ulimit -u`",
        (_, Some(Errno::EMFILE)) => "; raise `ulimit -n`",
        (_, Some(Errno::EPERM)) => "; only root may become another user",
        (Refusal::Command { .. }, Some(Errno::ENOENT)) => {
            "; it was there a moment ago, so the interpreter in its first line or its loader is missing"
        }
        _ => "",
    }
}
