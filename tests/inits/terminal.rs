//! Who has the terminal, and what its keys do.

use nix::unistd::Pid;

use super::init::Init;
use super::scene::{MARKER, Next, Scene, WATCH, name, send, stat, within};
use super::setting::Setting;

pub(crate) fn has(init: Init) -> String {
    let line = "test -t 0 && test -t 1 && test -t 2 && echo three; : </dev/tty && echo controlling";
    let text = Setting::new(init).terminal().sh(line).text();
    match (text.contains("three"), text.contains("controlling")) {
        (true, true) => "the terminal",
        (true, false) => "the terminal, not as its own",
        _ => "no terminal",
    }
    .to_owned()
}

pub(crate) fn foreground(init: Init) -> String {
    let (scene, command) = Setting::new(init).terminal().listener("");
    let (its, inits) = (stat(command).unwrap(), stat(scene.init()).unwrap());
    match its.tpgid {
        group if group == its.pgrp => "the command's group",
        group if group == inits.pgrp => "init's group",
        _ => "nobody",
    }
    .to_owned()
}

/// What the command gets from a key.
fn key(init: Init, act: impl Fn(&mut Scene)) -> String {
    let (mut scene, _) = Setting::new(init).terminal().ours(&["--grace", "1h"]).listener("");
    act(&mut scene);
    // By way of init, which was told before us if it was told at all.
    send(scene.init(), MARKER);
    let got = scene.until_marker("it");
    let names: Vec<String> = got.into_iter().map(name).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

pub(crate) fn interrupt_heard(init: Init) -> String {
    key(init, |scene| {
        scene.press("\x03");
        // The line discipline shows it when it has sent the signal.
        scene.sees("^C");
    })
}

pub(crate) fn resize(init: Init) -> String {
    key(init, |scene| scene.resize())
}

pub(crate) fn interrupt(init: Init) -> String {
    let mut scene = Setting::new(init).terminal().sh("echo up; exec sleep 1000");
    scene.wait("up");
    scene.press("\x03");
    scene.end().to_string()
}

pub(crate) fn suspend(init: Init) -> String {
    let mut scene = Setting::new(init).terminal().sh("echo up; read line; echo got $line; exit 4");
    scene.wait("up");
    scene.press("\x1a");
    scene.wait("^Z");
    scene.press("on\n");
    match scene.next(&["got on"], WATCH) {
        Next::Text(_) => "goes on".to_owned(),
        _ => "stays stopped".to_owned(),
    }
}

/// An interactive shell; what is typed before it asks for it may get lost.
const SHELL: [&str; 5] = ["env", "PS1=next> ", "bash", "--norc", "-i"];
const PROMPT: &str = "next> ";

pub(crate) fn suspend_from_a_shell(init: Init) -> String {
    // The shell is no init here: it starts one.
    let words = init.words(&[]).join(" ");
    let line = format!("{words} sh -c 'echo up$((1+1)) $$; read line; echo got $line; exit 5'\n");
    let mut scene = Setting::new(init).below().terminal().alone(&SHELL);
    scene.wait(PROMPT);
    scene.press(&line);
    scene.wait("up2 ");
    let command = Pid::from_raw(scene.line().parse().unwrap());
    scene.press("\x1a");
    if scene.next(&["Stopped"], WATCH) != Next::Text(0) {
        scene.press("on\n");
        let goes_on = scene.next(&["got on"], WATCH) == Next::Text(0);
        return if goes_on { "the key does nothing" } else { "the terminal hangs" }.to_owned();
    }
    scene.wait(PROMPT);
    // dumb-init tells its command to stop and does not wait for it: until it has, it would read along.
    assert!(within(5 * WATCH, || stat(command).is_some_and(|stat| stat.state == 'T')));
    scene.press("fg\n");
    scene.press("on\n");
    scene.wait("got on");
    scene.wait(PROMPT);
    scene.press("exit $?\n");
    match scene.end() {
        5 => "stopped, and `fg` goes on".to_owned(),
        other => format!("stopped, and `fg` ends with {other}"),
    }
}

pub(crate) fn shell(init: Init) -> String {
    let mut scene = Setting::new(init).terminal().run(&SHELL);
    if scene.next(&["no job control", PROMPT], WATCH) != Next::Text(1) {
        return "no job control".to_owned();
    }
    scene.press("test -t 0 && echo on a $((40+2)) terminal\n");
    scene.wait("on a 42 terminal");
    scene.wait(PROMPT);
    let job = "sh -c 'echo up$((1+1)); read line; echo got $line'\n";
    scene.press(job);
    scene.wait("up2");
    scene.press("\x03");
    scene.wait(PROMPT);
    scene.press("echo st$?\n");
    scene.wait("st130");
    scene.wait(PROMPT);
    scene.press(job);
    scene.wait("up2");
    scene.press("\x1a");
    scene.wait("Stopped");
    scene.wait(PROMPT);
    scene.press("fg\n");
    scene.press("on\n");
    scene.wait("got on");
    scene.wait(PROMPT);
    scene.press("exit 7\n");
    format!("job control works, ends with {}", scene.end())
}

pub(crate) fn hangup(init: Init) -> String {
    let mut scene = Setting::new(init).terminal().sh("echo up; exec sleep 1000");
    scene.wait("up");
    scene.hang_up();
    scene.end().to_string()
}
