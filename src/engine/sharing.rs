//! Where the workers' lives and the way in which connections reach them meet: each way hears of starts,
//! readiness, drains and ends, and tells what it finds out.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::resume::Keep;
use super::{Config, Engine, ports};
use crate::fleet::{self, Assignment, Event, FleetView, WorkerKey};
use crate::sockets::{
    Connections, Equipment, FIRST_FD, Key, News, Proxy, Reuseport, SavedProxy, Share, Upstream,
    revive,
};

/// The way that was chosen.
pub(super) struct Sharing {
    way: Way,
    /// How the way tells us.
    teller: UnboundedSender<Told>,
    told: UnboundedReceiver<Told>,
}

/// Of whom, and what.
type Told = (Key, News);

enum Way {
    Off,
    /// The same for all.
    Fd(Equipment),
    Reuseport(Reuseport),
    Proxy(Proxy),
}

impl Sharing {
    pub(super) fn new(config: &mut Config) -> io::Result<Self> {
        let (teller, told) = unbounded_channel();
        // Out of the way of the numbers that they will have in the workers.
        let end = FIRST_FD + i32::try_from(config.listeners.len()).unwrap_or(0);
        let way = match config.share {
            Share::Off => Way::Off,
            Share::Fd => {
                let copy = |fd| super::spawn::above(fd, end).map(Rc::new);
                let sockets = config.listeners.iter().map(|listener| copy(&listener.fd));
                Way::Fd(Equipment {
                    sockets: sockets.collect::<io::Result<_>>()?,
                    ..Equipment::default()
                })
            }
            Share::Reuseport => {
                Way::Reuseport(Reuseport::new(&mut config.listeners, end, teller.clone())?)
            }
            Share::Proxy => {
                let copies = config.listeners.iter().map(|listener| listener.fd.try_clone());
                let copies = copies.collect::<io::Result<_>>()?;
                let user = config.user.as_ref().map(|user| (user.uid, user.gid));
                Way::Proxy(Proxy::new(copies, config.proxy, user, teller.clone())?)
            }
        };
        Ok(Self { way, teller, told })
    }

    /// How many descriptors a worker inherits from [`FIRST_FD`] on.
    pub(super) fn inherited(&self) -> usize {
        match &self.way {
            Way::Off | Way::Proxy(_) => 0,
            Way::Fd(all) => all.sockets.len(),
            Way::Reuseport(way) => way.count(),
        }
    }

    /// What a worker gets. A start that is refused afterwards is told by [`Sharing::gone`].
    pub(super) fn equip(&mut self, to: Assignment) -> io::Result<Equipment> {
        Ok(match &mut self.way {
            Way::Off => Equipment::default(),
            Way::Fd(all) => {
                all.sockets.iter().for_each(|socket| revive(socket));
                Equipment { sockets: all.sockets.clone(), ..Equipment::default() }
            }
            Way::Reuseport(way) => {
                Equipment { sockets: way.equip(to.worker.0, to.slot)?, ..Equipment::default() }
            }
            Way::Proxy(way) => {
                let port = way.equip(to.worker.0, to.slot)?.to_string();
                Equipment { env: vec![("PORT", port)], ..Equipment::default() }
            }
        })
    }

    /// A worker serves.
    pub(super) fn ready(&mut self, worker: WorkerKey) {
        match &mut self.way {
            Way::Off | Way::Fd(_) => {}
            Way::Reuseport(way) => way.ready(worker.0),
            Way::Proxy(way) => way.ready(worker.0),
        }
    }

    /// No more for a worker; [`News::Drained`] follows. `all`: so it is with all the others.
    fn drain(&mut self, worker: WorkerKey, all: bool) {
        match &mut self.way {
            // Nothing that we could lead elsewhere.
            Way::Off | Way::Fd(_) => {
                let _ = self.teller.send((worker.0, News::Drained));
            }
            Way::Reuseport(way) => way.drain(worker.0, all),
            Way::Proxy(way) => way.drain(worker.0),
        }
    }

    /// A worker goes, drained or not: nothing new for it.
    pub(super) fn leaves(&mut self, worker: WorkerKey) {
        match &mut self.way {
            Way::Off | Way::Fd(_) => {}
            Way::Reuseport(way) => way.leaves(worker.0),
            Way::Proxy(way) => way.leaves(worker.0),
        }
    }

    /// Its leader has ended, or was never started.
    pub(super) fn gone(&mut self, worker: WorkerKey) {
        match &mut self.way {
            Way::Off | Way::Fd(_) => {}
            Way::Reuseport(way) => way.gone(worker.0),
            Way::Proxy(way) => way.gone(worker.0),
        }
    }

    /// There are so many slots now; a worker of one that is no more may still be on its way out.
    pub(super) fn resized(&mut self, slots: u32) {
        match &mut self.way {
            Way::Off | Way::Fd(_) | Way::Proxy(_) => {}
            Way::Reuseport(way) => way.resized(slots),
        }
    }

