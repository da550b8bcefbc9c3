//! From settings to a plan, and `--dry-run`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::{colored, print};
use crate::calibrate::Profile;
use crate::cli::is_variable;
use crate::engine::{Environment, find};
use crate::exit::{Failure, SUCCESS, usage};
use crate::plan::{Plan, Profiled, Request, Runtime};
use crate::probe::{Host, Others, Resources};
use crate::program::{self, Recognised};
use crate::report::{self, Subject};
use crate::settings::{Format, ProfileFile, Settings, read_env_file};
use crate::units::show_size;

/// A plan with what it is for.
pub(super) struct Sized {
    pub(super) plan: Plan,
    /// ` of node server.js`, or nothing where there is no command.
    pub(super) subject: String,
    /// What others use of the machine.
    pub(super) others: Others,
}

impl Sized {
    /// `--strict`: nothing is run where not even one worker fits.
    pub(super) fn check(&self, settings: &Settings) -> Result<(), Failure> {
        match self.plan.shortage.as_ref().filter(|_| settings.sizing.strict) {
            Some(shortage) => Err(Failure::DoesNotFit(format!("{shortage} (--strict)"))),
            None => Ok(()),
        }
    }
}

/// Computes the plan.
pub(super) fn size(settings: &Settings, host: &Host, env: &Environment) -> Result<Sized, Failure> {
    size_beside(settings, host, env, None)
}

/// Computes the plan while our own processes run, beside what others used before.
pub(super) fn size_beside(
    settings: &Settings,
    host: &Host,
    env: &Environment,
    others: Option<&Others>,
) -> Result<Sized, Failure> {
    let recorded = machine_of(settings)?;
    let mut resources = Resources::of(recorded.as_ref().unwrap_or(host));
    let others = others.cloned().unwrap_or_else(|| resources.others());
    resources = resources.beside(&others);
    if let Some(memory) = &settings.what_if.memory {
        let swap = resources.swaps();
        let source = memory.origin.as_deref().unwrap_or_default();
        resources = resources.pretend_memory(memory.value, source, swap);
    }
    if let Some(cpus) = &settings.what_if.cpus {
        resources = resources.pretend_cpus(cpus.value, cpus.origin.as_deref().unwrap_or_default());
    }
    let found = recognised(settings, env);
    let (profile, doubt) = profiled(settings, resources.cpu.usable)?;
    let request = Request { profile, ..request(settings, found.as_ref(), env) };
    let mut plan = Plan::new(resources, &request);
    plan.warnings.extend(doubt);
    if let Some(found) = &found {
        plan.warnings.extend(product(settings, found, env, plan.workers));
    }
    plan.warnings.extend(settings.warnings.iter().cloned());
    let subject = match spoken(&settings.command) {
        words if words.is_empty() => words,
        words => format!(" of {words}"),
    };
    Ok(Sized { plan, subject, others })
}

/// What a calibration of this command has found; the second is why one that is there is passed over.
fn profiled(
    settings: &Settings,
    usable: f64,
) -> Result<(Option<Profiled>, Option<String>), Failure> {
    let (path, asked) = match &settings.profile {
        ProfileFile::Off => return Ok((None, None)),
        ProfileFile::Beside(path) => (path, false),
        ProfileFile::Asked(path) => (path, true),
    };
    let (profile, doubt) = Profile::read(path, asked).map_err(usage)?;
    let Some(profile) = profile else { return Ok((None, doubt)) };
    let words = settings.command.iter().map(|word| word.to_string_lossy());
    if !words.eq(profile.command.iter().map(String::as_str)) {
        // A report of no command in particular compares nothing.
        let doubt = (!settings.command.is_empty()).then(|| {
            format!(
                "{} is of another command ({}) and is passed over; calibrate this one",
                path.display(),
                profile.command.join(" ")
            )
        });
        return Ok((None, doubt));
    }
    Ok((Some(profile.profiled(path, usable)), None))
}

/// The machine of `--sysroot`, where that is given.
pub(super) fn machine_of(settings: &Settings) -> Result<Option<Host>, Failure> {
    let Some(dir) = &settings.what_if.sysroot else { return Ok(None) };
    Host::sysroot(dir).map(Some).map_err(|error| {
        usage(format!("cannot read the machine under --sysroot {}: {error}; give a folder that holds proc and sys", dir.display()))
    })
}

/// What the command runs on, by its real executable where it is one of this machine.
pub(super) fn recognised(settings: &Settings, env: &Environment) -> Option<Recognised> {
    let words: Vec<String> =
        settings.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let here = settings.what_if.sysroot.is_none();
    let dir = directory(settings).ok().filter(|_| here);
    let look = |name: &str| find(OsStr::new(name), env.get("PATH"), dir.as_deref()?).ok();
    program::recognise(&words, &look)
}

/// The runtime alone.
pub(super) fn runtime(settings: &Settings, env: &Environment) -> Runtime {
    recognised(settings, env).map_or(Runtime::Other, |found| found.runtime)
}

/// What forks or stays in front by itself, where several workers of it are to run.
fn product(
    settings: &Settings,
    found: &Recognised,
    env: &Environment,
    workers: u32,
) -> Vec<String> {
    let tree = settings.exec || settings.format == Format::Env;
    let Ok(dir) = directory(settings) else { return Vec::new() };
    if settings.what_if.sysroot.is_some() || tree {
        return Vec::new();
    }
    let get = |name: &str| env.get(name).map(|value| value.to_string_lossy().into_owned());
    let fork = program::forks(&found.words, &get, &dir).and_then(|fork| fork.warning(workers));
    let runner = program::runner(&found.words, &dir);
    fork.into_iter().chain(runner).collect()
}

