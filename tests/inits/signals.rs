//! What becomes of a signal that a process sends to init.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::init::Init;
use super::scene::{MARKER, Next, Scene, WATCH, children, name, send, stat, within};
use super::setting::Setting;
use super::stage::FAMILY;

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const ALL: [(&str, i32); 17] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("USR1", 10),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CHLD", 17),
    ("CONT", 18),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("WINCH", 28),
    ("35 (real-time)", 35),
];

/// What happened up to the marker.
enum Seen {
    Ended(i32),
    Stopped,
    Got(Vec<i32>),
}

/// Waits for the marker, the end or a command that is stopped.
fn watch(scene: &mut Scene, command: Pid) -> Seen {
    let deadline = Instant::now() + LIMIT;
    let mut numbers = Vec::new();
    loop {
        match scene.next(&["got it "], Duration::from_millis(20)) {
            Next::End(status) => return Seen::Ended(status),
            Next::Text(_) => match scene.line().parse().unwrap() {
                MARKER => return Seen::Got(numbers),
                number => numbers.push(number),
            },
            Next::Nothing if stat(command).is_some_and(|stat| stat.state == 'T') => {
                return Seen::Stopped;
            }
            Next::Nothing => assert!(Instant::now() < deadline, "no marker comes through"),
        }
    }
}

/// Whether HUP made the command be told to end, or another one come up: when it is ready, so most often after the marker.
fn restarts(scene: &mut Scene, number: i32, numbers: &[i32], before: usize) -> bool {
    if number != Signal::SIGHUP as i32 || numbers.contains(&number) {
        return false;
    }
    let (init, glance) = (scene.init(), Duration::from_millis(20));
    let told = numbers.contains(&(Signal::SIGTERM as i32));
    told || within(2 * WATCH, || {
        scene.next(&["got it 15"], glance) == Next::Text(0) || children(init).len() > before
    })
}

/// One signal.
pub(crate) fn signal(init: Init, number: i32) -> String {
    let (mut scene, command) = Setting::new(init).ours(&["--grace", "1h"]).listener("");
    let (pid, before) = (scene.init(), children(scene.init()).len());
    send(pid, number);
    if stat(pid).is_some() {
        send(pid, MARKER);
    }
    match watch(&mut scene, command) {
        Seen::Ended(status) => format!("KILL, {status}"),
        Seen::Stopped => {
            send(pid, Signal::SIGCONT as i32);
            // It is seen stopped for as long as it has not been told.
            while !matches!(watch(&mut scene, command), Seen::Got(_)) {}
            "STOP, until CONT".to_owned()
        }
        Seen::Got(numbers) if restarts(&mut scene, number, &numbers, before) => {
            "restarts the command".to_owned()
        }
        Seen::Got(numbers) if numbers == [number] => "passed on".to_owned(),
        Seen::Got(numbers) if numbers.is_empty() => {
            // An upgrade has a child for a moment, which proves that it can be done.
            let upgrade = number == Signal::SIGUSR2 as i32;
            let passing = upgrade && within(2 * WATCH, || children(pid).len() <= before);
            let more = if passing { 0 } else { children(pid).len() - before };
            if more == 0 { "nothing".to_owned() } else { format!("{more} worker more") }
        }
        Seen::Got(numbers) if numbers == [number, Signal::SIGCONT as i32] => {
            "passed on, then CONT".to_owned()
        }
        Seen::Got(numbers) => {
            let names: Vec<String> = numbers.into_iter().map(name).collect();
            format!("becomes {}", names.join(", "))
        }
    }
}

/// Who gets USR1: the command alone, or its child in the same group too.
fn reached(init: Init, flags: &[&'static str]) -> String {
    let mut scene = Setting::new(init).flags(flags).own(&[super::stage::LISTEN, "it", FAMILY]);
    // They come up in no order.
    let mut ups = [("it", None), ("child", None)];
    while ups.iter().any(|(_, pid)| pid.is_none()) {
        scene.wait("up ");
        let line = scene.line();
        let (name, pid) = line.split_once(' ').unwrap();
        let up = ups.iter_mut().find(|(known, _)| *known == name).unwrap();
        up.1 = Some(scene.outer(pid.parse().unwrap()));
    }
    let child = ups[1].1.unwrap();
    scene.signal(Signal::SIGUSR1);
    send(scene.init(), MARKER);
    // Each tells in its own time, so their lines mix: all is read up to both markers.
    let mut got: [Vec<i32>; 2] = [Vec::new(), Vec::new()];
    let mut through = false;
    while !got.iter().all(|numbers| numbers.contains(&MARKER)) {
        scene.wait("got ");
        let line = scene.line();
        let (name, number) = line.split_once(' ').unwrap();
        let who = usize::from(name == "child");
        got[who].push(number.parse().unwrap());
        if who == 0 && got[0].contains(&MARKER) && !through {
            // It has come to the command, so it has come to whom it was meant for.
            through = true;
            send(child, MARKER);
        }
    }
    let usr1 = Signal::SIGUSR1 as i32;
    match got.map(|numbers| numbers.contains(&usr1)) {
        [true, true] => "both",
        [true, false] => "the command",
        [false, true] => "the child",
        [false, false] => "nobody",
    }
    .to_owned()
}

pub(crate) fn group(init: Init) -> String {
    let plain = reached(init, &[]);
    match init {
        Init::Tini => format!("{plain}; with `-g` {}", reached(init, &["-g"])),
        Init::Dumb => format!("{plain}; with `-c` {}", reached(init, &["-c"])),
        Init::Throng | Init::Kept => plain,
    }
}
