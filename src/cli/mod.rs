//! The command line: the commands and their help, from the table of settings (`keys`). Knows names and texts; what
//! values mean is `settings`'s.

mod keys;

use clap::{Arg, ArgAction, ArgMatches, Command};

pub(crate) use keys::{KEYS, Key, find, is_variable};

/// What only `calibrate` asks: the name, its value, the help.
const CALIBRATE: &[(&str, &str, &str)] = &[
    (
        "load",
        "CMD",
        "Put this load on the workers, by sh, at each step; it finds URL, PORT and WORKERS in its environment [default: clients of our own]",
    ),
    ("path", "PATH", "What our own clients ask for [default: /]"),
    ("clients", "N", "How many of them ask at the same time [default: 64]"),
    ("step", "DURATION", "How long each number of workers is measured under them [default: 4s]"),
];

/// Everything clap needs.
pub(crate) fn command() -> Command {
    // Deferred: tables of arguments that nobody asked for would slow every start.
    let demo = Command::new("demo")
        .about("Run a small HTTP server in as many workers as fit, on 127.0.0.1:3000")
        .defer(|demo| demo.args(options()));
    let table = Command::new("table")
        .about("Print how many workers would fit, by memory and CPUs; `table heroku`: in each dyno")
        .override_usage("throng-rs table [OPTIONS] [heroku] [COMMAND [ARG]...]")
        .defer(|table| {
            let words = words("Whose workers, as it would be run");
            table.args(options()).arg(words.last(false).num_args(0..).trailing_var_arg(true))
        });
    let doctor = Command::new("doctor")
        .about("Compare this answer with what Node.js, Go, the JVM and others believe; warn of what will hurt")
        .after_help("Exit status: 0 no problem (warnings and notes are none), 1 at least one problem, 2 bad input,\n126/127 COMMAND cannot be run/found.")
        .defer(|doctor| {
            doctor.args(options()).arg(words("What the workers will run, with its arguments"))
        });
    let calibrate = Command::new("calibrate")
        .about("Find by trial, under load, what a worker costs and how many are enough; keep that for later runs")
        .override_usage("throng-rs calibrate [--load CMD] [--listen ADDR] [OPTIONS] -- COMMAND [ARG]...")
        .defer(|calibrate| {
            let own = CALIBRATE.iter().map(|(name, value, help)| {
                Arg::new(*name).long(*name).value_name(*value).help(*help).help_heading("Calibration")
            });
            calibrate.args(own).args(options()).arg(words("What the workers run, with its arguments"))
        });
    // The server that `demo` runs in each worker.
    let server = Command::new("demo-server").hide(true);
    Command::new("throng-rs")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Works out how many workers fit in this process's memory and CPUs, says why, runs them and keeps them alive")
        .override_usage(
            "throng-rs [OPTIONS] -- COMMAND [ARG]...\n       \
             throng-rs --exec [OPTIONS] -- COMMAND [ARG]...\n       \
             throng-rs --dry-run [OPTIONS] [-- COMMAND [ARG]...]\n       \
             throng-rs table [OPTIONS] [heroku] [COMMAND [ARG]...]\n       \
             throng-rs doctor [OPTIONS] [-- COMMAND [ARG]...]\n       \
             throng-rs calibrate [--load CMD] [OPTIONS] -- COMMAND [ARG]...\n       \
             throng-rs demo [OPTIONS]\n       \
             throng-rs status|scale|reload|restart|stop|signal|send|logs|events|upgrade [OPTIONS] [ARG]...",
        )
        .after_help(
            "Every long flag has a twin THRONG_<FLAG> in the environment and a key of the same name in the\n\
             configuration file; a flag beats the environment, the environment beats the file.\n\
             Exit status: 0 stopped on request, 1 our own failure, 2 bad input, 3 --strict and nothing fits,\n\
             126/127 COMMAND cannot be run/found, 137 a worker had to be killed, else the last failed worker's.",
        )
        .args(options())
        .arg(words("What to run, with its arguments"))
        .subcommand(table)
        .subcommand(demo)
        .subcommand(doctor)
        .subcommand(calibrate)
        .subcommand(server)
        .subcommands(CONTROL.iter().map(Control::command))
        .disable_help_subcommand(true)
}

