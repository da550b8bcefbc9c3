//! The sizing and the supervision on a real kernel that has only cgroup v2: nested groups, namespaces, pressure, a kill by the
//! kernel, orphans. What happens in the guest is in `tests/beds/guest/scenarios`; here is what must come of it.

use crate::beds::qemu::{self, Results};
use crate::beds::{Report, skip};

const MIB: u64 = 1 << 20;

#[test]
fn cgroup_v2_in_qemu() {
    let started = std::time::Instant::now();
    let results = match qemu::boot(qemu::scenarios, "") {
        Ok(results) => results,
        Err(reason) => return skip("cgroup_v2_in_qemu", &reason),
    };
    println!("the guest ran for {:.1?}", started.elapsed());
    // Shown by the test harness only where something below fails.
    println!("{}", results.console());

    assert_eq!(results.all("refused"), [""; 0], "limits that the kernel did not take");
    assert_eq!(results.all("failed"), [""; 0], "sizing reports that failed");
    assert_eq!(results.all("timeout"), [""; 0], "events that never came");
    assert_eq!(results.one("end"), "ok", "the scenarios broke off");

    sizing(&results);
    namespaces(&results);
    pressure(&results);
    killed_worker(&results);
    orphans(&results);
}

fn sizing(results: &Results) {
    let report = |name: &str| Report::parse(name, results.one(name));

    report("root")
        .count("/memory/limit_bytes", None)
        .cpus("/cpu/quota", None)
        .count("/cpu/set", Some(2));
    report("leaf")
        .count("/memory/limit_bytes", Some(256 * MIB))
        .count("/memory/high_bytes", None)
        .source("/memory/source", &["/sys/fs/cgroup/slice/leaf/memory.max"])
        .cpus("/cpu/quota", Some(1.5))
        .source("/cpu/source", &["/sys/fs/cgroup/slice/leaf/cpu.max"]);
    report("parent")
        .count("/memory/limit_bytes", Some(128 * MIB))
        .source("/memory/source", &["/sys/fs/cgroup/slice/memory.max"])
        .cpus("/cpu/quota", Some(1.0))
        .source("/cpu/source", &["/sys/fs/cgroup/slice/cpu.max"]);
    report("high")
        .count("/memory/limit_bytes", Some(256 * MIB))
        .count("/memory/high_bytes", Some(200 * MIB));
    report("half").cpus("/cpu/quota", Some(0.5)).cpus("/cpu/usable", Some(0.5));
    report("pids")
        .count("/tasks/limit", Some(40))
        .source("/tasks/source", &["/sys/fs/cgroup/slice/pids.max"]);
    report("cpuset").count("/cpu/set", Some(1)).cpus("/cpu/usable", Some(1.0));
}

fn namespaces(results: &Results) {
    // The premise: the mount reaches above the namespace's root, and our own path says nothing.
    let premise = results.one("namespace-mount");
    assert!(
        premise.contains(" /../.. /sys/fs/cgroup ") && premise.ends_with("0::/"),
        "{premise:?}"
    );

    Report::parse("namespace", results.one("namespace"))
        .count("/memory/limit_bytes", Some(256 * MIB))
        .source("/memory/source", &["/sys/fs/cgroup/slice/leaf/memory.max"])
        .cpus("/cpu/quota", Some(1.5));
    Report::parse("container", results.one("container"))
        .count("/memory/limit_bytes", Some(256 * MIB))
        .source("/memory/source", &["/sys/fs/cgroup/memory.max"])
        .cpus("/cpu/quota", Some(1.5))
        .source("/cpu/source", &["/sys/fs/cgroup/cpu.max"]);
}

fn pressure(results: &Results) {
    for name in ["pressure-machine", "pressure-memory", "pressure-cpu"] {
        assert!(results.one(name).starts_with("some avg10="), "{name}: {}", results.one(name));
    }
    assert_eq!(results.one("pressure-trigger"), "taken");
}

fn killed_worker(results: &Results) {
    assert_eq!(results.one("fleet-started"), "5", "a launcher, its guard and three workers");

    // Why the kernel takes a worker: its score is above the launcher's.
    let score = |text: &str| text.parse::<i32>().unwrap_or_else(|_| panic!("no score: {text:?}"));
    let launcher = score(results.one("fleet-launcher-score"));
    let workers = results.all("fleet-worker-score");
    assert_eq!(workers.len(), 3, "{workers:?}");
    assert!(
        workers.iter().all(|worker| score(worker) > launcher),
        "{workers:?} against {launcher}"
    );

    assert_eq!(results.one("fleet-oom-kills"), "1", "the kernel killed one process");
    assert_eq!(results.one("fleet-launcher-alive"), "throng-rs", "and that was not the launcher");
    assert!(
        results.one("fleet-restarted").starts_with("up 2 "),
        "the worker came back into its slot"
    );
    assert_eq!(results.one("fleet-zombies"), "0");
    assert_eq!(results.one("fleet-status"), "0", "a stop on request");
    assert_eq!(results.one("fleet-left"), "0", "processes left behind");
}

fn orphans(results: &Results) {
    assert_eq!(results.one("first-parents"), "1", "orphans in a pid namespace go to its PID 1");
    assert_eq!(results.one("first-name"), "throng-rs", "which is the launcher");
    assert_eq!(
        results.one("reaper-parents"),
        results.one("reaper-pid"),
        "elsewhere they go to the launcher too"
    );
    for bed in ["first", "reaper"] {
        assert_eq!(results.one(&format!("{bed}-zombies")), "0", "{bed}");
        assert_eq!(results.one(&format!("{bed}-status")), "0", "{bed}");
        assert_eq!(results.one(&format!("{bed}-left")), "0", "{bed}");
    }
}
