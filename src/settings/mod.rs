//! Flags, environment and configuration file made into one set of typed settings, in the groups of
//! the help. Depends on what the settings are for: `plan`, `fleet` and `sockets`.

mod contradictions;
mod env_file;
mod heroku;
mod layers;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use crate::control::Place;
use crate::exit::Failure;
use crate::fleet::{MostMemory, Restart};
use crate::plan::{Adapt, Choice, Given, Headroom, Rounding};
use crate::probe::Host;
use crate::sockets::{Address, Balance, Share};
use crate::units::{DURATION_FORMS, Fraction, SIZE_FORMS, parse_duration};
pub(crate) use env_file::read_env_file;
use heroku::{web_concurrency, web_memory};
use layers::{Layers, Origins, unknown_variables};
pub(crate) use values::message;
use values::{headroom, max_memory, mode, positive, positive_size, ready, signal, watchdog, whole};

/// On, off, or what the situation suggests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    Auto,
    On,
    Off,
}

/// Form of the sizing report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
    Env,
    Csv,
}

/// Everything that a user can choose, checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) command: Vec<OsString>,
    pub(crate) exec: bool,
    pub(crate) dry_run: bool,
    pub(crate) format: Format,
    pub(crate) sizing: Sizing,
    pub(crate) what_if: WhatIf,
    pub(crate) output: Output,
    pub(crate) workers: Workers,
    pub(crate) operating: Operating,
    pub(crate) listen: Vec<Address>,
    /// Of the files of Unix sockets; `None` is what the umask says.
    pub(crate) socket_mode: Option<Mode>,
    /// `None` is auto.
    pub(crate) share: Option<Share>,
    /// `None` is auto.
    pub(crate) balance: Option<Balance>,
    /// Whether workers get a channel for messages.
    pub(crate) ipc: Switch,
    pub(crate) proxy: Passing,
    pub(crate) profile: ProfileFile,
    /// Where each setting that was chosen comes from.
    origins: Origins,
    /// Everything that was chosen, as it was written.
    pub(crate) chosen: Vec<Choice>,
    /// What is odd and was passed over.
    pub(crate) warnings: Vec<String>,
}

/// Where what a calibration has found is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProfileFile {
    Off,
    /// Beside the configuration file, if it is there and cannot be somebody else's doing.
    Beside(PathBuf),
    Asked(PathBuf),
}

/// How the proxy meets the workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passing {
    /// At Unix sockets, in place of ports.
    pub(crate) unix: bool,
    /// With a header that tells who the client is.
    pub(crate) header: bool,
}

/// How many workers.
#[derive(Clone, Debug)]
pub(crate) struct Sizing {
    pub(crate) workers: Option<Given<u32>>,
    /// `WEB_CONCURRENCY` as advice of whoever is named.
    pub(crate) advice: Option<(u32, String)>,
    pub(crate) min_workers: Given<u32>,
    pub(crate) max_workers: Option<Given<u32>>,
    pub(crate) worker_memory: Option<Given<u64>>,
    pub(crate) workers_per_cpu: Given<f64>,
    pub(crate) cpu_round: Given<Rounding>,
    pub(crate) headroom: Option<Given<Headroom>>,
    pub(crate) runtime_env: bool,
    pub(crate) strict: bool,
    /// Whether the number follows what there is and what is measured.
    pub(crate) adapt: Adapt,
}

/// Pretended limits, and another machine.
#[derive(Clone, Debug)]
pub(crate) struct WhatIf {
    pub(crate) memory: Option<Given<u64>>,
    pub(crate) cpus: Option<Given<Fraction>>,
    pub(crate) sysroot: Option<PathBuf>,
}

/// What we print.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) log_json: bool,
    pub(crate) color: Switch,
    pub(crate) prefix: Switch,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
}

