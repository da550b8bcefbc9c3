//! `throng-rs doctor`: others' opinions beside ours, and what to look at.

use clap::ArgMatches;

use super::size::{inherited, look_for, machine_of, runtime, size, worker_memory};
use super::{colored, print};
use crate::doctor::{Case, Severity, examine};
use crate::exit::{FAILURE, Failure, SUCCESS, usage};
use crate::probe::{Host, probe};
use crate::report;
use crate::settings::{Defaults, Format, Settings};

/// What is wrapped for where nobody says how wide the reader's screen is.
const WIDTH: usize = 80;
/// Lines that are longer than this read badly, however wide the screen is.
const WIDEST: usize = 100;

/// Prints the diagnosis. 1 where something is a problem.
pub(super) fn run(matches: &ArgMatches, host: &Host) -> Result<u8, Failure> {
    let defaults = Defaults { share: None, listen: None };
    let settings = Settings::read(matches, host, defaults)?;
    let form = match settings.format {
        Format::Env => "env",
        Format::Csv => "csv",
        Format::Text | Format::Json => "",
    };
    if !form.is_empty() {
        return Err(usage(format!(
            "doctor prints text or json, and --format is {form}; leave it out or choose one of them"
        )));
    }
    let env = inherited(&settings, host)?;
    let found = look_for(&settings, &env);
    let sized = size(&settings, host, &env)?;
    let recorded = machine_of(&settings)?;
    let host = recorded.as_ref().unwrap_or(host);
    let command: Vec<String> =
        settings.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let diagnosis = examine(&Case {
        host,
        evidence: &probe(host),
        plan: &sized.plan,
        command: &command,
        runtime: settings.command.first().map(|_| runtime(&settings, &env)),
        env: &env.readable(),
        exec: settings.exec,
        worker_memory: worker_memory(&settings, &env),
        warnings: &settings.warnings,
        pinned: settings.sizing.workers.as_ref(),
    });
    let text = match settings.format {
        Format::Json => report::diagnosis_json(&diagnosis),
        Format::Text | Format::Env | Format::Csv => report::diagnosis(
            &diagnosis,
            width(),
            colored(settings.output.color, host, &std::io::stdout()),
        ),
    };
    print(&text)?;
    // A command that is not there is told as anywhere else, behind the diagnosis.
    found?;
    Ok(if diagnosis.count(Severity::Problem) > 0 { FAILURE } else { SUCCESS })
}

/// The columns of the terminal that standard output is, if it is one.
fn width() -> usize {
    let terminal = terminal_size::terminal_size_of(std::io::stdout());
    terminal.map_or(WIDTH, |(width, _)| usize::from(width.0).min(WIDEST))
}
