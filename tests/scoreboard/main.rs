//! The scoreboard: what Rust's standard library, `num_cpus`, `sysinfo` and we say on every recorded
//! machine, beside what is right there.
//!
//! ```sh
//! cargo test --test scoreboard               # is docs/scoreboard.md what would be written?
//! cargo test --test scoreboard -- --write    # writes it
//! ```
//!
//! Nobody is simulated: for each machine this program starts itself anew, the child makes a copy of
//! the machine's folder its root, and calls the peers' own functions there. What a folder cannot
//! hold, the CPUs that `sched_getaffinity(2)` tells, comes from [`affinity`].

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod affinity;
mod ask;
mod machine;
mod page;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use machine::Machine;
use page::{Page, Row};
use serde_json::Value;

/// The first argument of a child, with the folder behind it.
const CHILD: &str = "--as-machine";
/// The status of a child that may not change its root.
const MAY_NOT: i32 = 77;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/scoreboard.md");

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    if let [first, folder, cpus] = args.as_slice()
        && first == CHILD
    {
        return ask::child(Path::new(folder), cpus.to_str().unwrap());
    }
    let mut rows = Vec::new();
    for machine in machine::all() {
        match answers(&machine) {
            Ok(said) => rows.push(Row { machine, said }),
            Err(why) => return cannot(&why),
        }
    }
    assert!(rows.len() > 100, "only {} machines", rows.len());
    let page = Page::new(rows);
    let text = page.render();
    if args.iter().any(|arg| arg == "--write") {
        fs::write(DOCUMENT, text).unwrap();
        println!("written: docs/scoreboard.md");
        return ExitCode::SUCCESS;
    }
    let written = fs::read_to_string(DOCUMENT).unwrap_or_default();
    match page::differences(&written, &text) {
        differences if differences.is_empty() => {
            println!("scoreboard: docs/scoreboard.md is what these machines give");
            ExitCode::SUCCESS
        }
        differences => {
            eprintln!("docs/scoreboard.md is not what these machines give:\n{differences}");
            eprintln!("write it anew with: cargo test --test scoreboard -- --write");
            ExitCode::FAILURE
        }
    }
}

/// Where a child may not change its root, nothing is asked: said by name, and a failure where
/// everything must run.
fn cannot(why: &str) -> ExitCode {
    eprintln!("scoreboard: not run: {why}; needs root or user namespaces");
    ExitCode::from(u8::from(env::var_os("THRONG_TESTS").is_some_and(|all| all == "all")))
}

/// What everybody says on one machine; the error is why nobody can be asked here.
fn answers(machine: &Machine) -> Result<Value, String> {
    let copy = tempfile::tempdir().unwrap();
    machine.copy_to(copy.path());
    let output = Command::new(env::current_exe().unwrap())
        .arg(CHILD)
        .arg(copy.path())
        .arg(machine.cpus_argument())
        .env_clear()
        .envs(machine.environment.iter().map(|(name, value)| {
            (OsString::from_vec(name.clone()), OsString::from_vec(value.clone()))
        }))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.code() == Some(MAY_NOT) {
        return Err(text);
    }
    assert!(output.status.success(), "{}: {}: {text}", machine.name, output.status);
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}