/// How workers are run.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    pub(crate) grace: Duration,
    pub(crate) stop_signal: Signal,
    pub(crate) restart: Option<Restart>,
    pub(crate) max_restarts: u32,
    pub(crate) lifetime: Option<Duration>,
    pub(crate) chdir: Option<PathBuf>,
    pub(crate) user: Option<String>,
    pub(crate) env_file: Option<PathBuf>,
    pub(crate) template: bool,
    pub(crate) max_age: Option<Duration>,
    /// Whether the guard acts before the kernel kills.
    pub(crate) guard: bool,
    pub(crate) max_memory: MostMemory,
    pub(crate) before: Option<String>,
    /// How many may be starting at once; `None` is all.
    pub(crate) start_parallel: Option<u32>,
    /// How many new workers may run beside the old ones in a rollout; `None` is auto.
    pub(crate) surge: Option<u32>,
    pub(crate) ready: Ready,
    pub(crate) ready_timeout: Duration,
    pub(crate) watchdog: Option<Watchdog>,
    /// What a worker is sent before its stop signal.
    pub(crate) stop_message: Option<serde_json::Value>,
    /// Whether each worker gets a cgroup of its own.
    pub(crate) isolate: Switch,
}

/// What makes a worker ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    Auto,
    Spawn,
    Notify,
    Listen,
    /// This path answers.
    Http(String),
    Delay(Duration),
}

/// What shows that a worker still serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Watchdog {
    /// It says so this often.
    Ping(Duration),
    /// This path answers.
    Http(String),
}

/// How this instance is reached.
#[derive(Clone, Debug)]
pub(crate) struct Operating {
    pub(crate) name: Option<String>,
    pub(crate) control: Place,
}

const COUNT: &str = "a whole number from 1 to 10000";
const MAX_MEMORY: &str = "off, auto (its share), or a size such as 512M";
const READY: &str = "auto, spawn, notify, listen, http:/PATH or delay:DURATION";
const WATCHDOG: &str = "off, a duration such as 10s, or http:/PATH";
const SHARES: &[(&str, Option<Share>)] = &[
    ("auto", None),
    ("node", Some(Share::Node)),
    ("fd", Some(Share::Fd)),
    ("reuseport", Some(Share::Reuseport)),
    ("proxy", Some(Share::Proxy)),
    ("off", Some(Share::Off)),
];
const BALANCES: &[(&str, Option<Balance>)] = &[
    ("auto", None),
    ("kernel", Some(Balance::Kernel)),
    ("least-connections", Some(Balance::LeastConnections)),
    ("round-robin", Some(Balance::RoundRobin)),
    ("sticky-ip", Some(Balance::StickyIp)),
];
const ADAPTS: &[(&str, Adapt)] = &[("auto", Adapt::Auto), ("on", Adapt::On), ("off", Adapt::Off)];
const UPSTREAMS: &[(&str, bool)] = &[("port", false), ("unix", true)];
const SWITCH: &[(&str, Switch)] =
    &[("auto", Switch::Auto), ("on", Switch::On), ("off", Switch::Off)];

/// What holds where nothing was said, and differs between subcommands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub(crate) share: Option<Share>,
    pub(crate) listen: Option<&'static str>,
}

