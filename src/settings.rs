//! Flags, environment and configuration file made into one set of typed settings.
//!
//! A flag beats the environment, the environment beats the file, the file beats the default. A value
//! that does not parse is refused with its text, where it came from and what is accepted.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::ArgMatches;
use nix::sys::signal::Signal;

use crate::cli::{self, KEYS, Key};
use crate::exit::{Failure, usage};
use crate::fleet::Restart;
use crate::plan::{Given, Headroom, MOST_WORKERS, Rounding};
use crate::probe::Host;
use crate::sockets::Address;
use crate::units::{DURATION_FORMS, Fraction, SIZE_FORMS, parse_duration, parse_size};

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag(&'static str),
    Variable(String),
    File(&'static str, PathBuf),
}

impl Origin {
    /// The form of the reports.
    pub(crate) fn source(&self) -> String {
        match self {
            Self::Flag(name) => format!("flag:--{name}"),
            Self::Variable(name) => format!("env:{name}"),
            Self::File(_, path) => format!("file:{}", path.display()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Variable(name) => write!(f, "{name} in the environment"),
            Self::File(name, path) => write!(f, "{name} in {}", path.display()),
        }
    }
}

/// A tri-state switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auto {
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
}

/// How connections reach the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    Fd,
    Off,
}

/// Everything that a user can choose, checked.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) command: Vec<OsString>,
    pub(crate) exec: bool,
    pub(crate) dry_run: bool,

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

    pub(crate) memory: Option<Given<u64>>,
    pub(crate) cpus: Option<Given<Fraction>>,
    pub(crate) sysroot: Option<PathBuf>,

    pub(crate) format: Format,
    pub(crate) log_json: bool,
    pub(crate) color: Auto,
    pub(crate) prefix: Auto,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,

    pub(crate) grace: Duration,
    pub(crate) stop_signal: Signal,
    pub(crate) restart: Option<Restart>,
    pub(crate) max_restarts: u32,
    pub(crate) lifetime: Option<Duration>,
    pub(crate) chdir: Option<PathBuf>,
    pub(crate) user: Option<String>,
    pub(crate) env_file: Option<PathBuf>,
    pub(crate) template: bool,

    pub(crate) listen: Vec<Address>,
    pub(crate) share: Share,

    /// What is odd and was passed over.
    pub(crate) warnings: Vec<String>,
}

/// The three layers, as text.
struct Layers<'a> {
    matches: &'a ArgMatches,
    host: &'a Host,
    file: Option<(PathBuf, toml::Table)>,
}

