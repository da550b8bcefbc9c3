//! Sockets that a service manager passes to us (`sd_listen_fds(3)`, systemd.socket(5)): listening
//! before we start, and after we have gone.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};

use super::adopt::Claim;
use super::{Address, Listener};

/// What is passed, not taken over yet. Where it is not, it stays as it is, also over an exec.
#[derive(Debug)]
pub(crate) struct Passed {
    claim: Claim,
    names: Names,
}

/// The entries of `LISTEN_FDNAMES`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Names {
    names: Vec<String>,
    /// Why there are none, although some were given.
    problem: Option<String>,
}

/// What `LISTEN_FDS` and its companions say to the process `own`: how many, with which names.
fn announced<'a>(
    env: impl Fn(&str) -> Option<&'a OsStr>,
    own: u32,
) -> Result<Option<(usize, Names)>, String> {
    // Left in the environment by somebody else's start, it is none of our business.
    let ours = |pid: &OsStr| pid.to_str().and_then(|pid| pid.parse().ok()) == Some(own);
    if !env("LISTEN_PID").is_some_and(ours) {
        return Ok(None);
    }
    let Some(text) = env("LISTEN_FDS") else { return Ok(None) };
    let count = text.to_str().and_then(|text| text.parse::<u16>().ok()).map(usize::from);
    let count = count.ok_or_else(|| {
        format!(
            "bad value \"{}\" for LISTEN_FDS: it is how many sockets a service manager passes, from descriptor 3 on",
            text.display()
        )
    })?;
    let names = match env("LISTEN_FDNAMES").map(OsStr::to_string_lossy) {
        None => Names::default(),
        Some(text) => {
            let names: Vec<String> = text.split(':').map(str::to_owned).collect();
            let problem = (names.len() != count).then(|| {
                format!("LISTEN_FDNAMES is \"{text}\", which are not {count} names as LISTEN_FDS says; none is used")
            });
            Names { names: if problem.is_some() { Vec::new() } else { names }, problem }
        }
    };
    Ok((count > 0).then_some((count, names)))
}

impl Passed {
    /// What is passed to the process `own`, which is this one. To be called once, before anything
    /// opens descriptors: later a number that was promised and not passed could be one of ours.
    pub(crate) fn find<'a>(
        env: impl Fn(&str) -> Option<&'a OsStr>,
        own: u32,
    ) -> Result<Option<Self>, String> {
        let Some((count, names)) = announced(env, own)? else { return Ok(None) };
        let claim = Claim::lay(count).map_err(|missing| {
            format!(
                "LISTEN_FDS is {count}, but descriptor {missing} is not open; whoever starts throng-rs has to pass that many sockets, from descriptor 3 on"
            )
        })?;
        Ok(Some(Self { claim, names }))
    }

    pub(crate) fn count(&self) -> usize {
        self.claim.count()
    }

    /// What is odd about it and was passed over.
    pub(crate) fn warning(&self) -> Option<&str> {
        self.names.problem.as_deref()
    }

    /// Takes the sockets over, in their order.
    pub(crate) fn adopt(self) -> Result<Vec<Listener>, String> {
        let mut names = self.names.names.into_iter();
        self.claim.take().into_iter().map(|fd| listener(fd, names.next())).collect()
    }
}

impl Listener {
    /// Takes a listening socket over. The error says what is wrong with it.
    pub(crate) fn adopt(fd: OwnedFd, name: Option<String>) -> Result<Self, String> {
        Ok(Self::passed(address(&fd)?, fd, name))
    }
}

fn listener(fd: OwnedFd, name: Option<String>) -> Result<Listener, String> {
    let address = address(&fd).map_err(|problem| {
        let name = name.as_ref().map(|name| format!(", \"{name}\"")).unwrap_or_default();
        format!(
            "descriptor {}, passed by LISTEN_FDS{name}, {problem}; pass listening TCP or Unix sockets (systemd: ListenStream= with Accept=no)",
            fd.as_raw_fd()
        )
    })?;
    Ok(Listener::passed(address, fd, name))
}

