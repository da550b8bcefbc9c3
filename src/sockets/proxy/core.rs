//! All connections on one epoll descriptor of their own: what happens to each, event by event.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::sync::mpsc::UnboundedSender;

use super::super::{Key, News};
use super::accept::Door;
use super::balance::Balancer;
use super::buffers::Buffers;
use super::conn::{ASKED, Conns, HANDED, SECOND, SPOKEN, State, UNTOLD};
use super::drain;
use super::header;
use super::relay::{Broken, ENDED, End, FINAL, HUNG_UP, READABLE, pump};
use super::workers::{Standing, Workers};

/// Events that are taken at once.
const BATCH: usize = 256;
/// How soon after a worker's silent close it is clear what was meant by it.
pub(super) const PARKED: u32 = 150;
/// The longest that a worker may take to be connected to.
pub(super) const CONNECT: u32 = 3_000;
/// How long a connection may go on of which one way is closed, with nothing on the other.
pub(super) const HALF: u32 = 60_000;

/// Everything that the proxy knows.
pub(super) struct Core {
    pub(super) epoll: Epoll,
    events: Vec<EpollEvent>,
    started: Instant,
    /// Milliseconds since then, as of the last batch.
    pub(super) now: u32,
    pub(super) door: Door,
    pub(super) conns: Conns,
    pub(super) workers: Workers,
    pub(super) balancer: Balancer,
    pub(super) buffers: Buffers,
    /// Those whose turn ended before their bytes did.
    again: Vec<u32>,
    /// Whether workers are told who their clients are.
    pub(super) header: bool,
    /// No worker will come any more.
    pub(super) stopping: bool,
    /// When everything has to be looked at.
    pub(super) look_at: Option<u32>,
    pub(super) teller: UnboundedSender<(Key, News)>,
}

/// Which socket of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Worker,
}

/// What an event is about.
pub(super) const DOOR: u64 = 1 << 63;

fn token(id: u32, side: Side) -> u64 {
    u64::from(id) << 1 | u64::from(side == Side::Worker)
}

