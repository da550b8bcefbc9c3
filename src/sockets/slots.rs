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
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};

    use super::*;

    const END: RawFd = 40;

    fn bind(address: &str) -> Slots {
        Slots::bind(address.parse().unwrap(), None, 64, END).unwrap()
    }

    fn group(slots: u32) -> Slots {
        let mut group = bind("127.0.0.1:0");
        for slot in 1..=slots {
            assert!(group.socket(slot).unwrap().as_raw_fd() >= END);
        }
        group
    }

    /// Connects that often and tells which slot got how many, by taking them.
    fn spread(group: &Slots, connections: u32) -> BTreeMap<u32, u32> {
        let mut found = BTreeMap::new();
        // In parts that no queue is too short for.
        for part in 0..connections.div_ceil(32) {
            let here = 32.min(connections - part * 32);
            let clients: Vec<_> =
                (0..here).map(|_| TcpStream::connect(group.address()).unwrap()).collect();
            for slot in group.members.iter().filter_map(|member| member.slot) {
                let count = group.dismiss(slot).unwrap();
                assert!(!group.has_waiting(slot));
                if count > 0 {
                    *found.entry(slot).or_default() += count;
                }
            }
            drop(clients);
        }
        assert_eq!(found.values().sum::<u32>(), connections);
        found
    }

    fn slots(group: &Slots) -> Vec<u32> {
        spread(group, 320).into_keys().collect()
    }

    #[test]
    fn new_connections_go_to_the_slots_that_they_are_led_to() {
        let mut group = group(4);
        assert_eq!(slots(&group), [1, 2, 3, 4]);
        group.steer([1, 3, 4]).unwrap();
        assert_eq!(slots(&group), [1, 3, 4]);
        group.steer([2]).unwrap();
        assert_eq!(slots(&group), [2]);
        // A new one has nobody who accepts yet.
        group.socket(5).unwrap();
        assert_eq!(slots(&group), [2]);
        group.steer([2, 5]).unwrap();
        assert_eq!(slots(&group), [2, 5]);
        group.steer([]).unwrap();
        assert_eq!(slots(&group), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn shares_are_even() {
        let mut group = group(4);
        group.steer(1..=4).unwrap();
        // Of 6400 the share of one has a standard deviation of 0.54 points: seven of them.
        for count in spread(&group, 6400).values() {
            assert!((1600 - 245..=1600 + 245).contains(count), "{count}");
        }
    }

    #[test]
    fn when_one_closes_the_last_takes_its_place_and_nothing_is_mixed_up() {
        for gone in 1..=4 {
            let mut group = group(4);
            group.steer([2, 4]).unwrap();
            // As a worker, or what it has left behind, would hold it.
            let held = group.socket(gone).unwrap().try_clone().unwrap();
            group.close(gone);
            let left: Vec<_> = [2, 4].into_iter().filter(|slot| *slot != gone).collect();
            assert_eq!(slots(&group), left, "without {gone}");
            group.steer([1, 3]).unwrap();
            let left: Vec<_> = [1, 3].into_iter().filter(|slot| *slot != gone).collect();
            assert_eq!(slots(&group), left, "without {gone}");
            drop(held);
            group.socket(gone).unwrap();
            group.steer([gone]).unwrap();
            assert_eq!(slots(&group), [gone], "{gone} again");
        }
    }

    #[test]
    fn what_waits_stays_for_the_next_worker_while_others_are_led_elsewhere() {
        let mut group = group(2);
        group.steer([1]).unwrap();
        let waiting = TcpStream::connect(group.address()).unwrap();
        assert!(group.has_waiting(1) && !group.has_waiting(2));
        group.steer([2]).unwrap();
        assert_eq!(slots_of_one(&group), 2);
        assert!(group.has_waiting(1));
        // Another slot goes, whose place in the order is the last or not.
        group.close(2);
        let listener = TcpListener::from(group.socket(1).unwrap().try_clone().unwrap());
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), waiting.local_addr().unwrap());
    }

    fn slots_of_one(group: &Slots) -> u32 {
        let _client = TcpStream::connect(group.address()).unwrap();
        let found = group.members.iter().filter_map(|member| member.slot);
        let found: Vec<_> = found.filter(|slot| *slot != 1 && group.has_waiting(*slot)).collect();
        assert_eq!(found.len(), 1);
        group.dismiss(found[0]).unwrap();
        found[0]
    }

    #[test]
    fn what_a_worker_has_shut_down_is_had_anew() {
        for gone in 1..=3 {
            let mut group = group(3);
            group.steer([1, 2, 3]).unwrap();
            let theirs = group.socket(gone).unwrap();
            shutdown(theirs.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
            group.socket(gone).unwrap();
            group.steer([gone]).unwrap();
            assert_eq!(slots(&group), [gone]);
            group.steer([1, 2, 3]).unwrap();
            assert_eq!(slots(&group), [1, 2, 3]);
        }
    }

    #[test]
    fn a_second_run_of_the_same_user_is_found() {
        let group = group(3);
        let again = Slots::bind(group.address(), None, 64, END).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        let all = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), group.address().port());
        let again = Slots::bind(all, None, 64, END).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn the_address_is_free_when_the_last_has_gone_and_is_taken_again_on_demand() {
        let mut group = group(2);
        let address = group.address();
        group.close(1);
        group.close(2);
        let other = TcpListener::bind(address).unwrap();
        assert_eq!(group.socket(1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(other);
        group.socket(2).unwrap();
        assert_eq!(slots(&group), [2]);
        let again = Slots::bind(address, None, 64, END).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_group_goes_on_from_its_descriptors() {
        let mut before = group(3);
        before.close(1);
        before.steer([2]).unwrap();
        let fds = before.members().map(|(slot, fd)| (slot, fd.try_clone_to_owned().unwrap()));
        let fds: Vec<_> = fds.collect();
        let like = fds[0].1.try_clone().unwrap();
        drop(before);
        let mut after = Slots::restore(fds, &like, 64, END).unwrap();
        drop(like);
        assert_eq!(slots(&after), [2], "as it was steered before");
        after.socket(4).unwrap();
        after.steer([3, 4]).unwrap();
        assert_eq!(slots(&after), [3, 4]);
    }

    #[test]
    fn ipv6_alone_and_with_ipv4() {
        let all = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        for only in [false, true] {
            let mut group = match Slots::bind(all, Some(only), 64, END) {
                Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
                    eprintln!("skipped: no IPv6 here");
                    return;
                }
                group => group.unwrap(),
            };
            for slot in 1..=3 {
                group.socket(slot).unwrap();
            }
            group.steer([2, 3]).unwrap();
            let port = group.address().port();
            let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
            let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
            assert_eq!(TcpStream::connect(v4).is_ok(), !only);
            TcpStream::connect(v6).unwrap();
            assert!(!group.has_waiting(1));
            assert!(group.has_waiting(2) || group.has_waiting(3));
        }
    }
}
