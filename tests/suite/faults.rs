//! What goes wrong around the launcher: nothing to start with, nobody who reads, a full disk, clocks
//! that jump, processes that stand still, and orphans without an end. The launcher's own violent end
//! is in `guarded.rs`; much of what workers do wrong in `supervise.rs`, `signals.rs`, `output.rs`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;

use crate::beds::skip;
use crate::support::{Guarded, Run, Trace, children, number, state, throng, until};

fn sh(args: &[&str], script: &str) -> Run {
    crate::supervise::sh(args, script)
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// How many files a running process may have open.
pub(crate) fn limit_files(pid: Pid, most: u32) {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), &format!("--nofile={most}:")]);
    assert!(command.status().unwrap().success());
}

/// The most memory that a process ever had, in KiB.
fn peak(pid: Pid) -> u64 {
    Process::new(pid.as_raw()).unwrap().status().unwrap().vmhwm.unwrap()
}

/// The CPU time of a process, in hundredths of a second.
fn ticks(pid: Pid) -> u64 {
    let stat = Process::new(pid.as_raw()).unwrap().stat().unwrap();
    stat.utime + stat.stime
}

/// A cgroup of controller `pids`, v1, for as long as this lives.
struct Tasks(PathBuf);

impl Tasks {
    fn new(most: u32) -> Option<Self> {
        let path = format!("/sys/fs/cgroup/pids/throng-test-{}-{most}", std::process::id());
        fs::create_dir(&path).ok()?;
        let tasks = Self(path.into());
        tasks.limit(most).ok().map(|()| tasks)
    }

