//! The sizing report in its forms.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::support::{done, throng};

const NODE: &[&str] = &["--dry-run", "--memory", "512M", "--cpus", "4", "--", "node", "server.js"];

#[test]
fn the_json_has_the_form_of_the_contract() {
    let mut args = vec!["--format", "json"];
    args.extend(NODE);
    let run = done(&mut throng(&args));
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["schema"], 1);
    assert_eq!(report["workers"], 1);
    assert_eq!(report["bound_by"], "memory");
    assert_eq!(report["worker"]["memory_bytes"], 536_870_912_u64 - 80_530_635);
    assert_eq!(report["worker"]["cpus"], 4.0);
    let memory = &report["resources"]["memory"];
    assert_eq!(memory["limit_bytes"], 536_870_912);
    assert_eq!(memory["source"], "flag:--memory");
    assert!(memory["high_bytes"].is_null() && memory["ram_bytes"].is_u64());
    assert_eq!(report["resources"]["cpu"]["quota"], 4.0);
    assert_eq!(report["resources"]["cpu"]["source"], "flag:--cpus");
    assert!(report["resources"]["tasks"].get("limit").is_some());
    for step in report["steps"].as_array().unwrap() {
        assert!(
            step["name"].is_string() && step["value"].is_string() && step["because"].is_string()
        );
    }
    assert_eq!(report["environment"]["WEB_CONCURRENCY"], "1");
    assert_eq!(report["environment"]["NODE_OPTIONS"], "--max-old-space-size=300");
}

#[test]
fn the_text_begins_with_the_number_and_what_bound_it() {
    let run = done(&mut throng(NODE));
    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!(lines[0], "1 worker of node server.js, with 435 MiB and 4 CPUs");
    assert!(lines[1].starts_with("Bound by memory: memory allows 1 worker"), "{}", lines[1]);
    assert!(run.stdout.contains("with 194 MiB more memory: 2 workers\n"), "{}", run.stdout);
    assert!(!run.stdout.contains('\x1b'), "no colour in a pipe");
    let colored = done(throng(&["--color", "always", "--dry-run"]).env("NO_COLOR", "1"));
    assert!(colored.stdout.contains("\x1b[1m"));
}

#[test]
fn a_change_that_is_named_gives_the_number_that_is_named() {
    for (memory, cpus) in [(512, "4"), (1024, "2.5"), (3000, "16"), (700, "0.3")] {
        let report = |memory: u64, cpus: &str| -> serde_json::Value {
            let memory = format!("{memory}M");
            let args = [
                "--dry-run",
                "--format",
                "json",
                "--memory",
                &memory,
                "--cpus",
                cpus,
                "--",
                "node",
                "x",
            ];
            serde_json::from_str(&done(&mut throng(&args)).stdout).unwrap()
        };
        for change in report(memory, cpus)["changes"].as_array().unwrap() {
            let with = change["with"].as_str().unwrap();
            let number = with.split(' ').next().unwrap();
            let changed = if with.ends_with("MiB more memory") {
                report(memory + number.parse::<u64>().unwrap(), cpus)
            } else if with.ends_with("more CPU") && !with.contains("memory") {
                let more = number.parse::<f64>().unwrap() + cpus.parse::<f64>().unwrap();
                report(memory, &more.to_string())
            } else {
                continue;
            };
            assert_eq!(
                changed["workers"], change["workers"],
                "{memory} MiB, {cpus} CPUs with {with}"
            );
        }
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child =
        throng(&["--dry-run"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Closed before anything was written or in the middle of it: both must be silent.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let mut child = throng(&["--dry-run"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("worker"));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_full_disk_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = throng(&["--dry-run"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output"));
}

#[test]
fn lines_for_eval_survive_a_shell() {
    let script = "eval \"$(\"$0\" --dry-run --format env --memory 2G --cpus 3 -- node x)\"; \
        echo \"$WEB_CONCURRENCY|$WEB_CONCURRENCY_SET_BY|$NODE_OPTIONS\"";
    let shell = |options: &str, concurrency: Option<&str>| {
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_throng-rs")]).env_clear();
        command.env("PATH", "/usr/bin:/bin").env("NODE_OPTIONS", options);
        if let Some(concurrency) = concurrency {
            command.env("WEB_CONCURRENCY", concurrency);
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    // (2 GiB less 15 %) / 3, 80 % of it less 48 MiB.
    assert_eq!(shell("", None), "3|throng-rs|--max-old-space-size=416\n");
    let quoted = shell("--title 'it''s $x'", None);
    assert_eq!(quoted, "3|throng-rs|--title 'it''s $x' --max-old-space-size=416\n");
    // A pinned number stays the user's, however often the line is evaluated.
    assert!(shell("", Some("2")).starts_with("2||"));
}

#[test]
fn strict_refuses_where_nothing_fits() {
    let args = ["--strict", "--memory", "64M", "--", "sh", "-c", "echo started"];
    let run = done(&mut throng(&args));
    assert_eq!(run.status, 3);
    assert_eq!(run.stdout, "");
    assert!(run.stderr.contains("not even one worker"), "{}", run.stderr);
    let dry = done(&mut throng(&["--strict", "--dry-run", "--memory", "64M"]));
    assert_eq!(dry.status, 3);
    let fits = done(&mut throng(&["--strict", "--dry-run", "--memory", "512M"]));
    assert_eq!(fits.status, 0);
}

#[test]
fn a_start_says_why_in_one_block_on_standard_error() {
    let args =
        ["--memory", "512M", "--cpus", "2", "--restart", "never", "--", "sh", "-c", "exit 0"];
    let run = done(&mut throng(&args));
    assert!(
        run.stderr
            .starts_with("throng-rs: 2 workers of sh -c exit 0, each with 217 MiB and 1 CPU\n"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("throng-rs:   Bound by CPU: memory allows 4 workers"),
        "{}",
        run.stderr
    );
    let mut quiet = vec!["-q"];
    quiet.extend(args);
    assert_eq!(done(&mut throng(&quiet)).stderr, "");
}
