//! Everything about channels and what is listened on that has to outlive the replacement of our own program.
//! Descriptors are numbers that the caller gives.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bind::{Bound, Target};
use super::channel::{Channel, Line};
use super::handle::{Carry, Connection, Dealt, Handle};
use super::hub::Hub;
use super::peer::Peer;
use super::primary::{Primary, Sent, Worker};
use crate::sockets::{Address, BACKLOG, Connections, Key, Listener, Slots, handed_down};

/// All of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Saved {
    last_id: u64,
    off: bool,
    peers: Vec<PeerState>,
    primary: Option<PrimaryState>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "as they are")]
struct PeerState {
    worker: Key,
    slot: u32,
    fd: i32,
    /// What has come of the next line, and whether that is passed over.
    partial: Vec<u8>,
    skips: bool,
    unsent: Vec<LineState>,
    unconfirmed: u32,
    hears: bool,
    held: Vec<Vec<u8>>,
    drains: bool,
    named: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct LineState {
    bytes: Vec<u8>,
    gone: usize,
    fd: Option<i32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PrimaryState {
    seq: u64,
    next_handle: u64,
    workers: Vec<MemberState>,
    handles: Vec<HandleState>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "as they are")]
struct MemberState {
    worker: Key,
    slot: u32,
    online: bool,
    listens: bool,
    leaves: bool,
    drains: bool,
    told: bool,
    sent: Vec<SentState>,
    accepted: u64,
    failed: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum SentState {
    Connection { handle: u64, seq: u64, arrived: bool, connection: ConnectionState },
    Reply { line: Vec<u8>, fd: i32, tries: u32 },
}

#[derive(Debug, Serialize, Deserialize)]
struct ConnectionState {
    fd: i32,
    ip: Option<IpAddr>,
    refused: Vec<Key>,
    lost: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct HandleState {
    key: String,
    id: u64,
    target: Target,
    data: Value,
    members: Vec<Key>,
    carry: CarryState,
}

#[derive(Debug, Serialize, Deserialize)]
enum CarryState {
    Shared { bound: BoundState, udp: bool },
    Slots(Vec<(Option<u32>, i32)>),
    Dealt { bound: BoundState, waiting: Vec<ConnectionState>, last: Option<(u32, Key)> },
}

#[derive(Debug, Serialize, Deserialize)]
struct BoundState {
    fd: i32,
    /// Of a Unix socket that we made.
    file: Option<PathBuf>,
}

/// Gives a descriptor the number under which it will be found.
type Keep<'a> = dyn FnMut(BorrowedFd<'_>) -> io::Result<i32> + 'a;

impl Saved {
    /// The numbers of all descriptors that it names.
    pub(crate) fn descriptors(&self) -> Vec<i32> {
        let mut all = Vec::new();
        for peer in &self.peers {
            all.push(peer.fd);
            all.extend(peer.unsent.iter().filter_map(|line| line.fd));
        }
        for member in self.primary.iter().flat_map(|primary| &primary.workers) {
            all.extend(member.sent.iter().map(|sent| match sent {
                SentState::Connection { connection, .. } => connection.fd,
                SentState::Reply { fd, .. } => *fd,
            }));
        }
        for handle in self.primary.iter().flat_map(|primary| &primary.handles) {
            match &handle.carry {
                CarryState::Shared { bound, .. } => all.push(bound.fd),
                CarryState::Slots(members) => all.extend(members.iter().map(|(_, fd)| *fd)),
                CarryState::Dealt { bound, waiting, .. } => {
                    all.push(bound.fd);
                    all.extend(waiting.iter().map(|connection| connection.fd));
                }
            }
        }
        all
    }
}

impl Hub {
    /// Everything, with each descriptor as `keep` numbers it.
    pub(crate) fn save(&self, keep: &mut Keep<'_>) -> io::Result<Saved> {
        let state = self.0.state.borrow();
        let mut peers = Vec::new();
        for (worker, peer) in &state.peers {
            let mut unsent = Vec::new();
            let mut failure = Ok(());
            peer.channel.unsent(|line| {
                match line.fd.as_ref().map(|fd| keep(fd.as_fd())).transpose() {
                    Ok(fd) => {
                        unsent.push(LineState { bytes: line.bytes.clone(), gone: line.gone, fd });
                    }
                    Err(error) => failure = Err(error),
                }
            });
            failure?;
            let (partial, skips) = peer.channel.partial();
            peers.push(PeerState {
                worker: *worker,
                slot: peer.slot,
                fd: keep(peer.channel.fd())?,
                partial,
                skips,
                unsent,
                unconfirmed: peer.channel.unconfirmed(),
                hears: peer.hears,
                held: peer.held.iter().cloned().collect(),
                drains: peer.drains,
                named: peer.named,
            });
        }
        let primary = state.primary.as_ref().map(|primary| save(primary, keep)).transpose()?;
        Ok(Saved { last_id: state.last_id, off: state.off, peers, primary })
    }

