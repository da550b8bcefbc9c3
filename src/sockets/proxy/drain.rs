//! What comes with time: workers that are to finish what they have, clients that have waited long enough.

use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, recv};

use super::accept::HOLD;
use super::conn::{Conn, State};
use super::core::{CONNECT, Core, HALF, PARKED};
use super::relay::READABLE;
use super::workers::Standing;

/// A connection on which the worker has said the last word so long ago is an idle one.
const QUIET: u32 = 500;
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

    /// A request has come on a connection of a worker that drains, between two answers: another worker
    /// gets it. Only for HTTP/1, whose requests stand each for itself (RFC 9112, 9.3); false where it is
    /// something else, or nobody else is there.
    pub(super) fn move_on(&mut self, id: u32) -> bool {
        if self.workers.candidates(0, false).next().is_none() {
            return false;
        }
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let Some(fd) = &conn.client.fd else { return false };
        let peeked = recv(fd.as_raw_fd(), &mut self.buffers.shared, MsgFlags::MSG_PEEK);
        if !peeked.is_ok_and(|count| is_request(&self.buffers.shared[..count])) {
            return false;
        }
        conn.since = self.now;
        conn.tried = 0;
        // It was served by that worker, and stays in its count.
        let place = conn.place;
        self.detach(id);
        if let Some(worker) = self.workers.get_mut(place) {
            worker.counts.accepted += 1;
        }
        self.assign(id);
        true
    }
}

/// Whether bytes begin with the whole request line of HTTP/1 (RFC 9112, section 3).
fn is_request(bytes: &[u8]) -> bool {
    let Some(end) = memchr::memchr(b'\n', bytes) else { return false };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let Some(rest) = line.strip_suffix(b" HTTP/1.1").or_else(|| line.strip_suffix(b" HTTP/1.0"))
    else {
        return false;
    };
    let Some(space) = memchr::memchr(b' ', rest) else { return false };
    let (method, target) = (&rest[..space], &rest[space + 1..]);
    !method.is_empty()
        && method.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'-')
        && !target.is_empty()
        && target.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_by_its_first_line() {
        for good in [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "M-SEARCH * HTTP/1.0\n",
            "POST /a?b=c HTTP/1.1\r\n",
        ] {
            assert!(is_request(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "GET / HTTP/1.1",
            "GET  HTTP/1.1\r\n",
            "get / HTTP/1.1\r\n",
            "GET / HTTP/2.0\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            " / HTTP/1.1\r\n",
            "GET /a b HTTP/1.1\r\n",
            "\x16\x03\x01\x02\n",
            "*1\r\n$4\r\nPING\r\n",
        ] {
            assert!(!is_request(bad.as_bytes()), "{bad:?}");
        }
    }
}
