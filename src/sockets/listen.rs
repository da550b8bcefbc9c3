//! Addresses, and the sockets that the launcher holds for its workers: because it holds them, a
//! worker that ends loses no connection that nobody had accepted yet.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A port on every address, IPv4 and IPv6 by one socket where the machine has both.
    Port(u16),
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    pub(crate) const FORMS: &'static str = "3000, 127.0.0.1:3000, [::]:3000 or unix:PATH";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("unix:") {
            // The kernel's sun_path holds 108 bytes with the end mark.
            return (!path.is_empty() && path.len() < 108).then(|| Self::Unix(PathBuf::from(path)));
        }
        if let Ok(address) = text.parse() {
            return Some(Self::Tcp(address));
        }
        let port = text.strip_prefix(':').unwrap_or(text);
        let plain = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| port.parse().ok().map(Self::Port)).flatten()
    }

    /// Whether the kernel chooses the port.
    pub(crate) fn is_any_port(&self) -> bool {
        match self {
            Self::Port(port) => *port == 0,
            Self::Tcp(address) => address.port() == 0,
            Self::Unix(_) => false,
        }
    }

    /// The address without colons, for `LISTEN_FDNAMES`, whose entries are separated by them.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Port(port) => port.to_string(),
            Self::Tcp(address) => address.port().to_string(),
            Self::Unix(path) => path.display().to_string().replace(':', "_"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "{port}"),
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound and listening socket; the file of a Unix socket that we bound goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    /// With the port that was really given, where 0 was asked for.
    pub(crate) address: Address,
    pub(crate) fd: OwnedFd,
    /// What `--listen` said, where it was asked for there.
    pub(crate) asked: Option<String>,
    /// With a socket for each slot: those that an earlier program of ours had, as [`Slots::members`] has them.
    ///
    /// [`Slots::members`]: super::Slots::members
    pub(crate) slots: Vec<(Option<u32>, OwnedFd)>,
    /// What it is called by whoever passed it to us.
    name: Option<String>,
    file: Option<SocketFile>,
}

/// The file of a Unix socket, so that only our own is removed.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let info = std::fs::metadata(path)?;
        Ok(Self { path: path.to_owned(), device: info.dev(), inode: info.ino() })
    }
}

impl Listener {
    /// Binds and listens.
    pub(crate) fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Self::bind_unix(path),
            Address::Tcp(wanted) => Self::tcp(TcpListener::bind(wanted)?),
            Address::Port(port) => {
                let dual =
                    TcpListener::bind(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), *port));
                Self::tcp(match dual {
                    // A machine without IPv6.
                    Err(error)
                        if error.kind() != io::ErrorKind::AddrInUse
                            && error.kind() != io::ErrorKind::PermissionDenied =>
                    {
                        TcpListener::bind(SocketAddr::new(
                            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                            *port,
                        ))?
                    }
                    dual => dual?,
                })
            }
        }
    }

    fn tcp(listener: TcpListener) -> io::Result<Self> {
        let address = Address::Tcp(listener.local_addr()?);
        Ok(Self {
            address,
            fd: listener.into(),
            asked: None,
            slots: Vec::new(),
            name: None,
            file: None,
        })
    }

    fn bind_unix(path: &Path) -> io::Result<Self> {
        remove_stale(path)?;
        let listener = UnixListener::bind(path)?;
        let file = Some(SocketFile::of(path)?);
        let address = Address::Unix(path.to_owned());
        Ok(Self { address, fd: listener.into(), asked: None, slots: Vec::new(), name: None, file })
    }

    /// One that somebody else bound and keeps: its file is theirs.
    pub(super) fn passed(address: Address, fd: OwnedFd, name: Option<String>) -> Self {
        Self { address, fd, asked: None, slots: Vec::new(), name, file: None }
    }

    /// What whoever passed it to us calls it.
    pub(crate) fn passed_as(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether its file goes with it.
    pub(crate) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// From now on its file goes with it.
    pub(crate) fn own_file(&mut self) {
        if let Address::Unix(path) = &self.address {
            self.file = SocketFile::of(path).ok();
        }
    }

    /// Its name in `LISTEN_FDNAMES`.
    pub(crate) fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.address.name())
    }

    /// Whether who wants to listen on `wanted` is served by it.
    pub(crate) fn serves(&self, wanted: &Address) -> bool {
        match (&self.address, wanted) {
            // What a port alone asks for is every address.
            (Address::Tcp(own), Address::Port(port)) => {
                own.ip().is_unspecified() && own.port() == *port
            }
            (own, wanted) => own == wanted,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(file) = &self.file else { return };
        let ours = |info: std::fs::Metadata| info.dev() == file.device && info.ino() == file.inode;
        if std::fs::symlink_metadata(&file.path).is_ok_and(ours) {
            // Nothing can be done about a file that does not go.
            let _ = std::fs::remove_file(&file.path);
        }
    }
}

/// Takes a socket file away that nobody answers on; whatever else is there stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(info) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !info.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the file exists and is no socket",
        ));
    }
    // Not blocking: an owner that is busy has a full queue (EAGAIN), and is there all the same.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Err(Errno::ECONNREFUSED) => std::fs::remove_file(path),
        _ => Err(io::Error::from(io::ErrorKind::AddrInUse)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_socket_serves_who_asks_for_its_address() {
        let serves = |own: &str, wanted: &str| {
            let fd = std::fs::File::open("/dev/null").unwrap().into();
            let (own, wanted) = (Address::parse(own).unwrap(), Address::parse(wanted).unwrap());
            Listener::passed(own, fd, None).serves(&wanted)
        };
        assert!(serves("127.0.0.1:80", "127.0.0.1:80"));
        assert!(serves("[::]:80", "80") && serves("0.0.0.0:80", "80"));
        assert!(serves("unix:/a", "unix:/a"));
        assert!(!serves("127.0.0.1:80", "80") && !serves("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!serves("[::]:80", "0.0.0.0:80") && !serves("unix:/a", "unix:/b"));
    }

    #[test]
    fn addresses() {
        assert_eq!(Address::parse("3000"), Some(Address::Port(3000)));
        assert_eq!(Address::parse(":3000"), Some(Address::Port(3000)));
        assert_eq!(Address::parse("127.0.0.1:3000").unwrap().to_string(), "127.0.0.1:3000");
        assert_eq!(Address::parse("[::]:3000").unwrap().to_string(), "[::]:3000");
        assert_eq!(Address::parse("unix:/run/a.sock").unwrap().to_string(), "unix:/run/a.sock");
        for bad in ["", "x", "70000", "-1", "+80", "127.0.0.1", "unix:", "localhost:80"] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let address = Address::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let ours = Listener::bind(&address).unwrap();
        assert_eq!(Listener::bind(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(ours);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&address).is_err());
        assert!(path.exists());
    }
}
