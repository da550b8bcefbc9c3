//! Listening sockets by `sock_diag(7)`: the kernel tells of those alone, while `/proc/net/tcp` has every
//! connection there is, and each that was closed in the last minute: tens of thousands behind a busy
//! server, through which the one thread that we have would wade.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `1 << TCP_LISTEN`.
const LISTENING: u32 = 1 << 10;
/// `struct nlmsghdr`, `struct inet_diag_req_v2`, `struct inet_diag_msg`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;
/// A part of an answer is never larger (`NLMSG_GOODSIZE` is a page or 8 KiB; dumps go up to 32 KiB).
const PART: usize = 32 << 10;

/// Every listening TCP socket of this network namespace: inode and address. The error is that of a kernel,
/// or of a sandbox, that does not tell.
pub(super) fn listeners() -> nix::Result<Vec<(u64, SocketAddr)>> {
    let mut found = dump(libc::AF_INET)?;
    // A machine without IPv6 has none.
    found.extend(dump(libc::AF_INET6).unwrap_or_default());
    Ok(found)
}

fn dump(family: i32) -> nix::Result<Vec<(u64, SocketAddr)>> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    // It answers at once; nothing here may stand still for it.
    setsockopt(&netlink, ReceiveTimeout, &TimeVal::milliseconds(500))?;
    sendto(netlink.as_raw_fd(), &request(family), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut found = Vec::new();
    let mut part = vec![0; PART];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut part, MsgFlags::empty())?;
        if read(&part[..length], &mut found)? {
            return Ok(found);
        }
    }
}

fn request(family: i32) -> [u8; HEADER + REQUEST] {
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or_default();
    let length = u32::try_from(HEADER + REQUEST).unwrap_or_default();
    let mut bytes = [0; HEADER + REQUEST];
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[HEADER] = family.to_ne_bytes()[0];
    bytes[HEADER + 1] = libc::IPPROTO_TCP.to_ne_bytes()[0];
    bytes[HEADER + 4..HEADER + 8].copy_from_slice(&LISTENING.to_ne_bytes());
    bytes
}

/// Reads one part of the answer; true where it was the last.
fn read(mut part: &[u8], found: &mut Vec<(u64, SocketAddr)>) -> nix::Result<bool> {
    while part.len() >= HEADER {
        let length = usize::try_from(word(part, 0)).unwrap_or(0);
        let kind = i32::from(u16::from_ne_bytes([part[4], part[5]]));
        let Some(message) = part.get(HEADER..length) else { return Err(Errno::EBADMSG) };
        match kind {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let errno = message.get(..4).map_or(0, |_| word(message, 0).cast_signed());
                return Err(Errno::from_raw(-errno));
            }
            _ => found.extend(listener(message)),
        }
        part = part.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct inet_diag_msg`: the port at 4 and the address at 8 in the order of the network, the inode at 68.
fn listener(message: &[u8]) -> Option<(u64, SocketAddr)> {
    let message: &[u8; MESSAGE] = message.get(..MESSAGE)?.try_into().ok()?;
    let port = u16::from_be_bytes([message[4], message[5]]);
    let ip: IpAddr = if i32::from(message[0]) == libc::AF_INET {
        Ipv4Addr::from(<[u8; 4]>::try_from(&message[8..12]).ok()?).into()
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(&message[8..24]).ok()?).into()
    };
    Some((u64::from(word(message, 68)), SocketAddr::new(ip, port)))
}

/// Of our own byte order; zero where there is none.
fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    u32::from_ne_bytes(word.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::engine::ports::inode;

    #[test]
    fn a_listener_is_told_and_a_connection_is_not() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let address = listener.local_addr().unwrap();
            let client = std::net::TcpStream::connect(address).unwrap();
            let found = listeners().unwrap();
            assert!(found.contains(&(inode(&listener).unwrap(), address)), "{address}");
            let client = inode(&client).unwrap();
            assert!(!found.iter().any(|(inode, _)| *inode == client));
        }
    }

    #[test]
    fn what_is_cut_or_an_error_is_no_answer() {
        let mut found = Vec::new();
        let mut part = request(libc::AF_INET).to_vec();
        part[0] = 200;
        assert_eq!(read(&part, &mut found), Err(Errno::EBADMSG));
        let mut error = 20_u32.to_ne_bytes().to_vec();
        error.extend([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        error.extend((-2_i32).to_ne_bytes());
        assert_eq!(read(&error, &mut found), Err(Errno::ENOENT));
        assert!(found.is_empty());
    }
}
