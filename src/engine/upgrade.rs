//! Replacing our own program under the running fleet: same process, same children, same sockets.
//!
//! First the new program proves, as a child, that it understands our arguments, our settings and a copy
//! of the state. Then we become it: the state lies in a memory file, descriptors that it names stay
//! open, signals stay blocked and wait. Where it still cannot go on, it becomes the old program again,
//! which it was handed as a descriptor.

use std::cell::RefCell;
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, execve, fexecve};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{error, info};

use super::Engine;
use super::spawn::{Change, above};
use super::state::{ListenerState, State, VERSION};
use crate::control::Reply;
use crate::fleet::Ended;
use crate::probe::{Host, Others};
use crate::sockets::{Listener, give_up, handed_down};

/// Says what a program that was just started is to do: `prove`, with the state on standard input, or
/// `take:STATE:PROGRAM` by the numbers of two descriptors.
pub(super) const VARIABLE: &str = "THRONG_UPGRADE";
/// Why the program that was to come could not go on.
pub(super) const ERROR: &str = "THRONG_UPGRADE_ERROR";
/// The longest that a proof may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Descriptors that are handed down have numbers from here on, clear of those that workers inherit.
const FIRST_KEPT: i32 = 100;
/// Of what a proof says about its failure.
const LONGEST: u64 = 4 << 10;

/// What we go on with, in place of the program that was here before.
pub(crate) struct Resume {
    pub(super) state: State,
    /// `None` for a proof.
    way_back: Option<Rc<WayBack>>,
}

/// The program that was here before, and the state as it left it.
pub(crate) struct WayBack {
    /// What it is told, by the numbers that we were told.
    order: String,
    /// The memory file and the program; none once the fleet has gone on.
    fds: RefCell<Option<(OwnedFd, OwnedFd)>>,
}

impl Resume {
    /// What the environment hands over, if anything. An error has already tried the way back.
    pub(crate) fn from_env(host: &Host) -> anyhow::Result<Option<Self>> {
        let Some(order) = host.env(VARIABLE) else { return Ok(None) };
        if order == "prove" {
            return Ok(Some(Self { state: read(&mut io::stdin())?, way_back: None }));
        }
        let order = order.to_string_lossy().into_owned();
        let fds = numbers(&order).and_then(|(memory, program)| {
            Some((handed_down(memory).ok()?, handed_down(program).ok()?))
        });
        let Some(fds) = fds else {
            bail!("{VARIABLE} is \"{order}\", which is for our own use; unset it");
        };
        let way_back = Rc::new(WayBack { order, fds: RefCell::new(Some(fds)) });
        match way_back.state() {
            Ok(mut state) => {
                let error = host.env(ERROR).map(|error| error.to_string_lossy().into_owned());
                // The new program came up where nothing is said.
                state.upgrades += u32::from(error.is_none());
                state.upgrade_error = error;
                Ok(Some(Self { state, way_back: Some(way_back) }))
            }
            Err(error) => Err(way_back.go(&format!("{error:#}"))),
        }
    }

    /// What was used when nothing of ours ran.
    pub(crate) fn others(&self) -> Others {
        self.state.others.clone()
    }

    /// Whether nothing is to be taken over: the program shows only that it could.
    pub(crate) fn is_proof(&self) -> bool {
        self.way_back.is_none()
    }

    pub(crate) fn way_back(&self) -> Option<Rc<WayBack>> {
        self.way_back.clone()
    }

    /// The listening sockets.
    pub(crate) fn listeners(&self) -> anyhow::Result<Vec<Listener>> {
        let adopt = |state: &ListenerState| {
            let fd = handed_down(state.fd).context("a listening socket is gone")?;
            let listener = Listener::adopt(fd, state.name.clone());
            let mut listener = listener.map_err(anyhow::Error::msg)?;
            listener.asked.clone_from(&state.asked);
            for (slot, fd) in &state.slots {
                let fd = handed_down(*fd).context("the listening socket of a slot is gone")?;
                listener.slots.push((*slot, fd));
            }
            Ok(listener)
        };
        self.state.listeners.iter().map(adopt).collect()
    }
}