    fn limit(&self, most: u32) -> std::io::Result<()> {
        fs::write(self.0.join("pids.max"), most.to_string())
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        // Goes when its last process has gone.
        until("the cgroup can be removed", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_task_limit_that_is_reached_costs_workers_and_not_the_run() {
    // The launcher, its guard and two of four workers.
    let Some(tasks) = Tasks::new(4) else {
        let name = "a_task_limit_that_is_reached_costs_workers_and_not_the_run";
        skip(name, "no cgroup v1 with pids that is ours to write");
        return;
    };
    let trace = Trace::new();
    let script = "echo $$ > \"$0\"/cgroup.procs && exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(&tasks.0).arg(env!("CARGO_BIN_EXE_throng-rs"));
    command.args(["--workers", "4", "--", "sh", "-c", "echo up pid=$$; exec sleep 1000"]);
    trace.leave(&mut command);
    let mut run = Run::start(&mut command);
    let first = run.wait_for(2, "up");
    run.wait_log("raise pids.max");
    // Who ends is replaced, now that there is one place.
    send(number(&first[0], "pid="), Signal::SIGKILL);
    run.wait("up");
    tasks.limit(100).unwrap();
    run.wait_for(2, "up");
    assert_eq!(run.stop(), 0);
    drop((trace, tasks));
}

#[test]
fn without_descriptors_the_rest_serves_until_there_are_some() {
    let mut run = sh(&["--workers", "2"], "echo up id=$THRONG_WORKER_ID pid=$$; exec sleep 1000");
    let first = run.wait_for(2, "up");
    limit_files(run.pid(), 4);
    send(number(&first[0], "pid="), Signal::SIGKILL);
    run.wait_log("raise `ulimit -n`");
    run.wait_log("raise `ulimit -n`");
    assert_eq!(state(number(&first[1], "pid=")), Some('S'));
    limit_files(run.pid(), 1024);
    run.wait(&format!("up id={}", number(&first[0], "id=")));
    assert_eq!(run.stop(), 0);
}

/// A launcher of which one output is not read; the other one tells what happens.
fn unread(standard_output: bool, script: &str) {
    let (reader, writer) = std::io::pipe().unwrap();
    // The third one is quiet, so that not all of the first end before they are ready.
    let script = format!("[ $THRONG_WORKER_ID = 3 ] && exec sleep 1000; {script}");
    let mut command =
        throng(&["-v", "--workers", "3", "--grace", "200ms", "--", "sh", "-c", &script]);
    let mut child = if standard_output {
        Guarded::start(command.stdout(writer).stderr(Stdio::piped()))
    } else {
        Guarded::start(command.stdout(Stdio::piped()).stderr(writer))
    };
    drop(command);
    let told: Box<dyn std::io::Read> = if standard_output {
        Box::new(child.0.stderr.take().unwrap())
    } else {
        Box::new(child.0.stdout.take().unwrap())
    };
    let mut told = BufReader::new(told).lines().map(Result::unwrap);
    let mut up = || told.find(|line| line.starts_with("up ")).unwrap();
    // Each of the first two is killed when its stream stands still, and so is whoever follows.
    for _ in 0..6 {
        let worker = number(&up(), "pid=");
        let written = || {
            let text = fs::read_to_string(format!("/proc/{worker}/wchan")).unwrap_or_default();
            // Where the kernel tells it (CONFIG_KALLSYMS); else every state of waiting is good.
            text.contains("pipe") || (text.len() < 2 && state(worker) == Some('S'))
        };
        until("a worker waits for its pipe", written);
        send(worker, Signal::SIGKILL);
    }
    child.signal(Signal::SIGTERM);
    assert!([0, 137].contains(&child.end()));
    drop(reader);
}

#[test]
fn workers_are_replaced_while_nobody_reads_what_they_write() {
    unread(
        true,
        "echo up pid=$$ >&2; while :; do echo 0123456789012345678901234567890123456789; done",
    );
}

#[test]
fn workers_are_replaced_while_nobody_reads_the_log() {
    unread(
        false,
        "echo up pid=$$; while :; do echo 0123456789012345678901234567890123456789 >&2; done",
    );
}

#[test]
fn a_disk_that_was_full_is_written_again() {
    if !nix::unistd::geteuid().is_root() {
        skip("a_disk_that_was_full_is_written_again", "not root");
        return;
    }
    // A file system of 64 KiB that nobody else sees.
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=64k none \"$0\" && exec \"$@\" >> \"$0\"/log";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(dir.path());
    command.arg(env!("CARGO_BIN_EXE_throng-rs")).args(["--workers", "2", "--", "sh", "-c"]);
    command.arg("while :; do echo 0123456789012345678901234567890123456789; sleep 0.001; done");
    let mut run = Run::start(&mut command);
    let line = run.wait_log("were lost");
    assert!(line.contains("No space left on device"), "{line}");
    let log = PathBuf::from(format!("/proc/{}/root{}/log", run.pid(), dir.path().display()));
    let full = fs::metadata(&log).unwrap().len();
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(0).unwrap();
    until("the log grows again", || fs::metadata(&log).unwrap().len() >= full / 2);
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_launcher_that_stood_still_catches_up() {
    let mut run = sh(&["-v", "--workers", "3"], "echo up pid=$$; exec sleep 1000");
    let first = run.wait_for(3, "up");
    run.wait_log("is ready");
    run.signal(Signal::SIGSTOP);
    until("the launcher stands still", || state(run.pid().as_raw()) == Some('T'));
    for line in &first {
        let pid = number(line, "pid=");
        send(pid, Signal::SIGKILL);
        until("a worker has ended", || state(pid) == Some('Z'));
    }
    run.signal(Signal::SIGCONT);
    run.wait_for(3, "up");
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_worker_that_stands_still_is_no_end() {
    let script = "trap 'echo heard id=$THRONG_WORKER_ID' USR1; \
        echo up id=$THRONG_WORKER_ID gen=$THRONG_WORKER_GENERATION pid=$$; while :; do sleep 0.02; done";
    let mut run = sh(&["--workers", "2"], script);
    let first = run.wait_for(2, "up");
    let (still, id) = (number(&first[0], "pid="), number(&first[0], "id="));
    send(still, Signal::SIGSTOP);
    until("the worker stands still", || state(still) == Some('T'));
    // The other one serves, and is replaced.
    let other = number(&first[1], "id=");
    run.signal(Signal::SIGUSR1);
    run.wait(&format!("heard id={other}"));
    send(number(&first[1], "pid="), Signal::SIGKILL);
    run.wait(&format!("up id={other} gen=2"));
    assert_eq!(state(still), Some('T'));
    send(still, Signal::SIGCONT);
    run.wait(&format!("heard id={id}"));
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_worker_that_closes_its_output_lives_on_and_costs_nothing() {
    // The third, which still speaks, says when a second is over.
    let script = "if [ $THRONG_WORKER_ID = 3 ]; then while :; do sleep 1; echo second; done; fi; \
        echo up id=$THRONG_WORKER_ID pid=$$ >&2; exec >&- 2>&- sleep 1000";
    let mut run = sh(&["--workers", "3"], script);
    let first = run.wait_for(2, "up");
    run.wait("second");
    let before = ticks(run.pid());
    run.wait_for(2, "second");
    let spent = ticks(run.pid()) - before;
    assert!(spent < 40, "{spent} ticks in two seconds");
    let closed = number(&first[0], "pid=");
    assert_eq!(state(closed), Some('S'));
    send(closed, Signal::SIGKILL);
    run.wait(&format!("up id={}", number(&first[0], "id=")));
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_gigabyte_without_a_newline_costs_the_launcher_no_memory() {
    // The second one writes a line now and then: pieces of the long one do not keep it waiting.
    let script = "if [ $THRONG_WORKER_ID = 1 ]; then head -c 1073741824 /dev/zero | tr '\\0' x; echo all written >&2; fi; \
        exec sleep 1000";
    let null = fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    let mut command = throng(&["--prefix", "on", "--workers", "2", "--", "sh", "-c", script]);
    let mut child = Guarded::start(command.stdout(null).stderr(Stdio::piped()));
    let mut log = BufReader::new(child.0.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("all written")));
    let peak = peak(child.pid());
    assert!(peak < 32 << 10, "{peak} KiB");
    child.signal(Signal::SIGTERM);
    assert_eq!(child.end(), 0);
}

/// Builds a C program; says by name where there is no compiler.
fn build(test: &str, source: &Path, program: &Path, flags: &[&str]) -> bool {
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-Wall", "-Werror"]).args(flags).arg("-o").args([program, source]);
    let built = compiler.status();
    match built {
        Ok(status) => assert!(status.success(), "cc does not build {}", source.display()),
        Err(_) => skip(test, "no cc"),
    }
    built.is_ok()
}

#[test]
fn a_storm_of_orphans_is_reaped_as_pid_1_while_everything_else_goes_on() {
    const NAME: &str = "a_storm_of_orphans_is_reaped_as_pid_1_while_everything_else_goes_on";
    // `cargo bench --bench orphans` makes a million.
    const ORPHANS: &str = "100000";
    if !nix::unistd::geteuid().is_root() {
        skip(NAME, "not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let storm = dir.path().join("storm");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/orphans.c");
    if !build(NAME, &source, &storm, &[]) {
        return;
    }
    let script = format!(
        "[ $THRONG_WORKER_ID = 1 ] && [ $THRONG_WORKER_GENERATION = 1 ] && {{ echo storm; {} {ORPHANS}; echo over; }}; \
         echo up id=$THRONG_WORKER_ID; [ $THRONG_WORKER_ID = 2 ] && [ $THRONG_WORKER_GENERATION -lt 20 ] && {{ sleep 0.05; exit 1; }}; \
         exec sleep 1000",
        storm.display()
    );
    let trace = Trace::new();
    let mut command = Command::new("unshare");
    command.args(["-pf", "--mount-proc", "--kill-child", env!("CARGO_BIN_EXE_throng-rs"), "-v"]);
    command.args(["--max-restarts", "1000", "--workers", "2", "--", "sh", "-c", &script]);
    trace.leave(&mut command);
    let mut run = Run::start(&mut command);
    run.wait("storm");
    let launcher = Pid::from_raw(children(run.pid(), false)[0]);
    let reaped = |run: &mut Run| run.wait("up id=");
    // Workers that end are replaced, and signals are heard: also one whose number is above CHLD's.
    reaped(&mut run);
    kill(launcher, Signal::SIGTTIN).unwrap();
    run.wait_log("3 workers instead of 2");
    run.wait("up id=3");
    reaped(&mut run);
    run.wait("over");
    until("no zombie is left", || {
        children(launcher, false).iter().all(|child| state(*child) != Some('Z'))
    });
    let peak = peak(launcher);
    assert!(peak < 32 << 10, "{peak} KiB");
    kill(launcher, Signal::SIGTERM).unwrap();
    assert_eq!(run.end(), 0);
}

/// What every program of the C library gets to see as the time of day: an hour more or less each time.
const JUMPING: &str = r"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long jump(void)
{
    static int asked;
    asked++;
    return (asked % 2 ? -3600 : 3600) * (long)asked;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += jump();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *told)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return told ? (*told = now.tv_sec) : now.tv_sec;
}
";

#[test]
fn a_clock_that_jumps_by_hours_changes_nothing() {
    const NAME: &str = "a_clock_that_jumps_by_hours_changes_nothing";
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("clock.c"), dir.path().join("clock.so"));
    fs::File::create(&source).unwrap().write_all(JUMPING.as_bytes()).unwrap();
    if !build(NAME, &source, &library, &["-shared", "-fPIC"]) {
        return;
    }
    // It really jumps.
    let mut dates = [0i64; 2];
    for date in &mut dates {
        let mut command = Command::new("date");
        let out = command.arg("+%s").env("LD_PRELOAD", &library).output().unwrap();
        *date = String::from_utf8(out.stdout).unwrap().trim().parse().unwrap();
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(
        dates.iter().all(|date| (date - now.as_secs().cast_signed()).abs() > 1800),
        "{dates:?}"
    );

    let script = "echo up gen=$THRONG_WORKER_GENERATION; trap '' TERM; \
        [ $THRONG_WORKER_GENERATION -le 3 ] && [ $THRONG_WORKER_ID = 1 ] && exit 1; while :; do sleep 0.05; done";
    let args = ["-v", "--workers", "2", "--grace", "700ms", "--", "sh", "-c", script];
    let begun = std::time::Instant::now();
    let mut run = Run::start(throng(&args).env("LD_PRELOAD", &library));
    // 100, 200 and 400 ms of waiting, each up to a quarter longer, a second to be ready, the grace.
    run.wait("gen=4");
    let waited = begun.elapsed().as_millis();
    assert!((700..30_000).contains(&waited), "{waited} ms");
    run.wait_log("worker 1 (pid");
    let line = run.wait_log("is ready");
    assert!(line.contains("worker"), "{line}");
    let begun = std::time::Instant::now();
    assert_eq!(run.stop(), 137);
    let waited = begun.elapsed().as_millis();
    assert!((700..30_000).contains(&waited), "{waited} ms");
}