impl Settings {
    pub(crate) fn read(
        matches: &ArgMatches,
        host: &Host,
        defaults: Defaults,
    ) -> Result<Self, Failure> {
        let mut warnings = unknown_variables(host);
        let layers = Layers::open(matches, host, &mut warnings)?;
        let formats = [
            ("text", Format::Text),
            ("json", Format::Json),
            ("env", Format::Env),
            ("csv", Format::Csv),
        ];
        let mut settings = Self {
            command: layers.command()?,
            exec: layers.switch("exec")?,
            dry_run: layers.switch("dry-run")?,
            format: layers.choice_or("format", &formats, Format::Text)?,
            sizing: Sizing::read(&layers, host)?,
            what_if: WhatIf::read(&layers)?,
            output: Output::read(&layers)?,
            workers: Workers::read(&layers)?,
            operating: Operating::read(&layers)?,
            listen: layers.addresses(defaults.listen)?,
            socket_mode: layers
                .given("socket-mode", "three octal digits such as 660", mode)?
                .map(|given| given.value),
            share: layers.choice_or("share", SHARES, defaults.share)?,
            balance: layers.choice_or("balance", BALANCES, None)?,
            ipc: layers.choice_or("ipc", SWITCH, Switch::Auto)?,
            proxy: Passing {
                unix: layers.choice_or("upstream", UPSTREAMS, false)?,
                header: layers.switch("proxy-protocol")?,
            },
            profile: match layers.path("profile")?.filter(|path| !path.as_os_str().is_empty()) {
                None => ProfileFile::Beside(layers.beside("throng.profile.json")),
                Some(path) if path.as_os_str() == "off" => ProfileFile::Off,
                Some(path) => ProfileFile::Asked(path),
            },
            origins: Origins::new(),
            chosen: Vec::new(),
            warnings,
        };
        (settings.chosen, settings.origins) = layers.chosen()?;
        settings.check()?;
        settings.warn_of_a_told_number();
        Ok(settings)
    }

    /// Where a setting was given, for a complaint about it.
    pub(crate) fn origin(&self, name: &str) -> String {
        let given = self.origins.iter().find(|(given, _)| *given == name);
        given.map_or_else(|| format!("--{name}"), |(_, origin)| origin.clone())
    }
}

impl Sizing {
    fn read(layers: &Layers<'_>, host: &Host) -> Result<Self, Failure> {
        let (pinned, advice) = web_concurrency(host)?;
        let workers = layers.given_or_auto("workers", COUNT, whole)?;
        let worker_memory = layers.given_or_auto("worker-memory", SIZE_FORMS, positive_size)?;
        let roundings =
            [("nearest", Rounding::Nearest), ("floor", Rounding::Floor), ("ceil", Rounding::Ceil)];
        let share = format!("{SIZE_FORMS}, or a share from 0% to 99%");
        let factor = "a number above 0, such as 1 or 0.5";
        Ok(Self {
            // `--workers auto` beats WEB_CONCURRENCY too: it asks for the computed number.
            workers: workers.or(pinned),
            advice,
            min_workers: layers.given("min-workers", COUNT, whole)?.unwrap_or(Given::default_of(1)),
            max_workers: layers.given("max-workers", COUNT, whole)?,
            worker_memory: worker_memory.or(web_memory(host)?),
            workers_per_cpu: layers
                .given("workers-per-cpu", factor, positive)?
                .unwrap_or(Given::default_of(1.0)),
            cpu_round: layers
                .choice("cpu-round", &roundings)?
                .unwrap_or(Given::default_of(Rounding::Nearest)),
            headroom: layers.given("headroom", &share, headroom)?,
            runtime_env: layers.choice_or("runtime-env", &[("on", true), ("off", false)], true)?,
            strict: layers.switch("strict")?,
            adapt: layers.choice_or("adapt", ADAPTS, Adapt::Auto)?,
        })
    }
}

impl WhatIf {
    fn read(layers: &Layers<'_>) -> Result<Self, Failure> {
        let cpus = |text: &str| positive(text).and_then(Fraction::from_f64);
        Ok(Self {
            memory: layers.given("memory", SIZE_FORMS, positive_size)?,
            cpus: layers.given("cpus", "a number of CPUs above 0, such as 1.5", cpus)?,
            sysroot: layers.path("sysroot")?,
        })
    }
}

impl Output {
    fn read(layers: &Layers<'_>) -> Result<Self, Failure> {
        let colors = [("auto", Switch::Auto), ("always", Switch::On), ("never", Switch::Off)];
        Ok(Self {
            log_json: layers.choice_or("log-format", &[("text", false), ("json", true)], false)?,
            color: layers.choice_or("color", &colors, Switch::Auto)?,
            prefix: layers.choice_or("prefix", SWITCH, Switch::Auto)?,
            quiet: layers.switch("quiet")?,
            verbose: layers.switch("verbose")?,
        })
    }
}

