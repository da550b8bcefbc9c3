//! A Docker engine of our own: its data, its socket and its containerd live in a temporary folder, and nothing of it outlives
//! the `Engine`. No image can be pulled, so one is made of the static build and busybox.

use super::lines::Lines;
use super::{busybox, command, copy, run, static_binary};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The image with `/throng-rs` as its entry point and `/bin/sh`.
const IMAGE: &str = "throng";

/// Begins the names of the folder and of the cgroup; the pid of the test follows, so that a later run knows what is left over.
const NAME: &str = "throng-docker-";

/// What an engine leaves under /run, whatever its own folders are; deepest first.
const RUN_FOLDERS: [&str; 4] =
    ["/run/docker/plugins", "/run/docker", "/run/containerd/s", "/run/containerd"];

pub(crate) struct Engine {
    daemon: Child,
    docker: PathBuf,
    folder: TempDir,
    /// The parent of all containers' cgroups, of this engine alone.
    group: String,
    /// Those of `RUN_FOLDERS` that were not there before.
    made: Vec<&'static str>,
}

impl Engine {
    /// Starts the engine and makes the image; an error says why that cannot be here.
    pub(crate) fn start() -> Result<Self, String> {
        let (binary, busybox) = (static_binary()?, busybox()?);
        let (dockerd, docker, setpriv) =
            (command("dockerd")?, command("docker")?, command("setpriv")?);
        command("iptables")?;
        if !getuid().is_root() {
            return Err("a Docker engine needs root".to_owned());
        }
        sweep();
        let group = format!("{NAME}{}", std::process::id());
        let folder = tempfile::Builder::new()
            .prefix(&format!("{group}."))
            .tempdir()
            .map_err(|error| error.to_string())?;
        let path = folder.path();
        // The engine says when it is ready, as to systemd; so nobody has to ask again and again.
        let ready = UnixDatagram::bind(path.join("ready")).map_err(|error| error.to_string())?;
        ready
            .set_read_timeout(Some(Duration::from_millis(200)))
            .map_err(|error| error.to_string())?;
        let log = File::create(path.join("log")).map_err(|error| error.to_string())?;

        let mut daemon = Command::new(setpriv);
        // Ends with us even where we are killed and no destructor runs; with TERM, so that it ends its own children too.
        daemon.args(["--pdeathsig", "TERM", "--"]).arg(dockerd);
        for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")]
        {
            daemon.arg(flag).arg(path.join(name));
        }
        daemon.arg("-H").arg(socket(path));
        // No network, and none of the machine's settings for one.
        daemon.args([
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
        ]);
        // The same cgroups with and without systemd.
        daemon
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent"])
            .arg(format!("/{group}"));
        daemon.env("NOTIFY_SOCKET", path.join("ready")).env_remove("DOCKER_HOST");
        daemon.stdout(log.try_clone().map_err(|error| error.to_string())?).stderr(log);
        let made = RUN_FOLDERS.into_iter().filter(|folder| !Path::new(folder).exists()).collect();
        let daemon = daemon.spawn().map_err(|error| format!("{daemon:?}: {error}"))?;

        // From here on the destructor cleans up, also where the next lines fail.
        let mut engine = Self { daemon, docker, folder, group, made };
        engine.await_ready(&ready)?;
        engine.make_image(&binary, &busybox)?;
        Ok(engine)
    }

    fn await_ready(&mut self, ready: &UnixDatagram) -> Result<(), String> {
        let end = Instant::now() + Duration::from_mins(1);
        let mut message = [0; 512];
        while Instant::now() < end {
            match ready.recv(&mut message) {
                Ok(length) if String::from_utf8_lossy(&message[..length]).contains("READY=1") => {
                    return Ok(());
                }
                _ if matches!(self.daemon.try_wait(), Ok(Some(_))) => break,
                _ => {}
            }
        }
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        Err(format!("dockerd does not start here:\n{}", tail.join("\n")))
    }

    fn make_image(&self, binary: &Path, busybox: &Path) -> Result<(), String> {
        let root = self.folder.path().join("image");
        copy(binary, &root.join("throng-rs"))?;
        copy(busybox, &root.join("bin/busybox"))?;
        for name in ["sh", "sleep"] {
            symlink("busybox", root.join("bin").join(name)).map_err(|error| error.to_string())?;
        }
        fs::create_dir(root.join("tmp")).map_err(|error| error.to_string())?;
        let archive = self.folder.path().join("image.tar");
        run(Command::new("tar").arg("cf").arg(&archive).arg("-C").arg(&root).arg("."))?;
        let entry = r#"ENTRYPOINT ["/throng-rs"]"#;
        run(self.client().args(["import", "-c", entry]).arg(&archive).arg(IMAGE)).map(drop)
    }

    /// The command line client, turned to this engine and to no configuration of the user.
    ///
    /// It is given a minute: a container that never ends must fail its test, not hold up the run.
    fn client(&self) -> Command {
        let mut client = Command::new("timeout");
        // In the foreground, so that it stays in the process group of the test.
        client.args(["--foreground", "--kill-after=5", "60"]).arg(&self.docker);
        client.env("DOCKER_CONFIG", self.folder.path()).arg("-H").arg(socket(self.folder.path()));
        client
    }

