//! How a connection gets its worker, and what happens where that one does not take it.

use std::os::fd::AsFd;

use super::super::News;
use super::conn::{ASKED, HANDED, NOWHERE, SECOND, SPOKEN, State, UNTOLD};
use super::core::{CONNECT, Core, PARKED, Side};
use super::header;
use super::relay::READABLE;
use super::upstream::Upstream;
use super::workers::{Standing, mask};

impl Core {
    /// A worker has closed before a byte of the client went to it.
    pub(super) fn silently_closed(&mut self, id: u32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.client.is(READABLE) || conn.worker.rest.is_some() {
            return self.elsewhere(id);
        }
        drop(conn.worker.replace(None));
        conn.state = State::Parked;
        conn.seen = self.now;
        self.look_in(PARKED);
    }

    /// A worker could not be connected to, or broke before a byte of the client went to it.
    pub(super) fn refused(&mut self, id: u32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.is(SPOKEN) {
            return self.worker_broke(id);
        }
        let port = self.workers.get(conn.place).is_some_and(|worker| {
            matches!(worker.upstream, Upstream::Port(_)) && worker.state != Standing::Gone
        });
        if conn.state == State::Opening && !conn.is(SECOND) && port {
            conn.set(SECOND);
            if self.open(id).is_ok() {
                return;
            }
        }
        self.elsewhere(id);
    }

    /// Leads a connection to another worker than the one that it has.
    pub(super) fn elsewhere(&mut self, id: u32) {
        let place = self.detach(id);
        let Some(conn) = self.conns.get_mut(id) else { return };
        if let Ok(place) = usize::try_from(place)
            && conn.place == NOWHERE
        {
            conn.tried |= mask(place);
        }
        self.assign(id);
    }

    /// Takes a connection from its worker, as if it had never been there.
    pub(super) fn detach(&mut self, id: u32) -> u32 {
        let Some(conn) = self.conns.get_mut(id) else { return NOWHERE };
        let place = std::mem::replace(&mut conn.place, NOWHERE);
        drop(conn.worker.replace(None));
        conn.clear(HANDED | SPOKEN | ASKED | SECOND);
        if let Some(worker) = self.workers.get_mut(place) {
            worker.counts.active -= 1;
            worker.counts.accepted -= 1;
        }
        self.left(place);
        place
    }

    /// Finds a worker for a connection that has none.
    pub(super) fn assign(&mut self, id: u32) {
        loop {
            let Some(conn) = self.conns.get_mut(id) else { return };
            let candidates = self.workers.candidates(conn.tried, self.stopping);
            let who = self
                .balancer
                .asks_who()
                .then_some(&conn.client)
                .and_then(|client| header::client(client.fd.as_ref()?.as_fd()));
            let Some(place) = self.balancer.choose(candidates, who.map(|who| who.ip())) else {
                return self.hold(id);
            };
            conn.place = u32::try_from(place).unwrap_or(NOWHERE);
            let opened = self.open(id);
            let Some(conn) = self.conns.get_mut(id) else { return };
            if opened.is_err() {
                conn.place = NOWHERE;
                conn.tried |= mask(place);
            } else {
                if let Some(worker) = self.workers.get_mut(conn.place) {
                    worker.counts.active += 1;
                    worker.counts.accepted += 1;
                }
                return;
            }
        }
    }

    /// Begins to connect to the worker at its place.
    fn open(&mut self, id: u32) -> nix::Result<()> {
        let Some(conn) = self.conns.get_mut(id) else { return Ok(()) };
        let Some(worker) = self.workers.get(conn.place) else { return Ok(()) };
        let family = if conn.is(SECOND) { worker.family.other() } else { worker.family };
        let fd = worker.upstream.connect(family)?;
        drop(conn.worker.replace(Some(fd)));
        conn.state = State::Opening;
        conn.seen = self.now;
        if self.header {
            conn.set(UNTOLD);
        }
        let Some(conn) = self.conns.get_mut(id) else { return Ok(()) };
        let end = std::mem::take(&mut conn.worker);
        let watched = self.watch(id, Side::Worker, &end);
        if let Some(conn) = self.conns.get_mut(id) {
            conn.worker = end;
        }
        watched?;
        self.look_in(CONNECT);
        Ok(())
    }

    /// A connection has left a worker.
    pub(super) fn left(&mut self, place: u32) {
        let Some(worker) = self.workers.get_mut(place) else { return };
        if worker.counts.active > 0 {
            return;
        }
        match worker.state {
            Standing::Draining if !worker.drained => {
                worker.drained = true;
                // Fails only where the engine has ended.
                let _ = self.teller.send((worker.key, News::Drained));
            }
            Standing::Gone => self.workers.clean(place),
            _ => {}
        }
    }
}
