//! One address, and for each slot a listening socket of its own: the kernel spreads new connections over
//! them (`SO_REUSEPORT`), and what waits in the socket of a slot waits for whoever fills the slot next.
//!
//! What the kernel does, and what is made of it (`net/core/sock_reuseport.c`, `net/ipv4/inet_connection_sock.c`):
//!
//! - A second program of our user could join silently. The first socket is therefore bound and listening
//!   before it allows any other: whoever is there already is found, and of two that begin together one
//!   fails, at its `bind` or at its `listen`. Everybody else joins a socket that is known to be ours.
//! - The sockets stand in the order of their `listen`; when one leaves, the last takes its place. We keep
//!   the same list, by which [`steer`](super::steer) knows them.
//! - A socket leaves only when its last copy is closed, and copies are in workers. `shutdown` takes it out
//!   for all of them at once.
//! - What waits in a socket that leaves is reset, and so is a handshake that is under way in it
//!   (`net.ipv4.tcp_migrate_req` is off): steer away first, let its worker empty it, then close.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, setsockopt, shutdown, sockopt};
use tracing::warn;

use super::{above, steer, tcp};

/// A group of listening TCP sockets on one address; slots count from 1.
#[derive(Debug)]
pub(crate) struct Slots {
    address: SocketAddr,
    only_v6: Option<bool>,
    backlog: i32,
    /// Copies have numbers from here on.
    end: RawFd,
    /// As the kernel has them.
    members: Vec<Member>,
    /// The slots that new connections are for; all of them where none of these has a socket.
    wanted: Vec<u32>,
}

#[derive(Debug)]
struct Member {
    /// None: of nobody yet.
    slot: Option<u32>,
    fd: Rc<OwnedFd>,
}

impl Slots {
    /// Binds `address` (port 0: one that the kernel chooses) and listens, before anybody asks for a socket.
    /// `only_v6`: see [`tcp::open`]. The sockets have numbers from `end` on.
    ///
    /// The error is the kernel's: `EADDRINUSE` also where another run of our own user listens.
    pub(crate) fn bind(
        address: SocketAddr,
        only_v6: Option<bool>,
        backlog: i32,
        end: RawFd,
    ) -> io::Result<Self> {
        let first = tcp::open(address, only_v6, backlog, tcp::Join::Nobody)?;
        Self::around(&first, backlog, end)
    }

    /// Around a socket that nobody else shares, bound by ourselves and listening.
    pub(crate) fn around(first: &OwnedFd, backlog: i32, end: RawFd) -> io::Result<Self> {
        let mut group = Self::restore([], first, backlog, end)?;
        setsockopt(first, sockopt::ReusePort, &true)?;
        group.members.push(Member { slot: None, fd: copy(first, end)? });
        Ok(group)
    }

    /// As [`Slots::members`] had them, with any of them for `like`. Nothing is steered anew.
    pub(crate) fn restore(
        members: impl IntoIterator<Item = (Option<u32>, OwnedFd)>,
        like: &OwnedFd,
        backlog: i32,
        end: RawFd,
    ) -> io::Result<Self> {
        let address = tcp::local(like)?.ok_or(Errno::EAFNOSUPPORT)?;
        let only_v6 =
            address.is_ipv6().then(|| getsockopt(like, sockopt::Ipv6V6Only)).transpose()?;
        let member = |(slot, fd): (_, OwnedFd)| Ok(Member { slot, fd: copy(&fd, end)? });
        let members = members.into_iter().map(member).collect::<io::Result<_>>()?;
        Ok(Self { address, only_v6, backlog, end, members, wanted: Vec::new() })
    }

    /// With the port that was really given.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The sockets in the kernel's order, for [`Slots::restore`]. The first of a group may be of nobody yet.
    pub(crate) fn members(&self) -> impl Iterator<Item = (Option<u32>, BorrowedFd<'_>)> {
        self.members.iter().map(|member| (member.slot, member.fd.as_fd()))
    }

