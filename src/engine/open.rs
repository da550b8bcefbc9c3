//! The beginning: everything that has to be there before the first turn, new or from a program that was
//! here before.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::LocalSet;
use tracing::warn;

use super::answer::Control;
use super::guard::{self, Guard};
use super::isolate::Isolation;
use super::limits::Limits;
use super::measure::Measure;
use super::notify::NotifySocket;
use super::oom::Oom;
use super::sharing::Sharing;
use super::signals::{self, Signals};
use super::sink::{Sink, same_file};
use super::spawn::{Spawner, forget_code, keep_zombies};
use super::state::State;
use super::{Config, Engine, OWN_LINES, Resume, obey, orphans, resume, upgrade};
use crate::fleet::{Adapt, Event, Fleet};
use crate::log;

/// Runs the fleet to its end and returns the exit status; goes on with what an earlier program left,
/// where there was one.
pub(crate) fn run(mut config: Config, resume: Option<Resume>) -> anyhow::Result<u8> {
    keep_zombies().context("cannot reset SIGCHLD")?;
    let state = resume.as_ref().map(|resume| &resume.state);
    let strangers = match state {
        Some(state) => state.strangers.iter().copied().map(Pid::from_raw).collect(),
        None => orphans::children(),
    };
    let name = state.map_or_else(guard::name, |state| state.name.clone());
    config.env.set("NOTIFY_SOCKET", &name);
    let mark = format!("NOTIFY_SOCKET={name}").into_bytes();
    let wanted = !config.terminal;
    let isolation = match state {
        Some(state) => Isolation::adopt(state.isolation.as_ref(), &config.sized),
        // Before the guard, which is where we are when it begins.
        None => Isolation::begin(&config)?,
    };
    let inheritance = isolation.inheritance();
    let guard = match state {
        Some(state) => {
            let process = state
                .guard
                .and_then(|(pipe, pid)| Some((Pid::from_raw(pid), resume::own(Some(pipe))?)));
            Guard::resume(mark, wanted, inheritance, process, state.groups.iter().copied())
        }
        // As early as can be: it is a copy of us as we are.
        None => Guard::start(mark, wanted, inheritance),
    };
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
    let status = LocalSet::new().block_on(&runtime, async {
        let base = Base { settled, strangers, isolation, guard, name };
        let mut engine = Engine::new(config, base, resume.as_ref().map(|resume| &resume.state))?;
        if let Some(resume) = resume {
            engine.take_up(&resume)?;
        } else if let Some(status) = engine.begin().await? {
            return Ok(status);
        }
        engine.run().await
    });
    log::release();
    status
}

/// What is there before the engine.
struct Base {
    settled: Arc<AtomicBool>,
    strangers: Vec<Pid>,
    isolation: Isolation,
    guard: Guard,
    name: String,
}

impl Engine {
    fn new(mut config: Config, base: Base, state: Option<&State>) -> anyhow::Result<Self> {
        let Base { settled, strangers, isolation, guard, name } = base;
        let hup_ignored = signals::was_ignored(Signal::SIGHUP);
        let mut signals = Signals::block().context("cannot collect signals")?;
        if let Some(state) = state {
            signals.inherited = resume::mask(&state.mask);
        }
        // Orphans of a worker come to us and not to PID 1.
        set_child_subreaper(true).context("cannot become a subreaper")?;
        let sharing = Sharing::new(&mut config)
            .context("cannot prepare how connections reach the workers (--share)")?;
        let (user, dir) = (config.user.take(), config.dir.take());
        let manager = config.manager.take();
        let spawner = Spawner::new(signals.inherited, user, dir, sharing.inherited());
        let mut spawner = spawner.context("cannot prepare for starting workers")?;
        let handed_down = state.and_then(|state| resume::own(state.notify));
        let notify = match handed_down
            .map_or_else(|| NotifySocket::bind(&name), NotifySocket::adopt)
        {
            Ok(socket) => Some(Rc::new(socket)),
            Err(error) => {
                warn!(event = "no_notify", "nobody listens at the workers' NOTIFY_SOCKET: {error}");
                None
            }
        };
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
        let control = Control::open(&config, state.and_then(|state| state.control.as_ref()))?;
        let policy = config.policy.clone();
        let fleet = match state {
            Some(state) => {
                spawner.limits = state.limits;
                Fleet::restore(policy, config.sized.bounds, state.fleet.clone())
            }
            None => Fleet::new(policy, config.sized.bounds),
        };
        let elapsed = state.map_or(Duration::ZERO, |state| state.elapsed);
        let now = Instant::now();
        Ok(Self {
            fleet,
            limits: Limits::new(config.policy.adapt, config.policy.guard),
            measure: Measure::new(config.policy.adapt != Adapt::Off || config.policy.guard),
            oom: Oom::new(),
            config,
            spawner,
            sharing,
            signals: Rc::new(signals),
            name,
            notify,
            inbox: unbounded_channel(),
            // The fleet's times go on where they were.
            started: now.checked_sub(elapsed).unwrap_or(now),
            running: BTreeMap::new(),
            stdout,
            stderr,
            streams: Vec::new(),
            next_stream: OWN_LINES.0,
            rings: BTreeMap::new(),
            control,
            hup_ignored,
            had_terminal: obey::has_terminal(),
            terminal_given: Cell::new(None),
            quick_failures: BTreeMap::new(),
            settled,
            strangers,
            isolation,
            guard,
            manager,
            successor: upgrade::successor(),
            proof: None,
            proven: false,
            upgrades: 0,
            upgrade_error: None,
            exit: None,
        })
    }

    /// The first start of all; a status where the run is over already.
    async fn begin(&mut self) -> anyhow::Result<Option<u8>> {
        if let Some(status) = self.before().await? {
            self.finish().await;
            return Ok(Some(status));
        }
        self.tell(Event::Start);
        Ok(None)
    }

    /// Goes on with what an earlier program left.
    fn take_up(&mut self, resume: &Resume) -> anyhow::Result<()> {
        self.restore(&resume.state)?;
        // From here on there is no way back, and nothing that could fail.
        if let Some(way_back) = resume.way_back() {
            way_back.close(&resume.state);
        }
        self.isolation.own();
        self.spawner.hold_places();
        for (listener, state) in self.config.listeners.iter_mut().zip(&resume.state.listeners) {
            if state.file {
                listener.own_file();
            }
        }
        if let Some(socket) = &mut self.control.socket {
            socket.owns_file = true;
        }
        self.work_on(&resume.state);
        Ok(())
    }
}
