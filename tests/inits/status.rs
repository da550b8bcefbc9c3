//! How the command ends, and what a stop does.

use std::time::Duration;

use nix::sys::signal::Signal::{SIGINT, SIGSTOP, SIGTERM};
use nix::sys::signal::kill;

use super::init::Init;
use super::scene::{MARKER, Next, WATCH, send, stat, within};
use super::setting::{Setting, own};
use super::stage::LISTEN;

pub(crate) fn codes(init: Init) -> String {
    let ends = |code: &str| Setting::new(init).sh(&format!("exit {code}")).end().to_string();
    ["0", "3", "255"].map(ends).join(", ")
}

pub(crate) fn killed(init: Init) -> String {
    let ends = |signal: &str| {
        let line = format!("ulimit -c 0; kill -{signal} $$");
        Setting::new(init).sh(&line).end().to_string()
    };
    ["TERM", "KILL", "SEGV", "35"].map(ends).join(", ")
}

pub(crate) fn cannot_run(init: Init) -> String {
    let ends = |path: &str| Setting::new(init).run(&[path]).end().to_string();
    ["/nonexistent/command", "/etc/passwd"].map(ends).join(", ")
}

pub(crate) fn script_without_interpreter(init: Init) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script");
    std::fs::write(&path, "exit 6\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    match Setting::new(init).run(&[path.to_str().unwrap()]).end() {
        6 => "sh runs it".to_owned(),
        other => other.to_string(),
    }
}

/// TERM to a command that handles it and ends with a status.
fn handled(init: Init, behaviour: &str) -> String {
    let (mut scene, _) = Setting::new(init).listener(behaviour);
    scene.signal(SIGTERM);
    scene.end().to_string()
}

pub(crate) fn handled_0(init: Init) -> String {
    handled(init, "end=0")
}

pub(crate) fn handled_5(init: Init) -> String {
    handled(init, "end=5")
}

pub(crate) fn died(init: Init) -> String {
    let mut scene = Setting::new(init).sh("echo up; exec sleep 1000");
    scene.wait("up");
    scene.signal(SIGTERM);
    scene.end().to_string()
}

pub(crate) fn ignored(init: Init) -> String {
    let (mut scene, command) = Setting::new(init).ours(&["--grace", "3s"]).listener("");
    scene.signal(SIGTERM);
    scene.wait("got it 15");
    if let Some(status) = scene.end_within(2 * WATCH) {
        return format!("KILL at the end of the grace, {status}");
    }
    // Both are still there and go about their work.
    send(command, MARKER);
    scene.until_marker("it");
    "waits for ever".to_owned()
}

pub(crate) fn twice(init: Init) -> String {
    let (mut scene, _) = Setting::new(init).ours(&["--grace", "1h"]).listener("");
    scene.signal(SIGTERM);
    scene.wait("got it 15");
    // Nearer together they are one stop for us, as `timeout` sends it.
    std::thread::sleep(Duration::from_millis(60));
    scene.signal(SIGTERM);
    match scene.next(&["got it 15"], WATCH) {
        Next::End(status) => format!("KILL, {status}"),
        Next::Text(_) => "passed on again".to_owned(),
        Next::Nothing => "nothing".to_owned(),
    }
}

pub(crate) fn stopped(init: Init) -> String {
    let (mut scene, command) = Setting::new(init).ours(&["--grace", "1h"]).listener("end=0");
    kill(command, SIGSTOP).unwrap();
    assert!(within(WATCH, || stat(command).is_some_and(|stat| stat.state == 'T')));
    scene.signal(SIGTERM);
    match scene.end_within(WATCH) {
        Some(status) => format!("CONT too: ends, {status}"),
        None => "waits for ever".to_owned(),
    }
}

pub(crate) fn interrupted(init: Init) -> String {
    let mut scene = Setting::new(init).sh("echo up; exec sleep 1000");
    scene.wait("up");
    scene.signal(SIGINT);
    scene.end().to_string()
}

/// The status of two of a kind, one below the other, after TERM to the outer.
pub(crate) fn nested(init: Init) -> String {
    let own = own();
    let inner = init.words(&[]);
    let mut words: Vec<&str> = inner.iter().map(String::as_str).collect();
    words.extend([own.as_str(), LISTEN, "it", "end=5"]);
    let mut scene = Setting::new(init).run(&words);
    // Its number is of no use here: it is what matters that it is up.
    scene.wait("up it ");
    scene.signal(SIGTERM);
    let status = scene.end();
    assert!(scene.text().contains("got it 15"));
    status.to_string()
}
