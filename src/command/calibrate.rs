//! `throng-rs calibrate`: finds by trial what the workers cost and how many are enough, and keeps that.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::ArgMatches;
use nix::sys::prctl::set_pdeathsig;
use nix::unistd::getppid;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::size::{inherited, look_for, runtime, size, spoken};
use super::{print, way};
use crate::calibrate::{
    self, Curve, Inside, Launcher, Limits, Load, Outcome, Profile, Target, Trial, VARIABLE, left,
};
use crate::cli::{self, KEYS};
use crate::exit::{Failure, SUCCESS, usage};
use crate::plan::{MOST_WORKERS, least_headroom};
use crate::probe::{Gauge, Host, Resources};
use crate::settings::{Defaults, Format, ProfileFile, Settings};
use crate::units::{parse_duration, printable};

/// Settings that a calibration chooses by itself, or that are about a report.
const OURS: &[&str] = &[
    "workers",
    "min-workers",
    "max-workers",
    "adapt",
    "guard",
    "isolate",
    "max-worker-memory",
    "profile",
    "control",
    "name",
    "format",
    "dry-run",
    "exec",
    "prefix",
    "quiet",
    "verbose",
    "log-format",
    "color",
];
/// Tasks that are left to whoever has to look into a full container.
const SPARE_TASKS: u64 = 16;

/// What only a calibration asks.
struct Asked {
    load: Option<String>,
    path: String,
    clients: u32,
    time: Duration,
}

impl Asked {
    fn read(matches: &ArgMatches) -> Result<Self, Failure> {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let bad = |name: &str, text: &str, expected: &str| {
            usage(format!("bad value \"{text}\" for --{name}: expected {expected}"))
        };
        let path = text("path").unwrap_or_else(|| "/".to_owned());
        if !path.starts_with('/') || path.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(bad("path", &path, "a path such as /items?page=2"));
        }
        let clients = text("clients").map_or(Ok(64), |text| {
            let number = text.parse().ok().filter(|number| (1..=10_000).contains(number));
            number.ok_or_else(|| bad("clients", &text, "a whole number from 1 to 10000"))
        })?;
        let time = text("step").map_or(Ok(Duration::from_secs(4)), |text| {
            let time = parse_duration(&text).filter(|time| *time >= Duration::from_millis(500));
            time.ok_or_else(|| {
                bad("step", &text, "a duration of half a second or more, such as 5s")
            })
        })?;
        Ok(Self { load: text("load").filter(|load| !load.trim().is_empty()), path, clients, time })
    }
}

/// Calibrates the command of the settings.
pub(super) fn run(matches: &ArgMatches, host: &Host) -> Result<u8, Failure> {
    let asked = Asked::read(matches)?;
    let mut settings = Settings::read(matches, host, Defaults { share: None, listen: None })?;
    let file = match std::mem::replace(&mut settings.profile, ProfileFile::Off) {
        ProfileFile::Off => None,
        ProfileFile::Beside(path) | ProfileFile::Asked(path) => Some(path),
    };
    check(&settings)?;
    way::choose(&mut settings, host, false)?;
    let env = inherited(&settings, host)?;
    look_for(&settings, &env)?;
    let port = env.get("PORT").and_then(|port| port.to_str()?.trim().parse().ok());
    let listen = settings.listen.first().cloned();
    let target = listen.or(port.map(crate::sockets::Address::Port));
    let target = target.as_ref().and_then(Target::of);
    let load = match (asked.load, target) {
        (Some(command), target) => Load::Command { command, target, path: asked.path },
        (None, Some(target)) => {
            let Asked { path, clients, time, .. } = asked;
            Load::BuiltIn { target, path, clients, time }
        }
        (None, None) => {
            return Err(usage(
                "there is nobody to put a load on: name the address of the workers by --listen (a port, not 0), or give a load of your own by --load CMD",
            ));
        }
    };
    let sized = size(&settings, host, &env)?;
    let resources = &sized.plan.resources;
    let room = resources.tasks.room.map_or(u64::from(MOST_WORKERS), |room| {
        room.saturating_sub(SPARE_TASKS) / runtime(&settings, &env).tasks().max(1)
    });
    let told = settings.sizing.max_workers.as_ref().map_or(MOST_WORKERS, |most| most.value);
    let limits = Limits {
        usable: resources.cpu.usable,
        most: told.min(u32::try_from(room).unwrap_or(MOST_WORKERS)).max(1),
    };
    // The runtimes are told the share of as many as the plan would run.
    let args = arguments(matches, &settings, sized.plan.workers);
    let job = Job { settings: &settings, host, resources, load, limits, args, file };
    let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let event_loop = event_loop.context("cannot start the event loop")?;
    tokio::task::LocalSet::new().block_on(&event_loop, job.perform())
}

