//! What the program does, one file a subcommand: settings in, exit status out.

mod calibrate;
mod control;
mod demo;
mod doctor;
mod listeners;
mod orders;
mod run;
mod size;
mod table;
mod way;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;

use run::Inherited;

use crate::cli;
use crate::engine::Resume;
use crate::exit::{Failure, SUCCESS, usage};
use crate::probe::Host;
use crate::settings::{Defaults, Settings, Switch};
use crate::units::printable;

/// The program: parses the arguments and environment of this process and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    let status = match perform(std::env::args_os()) {
        Ok(status) => status,
        Err(failure) => {
            // Where standard error is gone, the status still tells.
            let text = failure.to_string();
            let lines: Vec<_> = text.lines().map(printable).collect();
            let _ = writeln!(io::stderr(), "throng-rs: {}", lines.join("\n"));
            failure.status()
        }
    };
    ExitCode::from(status)
}

fn perform(args: impl Iterator<Item = OsString>) -> Result<u8, Failure> {
    let args: Vec<OsString> = args.collect();
    let host = Host::live();
    // Before anything is opened, by which a number that was not passed to us might be taken.
    let found = listeners::find(&host);
    let resume = Resume::from_env(&host)?;
    let way_back = resume.as_ref().and_then(Resume::way_back);
    match (dispatch(&args, &host, Inherited { found, resume }), way_back) {
        // The program that was here before goes on with the fleet, where this one could not.
        (Err(failure), Some(way_back)) if way_back.is_open() => {
            Err(Failure::Other(way_back.go(&failure.to_string())))
        }
        (result, _) => result,
    }
}

fn dispatch(args: &[OsString], host: &Host, inherited: Inherited) -> Result<u8, Failure> {
    let matches = match cli::command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => return refuse(&error, args),
    };
    match matches.subcommand() {
        Some(("demo-server", _)) => demo::serve(inherited.found),
        Some(("demo", matches)) => demo::run(matches, host, inherited),
        Some(("table", matches)) => table::run(matches, args, host),
        Some(("calibrate", matches)) => calibrate::run(matches, host),
        Some(("doctor", matches)) => doctor::run(matches, host),
        Some((name, matches)) if cli::CONTROL.iter().any(|control| control.name == name) => {
            control::run(name, matches)
        }
        _ => {
            let _inside = calibrate::follow(&matches, host)?;
            let passed = !matches!(inherited.found, Ok(None));
            let defaults = Defaults { share: None, listen: None };
            let mut settings = Settings::read(&matches, host, defaults)?;
            let share = way::choose(&mut settings, host, passed)?;
            if settings.dry_run {
                size::report(&settings, host)
            } else {
                let read = move || Settings::read(&matches, &Host::live(), defaults);
                run::run(&settings, share, host, inherited, Box::new(read))
            }
        }
    }
}

/// Help and version go to standard output; the rest is bad input, with a hint where `--` was forgotten.
fn refuse(error: &clap::Error, args: &[OsString]) -> Result<u8, Failure> {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        print(&error.render().to_string())?;
        return Ok(SUCCESS);
    }
    let text = error.render().to_string();
    let text = text.trim_end().trim_start_matches("error: ");
    let forgotten =
        matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand)
            && !args.iter().any(|arg| arg == "--");
    let hint = "\n\nA command goes behind two dashes: throng-rs -- node server.js";
    Err(usage(format!("{text}{}", if forgotten { hint } else { "" })))
}

/// Writes to standard output; a reader that has seen enough (`| head -1`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Other(
            anyhow::Error::new(error).context("cannot write to standard output"),
        )),
        _ => Ok(()),
    }
}

/// Whether what goes to `stream` may be coloured (<https://no-color.org>).
fn colored(choice: Switch, host: &Host, stream: &impl IsTerminal) -> bool {
    match choice {
        Switch::On => true,
        Switch::Off => false,
        Switch::Auto => {
            stream.is_terminal()
                && host.env("NO_COLOR").is_none()
                && host.env("TERM").is_none_or(|term| term != "dumb")
        }
    }
}
