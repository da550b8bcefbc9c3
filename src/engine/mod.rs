//! The only place that spawns, reaps, signals and reads clocks: it performs what the fleet decides
//! and tells it what happens. One thread; the runtime is tokio's single-threaded one, and nothing
//! here may use its blocking pool, because children are made by fork.

mod diagnose;
mod environment;
mod guard;
mod obey;
mod orphans;
mod output;
mod ports;
mod program;
mod reap;
mod say;
mod signals;
mod sink;
mod spawn;
mod start;
mod user;
mod watch;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::task::LocalSet;

pub(crate) use environment::Environment;
pub(crate) use ports::holder;
pub(crate) use program::{find, replace};
pub(crate) use start::exec_status;
pub(crate) use user::User;

use crate::fleet::{Action, Event, Fleet, Note, Policy, Time, WorkerKey};
use crate::log;
use crate::sockets::Listener;
use guard::Guard;
use output::{Stream, Tail};
use signals::Signals;
use sink::{Sink, StreamId, same_file};
use spawn::{Spawner, forget_code, keep_zombies};

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
pub(crate) fn run(mut config: Config) -> anyhow::Result<u8> {
    keep_zombies().context("cannot reset SIGCHLD")?;
    let strangers = orphans::children();
    let name = guard::name();
    config.env.set("NOTIFY_SOCKET", &name);
    // As early as can be: it is a copy of us as we are.
    let guard = Guard::start(format!("NOTIFY_SOCKET={name}").into_bytes(), !config.terminal);
    let settled = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // The last moment before the sleep: what runs after it would bring its pages back.
        .on_thread_park({
            let settled = Arc::clone(&settled);
            move || {
                if settled.swap(false, Ordering::Relaxed) {
                    forget_code();
                }
            }
        })
        .build();
    let runtime = runtime.context("cannot start the event loop")?;
    let status = LocalSet::new()
        .block_on(&runtime, async { Engine::new(config, settled, strangers, guard)?.run().await });
    log::release();
    status
}

/// One process.
struct Running {
    pid: Pid,
    slot: u32,
    since: Time,
    /// Told to stop.
    asked: bool,
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
    /// The process group that we gave our terminal to.
    terminal_given: Cell<Option<Pid>>,
    /// How often each slot has ended soon and with a failure, in a row.
    quick_failures: BTreeMap<u32, u32>,
    /// Set when everybody serves and nothing is due.
    settled: Arc<AtomicBool>,
    /// Children that were here before us: `sh -c 'helper & exec throng-rs …'`.
    strangers: Vec<Pid>,
    guard: Guard,
    exit: Option<u8>,
}

/// How often a group without its leader is looked at.
const GROUP_CHECK: Duration = Duration::from_millis(100);
/// Our own lines, beside those of the workers.
const OWN_LINES: StreamId = StreamId(0);

impl Engine {
    fn new(
        mut config: Config,
        settled: Arc<AtomicBool>,
        strangers: Vec<Pid>,
        guard: Guard,
    ) -> anyhow::Result<Self> {
        let hup_ignored = signals::was_ignored(Signal::SIGHUP);
        let signals = Signals::block().context("cannot collect signals")?;
        // Orphans of a worker come to us and not to PID 1.
        set_child_subreaper(true).context("cannot become a subreaper")?;
        let sockets: io::Result<Vec<_>> =
            config.listeners.iter().map(|listener| listener.fd.try_clone()).collect();
        let sockets = sockets.context("cannot copy a listening socket")?;
        let (user, dir) = (config.user.take(), config.dir.take());
        let spawner = Spawner::new(signals.inherited, user, dir, &sockets);
        let spawner = spawner.context("cannot prepare for starting workers")?;
        let sink = |fd: io::Result<Sink>| fd.map(Rc::new).context("cannot write to our own output");
        let stdout = sink(Sink::new(io::stdout()))?;
        // `2>&1`: one stream has one writer, or parts of lines would mix.
        let stderr = if same_file(&io::stdout(), &io::stderr()) {
            Rc::clone(&stdout)
        } else {
            let stderr = sink(Sink::new(io::stderr()))?;
            tokio::task::spawn_local(Rc::clone(&stderr).serve());
            stderr
        };
        tokio::task::spawn_local(Rc::clone(&stdout).serve());
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
            had_terminal: obey::has_terminal(),
            terminal_given: Cell::new(None),
            quick_failures: BTreeMap::new(),
            settled,
            strangers,
            guard,
            exit: None,
        })
    }

    fn now(&self) -> Time {
        self.started.elapsed()
    }

    async fn run(mut self) -> anyhow::Result<u8> {
        self.tell(Event::Start);
        let mut busy = true;
        loop {
            self.guard.pass_on();
            self.pass_own_lines();
            if let Some(status) = self.exit {
                self.finish().await;
                return Ok(status);
            }
            let signals = Rc::clone(&self.signals);
            let idle = self.fleet.deadline().is_none();
            if idle && busy {
                self.settled.store(true, Ordering::Relaxed);
            }
            busy = !idle;
            let deadline = self.fleet.deadline().map(|at| (self.started + at).into());
            let leftover = self.running.values().any(|running| running.reaped);
            let groups = leftover.then(|| tokio::time::Instant::now() + GROUP_CHECK);
            tokio::select! {
                biased;
                received = signals.next() => self.signal(received.context("cannot read signals")?),
                () = until(deadline) => self.tell(Event::Tick),
                () = until(groups) => self.check_groups(),
                () = until(self.guard.due().map(Into::into)) => self.guard.renew(),
                // What is to be told is told at the beginning of each turn.
                () = self.stdout.news() => {}
                () = self.stderr.news() => {}
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
                    Action::Say(note) => {
                        self.say(note);
                        if let Note::GaveUp { worker, .. } = note {
                            self.running.remove(&worker);
                        }
                    }
                    Action::Exit(status) => self.exit = Some(status),
                }
            }
        }
    }
}

/// Waits for `deadline`, or for ever where there is none.
async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
