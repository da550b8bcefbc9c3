//! The PROXY protocol, version 2, which tells a worker who the client is
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>, section 2.2).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{SockaddrLike, SockaddrStorage, getpeername, getsockname};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// Who is at the other end; none where he did not come by TCP.
pub(super) fn client(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    tcp(&getpeername(fd.as_raw_fd()).ok()?)
}

/// The header of an accepted connection.
pub(super) fn of(fd: BorrowedFd<'_>) -> Vec<u8> {
    let own = || tcp(&getsockname(fd.as_raw_fd()).ok()?);
    header(client(fd).zip(own()))
}

fn tcp(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    let v6 = || address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into()));
    // The family is the first that the kernel wrote.
    address.family().and_then(|_| v4.or_else(v6))
}

/// From whom to whom.
fn header(ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.push(PROXY);
    let Some((from, to)) = ends else {
        bytes.extend([UNSPECIFIED, 0, 0]);
        return bytes;
    };
    match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([TCP4, 0, 12]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        (from, to) => {
            let wide = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            bytes.extend([TCP6, 0, 36]);
            bytes.extend(wide(from));
            bytes.extend(wide(to));
        }
    }
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(from: &str, to: &str) -> Vec<u8> {
        header(Some((from.parse().unwrap(), to.parse().unwrap())))
    }

    #[test]
    fn headers() {
        let v4 = of("10.1.2.3:258", "127.0.0.1:80");
        assert_eq!(v4[..12], *b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a");
        assert_eq!(v4[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(v4[16..], [10, 1, 2, 3, 127, 0, 0, 1, 1, 2, 0, 80]);
        assert_eq!(of("[::ffff:10.1.2.3]:258", "[::ffff:127.0.0.1]:80"), v4);
        let v6 = of("[2001:db8::1]:1", "[::1]:2");
        assert_eq!((v6.len(), v6[13], v6[15]), (16 + 36, 0x21, 36));
        assert_eq!(v6[16..20], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(header(None)[12..], [0x21, 0, 0, 0]);
    }
}
