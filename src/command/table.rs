//! `throng-rs table`: how many workers would fit on machines of every size, and on Heroku's dynos.

use std::ffi::OsString;

use clap::ArgMatches;

use super::size::{inherited, recognised, request, spoken};
use super::{print, refuse};
use crate::cli;
use crate::exit::{Failure, SUCCESS, usage};
use crate::plan::{Plan, Request, Runtime, compare};
use crate::probe::{DYNOS, Host, Resources};
use crate::report::table::{Entry, csv, dynos, grid, json};
use crate::settings::{Defaults, Format, Settings};
use crate::units::{Fraction, MIB, show_size};

/// Usual container sizes in MiB.
const MEMORY: &[u64] = &[256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536];
/// Usual quotas in hundredths of a CPU.
const CPUS: &[u64] = &[25, 50, 100, 150, 200, 400, 800, 1600];

/// Prints the grid, or where the first word is `heroku` the dynos; `args` is the whole command line.
pub(super) fn run(matches: &ArgMatches, args: &[OsString], host: &Host) -> Result<u8, Failure> {
    let without = without_heroku(matches, args);
    let heroku = without.is_some();
    let reparsed = match without {
        // Options may stand behind that word too.
        Some(args) => match cli::command().try_get_matches_from(&args) {
            Ok(matches) => Some(matches),
            Err(error) => return refuse(&error, &args),
        },
        None => None,
    };
    let inner = reparsed.as_ref().and_then(|matches| matches.subcommand_matches("table"));
    let defaults = Defaults { share: None, listen: None };
    let settings = Settings::read(inner.unwrap_or(matches), host, defaults)?;
    check(&settings)?;
    let env = inherited(&settings, host)?;
    let request = request(&settings, recognised(&settings, &env).as_ref(), &env);
    // A pinned number would fill the table with itself.
    let request = Request { workers: None, advice: None, ..request };
    let words = spoken(&settings.command);
    let subject = if words.is_empty() { words } else { format!(" of {words}") };
    let tables = if heroku {
        on_heroku(&request, &subject, settings.command.is_empty())
    } else {
        vec![(subject, request.clone(), sizes(&settings, &request))]
    };
    let text = match settings.format {
        Format::Text => {
            let show = |(subject, request, entries): &(String, Request, Vec<Entry>)| {
                let render = if heroku { dynos } else { grid };
                render(entries, subject, &cost(request, heroku))
            };
            tables.iter().map(show).collect::<Vec<_>>().join("\n")
        }
        format => {
            let entries: Vec<Entry> = tables.into_iter().flat_map(|table| table.2).collect();
            if format == Format::Csv { csv(&entries) } else { json(&entries) }
        }
    };
    print(&text)?;
    Ok(SUCCESS)
}

/// The command line without the word that asks for the dynos, where it is there.
fn without_heroku(matches: &ArgMatches, args: &[OsString]) -> Option<Vec<OsString>> {
    let words = matches.get_many::<OsString>("command")?;
    // The words are the end of the command line.
    let at = args.len().checked_sub(words.len())?;
    let mut args = args.to_vec();
    (args.get(at)? == "heroku").then(|| args.remove(at))?;
    Some(args)
}

fn check(settings: &Settings) -> Result<(), Failure> {
    if settings.format == Format::Env {
        return Err(usage(
            "--format env is for one number and a table has many; take text, json or csv",
        ));
    }
    if settings.what_if.sysroot.is_some() {
        return Err(usage(
            "--sysroot describes one machine and a table many; use it with --dry-run",
        ));
    }
    let told = settings.sizing.workers.as_ref().filter(|one| !one.is_from("env:WEB_CONCURRENCY"));
    match told {
        Some(told) => Err(usage(format!(
            "--workers {} is told and a table computes; leave it out",
            told.value
        ))),
        None => Ok(()),
    }
}

/// The grid; a pretended memory or CPU leaves one row or one column.
fn sizes(settings: &Settings, request: &Request) -> Vec<Entry> {
    let memory = settings.what_if.memory.as_ref().map(|given| given.value);
    let memory = memory.map_or_else(|| MEMORY.iter().map(|mib| mib * MIB).collect(), |m| vec![m]);
    let cpus = settings.what_if.cpus.as_ref().map(|given| given.value);
    let cpus: Vec<Fraction> = cpus.map_or_else(
        || CPUS.iter().filter_map(|hundredths| Fraction::new(*hundredths, 100)).collect(),
        |cpus| vec![cpus],
    );
    let pairs = memory.iter().flat_map(|bytes| cpus.iter().map(move |cpus| (*bytes, *cpus)));
    pairs.map(|(bytes, cpus)| entry(None, Resources::pretend(bytes, cpus), request)).collect()
}

/// For the command's runtime; where there is none, for the two that Heroku computes a number for.
fn on_heroku(
    request: &Request,
    subject: &str,
    no_command: bool,
) -> Vec<(String, Request, Vec<Entry>)> {
    let runtimes =
        if no_command { vec![Runtime::Node, Runtime::Python] } else { vec![request.runtime] };
    let table = |runtime: Runtime| {
        let request = Request { runtime, ..request.clone() };
        let subject =
            if no_command { format!(" of {}", runtime.name()) } else { subject.to_owned() };
        let entries = DYNOS.iter().filter_map(|dyno| {
            let cpus = Fraction::new(u64::from(dyno.cpus), 1)?;
            let bytes = dyno.memory_mib * MIB;
            // Above its quota a dyno swaps (R14) before it is killed (R15).
            let there = Resources::pretend(bytes, cpus).pretend_memory(bytes, dyno.name, true);
            Some(entry(Some(dyno.name), there, &request))
        });
        (subject, request.clone(), entries.collect())
    };
    runtimes.into_iter().map(table).collect()
}

fn entry(dyno: Option<&'static str>, there: Resources, request: &Request) -> Entry {
    Entry {
        dyno,
        memory: there.memory.limit.as_ref().map_or(0, |limit| limit.value),
        cpus: there.cpu.usable,
        runtime: request.runtime.name(),
        theirs: dyno.and_then(|_| compare(&there, request)),
        plan: Plan::new(there, request),
    }
}

/// What the numbers rest on, in one line.
fn cost(request: &Request, swap: bool) -> String {
    let (bytes, origin) = match &request.worker_memory {
        Some(given) => (given.value, given.origin.clone().unwrap_or_default()),
        None => {
            (request.runtime.worker_memory(), format!("assumed for {}", request.runtime.name()))
        }
    };
    let swap = if swap { "a dyno swaps above its memory" } else { "without swap" };
    format!("One worker: {} ({origin}); nothing else runs there, {swap}", show_size(bytes))
}
