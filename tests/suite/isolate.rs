//! A cgroup for each worker, on a real kernel with cgroup v2: one that takes too much dies alone, where without that everybody
//! does. What happens in the guest is in `tests/beds/guest/isolate`; here is what must come of it.

use serde_json::Value;

use crate::beds::qemu::{self, Results};
use crate::beds::{Report, skip};
use crate::support::{done, throng};

const MIB: u64 = 1 << 20;

#[test]
fn isolation_in_qemu() {
    let started = std::time::Instant::now();
    let results = match qemu::boot(qemu::isolate, "") {
        Ok(results) => results,
        Err(reason) => return skip("isolation_in_qemu", &reason),
    };
    println!("the guest ran for {:.1?}", started.elapsed());
    // Shown by the test harness only where something below fails.
    println!("{}", results.console());

    assert_eq!(results.all("refused"), [""; 0], "limits that the kernel did not take");
    assert_eq!(results.all("timeout"), [""; 0], "states that never came");
    assert_eq!(results.one("end"), "ok", "the story broke off");

    together(&results);
    alone(&results);
    shares(&results);
    successor(&results);
    ends(&results);
    refusals(&results);
    container(&results);
}

/// Wherever this runs, the test itself is in the group (or memory is in v1): nothing is started, and it is said why.
#[test]
fn what_was_asked_for_and_cannot_be_had_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("started");
    let mut command = throng(&["--isolate", "on", "--workers", "2", "--"]);
    let run = done(command.arg("touch").arg(&trace));
    assert_eq!(run.status, 1, "{}", run.stderr);
    assert!(run.stderr.contains("cannot isolate the workers (--isolate on): "), "{}", run.stderr);
    assert!(!trace.exists(), "a worker was started");
}

#[test]
fn off_by_itself_is_said_with_v_alone() {
    for (more, said) in [(&["-v"][..], true), (&[], false)] {
        let mut args = vec!["--workers", "2", "--restart", "never"];
        args.extend(more);
        args.extend(["--", "true"]);
        let run = done(&mut throng(&args));
        assert_eq!(run.status, 0, "{}", run.stderr);
        let told = run.stderr.contains("the workers are not isolated: ");
        assert_eq!(told, said, "{}", run.stderr);
    }
}

fn json(results: &Results, name: &str) -> Value {
    let text = results.one(name);
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: no JSON ({error}): {text:?}"))
}

fn number(results: &Results, name: &str) -> u64 {
    let text = results.one(name);
    text.parse().unwrap_or_else(|_| panic!("{name}: no number: {text:?}"))
}

/// Why there are no groups.
fn why_not(results: &Results, name: &str) -> String {
    let status = json(results, name);
    assert_eq!(status["isolation"]["on"], false, "{name}");
    assert_eq!(status["workers"][0]["memory"]["limit_bytes"], Value::Null, "{name}");
    status["isolation"]["why_not"].as_str().unwrap().to_owned()
}

fn together(results: &Results) {
    assert_eq!(why_not(results, "off-status"), "--isolate off");
    assert_eq!(results.one("off-launcher"), "137", "memory.oom.group took the launcher with it");
}

fn alone(results: &Results) {
    let status = json(results, "on-status");
    let isolation = &status["isolation"];
    assert_eq!(
        (&isolation["on"], &isolation["group"]),
        (&true.into(), &"/sys/fs/cgroup/box".into())
    );
    assert_eq!(results.one("on-own"), "/box/throng-rs.launcher");
    assert_eq!(results.one("on-members"), "2", "the launcher and its guard");
    let limits: Vec<u64> = results
        .one("on-limits")
        .split_ascii_whitespace()
        .map(|text| text.parse().unwrap())
        .collect();
    assert_eq!(limits.len(), 12, "{limits:?}");
    for group in limits.chunks(4) {
        let [limit, high, oom_group, weight] = group else { panic!("{group:?}") };
        assert_eq!(group, &limits[..4], "all have the same");
        assert!(high < limit && *high > limit / 10 * 9, "{high} below {limit}");
        assert_eq!((*oom_group, *weight), (1, 100));
        // 192 MiB less a quarter of the headroom, by three.
        assert!((50 * MIB..60 * MIB).contains(limit), "{limit}");
        assert_eq!(status["workers"][0]["memory"]["limit_bytes"], *limit);
    }
    let sum = number(results, "on-sum");
    assert!(sum <= 176, "{sum} MiB and the launcher do not fit in 192");
    let groups = results.all("on-worker");
    for group in groups {
        assert!(group.starts_with("/box/throng-rs.worker-"), "{groups:?}");
    }

    // Who looks from inside of the leaf finds the limit of the group around it.
    Report::parse("on-inside", results.one("on-inside"))
        .count("/memory/limit_bytes", Some(192 * MIB))
        .source("/memory/source", &["/sys/fs/cgroup/box/memory.max"]);
    Report::parse("on-outside", results.one("on-outside")).count("/memory/limit_bytes", None);

    assert!(results.one("on-restarted").starts_with("up 2 "));
    assert_eq!(results.one("on-launcher"), "throng-rs");
    assert_eq!(results.one("on-others"), "yes 2", "the other two are who they were");
    // The kernel counts its first victim twice.
    assert_eq!(results.one("on-kills"), "3", "the worker and its child, and nobody else");
    oom(results, "on-oom", 2, limits[0]);
    assert_eq!(json(results, "on-target")["target"], 3, "one bad moment teaches nothing");
}

