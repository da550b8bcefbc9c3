//! The main job in a container of a real Docker engine: sizing by its limits, stopping in time, exit codes, PID 1, a kill by
//! the kernel. One test, because each test is a process of its own and an engine costs half a second to start.

use crate::beds::docker::{Engine, within};
use crate::beds::{Report, skip};
use crate::load::Load;
use crate::terminal::Session;
use std::time::{Duration, Instant};

/// For what takes milliseconds where the machine is not busy.
const SOON: Duration = Duration::from_secs(20);

/// Far below the 10 s after which Docker kills.
const STOPS: Duration = Duration::from_secs(5);

#[test]
fn docker_engine() {
    let started = Instant::now();
    let engine = match Engine::start() {
        Ok(engine) => engine,
        Err(reason) => return skip("docker_engine", &reason),
    };
    println!("the engine was up after {:.1?}", started.elapsed());
    for (name, step) in [
        ("sizing by the container's limits", sizing as fn(&Engine)),
        ("stopping a fleet of four", stopping),
        ("exit codes", exit_codes),
        ("orphans", orphans),
        ("an interactive shell", shell),
        ("a worker killed for memory", killed_worker),
        ("a reload without room for one more", no_room),
        ("limits that move", moving_limits),
        ("limits that move under load", moving_under_load),
    ] {
        let started = Instant::now();
        println!("step: {name}");
        step(&engine);
        println!("step: {name}: {:.1?}", started.elapsed());
    }
}

fn sizing(engine: &Engine) {
    let output = engine.run(&["-m", "512m", "--cpus", "1.5"], &["--dry-run", "--format", "json"]);
    assert!(output.status.success(), "{output:?}");
    // The container's own view: cgroup v2, or v1 with its one mount a controller, where a pair may share a mount.
    Report::parse("docker", &String::from_utf8_lossy(&output.stdout))
        .count("/memory/limit_bytes", Some(536_870_912))
        .source(
            "/memory/source",
            &["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"],
        )
        .cpus("/cpu/quota", Some(1.5))
        .source(
            "/cpu/source",
            &[
                "/sys/fs/cgroup/cpu.max",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
                "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us",
            ],
        );
}

fn stopping(engine: &Engine) {
    // The first sort ends by the signal; the second has children of its own and something to say before it ends.
    let plain = "echo up; exec /bin/sleep 1000";
    let polite = "trap 'echo bye; exit 0' TERM; echo up; while :; do /bin/sleep 1 & wait; done";

    let mut best = Duration::MAX;
    for (worker, farewells) in [(plain, 0), (polite, 4), (plain, 0)] {
        let mut fleet = engine.start_container(
            &["-m", "512m", "--cpus", "1.5"],
            &["--workers", "4", "--", "/bin/sh", "-c", worker],
        );
        fleet.logs.wait("workers that are up", 4, SOON, |line| line.ends_with("up"));
        assert!(
            fleet.processes().len() >= 5,
            "a launcher and four workers: {:?}",
            fleet.processes()
        );

        let took = fleet.stop();
        println!("docker stop of a fleet of four took {took:.1?}");
        assert!(took < STOPS, "docker stop took {took:.1?}");
        assert_eq!(fleet.inspect(".State.ExitCode"), "0");
        assert!(
            within(SOON, || fleet.processes().is_empty()),
            "left behind: {:?}",
            fleet.processes()
        );
        fleet.logs.wait("farewells", farewells, SOON, |line| line.ends_with("bye"));
        best = best.min(took);
    }
    // The promise. One of three, because the engine itself has other work on a busy machine.
    assert!(best < Duration::from_secs(1), "the fastest docker stop took {best:.1?}");
}

fn exit_codes(engine: &Engine) {
    let code = |args: &[&str]| {
        let output = engine.run(&[], args);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };

    let (status, message) = code(&["--", "/bin/no-such-server"]);
    assert_eq!(status, Some(127), "{message}");
    // Docker's own 127 would be about the entry point.
    assert!(
        message.contains("/bin/no-such-server") && !message.contains("OCI runtime"),
        "{message}"
    );

    let (status, message) = code(&["--", "/tmp"]);
    assert_eq!(status, Some(126), "{message}");
    let (status, message) =
        code(&["--workers", "1", "--restart", "never", "--", "/bin/sh", "-c", "exit 7"]);
    assert_eq!(status, Some(7), "{message}");
    let (status, message) =
        code(&["--workers", "1", "--restart", "never", "--", "/bin/sh", "-c", "kill -KILL $$"]);
    assert_eq!(status, Some(137), "{message}");
}

