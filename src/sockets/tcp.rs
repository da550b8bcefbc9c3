//! Opening listening TCP sockets, alone or as one more of a group on the same address.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, getsockopt,
    listen, setsockopt, socket, sockopt,
};

/// Connections that may wait to be accepted where nobody says otherwise, as Node and nginx have it. The
/// kernel takes `net.core.somaxconn` where that is less.
pub(crate) const BACKLOG: i32 = 511;

/// Who else may listen there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    /// Nobody: whoever is there already is found (`EADDRINUSE`).
    Nobody,
    /// Those of our user that allow it too (`SO_REUSEPORT`).
    Group,
}

/// Binds and listens. `only_v6`: whether an IPv6 socket leaves IPv4 alone; the machine decides where it
/// is not said.
pub(super) fn open(
    address: SocketAddr,
    only_v6: Option<bool>,
    backlog: i32,
    join: Join,
) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Past those that are closing; a listener is found all the same.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if let Some(only) = only_v6.filter(|_| address.is_ipv6()) {
        setsockopt(&fd, sockopt::Ipv6V6Only, &only)?;
    }
    if join == Join::Group {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::new(backlog).unwrap_or(Backlog::MAXALLOWABLE))?;
    Ok(fd)
}

/// Whether a socket listens: whoever has a copy may have shut it down for all.
pub(super) fn listens(fd: &OwnedFd) -> bool {
    getsockopt(fd, sockopt::AcceptConn).unwrap_or(true)
}

/// Lets a TCP socket listen again that a worker has shut down. A Unix socket cannot be helped.
pub(crate) fn revive(fd: &OwnedFd) {
    if !listens(fd) {
        // Where it fails, the worker that gets it says so.
        let _ = listen(fd, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXALLOWABLE));
    }
}

/// Where a TCP socket is bound; none for a socket of another family.
pub(super) fn local(fd: &OwnedFd) -> nix::Result<Option<SocketAddr>> {
    let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let v4 = name.as_sockaddr_in().map(|name| (*name).into());
    Ok(v4.or_else(|| name.as_sockaddr_in6().map(|name| (*name).into())))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::sys::socket::{Shutdown, shutdown};

    use super::*;

    #[test]
    fn what_was_shut_down_listens_again() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let fd = open(port, None, 8, Join::Nobody).unwrap();
        revive(&fd);
        shutdown(fd.as_raw_fd(), Shutdown::Both).unwrap();
        assert!(!listens(&fd) && TcpStream::connect(port).is_err());
        revive(&fd);
        TcpStream::connect(port).unwrap();
    }
}