impl Settings {
    pub(crate) fn read(matches: &ArgMatches, host: &Host) -> Result<Self, Failure> {
        let mut warnings = unknown_variables(host);
        let mut layers = Layers { matches, host, file: None };
        layers.file = layers.config_file(&mut warnings)?;
        let size = |text: &str| parse_size(text).filter(|bytes| *bytes > 0);
        let count = "a whole number from 1 to 10000";
        let (pinned, advice) = web_concurrency(host)?;
        let chosen = layers.given("workers", &format!("auto or {count}"), |text| match text {
            "auto" => Some(None),
            text => whole(text).map(Some),
        })?;
        let workers = match chosen {
            Some(Given { value, origin }) => value.map(|value| Given { value, origin }),
            None => pinned,
        };
        let worker_memory = layers.given("worker-memory", &format!("auto or {SIZE_FORMS}"), |text| match text {
            "auto" => Some(None),
            text => size(text).map(Some),
        })?;
        let worker_memory = match worker_memory {
            Some(Given { value, origin }) => value.map(|value| Given { value, origin }),
            None => web_memory(host)?,
        };
        let settings = Self {
            command: layers.command()?,
            exec: matches.try_get_one::<bool>("exec").ok().flatten().copied().unwrap_or(false),
            dry_run: layers.switch("dry-run")?,
            workers,
            advice,
            min_workers: layers.given("min-workers", count, whole)?.unwrap_or(Given::default_of(1)),
            max_workers: layers.given("max-workers", count, whole)?,
            worker_memory,
            workers_per_cpu: layers
                .given("workers-per-cpu", "a number above 0, such as 1 or 0.5", positive)?
                .unwrap_or(Given::default_of(1.0)),
            cpu_round: layers
                .choice("cpu-round", &[("nearest", Rounding::Nearest), ("floor", Rounding::Floor), ("ceil", Rounding::Ceil)])?
                .unwrap_or(Given::default_of(Rounding::Nearest)),
            headroom: layers.given("headroom", &format!("{SIZE_FORMS}, or a share from 0% to 99%"), headroom)?,
            runtime_env: layers.choice("runtime-env", ON_OFF)?.is_none_or(|on| on.value),
            strict: layers.switch("strict")?,
            memory: layers.given("memory", SIZE_FORMS, size)?,
            cpus: layers.given("cpus", "a number of CPUs above 0, such as 1.5", |text| positive(text).and_then(exact_cpus))?,
            sysroot: layers.path("sysroot")?,
            format: layers
                .choice("format", &[("text", Format::Text), ("json", Format::Json), ("env", Format::Env)])?
                .map_or(Format::Text, |given| given.value),
            log_json: layers.choice("log-format", &[("text", false), ("json", true)])?.is_some_and(|json| json.value),
            color: layers
                .choice("color", &[("auto", Auto::Auto), ("always", Auto::On), ("never", Auto::Off)])?
                .map_or(Auto::Auto, |given| given.value),
            prefix: layers
                .choice("prefix", &[("auto", Auto::Auto), ("on", Auto::On), ("off", Auto::Off)])?
                .map_or(Auto::Auto, |given| given.value),
            quiet: layers.switch("quiet")?,
            verbose: layers.switch("verbose")?,
            grace: layers.given("grace", DURATION_FORMS, parse_duration)?.map_or(Duration::from_secs(8), |given| given.value),
            stop_signal: layers
                .given("stop-signal", "a signal such as TERM, SIGINT or 15", signal)?
                .map_or(Signal::SIGTERM, |given| given.value),
            restart: layers
                .choice("restart", &[("always", Restart::Always), ("on-failure", Restart::OnFailure), ("never", Restart::Never)])?
                .map(|given| given.value),
            max_restarts: layers
                .given("max-restarts", "a whole number from 0", |text| text.parse().ok())?
                .map_or(10, |given| given.value),
            lifetime: layers.given("lifetime", DURATION_FORMS, parse_duration)?.map(|given| given.value),
            chdir: layers.path("chdir")?,
            user: layers.one("user")?.map(|(text, _)| text),
            env_file: layers.path("env-file")?,
            template: layers.switch("template")?,
            listen: layers.addresses()?,
            share: layers.choice("share", &[("fd", Share::Fd), ("off", Share::Off)])?.map_or(Share::Off, |given| given.value),
            warnings,
        };
        settings.check(&layers)?;
        Ok(settings)
    }

    /// What each setting by itself allows and all together do not.
    fn check(&self, layers: &Layers<'_>) -> Result<(), Failure> {
        let origin = |name| layers.one(name).ok().flatten().map(|(_, origin)| origin.to_string()).unwrap_or_default();
        let least = self.min_workers.value;
        if let Some(most) = &self.max_workers {
            if most.value < least {
                let (min, max) = (origin("min-workers"), origin("max-workers"));
                return Err(usage(format!("{min} ({least}) is above {max} ({}); make the first at most the second", most.value)));
            }
            if let Some(workers) = self.asked().filter(|asked| *asked > most.value) {
                let (asked, max) = (origin("workers"), origin("max-workers"));
                return Err(usage(format!("{asked} ({workers}) is above {max} ({}); leave one of them out", most.value)));
            }
        }
        if let Some(workers) = self.asked().filter(|asked| *asked < least) {
            let (asked, min) = (origin("workers"), origin("min-workers"));
            return Err(usage(format!("{asked} ({workers}) is below {min} ({least}); leave one of them out")));
        }
        if self.quiet && self.verbose {
            return Err(usage("--quiet and --verbose contradict each other; leave one of them out"));
        }
        match (self.listen.is_empty(), self.share) {
            (false, Share::Off) => {
                return Err(usage(format!("{} needs --share fd, so that workers get the socket", origin("listen"))));
            }
            (true, Share::Fd) => return Err(usage(format!("{} fd needs --listen ADDR, the socket to share", origin("share")))),
            _ => {}
        }
        if self.exec && !self.listen.is_empty() {
            return Err(usage("--exec hands everything over to COMMAND, which must listen by itself; leave --listen out"));
        }
        Ok(())
    }

    /// The number that the user asked for with `--workers` or its twins, which bounds are held against.
    fn asked(&self) -> Option<u32> {
        let workers = self.workers.as_ref()?;
        (workers.origin.as_deref() != Some("env:WEB_CONCURRENCY")).then_some(workers.value)
    }
}

const ON_OFF: &[(&str, bool)] = &[("on", true), ("off", false)];