/// Where a socket listens; the error says what is wrong with it.
fn address(fd: &OwnedFd) -> Result<Address, String> {
    let fails = |errno: Errno| match errno {
        Errno::ENOTSOCK => "is no socket".to_owned(),
        errno => format!("cannot be asked about: {}", errno.desc()),
    };
    if getsockopt(fd, sockopt::SockType).map_err(fails)? != SockType::Stream {
        return Err("is no stream socket".to_owned());
    }
    if !getsockopt(fd, sockopt::AcceptConn).map_err(fails)? {
        return Err("is not listening".to_owned());
    }
    let name: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(fails)?;
    let tcp4 = name.as_sockaddr_in().map(|name| Address::Tcp((*name).into()));
    let tcp6 = || name.as_sockaddr_in6().map(|name| Address::Tcp((*name).into()));
    let unix = || {
        let name = name.as_unix_addr()?;
        let abstract_name = || Some([b"@", name.as_abstract()?].concat());
        let path = name.path().map(|path| path.as_os_str().as_bytes().to_vec());
        let path = path.or_else(abstract_name)?;
        Some(Address::Unix(PathBuf::from(OsStr::from_bytes(&path))))
    };
    tcp4.or_else(tcp6).or_else(unix).ok_or_else(|| {
        let family = name.family().map_or("unknown".to_owned(), |family| format!("{family:?}"));
        format!("is of the family {family}")
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};

    use super::*;

    fn announce(env: &[(&str, &str)]) -> Result<Option<(usize, Names)>, String> {
        let value = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, v)| *v);
        announced(|name| value(name).map(OsStr::new), 7)
    }

    #[test]
    fn what_is_announced_to_us_counts() {
        let names = |text: &str, count| {
            announce(&[("LISTEN_PID", "7"), ("LISTEN_FDS", count), ("LISTEN_FDNAMES", text)])
        };
        let (count, found) = names("web:api", "2").unwrap().unwrap();
        assert_eq!(
            (count, found.names, found.problem),
            (2, vec!["web".to_owned(), "api".to_owned()], None)
        );
        let (_, found) = names("web", "2").unwrap().unwrap();
        assert!(found.names.is_empty() && found.problem.unwrap().contains("\"web\""));
        assert_eq!(announce(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "0")]), Ok(None));
        for pid in ["8", "", "x"] {
            let foreign = announce(&[("LISTEN_PID", pid), ("LISTEN_FDS", "junk")]);
            assert_eq!(foreign, Ok(None), "{pid}: for somebody else");
        }
        assert_eq!(announce(&[("LISTEN_FDS", "1")]), Ok(None));
        for bad in ["junk", "-1", "1x", "99999999999", ""] {
            let error = announce(&[("LISTEN_PID", "7"), ("LISTEN_FDS", bad)]).unwrap_err();
            assert!(error.contains(&format!("\"{bad}\" for LISTEN_FDS")), "{error}");
        }
    }

    #[test]
    fn a_socket_is_known_by_its_address() {
        let shown = |fd: OwnedFd| address(&fd).map(|address| address.to_string());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        assert_eq!(shown(tcp.into()), Ok(format!("127.0.0.1:{port}")));
        if let Ok(tcp) = TcpListener::bind("[::1]:0") {
            let port = tcp.local_addr().unwrap().port();
            assert_eq!(shown(tcp.into()), Ok(format!("[::1]:{port}")));
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let unix = UnixListener::bind(&path).unwrap();
        assert_eq!(shown(unix.into()), Ok(format!("unix:{}", path.display())));
        let name = format!("throng-rs-{}", std::process::id());
        let unix =
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        assert_eq!(shown(unix.into()), Ok(format!("unix:@{name}")));

        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(shown(udp.into()), Err("is no stream socket".to_owned()));
        let (connected, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(shown(connected.into()), Err("is not listening".to_owned()));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(shown(file.into()), Err("is no socket".to_owned()));
    }
}
