//! `--share reuseport`: each slot has a listening socket of its own, and we tell the kernel which of them
//! get new connections: those with a worker that serves.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::slots::say_closed;
use super::{BACKLOG, Key, Listener, News, Slots, above};

/// How often we look whether a queue is empty.
const LOOK: Duration = Duration::from_millis(5);
/// How long a worker gets for the requests of what it has just accepted, before its stop signal: many servers
/// close a connection then from which they have not read yet (uvicorn).
const SETTLE: Duration = Duration::from_millis(100);
/// How long it is waited for what the next worker would inherit: one that hangs takes nothing.
const INHERITED: Duration = Duration::from_secs(1);
/// How long it may take to close its socket after that signal; until then it may still accept.
const CLOSING: Duration = Duration::from_secs(2);
/// How long a handshake may be under way after its SYN: what the kernel waits for an answer before it asks
/// again (`TCP_TIMEOUT_INIT`).
const HANDSHAKE: Duration = Duration::from_secs(1);

/// The sockets of all slots, and who fills them.
pub(crate) struct Reuseport {
    sockets: Vec<Socket>,
    workers: BTreeMap<Key, Worker>,
    /// How many slots there are to be.
    slots: u32,
    teller: UnboundedSender<(Key, News)>,
    /// The kernel does not let itself be told.
    deaf: bool,
}

/// What stands for one address.
enum Socket {
    /// The same for all: a Unix socket, or one that was passed to us and stays when we go.
    Shared(Rc<OwnedFd>),
    Own(Rc<RefCell<Slots>>),
}

struct Worker {
    slot: u32,
    stage: Stage,
    /// Nothing new for its slot as long as it may take some of it, although its successor serves there.
    holds_up: bool,
    drain: Option<Drain>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Serving,
    Leaving,
}