    /// Null where the kernel carries them.
    pub(super) fn connections(&self, worker: WorkerKey) -> Option<Connections> {
        match &self.way {
            Way::Off | Way::Fd(_) | Way::Reuseport(_) => None,
            Way::Proxy(way) => way.connections(worker.0),
        }
    }

    /// Sockets that workers have from us: there, the kernel answers for them.
    pub(super) fn ours(&self) -> HashSet<u64> {
        match &self.way {
            Way::Off | Way::Proxy(_) => HashSet::new(),
            Way::Fd(all) => all.sockets.iter().filter_map(|fd| ports::inode(&fd.as_fd())).collect(),
            Way::Reuseport(way) => {
                let mut found = HashSet::new();
                way.each(|_, _, fd| found.extend(ports::inode(&fd)));
                found
            }
        }
    }

    fn due(&mut self, worker: WorkerKey) {
        match &mut self.way {
            Way::Off | Way::Fd(_) | Way::Proxy(_) => {}
            Way::Reuseport(way) => way.due(worker.0),
        }
    }

    /// Nobody will fill this slot again.
    pub(super) fn vacant(&mut self, slot: u32) {
        match &mut self.way {
            Way::Off | Way::Fd(_) | Way::Proxy(_) => {}
            Way::Reuseport(way) => way.vacant(slot),
        }
    }

    /// The sockets that slots have of their own for the listener `index`, with the numbers that `keep` gives.
    pub(super) fn keep_slots(
        &self,
        index: usize,
        keep: &mut Keep<'_>,
    ) -> io::Result<Vec<(Option<u32>, i32)>> {
        let Way::Reuseport(way) = &self.way else { return Ok(Vec::new()) };
        let mut kept = Vec::new();
        way.each(|at, slot, fd| {
            if at == index {
                kept.push(keep(fd).map(|fd| (slot, fd)));
            }
        });
        kept.into_iter().collect()
    }

    /// Where a worker was told to listen, where it has a place of its own.
    pub(super) fn upstream(&self, worker: WorkerKey) -> Option<Upstream> {
        match &self.way {
            Way::Proxy(way) => way.upstream(worker.0),
            Way::Off | Way::Fd(_) | Way::Reuseport(_) => None,
        }
    }

    /// All will stop. True where the listening sockets are of no use any more.
    fn stop(&mut self) -> bool {
        match &mut self.way {
            Way::Proxy(way) => {
                way.stop();
                true
            }
            Way::Off | Way::Fd(_) | Way::Reuseport(_) => false,
        }
    }

    /// What the proxy has under way.
    pub(super) fn save_proxy(&self) -> Option<SavedProxy> {
        match &self.way {
            Way::Proxy(way) => Some(way.save()),
            Way::Off | Way::Fd(_) | Way::Reuseport(_) => None,
        }
    }

    /// Whether the descriptors that keep their numbers stay open over an exec.
    pub(super) fn keep_open(&self, keep: bool) {
        if let Way::Proxy(way) = &self.way {
            way.keep_open(keep);
        }
    }

    /// Goes on with the workers that an earlier program of ours has started.
    pub(super) fn resume(&mut self, view: &FleetView, proxy: Option<&SavedProxy>) {
        if let (Way::Proxy(way), Some(saved)) = (&mut self.way, proxy) {
            way.restore(saved);
            let draining = view.workers.iter().filter(|worker| worker.state == "draining");
            draining.for_each(|worker| way.drain(worker.key.0));
        }
        let Way::Reuseport(way) = &mut self.way else { return };
        for worker in &view.workers {
            way.resume(worker.key.0, worker.slot, worker.state == "starting", worker.ready);
        }
        way.resized(view.target);
        // Who was being drained is drained anew; who has its signal already takes no notice.
        for worker in view.workers.iter().filter(|worker| worker.state == "draining") {
            way.drain(worker.key.0, view.stopping);
        }
    }

    /// For those who find out something besides.
    pub(super) fn teller(&self) -> UnboundedSender<Told> {
        self.teller.clone()
    }

    /// What is found out next.
    pub(super) async fn next(&mut self) -> Told {
        match self.told.recv().await {
            Some(news) => news,
            // Not while we hold a sender.
            None => std::future::pending().await,
        }
    }
}

impl Engine {
    /// The stop has begun: new clients are refused at once, where we are who they come to.
    pub(super) fn stop_sharing(&mut self) {
        if self.sharing.stop() {
            self.config.listeners.clear();
        }
    }

    pub(super) fn drain(&mut self, worker: WorkerKey) {
        if let Some(running) = self.running.get_mut(&worker) {
            running.asked = true;
        }
        let all = self.fleet.is_ending();
        self.sharing.drain(worker, all);
    }

    pub(super) fn learn(&mut self, worker: Key, news: News) {
        let worker = WorkerKey(worker);
        match news {
            News::Drained => self.tell(Event::Told { worker, what: fleet::Told::Drained }),
            // The turn is all it wants.
            News::Said => {}
            News::Due => self.sharing.due(worker),
        }
    }
}
