//! `--share proxy`: connections are accepted here, and their bytes passed to a worker's own port, only
//! to workers that are ready.
//!
//! One task drives all connections; the engine's calls come between its turns, on the same thread.

mod accept;
mod assign;
mod balance;
mod buffers;
mod conn;
mod core;
mod drain;
mod header;
mod relay;
mod saved;
mod upstream;
mod workers;

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use self::accept::Door;
use self::balance::Balancer;
use self::core::Core;
pub(crate) use self::saved::Saved;
use self::upstream::Places;
pub(crate) use self::upstream::Upstream;
use self::workers::Standing;
use super::{Balance, Connections, Key, News, adopt};

/// How long the connections may have the thread before everything else has its turn.
const TURN: Duration = Duration::from_millis(1);
/// Without a deadline we look again after this, and find nothing.
const LONG: Duration = Duration::from_hours(24);

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) balance: Balance,
    /// Whether a worker is told each client's address (`--proxy-protocol`).
    pub(crate) header: bool,
    /// Whether workers have Unix sockets in place of ports (`--upstream unix`).
    pub(crate) unix: bool,
}

/// The engine's hold on it.
pub(crate) struct Proxy {
    core: Rc<RefCell<Core>>,
    places: Places,
    /// A deadline may have come nearer.
    news: Rc<Notify>,
}

impl Proxy {
    /// Serves on copies of listening sockets. The workers run as `user`, where that is somebody else. To be
    /// called inside of the runtime.
    pub(crate) fn new(
        listeners: Vec<OwnedFd>,
        options: Options,
        user: Option<(Uid, Gid)>,
        teller: UnboundedSender<(Key, News)>,
    ) -> io::Result<Self> {
        let places = if options.unix { Places::sockets(user)? } else { Places::ports() };
        let balancer = Balancer::new(options.balance);
        let core = Core::new(Door::new(listeners)?, balancer, options.header, teller)?;
        let epoll = adopt::watch(core.epoll.0.try_clone()?)?;
        let core = Rc::new(RefCell::new(core));
        let news = Rc::new(Notify::new());
        tokio::task::spawn_local(serve(Rc::clone(&core), epoll, Rc::clone(&news)));
        Ok(Self { core, places, news })
    }

    /// Where a worker to be is to listen.
    pub(crate) fn equip(&mut self, key: Key, slot: u32) -> io::Result<Upstream> {
        let mut core = self.core.borrow_mut();
        let upstream = self.places.next(key, &core.workers.ports())?;
        core.workers.add(key, slot, upstream.clone());
        Ok(upstream)
    }

    pub(crate) fn upstream(&self, key: Key) -> Option<Upstream> {
        let core = self.core.borrow();
        let worker = core.workers.iter().find(|worker| worker.key == key)?;
        Some(worker.upstream.clone())
    }

    /// A worker serves.
    pub(crate) fn ready(&mut self, key: Key) {
        self.change(key, |core, place| {
            if core.stands(place, Standing::Ready, &[Standing::Starting]) {
                core.look_in(0);
            }
        });
    }

    /// Nothing new for a worker; [`News::Drained`] follows when nothing is under way with it.
    pub(crate) fn drain(&mut self, key: Key) {
        self.change(key, |core, place| {
            core.stands(place, Standing::Draining, &[Standing::Starting, Standing::Ready]);
            if !core.stopping {
                core.release(place);
            }
            core.left(place);
            core.look_in(0);
        });
    }

    /// A worker goes by itself: nothing new for it.
    pub(crate) fn leaves(&mut self, key: Key) {
        self.drain(key);
    }

    /// A worker has ended, or was never started. What it had and had not begun goes elsewhere.
    pub(crate) fn gone(&mut self, key: Key) {
        self.change(key, |core, place| {
            if let Some(worker) = core.workers.get_mut(place) {
                worker.state = Standing::Gone;
                if let Upstream::Unix(path) = &worker.upstream {
                    // Not there where it never listened.
                    let _ = std::fs::remove_file(path);
                }
            }
            core.release(place);
            // It will not read what a client may still say.
            for id in core.conns.select(|conn| conn.place == place && conn.client.is_done()) {
                core.close(id);
            }
            core.left(place);
        });
    }

    /// All workers will go: who waits outside is let in, and nobody after that.
    pub(crate) fn stop(&mut self) {
        let mut core = self.core.borrow_mut();
        if !core.stopping {
            core.tell_time();
            core.stopping = true;
            core.shut_door();
            core.look_in(0);
            self.news.notify_one();
        }
    }

    pub(crate) fn connections(&self, key: Key) -> Option<Connections> {
        self.core.borrow().workers.connections(key)
    }

    /// Clients who wait for a worker.
    pub(crate) fn held(&self) -> u32 {
        self.core.borrow_mut().held()
    }

    /// Everything, with the numbers of descriptors as they are.
    pub(crate) fn save(&self) -> Saved {
        self.core.borrow().save(self.places.dir())
    }

    /// Whether the descriptors of connections stay open over an exec.
    pub(crate) fn keep_open(&self, keep: bool) {
        self.core.borrow().keep_open(keep);
    }

    /// Goes on with what an earlier program left; to be called once, before anything else.
    pub(crate) fn restore(&mut self, saved: &Saved) {
        if let Some(dir) = saved.dir.clone() {
            self.places = Places::at(dir);
        }
        let mut core = self.core.borrow_mut();
        core.tell_time();
        core.restore(saved);
        self.news.notify_one();
    }

    fn change(&mut self, key: Key, what: impl FnOnce(&mut Core, u32)) {
        let mut core = self.core.borrow_mut();
        if let Some(place) = core.workers.find(key) {
            core.tell_time();
            what(&mut core, place);
            self.news.notify_one();
        }
    }
}

impl Core {
    /// Changes how a worker stands, where it stands as one of `before`.
    fn stands(&mut self, place: u32, now: Standing, before: &[Standing]) -> bool {
        match self.workers.get_mut(place).filter(|worker| before.contains(&worker.state)) {
            Some(worker) => {
                worker.state = now;
                true
            }
            None => false,
        }
    }
}

/// Turn after turn, for ever.
async fn serve(core: Rc<RefCell<Core>>, epoll: AsyncFd<OwnedFd>, news: Rc<Notify>) {
    let timer = tokio::time::sleep(LONG);
    tokio::pin!(timer);
    // What it is set to.
    let mut set = None;
    loop {
        let due = core.borrow().due();
        if set != Some(due) {
            let at = due.unwrap_or_else(|| Instant::now() + LONG);
            timer.as_mut().reset(at.into());
            set = Some(due);
        }
        tokio::select! {
            biased;
            // Seldom, and would wait for ever behind a busy socket.
            () = timer.as_mut() => {
                core.borrow_mut().look();
                set = None;
            }
            () = news.notified() => {}
            ready = epoll.readable() => {
                // Fails only where the runtime ends.
                let Ok(mut ready) = ready else { return };
                let begun = Instant::now();
                loop {
                    if !core.borrow_mut().turn() {
                        // What comes after the batch is told anew.
                        ready.clear_ready();
                        break;
                    }
                    if begun.elapsed() >= TURN {
                        break;
                    }
                }
                tokio::task::yield_now().await;
            }
        }
    }
}
