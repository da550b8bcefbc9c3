//! The main job: size, say why, run. And `--exec`, which becomes the command instead.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tracing::{info, warn};

use super::colored;
use super::listeners::{self, Found};
use super::size::{self, Sized, directory, environment, size_beside};
use crate::engine::{
    self, Adapt, Check, Config, Environment, Manager, Orders, Prefix, Renewed, Resume, Surge, User,
};
use crate::exit::{Failure, SUCCESS, usage};
use crate::fleet::{Policy, Readiness, Restart};
use crate::log;
use crate::plan::MOST_WORKERS;
use crate::probe::{Host, Others, Resources};
use crate::report;
use crate::settings::{Format, Ready, Settings, Switch, Watchdog, Workers};
use crate::sockets::{Address, Listener, Share, variables};
use crate::units::{show_number, show_size};

/// A worker that says nothing by itself is taken for ready when it has lived for so long.
const READY_AFTER: Duration = Duration::from_secs(1);

/// Reads the settings, at the start and again for each reload.
pub(super) type Read = Box<dyn Fn() -> Result<Settings, Failure>>;

/// What was there before this program: sockets of a service manager, or a whole fleet.
pub(super) struct Inherited {
    pub(super) found: Found,
    pub(super) resume: Option<Resume>,
}

/// Runs the command that the settings name.
pub(super) fn run(
    settings: &Settings,
    share: Share,
    host: &Host,
    inherited: Inherited,
    read: Read,
) -> Result<u8, Failure> {
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
    start(settings, share, host, inherited, None, read, &|_| Ok(()))
}

/// What is run, and in what environment: all that a reload reads anew.
struct Prepared {
    program: PathBuf,
    words: Vec<OsString>,
    env: Environment,
    dir: PathBuf,
    sized: Sized,
}

impl Prepared {
    /// The command of the settings, from the file `program` or from where `PATH` says.
    /// `others`: what they used when nothing of ours ran, where something does now.
    fn new(
        settings: &Settings,
        host: &Host,
        program: Option<PathBuf>,
        others: Option<&Others>,
    ) -> Result<Self, Failure> {
        let words = settings.command.clone();
        let dir = directory(settings)?;
        let mut env = size::inherited(settings, host)?;
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
        let sized = size_beside(settings, host, &env, others)?;
        for (name, value) in environment(settings, &sized.plan) {
            env.set(&name, value);
        }
        Ok(Self { program, words, env, dir, sized })
    }

    /// What the workers find in their environment.
    fn workers_env(&self, settings: &Settings, sockets: &[(Address, String)]) -> Environment {
        let plan = &self.sized.plan;
        let env = self.env.clone().without_ours();
        let mut env = env.with_share(plan.all_memory, plan.resources.cpu.usable);
        for (name, value) in variables(sockets) {
            env.set(&name, value);
        }
        if let Some(Watchdog::Ping(every)) = &settings.workers.watchdog {
            env.set("WATCHDOG_USEC", every.as_micros().to_string());
        }
        env
    }
}

/// Runs the command of the settings; `announce` is told each address that we listen on.
pub(super) fn start(
    settings: &Settings,
    share: Share,
    host: &Host,
    inherited: Inherited,
    program: Option<PathBuf>,
    read: Read,
    announce: &dyn Fn(&Address) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    log::start(settings.output.log_json, settings.output.quiet, settings.output.verbose);
    let others = inherited.resume.as_ref().map(Resume::others);
    let prepared = Prepared::new(settings, host, program.clone(), others.as_ref())?;
    let user = settings.workers.user.as_deref().map(user).transpose()?;
    prepared.sized.check(settings)?;
    if inherited.resume.is_none() {
        say_why(&prepared.sized);
    }
    let dir = settings.workers.chdir.is_some().then(|| prepared.dir.clone());
    if settings.exec {
        let Prepared { program, words, env, .. } = prepared;
        let vars: Vec<_> =
            env.all().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let error = engine::replace(&program, &words, &vars, dir.as_deref(), user.as_ref());
        let message = format!("cannot execute {}: {error}", program.display());
        return Err(Failure::Command { status: engine::exec_status(&error), message });
    }
    let Inherited { found, resume } = inherited;
    if resume.as_ref().is_some_and(Resume::is_proof) {
        return Ok(SUCCESS);
    }
    let listeners = listeners::open(settings, share, found, resume.as_ref())?;
    let sockets: Vec<(Address, String)> =
        listeners.iter().map(|listener| (listener.address.clone(), listener.name())).collect();
    let env = prepared.workers_env(settings, &sockets);
    for (address, _) in &sockets {
        announce(address)?;
    }
    let source = Source {
        settings: RefCell::new(Rc::new(read()?)),
        read,
        program,
        sockets,
        others: prepared.sized.others.clone(),
    };
    let Prepared { program, words, sized, .. } = prepared;
    let parts =
        Parts { share, program, words, env, user, dir, listeners, orders: Box::new(source) };
    Ok(engine::run(configure(settings, host, &sized, parts), resume)?)
}

