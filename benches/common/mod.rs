//! What the benchmarks need: a place for temporary files that takes every process with it, small C
//! programs built on the spot, the FIFO in which workers tell that they are up, and the table.

#![allow(dead_code, reason = "each benchmark is a program of its own and needs its part of this")]

pub(crate) mod nodes;
pub(crate) mod table;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::libc::O_NONBLOCK;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, mkfifo};
use serde_json::Value;
use tempfile::TempDir;

/// The launcher in the profile of this benchmark.
pub(crate) const LAUNCHER: &str = env!("CARGO_BIN_EXE_throng-rs");
/// Nothing that is waited for here takes longer unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One of our own commands against the launcher that has this control socket.
pub(crate) fn ask(control: &Path, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(LAUNCHER);
    command.arg(args[0]).arg("--control").arg(control).args(&args[1..]);
    let output = command.stdin(Stdio::null()).output().context("cannot run the client")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{args:?} ends with {}: {errors}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// How that one stands.
pub(crate) fn status(control: &Path) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&ask(control, &["status", "--format", "json"])?)?)
}

/// A temporary folder, and the subreaper of all that is started: what a launcher leaves behind comes
/// to us and is seen. Ends every child when dropped, also by a panic.
pub(crate) struct Nest {
    dir: TempDir,
    fifo: PathBuf,
    arrivals: File,
}

impl Nest {
    pub(crate) fn new() -> anyhow::Result<Self> {
        set_child_subreaper(true).context("cannot become a subreaper")?;
        let dir = TempDir::new().context("cannot make a temporary folder")?;
        let fifo = dir.path().join("up");
        mkfifo(&fifo, Mode::S_IRWXU).context("cannot make a FIFO")?;
        // Open for writing too: it never ends, however many writers come and go.
        let mut how = OpenOptions::new();
        let arrivals = how.read(true).write(true).custom_flags(O_NONBLOCK).open(&fifo);
        Ok(Self { dir, fifo, arrivals: arrivals.context("cannot open a FIFO")? })
    }

    /// Builds `NAME.c` of this folder and returns the program's path.
    pub(crate) fn build(&self, name: &str, flags: &[&str]) -> anyhow::Result<PathBuf> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("benches/{name}.c"));
        let program = self.dir.path().join(name);
        let built = Command::new("cc")
            .args(["-O2", "-Wall", "-Werror"])
            .args(flags)
            .arg("-o")
            .args([&program, &source])
            .status()
            .context("cannot run cc; install a C compiler")?;
        ensure!(built.success(), "cc does not build {}: {built}", source.display());
        Ok(program)
    }

    /// A command that runs here, in silence, untouched by settings of whoever runs the benchmark.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let ours = ["THRONG_", "WEB_", "LISTEN_", "PORT"];
            if ours.iter().any(|start| name.to_string_lossy().starts_with(start)) {
                command.env_remove(&name);
            }
        }
        command
    }

    /// The FIFO that workers write to, as their first argument.
    pub(crate) fn fifo(&self) -> &Path {
        &self.fifo
    }

    /// Waits until at least `count` processes have told that they are up since the last call, and
    /// returns the pids of all that have.
    pub(crate) fn arrivals(&self, count: usize) -> anyhow::Result<Vec<Pid>> {
        let records = self.records::<4>(count)?;
        Ok(records.into_iter().map(|pid| Pid::from_raw(i32::from_ne_bytes(pid))).collect())
    }

    /// The same of workers that tell when they came up too, on the clock of [`now`].
    pub(crate) fn stamps(&self, count: usize) -> anyhow::Result<Vec<(Pid, Duration)>> {
        let records = self.records::<16>(count)?;
        let number = |bytes: &[u8]| bytes.try_into().map(i64::from_ne_bytes);
        let stamp = |record: [u8; 16]| -> anyhow::Result<_> {
            let (pid, time) = record.split_at(8);
            let pid = Pid::from_raw(i32::try_from(number(pid)?)?);
            Ok((pid, Duration::from_nanos(u64::try_from(number(time)?)?)))
        };
        records.into_iter().map(stamp).collect()
    }

    /// Reads at least `count` records of so many bytes.
    fn records<const SIZE: usize>(&self, count: usize) -> anyhow::Result<Vec<[u8; SIZE]>> {
        let deadline = Instant::now() + PATIENCE;
        let mut records = Vec::with_capacity(count);
        loop {
            while let Some(record) = self.record()? {
                records.push(record);
            }
            if records.len() >= count {
                return Ok(records);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(self.arrivals.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut polled, PollTimeout::try_from(left)?)?;
            ensure!(ready > 0, "{} of {count} workers came up in {PATIENCE:?}", records.len());
        }
    }

    fn record<const SIZE: usize>(&self) -> anyhow::Result<Option<[u8; SIZE]>> {
        // Writes of a few bytes are never torn.
        let mut record = [0; SIZE];
        match (&self.arrivals).read_exact(&mut record) {
            Ok(()) => Ok(Some(record)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("cannot read a FIFO"),
        }
    }
}

/// The time of `CLOCK_MONOTONIC`, which other processes can read too.
pub(crate) fn now() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

impl Drop for Nest {
    fn drop(&mut self) {
        // By pid, and only our own children; theirs come to us when they have gone.
        for child in left_behind() {
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
        }
    }
}

/// Our children one after the other, as long as there are any; those that have ended are reaped.
fn left_behind() -> impl Iterator<Item = Pid> {
    std::iter::from_fn(|| {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(_) => return None,
                Ok(WaitStatus::StillAlive) => return children_of(me()).ok()?.first().copied(),
                Ok(_) => {}
            }
        }
    })
}

