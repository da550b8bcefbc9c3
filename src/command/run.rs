//! The main job: size, say why, run. And `--exec`, which becomes the command instead.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use tracing::{info, warn};

use super::colored;
use super::listeners::{self, Found};
use super::size::{Sized, directory, environment, inherited, size};
use crate::engine::{self, Config, Environment, Manager, Prefix, User};
use crate::exit::{Failure, usage};
use crate::fleet::{Policy, Restart};
use crate::log;
use crate::plan::MOST_WORKERS;
use crate::probe::Host;
use crate::report;
use crate::settings::{Format, Settings, Switch};
use crate::sockets::{Address, Listener, variables};

/// A worker that says nothing by itself is taken for ready when it has lived for so long.
const READY_AFTER: Duration = Duration::from_secs(1);

/// Runs the command that the settings name.
pub(super) fn run(settings: &Settings, host: &Host, found: Found) -> Result<u8, Failure> {
    if settings.command.is_empty() {
        return Err(usage(
            "no command given; run one with: throng-rs -- node server.js, or see the sizing report with: throng-rs --dry-run",
        ));
    }
    if settings.format != Format::Text {
        return Err(usage(
            "--format is the form of the report and goes with --dry-run; leave it out to run the command",
        ));
    }
    if settings.what_if.sysroot.is_some() {
        return Err(usage(
            "--sysroot describes another machine and goes with --dry-run; leave it out to run the command here",
        ));
    }
    if settings.exec && settings.workers.template {
        return Err(usage(
            "--template fills in who a worker is, and with --exec there is none; leave one of them out",
        ));
    }
    let words = settings.command.clone();
    start(settings, host, found, None, words, &|_| Ok(()))
}

/// Runs `words` from the file `program`, or from where `PATH` says; `announce` is told each address
/// that we listen on.
pub(super) fn start(
    settings: &Settings,
    host: &Host,
    found: Found,
    program: Option<PathBuf>,
    words: Vec<OsString>,
    announce: &dyn Fn(&Address) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    log::start(settings.output.log_json, settings.output.quiet, settings.output.verbose);
    let dir = directory(settings)?;
    let mut env = inherited(settings, host)?;
    let program = match (program, words.first()) {
        (Some(program), _) => program,
        (None, Some(word)) => engine::find(word, env.get("PATH"), &dir)?,
        (None, None) => return Err(usage("no command given")),
    };
    let wants_port = words.iter().any(|word| word.to_string_lossy().contains("{port}"));
    if settings.workers.template && wants_port && env.get("PORT").is_none() {
        return Err(usage(
            "--template has a {port} to replace, and PORT is not set; set it, or leave {port} out",
        ));
    }
    let user = settings.workers.user.as_deref().map(user).transpose()?;
    let sized = size(settings, host, &env)?;
    sized.check(settings)?;
    for (name, value) in environment(settings, &sized.plan) {
        env.set(&name, value);
    }
    say_why(&sized);
    let dir = settings.workers.chdir.is_some().then_some(dir);
    if settings.exec {
        let vars: Vec<_> =
            env.all().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let error = engine::replace(&program, &words, &vars, dir.as_deref(), user.as_ref());
        let message = format!("cannot execute {}: {error}", program.display());
        return Err(Failure::Command { status: engine::exec_status(&error), message });
    }
    let listeners = listeners::open(settings, found)?;
    let sockets: Vec<(Address, String)> =
        listeners.iter().map(|listener| (listener.address.clone(), listener.name())).collect();
    let mut env =
        env.without_ours().with_share(sized.plan.all_memory, sized.plan.resources.cpu.usable);
    for (name, value) in variables(&sockets) {
        env.set(&name, value);
    }
    for (address, _) in &sockets {
        announce(address)?;
    }
    let config =
        configure(settings, host, &sized, Parts { program, words, env, user, dir, listeners });
    Ok(engine::run(config)?)
}

/// What was made from the settings on the way.
struct Parts {
    program: PathBuf,
    words: Vec<OsString>,
    env: Environment,
    user: Option<User>,
    dir: Option<PathBuf>,
    listeners: Vec<Listener>,
}

fn configure(settings: &Settings, host: &Host, sized: &Sized, parts: Parts) -> Config {
    let workers = sized.plan.workers;
    // `docker run -it image sh`: one worker that was asked for has the terminal and is not restarted.
    let asked = settings.sizing.workers.as_ref();
    let asked_for_one =
        asked.is_some_and(|one| one.value == 1 && !one.is_from("env:WEB_CONCURRENCY"));
    let at_terminal = asked_for_one && io::stdin().is_terminal() && io::stdout().is_terminal();
    let restart = settings.workers.restart.unwrap_or(if at_terminal {
        Restart::Never
    } else {
        Restart::Always
    });
    let prefixed = match settings.output.prefix {
        Switch::On => true,
        Switch::Off => false,
        Switch::Auto => io::stdout().is_terminal() && workers > 1,
    };
    let prefix = match (prefixed, colored(settings.output.color, host, &io::stdout())) {
        (false, _) => Prefix::None,
        (true, false) => Prefix::Plain,
        (true, true) => Prefix::Colored,
    };
    Config {
        program: parts.program,
        words: parts.words,
        template: settings.workers.template,
        env: parts.env,
        policy: Policy {
            restart,
            max_restarts: settings.workers.max_restarts,
            grace: settings.workers.grace,
            ready_after: READY_AFTER,
            least: settings.sizing.min_workers.value,
            most: settings.sizing.max_workers.as_ref().map_or(MOST_WORKERS, |most| most.value),
            lifetime: settings.workers.lifetime,
            seed: u64::from(std::process::id()),
        },
        workers,
        stop_signal: settings.workers.stop_signal,
        prefix,
        terminal: at_terminal && restart == Restart::Never,
        user: parts.user,
        dir: parts.dir,
        listeners: parts.listeners,
        manager: Manager::from_env(host, workers, restart),
    }
}

fn user(text: &str) -> Result<User, Failure> {
    let user = User::find(text)
        .map_err(|error| usage(format!("bad value \"{text}\" for --user: {error}")))?;
    let me = nix::unistd::geteuid();
    if !me.is_root() && (user.uid != me || user.gid != nix::unistd::getegid()) {
        return Err(usage(format!(
            "--user {text} needs root, to become another user; leave it out or start as root"
        )));
    }
    Ok(user)
}

fn say_why(sized: &Sized) {
    let plan = &sized.plan;
    let lines = report::brief(plan, &sized.subject);
    let (workers, bound_by) = (plan.workers, plan.bound_by.name());
    for (index, line) in lines.iter().enumerate() {
        let indent = if index == 0 { "" } else { "  " };
        info!(
            event = "plan",
            workers,
            bound_by,
            memory_bytes = plan.worker_memory,
            cpus = plan.worker_cpus,
            "{indent}{line}"
        );
    }
    for warning in &plan.warnings {
        warn!(event = "plan_warning", "{warning}");
    }
}
