//! The state of the launcher, taken down and put up again around an exec.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use tracing::info;

use super::output::{Record, Ring, Stream};
use super::sink::StreamId;
use super::state::{ListenerState, RingState, State, StreamState, Text, VERSION, WorkerState};
use super::{Engine, Running};
use crate::fleet::Event;
use crate::log;
use crate::sockets::handed_down;
use crate::units::plural;

/// Gives a descriptor the number under which the successor will find it.
pub(super) type Keep<'a> = dyn FnMut(BorrowedFd<'_>) -> io::Result<i32> + 'a;

impl Engine {
    /// Everything, with each descriptor as `keep` numbers it.
    pub(super) fn save(&self, keep: &mut Keep<'_>) -> io::Result<State> {
        let workers = self.running.iter().map(|(key, running)| WorkerState {
            key: *key,
            pid: running.pid.as_raw(),
            slot: running.slot,
            since: running.since,
            asked: running.asked,
            killed: running.killed,
            reaped: running.reaped,
            words_from: running.words_from,
            status: running.status.clone(),
        });
        let mut streams = Vec::new();
        for stream in self.streams.iter().filter(|stream| !stream.has_ended()) {
            let holds = |running: &Running| running.streams.iter().any(|s| Rc::ptr_eq(s, stream));
            streams.push(StreamState {
                fd: keep(stream.fd())?,
                id: stream.id().0,
                slot: stream.slot(),
                worker: self.running.iter().find(|(_, r)| holds(r)).map(|(key, _)| *key),
                is_stderr: stream.writes_to(&self.stderr),
                unfinished: stream.partial().as_slice().into(),
            });
        }
        let mut listeners = Vec::new();
        for (index, listener) in self.config.listeners.iter().enumerate() {
            listeners.push(ListenerState {
                fd: keep(listener.fd.as_fd())?,
                asked: listener.asked.clone(),
                name: listener.passed_as().map(str::to_owned),
                file: listener.has_file(),
                slots: self.sharing.keep_slots(index, keep)?,
            });
        }
        let rings = self.rings.iter().map(|(slot, ring)| {
            let ring = ring.borrow();
            let bytes = ring.since(0, usize::MAX).as_slice().into();
            (*slot, RingState { total: ring.total(), most: ring.most(), bytes })
        });
        let control = self.control.socket.as_ref();
        let control = match control {
            Some(socket) => Some((keep(socket.listener.as_fd())?, socket.path.clone())),
            None => None,
        };
        let guard = match self.guard.hand_over() {
            Some((pipe, pid)) => Some((keep(pipe)?, pid.as_raw())),
            None => None,
        };
        let events = log::kept().into_iter();
        let all = Signal::iterator().filter(|signal| self.spawner.mask.contains(*signal));
        Ok(State {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            words: std::env::args_os().map(|word| word.as_bytes().into()).collect(),
            upgrades: self.upgrades,
            elapsed: self.now(),
            fleet: self.fleet.save(),
            others: self.config.sized.others.clone(),
            isolation: Some(self.isolation.save()),
            workers: workers.collect(),
            streams,
            rings: rings.collect(),
            listeners,
            channels: self.sharing.keep_channels(keep)?,
            name: self.name.clone(),
            notify: self.notify.as_ref().map(|notify| keep(notify.fd())).transpose()?,
            control,
            guard,
            groups: self.guard.groups().collect(),
            unwritten: [self.stdout.unwritten().into(), self.stderr.unwritten().into()],
            next_stream: self.next_stream,
            mask: all.map(|signal| signal as i32).collect(),
            limits: self.spawner.limits,
            had_terminal: self.had_terminal,
            terminal_given: self.terminal_given.get().map(Pid::as_raw),
            strangers: self.strangers.iter().map(|pid| pid.as_raw()).collect(),
            quick_failures: self.quick_failures.clone(),
            events: events
                .map(|fact| (fact.number, fact.name.to_string(), fact.json.to_string()))
                .collect(),
            proxy: self.sharing.save_proxy(),
            upgrade_error: None,
        })
    }

