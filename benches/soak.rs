//! Ten minutes of everything at once on sixteen workers, and an account of every one of them at the end.
//!
//! ```sh
//! cargo bench --bench soak             # 600 seconds
//! cargo bench --bench soak -- 60
//! cargo bench --bench soak -- 60 7     # the faults of seed 7 again
//! ```
//!
//! Random kills, stops, reloads, restarts, scalings, upgrades, a launcher that is stopped for a moment,
//! has no descriptors left, loses its guard, is asked nonsense. At the end there must be sixteen ready
//! workers, no zombie, no more descriptors and no more memory than before, and the events must tell of
//! each process that was started that it has ended or is one of the sixteen. Ends with 1 where not.

mod common;
#[path = "common/events.rs"]
mod events;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use common::{LAUNCHER, Nest, Private, children_of, end, nobody_left, send};
use events::Account;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const WORKERS: u32 = 16;
const DEFAULT_SECONDS: u64 = 600;
/// What the last question or the last worker may leave for a moment.
const MORE_DESCRIPTORS: usize = 2;
/// Kept output and events grow up to their bounds, the allocator's fragments with them.
const MORE_KIB: u64 = 1024;
/// The longest that healing may take: the longest wait after an early end, and a grace.
const HEALING: Duration = Duration::from_secs(90);
/// A worker: serves, leaves an orphan in a session of its own now and then, obeys.
const WORKER: &str = "trap 'exit 0' TERM; echo up $THRONG_WORKER_ID; setsid sleep 1 & \
while :; do sleep 5 & wait $!; done";

/// The launcher under fire.
struct Target {
    child: Child,
    socket: PathBuf,
}

impl Target {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// One of our own commands against it: the status, what it printed, and its errors.
    fn ask(&self, args: &[&str]) -> anyhow::Result<(i32, String, String)> {
        let output = Command::new(LAUNCHER)
            .arg(args[0])
            .arg("--control")
            .arg(&self.socket)
            .args(&args[1..])
            .stdin(Stdio::null())
            .output()
            .context("cannot run the client")?;
        let (stdout, stderr) =
            (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned());
        Ok((output.status.code().unwrap_or(-1), String::from_utf8(stdout)?, stderr))
    }

    fn status(&self) -> anyhow::Result<Value> {
        let (status, text, errors) = self.ask(&["status", "--format", "json"])?;
        ensure!(status == 0, "status ends with {status}: {errors}");
        Ok(serde_json::from_str(&text)?)
    }

    fn workers(&self) -> anyhow::Result<Vec<Pid>> {
        let status = self.status()?;
        let workers = status["workers"].as_array().context("no workers in the status")?;
        let pid = |worker: &Value| Some(Pid::from_raw(worker["pid"].as_i64()?.try_into().ok()?));
        Ok(workers.iter().filter_map(pid).collect())
    }

    fn open_files(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    fn zombies(&self) -> anyhow::Result<usize> {
        let zombie = |pid: &Pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
        };
        Ok(children_of(self.pid())?.iter().filter(|pid| zombie(pid)).count())
    }

