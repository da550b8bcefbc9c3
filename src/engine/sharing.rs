//! Where the workers' lives and the way in which connections reach them meet: each way hears of starts,
//! readiness, drains and ends, and tells what it finds out.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Config, Engine, ports};
use crate::fleet::{self, Assignment, Event, WorkerKey};
use crate::sockets::{Connections, Equipment, FIRST_FD, Key, News, Share};

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
}

impl Sharing {
    pub(super) fn new(config: &Config) -> io::Result<Self> {
        let way = match config.share {
            Share::Off => Way::Off,
            Share::Fd => {
                // Out of the way of the numbers that they will have in the workers.
                let end = FIRST_FD + i32::try_from(config.listeners.len()).unwrap_or(0);
                let copy = |fd| super::spawn::above(fd, end).map(Rc::new);
                let sockets = config.listeners.iter().map(|listener| copy(&listener.fd));
                Way::Fd(Equipment {
                    sockets: sockets.collect::<io::Result<_>>()?,
                    ..Equipment::default()
                })
            }
        };
        let (teller, told) = unbounded_channel();
        Ok(Self { way, teller, told })
    }

    /// How many descriptors a worker inherits from [`FIRST_FD`] on.
    pub(super) fn inherited(&self) -> usize {
        match &self.way {
            Way::Off => 0,
            Way::Fd(all) => all.sockets.len(),
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "a way may open sockets here")]
    /// What a worker gets. A start that is refused afterwards is told by [`Sharing::gone`].
    pub(super) fn equip(&mut self, _to: Assignment) -> io::Result<Equipment> {
        Ok(match &self.way {
            Way::Off => Equipment::default(),
            Way::Fd(all) => Equipment { sockets: all.sockets.clone(), ..Equipment::default() },
        })
    }

    /// A worker serves.
    pub(super) fn ready(&mut self, _worker: WorkerKey) {
        match &self.way {
            Way::Off | Way::Fd(_) => {}
        }
    }

    /// No more for a worker; [`News::Drained`] follows.
    fn drain(&mut self, worker: WorkerKey) {
        match &self.way {
            // Nothing that we could lead elsewhere.
            Way::Off | Way::Fd(_) => {
                let _ = self.teller.send((worker.0, News::Drained));
            }
        }
    }

    /// A worker goes, drained or not: nothing new for it.
    pub(super) fn leaves(&mut self, _worker: WorkerKey) {
        match &self.way {
            Way::Off | Way::Fd(_) => {}
        }
    }

    /// Its leader has ended, or was never started.
    pub(super) fn gone(&mut self, _worker: WorkerKey) {
        match &self.way {
            Way::Off | Way::Fd(_) => {}
        }
    }

    /// There are so many slots now; a worker of one that is no more may still be on its way out.
    pub(super) fn resized(&mut self, _slots: u32) {
        match &self.way {
            Way::Off | Way::Fd(_) => {}
        }
    }

    /// Null where the kernel carries them.
    pub(super) fn connections(&self, _worker: WorkerKey) -> Option<Connections> {
        match &self.way {
            Way::Off | Way::Fd(_) => None,
        }
    }

    /// Sockets that workers have from us: there, the kernel answers for them.
    pub(super) fn ours(&self) -> HashSet<u64> {
        match &self.way {
            Way::Off => HashSet::new(),
            Way::Fd(all) => all.sockets.iter().filter_map(|fd| ports::inode(&fd.as_fd())).collect(),
        }
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
    pub(super) fn drain(&mut self, worker: WorkerKey) {
        if let Some(running) = self.running.get_mut(&worker) {
            running.asked = true;
        }
        self.sharing.drain(worker);
    }

    pub(super) fn learn(&mut self, worker: Key, news: News) {
        let worker = WorkerKey(worker);
        match news {
            News::Drained => self.tell(Event::Told { worker, what: fleet::Told::Drained }),
        }
    }
}
