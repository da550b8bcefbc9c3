//! What a worker asks for, as libuv would bind it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockopt, listen,
    setsockopt, socket, sockopt,
};
use nix::unistd::{Gid, Uid, geteuid, getgid, getuid, setegid, seteuid};
use serde::{Deserialize, Serialize};

use super::protocol::{IPV6_ONLY, Kind, Query, UDP_REUSE_ADDR, UDP_REUSE_PORT};
use crate::sockets::{Address, BACKLOG, Binding, Listener, tcp};

/// What is to be bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Target {
    Tcp {
        /// None is every address: IPv6 with IPv4, or IPv4 alone where there is no IPv6.
        address: Option<SocketAddr>,
        port: u16,
        v6_only: bool,
    },
    Udp {
        address: SocketAddr,
        flags: u64,
    },
    Path {
        path: PathBuf,
        /// Added to the file's mode.
        mode: u32,
    },
    Abstract(Vec<u8>),
    Fd(i32),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address: Some(address), .. } => write!(f, "{address}"),
            Self::Tcp { address: None, port, .. } => write!(f, "port {port}"),
            Self::Udp { address, .. } => write!(f, "UDP {address}"),
            Self::Path { path, .. } => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{}", String::from_utf8_lossy(name)),
            Self::Fd(fd) => write!(f, "descriptor {fd}"),
        }
    }
}

impl Target {
    /// Reads a query. `asked`: the address of `--listen`, which narrows "every address" on its port.
    pub(super) fn of(query: &Query, asked: Option<&Address>) -> Result<Self, Errno> {
        let address = query.address.as_deref();
        if let Kind::Fd = query.kind {
            return query.fd.map(Self::Fd).ok_or(Errno::EBADF);
        }
        if let Kind::Pipe = query.kind {
            let text = address.ok_or(Errno::EINVAL)?;
            // Resolved against the worker's folder before its name was looked at.
            if let Some(name) = text.find('\0') {
                return Ok(Self::Abstract(text.as_bytes()[name + 1..].to_vec()));
            }
            let mode = if query.readable_all { 0o444 } else { 0 }
                | if query.writable_all { 0o222 } else { 0 };
            return Ok(Self::Path { path: shortest(Path::new(text)), mode });
        }
        let port = u16::try_from(query.port).map_err(|_| Errno::EINVAL)?;
        let v6_only = query.flags & IPV6_ONLY != 0;
        let udp = matches!(query.kind, Kind::Udp4 | Kind::Udp6);
        let address = match address {
            Some(text) => Some(with_zone(text, port)?),
            None if !udp => None,
            None if query.kind == Kind::Udp4 => Some((Ipv4Addr::UNSPECIFIED, port).into()),
            None => Some((Ipv6Addr::UNSPECIFIED, port).into()),
        };
        Ok(match address {
            Some(address) if udp => Self::Udp { address, flags: query.flags },
            address => {
                let any = address.is_none_or(|address| address.ip().is_unspecified());
                let address = match asked {
                    Some(Address::Tcp(asked)) if any && port != 0 && asked.port() == port => {
                        Some(*asked)
                    }
                    _ => address,
                };
                Self::Tcp { address, port, v6_only }
            }
        })
    }

    /// Whether it is what `--listen` says.
    pub(super) fn is(&self, asked: &Address) -> bool {
        match (self, asked) {
            (Self::Tcp { port, .. }, Address::Port(asked)) => port == asked,
            (Self::Tcp { port, .. }, Address::Tcp(asked)) => *port == asked.port(),
            (Self::Path { path, .. }, Address::Unix(asked)) => {
                path == asked || shortest(asked) == *path
            }
            // Not what a load balancer would come for.
            (Self::Udp { .. } | Self::Fd(_), _) => true,
            _ => false,
        }
    }

    /// The addresses to try for TCP, in order.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        match self {
            Self::Tcp { address: Some(address), .. } => vec![*address],
            Self::Tcp { address: None, port, .. } => vec![
                SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), *port),
                SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), *port),
            ],
            _ => Vec::new(),
        }
    }
}

/// A bound socket; what is connected to listens.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) fd: Rc<OwnedFd>,
    /// Whoever made the file of a Unix socket removes it.
    pub(super) file: Option<Listener>,
}

