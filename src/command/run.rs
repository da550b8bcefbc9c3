//! The main job: size, say why, run. And `--exec`, which becomes the command instead.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use tracing::{info, warn};

use super::colored;
use super::listeners::{self, Found};
use super::orders::Source;
use super::size::{self, Sized, directory, environment, size_beside};
use super::way;
use crate::engine::{
    self, Check, Config, Environment, Isolate, Manager, Orders, Prefix, Resume, Surge, User,
};
use crate::exit::{Failure, SUCCESS, usage};
use crate::fleet::{Adapt, Policy, Readiness, Restart};
use crate::log;
use crate::plan::{self, MOST_WORKERS};
use crate::probe::{Host, Others};
use crate::report;
use crate::settings::{Format, Ready, Settings, Switch, Watchdog, Workers};
use crate::sockets::{Address, Balance, Listener, ProxyOptions, Share, variables};

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
    if settings.exec && settings.workers.isolate == Switch::On {
        return Err(usage(format!(
            "{} gives each worker a group of its own, and with --exec the command forks them; leave one of them out",
            settings.origin("isolate")
        )));
    }
    start(settings, share, host, inherited, None, read, &|_| Ok(()))
}

/// What is run, and in what environment: all that a reload reads anew.
pub(super) struct Prepared {
    pub(super) program: PathBuf,
    pub(super) words: Vec<OsString>,
    env: Environment,
    dir: PathBuf,
    pub(super) sized: Sized,
}

