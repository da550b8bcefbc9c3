//! The command and process 1: who stands between the signals and the server.

use std::path::Path;

use super::Severity::{Note, Warning};
use super::{Case, Finding};
use crate::plan::Runtime;
use crate::probe::parse::{number, trim, words};
use crate::probe::show;

pub(super) fn findings(case: &Case<'_>, found: &mut Vec<Finding>) {
    found.extend(in_front(case.command));
    found.extend(shell(case.command));
    found.extend(process_one(case));
}

fn name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// `npm start` and its like: a whole Node.js that waits for another one.
fn in_front(command: &[String]) -> Option<Finding> {
    let manager = name(command.first()?);
    if !matches!(manager, "npm" | "npx" | "yarn" | "pnpm" | "bunx" | "nodemon" | "pm2") {
        return None;
    }
    Some(Finding::new(
        Warning,
        "wrapper-in-front",
        ("command", command.join(" ")),
        format!(
            "{manager} stays in front of the server: some 50 MiB more for each worker, a stop signal that may not reach the server, and an exit status that is {manager}'s."
        ),
        "Start what the script starts, such as: throng-rs -- node server.js",
    ))
}

/// `sh -c TEXT` that may stay in front of what it starts.
fn shell(command: &[String]) -> Option<Finding> {
    let shell = name(command.first()?);
    if !matches!(shell, "sh" | "bash" | "dash" | "ash" | "zsh" | "busybox") {
        return None;
    }
    let at = command
        .iter()
        .position(|word| word.starts_with('-') && !word.starts_with("--") && word.ends_with('c'))?;
    let script = command.get(at + 1)?.trim();
    // The last command is what runs for long.
    let last = script
        .rsplit([';', '\n', '&', '|'])
        .map(str::trim)
        .find(|part| !part.is_empty())
        .unwrap_or(script);
    if last.starts_with("exec ") {
        return None;
    }
    // Some shells become the last command of -c by themselves where it is the only one.
    let severity = if last == script { Note } else { Warning };
    Some(Finding::new(
        severity,
        "shell-in-front",
        ("command", command.join(" ")),
        format!(
            "{shell} may stay in front of the server: it does not pass the stop signal on, so the server is killed at the end of the grace and not asked to stop."
        ),
        format!("Put exec before the last command: {shell} -c 'exec {last}'"),
    ))
}

fn process_one(case: &Case<'_>) -> Option<Finding> {
    let own = case.host.read(Path::new("/proc/self/stat")).ok()?;
    let pid = words(&own).next().and_then(number);
    if case.exec && pid == Some(1) {
        return Some(Finding::new(
            Warning,
            "command-as-pid-1",
            ("/proc/self/stat", "1"),
            "With --exec the command becomes process 1: the kernel drops every signal that it has no handler for, and nobody reaps the orphans that end up with it.",
            "Start the container with an init (docker run --init, shareProcessNamespace in Kubernetes), or leave --exec out: throng-rs is an init itself.",
        ));
    }
    if pid == Some(1) {
        return Some(Finding::new(
            Note,
            "we-are-pid-1",
            ("/proc/self/stat", "1"),
            "throng-rs is process 1 here: it passes signals on to the workers, reaps orphans and ends with their status.",
            "Nothing: no tini or --init is needed.",
        ));
    }
    let comm = case.host.read(Path::new("/proc/1/comm")).ok()?;
    let program = show(trim(&comm));
    let runtime = Runtime::by_name(&program).unwrap_or(Runtime::Other);
    if runtime == Runtime::Other {
        return None;
    }
    Some(Finding::new(
        Warning,
        "no-init",
        ("/proc/1/comm", program.clone()),
        format!(
            "Process 1 of this container is {program}: it does not reap orphans, so ended processes pile up as zombies until no new one can start."
        ),
        "Make throng-rs process 1 (ENTRYPOINT [\"throng-rs\", \"--\"]), or start the container with an init (docker run --init).",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split('|').map(str::to_owned).collect()
    }

    #[test]
    fn a_shell_without_exec_is_seen() {
        let severity = |text| shell(&words(text)).map(|finding| finding.severity);
        assert_eq!(severity("sh|-c|cd /app && node server.js"), Some(Warning));
        assert_eq!(severity("/bin/bash|-lc|node server.js"), Some(Note));
        assert_eq!(severity("sh|-c|cd /app && exec node server.js"), None);
        assert_eq!(severity("sh|-c"), None);
        assert_eq!(severity("sh|start.sh"), None);
        assert_eq!(severity("node|-c|x"), None);
    }

    #[test]
    fn a_package_manager_in_front_is_seen() {
        assert!(in_front(&words("/usr/bin/npm|start")).is_some());
        assert!(in_front(&words("node|server.js")).is_none());
        assert!(in_front(&[]).is_none());
    }
}
