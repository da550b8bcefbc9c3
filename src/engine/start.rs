//! One worker's start: its words, its pipes, its process; and what a refusal means.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::rc::Rc;

use nix::errno::Errno;
use tracing::{debug, error};

use super::output::{Record, Ring, Stream, pipe};
use super::program::expand;
use super::sink::{Sink, StreamId};
use super::spawn::Launch;
use super::{Engine, Prefix, Running};
use crate::exit;
use crate::fleet::{Assignment, Refusal};

impl Engine {
    pub(super) fn spawn(&mut self, to: Assignment) -> Result<(), Refusal> {
        match self.try_spawn(to) {
            Ok(running) => {
                self.guard.begin(running.pid);
                let pid = running.pid.as_raw();
                debug!(
                    event = "started",
                    worker = to.slot,
                    pid,
                    "worker {} is started as pid {pid}",
                    to.slot
                );
                self.running.insert(to.worker, running);
                self.measure.started(self.now());
                Ok(())
            }
            Err(error) => {
                self.sharing.gone(to.worker);
                self.leave_group(to.worker);
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
        let equipment = self.sharing.equip(to)?;
        let own = equipment.env.iter().find(|(name, _)| *name == "PORT");
        let told = || Some(self.config.env.get("PORT")?.to_string_lossy().into_owned());
        let port = own.map(|(_, port)| port.clone()).or_else(told);
        let mut words = if self.config.template {
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
        if let Some(inspect) = self.config.inspect.as_ref().filter(|i| i.at <= words.len()) {
            words.insert(inspect.at, inspect.option(to.slot));
        }
        let record = self.record(to.slot, to.count);
        let words_from = record.ring.borrow().total();
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
                    Stream::new(id, ours, Rc::clone(sink), prefix.clone(), record.clone())?;
                streams.push(Rc::new(stream));
                Ok(Stdio::from(theirs))
            };
            (Stdio::null(), piped(&self.stdout)?, piped(&self.stderr)?)
        };
        let cgroup = self.isolation.make(to, self.fleet.target())?;
        self.guard.stands();
        let terminal = io::stdin();
        let gives = self.in_foreground();
        let pid = self.spawner.spawn(Launch {
            program: &self.config.program,
            words: &words,
            env: self.config.env.of(to, equipment.env),
            stdin,
            stdout,
            stderr,
            sockets: &equipment.sockets,
            channel: equipment.channel.as_ref().map(AsFd::as_fd),
            terminal: gives.then(|| terminal.as_fd()),
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
        })?;
        if gives {
            self.terminal_given.set(Some(pid));
        }
        for stream in &streams {
            self.watch_stream(stream);
        }
        let look = self.look_for_readiness(to.worker, to.slot, pid);
        Ok(Running {
            pid,
            slot: to.slot,
            asked: false,
            killed: false,
            since: self.now(),
            reaped: false,
            streams,
            ring: record.ring,
            words_from,
            status: None,
            look,
        })
    }

    /// Where its output is kept: with that of those who were in the slot before.
    pub(super) fn record(&mut self, slot: u32, count: u32) -> Record {
        let ring = self.rings.entry(slot);
        let ring = ring.or_insert_with(|| Rc::new(RefCell::new(Ring::new(count))));
        Record { slot, ring: Rc::clone(ring), news: self.control.output.clone() }
    }

    /// Reads a stream until its end.
    pub(super) fn watch_stream(&mut self, stream: &Rc<Stream>) {
        self.streams.push(Rc::clone(stream));
        let stream = Rc::clone(stream);
        tokio::task::spawn_local(async move { stream.serve().await });
    }

    pub(super) fn prefix(&self, slot: u32) -> Vec<u8> {
        // Six colours that are read on dark and light ground.
        let color = 31 + slot % 6;
        match self.config.prefix {
            Prefix::None => Vec::new(),
            Prefix::Plain => format!("[{slot}] ").into_bytes(),
            Prefix::Colored => format!("\x1b[{color}m[{slot}]\x1b[0m ").into_bytes(),
        }
    }
}

/// Whether it may work later, or never.
fn refusal(error: &io::Error) -> Refusal {
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    match errno {
        Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::ENOSPC => {
            Refusal::Resources
        }
        _ if error.kind() == io::ErrorKind::AddrNotAvailable => Refusal::Resources,
        _ => Refusal::Command { status: exec_status(error) },
    }
}

/// What a shell returns for a command whose exec failed like this.
pub(crate) fn exec_status(error: &io::Error) -> u8 {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => exit::NOT_FOUND,
        _ => exit::CANNOT_EXECUTE,
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
