//! Why one worker goes another way than a command under tini.

const CLEAN: &str = "a stop that was asked for and obeyed is a success, whatever the command returned: Docker, systemd and \
    Kubernetes, which ask for it, take it so. (`tini -e 143` does it for one status.)";

const GRACE: &str = "who ignores a stop gets KILL at the end of `--grace` (8 s; here 1 s), and the status says so as `timeout -k` does. \
    Under tini the engine's own KILL comes later, and takes everything at once.";

const GROUP: &str = "there is no `-g`. The stop signal goes to the command; what is left of its group when it has ended gets it too, and KILL \
    always goes to the group. Other signals are for the command.";

const LEFT: &str = "what a command leaves in its group gets the stop signal, and KILL at the end of the grace: it would hold the port of the \
    next one. A command on a terminal is let be.";

/// By the name of the scenario.
pub(super) fn of(what: &str) -> Option<&'static str> {
    let because = match what {
        "TERM; the command ends with 5"
        | "TERM; the command dies of it"
        | "INT; the command dies of it"
        | "TERM to two of a kind, one below the other; the command ends with 5" => CLEAN,
        "TERM; the command ignores it" => GRACE,
        "TERM again" => "a second stop means now.",
        "TERM; the command has been stopped (STOP)" | "TERM" => {
            "CONT follows the stop signal: who is stopped could not obey, and the stop would take the whole grace."
        }
        "HUP" => {
            "HUP restarts the command, and so brings a new configuration in. A server that would rather reload by itself on HUP can be told \
             from inside (`docker exec … kill -HUP`)."
        }
        "INT" => {
            "INT is a stop, and a stop is told by `--stop-signal` (TERM), which servers handle best."
        }
        "QUIT" => "KILL now, for who cannot wait for the grace.",
        "USR2" | "TTIN" => {
            "these are commands to the launcher, as the table of signals in [running.md](running.md) says."
        }
        "PIPE" => {
            "the kernel sends it for our own writes in just the same way, so it says nothing about the command."
        }
        "TSTP" => {
            "the command and all of its group stop (by STOP: it cannot be refused) and go on with CONT, together with us."
        }
        "USR1; the command has a child in its group: who gets it" => GROUP,
        "init is not PID 1: who adopts an orphan" => {
            "we always adopt, as under `tini -s`: none outlives the run."
        }
        "the command leaves a process in its group, which ignores TERM, and ends with 4: init's end"
        | "the same, init is not PID 1: the process's end" => LEFT,
        "init is not PID 1 and gets KILL: the command" | "signal at its parent's death" => {
            "no worker may go on without its launcher: it would keep the port."
        }
        "init's parent gets KILL: init" => {
            "there is no `-p`, because `setpriv` (util-linux) does it for any program."
        }
        "environment" => {
            "the names of [reference.md](reference.md), by which a server knows its share. What a user has set stays but for those names, \
             and `--runtime-env off` leaves the limits of runtimes out."
        }
        "standard input" => {
            "a worker reads `/dev/null` unless it has the terminal: of N none could own what comes in. `docker run -i` without `-t` feeds \
             nothing to the command; start such a one without us, or with `--exec`."
        }
        "signals, where init has USR1 blocked and INT, PIPE, TTOU ignored" => {
            "what is blocked and ignored is handed on, but PIPE has its default again: Rust programs ignore it, and children \
             should not inherit that."
        }
        "`oom_score_adj`" => {
            "where memory ends, the kernel must take the worker, which can be replaced, and not the launcher."
        }
        "Ctrl-Z; the command is no shell" => "as PID 1 nobody could wake it, so we do.",
        "Ctrl-Z; init was started by an interactive shell" => {
            "we stop when our command was stopped by a key, as every job does, and so the shell gets its terminal back."
        }
        "the terminal goes away; the command dies of HUP" => {
            "a terminal that goes away is a stop that was asked for, and the command obeyed."
        }
        _ => return None,
    };
    Some(because)
}
