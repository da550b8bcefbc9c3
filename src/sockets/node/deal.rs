//! Handing out connections that we accepted ourselves: whose turn it is, how many a worker may have under
//! way, and what becomes of those that it does not take.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::Duration;

use super::handle::{Carry, Connection, Dealt};
use super::primary::{Effect, Primary, Sent, Timer, Worker};
use super::protocol;
use crate::sockets::{Balance, Key};

/// Connections that a worker may have under way: sent, and not taken yet. Node's own primary has one,
/// and the worker waits for the next after each.
const WINDOW: usize = 8;
/// Connections that may wait for the worker that their address chooses, on one handle.
const MOST_WAITING: usize = 64;
/// Turns that a worker may have missed because it had no room, and that it gets when it has: so shares
/// are even however workers are scheduled, and one that was stuck is not buried when it goes on.
const MOST_MISSED: u32 = 64;
/// After all workers have refused a connection (`maxConnections`), or one had no descriptor left.
const REFUSED: Duration = Duration::from_millis(20);
const NO_ROOM: Duration = Duration::from_millis(75);
/// How often a connection is sent to each worker in vain before it is closed.
const TRIES: u32 = 3;

impl Worker {
    fn may_get(&self) -> bool {
        !self.drains && !self.leaves
    }

    fn has_room(&self) -> bool {
        self.may_get() && !self.paused && self.sent.len() < WINDOW
    }
}

impl Primary {
    /// Whether there is somebody to give another connection of this handle to.
    pub(super) fn has_room(&self, id: u64) -> bool {
        let Some(handle) = self.handles.values().find(|handle| handle.id == id) else {
            return false;
        };
        let Carry::Dealt(dealt) = &handle.carry else { return false };
        let most = match self.rules.balance {
            Balance::StickyIp => MOST_WAITING,
            _ => 1,
        };
        let members = handle.members.iter().filter_map(|member| self.workers.get(member));
        dealt.waiting.len() < most && !dealt.parked && members.into_iter().any(Worker::has_room)
    }

    /// Takes a connection that was accepted.
    pub(super) fn take(&mut self, id: u64, connection: Connection) {
        if let Some(dealt) = self.dealt(id) {
            dealt.waiting.push_back(connection);
            self.deal(id);
        }
    }

    fn dealt(&mut self, id: u64) -> Option<&mut Dealt> {
        let handle = self.handles.values_mut().find(|handle| handle.id == id)?;
        match &mut handle.carry {
            Carry::Dealt(dealt) => Some(dealt),
            _ => None,
        }
    }

    pub(super) fn deal_all(&mut self) {
        let ids: Vec<u64> = self.handles.values().map(|handle| handle.id).collect();
        for id in ids {
            self.deal(id);
        }
    }

    /// Gives what waits to those who have room.
    pub(super) fn deal(&mut self, id: u64) {
        let balance = self.rules.balance;
        let Some((key, handle)) = self.handles.iter_mut().find(|(_, handle)| handle.id == id)
        else {
            return;
        };
        let Carry::Dealt(dealt) = &mut handle.carry else { return };
        let mut at = 0;
        while !dealt.parked && at < dealt.waiting.len() {
            let connection = &mut dealt.waiting[at];
            let members = || {
                handle
                    .members
                    .iter()
                    .filter_map(|member| Some((*member, self.workers.get(member)?)))
            };
            let may = |worker: &Worker| worker.may_get();
            let able = members().filter(|(_, worker)| may(worker)).count();
            let willing =
                || members().filter(|(member, w)| may(w) && !connection.refused.contains(member));
            if able > 0 && willing().next().is_none() {
                // Those who are full of connections stay so for a while.
                connection.refused.clear();
                dealt.parked = true;
                self.effects.push_back(Effect::After(REFUSED, Timer::Unpark(id)));
                return;
            }
            let sticky = connection.ip.filter(|_| balance == Balance::StickyIp);
            let able = || willing().filter(|(_, worker)| worker.has_room());
            let chosen = match sticky {
                Some(ip) => stuck(ip, willing()).filter(|(_, worker)| worker.has_room()),
                None => turn(dealt.last, able()),
            };
            let Some((member, place)) = chosen.map(|(key, worker)| (key, (worker.slot, key)))
            else {
                if balance == Balance::StickyIp {
                    at += 1;
                    continue;
                }
                break;
            };
            if sticky.is_none() {
                take_turn(dealt, place, &handle.members, &mut self.workers);
            }
            let (Some(connection), Some(worker)) =
                (dealt.waiting.remove(at), self.workers.get_mut(&member))
            else {
                return;
            };
            let seq = self.seq;
            self.seq += 1;
            let (line, fd) = (protocol::connection(key, seq), Some(connection.fd.clone()));
            let sent = Sent::Connection { handle: id, seq, arrived: false, connection };
            worker.sent.push_back(sent);
            self.effects.push_back(Effect::Send { to: member, line, fd });
        }
        self.effects.push_back(Effect::Wake(id));
    }

