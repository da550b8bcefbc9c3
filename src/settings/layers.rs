//! The three places a setting can come from, as text: flags, environment, configuration file.
//!
//! A flag beats the environment, the environment beats the file. Every refusal names the text, where
//! it came from and what is accepted.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::ArgMatches;

use crate::cli::{self, KEYS, Key};
use crate::exit::{Failure, usage};
use crate::found::Found;
use crate::plan::{Choice, Given};
use crate::probe::Host;
use crate::sockets::Address;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Flag(&'static str),
    Variable(String),
    File(&'static str, PathBuf),
}

impl Origin {
    /// The form of the reports.
    fn source(&self) -> String {
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

/// What was said about a setting that may be `auto`.
pub(super) enum Chosen<T> {
    Nothing,
    Auto,
    Value(Given<T>),
}

impl<T> Chosen<T> {
    /// The value; where nothing at all was said, what `otherwise` gives.
    pub(super) fn or(self, otherwise: Option<Given<T>>) -> Option<Given<T>> {
        match self {
            Self::Nothing => otherwise,
            Self::Auto => None,
            Self::Value(given) => Some(given),
        }
    }
}

/// Where each setting that was chosen comes from, by its name.
pub(super) type Origins = Vec<(&'static str, String)>;

/// The three layers, as text.
pub(super) struct Layers<'a> {
    matches: &'a ArgMatches,
    host: &'a Host,
    file: Option<(PathBuf, toml::Table)>,
    /// Whether there is any variable of ours: mostly there is none, and nothing to look up.
    has_variables: bool,
}

impl<'a> Layers<'a> {
    /// Reads the configuration file too, if there is one to take.
    pub(super) fn open(
        matches: &'a ArgMatches,
        host: &'a Host,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Failure> {
        let ours = |name: &OsString| name.as_encoded_bytes().starts_with(b"THRONG_");
        let has_variables = host.env_all().keys().any(ours);
        let flags = Self { matches, host, file: None, has_variables };
        let file = flags.config_file(warnings)?;
        Ok(Self { file, ..flags })
    }
}

impl Layers<'_> {
    /// Every value of one key from the highest layer that has it. Blank variables are unset.
    fn all(&self, name: &'static str) -> Result<Option<(Vec<String>, Origin)>, Failure> {
        let Some(key) = cli::find(name) else { return Ok(None) };
        if let Some(values) = cli::on_command_line(self.matches, key) {
            return Ok(Some((values, Origin::Flag(key.name))));
        }
        let variable = if self.has_variables { key.variable() } else { String::new() };
        if self.has_variables
            && let Some(value) = self.host.env(&variable)
        {
            let Some(value) = value.to_str() else {
                return Err(usage(format!(
                    "{variable} in the environment is not valid UTF-8; set it to {}",
                    key.value
                )));
            };
            let values = if key.repeat {
                value.split_ascii_whitespace().map(str::to_owned).collect()
            } else {
                vec![value.trim().to_owned()]
            };
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
            None => {
                Err(usage(format!("bad value {value} for {origin}: expected {}", accepted(key))))
            }
        }
    }

    fn one(&self, name: &'static str) -> Result<Option<(String, Origin)>, Failure> {
        Ok(self.all(name)?.and_then(|(values, origin)| Some((values.into_iter().next()?, origin))))
    }

    /// One value through `parse`; `expected` tells what it accepts.
    pub(super) fn given<T>(
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

    pub(super) fn choice<T: Copy>(
        &self,
        name: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<Given<T>>, Failure> {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        self.given(name, &names.join(", "), |text| {
            choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
        })
    }

    pub(super) fn switch(&self, name: &'static str) -> Result<bool, Failure> {
        let values = [
            ("true", true),
            ("1", true),
            ("on", true),
            ("yes", true),
            ("false", false),
            ("0", false),
            ("off", false),
            ("no", false),
        ];
        Ok(self.choice(name, &values)?.is_some_and(|given| given.value))
    }

    /// The choice, or `default` where none was made.
    pub(super) fn choice_or<T: Copy>(
        &self,
        name: &'static str,
        choices: &[(&str, T)],
        default: T,
    ) -> Result<T, Failure> {
        Ok(self.choice(name, choices)?.map_or(default, |given| given.value))
    }

    /// A value or `auto`.
    pub(super) fn given_or_auto<T>(
        &self,
        name: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Chosen<T>, Failure> {
        let given = self.given(name, &format!("auto or {expected}"), |text| match text {
            "auto" => Some(None),
            text => parse(text).map(Some),
        })?;
        Ok(match given {
            None => Chosen::Nothing,
            Some(Given { value: None, .. }) => Chosen::Auto,
            Some(Given { value: Some(value), origin }) => Chosen::Value(Given { value, origin }),
        })
    }

    /// Everything that was chosen, but for what only says how to print it; and the origin of all of it, for
    /// complaints.
    pub(super) fn chosen(&self) -> Result<(Vec<Choice>, Origins), Failure> {
        let (mut chosen, mut origins) = (Vec::new(), Vec::new());
        for key in KEYS {
            let Some((values, origin)) = self.all(key.name)? else { continue };
            origins.push((key.name, origin.to_string()));
            if !key.is_about_the_report() {
                let (value, source) = (values.join(" "), origin.source());
                chosen.push(Choice { name: key.name, value, source });
            }
        }
        Ok((chosen, origins))
    }

    pub(super) fn text(&self, name: &'static str) -> Result<Option<String>, Failure> {
        Ok(self.one(name)?.map(|(text, _)| text))
    }

    pub(super) fn path(&self, name: &'static str) -> Result<Option<PathBuf>, Failure> {
        Ok(self.text(name)?.map(PathBuf::from))
    }

    /// A file of this name in the folder of the configuration file, or where we are.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        let file = self.file.as_ref().map_or(Path::new(""), |(path, _)| path.as_path());
        file.with_file_name(name)
    }

    pub(super) fn addresses(&self, default: Option<&str>) -> Result<Vec<Address>, Failure> {
        let Some((texts, origin)) = self.all("listen")? else {
            return Ok(default.and_then(|text| Address::parse(text).ok()).into_iter().collect());
        };
        let parse = |text: &String| {
            Address::parse(text)
                .map_err(|why| usage(format!("bad value \"{text}\" for {origin}: {why}")))
        };
        let addresses: Vec<Address> = texts.iter().map(parse).collect::<Result<_, _>>()?;
        let again =
            addresses.iter().enumerate().find(|(at, address)| addresses[..*at].contains(address));
        match again {
            // Port 0 is another one each time.
            Some((_, address)) if !address.is_any_port() => {
                Err(usage(format!("{address} stands twice in {origin}; leave one out")))
            }
            _ => Ok(addresses),
        }
    }

    pub(super) fn command(&self) -> Result<Vec<OsString>, Failure> {
        if let Ok(Some(words)) = self.matches.try_get_many::<OsString>("command") {
            return Ok(words.cloned().collect());
        }
        let Some((path, table)) = &self.file else { return Ok(Vec::new()) };
        let Some(value) = table.get("command") else { return Ok(Vec::new()) };
        let words = value
            .as_array()
            .and_then(|words| words.iter().map(|word| word.as_str().map(OsString::from)).collect());
        words.ok_or_else(|| {
            let path = path.display();
            usage(format!("bad value {value} for command in {path}: expected a list such as [\"node\", \"server.js\"]"))
        })
    }

    /// The file named by `--config`, else `throng.toml` where that cannot be somebody else's doing.
    fn config_file(
        &self,
        warnings: &mut Vec<String>,
    ) -> Result<Option<(PathBuf, toml::Table)>, Failure> {
        let (path, asked) = match self.path("config")? {
            Some(path) => (path, true),
            None => (PathBuf::from("throng.toml"), false),
        };
        let shown = path.display().to_string();
        let unreadable =
            |error| usage(format!("cannot read the configuration file {shown}: {error}"));
        let mut file = match Found::at(&path, asked).map_err(unreadable)? {
            Found::Nothing => return Ok(None),
            Found::Foreign => {
                warnings.push("throng.toml here is not taken, because others may write it; --config throng.toml takes it".to_owned());
                return Ok(None);
            }
            Found::File(file) => file,
        };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(unreadable)?;
        let table: toml::Table =
            text.parse().map_err(|error| usage(format!("{shown} is no valid TOML: {error}")))?;
        if let Some(unknown) = table
            .keys()
            .find(|name| *name != "command" && (cli::find(name).is_none() || *name == "config"))
        {
            return Err(usage(format!(
                "unknown key \"{unknown}\" in {shown}; the keys are the long flags without their dashes, and command"
            )));
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
pub(super) fn unknown_variables(host: &Host) -> Vec<String> {
    let known: Vec<String> = KEYS.iter().map(Key::variable).collect();
    let ours = host.env_all().keys().filter_map(|name| name.to_str());
    ours.filter(|name| name.starts_with("THRONG_") && !name.starts_with("THRONG_WORKER_"))
        .filter(|name| !name.starts_with("THRONG_UPGRADE") && *name != "THRONG_CALIBRATED_BY")
        .filter(|name| *name != "THRONG_TESTS" && !known.iter().any(|known| known == name))
        .map(|name| {
            format!("{name} in the environment is no setting of throng-rs and is passed over")
        })
        .collect()
}