impl Bound {
    /// Opens the target; `passed` are the sockets of the launcher, from descriptor 3 on. What is a file is made
    /// as the worker's own `user` would make it.
    pub(super) fn open(
        target: &Target,
        passed: &[Rc<OwnedFd>],
        user: Option<(Uid, Gid)>,
    ) -> Result<Self, Errno> {
        let bare = |fd: OwnedFd| Self { fd: Rc::new(fd), file: None };
        match target {
            Target::Tcp { v6_only, .. } => first(&target.addresses(), |address| {
                tcp::open(address, Some(*v6_only), BACKLOG, tcp::Join::Nobody)
            })
            .map(bare),
            Target::Udp { address, flags } => udp(*address, *flags).map(bare),
            Target::Path { path, mode } => {
                let _as = As::user(user)?;
                let listener = Listener::bind(&Address::Unix(path.clone()), Binding::default());
                let listener = listener.map_err(|error| errno(&error))?;
                if *mode != 0 {
                    let info = std::fs::metadata(path).map_err(|error| errno(&error))?;
                    let mut permissions = info.permissions();
                    permissions.set_mode(permissions.mode() | mode);
                    std::fs::set_permissions(path, permissions).map_err(|error| errno(&error))?;
                }
                let fd = Rc::new(listener.fd.try_clone().map_err(|error| errno(&error))?);
                Ok(Self { fd, file: Some(listener) })
            }
            Target::Abstract(name) => {
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name);
                let listener = UnixListener::bind_addr(&address.map_err(|error| errno(&error))?)
                    .map_err(|error| errno(&error))?;
                Ok(bare(listener.into()))
            }
            Target::Fd(number) => {
                let index = usize::try_from(*number - crate::sockets::FIRST_FD);
                let fd = index.ok().and_then(|index| passed.get(index)).ok_or(Errno::EBADF)?;
                listen(fd, backlog()).or_else(|error| match error {
                    // What is connected to nobody, such as UDP, is shared as it is.
                    Errno::EOPNOTSUPP => Ok(()),
                    other => Err(other),
                })?;
                Ok(Self { fd: Rc::clone(fd), file: None })
            }
        }
    }
}

/// Somebody else, for the files that are made meanwhile.
struct As;

impl As {
    fn user(user: Option<(Uid, Gid)>) -> Result<Option<Self>, Errno> {
        let Some((uid, gid)) = user.filter(|(uid, _)| *uid != geteuid()) else { return Ok(None) };
        setegid(gid)?;
        let ours = Self;
        seteuid(uid)?;
        Ok(Some(ours))
    }
}

impl Drop for As {
    fn drop(&mut self) {
        // Back to who we are, which is always allowed.
        let _ = seteuid(getuid());
        let _ = setegid(getgid());
    }
}

/// Tries addresses in their order: the next one only where this machine does not have the first.
pub(super) fn first<T>(
    addresses: &[SocketAddr],
    mut open: impl FnMut(SocketAddr) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let mut result = Err(Errno::EINVAL);
    for address in addresses {
        result = open(*address);
        if !matches!(&result, Err(error) if !matches!(error, Errno::EADDRINUSE | Errno::EACCES)) {
            break;
        }
    }
    result
}

/// libuv takes a descriptor that it gets as it is: a blocking one would hold the whole worker up.
pub(super) fn unblock(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

pub(super) fn errno(error: &io::Error) -> Errno {
    match (error.raw_os_error(), error.kind()) {
        (Some(number), _) => Errno::from_raw(number),
        (None, io::ErrorKind::AddrInUse | io::ErrorKind::AlreadyExists) => Errno::EADDRINUSE,
        _ => Errno::EINVAL,
    }
}

pub(super) fn is_datagram(fd: &OwnedFd) -> bool {
    getsockopt(fd, sockopt::SockType) == Ok(SockType::Datagram)
}

/// Where it was bound; none for a pipe.
pub(super) fn local(fd: &OwnedFd) -> Option<SocketAddr> {
    tcp::local(fd).ok().flatten()
}

fn backlog() -> Backlog {
    Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN)
}

