//! Every setting: each key is a long flag, a `THRONG_` variable and a key of the configuration file, all of the same name.

use std::ffi::OsStr;

/// One setting.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// What stands for the value in the help; empty for a switch.
    pub(crate) value: &'static str,
    pub(super) heading: &'static str,
    pub(super) help: &'static str,
    /// Whether it may be given more than once.
    pub(crate) repeat: bool,
    pub(super) short: Option<char>,
}

impl Key {
    pub(crate) fn is_switch(&self) -> bool {
        self.value.is_empty()
    }

    /// Whether it only says which report to print and how.
    pub(crate) fn is_about_the_report(&self) -> bool {
        matches!(
            self.name,
            "dry-run" | "format" | "color" | "quiet" | "verbose" | "sysroot" | "config"
        )
    }

    /// `THRONG_MAX_WORKERS`.
    pub(crate) fn variable(&self) -> String {
        format!("THRONG_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }
}

const SIZING: &str = "Sizing";
const WHAT_IF: &str = "What-if";
const OUTPUT: &str = "Output";
const WORKERS: &str = "Workers";
const READINESS: &str = "Readiness";
const SOCKETS: &str = "Sockets";
const OPERATING: &str = "Operating";

const fn key(
    heading: &'static str,
    name: &'static str,
    value: &'static str,
    help: &'static str,
) -> Key {
    Key { name, value, heading, help, repeat: false, short: None }
}

/// Every setting there is.
pub(crate) const KEYS: &[Key] = &[
    key(SIZING, "workers", "auto|N", "Run N workers; auto computes the number [default: auto]"),
    key(SIZING, "min-workers", "N", "Never fewer than N, even where they do not fit [default: 1]"),
    key(SIZING, "max-workers", "N", "Never more than N"),
    key(
        SIZING,
        "worker-memory",
        "auto|SIZE",
        "Private memory of one worker; auto assumes a cost by runtime [default: auto]",
    ),
    key(SIZING, "workers-per-cpu", "F", "How many workers keep one CPU busy [default: 1]"),
    key(
        SIZING,
        "cpu-round",
        "nearest|floor|ceil",
        "How a fraction of a CPU becomes whole workers [default: nearest]",
    ),
    key(
        SIZING,
        "headroom",
        "SIZE|N%",
        "Memory kept free below the limit [default: a tenth, half as much again without swap]",
    ),
    key(
        SIZING,
        "runtime-env",
        "on|off",
        "Tell runtimes their share (NODE_OPTIONS, GOMEMLIMIT, ...) where the user has not [default: on]",
    ),
    key(
        SIZING,
        "exec",
        "",
        "Set WEB_CONCURRENCY to the number and become COMMAND, for servers that fork by themselves",
    ),
    key(
        SIZING,
        "adapt",
        "auto|on|off",
        "Follow limits and the workers' measured memory, up to the CPU rule; on: beyond it, while the load shows that it helps; off: the printed number stays [default: auto]",
    ),
    key(
        SIZING,
        "profile",
        "FILE|off",
        "Take what `throng-rs calibrate` has found from FILE [default: throng.profile.json beside throng.toml or here, if it is yours or root's]",
    ),
    key(SIZING, "strict", "", "Exit with 3 where not even one worker fits"),
    key(WHAT_IF, "memory", "SIZE", "Pretend this memory limit, tighter or wider than the real one"),
    key(WHAT_IF, "cpus", "F", "Pretend this many CPUs"),
    key(
        WHAT_IF,
        "sysroot",
        "DIR",
        "Read /proc and /sys under DIR: the recorded files of another machine",
    ),
    key(OUTPUT, "dry-run", "", "Print the sizing report and exit"),
    key(
        OUTPUT,
        "format",
        "text|json|env|csv",
        "Form of the report; env prints lines for a shell's eval, csv is for table [default: text]",
    ),
    key(
        OUTPUT,
        "log-format",
        "text|json",
        "Form of our own log lines on standard error [default: text]",
    ),
    key(
        OUTPUT,
        "color",
        "auto|always|never",
        "Colour in the report and the prefixes [default: auto]",
    ),
    key(
        OUTPUT,
        "prefix",
        "auto|on|off",
        "Start each line of a worker with its id; auto: on a terminal with more than one worker [default: auto]",
    ),
    Key { short: Some('q'), ..key(OUTPUT, "quiet", "", "Log warnings and errors only") },
    Key {
        short: Some('v'),
        ..key(OUTPUT, "verbose", "", "Log every step; describe the machine in the report")
    },
    key(WORKERS, "grace", "DURATION", "Time between the stop signal and KILL [default: 8s]"),
    key(WORKERS, "stop-signal", "SIG", "What asks a worker to stop [default: TERM]"),
    key(
        WORKERS,
        "restart",
        "always|on-failure|never",
        "When to replace a worker that ended [default: always; never for one worker on a terminal]",
    ),
    key(
        WORKERS,
        "max-restarts",
        "N",
        "Give a worker's slot up after N failed starts in a row [default: 10]",
    ),
    key(
        WORKERS,
        "lifetime",
        "DURATION",
        "Replace no worker that ends later than this after our start",
    ),
    key(
        WORKERS,
        "max-worker-age",
        "DURATION",
        "Replace each worker when it is so old, less up to a tenth, one at a time",
    ),
    key(
        WORKERS,
        "max-worker-memory",
        "off|auto|SIZE",
        "Replace a worker whose private memory stays above SIZE, one at a time; auto: its share [default: off]",
    ),
    key(
        WORKERS,
        "guard",
        "on|off",
        "Replace or give up workers when memory is about to run out, before the kernel kills [default: on]",
    ),
    key(
        WORKERS,
        "surge",
        "auto|N",
        "New workers that run beside the old ones in a reload; 0: stop first; auto: 1 where memory and ports have room [default: auto]",
    ),
    key(WORKERS, "start-parallel", "auto|N", "Start no more than N at once [default: auto, all]"),
    key(
        WORKERS,
        "before",
        "CMD",
        "Run CMD by sh, once, before the first worker; its failure ends the launch",
    ),
    key(
        WORKERS,
        "watchdog",
        "off|DURATION|http:PATH",
        "Abort and replace a worker without WATCHDOG=1 for so long, or whose PATH does not answer [default: off]",
    ),
    key(
        WORKERS,
        "isolate",
        "auto|on|off",
        "A cgroup with a memory limit for each worker, so that one that takes too much dies alone; auto: where our cgroup is ours to divide [default: auto]",
    ),
    key(
        READINESS,
        "ready",
        "auto|spawn|notify|listen|http:PATH|delay:DURATION",
        "When a worker serves; auto: at READY=1, or when it has lived for a second [default: auto]",
    ),
    key(READINESS, "ready-timeout", "DURATION", "The longest that may take [default: 30s]"),
    key(WORKERS, "chdir", "DIR", "Directory the workers start in"),
    key(WORKERS, "user", "USER[:GROUP]", "Run the workers as this user, by name or number"),
    key(
        WORKERS,
        "env-file",
        "FILE",
        "Add the NAME=value lines of FILE to the workers' environment",
    ),
    key(
        WORKERS,
        "template",
        "",
        "Replace {id}, {index}, {workers} and {port} in the command's arguments",
    ),
    Key {
        repeat: true,
        ..key(
            SOCKETS,
            "listen",
            "ADDR",
            "Listen for the workers: 3000, 127.0.0.1:3000, [::]:3000 or unix:PATH; may be repeated",
        )
    },
    key(
        SOCKETS,
        "socket-mode",
        "MODE",
        "Mode of the files of Unix sockets, as 660 [default: by the umask]",
    ),
    key(
        SOCKETS,
        "share",
        "auto|node|proxy|fd|reuseport|off",
        "node: a cluster primary for unmodified Node servers; proxy: pass connections to each worker's own PORT; fd: every worker inherits the listening sockets (LISTEN_FDS and others); reuseport: sockets of its own; auto: node for `node SCRIPT`, else proxy with --listen or PORT, else off [default: auto]",
    ),
    key(
        SOCKETS,
        "upstream",
        "port|unix",
        "What each worker's PORT holds behind the proxy: a port, or the path of a Unix socket [default: port]",
    ),
    key(
        SOCKETS,
        "proxy-protocol",
        "",
        "Tell workers behind the proxy each client's address, by a PROXY protocol header (version 2)",
    ),
    key(
        SOCKETS,
        "balance",
        "auto|kernel|least-connections|round-robin|sticky-ip",
        "Who chooses the worker of a connection; what there is depends on --share [default: auto]",
    ),
    key(
        SOCKETS,
        "ipc",
        "auto|on|off",
        "A channel for messages (NODE_CHANNEL_FD, lines of JSON); auto: with --share node [default: auto]",
    ),
    key(
        WORKERS,
        "stop-message",
        "JSON",
        "Send this to a worker that is to stop, and the stop signal later: shutdown is PM2's",
    ),
    key(OPERATING, "name", "NAME", "Name of this instance, for the control commands"),
    key(
        OPERATING,
        "control",
        "PATH|off",
        "Control socket [default: throng-rs/PID.sock in /run, in XDG_RUNTIME_DIR or below the temporary directory]",
    ),
    key(
        OPERATING,
        "config",
        "FILE",
        "Read settings from FILE [default: throng.toml here, if it is yours or root's]",
    ),
];

/// The key of a name, dashes or underscores.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether a variable is one of [`Key::variable`].
pub(crate) fn is_variable(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"THRONG_")
        && KEYS.iter().any(|key| name == OsStr::new(&key.variable()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_there_twice_and_each_help_is_one_phrase() {
        let mut names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        for key in KEYS {
            assert!(!key.help.ends_with('.') && key.help.is_ascii(), "{}", key.name);
        }
    }
}
