//! Addresses, and the sockets that the launcher holds for its workers: because it holds them, a
//! worker that ends loses no connection that nobody had accepted yet.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, connect, listen, socket,
};
use nix::sys::stat::{Mode, umask};

use super::tcp;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A port on every address, IPv4 and IPv6 by one socket where the machine has both.
    Port(u16),
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// `sun_path` holds 108 bytes with the end mark (`unix(7)`).
pub(crate) const LONGEST_PATH: usize = 107;

impl Address {
    const FORMS: &'static str = "3000, 127.0.0.1:3000, [::]:3000 or unix:PATH";

    /// The error tells what is wrong with the text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            if path.len() > LONGEST_PATH {
                return Err(format!(
                    "the path has {} bytes, and the kernel takes {LONGEST_PATH} for a socket; use a shorter one",
                    path.len()
                ));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        let port = text.strip_prefix(':').unwrap_or(text);
        let plain = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = plain.then(|| port.parse().ok()).flatten();
        port.map(Self::Port).ok_or_else(|| format!("expected {}", Self::FORMS))
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

/// What an address leaves open.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Binding {
    /// Of the file of a Unix socket; the umask decides where it is not said.
    pub(crate) mode: Option<Mode>,
    /// An IPv6 address leaves IPv4 to another listener; the machine decides where it does not have to.
    pub(crate) only_v6: bool,
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
    pub(crate) fn bind(address: &Address, how: Binding) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Self::bind_unix(path, how.mode),
            Address::Tcp(wanted) => Self::tcp(*wanted, how.only_v6.then_some(true)),
            Address::Port(port) => {
                let all: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
                let [both, v4] = all.map(|all| SocketAddr::new(all, *port));
                match Self::tcp(both, Some(false)) {
                    // A machine without IPv6.
                    Err(error)
                        if error.kind() != io::ErrorKind::AddrInUse
                            && error.kind() != io::ErrorKind::PermissionDenied =>
                    {
                        Self::tcp(v4, None)
                    }
                    dual => dual,
                }
            }
        }
    }

    fn tcp(wanted: SocketAddr, only_v6: Option<bool>) -> io::Result<Self> {
        let fd = tcp::open(wanted, only_v6, tcp::BACKLOG, tcp::Join::Nobody)?;
        let address = Address::Tcp(tcp::local(&fd)?.unwrap_or(wanted));
        Ok(Self { address, fd, asked: None, slots: Vec::new(), name: None, file: None })
    }

    fn bind_unix(path: &Path, mode: Option<Mode>) -> io::Result<Self> {
        // Of two that find the same stale file, the second must not remove what the first has made.
        let _turn = turn(path);
        remove_stale(path)?;
        // From its first moment on: nobody could connect in between.
        let before = mode.map(|mode| umask(!mode & Mode::from_bits_truncate(0o777)));
        let listener = UnixListener::bind(path);
        before.map(umask);
        let listener = listener?;
        listen(&listener, Backlog::new(tcp::BACKLOG).unwrap_or(Backlog::MAXALLOWABLE))?;
        let file = Some(SocketFile::of(path)?);
        let address = Address::Unix(path.to_owned());
        let fd = listener.into();
        Ok(Self { address, fd, asked: None, slots: Vec::new(), name: None, file })
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

    /// Whether it is a socket of ours that several sockets may stand for.
    pub(crate) fn may_have_slots(&self) -> bool {
        // One that was passed to us stays when we go, and with it what waits there.
        self.asked.is_some() && matches!(self.address, Address::Tcp(_))
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

/// The only one of us who is at work in the folder of `path`. None where it cannot be had for long: the
/// folder may be somebody else's to lock.
fn turn(path: &Path) -> Option<Flock<File>> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut folder = File::open(parent.unwrap_or(Path::new("."))).ok()?;
    for _ in 0..100 {
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Some(turn),
            Err((back, _)) => folder = back,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
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
        assert_eq!(Address::parse("3000"), Ok(Address::Port(3000)));
        assert_eq!(Address::parse(":3000"), Ok(Address::Port(3000)));
        assert_eq!(Address::parse("127.0.0.1:3000").unwrap().to_string(), "127.0.0.1:3000");
        assert_eq!(Address::parse("[::]:3000").unwrap().to_string(), "[::]:3000");
        assert_eq!(Address::parse("unix:/run/a.sock").unwrap().to_string(), "unix:/run/a.sock");
        for bad in ["", "x", "70000", "-1", "+80", "127.0.0.1", "unix:", "localhost:80"] {
            assert!(Address::parse(bad).unwrap_err().starts_with("expected 3000,"), "{bad}");
        }
        let path = |length| Address::parse(&format!("unix:{}", "x".repeat(length)));
        assert!(path(107).is_ok() && path(108).unwrap_err().contains("108 bytes"));
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let address = Address::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let ours = Listener::bind(&address, Binding::default()).unwrap();
        assert_eq!(
            Listener::bind(&address, Binding::default()).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(ours);
        assert!(!path.exists());
        let mode =
            |mode: u32| Binding { mode: Some(Mode::from_bits(mode).unwrap()), only_v6: false };
        for wanted in [0o600, 0o666, 0o777] {
            let _ours = Listener::bind(&address, mode(wanted)).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, wanted);
        }
        std::fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&address, Binding::default()).is_err());
        assert!(path.exists());
    }
}