impl Layers<'_> {
    /// Every value of one key from the highest layer that has it. Blank variables are unset.
    fn all(&self, name: &'static str) -> Result<Option<(Vec<String>, Origin)>, Failure> {
        let Some(key) = cli::find(name) else { return Ok(None) };
        if let Some(values) = cli::on_command_line(self.matches, key) {
            return Ok(Some((values, Origin::Flag(key.name))));
        }
        let variable = key.variable();
        if let Some(value) = self.host.env(&variable) {
            let Some(value) = value.to_str() else {
                return Err(usage(format!("{variable} in the environment is not valid UTF-8; set it to {}", key.value)));
            };
            let values = if key.repeat { value.split_ascii_whitespace().map(str::to_owned).collect() } else { vec![value.trim().to_owned()] };
            return Ok(Some((values, Origin::Variable(variable))));
        }
        let Some((path, table)) = &self.file else { return Ok(None) };
        let Some(value) = table.get(name) else { return Ok(None) };
        let origin = Origin::File(key.name, path.clone());
        let values = match (value, key.repeat) {
            (toml::Value::Array(values), true) => values.iter().map(plain_text).collect(),
            (value, _) => plain_text(value).map(|text| vec![text]),
        };
        match values {
            Some(values) => Ok(Some((values, origin))),
            None => Err(usage(format!("bad value {value} for {origin}: expected {}", accepted(key)))),
        }
    }

    fn one(&self, name: &'static str) -> Result<Option<(String, Origin)>, Failure> {
        Ok(self.all(name)?.and_then(|(values, origin)| Some((values.into_iter().next()?, origin))))
    }

    /// One value through `parse`; `expected` tells what it accepts.
    fn given<T>(
        &self,
        name: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<Given<T>>, Failure> {
        let Some((text, origin)) = self.one(name)? else { return Ok(None) };
        match parse(text.trim()) {
            Some(value) => Ok(Some(Given { value, origin: Some(origin.source()) })),
            None => Err(usage(format!("bad value \"{text}\" for {origin}: expected {expected}"))),
        }
    }

    fn choice<T: Copy>(&self, name: &'static str, choices: &[(&str, T)]) -> Result<Option<Given<T>>, Failure> {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        self.given(name, &names.join(", "), |text| {
            choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
        })
    }

    fn switch(&self, name: &'static str) -> Result<bool, Failure> {
        let values = [("true", true), ("1", true), ("on", true), ("yes", true), ("false", false), ("0", false), ("off", false), ("no", false)];
        Ok(self.choice(name, &values)?.is_some_and(|given| given.value))
    }

    fn path(&self, name: &'static str) -> Result<Option<PathBuf>, Failure> {
        Ok(self.one(name)?.map(|(text, _)| PathBuf::from(text)))
    }

    fn addresses(&self) -> Result<Vec<Address>, Failure> {
        let Some((texts, origin)) = self.all("listen")? else { return Ok(Vec::new()) };
        texts
            .iter()
            .map(|text| {
                Address::parse(text).ok_or_else(|| {
                    usage(format!("bad value \"{text}\" for {origin}: expected {}", Address::FORMS))
                })
            })
            .collect()
    }

    fn command(&self) -> Result<Vec<OsString>, Failure> {
        if let Ok(Some(words)) = self.matches.try_get_many::<OsString>("command") {
            return Ok(words.cloned().collect());
        }
        let Some((path, table)) = &self.file else { return Ok(Vec::new()) };
        let Some(value) = table.get("command") else { return Ok(Vec::new()) };
        let words = value.as_array().and_then(|words| words.iter().map(|word| word.as_str().map(OsString::from)).collect());
        words.ok_or_else(|| {
            let path = path.display();
            usage(format!("bad value {value} for command in {path}: expected a list such as [\"node\", \"server.js\"]"))
        })
    }

    /// The file named by `--config`, else `throng.toml` where that cannot be somebody else's doing.
    fn config_file(&self, warnings: &mut Vec<String>) -> Result<Option<(PathBuf, toml::Table)>, Failure> {
        let (path, asked) = match self.path("config")? {
            Some(path) => (path, true),
            None => (PathBuf::from("throng.toml"), false),
        };
        if !asked {
            let Ok(info) = std::fs::metadata(&path) else { return Ok(None) };
            let ours = info.uid() == 0 || info.uid() == nix::unistd::geteuid().as_raw();
            if !ours || info.mode() & 0o022 != 0 {
                warnings.push("throng.toml here is not taken, because others may write it; --config throng.toml takes it".to_owned());
                return Ok(None);
            }
        }
        let shown = path.display();
        let text = std::fs::read_to_string(&path).map_err(|error| usage(format!("cannot read the configuration file {shown}: {error}")))?;
        let table: toml::Table = text.parse().map_err(|error| usage(format!("{shown} is no valid TOML: {error}")))?;
        if let Some(unknown) = table.keys().find(|name| *name != "command" && (cli::find(name).is_none() || *name == "config")) {
            return Err(usage(format!("unknown key \"{unknown}\" in {shown}; the keys are the long flags without their dashes, and command")));
        }
        Ok(Some((path, table)))
    }
}

