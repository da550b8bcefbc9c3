//! `throng-rs doctor`: opinions against known facts about each detector, findings against machines
//! that show them, the text as a whole.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Done, done, throng};

const HOSTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/hosts");

fn on(machine: &str, env: &[(&str, &str)], args: &[&str]) -> Done {
    let root = Path::new(HOSTS).join(machine);
    let all = [&["doctor", "--sysroot", root.to_str().unwrap()][..], args].concat();
    done(throng(&all).envs(env.iter().copied()))
}

fn report(machine: &str, env: &[(&str, &str)], args: &[&str]) -> Value {
    let run = on(machine, env, &[&["--format", "json"][..], args].concat());
    assert!(run.status <= 1, "{machine}: {}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

fn opinion<'a>(report: &'a Value, id: &str) -> &'a Value {
    let all = report["opinions"].as_array().unwrap();
    all.iter().find(|opinion| opinion["id"] == id).unwrap_or_else(|| panic!("no {id} in {report}"))
}

fn finding<'a>(report: &'a Value, id: &str) -> Option<&'a Value> {
    report["findings"].as_array().unwrap().iter().find(|finding| finding["id"] == id)
}

#[test]
fn each_detector_counts_cpus_as_it_is_known_to() {
    // Facts about the detectors' own code, each from its sources or an issue of its project.
    for (machine, who, cpus, why) in [
        // The outermost limit replaces what was found below it.
        ("v2-leaf-tighter", "node", Some(2), "keeps the outermost limit"),
        ("v2-cpu-12.8", "node", Some(16), "\"12800000 100000\""),
        ("v2-named-systemd-v1", "node", Some(16), "begins with \"1:name=systemd:/x\""),
        ("v1-docker-host-ns", "node", Some(16), "never exists"),
        ("v2-frac-1.5", "node", Some(1), "rounds 1.5 CPUs down to 1|rounds down to 1"),
        ("v2-path-long", "node", Some(16), "cuts paths at 255"),
        // Its own level alone, two at least, strict about what is not its business.
        ("v2-parent-tighter", "go", Some(2), "sits 1 level up, in /sys/fs/cgroup/app.slice"),
        ("v2-lxc-nested", "go", Some(16), "2 levels up"),
        ("v2-frac-0.5", "go", Some(2), "never goes below 2"),
        ("v2-nsfs-line-first", "go", Some(16), "net:[4026532448]"),
        ("v2-zero-period", "go", None, "dies"),
        ("v2-no-final-newline", "go", Some(16), "has no newline"),
        // Rounds down; an untranslatable mount of any controller stops it.
        ("v2-frac-1.5", "automaxprocs", Some(1), "rounds down to 1"),
        ("v1-cloudfoundry-moved", "automaxprocs", Some(16), "cannot place its cgroup"),
        // Walks up, rounds up, needs four controllers on v1.
        ("v2-parent-tighter", "jvm", Some(1), "agrees"),
        ("v2-frac-1.5", "jvm", Some(2), "rounds up to 2"),
        ("v1-named-memory", "jvm", Some(16), "no mount of cgroup v1 has cpuset"),
        // Walks up, rounds down, knows /sys/fs/cgroup alone, and panics where a path is empty.
        ("v2-parent-tighter", "rust-std", Some(1), "agrees"),
        ("v2-odd-mountpoint", "rust-std", Some(16), "where no such file is"),
        ("v2-cgroup-empty-path", "rust-std", None, "panics"),
        ("v2-parent-tighter", "dotnet", Some(2), "1 level up"),
        ("v2-parent-tighter", "affinity", Some(16), "reads no quota"),
        ("v2-affinity-narrower", "online", Some(16), "counts the machine's CPUs"),
    ] {
        let report = report(machine, &[], &[]);
        let said = &opinion(&report, who)["cpus"];
        assert_eq!(said["value"].as_u64(), cpus, "{machine}: {who}: {said}");
        let text = said["why"].as_str().unwrap();
        assert!(why.split('|').any(|why| text.contains(why)), "{machine}: {who}: {text}");
        assert_eq!(said["agrees"] == true, why == "agrees", "{machine}: {who}: {said}");
    }
}

