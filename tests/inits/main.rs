//! One worker beside tini and dumb-init: the same scenarios under each, and what each did.
//!
//! ```sh
//! cargo test --test inits                 # is docs/inits.md what would be written?
//! cargo test --test inits -- --write      # writes it
//! cargo test --test inits -- --only TEXT  # prints the rows whose name holds TEXT
//! ```
//!
//! Each scenario starts the real init as PID 1 of a PID namespace, as the leader of a session, which is how a container's engine does it
//! (or, where that is the question, as a child of ours), and watches from outside. This program itself is also the command of many
//! scenarios, one that tells every signal it gets: see [`stage`].

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod found;
mod init;
mod page;
mod processes;
mod reasons;
mod rows;
mod scene;
mod setting;
mod signals;
mod stage;
mod status;
mod terminal;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::process::{Command, ExitCode};

use init::Init;
use nix::sys::prctl::set_child_subreaper;
use page::Line;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/inits.md");

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    if let Some(status) = stage::act(&args) {
        return status;
    }
    let versions = match possible() {
        Ok(versions) => versions,
        Err(why) => return cannot(&why),
    };
    // What an init leaves behind comes to us and is seen.
    set_child_subreaper(true).unwrap();
    if let [flag, text] = args.as_slice()
        && flag == "--only"
    {
        return only(text.to_str().unwrap());
    }
    let lines: Vec<Line> = rows::all().into_iter().map(run).collect();
    let unexplained = page::unexplained(&lines);
    let text = page::render(&lines, &versions);
    if args.iter().any(|arg| arg == "--write") {
        fs::write(DOCUMENT, text).unwrap();
        println!("written: docs/inits.md");
    } else {
        let written = fs::read_to_string(DOCUMENT).unwrap_or_default();
        let differences = page::differences(&written, &text, &versions);
        if !differences.is_empty() {
            eprintln!("docs/inits.md is not what the inits do here:\n{differences}");
            eprintln!("write it anew with: cargo test --test inits -- --write");
            return ExitCode::FAILURE;
        }
        println!("inits: docs/inits.md is what {} scenarios give", lines.len());
    }
    // The reasons are about the versions that the page names.
    if !unexplained.is_empty() {
        eprintln!("a difference from tini without a reason, or a reason without a difference:");
        for line in unexplained {
            eprintln!("  {line}");
        }
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(row: rows::Row) -> Line {
    let did = |init| {
        panic::catch_unwind(AssertUnwindSafe(|| (row.act)(init))).unwrap_or_else(|why| {
            eprintln!("this was under {init:?}: {}", row.what);
            panic::resume_unwind(why)
        })
    };
    let (all, kept) = (Init::COMPARED.map(did), did(Init::Kept));
    Line { row, did: all.into(), kept }
}

fn only(text: &str) -> ExitCode {
    for row in rows::all().into_iter().filter(|row| row.what.contains(text)) {
        let line = run(row);
        println!("{} | {} | kept: {}", line.row.what, line.did.join(" | "), line.kept);
    }
    ExitCode::SUCCESS
}

/// The versions of the others, where all can run here.
fn possible() -> Result<String, String> {
    let versions = page::versions()?;
    let mut command = Command::new("unshare");
    command.args(["-pf", "--mount-proc"]);
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    match command.args(["--", "true"]).output() {
        Ok(output) if output.status.success() => Ok(versions),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("unshare: {error}")),
    }
}

/// Said by name, and a failure where everything must run.
fn cannot(why: &str) -> ExitCode {
    eprintln!("inits: not run: {why}; needs tini, dumb-init, and root or user namespaces");
    ExitCode::from(u8::from(env::var_os("THRONG_TESTS").is_some_and(|all| all == "all")))
}
