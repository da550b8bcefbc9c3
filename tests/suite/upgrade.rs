//! Replacing the launcher's own program under a running fleet.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::driven::{Fleet, WORKER};
use crate::support::{Run, Source, children, done, gone, number, throng};

impl Fleet {
    /// One whose program file may be replaced.
    fn replaceable(args: &[&str], command: &[&str]) -> Self {
        let real = Path::new(env!("CARGO_BIN_EXE_throng-rs"));
        let dir = tempfile::tempdir_in(real.parent().unwrap()).unwrap();
        let program = dir.path().join("throng-rs");
        fs::hard_link(real, &program).unwrap();
        let mut start = Command::new(&program);
        start.args(args).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        Self::of(start, dir, command)
    }

    /// Two workers, both ready; their pids.
    fn replaceable_two() -> (Self, Vec<i32>) {
        let mut fleet = Self::replaceable(&["--workers", "2"], &["sh", "-c", WORKER]);
        let pids = fleet.both_ready().iter().map(|line| number(line, "pid=")).collect();
        (fleet, pids)
    }

    /// Puts another program in the place of ours, as a package manager does.
    fn install(&self, text: &str) {
        let new = self.dir.path().join("new");
        // By another process: one that a test beside us forks must not have it open for writing.
        let mut command = Command::new("sh");
        done(command.args(["-c", "printf %s \"$1\" > \"$2\"", "sh", text]).arg(&new));
        fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, self.dir.path().join("throng-rs")).unwrap();
    }

    fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.run.pid())).unwrap().count()
    }
}

/// The fields of a process's status that a worker inherits.
fn inherited(pid: i32) -> (Vec<String>, String) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let masks =
        status.lines().filter(|line| line.starts_with("SigBlk") || line.starts_with("SigIgn"));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    (masks.map(str::to_owned).collect(), files.to_owned())
}

fn end(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn everything_goes_on_in_the_same_process() {
    let (mut fleet, pids) = Fleet::replaceable_two();
    let launcher = fleet.run.pid();
    let guards: Vec<i32> =
        children(launcher, true).into_iter().filter(|c| !pids.contains(c)).collect();
    end(pids[1], Signal::SIGKILL);
    let second = number(&fleet.run.wait("up id=2 gen=2"), "pid=");
    let before = inherited(pids[0]);
    let files = fleet.open_files();
    for round in 1..=5 {
        let told = fleet.ask(&["upgrade"]);
        assert_eq!(told.status, 0, "{told:?}");
        let status = fleet.json(&["status"]);
        assert_eq!(
            (&status["upgrades"], &status["pid"]),
            (&round.into(), &launcher.as_raw().into())
        );
        assert_eq!(fleet.pids(), [pids[0], second]);
    }
    // A connection of the last question may be there for a moment still.
    let deadline = std::time::Instant::now() + crate::support::LIMIT;
    while fleet.open_files() > files {
        assert!(std::time::Instant::now() < deadline, "descriptors are left behind");
        std::thread::yield_now();
    }
    let after = children(launcher, true);
    assert!(
        guards.iter().all(|guard| after.contains(guard)),
        "the guard stays: {guards:?} {after:?}"
    );
    let status = fleet.json(&["status"]);
    assert_eq!(status["workers"][1]["restarts"], 1, "counters stay");
    assert_eq!(status["workers"][1]["last_exit"]["text"], "SIGKILL");
    let logs = fleet.ask(&["logs", "1"]).stdout;
    assert!(logs.contains("up id=1 gen=1"), "output is kept: {logs}");
    let events = fleet.ask(&["events", "--format", "json"]).stdout;
    let numbers: Vec<u64> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["number"].as_u64().unwrap())
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    // Supervision goes on: an end is seen, a worker that starts now gets what the first ones got.
    end(pids[0], Signal::SIGKILL);
    let new = number(&fleet.run.wait("up id=1 gen=2"), "pid=");
    assert_eq!(inherited(new), before);
    gone(pids[0]);
    assert_eq!(fleet.run.stop(), 0);
    gone(new);
}