/// The two numbers of `take:MEMORY:PROGRAM`.
fn numbers(order: &str) -> Option<(i32, i32)> {
    let (memory, program) = order.strip_prefix("take:")?.split_once(':')?;
    Some((memory.parse().ok()?, program.parse().ok()?))
}

impl WayBack {
    pub(crate) fn is_open(&self) -> bool {
        self.fds.borrow().is_some()
    }

    /// The fleet has gone on: what was handed down is ours by copies, and the originals are closed.
    pub(super) fn close(&self, state: &State) {
        self.fds.take();
        let (memory, program) = numbers(&self.order).unzip();
        for fd in state.descriptors().into_iter().chain(memory).chain(program) {
            give_up(fd);
        }
    }

    fn state(&self) -> anyhow::Result<State> {
        let fds = self.fds.borrow();
        let (memory, _) = fds.as_ref().context("it is closed")?;
        let mut file = File::from(memory.try_clone()?);
        file.rewind()?;
        read(&mut file)
    }

    /// Becomes the old program again; returns only where not even that works.
    pub(crate) fn go(&self, why: &str) -> anyhow::Error {
        // It failed on its way back: the same again would not end.
        if std::env::var_os(ERROR).is_some() {
            return anyhow::anyhow!("{why}; and it was the program to go back to");
        }
        let state = self.state();
        let words = state.map_or_else(
            |_| words(),
            |state| state.words.iter().filter_map(|word| CString::new(word.bytes()).ok()).collect(),
        );
        let env = environment(&[(VARIABLE, &self.order), (ERROR, why)]);
        let fds = self.fds.borrow();
        let failure = fds.as_ref().map(|(_, program)| fexecve(program, &words, &env));
        anyhow::anyhow!("{why}; and the program before it cannot be started again: {failure:?}")
    }
}

/// A state that this build understands.
fn read(from: &mut impl Read) -> anyhow::Result<State> {
    let mut text = String::new();
    from.read_to_string(&mut text).context("the state cannot be read")?;
    let version =
        serde_json::from_str::<serde_json::Value>(&text).context("the state is no JSON")?;
    let version = version["version"].as_u64().unwrap_or_default();
    if version != u64::from(VERSION) {
        bail!("the state is of version {version} and this program understands {VERSION}");
    }
    serde_json::from_str(&text).context("the state is not what this program understands")
}

fn words() -> Vec<CString> {
    std::env::args_os().filter_map(|word| CString::new(word.as_bytes()).ok()).collect()
}

/// Ours, without what belongs to an earlier start.
fn environment(more: &[(&str, &str)]) -> Vec<CString> {
    let stale = [VARIABLE, ERROR, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];
    let kept = std::env::vars_os().filter(|(name, _)| !stale.iter().any(|stale| name == stale));
    let more = more.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let join = |(name, value): (OsString, OsString)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
    };
    kept.chain(more).filter_map(join).collect()
}

fn memory(text: &[u8]) -> anyhow::Result<OwnedFd> {
    let fd = memfd_create(c"throng-rs", MFdFlags::MFD_CLOEXEC).context("no memory file")?;
    let mut file = File::from(fd);
    file.write_all(text).and_then(|()| file.rewind()).context("cannot write the state")?;
    Ok(file.into())
}

/// The file of the program that is to come: the name that we were called by, which may lead elsewhere
/// by now, as long as it was ours at the start; else our own file, or what has taken its place.
pub(super) fn successor() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let name = std::env::args_os().next().unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_default();
    let path = std::env::var_os("PATH");
    let called = super::find(&name, path.as_deref(), &here).map(|found| here.join(found));
    let same = |called: &PathBuf| called.canonicalize().is_ok_and(|called| called == own);
    called.ok().filter(same).unwrap_or(own)
}

/// Where the kernel says that a file is deleted, another may stand at its place.
fn without_deleted(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    PathBuf::from(OsStr::from_bytes(bytes.strip_suffix(b" (deleted)").unwrap_or(bytes)))
}

/// The proof that is under way.
pub(super) struct Proof {
    pid: Pid,
    output: OwnedFd,
    answer: Option<oneshot::Sender<Reply>>,
    pub(super) deadline: Instant,
}