fn oom(results: &Results, name: &str, worker: u64, limit: u64) {
    let event = json(results, name);
    assert_eq!(event["worker"], worker, "{event}");
    assert_eq!(event["limit_bytes"], limit, "{event}");
    let said = event["message"].as_str().unwrap_or_default();
    assert!(said.contains("the kernel chose dd (pid "), "{event}");
    assert!(event["victim_pid"].as_u64() > event["pid"].as_u64(), "its child: {event}");
    let had = event["memory_bytes"].as_u64().unwrap();
    assert!(had > limit / 10 * 9 && had <= limit, "what all of the worker had: {event}");
    let source = event["source"].as_str().unwrap_or_default();
    assert!(
        source.contains(&format!("/throng-rs.worker-{worker}.")) && source.ends_with("/memory.max"),
        "{event}"
    );
}

fn shares(results: &Results) {
    for (name, least, most) in [
        ("more-sum", 150, 176),
        ("fewer-sum", 150, 176),
        ("less-sum", 80, 112),
        ("again-sum", 200, 240),
        ("reloaded-sum", 150, 176),
    ] {
        let sum = number(results, name);
        assert!((least..=most).contains(&sum), "{name}: {sum} MiB");
    }
}

fn successor(results: &Results) {
    assert_eq!(results.one("reloaded"), "0");
    let status = json(results, "upgraded-status");
    assert_eq!((&status["upgrades"], &status["isolation"]["on"]), (&1.into(), &true.into()));
    let limit = status["workers"][0]["memory"]["limit_bytes"].as_u64().unwrap();
    oom(results, "upgraded-oom", 1, limit);
}

fn ends(results: &Results) {
    assert_eq!(results.one("end-status"), "0");
    assert_eq!(results.one("end-left"), "0", "groups and controllers");
    assert_eq!(results.one("killed-left"), "0", "the guard puts everything back");
    assert_eq!(results.one("killed-members"), "0");
    let worker = results.one("user-worker");
    assert!(worker.starts_with("up 1000 /box/throng-rs.worker-"), "{worker}");
    assert_eq!(results.one("escaped-status"), "0");
    assert_eq!(results.one("escaped-left"), "0", "groups of those who got away");
    assert_eq!(results.one("escaped-members"), "0");
}

fn refusals(results: &Results) {
    let why = why_not(results, "foreign-status");
    assert!(why.contains("/sys/fs/cgroup/box holds another process"), "{why}");
    assert_eq!(results.one("foreign-left"), "0");
    let refused = results.one("refused-on");
    assert!(
        refused.starts_with("1 ")
            && refused.contains("--isolate on")
            && refused.contains("holds another process"),
        "{refused}"
    );
    let why = why_not(results, "tight-status");
    assert!(why.contains("less than the 100 MiB"), "{why}");
    assert_eq!(results.one("tight-left"), "0");
    let refused = results.one("refused-root");
    assert!(refused.starts_with("1 ") && refused.contains("whole machine"), "{refused}");
}

fn container(results: &Results) {
    let status = json(results, "container-status");
    assert_eq!(
        (&status["pid"], &status["isolation"]["group"]),
        (&1.into(), &"/sys/fs/cgroup".into())
    );
    assert!(results.one("container-restarted").starts_with("up 3 "));
    assert_eq!(json(results, "container-oom")["worker"], 3);
    assert_eq!(results.one("container-end"), "0");
    assert_eq!(results.one("container-left"), "0");
}