    /// The socket of a slot, which begins to listen when it is first asked for. Where others are steered to,
    /// it gets no connection before it is steered to as well.
    pub(crate) fn socket(&mut self, slot: u32) -> io::Result<Rc<OwnedFd>> {
        if let Some(index) = self.find(slot) {
            let fd = &self.members[index].fd;
            if tcp::listens(fd) {
                return Ok(Rc::clone(fd));
            }
            // A worker has shut it down, for everybody, and the kernel has taken it out.
            self.members.swap_remove(index);
        }
        if let Some(member) = self.members.iter_mut().find(|member| member.slot.is_none()) {
            member.slot = Some(slot);
            return Ok(Rc::clone(&member.fd));
        }
        let alone = self.members.is_empty();
        let join = if alone { tcp::Join::Nobody } else { tcp::Join::Group };
        let fd = tcp::open(self.address, self.only_v6, self.backlog, join)?;
        if alone {
            setsockopt(&fd, sockopt::ReusePort, &true)?;
        }
        let fd = copy(&fd, self.end)?;
        self.members.push(Member { slot: Some(slot), fd: Rc::clone(&fd) });
        // Where the kernel cannot be told, it spreads over all.
        let _ = self.apply(None);
        Ok(fd)
    }

    /// Leads new connections to these slots alone; to all where none of them has a socket. The error is
    /// that of a kernel that takes no program, and spreads over all as before.
    pub(crate) fn steer(&mut self, to: impl IntoIterator<Item = u32>) -> io::Result<()> {
        let mut wanted: Vec<u32> = to.into_iter().collect();
        wanted.sort_unstable();
        wanted.dedup();
        if wanted == self.wanted {
            return Ok(());
        }
        self.wanted = wanted;
        self.apply(None)
    }

    /// Whether connections wait to be accepted in the socket of a slot.
    pub(crate) fn has_waiting(&self, slot: u32) -> bool {
        self.find(slot).is_some_and(|index| waits(&self.members[index].fd))
    }

    /// Ends the connections that wait in the socket of a slot that nobody will accept from; their clients see
    /// a reset. Returns how many there were.
    pub(crate) fn dismiss(&self, slot: u32) -> io::Result<u32> {
        let Some(index) = self.find(slot) else { return Ok(0) };
        let listener = TcpListener::from(self.members[index].fd.try_clone()?);
        // Something that a worker has left behind may accept as well, so we must not wait for one. The flag
        // is that of every copy, and the next worker finds it as it was.
        let before = OFlag::from_bits_retain(fcntl(&listener, FcntlArg::F_GETFL)?);
        fcntl(&listener, FcntlArg::F_SETFL(before | OFlag::O_NONBLOCK))?;
        // No more than a queue holds: what comes meanwhile is led elsewhere.
        let most = self.backlog.cast_unsigned().saturating_add(1);
        let count = (0..most).take_while(|_| listener.accept().is_ok()).count();
        fcntl(&listener, FcntlArg::F_SETFL(before))?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Closes the socket of a slot, in every process that has it; what waits in it is reset. Where it was
    /// the last one, the address is free.
    pub(crate) fn close(&mut self, slot: u32) {
        let Some(index) = self.find(slot) else { return };
        // Good for both orders: neither this index nor the one whose socket will come here.
        let _ = self.apply(Some(index));
        let member = self.members.swap_remove(index);
        // It listened, so it can be shut down.
        let _ = shutdown(member.fd.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = self.apply(None);
    }

    fn find(&self, slot: u32) -> Option<usize> {
        self.members.iter().position(|member| member.slot == Some(slot))
    }

    /// Tells the kernel what is wanted; `leaving`: the index that is about to go.
    fn apply(&self, leaving: Option<usize>) -> io::Result<()> {
        let total = self.members.len();
        let Some(first) = self.members.first().filter(|_| total > 1) else { return Ok(()) };
        let stays = |index: usize| leaving.is_none_or(|gone| index != gone && index != total - 1);
        let is_wanted = |index: &usize| {
            self.members[*index].slot.is_some_and(|slot| self.wanted.binary_search(&slot).is_ok())
        };
        let staying = || (0..total).filter(|index| stays(*index));
        let mut indices: Vec<usize> = staying().filter(is_wanted).collect();
        if indices.is_empty() {
            indices = staying().collect();
        }
        if indices.is_empty() {
            // Two, of which one goes: the other is the last, or comes to the index of this one.
            return Ok(());
        }
        steer::steer(&first.fd, total, &indices)
    }
}

/// Tells of connections that [`Slots::dismiss`] has ended.
pub(super) fn say_closed(slot: u32, lost: u32) {
    if lost > 0 {
        warn!(
            event = "connections_closed",
            worker = slot,
            lost,
            "{lost} connections that waited for worker {slot} were closed, because nobody will come for them"
        );
    }
}

fn waits(fd: &impl AsFd) -> bool {
    let mut poll_fd = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut poll_fd, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn copy(fd: &OwnedFd, end: RawFd) -> io::Result<Rc<OwnedFd>> {
    Ok(Rc::new(above(fd, end)?))
}

#[cfg(test)]
mod tests;
