//! Flags, environment and file: who beats whom, and how each kind of bad input is refused.

use std::os::unix::fs::PermissionsExt;

use crate::support::{done, throng};

fn report(args: &[&str], env: &[(&str, &str)]) -> serde_json::Value {
    let mut all = vec!["--dry-run", "--format", "json"];
    all.extend(args);
    let run = done(throng(&all).envs(env.iter().copied()));
    assert_eq!(run.status, 0, "{}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

fn refused(args: &[&str], env: &[(&str, &str)], words: &[&str]) {
    let mut command = throng(args);
    command.args(["--", "true"]).envs(env.iter().copied());
    let run = done(&mut command);
    assert_eq!(run.status, 2, "{args:?} {env:?}: {}", run.stderr);
    for word in words {
        assert!(run.stderr.contains(word), "{args:?} {env:?}: no {word:?} in {}", run.stderr);
    }
    assert!(run.stderr.starts_with("throng-rs: "), "{}", run.stderr);
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other.toml");
    std::fs::write(&file, "workers = 7\nmax-restarts = 2\nstrict = false\n").unwrap();
    let file = file.to_str().unwrap();
    let workers = |args: &[&str], env: &[(&str, &str)]| {
        let report = report(args, env);
        let step =
            report["steps"].as_array().unwrap().iter().find(|step| step["name"] == "workers");
        let source = step.map(|step| step["source"].as_str().unwrap().to_owned());
        (report["workers"].as_u64().unwrap(), source)
    };
    let from = |source: &str| Some(source.to_owned());
    assert_eq!(workers(&["--config", file], &[]), (7, from(&format!("file:{file}"))));
    assert_eq!(
        workers(&["--config", file], &[("THRONG_WORKERS", "6")]),
        (6, from("env:THRONG_WORKERS"))
    );
    assert_eq!(
        workers(&["--config", file, "--workers", "5"], &[("THRONG_WORKERS", "6")]),
        (5, from("flag:--workers"))
    );
    assert_eq!(workers(&["--config", file], &[("THRONG_WORKERS", " ")]).0, 7, "blank is unset");
    assert_eq!(
        workers(
            &["--workers", "auto", "--cpus", "3", "--memory", "8G"],
            &[("WEB_CONCURRENCY", "9")]
        ),
        (3, None)
    );
}

#[test]
fn a_file_here_is_taken_unless_others_may_write_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("throng.toml");
    std::fs::write(
        &file,
        "workers = 7\ncommand = [\"echo\", \"from the file\"]\nrestart = \"never\"\n",
    )
    .unwrap();
    let run = || done(throng(&[]).current_dir(dir.path()));
    let taken = run();
    assert_eq!(taken.stdout, "from the file\n".repeat(7), "{}", taken.stderr);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let passed_over = run();
    assert_eq!(passed_over.status, 2, "there is no command then");
}

#[test]
fn bad_values_are_named_with_their_origin_and_what_is_accepted() {
    refused(&["--workers", "many"], &[], &["\"many\"", "--workers", "auto"]);
    refused(&["--workers", "-1"], &[], &["\"-1\"", "--workers"]);
    refused(&["--workers", "0"], &[], &["\"0\""]);
    refused(&["--worker-memory", "1X"], &[], &["\"1X\"", "512M"]);
    refused(&["--headroom", "100%"], &[], &["\"100%\"", "99%"]);
    refused(&["--cpus", "0"], &[], &["\"0\"", "1.5"]);
    refused(&["--cpus", "nan"], &[], &["\"nan\""]);
    refused(&["--grace", "5"], &[], &["\"5\"", "500ms"]);
    refused(&["--stop-signal", "STOP"], &[], &["\"STOP\"", "TERM"]);
    refused(&["--adapt", "more"], &[], &["\"more\"", "--adapt", "auto, on, off"]);
    refused(&["--guard", "yes"], &[], &["\"yes\"", "--guard"]);
    refused(&["--max-worker-memory", "0"], &[], &["\"0\"", "512M", "auto"]);
    refused(&["--restart", "often"], &[], &["\"often\"", "on-failure"]);
    refused(&["--listen", "localhost"], &[], &["\"localhost\"", "127.0.0.1:3000"]);
    refused(&[], &[("THRONG_GRACE", "soon")], &["\"soon\"", "THRONG_GRACE in the environment"]);
    refused(&[], &[("THRONG_STRICT", "maybe")], &["\"maybe\"", "THRONG_STRICT"]);
    refused(&[], &[("WEB_CONCURRENCY", "lots")], &["\"lots\"", "WEB_CONCURRENCY"]);
    refused(&[], &[("WEB_CONCURRENCY", "2.5")], &["\"2.5\""]);
    refused(&[], &[("WEB_MEMORY", "-5")], &["\"-5\"", "WEB_MEMORY"]);
    refused(&["--isolate", "yes"], &[], &["\"yes\"", "--isolate", "auto, on, off"]);
}

#[test]
fn contradictions_are_named() {
    refused(
        &["--workers", "4", "--max-workers", "2"],
        &[],
        &["--workers (4)", "--max-workers (2)"],
    );
    refused(
        &["--min-workers", "4"],
        &[("THRONG_MAX_WORKERS", "2")],
        &["--min-workers (4)", "THRONG_MAX_WORKERS"],
    );
    refused(
        &["--workers", "1", "--min-workers", "2"],
        &[],
        &["--min-workers (2)", "--workers (1)"],
    );
    refused(&["-q", "-v"], &[], &["--quiet", "--verbose"]);
    refused(&["--listen", "3000", "--share", "off"], &[], &["--listen", "--share proxy"]);
    refused(&["--share", "fd"], &[], &["--share", "--listen"]);
    refused(&["--format", "json"], &[], &["--format", "--dry-run"]);
    refused(&["--sysroot", "/"], &[], &["--sysroot", "--dry-run"]);
    refused(&["--exec", "--share", "fd", "--listen", "3000"], &[], &["--exec"]);
    refused(
        &["--adapt", "on", "--workers", "4"],
        &[],
        &["--adapt (on)", "--workers (4)", "--max-workers"],
    );
    refused(&["--adapt", "on"], &[("THRONG_WORKERS", "4")], &["THRONG_WORKERS", "--adapt (on)"]);
    refused(&["--exec"], &[("THRONG_ADAPT", "on")], &["THRONG_ADAPT", "--exec"]);
    refused(
        &["--max-worker-memory", "auto"],
        &[("THRONG_GUARD", "off")],
        &["THRONG_GUARD in the environment (off)", "--max-worker-memory"],
    );
    refused(&["--exec", "--isolate", "on"], &[], &["--exec", "--isolate"]);
}

#[test]
fn bad_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.toml");
    let path = file.to_str().unwrap();
    for (text, words) in [
        ("worker = 3\n", vec!["\"worker\"", path]),
        ("workers = \"x\"\n", vec!["\"x\"", "workers in", path]),
        ("workers = [1]\n", vec!["workers in", path]),
        ("grace = 5\n", vec!["\"5\"", "grace in", path]),
        ("workers = \n", vec!["TOML", "line 1", path]),
        ("command = \"node x\"\n", vec!["command in", "list"]),
        ("config = \"x\"\n", vec!["\"config\""]),
    ] {
        std::fs::write(&file, text).unwrap();
        let run = done(&mut throng(&["--config", path, "--dry-run"]));
        assert_eq!(run.status, 2, "{text}: {}", run.stderr);
        for word in words {
            assert!(run.stderr.contains(word), "{text}: no {word:?} in {}", run.stderr);
        }
    }
    refused(&["--config", "/nonexistent/t.toml"], &[], &["/nonexistent/t.toml"]);
    refused(&["--config", "/tmp"], &[], &["/tmp"]);
}

