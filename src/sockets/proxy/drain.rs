//! What comes with time: workers that are to finish what they have, clients that have waited long enough.

use super::accept::HOLD;
use super::conn::{Conn, State};
use super::core::{CONNECT, Core, HALF, PARKED};
use super::relay::READABLE;
use super::workers::Standing;

/// A connection on which the worker has said the last word so long ago is taken for an idle one. Bytes do not
/// tell whether that word was the end of an answer, so it is longer than most pauses inside of one.
const QUIET: u32 = 2000;
/// How often connections of workers that drain are looked at.
const EVERY: u32 = 50;
/// How soon a client that nobody took is offered again.
const AGAIN: u32 = 100;

/// Looks at all connections, and says when that is due again.
pub(super) fn look(core: &mut Core) {
    let now = core.now;
    let age = |since: u32| now.wrapping_sub(since);
    let (mut unserved, mut next) = (0, None::<u32>);
    let mut again_in = |wait: u32| next = Some(next.map_or(wait, |next| next.min(wait)));
    let due = core.conns.select(|conn| {
        matches!(conn.state, State::Held | State::Parked | State::Opening)
            || is_half(conn)
            || core.workers.get(conn.place).is_some_and(|one| one.state == Standing::Draining)
    });
    core.door.held.clear();
    for id in due {
        let Some(conn) = core.conns.get_mut(id) else { continue };
        match conn.state {
            State::Held if age(conn.since) >= HOLD => {
                unserved += 1;
                core.close(id);
            }
            State::Held => {
                conn.tried = 0;
                // Comes back to those who are held where still nobody takes it.
                core.assign(id);
                again_in(AGAIN);
            }
            State::Parked if age(conn.seen) >= PARKED => core.close(id),
            State::Parked => again_in(PARKED),
            State::Opening if age(conn.seen) >= CONNECT => core.elsewhere(id),
            State::Opening => again_in(CONNECT / 3),
            State::Open => {
                let half = is_half(conn);
                if half && age(conn.seen) >= HALF {
                    core.close(id);
                    continue;
                }
                if half {
                    again_in(HALF / 10);
                }
            }
        }
        let Some(conn) = core.conns.get_mut(id) else { continue };
        let place = conn.place;
        if core.workers.get(place).is_some_and(|one| one.state == Standing::Draining) {
            again_in(EVERY);
            core.finish(id);
        }
    }
    core.say_unserved(unserved);
    core.room_again();
    if let Some(wait) = next {
        core.look_in(wait);
    }
}

/// The worker has closed, and the client does not. A client that has closed may wait for an answer as long
/// as it takes.
fn is_half(conn: &Conn) -> bool {
    conn.client.is_done() && !conn.worker.is_done()
}

impl Core {
    /// Leads connections elsewhere that no byte has bound to their worker.
    pub(super) fn release(&mut self, place: u32) {
        for id in self.conns.select(|conn| conn.place == place && conn.is_free()) {
            self.elsewhere(id);
        }
    }

    /// A connection of a worker that drains: closed where it is idle, left alone otherwise.
    fn finish(&mut self, id: u32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !matches!(conn.state, State::Opening | State::Open) {
            return;
        }
        let quiet = conn.is_quiet() && self.now.wrapping_sub(conn.seen) >= QUIET;
        if quiet {
            // What comes in this very moment is not passed over.
            conn.client.set(READABLE);
            conn.worker.set(READABLE);
            self.relay(id);
            let now = self.now;
            let still = |conn: &mut Conn| conn.is_quiet() && now.wrapping_sub(conn.seen) >= QUIET;
            if self.conns.get_mut(id).is_some_and(still) {
                self.close(id);
            }
        }
    }
}