fn check(settings: &Settings) -> Result<(), Failure> {
    if settings.command.is_empty() {
        return Err(usage(
            "no command given; calibrate one with: throng-rs calibrate --listen 3000 -- node server.js",
        ));
    }
    let told = settings.sizing.workers.as_ref().filter(|one| !one.is_from("env:WEB_CONCURRENCY"));
    if let Some(told) = told {
        let origin = settings.origin("workers");
        return Err(usage(format!(
            "calibrate finds the number, and {origin} is {}; leave it out",
            told.value
        )));
    }
    for (wrong, name, why) in [
        (
            settings.exec,
            "exec",
            "becomes a command that forks by itself, and a calibration runs single workers",
        ),
        (settings.dry_run, "dry-run", "starts nothing, and a calibration runs workers"),
        (
            settings.what_if.sysroot.is_some(),
            "sysroot",
            "describes another machine, and a calibration runs on this one",
        ),
        (
            settings.what_if.memory.is_some(),
            "memory",
            "pretends a limit, and a calibration measures below the real one",
        ),
        (
            settings.what_if.cpus.is_some(),
            "cpus",
            "pretends CPUs, and a calibration measures on the real ones",
        ),
        (
            settings.format != Format::Text,
            "format",
            "is the form of the report; a calibration prints text, and its numbers are in the profile",
        ),
    ] {
        if wrong {
            return Err(usage(format!("{} {why}; leave it out", settings.origin(name))));
        }
    }
    Ok(())
}

/// The words of the launcher that runs the workers: as ours, but for what a calibration chooses.
fn arguments(matches: &ArgMatches, settings: &Settings, workers: u32) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    for key in KEYS.iter().filter(|key| !OURS.contains(&key.name)) {
        for value in cli::on_command_line(matches, key).unwrap_or_default() {
            args.push(format!("--{}", key.name).into());
            if !key.is_switch() {
                args.push(value.into());
            }
        }
    }
    let number = format!("--workers={workers}");
    let most = format!("--max-workers={MOST_WORKERS}");
    let fixed = [
        "--adapt=off",
        "--guard=off",
        // We are in the group that would be divided.
        "--isolate=off",
        "--max-worker-memory=off",
        "--profile=off",
        "--format=text",
        "--min-workers=1",
        &most,
        &number,
    ];
    args.extend(fixed.map(OsString::from));
    args.push("--".into());
    args.extend(settings.command.iter().cloned());
    args
}

/// A calibration with all that it needs.
struct Job<'a> {
    settings: &'a Settings,
    host: &'a Host,
    resources: &'a Resources,
    load: Load,
    limits: Limits,
    args: Vec<OsString>,
    file: Option<PathBuf>,
}