pub(crate) fn me() -> Pid {
    Pid::this()
}

/// The processes whose parent is `parent`, zombies among them.
pub(crate) fn children_of(parent: Pid) -> anyhow::Result<Vec<Pid>> {
    let all = procfs::process::all_processes().context("cannot read /proc")?;
    let theirs = all
        .flatten()
        .filter(|process| process.stat().is_ok_and(|stat| stat.ppid == parent.as_raw()));
    Ok(theirs.map(|process| Pid::from_raw(process.pid())).collect())
}

/// Fails where any process has come to us or was left: to the kernel we have no child at all.
pub(crate) fn nobody_left() -> anyhow::Result<()> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Err(Errno::ECHILD) => Ok(()),
        Ok(WaitStatus::StillAlive) => {
            bail!("left behind: {:?}", children_of(me())?)
        }
        other => bail!("left a zombie behind: {other:?}"),
    }
}

/// Sends `signal` to a child of ours.
pub(crate) fn send(child: &Child, signal: Signal) -> anyhow::Result<()> {
    kill(Pid::from_raw(child.id().cast_signed()), signal).context("cannot send a signal")
}

/// Waits for a child's end, and kills it where that takes too long.
pub(crate) fn end(mut child: Child) -> anyhow::Result<ExitStatus> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let (tell, told) = mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let _ = tell.send(child.wait());
    });
    let status = told.recv_timeout(PATIENCE);
    if status.is_err() {
        let _ = kill(pid, Signal::SIGKILL);
    }
    let _ = waiter.join();
    Ok(status.with_context(|| format!("pid {pid} does not end in {PATIENCE:?}"))??)
}

/// The private memory of a process (USS), in KiB: what would be free if it ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Private {
    pub(crate) total: u64,
    /// What it has written; the rest is files that nobody else maps at the moment, mostly its own code.
    pub(crate) anonymous: u64,
}

impl Private {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        // A page of a file that was just built is dirty in the page cache, and counts as dirty here.
        let total = kib(pid, "Private_Clean:")? + kib(pid, "Private_Dirty:")?;
        Ok(Self { total, anonymous: kib(pid, "Anonymous:")? })
    }

    /// Of a launcher and its guard: with what both share, which neither has for itself, and with their
    /// part of what they share with others (PSS).
    pub(crate) fn of_both(launcher: &Child) -> anyhow::Result<Self> {
        let launcher = Pid::from_raw(launcher.id().cast_signed());
        let mut both = Self { total: 0, anonymous: 0 };
        let mut guards = children_of(launcher)?;
        guards.retain(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name == "throng-guard\n"
        });
        ensure!(guards.len() == 1, "the launcher has {} guards", guards.len());
        for pid in [launcher, guards[0]] {
            let pid = pid.as_raw().cast_unsigned();
            both.total += kib(pid, "Pss:")?;
            both.anonymous += kib(pid, "Pss_Anon:")?;
        }
        Ok(both)
    }
}

/// A number of `/proc/PID/smaps_rollup`.
fn kib(pid: u32, name: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.with_context(|| format!("no {name} in {path}"))?;
    number.parse().with_context(|| format!("no number after {name} in {path}"))
}
