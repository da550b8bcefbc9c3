//! The only place that spawns, reaps, signals and reads clocks: it performs what the fleet decides
//! and tells it what happens. One thread; the runtime is tokio's single-threaded one, and nothing
//! here may use its blocking pool, because children are made by fork.

mod answer;
mod before;
mod check;
mod config;
mod diag;
mod diagnose;
mod environment;
mod guard;
mod isolate;
mod kmsg;
mod limits;
mod manager;
mod measure;
mod notify;
mod obey;
mod oom;
mod open;
mod orphans;
mod output;
mod ports;
mod program;
mod reap;
mod reasons;
mod resume;
mod room;
mod say;
mod sharing;
mod signals;
mod sink;
mod spawn;
mod standing;
mod start;
mod state;
mod timer;
mod upgrade;
mod usage;
mod user;
mod watch;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::unistd::Pid;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tracing::error;

pub(crate) use check::Check;
pub(crate) use config::{Config, Inspect, Isolate, Orders, Prefix, Renewed, Sized};
pub(crate) use environment::Environment;
pub(crate) use manager::Manager;
pub(crate) use open::run;
pub(crate) use ports::{holder, unix_holder};
pub(crate) use program::{find, replace};
pub(crate) use room::Surge;
pub(crate) use start::exec_status;
pub(crate) use upgrade::Resume;
pub(crate) use user::User;

use crate::fleet::{Action, Event, Fleet, Kind, Note, Time, Told, WorkerKey};
use answer::Control;
use check::Look;
use guard::Guard;
use isolate::Isolation;
use limits::Limits;
use measure::Measure;
use notify::{Message, NotifySocket};
use oom::Oom;
use output::{LAST_WORDS, Ring, Stream};
use sharing::Sharing;
use signals::Signals;
use sink::{Sink, StreamId};
use spawn::Spawner;
use upgrade::Proof;

/// One process.
struct Running {
    pid: Pid,
    slot: u32,
    since: Time,
    /// Told to stop.
    asked: bool,
    /// By us.
    killed: bool,
    /// Reaped: its pid may be somebody else's by now, its group is ours as long as it has members.
    reaped: bool,
    streams: Vec<Rc<Stream>>,
    /// The last output of its slot, and where its own begins.
    ring: Rc<RefCell<Ring>>,
    words_from: u64,
    /// What it says of itself (`STATUS=`).
    status: Option<String>,
    /// A look from outside at whether it serves.
    look: Option<Look>,
}

impl Running {
    /// The last of what it wrote, where we read it.
    fn last_words(&self) -> Vec<u8> {
        let mut words = self.ring.borrow().since(self.words_from, LAST_WORDS);
        words.extend(self.streams.iter().flat_map(|stream| stream.unfinished()));
        words
    }
}

struct Engine {
    config: Config,
    fleet: Fleet,
    spawner: Spawner,
    sharing: Sharing,
    limits: Limits,
    measure: Measure,
    oom: Oom,
    signals: Rc<Signals>,
    /// The workers' `NOTIFY_SOCKET`, which is also the mark of this run.
    name: String,
    /// Where workers tell of themselves; none where it could not be had.
    notify: Option<Rc<NotifySocket>>,
    /// What looks at workers find out.
    inbox: (UnboundedSender<Found>, UnboundedReceiver<Found>),
    started: Instant,
    running: BTreeMap<WorkerKey, Running>,
    stdout: Rc<Sink>,
    stderr: Rc<Sink>,
    /// Every stream that has not ended, also of workers that have.
    streams: Vec<Rc<Stream>>,
    next_stream: u64,
    /// The last output of each slot.
    rings: BTreeMap<u32, Rc<RefCell<Ring>>>,
    control: Control,
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
    isolation: Isolation,
    guard: Guard,
    manager: Option<Manager>,
    /// The file of the program that takes our place in an upgrade.
    successor: PathBuf,
    proof: Option<Proof>,
    /// The proof has succeeded.
    proven: bool,
    /// How often our program has been replaced.
    upgrades: u32,
    /// Why the last one that was to come could not.
    upgrade_error: Option<String>,
    exit: Option<u8>,
}

/// A worker, and what was found out about it.
type Found = (WorkerKey, Told);

/// How often a group without its leader is looked at.
const GROUP_CHECK: Duration = Duration::from_millis(100);
/// Our own lines, beside those of the workers.
const OWN_LINES: StreamId = StreamId(0);

impl Engine {
    fn now(&self) -> Time {
        self.started.elapsed()
    }