impl Job<'_> {
    /// Ends with everything that it started, also where it is interrupted.
    async fn perform(self) -> Result<u8, Failure> {
        if let Some(file) = &self.file {
            // Better now than after minutes of load.
            calibrate::try_out(&[file, &beside(file)]).map_err(|error| anyhow!(error))?;
        }
        let mut interrupts = Interrupts::new()?;
        let own = std::env::current_exe().context("cannot find our own program file")?;
        let gauge = Gauge::find(self.host);
        let before =
            left(&gauge.read(self.host)).filter(|left| !left.machine).map(|left| left.used);
        let mut launcher = Launcher::start(&own, &self.args)
            .context("cannot start the launcher of the workers")?;
        let outcome = tokio::select! {
            outcome = self.calibrate(&gauge, &mut launcher) => Some(outcome),
            () = interrupts.next() => None,
        };
        if outcome.is_none() {
            // Where standard error is gone, it is done all the same.
            let _ = writeln!(
                io::stderr(),
                "throng-rs: interrupted: the workers are being stopped; once more kills them"
            );
        }
        let outcome = tokio::select! {
            () = launcher.stop() => outcome,
            () = interrupts.next() => None,
        };
        let outcome = outcome.ok_or_else(|| {
            anyhow!("interrupted: everything is stopped, and no profile is written")
        })?;
        self.conclude(outcome?, before)
    }

    async fn calibrate(&self, gauge: &Gauge, launcher: &mut Launcher) -> Result<Outcome, Failure> {
        let command = spoken(&self.settings.command);
        print(&format!("calibrating {}: {}\n", printable(&command), self.load))?;
        let (host, limits) = (self.host, self.limits);
        let mut trial = Trial { launcher, host, gauge, load: &self.load, limits };
        let mut first = true;
        let mut told = |step: &_, counts_requests| {
            let head = std::mem::take(&mut first).then(|| calibrate::head(counts_requests) + "\n");
            // Who has gone does not read the rest either.
            let _ = print(&format!("{}{}\n", head.unwrap_or_default(), calibrate::line(step)));
        };
        trial.run(&mut told).await.map_err(|error| Failure::Other(anyhow!(error)))
    }

    /// `before`: what was in use before the first worker.
    fn conclude(self, outcome: Outcome, before: Option<u64>) -> Result<u8, Failure> {
        let Outcome { steps, end, counts_requests, lost } = outcome;
        let curve = Curve::new(steps, end, self.limits.usable, before).ok_or_else(|| {
            anyhow!(
                "not even one worker could be measured: memory ran low at once; give it more memory"
            )
        })?;
        print(&format!("\n{}", calibrate::table(&curve, counts_requests)))?;
        if let Some(lost) = lost {
            let lines: Vec<_> = lost.lines().map(printable).collect();
            print(&format!("warning: {}\n", lines.join("\n")))?;
        }
        let Some(file) = self.file else { return Ok(SUCCESS) };
        let words = self.settings.command.iter().map(|word| word.to_string_lossy().into_owned());
        let memory = self.resources.memory.limit.as_ref().map(|limit| limit.value);
        let profile = Profile::new(
            words.collect(),
            memory,
            self.limits.usable,
            self.load.to_string(),
            counts_requests,
            &curve,
        );
        let most = memory.map(|limit| limit.saturating_sub(least_headroom(limit)));
        let title = spoken(&self.settings.command);
        let picture = calibrate::picture(&curve, &title, counts_requests, most);
        let drawing = beside(&file);
        calibrate::replace(&[(&drawing, &picture), (&file, &profile.to_json())])
            .map_err(|error| anyhow!(error))?;
        print(&format!("written: {} and {}\n", file.display(), drawing.display()))?;
        Ok(SUCCESS)
    }
}

/// Signals that end a calibration.
struct Interrupts([Signal; 4]);

impl Interrupts {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
            listen(SignalKind::quit())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup, quit] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

/// `throng.profile.svg` for `throng.profile.json`.
fn beside(file: &Path) -> PathBuf {
    let taken = file.extension().is_some_and(|end| end == "svg");
    file.with_extension(if taken { "picture.svg" } else { "svg" })
}

/// A launcher that a calibration has started ends with that.
pub(super) fn follow(matches: &ArgMatches, host: &Host) -> Result<Inside, Failure> {
    let Some(parent) = host.env(VARIABLE).and_then(|pid| pid.to_str()?.parse::<i32>().ok()) else {
        return Ok(Inside::of(None));
    };
    let control = matches.get_one::<String>("control").map(Path::new);
    let inside = Inside::of(control);
    set_pdeathsig(nix::sys::signal::Signal::SIGTERM).context("cannot follow the calibration")?;
    if getppid().as_raw() == parent {
        return Ok(inside);
    }
    Err(Failure::Other(anyhow!("the calibration that has started this is gone")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_never_takes_the_profiles_place() {
        let beside = |file: &str| beside(Path::new(file));
        assert_eq!(beside("/a/throng.profile.json"), Path::new("/a/throng.profile.svg"));
        assert_eq!(beside("mine.svg"), Path::new("mine.picture.svg"));
    }
}