#[test]
fn an_unknown_variable_of_our_kind_only_warns() {
    let report =
        report(&[], &[("THRONG_PORT_80_TCP", "tcp://10.0.0.1:80"), ("THRONG_WORKER_ID", "3")]);
    let warnings = report["warnings"].as_array().unwrap();
    assert!(
        warnings.iter().any(|w| w.as_str().unwrap().contains("THRONG_PORT_80_TCP")),
        "{warnings:?}"
    );
    assert!(
        !warnings.iter().any(|w| w.as_str().unwrap().contains("THRONG_WORKER_ID")),
        "{warnings:?}"
    );
}

#[test]
fn web_concurrency_is_an_order_or_advice() {
    let roomy = ["--memory", "8G", "--cpus", "4"];
    let pinned = report(&roomy, &[("WEB_CONCURRENCY", "9")]);
    assert_eq!((&pinned["workers"], &pinned["bound_by"]), (&9.into(), &"explicit".into()));
    let advice =
        report(&roomy, &[("WEB_CONCURRENCY", "9"), ("WEB_CONCURRENCY_SET_BY", "heroku/nodejs")]);
    assert_eq!(advice["workers"], 4);
    let step = advice["steps"]
        .as_array()
        .unwrap()
        .iter()
        .find(|step| step["name"] == "WEB_CONCURRENCY")
        .unwrap();
    assert_eq!(step["value"], "9");
    assert!(step["because"].as_str().unwrap().contains("heroku/nodejs"));
    let bounded = report(&["--max-workers", "3"], &[("WEB_CONCURRENCY", "9")]);
    assert_eq!((&bounded["workers"], &bounded["bound_by"]), (&3.into(), &"max-workers".into()));
    let nested = report(
        &roomy,
        &[
            ("WEB_CONCURRENCY", "1"),
            ("WEB_CONCURRENCY_SET_BY", "throng-rs"),
            ("THRONG_WORKER_ID", "2"),
        ],
    );
    assert_eq!(nested["workers"], 1, "a worker of another throng-rs is one of its N already");
}

