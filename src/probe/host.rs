//! The one door to the machine: every file and variable that the probe reads goes through [`Host`],
//! so that a folder of recorded files can stand for a whole machine.
//!
//! Depends on the operating system alone.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};

/// No file the probe reads is anywhere near this long; what is longer was not written by a kernel.
const MAX_FILE: u64 = 16 << 20;

/// Where facts come from: this machine, or a folder that holds its `/proc` and `/sys`.
#[derive(Debug)]
pub struct Host {
    files: Files,
    env: BTreeMap<OsString, OsString>,
}

#[derive(Debug)]
enum Files {
    /// This machine's.
    Live,
    /// Those below a folder.
    Below(Root),
    /// Those that were given.
    Given(BTreeMap<PathBuf, Vec<u8>>),
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
        Self { files: Files::Live, env: std::env::vars_os().collect() }
    }

    /// A machine that consists of these files, each with its absolute path and content, and of no
    /// environment. Nothing of this machine is read.
    ///
    /// ```
    /// use throng_rs::{Host, Resources};
    ///
    /// let host = Host::from_files([
    ///     ("/proc/self/cgroup", "0::/\n"),
    ///     ("/proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
    ///     ("/proc/meminfo", "MemTotal: 8388608 kB\n"),
    ///     ("/sys/fs/cgroup/memory.max", "536870912\n"),
    /// ]);
    /// assert_eq!(Resources::of(&host).memory.limit.unwrap().value, 512 << 20);
    /// ```
    #[must_use]
    pub fn from_files<P: Into<PathBuf>, C: Into<Vec<u8>>>(
        files: impl IntoIterator<Item = (P, C)>,
    ) -> Self {
        let files = files.into_iter().map(|(path, content)| (path.into(), content.into()));
        Self { files: Files::Given(files.collect()), env: BTreeMap::new() }
    }

    /// The machine recorded under `dir` (`dir/proc/self/cgroup`, `dir/sys/fs/cgroup`, …).
    ///
    /// Symbolic links are followed as if `dir` were `/`. The environment is the recorded one of
    /// `dir/proc/self/environ`, else that of this process. The error is that `dir` is no readable folder.
    pub fn sysroot(dir: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(dir, flags, Mode::empty())?;
        let root = Root { path: dir.to_owned(), dir: fd };
        let mut host = Self { files: Files::Below(root), env: BTreeMap::new() };
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
        matches!(self.files, Files::Live)
    }

    /// The whole content of a regular file; `path` is absolute, as the process on that machine sees it.
    ///
    /// A directory, a pipe or a device in a file's place is an error like any other, never a hang.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if let Files::Given(files) = &self.files {
            return match files.get(path) {
                Some(content) => Ok(content.clone()),
                None if self.is_dir(path) => Err(io::Error::from(io::ErrorKind::IsADirectory)),
                None => Err(io::Error::from(io::ErrorKind::NotFound)),
            };
        }
        let fd = self.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        let kind = SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT;
        match kind {
            SFlag::S_IFREG => {}
            SFlag::S_IFDIR => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
        // Nearly all of them are smaller, and say nothing of their size: the buffer would grow in steps, a call
        // for each.
        let mut content = Vec::with_capacity(4096);
        File::from(fd).take(MAX_FILE).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Whether there is anything at `path`.
    pub(crate) fn exists(&self, path: &Path) -> bool {
        match &self.files {
            Files::Given(files) => files.contains_key(path) || self.is_dir(path),
            _ => self.open(path, OFlag::O_PATH).is_ok(),
        }
    }

    /// Whether `path` is a directory.
    pub(crate) fn is_dir(&self, path: &Path) -> bool {
        match &self.files {
            Files::Given(files) => below(files, path).next().is_some(),
            _ => self.open(path, OFlag::O_PATH | OFlag::O_DIRECTORY).is_ok(),
        }
    }

    /// At most `most` of the directories right under `path`, in order; none where it cannot be listed.
    pub(crate) fn subdirectories(&self, path: &Path, most: usize) -> Vec<PathBuf> {
        if let Files::Given(files) = &self.files {
            let mut found: Vec<PathBuf> = Vec::new();
            for inner in below(files, path) {
                let mut parts = inner.components();
                let (Some(first), true) = (parts.next(), parts.next().is_some()) else { continue };
                let folder = path.join(first);
                if found.last() != Some(&folder) && found.len() < most {
                    found.push(folder);
                }
            }
            return found;
        }
        // Through the descriptor, so that a link in a recorded machine does not lead out of it.
        let Ok(fd) = self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) else {
            return Vec::new();
        };
        let Ok(mut folder) = Dir::from_fd(fd) else { return Vec::new() };
        let folders = folder.iter().flatten().filter_map(|entry| {
            let name = entry.file_name().to_bytes();
            // Some file systems leave the type out.
            let is_folder = match entry.file_type() {
                Some(kind) => kind == Type::Directory,
                None => self.is_dir(&path.join(OsStr::from_bytes(name))),
            };
            (is_folder && name != b"." && name != b"..").then(|| path.join(OsStr::from_bytes(name)))
        });
        let mut listed: Vec<PathBuf> = folders.take(most).collect();
        listed.sort();
        listed
    }

    fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC;
        let root = match &self.files {
            Files::Live => return Ok(open(path, flags, Mode::empty())?),
            Files::Below(root) => root,
            Files::Given(_) => return Err(io::Error::from(io::ErrorKind::NotFound)),
        };
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

/// The paths of the files below a folder, relative to it.
fn below<'a>(
    files: &'a BTreeMap<PathBuf, Vec<u8>>,
    folder: &'a Path,
) -> impl Iterator<Item = &'a Path> {
    let from = files.range::<Path, _>((Bound::Excluded(folder), Bound::Unbounded));
    from.map_while(move |(path, _)| path.strip_prefix(folder).ok())
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