    async fn run(mut self) -> anyhow::Result<u8> {
        self.oom.look();
        let mut busy = true;
        loop {
            if std::mem::take(&mut self.proven) {
                // Answers that are ready go out first.
                reap::some_turns().await;
                let error = self.become_successor();
                error!(event = "upgrade_failed", "no upgrade: {error:#}");
                self.upgrade_error = Some(format!("{error:#}"));
            }
            self.guard.pass_on();
            // Their descriptors go with them.
            self.streams.retain(|stream| !stream.has_ended());
            if let Some(manager) = &mut self.manager {
                manager.go_on();
            }
            self.pass_own_lines();
            if let Some(status) = self.exit {
                self.finish().await;
                return Ok(status);
            }
            let signals = Rc::clone(&self.signals);
            let notify = self.notify.clone();
            let idle = self.fleet.deadline().is_none();
            if idle && busy {
                self.settled.store(true, Ordering::Relaxed);
            }
            busy = !idle;
            let deadline = self.fleet.deadline().map(|at| (self.started + at).into());
            let leftover = self.running.values().any(|running| running.reaped);
            let groups = leftover.then(|| tokio::time::Instant::now() + GROUP_CHECK);
            let news = self.manager.as_ref().and_then(Manager::due).map(Into::into);
            tokio::select! {
                biased;
                received = signals.next() => self.signal(received.context("cannot read signals")?),
                Some((worker, what)) = self.inbox.1.recv() => self.tell(Event::Told { worker, what }),
                Some((ask, answer)) = self.control.calls.recv() => self.answer(&ask, answer),
                () = self.limits.next() => {
                    self.look_at_limits();
                    self.look_by_the_clock();
                    busy = true;
                }
                notice = self.measure.next() => {
                    self.look_soon(notice);
                    busy |= self.measure.calm;
                }
                (worker, news) = self.sharing.next() => self.learn(worker, news),
                message = heard(notify.as_deref()) => self.heard(message),
                () = until(deadline) => self.tell(Event::Tick),
                () = until(groups) => self.check_groups(),
                () = until(self.guard.due().map(Into::into)) => self.guard.renew(),
                // What is to be told is told at the beginning of each turn.
                () = self.stdout.news() => {}
                () = self.stderr.news() => {}
                () = until(news) => {}
                () = until(self.proof.as_ref().map(|proof| proof.deadline)) => self.end_proof(),
            }
        }
    }

    /// Lets the fleet take an event in and performs what it decides.
    fn tell(&mut self, event: Event) {
        // What cannot be started is an event of its own, which may lead to more.
        let mut events = vec![event];
        let (mut aged, mut grown) = (Vec::new(), Vec::new());
        while let Some(event) = events.pop() {
            let actions = self.fleet.step(self.started.elapsed(), event);
            if self.fleet.is_ending() {
                self.stop_sharing();
            }
            for action in actions {
                if let Some(manager) = &mut self.manager {
                    manager.heed(&action);
                }
                match action {
                    Action::Spawn(to) => {
                        if let Err(why) = self.spawn(to) {
                            events.push(Event::Refused { worker: to.worker, why });
                        }
                    }
                    Action::Drain(worker) => self.drain(worker),
                    Action::AskLeader(worker) => self.ask(worker, false),
                    Action::AskGroup(worker) => self.ask(worker, true),
                    Action::AbortLeader(worker) => self.abort_leader(worker),
                    Action::Aged { slot } => aged.push(slot),
                    Action::Recycle { slot, fresh } => grown.push((slot, fresh)),
                    Action::Kill(worker) => self.kill(worker),
                    Action::Say(note) => {
                        self.say(note);
                        self.heed(note);
                    }
                    Action::Exit(status) => self.exit = Some(status),
                }
            }
        }
        for slot in aged {
            self.renew(Kind::Aged, Some(slot));
        }
        for (slot, fresh) in grown {
            self.recycle(slot, fresh);
        }
    }

    /// What a fact means for who has to do with it.
    fn heed(&mut self, note: Note) {
        match note {
            Note::GaveUp { worker, .. } => {
                self.sharing.gone(worker);
                self.running.remove(&worker);
                self.leave_group(worker);
            }
            Note::Ready { worker, .. } => {
                self.sharing.ready(worker);
                if let Some(running) = self.running.get_mut(&worker) {
                    // However it was found out, the look at its start is over.
                    running.look = None;
                }
                self.look_for_life(worker);
            }
            Note::Leaving { worker, .. } | Note::Hung { worker, .. } => self.sharing.leaves(worker),
            Note::Resized { to, .. } | Note::Adapted { to, .. } => {
                self.sharing.resized(to);
                self.isolation.share_out(to, &self.config.sized);
            }
            Note::SlotFailed { slot, .. } | Note::SlotDone { slot } => self.sharing.vacant(slot),
            _ => self.control.note(note),
        }
    }
}

/// What a worker says next, or nothing ever where it cannot.
async fn heard(socket: Option<&NotifySocket>) -> io::Result<Message> {
    match socket {
        Some(socket) => socket.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for `deadline`, or for ever where there is none.
async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
