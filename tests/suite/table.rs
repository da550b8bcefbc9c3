//! `throng-rs table`: the same arithmetic as a report, over many machines.

use serde_json::Value;

use crate::support::{done, throng};

fn rows(args: &[&str]) -> Vec<Value> {
    let run = done(throng(&["table", "--format", "json"]).args(args));
    assert_eq!(run.status, 0, "{}", run.stderr);
    let table: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(table["schema"], 1);
    table["rows"].as_array().unwrap().clone()
}

#[test]
fn each_cell_is_what_a_report_says_for_that_machine() {
    // Headroom depends on this machine's swap in a report, unless it is told.
    let options = ["--headroom", "10%", "--worker-memory", "200M"];
    let rows = rows(&options);
    assert!(rows.len() > 50);
    for row in rows.iter().step_by(7) {
        let (memory, cpus) = (row["memory_bytes"].to_string(), row["cpus"].to_string());
        let mut report = throng(&["--dry-run", "--format", "json", "--memory", &memory]);
        let run = done(report.args(["--cpus", &cpus]).args(options));
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(report["workers"], row["workers"], "{row}");
        assert_eq!(report["bound_by"], row["bound_by"], "{row}");
        assert_eq!(report["fits"], row["fits"], "{row}");
    }
}

#[test]
fn a_pretended_size_leaves_one_row_or_column() {
    let all = rows(&[]).len();
    let row = rows(&["--memory", "3G"]);
    assert!(row.iter().all(|row| row["memory_bytes"] == 3_221_225_472_u64) && row.len() < all);
    assert_eq!(rows(&["--memory", "3G", "--cpus", "2.5", "node", "x"]).len(), 1);
    // What a pinned number would say of every machine is no answer.
    let mut pinned = throng(&["table", "--memory", "8G", "--cpus", "4", "--format", "csv"]);
    let run = done(pinned.env("WEB_CONCURRENCY", "2"));
    assert!(run.stdout.ends_with(",an unknown program,4,cpu,true\n"), "{}", run.stdout);
}

#[test]
fn with_herokus_inputs_the_numbers_are_herokus() {
    let theirs = |row: &Value| (row["workers"].as_u64(), row["buildpack_workers"].as_u64());
    let small = ["heroku", "--headroom", "0", "--workers-per-cpu", "100", "--worker-memory"];
    // 512 MiB up to 16 GiB, 2 GiB above: as WEB_MEMORY is reckoned there.
    for (cost, range) in [("512M", 0..4), ("2G", 4..7)] {
        let rows = rows(&[&small[..], &[cost, "node", "server.js"]].concat());
        for row in &rows[range] {
            let (ours, theirs) = theirs(row);
            assert_eq!(ours, theirs, "{row}");
            assert_eq!(row["buildpack"], "heroku/nodejs");
        }
    }
    // WEB_MEMORY is an input of both.
    let run = done(
        throng(&["table", "heroku", "--headroom", "0", "--workers-per-cpu", "100"])
            .args(["--format", "json", "node", "x"])
            .env("WEB_MEMORY", "1024"),
    );
    let table: Value = serde_json::from_str(&run.stdout).unwrap();
    for row in table["rows"].as_array().unwrap() {
        let (ours, theirs) = theirs(row);
        assert_eq!(ours, theirs, "{row}");
        assert_eq!(row["buildpack_because"], Value::Array(Vec::new()));
    }
}

#[test]
fn the_dynos_are_listed_for_both_buildpacks() {
    let run = done(&mut throng(&["table", "heroku"]));
    assert!(run.stdout.contains("heroku/nodejs") && run.stdout.contains("heroku/python"));
    let line = run.stdout.lines().find(|line| line.contains("Performance-M")).unwrap();
    assert!(line.contains("2c") && line.contains("does not look at CPUs"), "{line}");
    let csv = done(&mut throng(&["table", "heroku", "--format", "csv"])).stdout;
    let mut lines = csv.lines();
    let columns = lines.next().unwrap().split(',').count();
    assert!(lines.all(|line| line.split(',').count() == columns), "{csv}");
}

#[test]
fn what_a_table_cannot_do_is_refused() {
    for (args, expected) in [
        (&["--workers", "3"][..], "--workers 3"),
        (&["--format", "env"], "--format env"),
        (&["--sysroot", "/"], "--sysroot"),
        (&["heroku", "--bogus"], "--bogus"),
        (&["--memory", "lots"], "\"lots\""),
    ] {
        let run = done(throng(&["table"]).args(args));
        assert_eq!(run.status, 2, "{args:?}");
        assert!(run.stderr.contains(expected), "{}", run.stderr);
    }
    let run = done(&mut throng(&["--dry-run", "--format", "csv"]));
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("throng-rs table"), "{}", run.stderr);
}
