//! What is known of each connection, and where all of them are kept.

use super::relay::End;

/// From a client to a worker.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) client: End,
    pub(super) worker: End,
    /// Of its worker in the table; [`NOWHERE`] while it has none.
    pub(super) place: u32,
    /// Places of those who would not take it.
    pub(super) tried: u64,
    /// When it came, or was last free to go to any worker, in milliseconds on the proxy's clock.
    pub(super) since: u32,
    /// When something last moved.
    pub(super) seen: u32,
    pub(super) state: State,
    flags: u8,
}

pub(super) const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Waits for a worker that is ready.
    Held,
    /// Its worker has closed before it had a byte of the client: because it ends, or because it will not
    /// wait any longer. Which of the two is found out soon.
    Parked,
    /// Being connected.
    Opening,
    Open,
}

/// Bytes of the client have gone to the worker.
pub(super) const HANDED: u8 = 1;
/// Bytes of the worker have come.
pub(super) const SPOKEN: u8 = 1 << 1;
/// The client's bytes are the last that moved: an answer is due.
pub(super) const ASKED: u8 = 1 << 2;
/// The worker is still to be told who the client is.
pub(super) const UNTOLD: u8 = 1 << 3;
/// Being connected at the other of the two addresses.
pub(super) const SECOND: u8 = 1 << 4;

impl Conn {
    pub(super) fn new(client: End, now: u32) -> Self {
        Self {
            client,
            worker: End::default(),
            place: NOWHERE,
            tried: 0,
            since: now,
            seen: now,
            state: State::Held,
            flags: 0,
        }
    }

    pub(super) fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u8) {
        self.flags |= flag;
    }

    pub(super) fn flags(&self) -> u8 {
        self.flags
    }

    pub(super) fn clear(&mut self, flag: u8) {
        self.flags &= !flag;
    }

    /// Whether any worker is as good as the one that it has.
    pub(super) fn is_free(&self) -> bool {
        !self.is(HANDED | SPOKEN)
    }

    /// Whether both sides are silent: the worker has said the last word, and all of it is delivered.
    pub(super) fn is_quiet(&self) -> bool {
        self.state == State::Open
            && !self.is(ASKED)
            && self.client.rest.is_none()
            && self.worker.rest.is_none()
    }
}

/// All connections, by numbers that are used again.
#[derive(Debug, Default)]
pub(super) struct Conns {
    all: Vec<Option<Conn>>,
    free: Vec<u32>,
    /// Free as soon as no event can be about them any more.
    freed: Vec<u32>,
}

impl Conns {
    pub(super) fn len(&self) -> usize {
        self.all.len() - self.free.len() - self.freed.len()
    }

    pub(super) fn add(&mut self, conn: Conn) -> u32 {
        if let Some(id) = self.free.pop() {
            self.all[index(id)] = Some(conn);
            return id;
        }
        self.all.push(Some(conn));
        u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Conn> {
        self.all.get_mut(index(id))?.as_mut()
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Conn> {
        let conn = self.all.get_mut(index(id))?.take()?;
        self.freed.push(id);
        Some(conn)
    }

    /// The events of the last batch are done with.
    pub(super) fn recycle(&mut self) {
        self.free.append(&mut self.freed);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Conn)> {
        let all = (0..).zip(&self.all);
        all.filter_map(|(id, conn)| Some((id, conn.as_ref()?)))
    }

    /// The numbers of those that `wanted` picks.
    pub(super) fn select(&self, wanted: impl Fn(&Conn) -> bool) -> Vec<u32> {
        self.iter().filter(|(_, conn)| wanted(conn)).map(|(id, _)| id).collect()
    }
}

fn index(id: u32) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_connection_is_small() {
        // Ten thousand of them take half a megabyte.
        assert!(size_of::<Option<Conn>>() <= 56);
    }

    #[test]
    fn a_number_is_used_again_after_the_batch_and_not_before() {
        let mut conns = Conns::default();
        let conn = || Conn::new(End::default(), 0);
        assert_eq!((conns.add(conn()), conns.add(conn())), (0, 1));
        assert!(conns.remove(0).is_some() && conns.remove(0).is_none());
        assert_eq!((conns.len(), conns.add(conn())), (1, 2));
        conns.recycle();
        assert_eq!((conns.add(conn()), conns.len()), (0, 3));
    }
}