impl Core {
    pub(super) fn new(
        door: Door,
        balancer: Balancer,
        header: bool,
        teller: UnboundedSender<(Key, News)>,
    ) -> nix::Result<Self> {
        let mut core = Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            events: vec![EpollEvent::empty(); BATCH],
            started: Instant::now(),
            now: 0,
            door,
            conns: Conns::default(),
            workers: Workers::default(),
            balancer,
            buffers: Buffers::new(),
            again: Vec::new(),
            header,
            stopping: false,
            look_at: None,
            teller,
        };
        core.open_door()?;
        Ok(core)
    }

    /// Takes in one batch of events; true where there may be more.
    pub(super) fn turn(&mut self) -> bool {
        self.tell_time();
        let mut events = std::mem::take(&mut self.events);
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        for id in std::mem::take(&mut self.again) {
            self.relay(id);
        }
        let mut calls = false;
        for event in &events[..count] {
            let token = event.data();
            if token & DOOR != 0 {
                calls = true;
                continue;
            }
            let side = if token & 1 == 0 { Side::Client } else { Side::Worker };
            // Whatever it was in this batch, it has 32 bits.
            let id = u32::try_from(token >> 1).unwrap_or(u32::MAX);
            self.event(id, side, event.events());
        }
        // Those who are there already come first.
        if calls {
            self.accept();
        }
        self.events = events;
        self.conns.recycle();
        count == BATCH || !self.again.is_empty()
    }

    pub(super) fn tell_time(&mut self) {
        // Goes round after 49 days; only differences are looked at.
        #[expect(clippy::cast_possible_truncation, reason = "on purpose")]
        let now = self.started.elapsed().as_millis() as u32;
        self.now = now;
    }

    /// When [`Core::look`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let at = self.look_at?;
        let left = at.wrapping_sub(self.now);
        // Past already where it is "farther" than half the clock.
        let left = if left > u32::MAX / 2 { 0 } else { left };
        Some(self.started + Duration::from_millis(u64::from(self.now) + u64::from(left)))
    }

    /// Everything is to be looked at in so many milliseconds, or before.
    pub(super) fn look_in(&mut self, wait: u32) {
        let at = self.now.wrapping_add(wait);
        let sooner = |other: u32| at.wrapping_sub(other) > u32::MAX / 2;
        if self.look_at.is_none_or(sooner) {
            self.look_at = Some(at);
        }
    }

    pub(super) fn watch(&self, id: u32, side: Side, end: &End) -> nix::Result<()> {
        let Some(fd) = &end.fd else { return Ok(()) };
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        self.epoll.add(fd, EpollEvent::new(flags, token(id, side)))
    }

    fn event(&mut self, id: u32, side: Side, flags: EpollFlags) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let end = if side == Side::Client { &mut conn.client } else { &mut conn.worker };
        if flags.intersects(gone | EpollFlags::EPOLLRDHUP) {
            end.set(READABLE | HUNG_UP);
            if flags.contains(EpollFlags::EPOLLRDHUP) && !flags.contains(EpollFlags::EPOLLERR) {
                end.set(FINAL);
            }
        } else if flags.contains(EpollFlags::EPOLLIN) {
            end.set(READABLE);
        }
        match (conn.state, side) {
            (State::Opening, Side::Worker) => {
                if flags.intersects(gone) && conn.worker.error().is_err() {
                    self.refused(id);
                    return;
                }
                if !flags.intersects(gone | EpollFlags::EPOLLOUT) {
                    return;
                }
                self.opened(id);
            }
            (State::Held, Side::Client) => {
                // What he has sent waits in his socket.
                if flags.intersects(gone) {
                    self.close(id);
                }
                return;
            }
            (State::Parked, Side::Client) => {
                if conn.client.is(READABLE) {
                    self.elsewhere(id);
                }
                return;
            }
            (State::Held | State::Parked, Side::Worker) => return,
            (State::Opening | State::Open, _) => {}
        }
        self.relay(id);
    }

    /// Connected.
    fn opened(&mut self, id: u32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.is(UNTOLD)
            && let Some(client) = &conn.client.fd
        {
            let header = header::of(client.as_fd());
            // An empty socket takes so little at once. One that does not is not connected yet, and the event
            // was about another; or it is broken, which what follows finds out.
            if conn.worker.send(&header) == Err(Errno::EAGAIN) {
                return;
            }
            conn.clear(UNTOLD);
        }
        conn.state = State::Open;
        if let Some(worker) = self.workers.get_mut(conn.place)
            && conn.is(SECOND)
        {
            worker.family = worker.family.other();
            conn.clear(SECOND);
        }
    }

    /// Passes on what there is, both ways.
    pub(super) fn relay(&mut self, id: u32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !matches!(conn.state, State::Opening | State::Open) {
            return;
        }
        let mut more = false;
        if conn.state == State::Open {
            match pump(&mut conn.worker, &mut conn.client, &mut self.buffers) {
                Ok(moved) => {
                    if moved.some {
                        conn.set(SPOKEN);
                        conn.clear(ASKED);
                        conn.seen = self.now;
                    }
                    more |= moved.more;
                }
                Err(Broken::Sender) => return self.worker_broke(id),
                Err(Broken::Receiver) => return self.client_broke(id),
            }
        }
        if conn.worker.is(ENDED) && conn.is_free() && !conn.client.is(ENDED) {
            return self.silently_closed(id);
        }
        // To be told first, it has to be connected.
        if conn.state == State::Opening && conn.is(UNTOLD) {
            return;
        }
        let mut broke = false;
        match pump(&mut conn.client, &mut conn.worker, &mut self.buffers) {
            Ok(moved) => {
                if moved.some {
                    conn.set(HANDED | ASKED);
                    conn.seen = self.now;
                }
                more |= moved.more;
            }
            Err(Broken::Sender) => return self.client_broke(id),
            Err(Broken::Receiver) => broke = true,
        }
        if broke {
            if conn.state == State::Opening || conn.is_free() {
                return self.refused(id);
            }
            // It may have answered before it went.
            conn.worker.give_up(&mut self.buffers);
            conn.worker.set(READABLE | HUNG_UP);
            more = true;
        } else if conn.state == State::Opening && conn.is(HANDED) {
            self.opened(id);
        }
        if more {
            self.again.push(id);
        }
        self.conclude(id);
    }

    /// Passes ends on, and closes what has ended both ways.
    fn conclude(&mut self, id: u32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.state != State::Open {
            return;
        }
        let client_ended = conn.client.is(ENDED);
        let down = conn.worker.is(ENDED) && conn.client.rest.is_none();
        let up = conn.worker.is_done() || (client_ended && conn.worker.rest.is_none());
        if down && !conn.client.is_done() && conn.is(ASKED) && !client_ended {
            self.failed(id);
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        let gone = self.workers.get(conn.place).is_some_and(|one| one.state == Standing::Gone);
        if down && (up || gone) {
            return self.close(id);
        }
        if !down && !up {
            return;
        }
        let before = conn.client.is_done() || conn.worker.is_done();
        if down {
            conn.client.shut();
        } else {
            conn.worker.shut();
        }
        if down && !before {
            conn.seen = self.now;
            self.look_in(HALF);
        }
    }

    /// The worker broke a connection off.
    pub(super) fn worker_broke(&mut self, id: u32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.is_free() {
            return self.elsewhere(id);
        }
        if conn.client.rest.is_some() {
            // What it had answered is delivered first.
            conn.worker.set(ENDED);
            conn.worker.give_up(&mut self.buffers);
            return;
        }
        conn.client.reset();
        self.failed(id);
        self.close(id);
    }

    fn client_broke(&mut self, id: u32) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.worker.reset();
        }
        self.close(id);
    }

    fn failed(&mut self, id: u32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if let Some(worker) = self.workers.get_mut(conn.place) {
            worker.counts.failed += 1;
        }
    }

    /// Ends a connection.
    pub(super) fn close(&mut self, id: u32) {
        let Some(mut conn) = self.conns.remove(id) else { return };
        conn.client.forget(&mut self.buffers);
        conn.worker.forget(&mut self.buffers);
        let place = conn.place;
        drop(conn);
        if let Some(worker) = self.workers.get_mut(place) {
            worker.counts.active -= 1;
        }
        self.left(place);
        self.room_again();
    }

    /// Lets the engine pass a line of the log on.
    pub(super) fn said(&self) {
        // Fails only where the engine has ended.
        let _ = self.teller.send((0, News::Said));
    }

    /// Everything whose time has come.
    pub(super) fn look(&mut self) {
        self.tell_time();
        self.look_at = None;
        drain::look(self);
        self.conns.recycle();
    }
}
