//! The one door to the machine: every file and variable that the probe reads goes through [`Host`],
//! so that a folder of recorded files can stand for a whole machine.
//!
//! Depends on the operating system alone.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};

/// No file the probe reads is anywhere near this long; what is longer was not written by a kernel.
const MAX_FILE: u64 = 16 << 20;

/// Where facts come from: this machine, or a folder that holds its `/proc` and `/sys`.
#[derive(Debug)]
pub struct Host {
    root: Option<Root>,
    env: BTreeMap<OsString, OsString>,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    dir: OwnedFd,
}

impl Host {
    /// This machine, with the environment of this process.
    #[must_use]
    pub fn live() -> Self {
        Self { root: None, env: std::env::vars_os().collect() }
    }

    /// The machine recorded under `dir` (`dir/proc/self/cgroup`, `dir/sys/fs/cgroup`, …).
    ///
    /// Symbolic links are followed as if `dir` were `/`. The environment is the recorded one of
    /// `dir/proc/self/environ`, else that of this process. The error is that `dir` is no readable folder.
    pub fn sysroot(dir: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(dir, flags, Mode::empty())?;
        let root = Root { path: dir.to_owned(), dir: fd };
        let mut host = Self { root: Some(root), env: BTreeMap::new() };
        host.env = match host.read(Path::new("/proc/self/environ")) {
            Ok(text) => recorded(&text),
            Err(_) => std::env::vars_os().collect(),
        };
        Ok(host)
    }

    /// The same files with another environment.
    #[must_use]
    pub fn with_env<K: Into<OsString>, V: Into<OsString>>(
        mut self,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.env = env.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        self
    }

    /// A variable of the environment; a blank one counts as unset.
    #[must_use]
    pub fn env(&self, name: &str) -> Option<&OsStr> {
        let value = self.env.get(OsStr::new(name))?;
        (!value.as_bytes().trim_ascii().is_empty()).then_some(value)
    }

    /// All variables of the environment.
    #[must_use]
    pub fn env_all(&self) -> &BTreeMap<OsString, OsString> {
        &self.env
    }

    /// Whether system calls may stand beside the files: not so for a recorded machine.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.root.is_none()
    }

    /// The whole content of a regular file; `path` is absolute, as the process on that machine sees it.
    ///
    /// A directory, a pipe or a device in a file's place is an error like any other, never a hang.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let fd = self.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        let kind = SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT;
        match kind {
            SFlag::S_IFREG => {}
            SFlag::S_IFDIR => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
        let mut content = Vec::new();
        File::from(fd).take(MAX_FILE).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Whether there is anything at `path`.
    pub(crate) fn exists(&self, path: &Path) -> bool {
        self.open(path, OFlag::O_PATH).is_ok()
    }

    /// Whether `path` is a directory.
    pub(crate) fn is_dir(&self, path: &Path) -> bool {
        self.open(path, OFlag::O_PATH | OFlag::O_DIRECTORY).is_ok()
    }

    /// At most `most` of the directories right under `path`, in order; none where it cannot be listed.
    pub(crate) fn subdirectories(&self, path: &Path, most: usize) -> Vec<PathBuf> {
        // Through the descriptor, so that a link in a recorded machine does not lead out of it.
        let Ok(fd) = self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) else {
            return Vec::new();
        };
        let Ok(entries) = std::fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd())) else {
            return Vec::new();
        };
        let mut names: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| path.join(entry.file_name()))
            .take(most)
            .collect();
        names.sort();
        names
    }

    fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC;
        let Some(root) = &self.root else { return Ok(open(path, flags, Mode::empty())?) };
        let inside = path.strip_prefix("/").unwrap_or(path);
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        match openat2(root.dir.as_fd(), inside, how) {
            // Kernels before 5.6, gVisor and some seccomp profiles have no openat2.
            Err(nix::Error::ENOSYS | nix::Error::EPERM) => {
                Ok(open(&root.path.join(inside), flags, Mode::empty())?)
            }
            other => Ok(other?),
        }
    }
}

/// `NAME=value` entries that end with a NUL, as the kernel has them (`proc_pid_environ(5)`).
fn recorded(text: &[u8]) -> BTreeMap<OsString, OsString> {
    let entries = text.split(|b| *b == 0).filter_map(|entry| {
        let equals = entry.iter().position(|b| *b == b'=').filter(|at| *at > 0)?;
        let (name, value) = (&entry[..equals], &entry[equals + 1..]);
        Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
    });
    entries.collect()
}

/// A path made of the bytes that a kernel file gave.
pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// A path, or the raw content of a file, as text for a person.
pub(crate) fn show(bytes: &[u8]) -> String {
    const LONGEST: usize = 60;
    let text = String::from_utf8_lossy(bytes.trim_ascii());
    let mut shown: String = text.escape_debug().take(LONGEST).collect();
    if text.chars().count() > LONGEST {
        shown.push('…');
    }
    shown
}
