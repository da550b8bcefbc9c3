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
/// `struct unix_diag_req`, `struct unix_diag_msg`; `UDIAG_SHOW_RQLEN`, and the attribute that it asks for.
const UNIX_REQUEST: usize = 24;
const UNIX_MESSAGE: usize = 16;
const SHOW_QUEUE: u32 = 0x10;
const QUEUE: u16 = 4;
/// A part of an answer is never larger (`NLMSG_GOODSIZE` is a page or 8 KiB; dumps go up to 32 KiB).
const PART: usize = 32 << 10;

/// Every listening TCP socket of this network namespace: inode and address. The error is that of a kernel,
/// or of a sandbox, that does not tell.
pub(super) fn listeners() -> nix::Result<Vec<(u64, SocketAddr)>> {
    let mut found = dump(&request(libc::AF_INET), listener)?;
    // A machine without IPv6 has none.
    found.extend(dump(&request(libc::AF_INET6), listener).unwrap_or_default());
    Ok(found)
}

/// Every listening socket, TCP and Unix: inode, and how many connections nobody has accepted yet.
pub(super) fn queues() -> nix::Result<Vec<(u64, u32)>> {
    let mut found = dump(&request(libc::AF_INET), queue)?;
    found.extend(dump(&request(libc::AF_INET6), queue).unwrap_or_default());
    // A kernel may be built without.
    found.extend(dump(&unix_request(), unix_queue).unwrap_or_default());
    Ok(found)
}

fn dump<T>(request: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> nix::Result<Vec<T>> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    // It answers at once; nothing here may stand still for it.
    setsockopt(&netlink, ReceiveTimeout, &TimeVal::milliseconds(500))?;
    sendto(netlink.as_raw_fd(), request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut found = Vec::new();
    let mut part = vec![0; PART];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut part, MsgFlags::empty())?;
        if read(&part[..length], &parse, &mut found)? {
            return Ok(found);
        }
    }
}

fn request(family: i32) -> [u8; HEADER + REQUEST] {
    let mut bytes = [0; HEADER + REQUEST];
    head(&mut bytes);
    bytes[HEADER] = family.to_ne_bytes()[0];
    bytes[HEADER + 1] = libc::IPPROTO_TCP.to_ne_bytes()[0];
    bytes[HEADER + 4..HEADER + 8].copy_from_slice(&LISTENING.to_ne_bytes());
    bytes
}

fn unix_request() -> [u8; HEADER + UNIX_REQUEST] {
    let mut bytes = [0; HEADER + UNIX_REQUEST];
    head(&mut bytes);
    bytes[HEADER] = libc::AF_UNIX.to_ne_bytes()[0];
    bytes[HEADER + 4..HEADER + 8].copy_from_slice(&LISTENING.to_ne_bytes());
    bytes[HEADER + 12..HEADER + 16].copy_from_slice(&SHOW_QUEUE.to_ne_bytes());
    bytes
}

/// `struct nlmsghdr` of a question for all that there are.
fn head(bytes: &mut [u8]) {
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or_default();
    let length = u32::try_from(bytes.len()).unwrap_or_default();
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
}

/// Reads one part of the answer; true where it was the last.
fn read<T>(
    mut part: &[u8],
    parse: &impl Fn(&[u8]) -> Option<T>,
    found: &mut Vec<T>,
) -> nix::Result<bool> {
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
            _ => found.extend(parse(message)),
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

/// The same: what waits in a listening socket at 56.
fn queue(message: &[u8]) -> Option<(u64, u32)> {
    let message = message.get(..MESSAGE)?;
    Some((u64::from(word(message, 68)), word(message, 56)))
}

/// `struct unix_diag_msg`: the inode at 4; attributes follow.
fn unix_queue(message: &[u8]) -> Option<(u64, u32)> {
    let (message, mut attributes) = message.split_at_checked(UNIX_MESSAGE)?;
    // `struct rtattr`: length and kind, then `struct unix_diag_rqlen`.
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]])).max(4);
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
        if kind == QUEUE && length >= 8 {
            return Some((u64::from(word(message, 4)), word(attributes, 4)));
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
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
        assert_eq!(read(&part, &listener, &mut found), Err(Errno::EBADMSG));
        let mut error = 20_u32.to_ne_bytes().to_vec();
        error.extend([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        error.extend((-2_i32).to_ne_bytes());
        assert_eq!(read(&error, &listener, &mut found), Err(Errno::ENOENT));
        assert!(found.is_empty());
    }

    #[test]
    fn what_waits_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let waiting = |inode: u64| {
            let all = queues().unwrap();
            all.iter().find(|(found, _)| *found == inode).map(|(_, waiting)| *waiting)
        };
        let (unix_inode, tcp_inode) = (inode(&unix).unwrap(), inode(&tcp).unwrap());
        assert_eq!((waiting(unix_inode), waiting(tcp_inode)), (Some(0), Some(0)));
        let connect = || std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let clients = [connect(), connect()];
        let others = [0; 3].map(|_| std::os::unix::net::UnixStream::connect(&path).unwrap());
        assert_eq!((waiting(unix_inode), waiting(tcp_inode)), (Some(3), Some(2)));
        let _accepted = (tcp.accept().unwrap(), unix.accept().unwrap());
        assert_eq!((waiting(unix_inode), waiting(tcp_inode)), (Some(2), Some(1)));
        drop((clients, others));
    }

    #[test]
    fn cut_attributes_are_no_queue() {
        let mut message = vec![0; UNIX_MESSAGE];
        message[4] = 9;
        assert_eq!(unix_queue(&message), None);
        // Another kind first, of an odd length.
        message.extend([5, 0, 0, 0, b'x', 0, 0, 0]);
        message.extend([12, 0, 4, 0, 7, 0, 0, 0, 128, 0, 0, 0]);
        assert_eq!(unix_queue(&message), Some((9, 7)));
        for length in 0..message.len() - 8 {
            assert_eq!(unix_queue(&message[..length]), None, "{length}");
        }
    }
}