fn orphans(engine: &Engine) {
    // Five grandchildren whose parents end at once; each says who its parent is by then. `read` is built in, so self is the orphan.
    let worker = "for n in 1 2 3 4 5; do
            ( ( /bin/sleep 0.3; read -r _ _ _ parent _ </proc/self/stat; echo \"orphan of $parent\" ) & )
        done
        exec /bin/sleep 1000";
    let mut fleet = engine.start_container(&[], &["--workers", "1", "--", "/bin/sh", "-c", worker]);
    let orphans = fleet.logs.wait("orphans", 5, SOON, |line| line.contains("orphan of"));
    assert!(orphans.iter().all(|line| line.ends_with("orphan of 1")), "{orphans:?}");

    // From inside: the kernel does not list zombies in a cgroup, which `docker top` reads.
    let mut left = String::new();
    let clean = within(SOON, || {
        left = fleet.shell("/bin/busybox ps -o stat,ppid,args");
        !left.lines().any(|line| line.starts_with('Z'))
    });
    assert!(clean, "zombies:\n{left}");
    assert!(fleet.stop() < STOPS);
    assert_eq!(fleet.inspect(".State.ExitCode"), "0");
}

/// `docker run -it IMAGE --workers 1 -- sh`: the keys and the status are the shell's.
fn shell(engine: &Engine) {
    let line = engine.interactive(&["-q", "--workers", "1", "--", "/bin/sh"]);
    let mut session = Session::start(&line);
    session.wait("# ");
    session.press("echo on a $((40+2)) terminal of $PPID\n");
    session.wait("on a 42 terminal of 1");
    session.wait("# ");
    // Only a job that is in the foreground hears the key; the shell lives on and knows how it ended.
    session.press("/bin/sh -c 'echo up$((1+1)); exec /bin/sleep 1000'\n");
    session.wait("up2");
    session.press("\x03");
    session.wait("# ");
    session.press("echo ended by $(($? - 128))\n");
    session.wait("ended by 2");
    session.wait("# ");
    session.press("/bin/sh -c 'echo up$((1+1)); read line; echo got $line'\n");
    session.wait("up2");
    session.press("\x1a");
    session.wait("Stopped");
    session.wait("# ");
    session.press("fg\n");
    session.press("words\n");
    session.wait("got words");
    session.wait("# ");
    session.press("exit 7\n");
    assert_eq!(session.end(), 7);

    // A command that is no shell: nobody could wake it, so a key does not stop it; another one ends it.
    let words = ["-q", "--workers", "1", "--", "/bin/sh", "-c"];
    let read = "echo up$((1+1)); read line; echo got $line; exec /bin/sleep 1000";
    let mut session = Session::start(&engine.interactive(&[&words[..], &[read]].concat()));
    session.wait("up2");
    session.press("\x1a");
    session.press("on\n");
    session.wait("got on");
    session.press("\x03");
    assert_eq!(session.end(), 130);
}

fn killed_worker(engine: &Engine) {
    // Waits at a pipe until the test feeds it, then takes four times what there is.
    let worker = "/bin/busybox mkfifo /tmp/eat$THRONG_WORKER_ID 2>/dev/null
        echo up $THRONG_WORKER_ID
        read -r _ </tmp/eat$THRONG_WORKER_ID
        exec /bin/busybox dd if=/dev/zero of=/dev/null bs=256M count=1";
    let mut fleet =
        engine.start_container(&["-m", "64m"], &["--workers", "2", "--", "/bin/sh", "-c", worker]);
    fleet.logs.wait("workers that are up", 2, SOON, |line| line.contains("up "));
    let launcher = fleet.inspect(".State.Pid");

    fleet.shell("echo >/tmp/eat2");
    fleet.logs.wait("the worker's successor", 1, SOON, |line| line.ends_with("up 2"));
    let kills = fleet.shell("cd /sys/fs/cgroup; /bin/busybox cat memory.events memory/memory.oom_control 2>/dev/null || :");
    assert!(
        kills.lines().any(|line| line == "oom_kill 1"),
        "the kernel killed one process:\n{kills}"
    );
    assert_eq!(fleet.inspect(".State.Pid"), launcher, "the launcher is the same process");
    assert_eq!(fleet.inspect(".State.Running"), "true");

    assert!(fleet.stop() < STOPS);
    assert_eq!(fleet.inspect(".State.ExitCode"), "0");
}

fn no_room(engine: &Engine) {
    // Holds 20 MiB, because nobody takes more than the first part of them.
    let worker = "trap 'echo bye $THRONG_WORKER_ID; exit 0' TERM; echo up $THRONG_WORKER_ID
        /bin/busybox dd if=/dev/zero bs=20M count=1 | /bin/busybox sleep 1000 & wait";
    let mut fleet =
        engine.start_container(&["-m", "64m"], &["--workers", "2", "--", "/bin/sh", "-c", worker]);
    fleet.logs.wait("workers that are up", 2, SOON, |line| line.contains("up "));
    let held = "cd /sys/fs/cgroup; tries=0
        until [ $(/bin/busybox cat memory.current memory/memory.usage_in_bytes 2>/dev/null) -gt 41943040 ]; do
            tries=$((tries+1)); [ $tries -lt 400 ] || exit 1; /bin/busybox usleep 50000
        done
        until /throng-rs status --check; do
            tries=$((tries+1)); [ $tries -lt 400 ] || exit 1; /bin/busybox usleep 50000
        done; echo held";
    assert!(fleet.shell(held).trim_end().ends_with("held"));
    fleet.shell("kill -HUP 1");
    // With room for one more each would be up before the one that it replaces says good-bye.
    let lines = fleet
        .logs
        .wait("the workers' words", 4, SOON, |line| line.contains("bye ") || line.contains("up "));
    assert_eq!(lines, ["bye 1", "up 1", "bye 2", "up 2"]);
    let kills = fleet.shell("cd /sys/fs/cgroup; /bin/busybox cat memory.events memory/memory.oom_control 2>/dev/null || :");
    assert!(kills.lines().any(|line| line == "oom_kill 0"), "nobody was killed:\n{kills}");
    assert!(fleet.stop() < STOPS);
}

fn moving_limits(engine: &Engine) {
    let worker = "trap 'echo bye $THRONG_WORKER_ID; exit 0' TERM; echo up $THRONG_WORKER_ID
        while :; do /bin/busybox sleep 1000 & wait; done";
    let args = ["--worker-memory", "64M", "--workers-per-cpu", "50", "--", "/bin/sh", "-c", worker];
    let mut fleet = engine.start_container(&["-m", "256m"], &args);
    // 15 % of headroom and 72 MiB at least, 8 MiB of our own.
    fleet.logs.wait("workers of 256 MiB", 2, SOON, |line| line.contains("up "));
    engine.docker(&["update", "-m", "512m", "--memory-swap", "512m", &fleet.id]);
    let started = Instant::now();
    let more = fleet.logs.wait("workers of 512 MiB", 4, SOON, |line| line.contains("up "));
    println!("four workers more {:.1?} after the limit was raised: {more:?}", started.elapsed());
    let status = fleet.shell("/throng-rs status --format json");
    assert!(status.contains("\"target\":6"), "{status}");
    engine.docker(&["update", "-m", "256m", "--memory-swap", "256m", &fleet.id]);
    let started = Instant::now();
    let mut gone = fleet.logs.wait("workers that go", 4, SOON, |line| line.contains("bye "));
    println!("four workers less {:.1?} after the limit was lowered", started.elapsed());
    gone.sort();
    assert_eq!(gone, ["bye 3", "bye 4", "bye 5", "bye 6"], "the highest slots leave");
    let status = fleet.shell("/throng-rs status --format json");
    assert!(status.contains("\"target\":2"), "{status}");
    assert!(fleet.stop() < STOPS);
}

/// Twice the memory and back while clients come: nobody is refused, cut off or killed for memory.
fn moving_under_load(engine: &Engine) {
    let sizing = ["--worker-memory", "64M", "--workers-per-cpu", "50"];
    let args = [&["demo", "--listen", "127.0.0.1:0"], &sizing[..]].concat();
    let mut fleet = engine.start_container(&["--network", "host", "-m", "512m"], &args);
    let line = fleet.logs.wait("the address", 1, SOON, |line| line.contains("http://")).remove(0);
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
    let load = Load::on(address);
    let is = |workers: usize| {
        let status = fleet.shell("/throng-rs status --format json");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["ready"] == true && status["workers"].as_array().unwrap().len() == workers
    };
    assert!(within(SOON, || is(6)));
    load.more(200);
    for (limit, workers) in [("1g", 13), ("512m", 6)] {
        engine.docker(&["update", "-m", limit, "--memory-swap", limit, &fleet.id]);
        let started = Instant::now();
        assert!(within(SOON, || is(workers)), "{workers} workers in {limit}");
        println!("{workers} workers {:.1?} after the limit became {limit}", started.elapsed());
        load.more(200);
    }
    let tally = load.end(1000);
    assert!(tally.failed.is_empty(), "{:#?}", tally.failed);
    let kills = "cd /sys/fs/cgroup; /bin/busybox cat memory.events memory/memory.oom_control 2>/dev/null || :";
    let kills = fleet.shell(kills);
    assert!(kills.lines().any(|line| line == "oom_kill 0"), "nobody was killed:\n{kills}");
    assert!(fleet.stop() < STOPS);
}
