//! Where control sockets are, for who makes one and for who looks for one.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;

/// Where to make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Off,
    /// The first folder of this user that can be written to.
    Default,
    Path(PathBuf),
}

/// A listening socket; its file goes with it.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    pub(crate) path: PathBuf,
    /// Whether its file goes with it.
    pub(crate) owns_file: bool,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.owns_file {
            return;
        }
        // Already gone is as good.
        let _ = fs::remove_file(&self.path);
    }
}

impl Socket {
    /// `None` where it is off. The error names what was tried.
    pub(crate) fn bind(place: &Place) -> Result<Option<Self>, String> {
        let name = format!("{}.sock", std::process::id());
        match place {
            Place::Off => Ok(None),
            Place::Path(path) => match bind(path) {
                Ok(listener) => Ok(Some(Self { listener, path: path.clone(), owns_file: true })),
                Err(error) => Err(format!("{}: {error}", path.display())),
            },
            Place::Default => {
                let mut tried = Vec::new();
                for folder in folders() {
                    let path = folder.join(&name);
                    match private(&folder).and_then(|()| bind(&path)) {
                        Ok(listener) => {
                            clear_away(&folder);
                            return Ok(Some(Self { listener, path, owns_file: true }));
                        }
                        Err(error) => tried.push(format!("{}: {error}", folder.display())),
                    }
                }
                Err(tried.join("; "))
            }
        }
    }
}

impl Socket {
    /// Goes on with one that an earlier program made, where it is still what is asked for.
    pub(crate) fn adopt(fd: OwnedFd, path: &Path, place: &Place) -> Option<Self> {
        let wanted = match place {
            Place::Off => false,
            Place::Default => true,
            Place::Path(wanted) => wanted == path,
        };
        let listener = UnixListener::from(fd);
        wanted.then(|| Self { listener, path: path.to_owned(), owns_file: false })
    }
}

/// The folders of this user, best first.
pub(crate) fn folders() -> Vec<PathBuf> {
    let mut found = Vec::new();
    if geteuid().is_root() {
        found.push(PathBuf::from("/run/throng-rs"));
    } else if let Some(dir) = env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        found.push(PathBuf::from(dir).join("throng-rs"));
    }
    found.push(env::temp_dir().join(format!("throng-rs-{}", geteuid())));
    found
}

/// Makes the folder, for us alone; refuses one that is somebody else's or that others may write to.
fn private(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let info = fs::symlink_metadata(folder)?;
    let ours = info.is_dir() && info.uid() == geteuid().as_raw();
    if !ours || info.permissions().mode() & 0o022 != 0 {
        return Err(io::Error::other("is not a folder of this user alone"));
    }
    Ok(())
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    // A file that nobody answers on was left by a launcher that was killed.
    if let Err(error) = UnixStream::connect(path)
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        fs::remove_file(path)?;
    }
    // Not a moment with wider rights; this process has one thread.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Every socket of this user, in order; the files of launchers that were killed are cleared away.
pub(crate) fn sockets() -> Vec<PathBuf> {
    let mut found: Vec<_> =
        folders().iter().flat_map(|folder| files(folder)).filter(|path| answers(path)).collect();
    found.sort();
    found
}

/// Removes what launchers that were killed have left. Whose process is here is not asked: that would wake it.
fn clear_away(folder: &Path) {
    let lives =
        |path: &Path| path.file_stem().is_some_and(|pid| Path::new("/proc").join(pid).exists());
    for path in files(folder).filter(|path| !lives(path)) {
        answers(&path);
    }
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
}

/// Whether somebody listens there. A file that nobody will ever answer on is removed.
fn answers(path: &Path) -> bool {
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let _ = fs::remove_file(path);
            false
        }
        connected => connected.is_ok(),
    }
}