    /// What a client command prints.
    ///
    /// # Panics
    ///
    /// Where it fails.
    pub(crate) fn docker(&self, args: &[&str]) -> String {
        let output = run(self.client().args(args)).unwrap_or_else(|error| panic!("{error}"));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Runs a container to its end: `docker run [LIMITS] IMAGE [ARGS]`.
    pub(crate) fn run(&self, limits: &[&str], args: &[&str]) -> Output {
        let mut client = self.client();
        client.args(["run", "--rm", "--network", "none"]).args(limits).arg(IMAGE).args(args);
        client.output().unwrap_or_else(|error| panic!("{client:?}: {error}"))
    }

    /// The shell line that runs a container with the terminal on which it is typed: `docker run -it`.
    pub(crate) fn interactive(&self, args: &[&str]) -> String {
        let mut client = self.client();
        client.args(["run", "-it", "--rm", "--network", "none", IMAGE]).args(args);
        let words = [client.get_program()].into_iter().chain(client.get_args());
        let quoted =
            words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")));
        let quoted: Vec<String> = quoted.collect();
        format!("env DOCKER_CONFIG={} {}", self.folder.path().display(), quoted.join(" "))
    }

    /// Starts a container in the background; without a network, if nothing else is said.
    pub(crate) fn start_container(&self, limits: &[&str], args: &[&str]) -> Container<'_> {
        let said = limits.contains(&"--network");
        let network = if said { &[][..] } else { &["--network", "none"] };
        let id = self.docker(&[&["run", "-d"], network, limits, &[IMAGE], args].concat());
        let mut logs = self.client();
        // What the launcher says itself stays out of it.
        logs.args(["logs", "-f", &id]).stderr(Stdio::null());
        let logs = Lines::spawn(&mut logs).unwrap_or_else(|error| panic!("{error}"));
        Container { engine: self, id, logs }
    }

    /// The processes that only this engine can have started: each one names our folder.
    fn processes(&self) -> Vec<Pid> {
        let folder = self.folder.path().to_string_lossy().into_owned();
        let own = std::process::id().cast_signed();
        pids()
            .filter(|pid| *pid != own && proc_text(*pid, "cmdline").contains(&folder))
            .map(Pid::from_raw)
            .collect()
    }
}

impl Drop for Engine {
    /// Goes on whatever fails: the next step may still clean up its own part.
    fn drop(&mut self) {
        if let Ok(left) = run(self.client().args(["ps", "-aq"])) {
            let left = String::from_utf8_lossy(&left.stdout).into_owned();
            for id in left.split_whitespace() {
                let _ = run(self.client().args(["rm", "-f", id]));
            }
        }
        let _ = kill(Pid::from_raw(self.daemon.id().cast_signed()), Signal::SIGTERM);
        if !within(Duration::from_secs(20), || matches!(self.daemon.try_wait(), Ok(Some(_)))) {
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
        // containerd and its shims, where the engine could not end them itself.
        within(Duration::from_secs(5), || {
            let left = self.processes();
            for pid in &left {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            left.is_empty()
        });
        unmount(self.folder.path());
        remove_groups(&self.group);
        for folder in &self.made {
            // Only where it is empty: another engine may have come meanwhile.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A container in the background; it is gone with its owner.
pub(crate) struct Container<'a> {
    engine: &'a Engine,
    pub(crate) id: String,
    /// Its standard output.
    pub(crate) logs: Lines,
}

impl Container<'_> {
    /// Runs a shell line inside.
    pub(crate) fn shell(&self, line: &str) -> String {
        self.engine.docker(&["exec", &self.id, "/bin/sh", "-c", line])
    }

    /// One field of `docker inspect`.
    pub(crate) fn inspect(&self, field: &str) -> String {
        self.engine.docker(&["inspect", "-f", &format!("{{{{{field}}}}}"), &self.id])
    }

    /// `docker stop`, and how long it took.
    pub(crate) fn stop(&self) -> Duration {
        let started = Instant::now();
        self.engine.docker(&["stop", &self.id]);
        started.elapsed()
    }

    /// The processes of the machine that are in this container's cgroups.
    pub(crate) fn processes(&self) -> Vec<i32> {
        pids().filter(|pid| proc_text(*pid, "cgroup").contains(&self.id)).collect()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = run(self.engine.client().args(["rm", "-f", &self.id]));
    }
}

/// Removes what runs left that were killed; their engines ended by the signal that follows a parent's death.
fn sweep() {
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let dead = |path: &Path| {
        let pid = path.file_name()?.to_str()?.strip_prefix(NAME)?.split('.').next()?;
        (pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
            .then(|| format!("{NAME}{pid}"))
    };
    for folder in names(&std::env::temp_dir()) {
        if dead(&folder).is_some() {
            unmount(&folder);
            let _ = fs::remove_dir_all(folder);
        }
    }
    let base = Path::new("/sys/fs/cgroup");
    let groups = names(base).into_iter().flat_map(|hierarchy| names(&hierarchy)).chain(names(base));
    let groups: std::collections::BTreeSet<String> =
        groups.filter_map(|group| dead(&group)).collect();
    for group in groups {
        remove_groups(&group);
    }
}

/// Unmounts all that lies in a folder, the innermost first.
fn unmount(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points: Vec<_> =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new).collect();
    for point in points.into_iter().rev().filter(|point| point.starts_with(folder)) {
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
}

fn socket(folder: &Path) -> String {
    format!("unix://{}/sock", folder.display())
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A file of a process; empty where it has just ended.
fn proc_text(pid: i32, file: &str) -> String {
    let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// Asks until it holds. For what sends no event: the end of processes that are not our children, a child's end with a limit.
pub(crate) fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Removes a cgroup of this name and those below it from each hierarchy, v1 or v2.
fn remove_groups(name: &str) {
    let base = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path());
    for group in hierarchies.chain([base.to_owned()]).map(|hierarchy| hierarchy.join(name)) {
        // A process that was just killed holds its group for a moment.
        within(Duration::from_secs(2), || {
            remove_tree(&group);
            !group.exists()
        });
    }
}

/// `rmdir` from the leaves up: the files of a cgroup go with it and cannot be removed one by one.
fn remove_tree(group: &Path) {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path());
    }
    let _ = fs::remove_dir(group);
}