#[test]
fn each_detector_sees_memory_as_it_is_known_to() {
    const MIB: u64 = 1 << 20;
    for (machine, who, mib, why) in [
        // Its own level alone; memory.high counts; the soft limit of v1 counts too.
        ("v2-ancestor-only", "node", 24 * 1024, "1 level up"),
        ("v2-high-below-max", "node", 256, "agrees"),
        ("doctor-v1-hanging", "node", 512, "soft limit"),
        ("v2-mem-hex", "node", 24 * 1024, ""),
        // Walks up, knows no memory.high, and believes parents that v1 does not charge.
        ("v2-ancestor-only", "jvm", 512, "agrees"),
        ("v2-high-only", "jvm", 24 * 1024, "does not read memory.high"),
        ("v1-flat-parent-tighter", "jvm", 128, "is not charged"),
        // Walks up, and leaves the top of the mount out.
        ("v2-ancestor-only", "dotnet", 512, "agrees"),
        ("v2-bind-root-child", "dotnet", 24 * 1024, "leaves the top of the mount out"),
    ] {
        let report = report(machine, &[], &[]);
        let said = &opinion(&report, who)["memory_bytes"];
        assert_eq!(said["value"].as_u64(), Some(mib * MIB), "{machine}: {who}: {said}");
        assert!(said["why"].as_str().unwrap().contains(why), "{machine}: {who}: {said}");
    }
}

#[test]
fn heaps_of_all_workers_are_added_up() {
    let report = report("v2-private-ns", &[], &["--workers", "3", "--", "node", "server.js"]);
    // 512 MiB: V8 takes 256 MiB and three semi-spaces of 2 MiB (node#64646).
    let heap = &opinion(&report, "node")["heap_bytes"];
    assert_eq!(heap["value"], 262 << 20);
    assert!(
        heap["why"].as_str().unwrap().ends_with("3 workers together up to 786 MiB of our 512 MiB")
    );
    let told = ("NODE_OPTIONS", "--max_old_space_size 100");
    let report = self::report("v2-private-ns", &[told], &["--", "node", "server.js"]);
    assert_eq!(opinion(&report, "node")["heap_bytes"]["value"], 100 << 20);
}

