//! A load of the user's: a shell in a process group of its own, of which nothing outlives its step.

use std::io::{self, PipeWriter};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::load::Target;
use super::output::Output;

/// Leads the group, so that its number stays ours until we reap it. It ends the group when we are gone, however
/// we went: then nobody holds the other end of its input.
const KEEPER: &str = "trap '' HUP INT TERM; read -r _; kill -KILL 0";
/// So long may pass until those are gone that were killed; what is stuck in the kernel stays.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// The load; it ends with this, and so does everybody whom it has started.
pub(super) struct External {
    shell: Child,
    output: Output,
    /// Dropped last: the group, and then those that have left it.
    group: Group,
}

impl External {
    /// Must be called inside a `LocalSet`.
    pub(super) fn start(
        command: &str,
        target: Option<&Target>,
        path: &str,
        workers: u32,
    ) -> io::Result<Self> {
        let group = Group::new()?;
        let (output, writer) = Output::new()?;
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).env("WORKERS", workers.to_string());
        shell.process_group(group.number().as_raw());
        if let Some(target) = target {
            shell.env("URL", format!("{target}{path}"));
            if let Some(port) = target.port() {
                shell.env("PORT", port.to_string());
            }
        }
        let errors = writer.try_clone()?;
        let shell = shell.stdin(Stdio::null()).stdout(writer).stderr(errors).spawn()?;
        Ok(Self { shell, output, group })
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.shell.try_wait()
    }

    /// What it printed, as far as it is kept.
    pub(super) async fn text(&self) -> String {
        // Something that it left running may hold the pipe open.
        for _ in 0..20 {
            if self.output.is_whole() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.output.text()
    }
}

impl Drop for External {
    fn drop(&mut self) {
        self.group.kill();
        // It may have left the group itself, by `setsid` as its only command.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// The process group of a load.
struct Group {
    keeper: Child,
    _held: PipeWriter,
    /// Children of ours from before, who have nothing to do with it.
    strangers: Vec<Pid>,
}

impl Group {
    fn new() -> io::Result<Self> {
        // Who leaves the group, as by setsid, comes to us when its parent ends. As process 1 we have everybody's
        // orphans, and they end with us.
        if !is_first() {
            let _ = set_child_subreaper(true);
        }
        let strangers = children();
        let (reader, held) = io::pipe()?;
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER]).process_group(0);
        let keeper = keeper.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { keeper, _held: held, strangers })
    }

    fn number(&self) -> Pid {
        Pid::from_raw(self.keeper.id().cast_signed())
    }

    fn kill(&self) {
        let _ = killpg(self.number(), Signal::SIGKILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        let _ = self.keeper.wait();
        if is_first() {
            return;
        }
        let begin = Instant::now();
        loop {
            let left: Vec<Pid> =
                children().into_iter().filter(|pid| !self.strangers.contains(pid)).collect();
            if left.is_empty() || begin.elapsed() > PATIENCE {
                return;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn is_first() -> bool {
    std::process::id() == 1
}

/// Ours right now.
fn children() -> Vec<Pid> {
    let own = std::process::id().cast_signed();
    let Ok(all) = procfs::process::all_processes() else { return Vec::new() };
    let stats = all.flatten().filter_map(|process| process.stat().ok());
    stats.filter(|stat| stat.ppid == own).map(|stat| Pid::from_raw(stat.pid)).collect()
}
