//! A container's limits: a group of its own with memory and CPU, cgroup v1 or v2.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::PATIENCE;

const NAME: &str = "throng-sizing";
const MIB: u64 = 1 << 20;
/// How often the room that is left is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Limits to measure under.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) name: &'static str,
    /// MiB.
    pub(crate) memory: u64,
    pub(crate) cpus: f64,
    /// Whether `--quick` measures it too.
    pub(crate) quick: bool,
}

pub(crate) const SIZES: &[Size] = &[
    Size { name: "256M-0.5", memory: 256, cpus: 0.5, quick: true },
    Size { name: "512M-0.5", memory: 512, cpus: 0.5, quick: false },
    Size { name: "512M-1.0", memory: 512, cpus: 1.0, quick: true },
    Size { name: "1G-1.5", memory: 1024, cpus: 1.5, quick: false },
];

/// The group; whoever is still in it when it is dropped is killed, and it goes.
pub(crate) struct Group {
    /// One folder on v2; on v1 that of memory and that of CPU.
    folders: Vec<PathBuf>,
    limit: u64,
}

impl Group {
    pub(crate) fn new(size: &Size) -> anyhow::Result<Self> {
        let top = Path::new("/sys/fs/cgroup");
        let v2 = top.join("cgroup.controllers").exists();
        let tops = if v2 { vec![top.into()] } else { vec![top.join("memory"), top.join("cpu")] };
        let limit = size.memory * MIB;
        let mut group = Self { folders: Vec::new(), limit };
        for top in &tops {
            sweep(top);
            let folder = top.join(format!("{NAME}-{}-{}", std::process::id(), size.name));
            fs::create_dir(&folder)
                .with_context(|| format!("cannot make {}; is this root?", folder.display()))?;
            group.folders.push(folder);
        }
        if v2 {
            // Both may be on already.
            let _ = fs::write(top.join("cgroup.subtree_control"), "+memory +cpu");
        }
        let quota = format!("{:.0}", size.cpus * 100_000.0);
        if v2 {
            group.set("memory.max", &limit.to_string())?;
            let _ = group.set("memory.swap.max", "0");
            group.set("cpu.max", &format!("{quota} 100000"))?;
            group.set("cpu.weight", "10000")?;
        } else {
            group.set("memory.limit_in_bytes", &limit.to_string())?;
            // Without swap accounting there is no such file.
            let _ = group.set("memory.memsw.limit_in_bytes", &limit.to_string());
            group.set("cpu.cfs_period_us", "100000")?;
            group.set("cpu.cfs_quota_us", &quota)?;
            // What else runs on this machine must not take a part of the quota away.
            group.set("cpu.shares", "100000")?;
        }
        Ok(group)
    }

    fn set(&self, file: &str, value: &str) -> anyhow::Result<()> {
        let mut paths = self.folders.iter().map(|folder| folder.join(file));
        let path = paths.find(|path| path.exists());
        let path = path.with_context(|| format!("no {file} in {:?}", self.folders))?;
        fs::write(&path, value).with_context(|| format!("cannot set {value} in {}", path.display()))
    }

    /// The files by which a process goes in.
    pub(crate) fn doors(&self) -> Vec<PathBuf> {
        self.folders.iter().map(|folder| folder.join("cgroup.procs")).collect()
    }

    /// How many were killed in it because memory ran out.
    pub(crate) fn kills(&self) -> anyhow::Result<u64> {
        let files = ["memory.events", "memory.oom_control"];
        let text =
            files.iter().find_map(|file| fs::read_to_string(self.folders[0].join(file)).ok());
        let text = text.context("the group does not count its kills")?;
        field(&text, "oom_kill").context("the kernel does not count kills")
    }

    /// Looks at the room that is left, until the watch ends.
    pub(crate) fn watch(&self) -> Watch {
        let folder = self.folders[0].clone();
        let limit = self.limit;
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut least = 1.0_f64;
            while !told.load(Ordering::Relaxed) {
                if let Some(used) = used(&folder) {
                    #[expect(clippy::cast_precision_loss, reason = "no box is that large")]
                    let free = (limit as f64 - used as f64) / limit as f64;
                    least = least.min(free);
                }
                sleep(LOOK);
            }
            least
        });
        Watch { over, thread }
    }

    fn processes(&self) -> Vec<Pid> {
        let text = fs::read_to_string(self.folders[0].join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && self.folders.iter().any(|folder| folder.exists()) {
            for pid in self.processes() {
                let _ = kill(pid, Signal::SIGKILL);
            }
            for folder in &self.folders {
                let _ = fs::remove_dir(folder);
            }
            sleep(Duration::from_millis(5));
        }
    }
}

/// Somebody who looks.
pub(crate) struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<f64>,
}

impl Watch {
    /// The least share of the limit that was free.
    pub(crate) fn end(self) -> anyhow::Result<f64> {
        self.over.store(true, Ordering::Relaxed);
        let least = self.thread.join().map_err(|_| anyhow::anyhow!("the watch has failed"))?;
        ensure!(least < 1.0, "the group's memory cannot be read");
        Ok(least)
    }
}

/// What is in use and cannot be dropped at once.
fn used(folder: &Path) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
    let usage = read("memory.current").or_else(|| read("memory.usage_in_bytes"))?;
    let stat = read("memory.stat")?;
    let inactive = field(&stat, "total_inactive_file").or_else(|| field(&stat, "inactive_file"));
    Some(usage.trim().parse::<u64>().ok()?.saturating_sub(inactive.unwrap_or(0)))
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Removes what a run that was killed has left, with whoever is in it.
fn sweep(top: &Path) {
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(NAME).and_then(|rest| rest.strip_prefix('-')) else {
            continue;
        };
        let owner = rest.split('-').next().and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
        if owner.is_some_and(|owner| kill(owner, None).is_err()) {
            let limit = 0;
            drop(Group { folders: vec![entry.path()], limit });
        }
    }
}
