//! Who listens where, by `/proc`: to say which worker holds the port that another one wanted.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use nix::sys::stat::fstat;
use nix::unistd::Pid;
use procfs::net::TcpState;
use procfs::process::{FDTarget, Process};

use super::diag;

/// The TCP addresses that processes of the group `leader` listen on, in order of their ports, but for
/// the sockets `ours`, which they have from us.
pub(crate) fn listening(leader: Pid, ours: &HashSet<u64>) -> Vec<SocketAddr> {
    let sockets: HashSet<u64> = members(leader).iter().flat_map(sockets).collect();
    let sockets: HashSet<u64> = sockets.difference(ours).copied().collect();
    if sockets.is_empty() {
        return Vec::new();
    }
    let all = listeners().into_iter();
    let mut found: Vec<_> =
        all.filter(|(inode, _)| sockets.contains(inode)).map(|(_, address)| address).collect();
    found.sort_unstable_by_key(SocketAddr::port);
    found.dedup_by_key(|address| address.port());
    found
}

/// Whether another socket may bind the address beside its owner's (`SO_REUSEPORT`): then nobody took
/// it from anybody. The socket that asks never listens, so no connection comes to it.
pub(crate) fn is_shared(address: &SocketAddr) -> bool {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let Ok(probe) = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None) else {
        return false;
    };
    setsockopt(&probe, sockopt::ReusePort, &true).is_ok()
        && bind(probe.as_raw_fd(), &SockaddrStorage::from(*address)).is_ok()
}

/// The process that listens on `port`, as far as `/proc` shows it: pid and command.
pub(crate) fn holder(port: u16) -> Option<String> {
    let all = listeners().into_iter();
    process_with(
        &all.filter(|(_, address)| address.port() == port).map(|(inode, _)| inode).collect(),
    )
}

/// The process that holds the Unix socket at `path`, in the same way.
pub(crate) fn unix_holder(path: &Path) -> Option<String> {
    let all = procfs::net::unix().ok()?.into_iter();
    let here = all.filter(|entry| entry.path.as_deref() == Some(path));
    process_with(&here.map(|entry| entry.inode).collect())
}

/// The first of those who have one of these sockets open.
fn process_with(inodes: &HashSet<u64>) -> Option<String> {
    let process = procfs::process::all_processes()
        .ok()?
        .flatten()
        .find(|process| sockets(process).iter().any(|inode| inodes.contains(inode)))?;
    let name = process.stat().map(|stat| stat.comm).unwrap_or_default();
    Some(format!("pid {} ({name})", process.pid()))
}

/// What `/proc` calls a socket of ours.
pub(crate) fn inode(fd: &impl AsFd) -> Option<u64> {
    fstat(fd).ok().map(|info| info.st_ino)
}

/// Listening sockets: inode and address.
fn listeners() -> Vec<(u64, SocketAddr)> {
    diag::listeners().unwrap_or_else(|_| listed())
}

/// The same from `/proc`.
fn listed() -> Vec<(u64, SocketAddr)> {
    let entries = procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten();
    entries
        .filter(|entry| entry.state == TcpState::Listen)
        .map(|entry| (entry.inode, entry.local_address))
        .collect()
}

fn members(leader: Pid) -> Vec<Process> {
    let Ok(all) = procfs::process::all_processes() else { return Vec::new() };
    all.flatten()
        .filter(|process| process.stat().is_ok_and(|stat| stat.pgrp == leader.as_raw()))
        .collect()
}

fn sockets(process: &Process) -> Vec<u64> {
    let Ok(open) = process.fd() else { return Vec::new() };
    open.flatten()
        .filter_map(|fd| match fd.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect()
}

/// Whether a worker's last words say that its port was taken: the forms of Node, Python, Ruby, Go,
/// Java, PHP, Rust and nginx.
pub(crate) fn says_taken(words: &[u8]) -> bool {
    let text = String::from_utf8_lossy(words).to_ascii_lowercase();
    [
        "eaddrinuse",
        "address already in use",
        "address in use",
        "addrinuse",
        "port is already allocated",
    ]
    .iter()
    .any(|form| text.contains(form))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn our_own_listener_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let leader = nix::unistd::getpgrp();
        let ours = |address: &SocketAddr| address.port() == port;
        assert!(listening(leader, &HashSet::new()).iter().any(ours));
        assert!(!is_shared(&listener.local_addr().unwrap()));
        assert!(listed().contains(&(inode(&listener).unwrap(), listener.local_addr().unwrap())));
        assert!(holder(port).unwrap().contains("pid "));
        drop(listener);
        assert!(!listening(leader, &HashSet::new()).iter().any(ours));
    }

    #[test]
    fn last_words() {
        assert!(says_taken(b"Error: listen EADDRINUSE: address already in use :::3000"));
        assert!(says_taken(b"OSError: [Errno 98] Address already in use"));
        assert!(!says_taken(b"Error: cannot find module"));
    }
}
