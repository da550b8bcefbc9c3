//! Limits that move under a running fleet, in a memory group of the test's own (the Docker bed moves
//! those of a container).

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::beds::skip;
use crate::support::{Run, number, throng, until};

const MIB: u64 = 1 << 20;

/// A memory group of cgroup v1, gone with its owner.
pub(crate) struct Group(PathBuf);

impl Group {
    pub(crate) fn new(limit: u64) -> Option<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("throng-limits-{}-{count}", std::process::id());
        let path = PathBuf::from("/sys/fs/cgroup/memory").join(name);
        fs::create_dir(&path).ok()?;
        let group = Self(path);
        group.0.join("memory.limit_in_bytes").exists().then(|| group.limit(limit))?;
        Some(group)
    }

    pub(crate) fn limit(&self, bytes: u64) {
        fs::write(self.0.join("memory.limit_in_bytes"), bytes.to_string()).unwrap();
    }

    /// How many the kernel has killed in it because memory ran out.
    pub(crate) fn kills(&self) -> i32 {
        let text = fs::read_to_string(self.0.join("memory.oom_control")).unwrap();
        number(&text, "oom_kill ")
    }

    pub(crate) fn run(&self, args: &[&str]) -> Run {
        Run::start(self.launcher().args(args))
    }

    /// A launcher that begins in here.
    pub(crate) fn launcher(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_throng-rs");
        let procs = self.0.join("cgroup.procs");
        // A shell goes in first and becomes the launcher.
        let mut shell = Command::new("sh");
        let launcher = throng(&[]);
        shell.envs(launcher.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.args(["-c", "echo $$ > \"$1\"; shift; exec \"$@\"", "sh"]).arg(procs).arg(binary);
        shell
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        until("the cgroup can be removed", || fs::remove_dir(&self.0).is_ok());
    }
}

const WORKER: &str = "trap 'echo bye id=$THRONG_WORKER_ID; exit 0' TERM
echo up id=$THRONG_WORKER_ID; while :; do sleep 1 & wait; done";

#[test]
fn the_number_follows_down_at_once_and_up_when_it_lasts() {
    let Some(group) = Group::new(512 * MIB) else {
        return skip(
            "the_number_follows_down_at_once_and_up_when_it_lasts",
            "no cgroup v1 of memory that is ours",
        );
    };
    let sizing = ["-v", "--worker-memory", "100M", "--workers-per-cpu", "50"];
    let mut run = group.run(&[&sizing[..], &["--", "sh", "-c", WORKER]].concat());
    run.wait_for(4, "up id=");
    group.limit(300 * MIB);
    run.wait_log("the limits have moved: 300 MiB of memory");
    run.wait_log("2 workers instead of 4");
    let mut gone = run.wait_for(2, "bye id=");
    gone.sort();
    assert_eq!(gone, ["bye id=3", "bye id=4"]);
    group.limit(512 * MIB);
    run.wait_log("the limits have moved: 512 MiB of memory");
    run.wait_log("4 workers instead of 2");
    run.wait_for(2, "up id=");
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_number_that_was_told_stays_and_runtimes_are_told_their_new_share() {
    let Some(group) = Group::new(1024 * MIB) else {
        return skip(
            "a_number_that_was_told_stays_and_runtimes_are_told_their_new_share",
            "no cgroup v1 of memory that is ours",
        );
    };
    let code = "console.log('up heap=' + /--max-old-space-size=(\\d+)/.exec(process.env.NODE_OPTIONS)[1]); setInterval(() => {}, 1e6)";
    let mut run = group.run(&["-v", "--workers", "2", "--", "node", "-e", code]);
    let heap = |lines: Vec<String>| lines.iter().map(|line| number(line, "heap=")).max().unwrap();
    let before = heap(run.wait_for(2, "up heap="));
    // Who does not serve yet would be replaced at once, and both together.
    for _ in 0..2 {
        run.wait_log("is ready");
    }
    group.limit(600 * MIB);
    run.wait_log("still 2 workers");
    run.wait_log("reloading 2 workers");
    let after = heap(run.wait_for(2, "up heap="));
    assert!(after < before, "{after} {before}");
    run.wait_log("the reload is done");
    assert_eq!(run.stop(), 0);
}

#[test]
fn who_wants_the_printed_number_keeps_it() {
    let Some(group) = Group::new(512 * MIB) else {
        return skip(
            "who_wants_the_printed_number_keeps_it",
            "no cgroup v1 of memory that is ours",
        );
    };
    let sizing = ["-v", "--worker-memory", "100M", "--workers-per-cpu", "50", "--adapt", "off"];
    let mut run = group.run(&[&sizing[..], &["--", "sh", "-c", WORKER]].concat());
    run.wait_for(4, "up id=");
    group.limit(300 * MIB);
    // A reload is another matter: it computes anew.
    run.signal(Signal::SIGHUP);
    run.wait_log("2 workers instead of 4");
    assert_eq!(run.stop(), 0);
    assert!(!run.text(crate::support::Source::Err).contains("the limits have moved"));
}

#[test]
fn who_is_killed_for_memory_is_told_and_one_worker_less_runs() {
    let Some(group) = Group::new(256 * MIB) else {
        return skip(
            "who_is_killed_for_memory_is_told_and_one_worker_less_runs",
            "no cgroup v1 of memory that is ours",
        );
    };
    let dir = tempfile::tempdir().unwrap();
    // Waits until it is fed, and takes four times what there is.
    let worker = format!(
        "mkfifo {0}/eat$THRONG_WORKER_ID 2>/dev/null; echo up id=$THRONG_WORKER_ID pid=$$
        read -r _ <{0}/eat$THRONG_WORKER_ID; exec dd if=/dev/zero of=/dev/null bs=1G count=1",
        dir.path().display()
    );
    let sizing = ["-v", "--worker-memory", "50M", "--workers-per-cpu", "50", "--ready", "spawn"];
    let mut run = group.run(&[&sizing[..], &["--", "sh", "-c", &worker]].concat());
    let up = run.wait_for(3, "up id=");
    let victim = number(up.iter().find(|line| line.contains(" id=2 ")).unwrap(), "pid=");
    fs::write(dir.path().join("eat2"), "\n").unwrap();
    let told =
        run.wait_log(&format!("worker 2 (pid {victim}) was killed by the kernel for its memory"));
    assert!(told.contains("256 MiB (/sys/fs/cgroup/memory/"), "{told}");
    // What it had at most is what the limit left for it.
    let had = number(&told, "it had ");
    assert!((100..=256).contains(&had), "{told}");
    run.wait_log("2 workers instead of 3, because worker 2 was killed for memory");
    assert_eq!(run.stop(), 0);
}
