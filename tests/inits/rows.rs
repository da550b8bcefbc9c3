//! The scenarios, in the order of the page.

use super::init::Init;
use super::{found, processes, reasons, signals, status, terminal};

pub(crate) const SECTIONS: [&str; 6] = [STATUS, STOP, SIGNALS, PROCESSES, FOUND, TERMINAL];

const STATUS: &str = "The command ends";
const STOP: &str = "A stop";
const SIGNALS: &str = "A signal that a process sends to init";
const PROCESSES: &str = "Orphans, and what is left";
const FOUND: &str = "What the command finds";
const TERMINAL: &str = "On a terminal (`docker run -it`)";

/// One scenario.
pub(crate) struct Row {
    pub(crate) section: &'static str,
    pub(crate) what: String,
    /// Lets an init do it and says what it did.
    pub(crate) act: Box<dyn Fn(Init) -> String>,
    /// Why we do not do what tini does.
    pub(crate) because: Option<&'static str>,
}

pub(crate) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |section, what: &str, act: fn(Init) -> String| {
        let because = reasons::of(what);
        rows.push(Row { section, what: what.to_owned(), act: Box::new(act), because });
    };
    add(STATUS, "with 0, 3, 255", status::codes);
    add(STATUS, "by TERM, KILL, SEGV, signal 35", status::killed);
    add(STATUS, "is not there, cannot be executed", status::cannot_run);
    add(STATUS, "is a script without `#!`", status::script_without_interpreter);
    add(STOP, "TERM; the command ends with 0", status::handled_0);
    add(STOP, "TERM; the command ends with 5", status::handled_5);
    add(STOP, "TERM; the command dies of it", status::died);
    add(STOP, "INT; the command dies of it", status::interrupted);
    add(STOP, "TERM; the command ignores it", status::ignored);
    add(STOP, "TERM again", status::twice);
    add(STOP, "TERM; the command has been stopped (STOP)", status::stopped);
    add(
        STOP,
        "TERM to two of a kind, one below the other; the command ends with 5",
        status::nested,
    );
    for (name, number) in signals::ALL {
        let because = reasons::of(name);
        let act = Box::new(move |init| signals::signal(init, number));
        rows.push(Row { section: SIGNALS, what: name.to_owned(), act, because });
    }
    let mut add = |section, what: &str, act: fn(Init) -> String| {
        let because = reasons::of(what);
        rows.push(Row { section, what: what.to_owned(), act: Box::new(act), because });
    };
    add(SIGNALS, "USR1; the command has a child in its group: who gets it", signals::group);
    add(PROCESSES, "50 orphans end, half of them in sessions of their own", processes::zombies);
    add(PROCESSES, "init is not PID 1: who adopts an orphan", processes::adoption);
    add(
        PROCESSES,
        "the command leaves a process in its group, which ignores TERM, and ends with 4: init's end",
        processes::left_behind_as_pid_1,
    );
    add(PROCESSES, "the same, init is not PID 1: the process's end", processes::left_behind);
    add(PROCESSES, "init is not PID 1 and gets KILL: the command", processes::init_killed);
    add(PROCESSES, "init's parent gets KILL: init", processes::parent_killed);
    add(FOUND, "environment", found::environment);
    add(FOUND, "standard input", found::input);
    add(FOUND, "standard output and error", found::output);
    add(FOUND, "open descriptors", found::descriptors);
    add(FOUND, "process group and session", found::group);
    add(FOUND, "signals", found::clean_masks);
    add(
        FOUND,
        "signals, where init has USR1 blocked and INT, PIPE, TTOU ignored",
        found::inherited_masks,
    );
    add(FOUND, "signal at its parent's death", found::parent_death);
    add(FOUND, "`oom_score_adj`", found::oom_score);
    add(FOUND, "limit of open files", found::open_files);
    add(TERMINAL, "the command has", terminal::has);
    add(TERMINAL, "process group and session there", found::group_on_terminal);
    add(TERMINAL, "in the foreground is", terminal::foreground);
    add(TERMINAL, "Ctrl-C; the command dies of it", terminal::interrupt);
    add(TERMINAL, "Ctrl-C; the command gets", terminal::interrupt_heard);
    add(TERMINAL, "the size changes; the command gets", terminal::resize);
    add(TERMINAL, "Ctrl-Z; the command is no shell", terminal::suspend);
    add(
        TERMINAL,
        "Ctrl-Z; init was started by an interactive shell",
        terminal::suspend_from_a_shell,
    );
    add(TERMINAL, "an interactive bash", terminal::shell);
    add(TERMINAL, "the terminal goes away; the command dies of HUP", terminal::hangup);
    rows
}