    /// A worker has taken a connection, or will not.
    pub(super) fn accepted(&mut self, from: Key, ack: u64, accepted: bool) {
        let Some(worker) = self.workers.get_mut(&from) else { return };
        let is = |sent: &Sent| matches!(sent, Sent::Connection { seq, .. } if *seq == ack);
        let Some(at) = worker.sent.iter().position(is) else { return };
        let Some(Sent::Connection { handle, mut connection, .. }) = worker.sent.remove(at) else {
            return;
        };
        if accepted {
            worker.connections.accepted += 1;
            drop(connection);
            self.deal_all();
        } else {
            connection.refused.push(from);
            self.put_back(handle, connection);
        }
    }

    /// A connection did not reach a worker.
    pub(super) fn give_back(&mut self, id: u64, mut connection: Connection, from: Key) {
        let members = self.handles.values().find(|handle| handle.id == id);
        let members = members.map_or(0, |handle| handle.members.len());
        let most = TRIES * u32::try_from(members.max(1)).unwrap_or(1);
        if connection.lost >= most {
            if let Some(worker) = self.workers.get_mut(&from) {
                worker.connections.failed += 1;
            }
            return;
        }
        connection.refused.retain(|worker| *worker != from);
        self.put_back(id, connection);
    }

    /// To the front: it has waited the longest. With the handle, the connection has gone too.
    fn put_back(&mut self, id: u64, connection: Connection) {
        if let Some(dealt) = self.dealt(id) {
            dealt.waiting.push_front(connection);
            self.deal(id);
        }
    }

    pub(super) fn pause(&mut self, key: Key) {
        if let Some(worker) = self.workers.get_mut(&key)
            && !std::mem::replace(&mut worker.paused, true)
        {
            self.effects.push_back(Effect::After(NO_ROOM, Timer::Unpause(key)));
        }
    }

    pub(super) fn unpark(&mut self, id: u64) {
        if let Some(dealt) = self.dealt(id) {
            dealt.parked = false;
            self.deal(id);
        }
    }
}

/// By slot and key.
type Place = (u32, Key);

/// How far behind the last one somebody is in the order of slots.
fn behind(last: Option<Place>, place: Place) -> (bool, Place) {
    (last.is_some_and(|last| place <= last), place)
}

/// Who has missed a turn, else who follows the last one.
fn turn<'a>(
    last: Option<Place>,
    able: impl Iterator<Item = (Key, &'a Worker)>,
) -> Option<(Key, &'a Worker)> {
    able.min_by_key(|(key, worker)| (worker.missed == 0, behind(last, (worker.slot, *key))))
}

/// Notes whose turn it was, and who missed theirs.
fn take_turn(
    dealt: &mut Dealt,
    place: Place,
    members: &[Key],
    workers: &mut BTreeMap<Key, Worker>,
) {
    if let Some(worker) = workers.get_mut(&place.1)
        && worker.missed > 0
    {
        worker.missed -= 1;
        return;
    }
    let last = dealt.last.replace(place);
    for member in members {
        let Some(worker) = workers.get_mut(member) else { continue };
        let full = worker.may_get() && !worker.paused && !worker.has_room();
        if full && behind(last, (worker.slot, *member)) < behind(last, place) {
            worker.missed = (worker.missed + 1).min(MOST_MISSED);
        }
    }
}

/// The worker of the slot that an address chooses among those that are there: when one goes, only its
/// own clients move (rendezvous hashing), and they come back with it.
fn stuck<'a>(
    ip: IpAddr,
    members: impl Iterator<Item = (Key, &'a Worker)>,
) -> Option<(Key, &'a Worker)> {
    members.max_by_key(|(key, worker)| {
        // The same in every run: the hash has no random keys. An IPv4 client is one however it came.
        let mut hash = DefaultHasher::new();
        (ip.to_canonical(), worker.slot).hash(&mut hash);
        (hash.finish(), *key)
    })
}