impl Workers {
    fn read(layers: &Layers<'_>) -> Result<Self, Failure> {
        let restarts = [
            ("always", Restart::Always),
            ("on-failure", Restart::OnFailure),
            ("never", Restart::Never),
        ];
        let value = |given: Option<Given<Duration>>| given.map(|given| given.value);
        let parallel = layers.given_or_auto("start-parallel", COUNT, whole)?;
        let surge = layers.given_or_auto("surge", "a whole number from 0 to 1000", |text| {
            text.parse().ok().filter(|surge| *surge <= 1000)
        })?;
        Ok(Self {
            // Below the 10 s that Docker grants before it kills.
            grace: value(layers.given("grace", DURATION_FORMS, parse_duration)?)
                .unwrap_or(Duration::from_secs(8)),
            stop_signal: layers
                .given("stop-signal", "a signal such as TERM, SIGINT or 15", signal)?
                .map_or(Signal::SIGTERM, |given| given.value),
            restart: layers.choice("restart", &restarts)?.map(|given| given.value),
            max_restarts: layers
                .given("max-restarts", "a whole number from 0", |text| text.parse().ok())?
                .map_or(10, |given| given.value),
            lifetime: value(layers.given("lifetime", DURATION_FORMS, parse_duration)?),
            chdir: layers.path("chdir")?,
            user: layers.text("user")?,
            env_file: layers.path("env-file")?,
            template: layers.switch("template")?,
            max_age: value(layers.given("max-worker-age", DURATION_FORMS, parse_duration)?),
            guard: layers.choice_or("guard", &[("on", true), ("off", false)], true)?,
            max_memory: layers
                .given("max-worker-memory", MAX_MEMORY, max_memory)?
                .map_or(MostMemory::Off, |given| given.value),
            before: layers.text("before")?.filter(|text| !text.trim().is_empty()),
            start_parallel: parallel.or(None).map(|given| given.value),
            surge: surge.or(None).map(|given| given.value),
            ready: layers.given("ready", READY, ready)?.map_or(Ready::Auto, |given| given.value),
            ready_timeout: value(layers.given("ready-timeout", DURATION_FORMS, parse_duration)?)
                .unwrap_or(Duration::from_secs(30)),
            watchdog: layers.given("watchdog", WATCHDOG, watchdog)?.and_then(|given| given.value),
            stop_message: layers.text("stop-message")?.filter(|text| !text.is_empty()).map(message),
            isolate: layers.choice_or("isolate", SWITCH, Switch::Auto)?,
        })
    }
}

impl Operating {
    fn read(layers: &Layers<'_>) -> Result<Self, Failure> {
        let control = layers.text("control")?.filter(|path| !path.is_empty());
        Ok(Self {
            name: layers.text("name")?.filter(|name| !name.is_empty()),
            control: match control.as_deref() {
                None => Place::Default,
                Some("off") => Place::Off,
                Some(path) => Place::Path(PathBuf::from(path)),
            },
        })
    }
}

/// Every parser of a setting's text, for the fuzz targets.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    let _ = env_file::parse(text, std::path::Path::new("fuzz"));
    let _ = text.parse::<toml::Table>();
    let _ = Address::parse(text).map(|address| (address.name(), address.to_string()));
    let _ = (whole(text), positive_size(text), headroom(text), signal(text));
    let _ = (parse_duration(text), positive(text).and_then(Fraction::from_f64));
    let _ = (ready(text), watchdog(text), mode(text), message(text.to_owned()));
    let variables = [("WEB_CONCURRENCY", text), ("WEB_MEMORY", text), ("THRONG_X", text)];
    let host = Host::from_files(std::iter::empty::<(&str, &str)>()).with_env(variables);
    let _ = (web_concurrency(&host), web_memory(&host), unknown_variables(&host));
}
