//! Under a real systemd: what `docs/systemd.md` promises of its units, asked by systemctl. What happens in the guest is in
//! `tests/beds/guest/systemd/driver`; here is what must come of it.

use std::process::Command;

use crate::beds::qemu::Results;
use crate::beds::systemd::{boot_systemd, documented};
use crate::beds::{Report, command, skip};

const MIB: u64 = 1 << 20;

#[test]
fn systemd_in_qemu() {
    let started = std::time::Instant::now();
    let results = match boot_systemd() {
        Ok(results) => results,
        Err(reason) => return skip("systemd_in_qemu", &reason),
    };
    println!("the guest ran for {:.1?}", started.elapsed());
    // Shown by the test harness only where something below fails.
    println!("{}", results.console());

    assert_eq!(results.all("timeout"), [""; 0], "states that never came");
    assert_eq!(results.one("end"), "ok", "the driver broke off");
    assert!(results.one("version").starts_with("systemd "), "{}", results.one("version"));

    start(&results);
    losses_and_reload(&results);
    watchdog(&results);
    socket(&results);
    ends(&results);
}

fn state(results: &Results, name: &str, want: [&str; 4]) {
    for (property, want) in ["ActiveState", "StatusText", "NRestarts", "Result"].iter().zip(want) {
        assert_eq!(results.one(&format!("{name}-{property}")), want, "{name}: {property}");
    }
}

fn start(results: &Results) {
    assert_eq!(results.one("start-status"), "0");
    state(results, "start", ["active", "3 of 3 workers ready", "0", "success"]);
    let took: u64 = results.one("start-took-usec").parse().unwrap();
    assert!(took >= 900_000, "active after {took} us, before a worker can be taken for ready");
    assert_eq!(results.one("workers"), "3");
    assert!(results.one("served").starts_with("worker "), "{}", results.one("served"));
    let seen = results.all("seen");
    assert_eq!(seen.len(), 3, "{seen:?}");
    for worker in seen {
        assert!(worker.starts_with("fds=1 names=3000 "), "{worker}");
        assert!(!worker.contains("/run/systemd/notify"), "that was meant for us: {worker}");
        assert!(worker.ends_with(" watchdog=none"), "{worker}");
    }
    assert_eq!(results.one("delegate"), "yes");
    assert_eq!(results.one("groups"), "4", "one for the launcher and one for each worker");
    let limit: u64 = results.one("group-limit").parse().unwrap();
    assert!((70 * MIB..80 * MIB).contains(&limit), "{limit}");
    let group = "/sys/fs/cgroup/system.slice/app.service";
    Report::parse("sizing", results.one("sizing"))
        .count("/memory/limit_bytes", Some(256 * MIB))
        .source("/memory/source", &[&format!("{group}/memory.max")])
        .cpus("/cpu/quota", Some(1.5))
        .source("/cpu/source", &[&format!("{group}/cpu.max")]);
}

fn losses_and_reload(results: &Results) {
    let console =
        |text: &str| assert!(results.console().contains(text), "no {text:?} on the console");
    console("(STATUS=2 of 3 workers ready)");
    assert_eq!(results.one("oom-kills"), "1", "the kernel killed one worker");
    assert_eq!(results.one("back"), "3 of 3 workers ready");
    // systemd heard of the kill, and left it to us.
    console("app.service: A process of this unit has been killed by the OOM killer.");
    state(results, "oom", ["active", "3 of 3 workers ready", "0", "success"]);
    assert_eq!(results.one("reload-status"), "0");
    console("(RELOADING=1, MONOTONIC_USEC=");
    console("STATUS=reloading: ");
    // Which of both ways depends on who is first, our word or the end of the command that asked for the reload.
    console("app.service: Changed reload -> running");
    console("(READY=1, STATUS=3 of 3 workers ready)");
    assert_eq!(results.one("reloaded"), "active");
    assert_eq!(results.one("reloaded-text"), "3 of 3 workers ready");
    state(results, "reload", ["active", "3 of 3 workers ready", "0", "success"]);
    assert_eq!(results.one("reload-same-launcher"), "yes");
}

fn watchdog(results: &Results) {
    let fed: u64 = results.one("fed-csec").parse().unwrap();
    assert!(fed > 1000, "only {fed} hundredths of a second, less than the watchdog's time");
    assert_eq!(results.one("fed-restarts"), "0");
    assert_eq!(results.one("hung"), "1");
    let watchdog = "app.service: Watchdog timeout (limit 10s)!";
    assert!(results.console().contains(watchdog), "{}", results.console());
    assert_eq!(results.one("hung-active"), "active");
    assert_eq!(results.one("hung-new-launcher"), "yes");
    assert_eq!(results.one("hung-kept"), "0", "processes of the hung launcher");
    assert_eq!(results.one("hung-text"), "3 of 3 workers ready");
}

fn socket(results: &Results) {
    assert_eq!(results.one("socket-before"), "inactive");
    assert!(
        results.one("socket-served").starts_with("worker "),
        "{}",
        results.one("socket-served")
    );
    assert_eq!(results.one("socket-text"), "3 of 3 workers ready");
    // By the socket unit's name, and not by the port as --listen would call it; and one, not two.
    assert!(
        results.one("socket-seen").starts_with("fds=1 names=http "),
        "{}",
        results.one("socket-seen")
    );
    assert!(results.one("socket-again").starts_with("worker "), "{}", results.one("socket-again"));
    assert_eq!(results.one("socket-stop"), "success");
}

fn ends(results: &Results) {
    assert_eq!(results.one("stop-status"), "0");
    state(results, "stop", ["inactive", "", "0", "success"]);
    assert_eq!(results.one("stop-ExecMainStatus"), "0");
    assert_eq!(results.one("stop-group"), "gone", "processes left behind");
    assert_eq!(results.one("kept-status"), "1", "systemctl start fails");
    assert_eq!(results.one("kept-ExecMainStatus"), "1");
    let why = "systemd keeps the cgroup of kept.service to itself; add Delegate=yes to the unit";
    assert!(results.console().contains(why), "{}", results.console());
    assert_eq!(results.one("broken-status"), "1", "systemctl start fails");
    let text = "the start failed: 2 workers ended before being ready";
    state(results, "broken", ["failed", text, "0", "exit-code"]);
    assert_eq!(results.one("broken-ExecMainStatus"), "7", "the command's own status");
}

/// Without a guest: what is documented is at least no nonsense to systemd.
#[test]
fn the_documented_units_are_sound() {
    let units = documented();
    let paths: Vec<&str> = units.iter().map(|(path, _)| *path).collect();
    assert_eq!(paths, ["/etc/systemd/system/app.service", "/etc/systemd/system/app.socket"]);
    let analyze = match command("systemd-analyze") {
        Ok(analyze) => analyze,
        Err(reason) => return skip("the_documented_units_are_sound", &reason),
    };
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in units {
        let name = path.rsplit('/').next().unwrap();
        // That the program is there is no matter of the unit.
        let text = text.replace("/usr/local/bin/throng-rs", env!("CARGO_BIN_EXE_throng-rs"));
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let mut verify = Command::new(analyze);
    verify
        .args(["--man=no", "verify"])
        .arg(dir.path().join("app.service"))
        .arg(dir.path().join("app.socket"));
    let output = verify.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("app.")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}