/// What one worker is reckoned with, bytes.
pub(super) fn worker_memory(settings: &Settings, env: &Environment) -> u64 {
    let given = settings.sizing.worker_memory.as_ref().map(|given| given.value);
    given.unwrap_or_else(|| runtime(settings, env).worker_memory())
}

pub(super) fn request(
    settings: &Settings,
    found: Option<&Recognised>,
    env: &Environment,
) -> Request {
    Request {
        workers: settings.sizing.workers.clone(),
        advice: settings.sizing.advice.clone(),
        min_workers: settings.sizing.min_workers.clone(),
        max_workers: settings.sizing.max_workers.clone(),
        worker_memory: settings.sizing.worker_memory.clone(),
        workers_per_cpu: settings.sizing.workers_per_cpu.clone(),
        cpu_round: settings.sizing.cpu_round.clone(),
        headroom: settings.sizing.headroom.clone(),
        profile: None,
        runtime: found.map_or(Runtime::Other, |found| found.runtime),
        recognised: found.map(|found| found.because.clone()),
        words: found.map(|found| found.words.clone()).unwrap_or_default(),
        runtime_env: settings.sizing.runtime_env,
        adapt: settings.sizing.adapt,
        single_tree: settings.exec || settings.format == Format::Env,
        env: env.readable(),
    }
}

/// What the workers inherit: our environment without our own settings, and the lines of `--env-file`.
pub(super) fn inherited(settings: &Settings, host: &Host) -> Result<Environment, Failure> {
    let mut env = Environment::inherit(host.env_all(), is_variable);
    if let Some(file) = &settings.workers.env_file {
        for (name, value) in read_env_file(file)? {
            env.set(&name, value);
        }
    }
    Ok(env)
}

/// What a worker (or with `--exec` the command) is told beside its own identity.
pub(super) fn environment(settings: &Settings, plan: &Plan) -> BTreeMap<String, String> {
    let tree = settings.exec || settings.format == Format::Env;
    let concurrency = if tree { plan.workers } else { 1 };
    let mut env: BTreeMap<_, _> =
        plan.environment.iter().map(|v| (v.name.clone(), v.value.clone())).collect();
    env.insert("WEB_CONCURRENCY".to_owned(), concurrency.to_string());
    // A number that the user pinned stays his: marked as ours, the next evaluation of the same
    // profile line would take it for advice.
    let pinned =
        settings.sizing.workers.as_ref().is_some_and(|given| given.is_from("env:WEB_CONCURRENCY"));
    if !(settings.format == Format::Env && pinned) {
        env.insert("WEB_CONCURRENCY_SET_BY".to_owned(), "throng-rs".to_owned());
    }
    env
}

/// `--dry-run`: prints the report and starts nothing.
pub(super) fn report(settings: &Settings, host: &Host) -> Result<u8, Failure> {
    let env = inherited(settings, host)?;
    let found = look_for(settings, &env);
    let mut sized = size(settings, host, &env)?;
    if let Err(failure) = found {
        sized.plan.warnings.push(failure.to_string());
    }
    let environment = environment(settings, &sized.plan);
    let subject = Subject {
        plan: &sized.plan,
        command: &sized.subject,
        environment: &environment,
        settings: &settings.chosen,
        machine: settings.output.verbose.then(machine),
    };
    let text = match settings.format {
        Format::Text => {
            report::text(&subject, colored(settings.output.color, host, &std::io::stdout()))
        }
        Format::Json => report::json(&subject),
        Format::Env => report::shell(&environment),
        Format::Csv => {
            return Err(usage("--format csv is for many numbers; use it with: throng-rs table"));
        }
    };
    print(&text)?;
    sized.check(settings)?;
    Ok(SUCCESS)
}

/// The command's file, where there is a command and it is one of this machine.
pub(super) fn look_for(settings: &Settings, env: &Environment) -> Result<Option<PathBuf>, Failure> {
    match settings.command.first() {
        Some(program) if settings.what_if.sysroot.is_none() => {
            find(program, env.get("PATH"), &directory(settings)?).map(Some)
        }
        _ => Ok(None),
    }
}

/// Where the workers start, absolute.
pub(super) fn directory(settings: &Settings) -> Result<PathBuf, Failure> {
    let here = std::env::current_dir().map_err(|error| {
        usage(format!("cannot tell the working directory ({error}); go to one that exists"))
    })?;
    let Some(dir) = &settings.workers.chdir else { return Ok(here) };
    let dir = here.join(dir);
    if !dir.is_dir() {
        return Err(usage(format!(
            "--chdir {} is no directory; create it or give another",
            dir.display()
        )));
    }
    Ok(dir)
}

/// One line about this machine, for reports that are passed on.
fn machine() -> String {
    use sysinfo::System;
    let memory = System::new().map(|mut system| {
        system.refresh_memory();
        show_size(system.total_memory())
    });
    let known = |text: Option<String>| text.unwrap_or_else(|| "an unknown".to_owned());
    format!(
        "{} system, kernel {}, {}, {} of memory",
        known(System::long_os_version().ok()),
        known(System::kernel_version().ok()),
        System::cpu_arch(),
        known(memory.ok())
    )
}

/// A command line in one short line, whatever is in it.
pub(super) fn spoken(words: &[OsString]) -> String {
    const LONGEST: usize = 60;
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let text: String = words.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    let mut shown: String = text.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
    if text.chars().count() > LONGEST {
        shown.push('…');
    }
    shown
}