/// The look at a queue; ends with whom it is about.
struct Drain(AbortHandle);

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reuseport {
    /// On these listeners; `end`: the first number that workers do not inherit.
    pub(crate) fn new(
        listeners: &mut [Listener],
        end: RawFd,
        teller: UnboundedSender<(Key, News)>,
    ) -> io::Result<Self> {
        let socket = |listener: &mut Listener| {
            if !listener.may_have_slots() {
                return Ok(Socket::Shared(Rc::new(above(&listener.fd, end)?)));
            }
            let before = std::mem::take(&mut listener.slots);
            let group = if before.is_empty() {
                Slots::around(&listener.fd, BACKLOG, end)?
            } else {
                Slots::restore(before, &listener.fd, BACKLOG, end)?
            };
            Ok(Socket::Own(Rc::new(RefCell::new(group))))
        };
        let sockets = listeners.iter_mut().map(socket).collect::<io::Result<_>>()?;
        Ok(Self { sockets, workers: BTreeMap::new(), slots: u32::MAX, teller, deaf: false })
    }

    pub(crate) fn count(&self) -> usize {
        self.sockets.len()
    }

    /// All listening sockets, with their slots where they have one, address by address in the kernel's
    /// order.
    pub(crate) fn each(&self, mut what: impl FnMut(usize, Option<u32>, BorrowedFd<'_>)) {
        for (index, socket) in self.sockets.iter().enumerate() {
            match socket {
                Socket::Shared(fd) => what(index, None, fd.as_fd()),
                Socket::Own(group) => {
                    for (slot, fd) in group.borrow().members() {
                        what(index, slot, fd);
                    }
                }
            }
        }
    }

    /// The sockets of a worker.
    pub(crate) fn equip(&mut self, worker: Key, slot: u32) -> io::Result<Vec<Rc<OwnedFd>>> {
        let socket = |socket: &Socket| match socket {
            Socket::Shared(fd) => Ok(Rc::clone(fd)),
            Socket::Own(group) => group.borrow_mut().socket(slot),
        };
        let sockets = self.sockets.iter().map(socket).collect::<io::Result<_>>()?;
        self.workers
            .insert(worker, Worker { slot, stage: Stage::Starting, holds_up: false, drain: None });
        self.steer();
        Ok(sockets)
    }

    /// A worker that an earlier program of ours has equipped.
    pub(crate) fn resume(&mut self, worker: Key, slot: u32, starting: bool, ready: bool) {
        let stage = match (starting, ready) {
            (true, _) => Stage::Starting,
            (false, true) => Stage::Serving,
            (false, false) => Stage::Leaving,
        };
        self.workers.insert(worker, Worker { slot, stage, holds_up: false, drain: None });
    }

    pub(crate) fn ready(&mut self, worker: Key) {
        self.set(worker, Stage::Serving);
    }

    pub(crate) fn leaves(&mut self, worker: Key) {
        self.set(worker, Stage::Leaving);
    }

    /// Leads new connections away from a worker, and tells when nothing waits for it. `all`: nobody stays to
    /// lead them to.
    pub(crate) fn drain(&mut self, worker: Key, all: bool) {
        let slot = self.workers.get(&worker).map(|worker| worker.slot);
        let elsewhere = self.serving().iter().any(|other| Some(*other) != slot);
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.holds_up = !all && elsewhere;
        }
        self.set(worker, Stage::Leaving);
        let Some(slot) = slot.filter(|_| !all && elsewhere) else {
            // Fails only where the engine has ended.
            let _ = self.teller.send((worker, News::Drained));
            return;
        };
        // A socket that stays keeps for the next worker what this one does not take.
        let retiring = self.is_retiring(slot);
        let (linger, most) =
            if retiring { (self.handshake(), Duration::MAX) } else { (SETTLE, INHERITED) };
        let groups: Vec<_> = self.groups().map(Rc::clone).collect();
        let teller = self.teller.clone();
        let task = tokio::task::spawn_local(async move {
            let begin = Instant::now();
            let mut until = begin + linger;
            while Instant::now() < until && begin.elapsed() < most {
                sleep(LOOK).await;
                if groups.iter().any(|group| group.borrow().has_waiting(slot)) {
                    until = until.max(Instant::now() + SETTLE);
                }
            }
            let _ = teller.send((worker, News::Drained));
            sleep(CLOSING).await;
            let _ = teller.send((worker, News::Due));
        });
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.drain = Some(Drain(task.abort_handle()));
        }
    }

    /// What was put off is to be done: a worker had its time to close its socket.
    pub(crate) fn due(&mut self, worker: Key) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.holds_up = false;
        }
        self.steer();
    }

    pub(crate) fn gone(&mut self, worker: Key) {
        if let Some(Worker { slot, .. }) = self.workers.remove(&worker) {
            self.steer();
            self.retire(slot);
        }
    }

    pub(crate) fn resized(&mut self, slots: u32) {
        self.slots = slots;
        self.steer();
        let mut all: Vec<u32> = Vec::new();
        self.each(|_, slot, _| all.extend(slot));
        for slot in all {
            self.retire(slot);
        }
    }

    /// Nobody will fill a slot again, or come for what waits there.
    pub(crate) fn vacant(&mut self, slot: u32) {
        let lost = self.groups().map(|group| group.borrow().dismiss(slot).unwrap_or(0)).sum();
        say_closed(slot, lost);
    }

    fn set(&mut self, worker: Key, stage: Stage) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.stage = stage;
            self.steer();
        }
    }

    fn groups(&self) -> impl Iterator<Item = &Rc<RefCell<Slots>>> {
        self.sockets.iter().filter_map(|socket| match socket {
            Socket::Shared(_) => None,
            Socket::Own(group) => Some(group),
        })
    }

    fn is_retiring(&self, slot: u32) -> bool {
        slot > self.slots
    }

    /// How long to wait for handshakes that are under way.
    fn handshake(&self) -> Duration {
        // On loopback each is over before its SYN's sender goes on.
        let local = self.groups().all(|group| group.borrow().address().ip().is_loopback());
        if local { SETTLE } else { HANDSHAKE }
    }

    /// Closes the sockets of a slot that is no more, once its last worker has gone.
    fn retire(&mut self, slot: u32) {
        if !self.is_retiring(slot) || self.workers.values().any(|worker| worker.slot == slot) {
            return;
        }
        let mut lost = 0;
        for group in self.groups() {
            let mut group = group.borrow_mut();
            lost += group.dismiss(slot).unwrap_or(0);
            group.close(slot);
        }
        say_closed(slot, lost);
    }

    /// The slots that have a worker that serves, and none that holds it up.
    fn serving(&self) -> Vec<u32> {
        let held = |slot| self.workers.values().any(|one| one.slot == slot && one.holds_up);
        let serving = self.workers.values().filter(|worker| worker.stage == Stage::Serving);
        serving.map(|worker| worker.slot).filter(|slot| !held(*slot)).collect()
    }

    /// To slots with a worker that serves; where there is none, to those whose worker begins and will find
    /// them in its queue; else to all that stay.
    fn steer(&mut self) {
        let with = |stage: Stage| {
            let found = self.workers.values().filter(move |worker| worker.stage == stage);
            found.map(|worker| worker.slot).collect::<Vec<_>>()
        };
        let mut to = self.serving();
        for stage in [Stage::Serving, Stage::Starting] {
            if to.is_empty() {
                to = with(stage);
            }
        }
        let most = self.slots;
        let steer = |group: &Rc<RefCell<Slots>>| {
            let mut group = group.borrow_mut();
            if !to.is_empty() {
                return group.steer(to.iter().copied());
            }
            let staying: Vec<_> = group.members().filter_map(|(slot, _)| slot).collect();
            group.steer(staying.into_iter().filter(|slot| *slot <= most))
        };
        let outcome: io::Result<()> = self.groups().try_for_each(steer);
        if let Err(error) = outcome
            && !std::mem::replace(&mut self.deaf, true)
        {
            warn!(
                event = "steering",
                "new connections cannot be kept from a slot whose worker is away and wait for the next one: {error}"
            );
        }
    }
}