fn udp(address: SocketAddr, flags: u64) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if flags & UDP_REUSE_ADDR != 0 {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    if flags & UDP_REUSE_PORT != 0 {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &(flags & IPV6_ONLY != 0))?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

/// An address of a worker's socket, with its interface behind a percent sign (RFC 4007).
fn with_zone(text: &str, port: u16) -> Result<SocketAddr, Errno> {
    let Some((ip, zone)) = text.split_once('%') else {
        let ip: IpAddr = text.parse().map_err(|_| Errno::EINVAL)?;
        return Ok(SocketAddr::new(ip, port));
    };
    let ip: Ipv6Addr = ip.parse().map_err(|_| Errno::EINVAL)?;
    let scope = zone.parse().or_else(|_| nix::net::if_::if_nametoindex(zone))?;
    Ok(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
}

/// The path from here, where that is shorter: a socket's path has room for 108 bytes.
fn shortest(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    match path.strip_prefix(&here) {
        Ok(rest) if !rest.as_os_str().is_empty() => rest.to_owned(),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(kind: Kind, address: Option<&str>, port: i64) -> Query {
        Query { kind, address: address.map(str::to_owned), port, ..Query::default() }
    }

    fn target(kind: Kind, address: Option<&str>, port: i64) -> Result<Target, Errno> {
        Target::of(&query(kind, address, port), None)
    }

    #[test]
    fn every_address_is_both_families_by_one_socket() {
        let bound = Bound::open(&target(Kind::Tcp4, None, 0).unwrap(), &[], None).unwrap();
        let address = local(&bound.fd).unwrap();
        std::net::TcpStream::connect(("127.0.0.1", address.port())).unwrap();
        if address.is_ipv6() {
            std::net::TcpStream::connect(("::1", address.port())).unwrap();
        }
        let again = target(Kind::Tcp4, None, i64::from(address.port())).unwrap();
        assert_eq!(Bound::open(&again, &[], None).unwrap_err(), Errno::EADDRINUSE);
    }

    #[test]
    fn listen_narrows_every_address_on_its_port_alone() {
        let asked = Address::parse("127.0.0.1:3000").ok();
        let of = |address, port| {
            Target::of(&query(Kind::Tcp4, address, port), asked.as_ref()).unwrap().to_string()
        };
        assert_eq!(of(None, 3000), "127.0.0.1:3000");
        assert_eq!(of(Some("0.0.0.0"), 3000), "127.0.0.1:3000");
        assert_eq!(of(None, 3001), "port 3001");
        assert_eq!(of(Some("127.0.0.2"), 3000), "127.0.0.2:3000");
    }

    #[test]
    fn addresses_that_cannot_be() {
        assert_eq!(target(Kind::Tcp4, Some("localhost"), 1), Err(Errno::EINVAL));
        assert_eq!(target(Kind::Tcp4, None, 65536), Err(Errno::EINVAL));
        assert_eq!(target(Kind::Tcp4, None, -1), Err(Errno::EINVAL));
        assert_eq!(target(Kind::Fd, None, 0), Err(Errno::EBADF));
        // An address of documentation, which no machine has (RFC 5737).
        let nowhere = target(Kind::Tcp4, Some("192.0.2.1"), 0).unwrap();
        assert_eq!(Bound::open(&nowhere, &[], None).unwrap_err(), Errno::EADDRNOTAVAIL);
        assert_eq!(Bound::open(&Target::Fd(3), &[], None).unwrap_err(), Errno::EBADF);
        let zone = target(Kind::Tcp6, Some("fe80::1%lo"), 80).unwrap();
        assert!(
            matches!(zone, Target::Tcp { address: Some(SocketAddr::V6(a)), .. } if a.scope_id() > 0)
        );
    }

    #[test]
    fn pipes_by_path_with_their_mode_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut wanted = query(Kind::Pipe, path.to_str(), -1);
        (wanted.readable_all, wanted.writable_all) = (true, true);
        let target = Target::of(&wanted, None).unwrap();
        let bound = Bound::open(&target, &[], None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o666, 0o666);
        assert_eq!(Bound::open(&target, &[], None).unwrap_err(), Errno::EADDRINUSE);
        drop(bound);
        assert!(!path.exists());
        let name = format!("/cwd/\0throng-test-{}", std::process::id());
        let target = Target::of(&query(Kind::Pipe, Some(&name), -1), None).unwrap();
        let _bound = Bound::open(&target, &[], None).unwrap();
        assert_eq!(Bound::open(&target, &[], None).unwrap_err(), Errno::EADDRINUSE);
    }

    #[test]
    fn two_may_have_one_udp_port_where_both_say_so() {
        let mut wanted = query(Kind::Udp4, Some("127.0.0.1"), 0);
        wanted.flags = UDP_REUSE_ADDR;
        let one = Bound::open(&Target::of(&wanted, None).unwrap(), &[], None).unwrap();
        wanted.port = i64::from(local(&one.fd).unwrap().port());
        Bound::open(&Target::of(&wanted, None).unwrap(), &[], None).unwrap();
        wanted.flags = 0;
        let alone = Target::of(&wanted, None).unwrap();
        assert_eq!(Bound::open(&alone, &[], None).unwrap_err(), Errno::EADDRINUSE);
    }
}