/// A command that drives a launcher that runs already.
pub(crate) struct Control {
    pub(crate) name: &'static str,
    about: &'static str,
    /// Its own words; optional ones in brackets.
    words: &'static [(&'static str, &'static str, &'static str)],
    switch: Option<(&'static str, char, &'static str)>,
}

const fn control(name: &'static str, about: &'static str) -> Control {
    Control { name, about, words: &[], switch: None }
}

/// All of them.
pub(crate) const CONTROL: &[Control] = &[
    Control {
        switch: Some((
            "check",
            'c',
            "Only tell whether all workers serve; exit with 1 where not: a HEALTHCHECK",
        )),
        ..control("status", "Show the workers of a running launcher")
    },
    Control {
        words: &[("value", "N|+N|-N|auto", "How many workers; auto is the computed number")],
        ..control("scale", "Run so many workers, more, or fewer")
    },
    control("reload", "Replace all workers, one after the other, and wait for the end"),
    Control {
        words: &[("id", "ID", "Which worker")],
        ..control("restart", "Replace one worker and wait for the end")
    },
    control("stop", "Stop gracefully, and wait for the end"),
    Control {
        words: &[("value", "SIG", "A name or a number"), ("id", "[ID]", "Only this worker")],
        ..control("signal", "Send a signal to the workers")
    },
    Control {
        words: &[
            ("value", "JSON", "The message; what is no JSON is sent as a text"),
            ("id", "[ID]", "Only to this worker"),
        ],
        ..control("send", "Send a message to the workers: process.on('message') in Node")
    },
    Control {
        words: &[("id", "[ID]", "Only of this worker")],
        switch: Some(("follow", 'f', "Go on with what comes")),
        ..control("logs", "Print what is kept of the workers' output")
    },
    Control {
        switch: Some(("follow", 'f', "Go on with what comes")),
        ..control("events", "Print what happened to the workers")
    },
    control("upgrade", "Replace the launcher by its new program file; workers and sockets stay"),
];

impl Control {
    fn command(&self) -> Command {
        let text = |name: &'static str, value: &'static str, help: &'static str| {
            Arg::new(name).long(name).value_name(value).help(help)
        };
        let options = [
            text(
                "control",
                "PATH",
                "Control socket of the launcher that is meant [default: the only one of this user]",
            )
            .env("THRONG_CONTROL"),
            text("name", "NAME", "Name of the launcher that is meant").env("THRONG_NAME"),
            text("format", "text|json", "Form of the answer [default: text]"),
        ];
        let words = self.words.iter().map(|(id, value, help)| {
            let required = !value.starts_with('[');
            let value = value.trim_matches(['[', ']']);
            Arg::new(*id).value_name(value).required(required).allow_hyphen_values(true).help(*help)
        });
        let switch = self.switch.iter().map(|(name, short, help)| {
            Arg::new(*name).long(*name).short(*short).action(ArgAction::SetTrue).help(*help)
        });
        let args: Vec<Arg> = options.into_iter().chain(words).chain(switch).collect();
        Command::new(self.name).about(self.about).args(args)
    }
}

/// The command behind two dashes.
fn words(help: &'static str) -> Arg {
    Arg::new("command")
        .value_name("COMMAND")
        .last(true)
        .num_args(1..)
        .value_parser(clap::value_parser!(std::ffi::OsString))
        .help(help)
}

fn options() -> impl Iterator<Item = Arg> {
    KEYS.iter().map(|key| {
        let arg = Arg::new(key.name).long(key.name).help_heading(key.heading).help(key.help);
        let arg = match key.short {
            Some(short) => arg.short(short),
            None => arg,
        };
        match (key.is_switch(), key.repeat) {
            (true, _) => arg.action(ArgAction::SetTrue),
            (false, true) => arg.value_name(key.value).action(ArgAction::Append),
            (false, false) => arg.value_name(key.value),
        }
        // `--workers -1` must be refused by us, with what is accepted, and not as an unknown flag.
        .allow_hyphen_values(!key.is_switch())
    })
}

/// What stands on the command line for one key; a switch that is there reads `true`.
pub(crate) fn on_command_line(matches: &ArgMatches, key: &Key) -> Option<Vec<String>> {
    if key.is_switch() {
        return matches.get_flag(key.name).then(|| vec!["true".to_owned()]);
    }
    let values: Vec<String> = matches.get_many::<String>(key.name)?.cloned().collect();
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_makes_a_sound_command() {
        command().debug_assert();
    }
}