#[test]
fn findings_name_what_they_are_based_on() {
    for (machine, id, severity, source, text) in [
        ("doctor-worn-out", "oom-group", "note", "memory.oom.group", "1"),
        ("doctor-worn-out", "oom-kills", "problem", "memory.events", "oom_kill 3"),
        ("doctor-worn-out", "limit-reached", "note", "memory.events", "max 512"),
        ("doctor-worn-out", "no-swap-limit", "warning", "memory.swap.max", "max"),
        ("doctor-worn-out", "swap-in-use", "warning", "/proc/meminfo", "SwapFree 2097152 kB"),
        ("doctor-worn-out", "memory-pressure", "warning", "memory.pressure", "avg60=22.50"),
        ("doctor-worn-out", "throttled", "problem", "web.slice/cpu.stat", "nr_throttled 6200"),
        ("doctor-worn-out", "few-tasks", "problem", "pids.max", "100"),
        ("doctor-worn-out", "few-files", "warning", "/proc/self/limits", "256"),
        ("doctor-worn-out", "does-not-fit", "problem", "memory.max", "1073741824"),
        ("doctor-throttled-memory", "high-without-swap", "warning", "memory.high", "805306368"),
        (
            "doctor-throttled-memory",
            "throttled-for-memory",
            "warning",
            "memory.events",
            "high 556021",
        ),
        ("doctor-throttled-memory", "limit-above-ram", "warning", "memory.max", "17179869184"),
        ("doctor-throttled-memory", "quota-below-one", "warning", "cpu.max", "0.25 CPU"),
        ("doctor-throttled-memory", "throttled", "warning", "cpu.stat", "nr_throttled 120"),
        ("doctor-throttled-memory", "we-are-pid-1", "note", "/proc/self/stat", "1"),
        ("doctor-throttled-memory", "hidden-parents", "note", "/proc/self/cgroup", "0::/"),
        ("doctor-throttled-memory", "few-files", "note", "/proc/self/limits", "1024 524288"),
        (
            "doctor-v1-hanging",
            "oom-kill-disabled",
            "problem",
            "memory.oom_control",
            "oom_kill_disable 1",
        ),
        ("doctor-v1-hanging", "out-of-memory-now", "problem", "memory.oom_control", "under_oom 1"),
        ("doctor-v1-hanging", "limit-reached", "note", "memory.failcnt", "8812"),
        (
            "doctor-v1-hanging",
            "no-swap-limit",
            "warning",
            "memory.memsw.limit_in_bytes",
            "9223372036854771712",
        ),
        ("doctor-v1-hanging", "overcommit", "problem", "overcommit_memory", "2"),
        ("doctor-v1-hanging", "no-init", "warning", "/proc/1/comm", "node"),
        (
            "doctor-v1-hanging",
            "hidden-processes",
            "note",
            "/proc/self/mountinfo",
            "hidepid=invisible",
        ),
        ("v2-garbage-cpu", "doubt", "warning", "cpu.max", "abc"),
        ("v2-cgroup-unreadable", "hidden-proc", "warning", "/proc/self/cgroup", "cannot be read"),
    ] {
        let report = report(machine, &[], &["--", "node", "server.js"]);
        let found = finding(&report, id).unwrap_or_else(|| panic!("{machine}: no {id}"));
        assert_eq!(found["severity"], severity, "{machine}: {found}");
        assert!(found["source"].as_str().unwrap().ends_with(source), "{machine}: {found}");
        assert!(found["text"].as_str().unwrap().contains(text), "{machine}: {found}");
    }
}

#[test]
fn settings_that_contradict_the_plan_are_found() {
    let node = &["--", "node", "server.js"][..];
    for (env, args, id) in [
        (&[("NODE_OPTIONS", "--max-old-space-size=4096")][..], node, "heap-above-share"),
        (&[("WEB_CONCURRENCY", "9")], node, "more-than-fits"),
        (&[("GOMAXPROCS", "16")], &["--cpus", "2", "--", "./server"], "threads-above-quota"),
        (&[("JAVA_TOOL_OPTIONS", "-Xmx2g")], &["--", "java", "-jar", "a.jar"], "heap-above-share"),
        (&[("GOMEMLIMIT", "2GiB")], &["--", "./server"], "heap-above-share"),
        (&[], &["--", "java", "-Xmx2g", "-jar", "a.jar"], "heap-above-share"),
        (
            &[("DOTNET_GCHeapHardLimit", "0x80000000")],
            &["--", "dotnet", "a.dll"],
            "heap-above-share",
        ),
        (
            &[("JAVA_TOOL_OPTIONS", "-XX:MaxRAMPercentage=75")],
            &["--workers", "2", "--", "java", "-jar", "a.jar"],
            "heap-above-share",
        ),
        (&[], &["--", "npm", "start"], "wrapper-in-front"),
        (&[("WEB_CONCURRENCY", "9")], &["--", "./server"], "more-than-fits"),
        (&[], &["--", "sh", "-c", "cd /app; node server.js"], "shell-in-front"),
    ] {
        let report = report("v2-private-ns", env, args);
        let found = finding(&report, id)
            .unwrap_or_else(|| panic!("no {id} for {env:?} {args:?}: {report}"));
        let source = found["source"].as_str().unwrap();
        let expected = env.first().map_or("command".to_owned(), |(name, _)| format!("env:{name}"));
        assert_eq!(source, expected, "{found}");
    }
    let unknown = report("v2-private-ns", &[("THRONG_WROKERS", "3")], node);
    assert_eq!(finding(&unknown, "odd-setting").unwrap()["text"], "THRONG_WROKERS");
    // What fits, and what is another runtime's, is not complained of.
    for (env, args) in [
        (("NODE_OPTIONS", "--max-old-space-size=64"), node),
        (("NODE_OPTIONS", "--max-old-space-size=4096"), &["--", "java", "-jar", "a.jar"]),
        (("JAVA_TOOL_OPTIONS", "-Xmx2g"), node),
    ] {
        let report = report("v2-private-ns", &[env], args);
        assert!(finding(&report, "heap-above-share").is_none(), "{env:?}: {report}");
    }
}