fn accepted(key: &Key) -> &'static str {
    if key.is_switch() { "true or false" } else { key.value }
}

fn plain_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(on) => Some(on.to_string()),
        _ => None,
    }
}

/// Variables that look like ours and are not: only a warning, as Kubernetes sets `THRONG_PORT` and
/// its like for a Service of that name.
fn unknown_variables(host: &Host) -> Vec<String> {
    let known: Vec<String> = KEYS.iter().map(Key::variable).collect();
    let ours = host.env_all().keys().filter_map(|name| name.to_str());
    ours.filter(|name| name.starts_with("THRONG_") && !name.starts_with("THRONG_WORKER_"))
        .filter(|name| *name != "THRONG_TESTS" && !known.iter().any(|known| known == name))
        .map(|name| format!("{name} in the environment is no setting of throng-rs and is passed over"))
        .collect()
}

/// The pinned number, or the advice, in `WEB_CONCURRENCY`.
type Concurrency = (Option<Given<u32>>, Option<(u32, String)>);

fn web_concurrency(host: &Host) -> Result<Concurrency, Failure> {
    let Some(text) = host.env("WEB_CONCURRENCY") else { return Ok((None, None)) };
    let text = String::from_utf8_lossy(text.as_bytes()).trim().to_owned();
    // Puma's word for "compute it".
    if text == "auto" {
        return Ok((None, None));
    }
    let Some(value) = whole(&text) else {
        return Err(usage(format!(
            "bad value \"{text}\" for WEB_CONCURRENCY in the environment: expected a whole number from 1 to 10000; unset it or use --workers"
        )));
    };
    let pinned = Given { value, origin: Some("env:WEB_CONCURRENCY".to_owned()) };
    match host.env("WEB_CONCURRENCY_SET_BY") {
        // A worker of another throng-rs is one of its N already.
        Some(_) if host.env("THRONG_WORKER_ID").is_some() => Ok((Some(pinned), None)),
        Some(by) => Ok((None, Some((value, by.to_string_lossy().into_owned())))),
        None => Ok((Some(pinned), None)),
    }
}

/// Heroku's `WEB_MEMORY`: MiB of one worker, a plain number there, any size here.
fn web_memory(host: &Host) -> Result<Option<Given<u64>>, Failure> {
    let Some(text) = host.env("WEB_MEMORY") else { return Ok(None) };
    let text = String::from_utf8_lossy(text.as_bytes()).trim().to_owned();
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    let value = parse_size(&if plain { format!("{text}M") } else { text.clone() }).filter(|bytes| *bytes > 0);
    let Some(value) = value else {
        return Err(usage(format!("bad value \"{text}\" for WEB_MEMORY in the environment: expected a number of MiB such as 512")));
    };
    Ok(Some(Given { value, origin: Some("env:WEB_MEMORY".to_owned()) }))
}

fn whole(text: &str) -> Option<u32> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|n| (1..=MOST_WORKERS).contains(n))
}

fn positive(text: &str) -> Option<f64> {
    text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0 && *n <= 1e6)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and at most a million")]
fn exact_cpus(cpus: f64) -> Option<Fraction> {
    const PARTS: u64 = 1_000_000;
    let parts = (cpus * 1e6).round() as u64;
    (parts > 0).then(|| Fraction::new(parts, PARTS)).flatten()
}

fn headroom(text: &str) -> Option<Headroom> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.trim().parse().ok()?;
            (0.0..=99.0).contains(&percent).then_some(Headroom::Share(percent / 100.0))
        }
        None => parse_size(text).map(Headroom::Bytes),
    }
}

/// `TERM`, `sigterm`, `15`.
fn signal(text: &str) -> Option<Signal> {
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).ok();
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let signal: Signal = format!("SIG{name}").parse().ok()?;
    // A worker can neither catch these nor end by STOP and CONT.
    (!matches!(signal, Signal::SIGSTOP | Signal::SIGCONT | Signal::SIGCHLD)).then_some(signal)
}

/// The `NAME=value` lines of a file: blank lines and `#` comments are left out, one pair of quotes
/// around a value is taken off, nothing is expanded.
pub(crate) fn read_env_file(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the environment file {}", path.display()));
    let text = text.map_err(|error| usage(format!("{error:#}")))?;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let pair = line.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
        let Some((name, value)) = pair.filter(|(name, value)| is_name(name) && !value.contains('\0')) else {
            let (path, number) = (path.display(), number + 1);
            return Err(usage(format!("bad line \"{line}\" in {path}, line {number}: expected NAME=value")));
        };
        let unquoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        found.push((name.to_owned(), unquoted.unwrap_or(value).to_owned()));
    }
    Ok(found)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.' || b == b'-')
}