/// Where a running fleet's orders come from: the configuration and the machine.
struct Source {
    /// As they were read last.
    settings: RefCell<Rc<Settings>>,
    read: Read,
    program: Option<PathBuf>,
    sockets: Vec<(Address, String)>,
    others: Others,
}

impl Source {
    fn renewed(&self, settings: &Settings) -> Result<Renewed, Failure> {
        let host = Host::live();
        let prepared = Prepared::new(settings, &host, self.program.clone(), Some(&self.others))?;
        let env = prepared.workers_env(settings, &self.sockets);
        let Prepared { program, words, sized, .. } = prepared;
        Ok(Renewed { program, words, env, sized: sized.orders(settings) })
    }
}

impl Orders for Source {
    fn reload(&self) -> Result<Renewed, String> {
        let again = || {
            let settings = (self.read)()?;
            let renewed = self.renewed(&settings)?;
            self.settings.replace(Rc::new(settings));
            Ok(renewed)
        };
        again().map_err(|failure: Failure| failure.to_string())
    }

    fn replan(&self) -> Result<Renewed, String> {
        let settings = Rc::clone(&self.settings.borrow());
        self.renewed(&settings).map_err(|failure| failure.to_string())
    }
}

impl Sized {
    /// What the engine needs of it.
    fn orders(&self, settings: &Settings) -> engine::Sized {
        let plan = &self.plan;
        let Resources { memory, cpu, tasks, .. } = &plan.resources;
        let memory = memory.limit.as_ref().or(memory.ram.as_ref());
        let from = |source: Option<&String>| {
            source.map(|source| format!(" ({source})")).unwrap_or_default()
        };
        let memory = memory
            .map(|fact| format!("{} of memory{}", show_size(fact.value), from(Some(&fact.source))));
        let cpus = format!("{} CPUs{}", show_number(cpu.usable), from(cpu.source.as_ref()));
        let tasks = tasks.limit.as_ref();
        let tasks = tasks.map(|fact| format!("{} tasks{}", fact.value, from(Some(&fact.source))));
        engine::Sized {
            workers: plan.workers,
            bound_by: plan.bound_by.name(),
            plan: plan.to_json(),
            runtime: environment(settings, plan).into_iter().collect(),
            limits: memory.into_iter().chain([cpus]).chain(tasks).collect(),
            budget: plan.all_memory,
            others: self.others.clone(),
        }
    }
}

/// What was made from the settings on the way.
struct Parts {
    share: Share,
    program: PathBuf,
    words: Vec<OsString>,
    env: Environment,
    user: Option<User>,
    dir: Option<PathBuf>,
    listeners: Vec<Listener>,
    orders: Box<dyn Orders>,
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
        orders: parts.orders,
        sized: sized.orders(settings),
        adapt: if settings.sizing.adapts { Adapt::Auto } else { Adapt::Off },
        template: settings.workers.template,
        env: parts.env,
        policy: Policy {
            restart,
            max_restarts: settings.workers.max_restarts,
            grace: settings.workers.grace,
            drains: parts.share.drains(),
            readiness: readiness(&settings.workers),
            watchdog: match settings.workers.watchdog {
                Some(Watchdog::Ping(every)) => Some(every),
                _ => None,
            },
            max_age: settings.workers.max_age,
            parallel: settings.workers.start_parallel,
            least: settings.sizing.min_workers.value,
            most: settings.sizing.max_workers.as_ref().map_or(MOST_WORKERS, |most| most.value),
            lifetime: settings.workers.lifetime,
            seed: u64::from(std::process::id()),
        },
        stop_signal: settings.workers.stop_signal,
        prefix,
        terminal: at_terminal && restart == Restart::Never,
        user: parts.user,
        dir: parts.dir,
        share: parts.share,
        listeners: parts.listeners,
        before: settings.workers.before.clone(),
        surge: settings.workers.surge.map_or(Surge::Auto, Surge::Most),
        ready_by_notice: matches!(settings.workers.ready, Ready::Auto | Ready::Notify),
        ready_check: match &settings.workers.ready {
            Ready::Listen => Some(Check::Listen),
            Ready::Http(path) => Some(Check::Http(path.clone())),
            _ => None,
        },
        health_check: match &settings.workers.watchdog {
            Some(Watchdog::Http(path)) => Some(Check::Http(path.clone())),
            _ => None,
        },
        name: settings.operating.name.clone(),
        control: settings.operating.control.clone(),
        manager: Manager::from_env(host, workers, restart),
    }
}

fn readiness(workers: &Workers) -> Readiness {
    let (alive, lenient) = match workers.ready {
        Ready::Auto => (Some(READY_AFTER), true),
        Ready::Spawn => (Some(Duration::ZERO), false),
        Ready::Delay(delay) => (Some(delay), false),
        Ready::Notify | Ready::Listen | Ready::Http(_) => (None, false),
    };
    Readiness { alive, timeout: workers.ready_timeout, lenient }
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