#[test]
fn usr2_upgrades_and_what_ends_meanwhile_is_seen() {
    let (mut fleet, mut pids) = Fleet::replaceable_two();
    for generation in 2..=5 {
        fleet.run.signal(Signal::SIGUSR2);
        end(pids[0], Signal::SIGKILL);
        pids[0] = number(&fleet.run.wait(&format!("up id=1 gen={generation}")), "pid=");
        fleet.run.wait_log("goes on in place of");
    }
    assert_eq!(fleet.pids(), pids);
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn no_line_of_a_worker_is_lost_doubled_or_torn() {
    let count = 10_000;
    let script = format!(
        "i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo line $i of $THRONG_WORKER_ID; done; echo end; exec sleep 1000"
    );
    let mut fleet = Fleet::replaceable(&["--workers", "2"], &["sh", "-c", &script]);
    for _ in 0..2 {
        fleet.run.wait_log("is started");
    }
    for _ in 0..5 {
        assert_eq!(fleet.ask(&["upgrade"]).status, 0);
    }
    fleet.run.wait_for(2, "end");
    assert_eq!(fleet.run.stop(), 0);
    let text = fleet.run.text(Source::Out);
    for worker in 1..=2 {
        let end = format!(" of {worker}");
        let lines: Vec<&str> = text.lines().filter(|line| line.ends_with(&end)).collect();
        let want = (1..=count).map(|line| format!("line {line} of {worker}"));
        assert!(lines.iter().copied().eq(want), "{} lines", lines.len());
    }
}

#[test]
fn a_listening_socket_refuses_nobody_meanwhile() {
    let server = "import os, socket
s = socket.socket(fileno=3)
print('up', flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b'pid=%d.' % os.getpid())
    c.close()";
    let port = crate::supervise::free_port();
    let address = format!("127.0.0.1:{port}");
    let args = ["--workers", "2", "--listen", &address, "--share", "fd"];
    let mut fleet = Fleet::replaceable(&args, &["python3", "-c", server]);
    fleet.run.wait_for(2, "up");
    let mut upgrade = Run::start(throng(&["upgrade", "--control"]).arg(fleet.dir.path().join("s")));
    for _ in 0..300 {
        let mut text = String::new();
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
        assert!(text.starts_with("pid="));
    }
    assert_eq!(upgrade.end(), 0);
    // A worker that starts now finds the socket where the first ones found it.
    assert_eq!(fleet.ask(&["reload"]).status, 0);
    fleet.run.wait_for(2, "up");
    std::net::TcpStream::connect(&address).unwrap();
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn a_program_that_cannot_go_on_is_not_become() {
    let (mut fleet, pids) = Fleet::replaceable_two();
    for (text, why) in [
        ("#!/bin/sh\necho this is not it >&2; exit 4\n", "this is not it"),
        ("#!/bin/sh\nkill -SEGV $$\n", "SIGSEGV"),
        ("no program", "cannot"),
    ] {
        fleet.install(text);
        let told = fleet.ask(&["upgrade"]);
        assert_eq!(told.status, 1, "{told:?}");
        assert!(told.stderr.contains(why), "{told:?}");
    }
    fs::remove_file(fleet.dir.path().join("throng-rs")).unwrap();
    assert_eq!(fleet.ask(&["upgrade"]).status, 1);
    assert_eq!(fleet.json(&["status"])["upgrades"], 0);
    assert_eq!(fleet.pids(), pids);
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn a_program_that_fails_after_its_proof_gives_back() {
    let (mut fleet, pids) = Fleet::replaceable_two();
    let real: PathBuf = Path::new(env!("CARGO_BIN_EXE_throng-rs")).into();
    // It proves well, and then is started with a flag that it does not know.
    fleet.install(&format!(
        "#!/bin/sh\n[ \"$THRONG_UPGRADE\" = prove ] && exec {0} \"$@\"\nexec {0} --no-such-flag \"$@\"\n",
        real.display()
    ));
    let told = fleet.ask(&["upgrade"]);
    assert_eq!(told.status, 1, "{told:?}");
    assert!(told.stderr.contains("--no-such-flag"), "{told:?}");
    fleet.run.wait_log("the new program could not go on");
    let status = fleet.json(&["status"]);
    assert_eq!(
        (&status["upgrades"], &status["pid"]),
        (&0.into(), &fleet.run.pid().as_raw().into())
    );
    assert_eq!(fleet.pids(), pids);
    // The old program supervises as before, and can be upgraded when the new one is mended.
    end(pids[0], Signal::SIGKILL);
    fleet.run.wait("up id=1 gen=2");
    fleet.install(&format!("#!/bin/sh\nexec {} \"$@\"\n", real.display()));
    let told = fleet.ask(&["upgrade"]);
    assert_eq!(
        (told.status, fleet.json(&["status"])["upgrades"].clone()),
        (0, 1.into()),
        "{told:?}"
    );
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn a_rollout_goes_on_in_the_new_program() {
    let (mut fleet, _) = Fleet::replaceable_two();
    fleet.run.signal(Signal::SIGHUP);
    fleet.run.wait("up id=1 gen=2");
    assert_eq!(fleet.ask(&["upgrade"]).status, 0);
    fleet.run.wait("up id=2 gen=2");
    fleet.run.wait_log("the reload is done");
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn nobody_else_can_hand_anything_down() {
    for order in ["take:1:2", "take:77:78", "take:", "take:x:y", "nonsense", "take:-1:3"] {
        let mut command = throng(&["--workers", "1", "--", "true"]);
        let done = done(command.env("THRONG_UPGRADE", order));
        assert_eq!(done.status, 1, "{order}: {done:?}");
        assert!(done.stderr.contains("THRONG_UPGRADE"), "{done:?}");
    }
    let done = done(throng(&["--workers", "1", "--", "true"]).env("THRONG_UPGRADE", "prove"));
    assert_eq!(done.status, 1);
    assert!(done.stderr.contains("the state is no JSON"), "{done:?}");
}
