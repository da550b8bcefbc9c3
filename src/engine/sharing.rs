//! Where the workers' lives and the way in which connections reach them meet: each way hears of starts,
//! readiness, drains and ends, and tells what it finds out.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::warn;

use super::resume::Keep;
use super::{Config, Engine, ports, spawn};
use crate::fleet::{self, Assignment, Event, FleetView, Kind, WorkerKey};
use crate::sockets::node::{Cluster, Hub, Saved, Setup};
use crate::sockets::{
    Balance, Connections, Equipment, FIRST_FD, Key, News, Proxy, Reuseport, SavedProxy, Share,
    Upstream, revive,
};

/// How long a worker of Node may take to say that it is there: at least, and at most.
const DEAF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));

/// The way that was chosen.
pub(super) struct Sharing {
    way: Way,
    /// The workers' channels, where they have any.
    hub: Option<Hub>,
    /// The first number that workers do not inherit.
    end: RawFd,
    /// How the way tells us.
    teller: UnboundedSender<Told>,
    told: UnboundedReceiver<Told>,
}

/// Of whom, and what.
type Told = (Key, News);

enum Way {
    Off,
    /// The same for all: also for Node, which asks for the rest by its channel.
    Fd(Equipment),
    Reuseport(Reuseport),
    Proxy(Proxy),
}

impl Sharing {
    pub(super) fn new(config: &mut Config) -> io::Result<Self> {
        let (teller, told) = unbounded_channel();
        // Out of the way of the numbers that they will have in the workers.
        let channel = config.ipc || config.share == Share::Node;
        let inherited = config.listeners.len() + usize::from(channel);
        let end = FIRST_FD + i32::try_from(inherited).unwrap_or(0);
        let user = config.user.as_ref().map(|user| (user.uid, user.gid));
        let way = match config.share {
            Share::Off => Way::Off,
            Share::Fd | Share::Node => {
                let copy = |fd| spawn::above(fd, end).map(Rc::new);
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
                Way::Proxy(Proxy::new(copies, config.proxy, user, teller.clone())?)
            }
        };
        let cluster = |passed: &[_]| Cluster {
            balance: config.balance.unwrap_or(Balance::Kernel),
            asked: config.asked.clone(),
            passed: passed.to_vec(),
            user,
            end,
        };
        let hub = channel.then(|| {
            let cluster = match &way {
                Way::Fd(all) if config.share == Share::Node => Some(cluster(&all.sockets)),
                _ => None,
            };
            let stop_message = config.stop_message.clone();
            let patience = (config.policy.readiness.timeout / 3).clamp(DEAF.0, DEAF.1);
            Hub::new(Setup { cluster, stop_message, patience }, teller.clone())
        });
        Ok(Self { way, hub, end, teller, told })
    }

    /// How many descriptors a worker inherits from [`FIRST_FD`] on.
    pub(super) fn inherited(&self) -> usize {
        let sockets = match &self.way {
            Way::Off | Way::Proxy(_) => 0,
            Way::Fd(all) => all.sockets.len(),
            Way::Reuseport(way) => way.count(),
        };
        sockets + usize::from(self.hub.is_some())
    }

    /// What a worker gets. A start that is refused afterwards is told by [`Sharing::gone`].
    pub(super) fn equip(&mut self, to: Assignment) -> io::Result<Equipment> {
        let mut equipment = match &mut self.way {
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
        };
        if let Some(hub) = &self.hub
            && let Some((channel, env)) = hub.join(to.worker.0, to.slot)?
        {
            let number = FIRST_FD + i32::try_from(equipment.sockets.len()).unwrap_or(0);
            equipment.channel = Some(spawn::above(&channel, self.end)?);
            equipment.env.push(("NODE_CHANNEL_FD", number.to_string()));
            equipment.env.extend(env);
        }
        Ok(equipment)
    }

    /// A worker serves.
    pub(super) fn ready(&mut self, worker: WorkerKey) {
        if let Some(hub) = &self.hub {
            hub.ready(worker.0);
        }
        match &mut self.way {
            Way::Off | Way::Fd(_) => {}
            Way::Reuseport(way) => way.ready(worker.0),
            Way::Proxy(way) => way.ready(worker.0),
        }
    }

    /// No more for a worker; [`News::Drained`] follows. `all`: so it is with all the others.
    fn drain(&mut self, worker: WorkerKey, all: bool) {
        if let Some(hub) = self.hub.as_ref().filter(|hub| hub.drains()) {
            match &mut self.way {
                Way::Off | Way::Fd(_) => {}
                Way::Reuseport(way) => way.leaves(worker.0),
                Way::Proxy(way) => way.leaves(worker.0),
            }
            return hub.drain(worker.0, all);
        }
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
        if let Some(hub) = &self.hub {
            hub.leaves(worker.0);
        }
        match &mut self.way {
            Way::Off | Way::Fd(_) => {}
            Way::Reuseport(way) => way.leaves(worker.0),
            Way::Proxy(way) => way.leaves(worker.0),
        }
    }

