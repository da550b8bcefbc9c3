//! Where each worker is reached: a port of its own on loopback, or a Unix socket.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr, bind, connect,
    setsockopt, socket, sockopt,
};
use nix::unistd::{Gid, Uid, chown, geteuid, mkdtemp};
use serde::{Deserialize, Serialize};

/// Where a worker is to listen, which it is told by `PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Upstream {
    /// On 127.0.0.1 or on `::1`.
    Port(u16),
    Unix(PathBuf),
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Which of the two addresses of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl Upstream {
    /// Begins to connect; never waits.
    pub(super) fn connect(&self, family: Family) -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let open = |family| socket(family, SockType::Stream, flags, None);
        let (fd, begun) = match (self, family) {
            (Self::Unix(path), _) => {
                let fd = open(AddressFamily::Unix)?;
                let begun = connect(fd.as_raw_fd(), &UnixAddr::new(path.as_path())?);
                (fd, begun)
            }
            (Self::Port(port), Family::V4) => {
                let fd = open(AddressFamily::Inet)?;
                let to = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, *port));
                let begun = connect(fd.as_raw_fd(), &to);
                (fd, begun)
            }
            (Self::Port(port), Family::V6) => {
                let fd = open(AddressFamily::Inet6)?;
                let to = SocketAddrV6::new(Ipv6Addr::LOCALHOST, *port, 0, 0);
                let begun = connect(fd.as_raw_fd(), &SockaddrIn6::from(to));
                (fd, begun)
            }
        };
        match begun {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
            Err(errno) => Err(errno),
        }
    }
}

/// Gives each worker process its own place.
#[derive(Debug)]
pub(super) struct Places {
    /// Ports that may be given, in order; empty where workers have Unix sockets.
    ports: Vec<u16>,
    next: usize,
    /// Where the Unix sockets lie.
    dir: Option<PathBuf>,
}

/// Below are ports that services are known by.
const FIRST: u16 = 1024;
/// What the kernel takes where nothing says otherwise.
const USUAL: (u16, u16) = (32768, 60999);

impl Places {
    pub(super) fn ports() -> Self {
        let read = |name: &str| {
            std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default()
        };
        let ports = candidates(&read("ip_local_port_range"), &read("ip_local_reserved_ports"));
        // Several launchers on one machine do not begin at the same place.
        let next = usize::try_from(std::process::id()).unwrap_or(0).wrapping_mul(97);
        Self { next: next % ports.len().max(1), ports, dir: None }
    }

    /// Unix sockets, in a folder that only we and the workers' user can enter.
    pub(super) fn sockets(user: Option<(Uid, Gid)>) -> io::Result<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let run = geteuid().is_root().then(|| PathBuf::from("/run"));
        let places = run.into_iter().chain(runtime).chain([std::env::temp_dir()]);
        let mut error = io::Error::from(io::ErrorKind::NotFound);
        for place in places {
            match mkdtemp(&place.join("throng-rs-XXXXXX")) {
                Ok(dir) => {
                    if let Some((uid, gid)) = user {
                        chown(&dir, Some(uid), Some(gid))?;
                    }
                    return Ok(Self::at(dir));
                }
                Err(errno) => error = io::Error::from(errno),
            }
        }
        Err(error)
    }

    /// In a folder that is there.
    pub(super) fn at(dir: PathBuf) -> Self {
        Self { ports: Vec::new(), next: 0, dir: Some(dir) }
    }

    pub(super) fn dir(&self) -> Option<PathBuf> {
        self.dir.clone()
    }

    /// A place that nobody has. One that was given comes again only when all others have had their turn:
    /// who still knows it would meet a stranger.
    pub(super) fn next(&mut self, key: u64, taken: &HashSet<u16>) -> io::Result<Upstream> {
        if let Some(dir) = &self.dir {
            return Ok(Upstream::Unix(dir.join(format!("{key}.sock"))));
        }
        for _ in 0..self.ports.len() {
            let port = self.ports[self.next];
            self.next = (self.next + 1) % self.ports.len();
            if !taken.contains(&port) && is_free(port)? {
                return Ok(Upstream::Port(port));
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            "no port is free for it outside of net.ipv4.ip_local_port_range; make that range smaller, or use --upstream unix",
        ))
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            // Ours alone; what stays is in a temporary place.
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// Whether a server could bind it on every address; one that is bound by nobody, not even by what is
/// left of ended connections.
/// The error is that nothing can be asked: no descriptor, no memory.
fn is_free(port: u16) -> io::Result<bool> {
    let probe = |family, address: &dyn nix::sys::socket::SockaddrLike| {
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        if family == AddressFamily::Inet6 {
            setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        }
        bind(fd.as_raw_fd(), address)
    };
    let v6 = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
    let told = |result| match result {
        Ok(()) => Ok(true),
        Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
            result.map(|()| false)
        }
        Err(_) => Ok(false),
    };
    match probe(AddressFamily::Inet6, &v6) {
        // A machine without IPv6.
        Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::EINVAL | Errno::EPERM) => {
            let v4 = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
            Ok(told(probe(AddressFamily::Inet, &v4))?)
        }
        result => Ok(told(result)?),
    }
}

