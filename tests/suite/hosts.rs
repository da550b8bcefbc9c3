//! Every recorded machine in `fixtures/hosts`: the numbers against `expect.json`, which was reasoned
//! from the kernel's rules, and the explanation against a snapshot. And this real machine.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use throng_rs::plan::Request;
use throng_rs::probe::Fact;
use throng_rs::{Host, Plan, Resources};

use crate::support::{done, throng};

fn machines() -> Vec<PathBuf> {
    let all = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/hosts")).unwrap();
    let mut all: Vec<_> = all.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

fn resources(machine: &Path) -> Resources {
    let host = Host::sysroot(machine).unwrap();
    // Without a recorded environment it has none, not ours.
    let nothing: [(&str, &str); 0] = [];
    let recorded = machine.join("proc/self/environ").exists();
    Resources::of(&if recorded { host } else { host.with_env(nothing) })
}

/// What was found, under the names of `expect.json`.
fn found(resources: &Resources) -> Value {
    let bytes = |fact: &Option<Fact<u64>>| fact.as_ref().map(|fact| fact.value);
    serde_json::json!({
        "cpu_quota": resources.cpu.quota.as_ref().map(|quota| quota.value.as_f64()),
        "cpu_set": resources.cpu.set,
        "memory_limit": bytes(&resources.memory.limit),
        "memory_high": bytes(&resources.memory.high),
        "memory_available": resources.memory.available,
        "pids_limit": bytes(&resources.tasks.limit),
    })
}

fn same(found: &Value, expected: &Value) -> bool {
    match (found.as_f64(), expected.as_f64()) {
        (Some(found), Some(expected)) => (found - expected).abs() <= 1e-9 * expected.abs(),
        _ => found == expected,
    }
}

#[test]
fn every_machine_has_its_right_answer() {
    let mut wrong = Vec::new();
    let machines = machines();
    assert!(machines.len() > 100);
    for machine in &machines {
        let expected: Value =
            serde_json::from_slice(&fs::read(machine.join("expect.json")).unwrap()).unwrap();
        let found = found(&resources(machine));
        for (name, value) in expected.as_object().unwrap() {
            if name != "why" && !same(&found[name], value) {
                let machine = machine.file_name().unwrap().display();
                wrong.push(format!(
                    "{machine}: {name} is {} and not {value}: {}",
                    found[name], expected["why"]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same machine held in memory; `None` where it has what memory cannot hold (links).
fn in_memory(machine: &Path) -> Option<Host> {
    let mut files = Vec::new();
    let mut folders = vec![machine.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries: Vec<_> = fs::read_dir(&folder).unwrap().map(Result::unwrap).collect();
        let seen = |path: &Path| Path::new("/").join(path.strip_prefix(machine).unwrap());
        if entries.is_empty() {
            files.push((seen(&folder).join("nothing"), Vec::new()));
        }
        for entry in entries {
            let kind = entry.file_type().unwrap();
            if kind.is_symlink() {
                return None;
            }
            if kind.is_dir() {
                folders.push(entry.path());
            } else {
                files.push((seen(&entry.path()), fs::read(entry.path()).unwrap()));
            }
        }
    }
    Some(Host::from_files(files))
}

#[test]
fn a_machine_in_memory_is_the_one_on_disk() {
    let mut compared = 0;
    for machine in machines() {
        if machine.join("proc/self/environ").exists() {
            continue;
        }
        let Some(host) = in_memory(&machine) else { continue };
        let (memory, disk) = (Resources::of(&host), resources(&machine));
        assert_eq!(found(&memory), found(&disk), "{}", machine.display());
        compared += 1;
    }
    assert!(compared > 100);
}

#[test]
fn every_machine_is_explained_as_before() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../fixtures/explanations");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for machine in machines() {
            let name = machine.file_name().unwrap().to_str().unwrap().to_owned();
            let args =
                ["--dry-run", "--sysroot", machine.to_str().unwrap(), "--", "node", "server.js"];
            let run = done(&mut throng(&args));
            assert_eq!(run.status, 0, "{name}: {}", run.stderr);
            insta::assert_snapshot!(name, run.stdout);
        }
    });
}

#[test]
fn the_program_says_what_the_library_says() {
    for machine in machines() {
        let args = ["--dry-run", "--format", "json", "--sysroot", machine.to_str().unwrap()];
        let run = done(&mut throng(&args));
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        let ours = Plan::new(resources(&machine), &Request::default());
        assert_eq!(report["workers"], ours.workers);
        assert_eq!(
            report["resources"]["memory"]["available_bytes"].as_u64(),
            ours.resources.memory.available
        );
    }
}

/// What is computed from other steps, or assumed and says so; everything else was read or told.
const COMPUTED: &[&str] = &["headroom", "left for workers", "one worker"];

#[test]
fn every_number_names_where_it_came_from() {
    for machine in machines() {
        let args = ["--dry-run", "--format", "json", "--sysroot", machine.to_str().unwrap()];
        let run = done(throng(&args).args(["--", "node", "server.js"]));
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        for step in report["steps"].as_array().unwrap() {
            let known =
                step["value"] != "unknown" && !COMPUTED.contains(&step["name"].as_str().unwrap());
            assert!(!known || step["source"].is_string(), "{}: {step}", machine.display());
        }
    }
}

#[test]
fn this_machine_is_the_same_by_its_calls_and_by_its_files() {
    let live = found(&Resources::detect());
    let files = found(&Resources::of(&Host::sysroot(Path::new("/")).unwrap()));
    for name in ["cpu_quota", "cpu_set", "memory_limit", "memory_high", "pids_limit"] {
        assert!(same(&live[name], &files[name]), "{name}: {live} and {files}");
    }
    // An independent opinion on the whole.
    let mut system = sysinfo::System::new().unwrap();
    system.refresh_memory();
    let ram = Resources::detect().memory.ram.unwrap().value;
    assert!(ram <= system.total_memory() && ram > system.total_memory() / 2);
}

#[test]
fn a_hostile_folder_is_no_machine_and_no_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(done(&mut throng(&["--dry-run", "--sysroot", path])).status, 0, "an empty one");
    fs::create_dir_all(dir.path().join("proc/self")).unwrap();
    fs::create_dir_all(dir.path().join("sys/fs/cgroup")).unwrap();
    // A pipe that nobody writes to, a link that leads out, a link to itself.
    nix::unistd::mkfifo(&dir.path().join("proc/meminfo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/proc/self/mountinfo", dir.path().join("proc/self/mountinfo"))
        .unwrap();
    std::os::unix::fs::symlink("memory.max", dir.path().join("sys/fs/cgroup/memory.max")).unwrap();
    let run = done(&mut throng(&["--dry-run", "--sysroot", path]));
    assert_eq!(run.status, 0, "{}", run.stderr);
    assert!(run.stdout.contains("could not be read"), "{}", run.stdout);
    let missing = done(&mut throng(&["--dry-run", "--sysroot", "/nonexistent/x"]));
    assert_eq!(missing.status, 2);
    assert!(missing.stderr.contains("/nonexistent/x"), "{}", missing.stderr);
}