impl Prepared {
    /// The command of the settings, from the file `program` or from where `PATH` says.
    /// `others`: what they used when nothing of ours ran, where something does now.
    pub(super) fn new(
        settings: &Settings,
        share: Share,
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
        // Both tell workers a port by themselves.
        let told = share == Share::Proxy || (share == Share::Node && !settings.listen.is_empty());
        let has_port = told || env.get("PORT").is_some();
        if settings.workers.template && wants_port && !has_port {
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
    pub(super) fn workers_env(
        &self,
        settings: &Settings,
        share: Share,
        sockets: &[(Address, String)],
    ) -> Environment {
        let plan = &self.sized.plan;
        let env = self.env.clone().without_ours();
        let mut env = env.with_share(plan.all_memory, plan.resources.cpu.usable);
        if share == Share::Node
            && let Some(asked) = settings.listen.first()
        {
            env.set("PORT", port_of(asked));
        }
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
    let prepared = Prepared::new(settings, share, host, program.clone(), others.as_ref())?;
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
    for listener in &listeners {
        announce(&listener.address)?;
    }
    // Behind the proxy they inherit none.
    let inherited = listeners.iter().filter(|_| share != Share::Proxy);
    let sockets: Vec<(Address, String)> =
        inherited.map(|listener| (listener.address.clone(), listener.name())).collect();
    let env = prepared.workers_env(settings, share, &sockets);
    let others = prepared.sized.others.clone();
    let source = Source::new(settings.clone(), read, share, program, sockets, others);
    let Prepared { program, words, sized, .. } = prepared;
    let inspect = way::inspect(settings, &env);
    let orders = Box::new(source);
    let parts = Parts { share, program, words, inspect, env, user, dir, listeners, orders };
    Ok(engine::run(configure(settings, host, &sized, parts), resume)?)
}

/// What was made from the settings on the way.
struct Parts {
    share: Share,
    program: PathBuf,
    words: Vec<OsString>,
    inspect: Option<engine::Inspect>,
    env: Environment,
    user: Option<User>,
    dir: Option<PathBuf>,
    listeners: Vec<Listener>,
    orders: Box<dyn Orders>,
}

fn configure(settings: &Settings, host: &Host, sized: &Sized, parts: Parts) -> Config {
    let workers = sized.plan.workers;
    let at_terminal = at_terminal(settings);
    let restart = restart(settings);
    let node = parts.share == Share::Node;
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
        isolate: match settings.workers.isolate {
            Switch::Auto => Isolate::Auto,
            Switch::On => Isolate::On,
            Switch::Off => Isolate::Off,
        },
        template: settings.workers.template,
        env: parts.env,
        policy: Policy {
            restart,
            max_restarts: settings.workers.max_restarts,
            grace: settings.workers.grace,
            drains: parts.share.drains() || settings.workers.stop_message.is_some(),
            readiness: readiness(&settings.workers, parts.share),
            watchdog: match settings.workers.watchdog {
                Some(Watchdog::Ping(every)) => Some(every),
                _ => None,
            },
            max_age: settings.workers.max_age,
            parallel: settings.workers.start_parallel,
            least: settings.sizing.min_workers.value,
            most: settings.sizing.max_workers.as_ref().map_or(MOST_WORKERS, |most| most.value),
            adapt: match settings.sizing.adapt {
                plan::Adapt::Auto => Adapt::Auto,
                plan::Adapt::On => Adapt::On,
                plan::Adapt::Off => Adapt::Off,
            },
            guard: settings.workers.guard,
            most_memory: settings.workers.max_memory,
            lifetime: settings.workers.lifetime,
            seed: u64::from(std::process::id()),
        },
        stop_signal: settings.workers.stop_signal,
        prefix,
        terminal: at_terminal && restart == Restart::Never,
        user: parts.user,
        dir: parts.dir,
        share: parts.share,
        balance: settings.balance,
        asked: settings.listen.first().filter(|_| node).cloned(),
        ipc: has_channel(settings, parts.share),
        inspect: parts.inspect,
        stop_message: settings.workers.stop_message.clone(),
        listeners: parts.listeners,
        proxy: ProxyOptions {
            balance: settings.balance.unwrap_or(Balance::LeastConnections),
            header: settings.proxy.header,
            unix: settings.proxy.unix,
        },
        before: settings.workers.before.clone(),
        surge: settings.workers.surge.map_or(Surge::Auto, Surge::Most),
        ready_by_notice: matches!(settings.workers.ready, Ready::Auto | Ready::Notify),
        ready_by_listening: node && matches!(settings.workers.ready, Ready::Auto | Ready::Listen),
        ready_check: match &settings.workers.ready {
            // A server that asked us for nothing has a port of its own.
            Ready::Auto if node => Some(Check::Listen),
            Ready::Listen => Some(Check::Listen),
            // It is told where to listen, so that shows when it serves.
            Ready::Auto if parts.share == Share::Proxy => Some(Check::Listen),
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

/// `docker run -it image sh`: one worker that was asked for has the terminal.
fn at_terminal(settings: &Settings) -> bool {
    let asked = settings.sizing.workers.as_ref();
    let asked_for_one =
        asked.is_some_and(|one| one.value == 1 && !one.is_from("env:WEB_CONCURRENCY"));
    asked_for_one && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Who has the terminal is not restarted.
pub(super) fn restart(settings: &Settings) -> Restart {
    let unsaid = if at_terminal(settings) { Restart::Never } else { Restart::Always };
    settings.workers.restart.unwrap_or(unsaid)
}

/// Whether workers get a channel for messages.
pub(super) fn has_channel(settings: &Settings, share: Share) -> bool {
    match settings.ipc {
        Switch::On => true,
        Switch::Off => false,
        Switch::Auto => share == Share::Node,
    }
}

/// `PORT` for servers that open what it says: a number, or a path.
fn port_of(asked: &Address) -> String {
    match asked {
        Address::Port(port) => port.to_string(),
        Address::Tcp(address) => address.port().to_string(),
        Address::Unix(path) => path.display().to_string(),
    }
}

fn readiness(workers: &Workers, share: Share) -> Readiness {
    let (alive, lenient) = match workers.ready {
        Ready::Auto if matches!(share, Share::Node | Share::Proxy) => (None, true),
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