#[test]
fn exec_as_process_one_is_warned_of() {
    let exec = ["--exec", "--", "puma"];
    assert!(finding(&report("doctor-throttled-memory", &[], &exec), "command-as-pid-1").is_some());
    assert!(finding(&report("doctor-worn-out", &[], &exec), "command-as-pid-1").is_none());
}

#[test]
fn kubernetes_hides_the_limits_of_the_pod() {
    let env = [("KUBERNETES_SERVICE_HOST", "10.0.0.1")];
    let report = report("doctor-throttled-memory", &env, &[]);
    assert_eq!(finding(&report, "hidden-parents").unwrap()["severity"], "warning");
}

#[test]
fn the_status_tells_whether_there_is_a_problem() {
    let well = on("v2-private-ns", &[], &["--", "node", "server.js"]);
    assert_eq!(well.status, 0, "{}", well.stdout);
    let ill = on("doctor-worn-out", &[], &[]);
    assert_eq!(ill.status, 1);
    assert!(
        ill.stdout.trim_end().lines().last().unwrap().starts_with("4 problems, "),
        "{}",
        ill.stdout
    );
    let report = report("doctor-worn-out", &[], &[]);
    assert_eq!((&report["schema"], &report["problems"]), (&1.into(), &4.into()));
    let wrong = on("doctor-worn-out", &[], &["--format", "env"]);
    assert_eq!(wrong.status, 2);
    assert!(wrong.stderr.contains("--format"), "{}", wrong.stderr);
    let missing = done(&mut throng(&["doctor", "--", "no-such-command-here"]));
    assert_eq!(missing.status, 127);
    assert!(missing.stdout.contains("What others believe"), "the diagnosis comes all the same");
}

fn machines() -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(HOSTS).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn every_machine_gets_a_whole_answer() {
    for machine in machines() {
        let name = machine.file_name().unwrap().to_str().unwrap();
        let text = on(name, &[], &["--", "node", "server.js"]);
        assert!(text.status <= 1 && text.stderr.is_empty(), "{name}: {}", text.stderr);
        for line in text.stdout.lines() {
            let long = line.trim().split(' ').map(|word| word.chars().count()).max().unwrap_or(0);
            assert!(line.chars().count() <= 80 || long > 60, "{name}: {line}");
        }
        let report = report(name, &[], &["--", "node", "server.js"]);
        for opinion in report["opinions"].as_array().unwrap() {
            assert_eq!(opinion["asked"], false, "{name}: a recorded machine cannot be asked");
            for said in ["cpus", "memory_bytes"].map(|what| &opinion[what]) {
                let same = said["why"] == "agrees";
                assert!(said.is_null() || (said["agrees"] == true) == same, "{name}: {opinion}");
                assert!(
                    said.is_null() || opinion["cpus"]["value"].as_u64() != Some(0),
                    "{name}: {opinion}"
                );
            }
        }
        for finding in report["findings"].as_array().unwrap() {
            for part in ["id", "severity", "source", "what", "do"] {
                assert!(!finding[part].as_str().unwrap().is_empty(), "{name}: {finding}");
            }
        }
    }
}

#[test]
fn machines_are_diagnosed_as_before() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../fixtures/diagnoses");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for name in [
            "doctor-throttled-memory",
            "doctor-v1-hanging",
            "doctor-worn-out",
            "v2-systemd-nested-slices",
        ] {
            insta::assert_snapshot!(name, on(name, &[], &["--", "npm", "start"]).stdout);
        }
    });
}

