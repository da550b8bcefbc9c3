//! Where clients come in: the listening sockets, and when nobody can be let in.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use tracing::warn;

use super::super::adopt;
use super::conn::{Conn, State};
use super::core::{Core, DOOR, Side};
use super::relay::End;

/// So many come in before those who are in have their turn again.
const AT_ONCE: usize = 64;
/// Clients that may wait for a worker here; more wait in the kernel's queue.
const MOST_HELD: usize = 1024;
/// The longest that they wait.
pub(super) const HOLD: u32 = 10_000;
/// Descriptors that are left to everything else: starting workers, their output, control.
const RESERVE: u64 = 256;
/// How long nobody is let in where descriptors or memory ran out, in milliseconds.
const PAUSE: u32 = 100;
/// The same is not said again for so long.
const SAY_AGAIN: u32 = 60_000;

/// The listening sockets, and how many may be inside.
#[derive(Debug)]
pub(super) struct Door {
    listeners: Vec<OwnedFd>,
    open: bool,
    most: usize,
    /// Closed for want of descriptors or memory, until then.
    until: Option<u32>,
    said_at: Option<u32>,
    pub(super) unserved: u64,
    unserved_said_at: Option<u32>,
    /// Those who wait for a worker, in their order; also some who do not any more.
    pub(super) held: VecDeque<u32>,
}

impl Door {
    /// With copies of listening sockets.
    pub(super) fn new(listeners: Vec<OwnedFd>) -> nix::Result<Self> {
        for fd in &listeners {
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            // Inherited by every connection, which saves a call for each. They fail for a Unix socket.
            let _ = setsockopt(fd, sockopt::TcpNoDelay, &true);
            let _ = setsockopt(fd, sockopt::KeepAlive, &true);
        }
        // The engine raises ours to the hard one.
        let limit = getrlimit(Resource::RLIMIT_NOFILE)?.1;
        let most = limit.saturating_sub(RESERVE.min(limit / 2)) / 2;
        Ok(Self {
            listeners,
            open: false,
            most: usize::try_from(most).unwrap_or(usize::MAX),
            until: None,
            said_at: None,
            unserved: 0,
            unserved_said_at: None,
            held: VecDeque::new(),
        })
    }
}

impl Core {
    pub(super) fn open_door(&mut self) -> nix::Result<()> {
        if !self.door.open {
            for fd in &self.door.listeners {
                self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, DOOR))?;
            }
            self.door.open = true;
        }
        Ok(())
    }

    fn close_door(&mut self) {
        if self.door.open {
            for fd in &self.door.listeners {
                // It was added.
                let _ = self.epoll.delete(fd);
            }
            self.door.open = false;
        }
    }

    /// Lets in who waits outside.
    pub(super) fn accept(&mut self) {
        self.let_in(AT_ONCE);
    }

    fn let_in(&mut self, most: usize) {
        for index in 0..self.door.listeners.len() {
            for _ in 0..most {
                if self.is_full() {
                    return;
                }
                let Some(listener) = self.door.listeners.get(index) else { break };
                match adopt::accept(listener.as_fd()) {
                    Ok(fd) => self.admit(fd),
                    Err(Errno::EAGAIN) => break,
                    Err(
                        errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM),
                    ) => {
                        return self.pause(errno);
                    }
                    // A client that has gone again, or what the network had to say (accept(2)).
                    Err(_) => {}
                }
            }
        }
    }

    /// Closes the door where nobody more can be served.
    fn is_full(&mut self) -> bool {
        if self.conns.len() >= self.door.most {
            self.say_full(&format!(
                "{} connections are open, as many as the limit of open files allows; new ones wait (raise `ulimit -n`)",
                self.conns.len()
            ));
            self.close_door();
            return true;
        }
        if self.door.held.len() >= MOST_HELD {
            self.close_door();
            return true;
        }
        false
    }

    fn say_full(&mut self, text: &str) {
        let recent = |at: u32| self.now.wrapping_sub(at) < SAY_AGAIN;
        if !self.door.said_at.is_some_and(recent) {
            self.door.said_at = Some(self.now);
            warn!(event = "proxy_full", connections = self.conns.len(), "{text}");
            self.said();
        }
    }

    fn pause(&mut self, errno: Errno) {
        self.say_full(&format!("no connection can be accepted at the moment: {}", errno.desc()));
        self.close_door();
        self.door.until = Some(self.now.wrapping_add(PAUSE));
        self.look_in(PAUSE);
    }

    /// Opens the door again where there is room and nothing else against it.
    pub(super) fn room_again(&mut self) {
        if self.door.open
            || self.door.until.is_some_and(|until| until.wrapping_sub(self.now) <= PAUSE && until != self.now)
            // Not for every single one.
            || self.conns.len() > self.door.most - self.door.most / 16
            || self.door.held.len() >= MOST_HELD
        {
            return;
        }
        self.door.until = None;
        if self.open_door().is_err() {
            self.door.until = Some(self.now.wrapping_add(PAUSE));
            self.look_in(PAUSE);
        }
    }

    fn admit(&mut self, fd: OwnedFd) {
        let end = End::of_client(fd);
        let id = self.conns.add(Conn::new(end, self.now));
        let Some(conn) = self.conns.get_mut(id) else { return };
        let end = std::mem::take(&mut conn.client);
        let watched = self.watch(id, Side::Client, &end);
        if let Some(conn) = self.conns.get_mut(id) {
            conn.client = end;
        }
        if watched.is_err() {
            return self.close(id);
        }
        self.assign(id);
    }

    /// Keeps a client until a worker is ready for him.
    pub(super) fn hold(&mut self, id: u32) {
        if self.stopping {
            return self.close(id);
        }
        if let Some(conn) = self.conns.get_mut(id) {
            conn.state = State::Held;
            self.door.held.push_back(id);
            self.look_in(PAUSE);
        }
    }

    /// How many are kept.
    pub(super) fn held(&mut self) -> u32 {
        let waits =
            |id: &&u32| self.conns.get_mut(**id).is_some_and(|conn| conn.state == State::Held);
        u32::try_from(self.door.held.iter().filter(waits).count()).unwrap_or(u32::MAX)
    }

    /// Clients who found no worker in time, said once in a while.
    pub(super) fn say_unserved(&mut self, more: u64) {
        self.door.unserved += more;
        let recent = |at: u32| self.now.wrapping_sub(at) < SAY_AGAIN;
        if more > 0 && !self.door.unserved_said_at.is_some_and(recent) {
            self.door.unserved_said_at = Some(self.now);
            let all = self.door.unserved;
            warn!(
                event = "proxy_unserved",
                connections = all,
                "connections were closed because no worker took them within {} s: {all} so far",
                HOLD / 1000
            );
            self.said();
        }
    }

    /// Takes in all who wait outside, and lets nobody come any more.
    pub(super) fn shut_door(&mut self) {
        self.let_in(usize::from(u16::MAX));
        self.close_door();
        self.door.listeners.clear();
    }
}