/// Outside of the ports that the kernel gives to whoever connects, those above first, and not what is
/// reserved (ip-sysctl).
fn candidates(range: &str, reserved: &str) -> Vec<u16> {
    let mut bounds = range.split_ascii_whitespace().map(|text| text.parse::<u16>().ok());
    let (low, high) = match (bounds.next().flatten(), bounds.next().flatten()) {
        (Some(low), Some(high)) if low <= high => (low, high),
        _ => USUAL,
    };
    let reserved: Vec<(u16, u16)> = reserved
        .trim()
        .split(',')
        .filter_map(|text| {
            let (from, to) = text.split_once('-').unwrap_or((text, text));
            Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
        })
        .collect();
    let above = high.checked_add(1).map_or(0..0, |from| u32::from(from)..u32::from(u16::MAX) + 1);
    let below = u32::from(FIRST)..u32::from(low);
    let is_open = |port: &u16| !reserved.iter().any(|(from, to)| (from..=to).contains(&port));
    let ports = |range: std::ops::Range<u32>| {
        range.filter_map(|port| u16::try_from(port).ok()).filter(is_open)
    };
    let all: Vec<u16> = ports(above).collect();
    // Enough for any fleet, and far from what services are known by.
    if all.len() >= 1000 {
        return all;
    }
    // Near the range first: services have low numbers.
    all.into_iter().chain(ports(below).collect::<Vec<_>>().into_iter().rev()).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn candidates_are_outside_of_the_range_and_not_reserved() {
        let usual = candidates("32768\t60999\n", "61001-61002,65000\n");
        assert_eq!((usual[0], usual[1]), (61000, 61003));
        assert!(!usual.contains(&65000) && usual.contains(&65535));
        assert_eq!(candidates("junk", "junk")[0], 61000);
        let wide = candidates("10000 65535", "");
        assert_eq!((wide[0], *wide.last().unwrap()), (9999, 1024));
        assert!(candidates("1024 65535", "").is_empty());
    }

    #[test]
    fn a_place_is_free_and_comes_again_last() {
        let mut places = Places::ports();
        let mut taken = HashSet::new();
        let Upstream::Port(first) = places.next(1, &taken).unwrap() else { panic!() };
        let Upstream::Port(second) = places.next(2, &taken).unwrap() else { panic!() };
        assert_ne!(first, second);
        let _holder = TcpListener::bind(("127.0.0.1", second)).unwrap();
        places.next = places.ports.iter().position(|port| *port == second).unwrap();
        let Upstream::Port(third) = places.next(3, &taken).unwrap() else { panic!() };
        assert_ne!(third, second);
        places.next = places.ports.iter().position(|port| *port == first).unwrap();
        taken.insert(first);
        assert_ne!(places.next(4, &taken).unwrap(), Upstream::Port(first));
    }
}