    /// Puts up again what `new` does not know: the workers with their output, and the small things.
    pub(super) fn restore(&mut self, state: &State) -> anyhow::Result<()> {
        let events: Vec<_> = state.events.clone();
        log::restore(events);
        for (slot, ring) in &state.rings {
            let ring = Ring::restore(ring.most, ring.total, &ring.bytes.bytes());
            self.rings.insert(*slot, Rc::new(RefCell::new(ring)));
        }
        let mut streams: BTreeMap<_, Vec<Rc<Stream>>> = BTreeMap::new();
        for stream in &state.streams {
            let fd = handed_down(stream.fd).context("the output of a worker is gone")?;
            let sink = if stream.is_stderr { &self.stderr } else { &self.stdout };
            let (sink, prefix) = (Rc::clone(sink), self.prefix(stream.slot));
            let record = self.ring_of(stream.slot);
            let restored = Stream::new(StreamId(stream.id), fd, sink, prefix, record)
                .context("the output of a worker cannot be watched")?;
            restored.go_on_with(stream.unfinished.bytes());
            let restored = Rc::new(restored);
            self.watch_stream(&restored);
            if let Some(worker) = stream.worker {
                streams.entry(worker).or_default().push(restored);
            }
        }
        for worker in &state.workers {
            let running = Running {
                pid: Pid::from_raw(worker.pid),
                slot: worker.slot,
                since: worker.since,
                asked: worker.asked,
                killed: worker.killed,
                reaped: worker.reaped,
                streams: streams.remove(&worker.key).unwrap_or_default(),
                ring: self.ring_of(worker.slot).ring,
                words_from: worker.words_from,
                status: worker.status.clone(),
                look: None,
            };
            self.running.insert(worker.key, running);
        }
        if let Some(channels) = &state.channels {
            let restored = self.sharing.restore_channels(channels);
            restored.context("the channels of the workers cannot be taken over")?;
        }
        self.next_stream = state.next_stream;
        self.quick_failures.clone_from(&state.quick_failures);
        self.terminal_given.set(state.terminal_given.map(Pid::from_raw));
        self.had_terminal = state.had_terminal;
        self.upgrades = state.upgrades;
        self.upgrade_error.clone_from(&state.upgrade_error);
        for (sink, unwritten) in [&self.stdout, &self.stderr].into_iter().zip(&state.unwritten) {
            sink.go_on_with(unwritten.bytes());
        }
        Ok(())
    }

    fn ring_of(&mut self, slot: u32) -> Record {
        self.record(slot, self.fleet.target())
    }

    /// Takes up the work again: looks at workers, and hears what came meanwhile.
    pub(super) fn work_on(&mut self, state: &State) {
        let view = self.fleet.view(self.now());
        self.sharing.resume(&view, state.proxy.as_ref());
        for worker in &view.workers {
            if worker.ready {
                self.look_for_life(worker.key);
            } else if worker.state == "starting"
                && let Some(pid) = self.running.get(&worker.key).map(|running| running.pid)
            {
                let look = self.look_for_readiness(worker.key, worker.slot, pid);
                if let Some(running) = self.running.get_mut(&worker.key) {
                    running.look = look;
                }
            }
        }
        if let Some(manager) = &mut self.manager {
            manager.resume(&view);
        }
        // What the program before us measured is not known; nobody is to be without for longer than after a start.
        self.measure.started(self.now());
        let workers = plural(u32::try_from(view.workers.len()).unwrap_or(u32::MAX), "worker");
        let (version, before) = (env!("CARGO_PKG_VERSION"), &state.program);
        match &self.upgrade_error {
            None => info!(
                event = "upgraded",
                version,
                before,
                upgrades = self.upgrades,
                "version {version} goes on in place of {before}, with {workers} and everything that was open"
            ),
            Some(why) => tracing::error!(
                event = "upgrade_failed",
                version,
                "the new program could not go on, and version {version} is back with {workers}: {why}"
            ),
        }
        // Ends meanwhile sent us one CHLD for all, or none at all.
        self.reap();
        self.tell(Event::Tick);
    }
}

/// The mask that workers get.
pub(super) fn mask(numbers: &[i32]) -> SigSet {
    numbers.iter().filter_map(|number| Signal::try_from(*number).ok()).collect()
}

/// A descriptor of the state, for ourselves.
pub(super) fn own(fd: Option<i32>) -> Option<OwnedFd> {
    fd.and_then(|fd| handed_down(fd).ok())
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        bytes.as_slice().into()
    }
}
