//! What workers listen on together: one socket for all, one for each slot, or one that we accept from.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;
use serde_json::Value;

use super::bind::{self, Bound, Target};
use super::primary::Rules;
use crate::sockets::{BACKLOG, Balance, Key, Slots};

/// Something to listen on, and who does.
#[derive(Debug)]
pub(super) struct Handle {
    /// Never used again, unlike a key.
    pub(super) id: u64,
    pub(super) target: Target,
    /// Of the worker that asked first, for all.
    pub(super) data: Value,
    pub(super) members: Vec<Key>,
    pub(super) carry: Carry,
}

#[derive(Debug)]
pub(super) enum Carry {
    /// One socket for all.
    Shared { bound: Bound, udp: bool },
    /// One for each slot.
    Slots(Slots),
    /// We accept.
    Dealt(Dealt),
}

impl Handle {
    /// Where it listens, with the port that was really given.
    pub(super) fn address(&self) -> String {
        let address = match &self.carry {
            Carry::Shared { bound, .. } => bind::local(&bound.fd),
            Carry::Slots(slots) => Some(slots.address()),
            Carry::Dealt(dealt) => dealt.sockname,
        };
        let udp = matches!(&self.carry, Carry::Shared { udp: true, .. });
        match address {
            Some(address) if udp => format!("UDP {address}"),
            Some(address) => address.to_string(),
            None => self.target.to_string(),
        }
    }
}

/// A socket that we accept from.
#[derive(Debug)]
pub(super) struct Dealt {
    pub(super) bound: Bound,
    /// None for a pipe.
    pub(super) sockname: Option<SocketAddr>,
    /// Accepted, and with no worker yet; the first is the next.
    pub(super) waiting: VecDeque<Connection>,
    /// Who got the last one.
    pub(super) last: Option<(u32, Key)>,
    /// Every worker has refused the first one: they are asked again in a while.
    pub(super) parked: bool,
}

/// A connection on its way to a worker.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) fd: Rc<OwnedFd>,
    /// Of the client; none on a pipe.
    pub(super) ip: Option<IpAddr>,
    /// Who has refused it.
    pub(super) refused: Vec<Key>,
    /// How often it did not arrive.
    pub(super) lost: u32,
}

impl Connection {
    pub(super) fn new(fd: OwnedFd, ip: Option<IpAddr>) -> Self {
        Self { fd: Rc::new(fd), ip, refused: Vec::new(), lost: 0 }
    }
}

/// Opens what nobody has yet. The sockets of slots have numbers from `end` on.
pub(super) fn open(target: &Target, rules: &Rules) -> Result<Carry, Errno> {
    let Rules { balance, passed, user, end, .. } = rules;
    if let (Target::Tcp { v6_only, .. }, Balance::Kernel) = (target, balance) {
        let slots = bind::first(&target.addresses(), |address| {
            Slots::bind(address, Some(*v6_only), BACKLOG, *end).map_err(|error| bind::errno(&error))
        })?;
        return Ok(Carry::Slots(slots));
    }
    let bound = Bound::open(target, passed, *user)?;
    let datagrams = matches!(target, Target::Udp { .. }) || bind::is_datagram(&bound.fd);
    Ok(match balance {
        _ if datagrams => Carry::Shared { bound, udp: true },
        Balance::Kernel => Carry::Shared { bound, udp: false },
        Balance::RoundRobin | Balance::StickyIp | Balance::LeastConnections => {
            Carry::Dealt(Dealt::new(bound))
        }
    })
}

impl Dealt {
    pub(super) fn new(bound: Bound) -> Self {
        let sockname = bind::local(&bound.fd);
        Self { bound, sockname, waiting: VecDeque::new(), last: None, parked: false }
    }
}