impl Engine {
    /// Begins: lets the new program prove that it can go on.
    pub(super) fn upgrade(&mut self, answer: Option<oneshot::Sender<Reply>>) {
        let refuse = |answer: Option<oneshot::Sender<Reply>>, why: String| {
            error!(event = "upgrade_refused", "no upgrade: {why}");
            if let Some(answer) = answer {
                // Who asked may have gone.
                let _ = answer.send(Reply::Refused(409, why));
            }
        };
        if self.fleet.is_ending() {
            return refuse(answer, "the launcher is stopping".to_owned());
        }
        if self.proof.is_some() {
            return refuse(answer, "one is under way".to_owned());
        }
        match self.prove() {
            Ok((pid, output)) => {
                let deadline = Instant::now() + PATIENCE;
                self.proof = Some(Proof { pid, output, answer, deadline });
            }
            Err(error) => refuse(answer, format!("{error:#}")),
        }
    }

    fn prove(&self) -> anyhow::Result<(Pid, OwnedFd)> {
        let program = without_deleted(&self.successor);
        let state = memory(&serde_json::to_vec(&self.save(&mut |fd| Ok(fd.as_raw_fd()))?)?)?;
        let output = memory(&[])?;
        let mut words = std::env::args_os();
        words.next();
        let child = Command::new(&program)
            .args(words)
            .env(VARIABLE, "prove")
            .env_remove("LISTEN_FDS")
            .stdin(Stdio::from(state))
            .stdout(Stdio::null())
            .stderr(Stdio::from(output.try_clone()?))
            .spawn();
        let child = child.with_context(|| format!("cannot start {}", program.display()))?;
        Ok((Pid::from_raw(child.id().cast_signed()), output))
    }

    /// The end of a child that may be the proof; true where it was.
    pub(super) fn proved(&mut self, pid: Pid, change: Change) -> bool {
        let Some(proof) = self.proof.take_if(|proof| proof.pid == pid) else { return false };
        let Change::Ended(how) = change else {
            self.proof = Some(proof);
            return true;
        };
        let reply = if how == Ended::Code(0) {
            self.proven = true;
            Reply::Json(serde_json::json!({ "upgrading": true, "upgrades": self.upgrades }))
        } else {
            let mut text = String::new();
            let mut output = File::from(proof.output);
            // What cannot be read is no reason.
            let _ = output.rewind().and_then(|()| output.take(LONGEST).read_to_string(&mut text));
            let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason");
            let why = format!("the new program cannot go on ({how}): {last}");
            error!(event = "upgrade_refused", "no upgrade: {why}");
            Reply::Refused(409, why)
        };
        if let Some(answer) = proof.answer {
            let _ = answer.send(reply);
        }
        true
    }

    /// A proof that takes too long is none.
    pub(super) fn end_proof(&self) {
        if let Some(proof) = &self.proof {
            let _ = kill(proof.pid, Signal::SIGKILL);
        }
    }

    /// Becomes the new program; returns only where that cannot be started.
    pub(super) fn become_successor(&mut self) -> anyhow::Error {
        match self.exec() {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn exec(&mut self) -> anyhow::Result<Infallible> {
        let program = without_deleted(&self.successor);
        let path = CString::new(program.as_os_str().as_bytes())?;
        info!(event = "upgrade", "becoming {}", program.display());
        self.pass_own_lines();
        // Copies that stay open over the exec, and go where it fails.
        let mut kept = Vec::new();
        let mut keep = |fd: BorrowedFd<'_>| -> io::Result<i32> {
            let copy = above(&fd, FIRST_KEPT)?;
            fcntl(&copy, FcntlArg::F_SETFD(FdFlag::empty()))?;
            let number = copy.as_raw_fd();
            kept.push(copy);
            Ok(number)
        };
        let state = self.save(&mut keep).context(
            "cannot keep what is open over the exec: copies have numbers from 100 on, and the limit of open files (ulimit -n) has to leave room for them",
        )?;
        let memory = memory(&serde_json::to_vec(&state)?)?;
        let before: OwnedFd = File::open("/proc/self/exe").context("no way back")?.into();
        let order = format!("take:{}:{}", keep(memory.as_fd())?, keep(before.as_fd())?);
        self.sharing.keep_open(true);
        let failure = execve(&path, &words(), &environment(&[(VARIABLE, &order)]));
        self.sharing.keep_open(false);
        failure.with_context(|| format!("cannot start {}", program.display()))
    }
}
