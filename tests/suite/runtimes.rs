//! Real runtimes under the plan, asked what they believe. And real files, recognised.

use std::path::Path;
use std::process::Command;

use crate::support::{done, throng};

/// Whether the runtime is here; where everything has to be, its absence is a failure.
fn here(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let found = found.is_ok_and(|output| output.status.success());
    assert!(
        found || std::env::var("THRONG_TESTS").as_deref() != Ok("all"),
        "{program} is not installed; tests/beds/install brings it"
    );
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// What one of two workers prints, each with 400 MiB less headroom and one CPU of two.
fn asked(options: &[&str], command: &[&str]) -> String {
    let common = ["-q", "--workers", "2", "--cpus", "2", "--memory", "900M", "--headroom", "100M"];
    let mut run = throng(&common);
    // Version managers find their runtimes by their own variables.
    run.envs(std::env::vars().filter(|(name, _)| name == "PATH" || name == "HOME"));
    let run = done(run.args(["--restart", "never"]).args(options).arg("--").args(command));
    assert_eq!(run.status, 0, "{command:?}: {}", run.stderr);
    run.stdout.lines().find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

const NODE: &str =
    "console.log(Math.round(require('v8').getHeapStatistics().heap_size_limit / 1048576))";

#[test]
fn node_believes_its_share() {
    if !here("node") {
        return;
    }
    // 80 % of 400 MiB less 48 MiB for the old generation; V8 adds its young one, up to 48 MiB.
    let heap: u64 = asked(&[], &["node", "-e", NODE]).parse().unwrap();
    assert!((272..=272 + 48).contains(&heap), "{heap}");
    let own: u64 = asked(&[], &["node", "--max-old-space-size=100", "-e", NODE]).parse().unwrap();
    assert!((100..=148).contains(&own), "what the command says stays: {own}");
    let off: u64 = asked(&["--runtime-env", "off"], &["node", "-e", NODE]).parse().unwrap();
    assert!(off > 400, "V8's own idea is of the whole machine: {off}");
}

#[test]
fn python_believes_its_share() {
    if !here("python3") {
        return;
    }
    let script = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['MALLOC_ARENA_MAX'], \
        getattr(os, 'process_cpu_count', lambda: 1)())";
    assert_eq!(asked(&[], &["python3", "-c", script]), "1 2 1");
}

#[test]
fn ruby_believes_its_share() {
    if !here("ruby") {
        return;
    }
    assert_eq!(asked(&[], &["ruby", "-e", "puts ENV['MALLOC_ARENA_MAX']"]), "2");
}

#[test]
fn java_believes_its_share() {
    if !here("java") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("Ask.java");
    let code = "public class Ask { public static void main(String[] a) { Runtime r = Runtime.getRuntime(); \
        System.out.println((r.maxMemory() >> 20) + \" \" + r.availableProcessors()); } }";
    std::fs::write(&source, code).unwrap();
    let answer = asked(&[], &["java", source.to_str().unwrap()]);
    let (heap, cpus) = answer.split_once(' ').unwrap();
    // 400 MiB less 158 MiB for what is no heap: 60 %. The survivor space counts or not, by collector.
    let heap: u64 = heap.parse().unwrap();
    assert!((220..=242).contains(&heap), "{answer}");
    assert_eq!(cpus, "1");
}

/// The runtime that the report names for a command.
fn named(dir: &Path, command: &[&str]) -> String {
    let dir = dir.to_str().unwrap();
    let run = done(throng(&["--dry-run", "--chdir", dir, "--"]).args(command));
    let line = run.stdout.lines().find(|line| line.contains("one worker")).unwrap();
    line.split("assumed for ").nth(1).unwrap().to_owned()
}

#[test]
fn scripts_are_recognised_through_links_and_wrappers() {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("node_modules/.bin");
    std::fs::create_dir_all(&bin).unwrap();
    let script = dir.path().join("cli.js");
    std::fs::write(&script, "#!/usr/bin/env node\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("../../cli.js", bin.join("served")).unwrap();
    let text = named(dir.path(), &["node_modules/.bin/served"]);
    assert!(text.starts_with("Node.js, node_modules/.bin/served is run by node"), "{text}");
    assert!(named(dir.path(), &["env", "A=b", "./cli.js"]).starts_with("Node.js"));
    assert!(named(dir.path(), &["/bin/ls"]).starts_with("a compiled program"));
}

#[test]
fn servers_that_fork_are_warned_about_unless_they_run_once() {
    let warned = |options: &[&str]| {
        let command = ["--", "gunicorn", "-w", "4", "app:app"];
        let mut run = throng(&["--dry-run", "--memory", "4G", "--cpus", "4"]);
        done(run.args(options).args(command)).stdout.contains("4 × 4 processes")
    };
    assert!(warned(&[]));
    assert!(!warned(&["--exec"]) && !warned(&["--format", "env"]) && !warned(&["--workers", "1"]));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("package.json"), r#"{"scripts":{"start":"node server.js"}}"#)
        .unwrap();
    let chdir = dir.path().to_str().unwrap();
    let run = done(&mut throng(&["--dry-run", "--chdir", chdir, "--", "npm", "start"]));
    assert!(run.stdout.contains("run what it runs: node server.js"), "{}", run.stdout);
}