#[test]
fn this_machine_is_asked_and_says_the_same_as_when_asked_directly() {
    let run = done(&mut throng(&["doctor", "--format", "json"]));
    assert!(run.status <= 1, "{}", run.stderr);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let std = opinion(&report, "rust-std");
    assert_eq!(std["asked"], true);
    let direct = std::thread::available_parallelism().unwrap().get();
    assert_eq!(std["cpus"]["value"], direct);
    let mask = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let cpus = (0..nix::sched::CpuSet::count()).filter(|cpu| mask.is_set(*cpu).unwrap()).count();
    assert_eq!(opinion(&report, "affinity")["cpus"]["value"], cpus);
    let mut system = sysinfo::System::new().unwrap();
    system.refresh_memory();
    let said = opinion(&report, "sysinfo")["memory_bytes"]["value"].as_u64().unwrap();
    assert!(said <= system.total_memory() && said > 0);
    // The same algorithm that stands in for it on recorded machines.
    let files = done(&mut throng(&["doctor", "--format", "json", "--sysroot", "/"]));
    let files: Value = serde_json::from_str(&files.stdout).unwrap();
    assert_eq!(opinion(&files, "rust-std")["cpus"]["value"], direct);
}

#[test]
fn pretended_limits_are_ours_alone() {
    let report = report("v2-private-ns", &[], &["--cpus", "0.75", "--memory", "128M"]);
    assert_eq!(
        (&report["ours"]["cpus"], &report["ours"]["memory_bytes"]),
        (&0.75.into(), &(128 << 20).into())
    );
    let go = &opinion(&report, "go")["cpus"];
    assert!(go["why"].as_str().unwrap().contains("knows nothing of --cpus"), "{go}");
}

#[test]
fn a_hostile_folder_is_no_machine_and_no_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let run = done(&mut throng(&["doctor", "--sysroot", path]));
    assert!(run.status <= 1 && run.stdout.contains("hidden-proc"), "{}{}", run.stdout, run.stderr);
    for folder in ["proc/self", "proc/1", "proc/sys/vm", "sys/fs/cgroup"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    let write = |name: &str, text: &[u8]| fs::write(dir.path().join(name), text).unwrap();
    write("proc/self/cgroup", b"0::/\n");
    write("proc/self/mountinfo", b"31 23 0:27 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
    write("proc/1/comm", b"\x1b[31mnode\n\xff");
    write("proc/meminfo", b"MemTotal: 99999999999999999999 kB\nSwapTotal: 1 kB\nCommitLimit: x\n");
    write("proc/sys/vm/overcommit_memory", b"2\n");
    write("proc/self/limits", b"Max open files\nMax address space 18446744073709551616 x\n");
    write("sys/fs/cgroup/cpu.max", b"18446744073709551615 1\n");
    write(
        "sys/fs/cgroup/cpu.stat",
        b"nr_periods 1\nnr_throttled 18446744073709551615\nthrottled_usec 18446744073709551615\n",
    );
    write("sys/fs/cgroup/memory.max", b"18446744073709551615\n");
    write("sys/fs/cgroup/memory.high", b"1\n");
    write("sys/fs/cgroup/memory.events", b"oom_kill 18446744073709551616\nhigh -1\n");
    write("sys/fs/cgroup/memory.pressure", b"some avg60=NaN\n");
    write("sys/fs/cgroup/pids.max", b"0\n");
    nix::unistd::mkfifo(
        &dir.path().join("sys/fs/cgroup/memory.oom.group"),
        nix::sys::stat::Mode::S_IRWXU,
    )
    .unwrap();
    for env in [
        ("NODE_OPTIONS", "--max-old-space-size=18446744073709551615"),
        ("GOMAXPROCS", "4294967296"),
        ("JAVA_TOOL_OPTIONS", "-XX:MaxRAMPercentage=inf -Xmx"),
        ("DOTNET_GCHeapHardLimit", "0xzz"),
    ] {
        let run = done(throng(&["doctor", "--sysroot", path]).env(env.0, env.1));
        assert!(run.status <= 1 && run.stderr.is_empty(), "{env:?}: {}", run.stderr);
        assert!(!run.stdout.contains('\x1b'), "what a file holds must not reach the terminal raw");
    }
}