    /// Waits until all that there should be serve and nothing is under way.
    fn heal(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + HEALING;
        loop {
            let status = self.status()?;
            let whole =
                status["workers"].as_array().is_some_and(|all| all.len() == WORKERS as usize);
            let quiet = status["ready"] == true && status["rollout"].is_null();
            if whole && quiet && self.zombies()? == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not whole after {HEALING:?}: {status:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn main() -> anyhow::Result<()> {
    let numbers: Vec<u64> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let seconds = numbers.first().copied().unwrap_or(DEFAULT_SECONDS);
    let seed = numbers.get(1).copied().unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    println!("{seconds} s with seed {seed}");
    let nest = Nest::new()?;
    let socket = nest.fifo().with_file_name("control");
    let mut command = nest.command(LAUNCHER);
    command.args([&format!("--workers={WORKERS}"), "--grace=2s", "--max-restarts=1000000"]);
    command.arg("--max-workers=24").arg("--control").arg(&socket);
    command.args(["--", "sh", "-c", WORKER]);
    let target = Target { child: command.spawn()?, socket: socket.clone() };
    wait_for(&socket)?;
    let account = Account::follow(&socket);
    target.heal()?;
    let (files, memory) = (target.open_files()?, Private::of(target.child.id())?);
    let mut done: BTreeMap<&str, u32> = BTreeMap::new();
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < deadline {
        let fault = strike(&target, &mut random)?;
        *done.entry(fault).or_default() += 1;
        std::thread::sleep(Duration::from_millis(random.u64(..400)));
    }
    for pid in target.workers()? {
        // Some were stopped and forgotten.
        let _ = kill(pid, Signal::SIGCONT);
    }
    target.ask(&["scale", &WORKERS.to_string()])?;
    target.heal()?;
    println!("faults: {done:?}");
    check(&target, files, memory)?;
    let alive = target.workers()?;
    send(&target.child, Signal::SIGTERM)?;
    let status = end(target.child)?;
    println!("stopped: {status}");
    ensure!(matches!(status.code(), Some(0 | 137)), "the launcher ended with {status}");
    let told = account.settle(&alive)?;
    println!("{told}");
    nobody_left()
}

fn wait_for(socket: &PathBuf) -> anyhow::Result<()> {
    let deadline = Instant::now() + common::PATIENCE;
    while UnixStream::connect(socket).is_err() {
        ensure!(Instant::now() < deadline, "no control socket");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What is there now beside what was there before.
fn check(target: &Target, files: usize, memory: Private) -> anyhow::Result<()> {
    let deadline = Instant::now() + common::PATIENCE;
    // The connection of the last question may be there still.
    while target.open_files()? > files + MORE_DESCRIPTORS {
        ensure!(Instant::now() < deadline, "{} descriptors, {files} before", target.open_files()?);
        std::thread::sleep(Duration::from_millis(50));
    }
    let now = Private::of(target.child.id())?;
    println!("descriptors: {} ({files} before)", target.open_files()?);
    println!("written memory: {} KiB ({} before)", now.anonymous, memory.anonymous);
    ensure!(now.anonymous <= memory.anonymous + MORE_KIB, "more memory than before");
    Ok(())
}

/// One fault; its name.
fn strike(target: &Target, random: &mut fastrand::Rng) -> anyhow::Result<&'static str> {
    let workers = target.workers()?;
    let mut victim = || workers.get(random.usize(..workers.len().max(1))).copied();
    let hit = |pid: Option<Pid>, signal: Signal| {
        // It may just have gone by itself.
        pid.map(|pid| kill(pid, signal))
    };
    let launcher = target.pid();
    let first = victim();
    Ok(match random.u32(..100) {
        0..25 => {
            hit(first, Signal::SIGKILL);
            "kill"
        }
        25..35 => {
            hit(first, Signal::SIGSEGV);
            "segv"
        }
        35..42 => {
            hit(first, Signal::SIGSTOP);
            "stop a worker"
        }
        42..50 => {
            for pid in &workers {
                hit(Some(*pid), Signal::SIGCONT);
            }
            "go on"
        }
        50..58 => {
            let size = random.u32(8..=24).to_string();
            target.ask(&["scale", &size])?;
            "scale"
        }
        58..64 => {
            kill(
                launcher,
                *random
                    .choice([Signal::SIGTTIN, Signal::SIGTTOU].iter())
                    .unwrap_or(&Signal::SIGTTIN),
            )?;
            "one more or less"
        }
        64..70 => {
            kill(launcher, Signal::SIGHUP)?;
            "reload"
        }
        70..76 => {
            // Answered when it is over: not waited for here.
            let id = random.u32(1..=WORKERS);
            let mut stream = UnixStream::connect(&target.socket)?;
            write!(stream, "POST /v1/workers/{id}/restart HTTP/1.1\r\nHost: x\r\n\r\n")?;
            "restart"
        }
        76..82 => {
            kill(launcher, Signal::SIGUSR2)?;
            "upgrade"
        }
        82..87 => {
            kill(launcher, Signal::SIGSTOP)?;
            hit(first, Signal::SIGKILL);
            std::thread::sleep(Duration::from_millis(100));
            kill(launcher, Signal::SIGCONT)?;
            "stop the launcher"
        }
        87..91 => starve(launcher, first)?,
        91..95 => {
            for child in children_of(launcher)? {
                let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
                if name == "throng-guard\n" {
                    let _ = kill(child, Signal::SIGKILL);
                }
            }
            "kill the guard"
        }
        _ => {
            let mut stream = UnixStream::connect(&target.socket)?;
            let _ = stream.write_all(b"\0\xff garbage\r\n\r\n");
            let _ = stream.read(&mut [0; 16]);
            "garbage"
        }
    })
}

/// No descriptor more for a while.
fn starve(launcher: Pid, victim: Option<Pid>) -> anyhow::Result<&'static str> {
    let limit = |soft: &str| -> anyhow::Result<()> {
        let mut command = Command::new("prlimit");
        command.args(["--pid", &launcher.to_string(), &format!("--nofile={soft}:")]);
        if !command.status().context("cannot run prlimit (util-linux)")?.success() {
            bail!("prlimit refuses {soft}");
        }
        Ok(())
    };
    let before = fs::read_to_string(format!("/proc/{launcher}/limits"))?;
    let before = before.lines().find_map(|line| line.strip_prefix("Max open files"));
    let before = before.and_then(|line| line.split_whitespace().next()).context("no limit")?;
    limit("8")?;
    if let Some(pid) = victim {
        let _ = kill(pid, Signal::SIGKILL);
    }
    std::thread::sleep(Duration::from_millis(300));
    limit(before)?;
    Ok("no descriptors")
}