#[test]
fn the_cost_of_a_worker_comes_from_the_flag_then_web_memory_then_the_table() {
    let cost = |args: &[&str], env: &[(&str, &str)]| {
        let mut all = vec!["--memory", "8G", "--cpus", "1"];
        all.extend(args);
        all.extend(["--", "node", "x.js"]);
        let report = report(&all, env);
        let step = report["steps"]
            .as_array()
            .unwrap()
            .iter()
            .find(|step| step["name"] == "one worker")
            .unwrap()
            .clone();
        (step["value"].as_str().unwrap().to_owned(), step["source"].as_str().map(str::to_owned))
    };
    assert_eq!(cost(&[], &[]), ("300 MiB".to_owned(), None));
    assert_eq!(
        cost(&[], &[("WEB_MEMORY", "512")]),
        ("512 MiB".to_owned(), Some("env:WEB_MEMORY".to_owned()))
    );
    assert_eq!(
        cost(&["--worker-memory", "1G"], &[("WEB_MEMORY", "512")]),
        ("1 GiB".to_owned(), Some("flag:--worker-memory".to_owned()))
    );
    assert_eq!(cost(&["--worker-memory", "auto"], &[("WEB_MEMORY", "512")]).0, "300 MiB");
}

#[test]
fn a_forgotten_separator_is_explained() {
    let run = done(&mut throng(&["node", "server.js"]));
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("throng-rs -- node server.js"), "{}", run.stderr);
    let run = done(&mut throng(&[]));
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("no command"), "{}", run.stderr);
}

#[test]
fn help_and_version() {
    let help = done(&mut throng(&["--help"]));
    assert_eq!(help.status, 0);
    assert!(help.stdout.contains("--max-workers") && help.stderr.is_empty());
    let version = done(&mut throng(&["--version"]));
    assert_eq!(version.stdout, format!("throng-rs {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_flag_is_in_the_documentation() {
    let help = done(&mut throng(&["--help"])).stdout;
    let reference =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md")).unwrap();
    let flags =
        help.split_ascii_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
    for flag in flags {
        let flag = flag.trim_end_matches([',', '.', ';', ']']);
        assert!(reference.contains(&format!("`{flag}")), "{flag} is not in docs/reference.md");
    }
}

#[test]
fn a_port_that_is_none_is_named() {
    for text in ["junk", "65536", "0", "127.0.0.1:80"] {
        let run = done(throng(&["--dry-run"]).env("PORT", text));
        assert_eq!(run.status, 0);
        let want = format!("PORT is \"{text}\", which is no port from 1 to 65535");
        assert!(run.stdout.contains(&want), "{}", run.stdout);
    }
}