    /// Its leader has ended, or was never started.
    pub(super) fn gone(&mut self, worker: WorkerKey) {
        if let Some(hub) = &self.hub {
            hub.gone(worker.0);
        }
        match &mut self.way {
            Way::Off | Way::Fd(_) => {}
            Way::Reuseport(way) => way.gone(worker.0),
            Way::Proxy(way) => way.gone(worker.0),
        }
    }

    /// There are so many slots now; a worker of one that is no more may still be on its way out.
    pub(super) fn resized(&mut self, slots: u32) {
        if let Some(hub) = &self.hub {
            hub.resized(slots);
        }
        match &mut self.way {
            Way::Off | Way::Fd(_) | Way::Proxy(_) => {}
            Way::Reuseport(way) => way.resized(slots),
        }
    }

    /// Null where the kernel carries them.
    pub(super) fn connections(&self, worker: WorkerKey) -> Option<Connections> {
        match &self.way {
            Way::Off | Way::Fd(_) | Way::Reuseport(_) => self.hub.as_ref()?.connections(worker.0),
            Way::Proxy(way) => way.connections(worker.0),
        }
    }

    /// Clients whom we keep because nobody serves at the moment.
    pub(super) fn held(&self) -> u32 {
        match &self.way {
            Way::Proxy(way) => way.held(),
            Way::Off | Way::Fd(_) | Way::Reuseport(_) => 0,
        }
    }

    /// Sockets that workers have from us: there, the kernel answers for them.
    pub(super) fn ours(&self) -> HashSet<u64> {
        let mut found = HashSet::new();
        match &self.way {
            Way::Off | Way::Proxy(_) => {}
            Way::Fd(all) => {
                found.extend(all.sockets.iter().filter_map(|fd| ports::inode(&fd.as_fd())));
            }
            Way::Reuseport(way) => way.each(|_, _, fd| found.extend(ports::inode(&fd))),
        }
        if let Some(hub) = &self.hub {
            hub.sockets(|fd| found.extend(ports::inode(&fd)));
        }
        found
    }

    fn due(&mut self, worker: WorkerKey) {
        match &mut self.way {
            Way::Off | Way::Fd(_) | Way::Proxy(_) => {}
            Way::Reuseport(way) => way.due(worker.0),
        }
    }

    /// Nobody will fill this slot again.
    pub(super) fn vacant(&mut self, slot: u32) {
        if let Some(hub) = &self.hub {
            hub.vacant(slot);
        }
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

    /// The channels and what is listened on for their sake, with the numbers that `keep` gives.
    pub(super) fn keep_channels(&self, keep: &mut Keep<'_>) -> io::Result<Option<Saved>> {
        self.hub.as_ref().map(|hub| hub.save(keep)).transpose()
    }

    pub(super) fn restore_channels(&self, saved: &Saved) -> io::Result<()> {
        self.hub.as_ref().map_or(Ok(()), |hub| hub.restore(saved))
    }

    /// The workers' channels, where they have any.
    pub(super) fn hub(&self) -> Option<&Hub> {
        self.hub.as_ref()
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
        if let Some(hub) = &self.hub {
            hub.resume(view.target);
        }
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
        let what = match news {
            News::Drained => fleet::Told::Drained,
            News::Leaves => fleet::Told::Stopping,
            News::Listens if self.config.ready_by_listening => fleet::Told::Ready,
            News::SaidReady if self.config.ready_by_notice => fleet::Told::Ready,
            News::Due => return self.sharing.due(worker),
            // Nothing here waits for that, or the turn is all that it wants.
            News::Listens | News::SaidReady | News::Said => return,
            News::Deaf => return self.deaf(worker),
            News::PortTaken(port) => return port_taken(port),
        };
        self.tell(Event::Told { worker, what });
    }

    /// A worker has a channel that somebody else took: it is started again without.
    fn deaf(&mut self, worker: WorkerKey) {
        let running = self.running.get(&worker).filter(|running| !running.reaped);
        let Some(slot) = running.map(|running| running.slot) else { return };
        if self.sharing.hub().is_none_or(Hub::give_up) {
            // All are being replaced already.
            return;
        }
        warn!(
            event = "no_cluster",
            worker = slot,
            "worker {slot} does not answer as a Node cluster worker: something between us and node (npm, a shell, sudo) has its channel. \
             The workers are started again without one, as with --share off; start node itself, or leave --share node out"
        );
        self.tell(Event::Renew { kind: Kind::Reload, slot: None, surge: 0 });
    }
}

fn port_taken(port: u16) {
    if let Some(holder) = ports::holder(port) {
        warn!(event = "port_held", port, "port {port} is taken: {holder} listens there");
    }
}