    /// Puts up again what an earlier program of ours left.
    pub(crate) fn restore(&self, saved: &Saved) -> io::Result<()> {
        let mut state = self.0.state.borrow_mut();
        (state.last_id, state.off) = (saved.last_id, saved.off);
        if let (Some(primary), Some(saved)) = (&mut state.primary, &saved.primary) {
            restore(primary, saved)?;
        }
        for saved in &saved.peers {
            let channel = Channel::new(handed_down(saved.fd)?)?;
            let line = |line: &LineState| {
                let fd = line.fd.map(handed_down).transpose()?.map(Rc::new);
                Ok(Line { bytes: line.bytes.clone(), gone: line.gone, fd })
            };
            let unsent = saved.unsent.iter().map(line).collect::<io::Result<_>>()?;
            channel.go_on_with(saved.partial.clone(), saved.skips, unsent, saved.unconfirmed);
            let mut peer = Peer::new(saved.slot, channel);
            (peer.hears, peer.drains, peer.named) = (saved.hears, saved.drains, saved.named);
            peer.held = saved.held.iter().cloned().collect();
            self.0.add(&mut state, saved.worker, peer);
        }
        Ok(())
    }

    /// Goes on for good: nobody else has any of it now.
    pub(crate) fn resume(&self, slots: u32) {
        let mut state = self.0.state.borrow_mut();
        let workers: Vec<Key> = state.peers.keys().copied().collect();
        if let Some(primary) = &mut state.primary {
            for handle in primary.handles.values_mut() {
                let bound = match &mut handle.carry {
                    Carry::Shared { bound, .. } => bound,
                    Carry::Dealt(dealt) => &mut dealt.bound,
                    Carry::Slots(_) => continue,
                };
                if let Some(file) = &mut bound.file {
                    file.own_file();
                }
            }
            primary.resume(slots);
            self.0.perform(&mut state);
            for worker in workers {
                self.0.expect(worker);
            }
        }
    }
}

fn save(primary: &Primary, keep: &mut Keep<'_>) -> io::Result<PrimaryState> {
    let mut workers = Vec::new();
    for (key, worker) in &primary.workers {
        let mut sent = Vec::new();
        for one in &worker.sent {
            sent.push(match one {
                Sent::Connection { handle, seq, arrived, connection } => SentState::Connection {
                    handle: *handle,
                    seq: *seq,
                    arrived: *arrived,
                    connection: keep_connection(connection, keep)?,
                },
                Sent::Reply { line, fd, tries } => {
                    SentState::Reply { line: line.clone(), fd: keep(fd.as_fd())?, tries: *tries }
                }
            });
        }
        workers.push(MemberState {
            worker: *key,
            slot: worker.slot,
            online: worker.online,
            listens: worker.listens,
            leaves: worker.leaves,
            drains: worker.drains,
            told: worker.told,
            sent,
            accepted: worker.connections.accepted,
            failed: worker.connections.failed,
        });
    }
    let mut handles = Vec::new();
    for (key, handle) in &primary.handles {
        let carry = match &handle.carry {
            Carry::Shared { bound, udp } => {
                CarryState::Shared { bound: keep_bound(bound, keep)?, udp: *udp }
            }
            Carry::Slots(slots) => {
                let members = slots.members().map(|(slot, fd)| Ok((slot, keep(fd)?)));
                CarryState::Slots(members.collect::<io::Result<_>>()?)
            }
            Carry::Dealt(dealt) => {
                let waiting = dealt.waiting.iter().map(|one| keep_connection(one, keep));
                CarryState::Dealt {
                    waiting: waiting.collect::<io::Result<_>>()?,
                    bound: keep_bound(&dealt.bound, keep)?,
                    last: dealt.last,
                }
            }
        };
        handles.push(HandleState {
            key: key.clone(),
            id: handle.id,
            target: handle.target.clone(),
            data: handle.data.clone(),
            members: handle.members.clone(),
            carry,
        });
    }
    Ok(PrimaryState { seq: primary.seq, next_handle: primary.next_handle, workers, handles })
}

fn keep_bound(bound: &Bound, keep: &mut Keep<'_>) -> io::Result<BoundState> {
    let file = bound.file.as_ref().and_then(|listener| match &listener.address {
        Address::Unix(path) => Some(path.clone()),
        _ => None,
    });
    Ok(BoundState { fd: keep(bound.fd.as_fd())?, file })
}

fn keep_connection(one: &Connection, keep: &mut Keep<'_>) -> io::Result<ConnectionState> {
    let fd = keep(one.fd.as_fd())?;
    Ok(ConnectionState { fd, ip: one.ip, refused: one.refused.clone(), lost: one.lost })
}

fn restore(primary: &mut Primary, saved: &PrimaryState) -> io::Result<()> {
    (primary.seq, primary.next_handle) = (saved.seq, saved.next_handle);
    for member in &saved.workers {
        let sent = |sent: &SentState| {
            Ok(match sent {
                SentState::Connection { handle, seq, arrived, connection } => Sent::Connection {
                    handle: *handle,
                    seq: *seq,
                    arrived: *arrived,
                    connection: take_connection(connection)?,
                },
                SentState::Reply { line, fd, tries } => {
                    Sent::Reply { line: line.clone(), fd: shared(*fd)?, tries: *tries }
                }
            })
        };
        let worker = Worker {
            missed: 0,
            slot: member.slot,
            online: member.online,
            listens: member.listens,
            leaves: member.leaves,
            drains: member.drains,
            told: member.told,
            paused: false,
            sent: member.sent.iter().map(sent).collect::<io::Result<_>>()?,
            connections: Connections {
                accepted: member.accepted,
                failed: member.failed,
                ..Connections::default()
            },
        };
        primary.workers.insert(member.worker, worker);
    }
    for saved in &saved.handles {
        let carry = match &saved.carry {
            CarryState::Shared { bound, udp } => {
                Carry::Shared { bound: take_bound(bound)?, udp: *udp }
            }
            CarryState::Slots(members) => {
                let member = |(slot, fd): &(Option<u32>, i32)| Ok((*slot, handed_down(*fd)?));
                let members = members.iter().map(member).collect::<io::Result<Vec<_>>>()?;
                let Some((_, like)) = members.first() else { continue };
                let like = like.try_clone()?;
                Carry::Slots(Slots::restore(members, &like, BACKLOG, primary.rules.end)?)
            }
            CarryState::Dealt { bound, waiting, last } => {
                let waiting = waiting.iter().map(take_connection).collect::<io::Result<_>>()?;
                Carry::Dealt(Dealt { waiting, last: *last, ..Dealt::new(take_bound(bound)?) })
            }
        };
        let handle = Handle {
            id: saved.id,
            target: saved.target.clone(),
            data: saved.data.clone(),
            members: saved.members.clone(),
            carry,
        };
        primary.handles.insert(saved.key.clone(), handle);
    }
    Ok(())
}

fn shared(fd: i32) -> io::Result<Rc<OwnedFd>> {
    handed_down(fd).map(Rc::new)
}

fn take_bound(saved: &BoundState) -> io::Result<Bound> {
    let file = |path: &PathBuf| {
        let fd = handed_down(saved.fd)?;
        Ok(Listener::passed(Address::Unix(path.clone()), fd, None))
    };
    let file = saved.file.as_ref().map(file).transpose();
    file.and_then(|file: Option<Listener>| Ok(Bound { fd: shared(saved.fd)?, file }))
}

fn take_connection(saved: &ConnectionState) -> io::Result<Connection> {
    let fd = shared(saved.fd)?;
    Ok(Connection { fd, ip: saved.ip, refused: saved.refused.clone(), lost: saved.lost })
}
