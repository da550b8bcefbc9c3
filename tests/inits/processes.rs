//! Orphans, and what is left when somebody ends.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use super::init::Init;
use super::scene::{MARKER, Scene, WATCH, children, lives, send, stat, within};
use super::setting::{Setting, own};
use super::stage::{LEAVE, LISTEN, PARENT};

/// Fifty orphans that end, half of them in sessions of their own.
pub(crate) fn zombies(init: Init) -> String {
    let line = "i=0; while [ $i -lt 25 ]; do
            ( ( exit 0 ) & ); ( setsid true & ); i=$((i+1))
        done; echo made; exec sleep 1000";
    let mut scene = Setting::new(init).sh(line);
    scene.wait("made");
    // Nobody is left but the command: as long as a zombie is there, it counts.
    let pid = scene.init();
    if within(5 * WATCH, || children(pid).len() == 1) {
        return "reaped".to_owned();
    }
    "zombies stay".to_owned()
}

fn parent_of_orphan(init: Init, flags: &[&'static str]) -> &'static str {
    let setting = Setting::new(init).flags(flags).below();
    let mut scene = setting.sh("(sleep 1000 & echo orphan $!); echo up; exec sleep 1000");
    scene.wait("orphan ");
    let orphan: i32 = scene.line().parse().unwrap();
    scene.wait("up");
    let parent = stat(Pid::from_raw(orphan)).unwrap().ppid;
    match parent {
        parent if parent == scene.init().as_raw() => "it",
        parent if parent == getpid().as_raw() => "its parent",
        _ => "somebody else",
    }
}

pub(crate) fn adoption(init: Init) -> String {
    let plain = parent_of_orphan(init, &[]);
    if init == Init::Tini {
        return format!("{plain}; with `-s` {}", parent_of_orphan(init, &["-s"]));
    }
    plain.to_owned()
}

/// The command leaves a process in its group and ends with 4.
fn leaves(init: Init) -> (Scene, Pid) {
    let setting = Setting::new(init).ours(&["--grace", "1s"]).below();
    let mut scene = setting.own(&[LEAVE, "4"]);
    let left = scene.up("left");
    (scene, left)
}

pub(crate) fn left_behind(init: Init) -> String {
    let (mut scene, left) = leaves(init);
    let status = scene.end();
    let mut got = Vec::new();
    let lived = lives(left);
    if lived {
        send(left, MARKER);
        got = scene.until_marker("left");
    } else if scene.text().contains("got left 15") {
        got.push(Signal::SIGTERM as i32);
    }
    let asked = got.contains(&(Signal::SIGTERM as i32));
    let what = match (asked, lived) {
        (true, true) => "gets TERM and may live on",
        (true, false) => "gets TERM, and KILL at the end of the grace",
        (false, true) => "lives on",
        (false, false) => "is killed",
    };
    format!("{status}; it {what}")
}

/// As PID 1 the kernel ends what is left; what counts is that nobody waits for it.
pub(crate) fn left_behind_as_pid_1(init: Init) -> String {
    let setting = Setting::new(init).ours(&["--grace", "1h"]);
    let mut scene = setting.own(&[LEAVE, "4"]);
    scene.wait("up left ");
    match scene.end_within(WATCH) {
        Some(status) => format!("{status}"),
        None => "waits until it has gone".to_owned(),
    }
}

/// KILL to the init.
pub(crate) fn init_killed(init: Init) -> String {
    let (scene, command) = Setting::new(init).below().listener("");
    scene.signal(Signal::SIGKILL);
    // It has gone when its parent, which is us, is told; then the command has lost its parent.
    let dies = within(WATCH, || !lives(command));
    if dies { "is killed" } else { "lives on" }.to_owned()
}

fn after_parent(init: Init, flags: &[&'static str], before: &[&str]) -> &'static str {
    let own = own();
    let before = [&[own.as_str(), PARENT], before].concat();
    let setting = Setting::new(init).flags(flags).before(&before).below();
    let mut scene = setting.own(&[LISTEN, "it"]);
    let command = scene.up("it");
    // The one that we started is the init's parent here.
    let init = children(scene.init())[0];
    kill(scene.init(), Signal::SIGKILL).unwrap();
    scene.end();
    // The kernel tells the children before the parent: what there was to hear has come.
    if !lives(init) {
        return if lives(command) { "the command lives on" } else { "both end" };
    }
    send(init, MARKER);
    let got = scene.until_marker("it");
    if got.contains(&(Signal::SIGTERM as i32)) { "passes TERM on" } else { "lives on" }
}

pub(crate) fn parent_killed(init: Init) -> String {
    let plain = after_parent(init, &[], &[]);
    let set = ["setpriv", "--pdeathsig", "TERM"];
    match init {
        Init::Tini => {
            let flag = after_parent(init, &["-p", "SIGTERM"], &[]);
            format!("{plain}; with `-p SIGTERM` {flag}")
        }
        Init::Throng | Init::Kept => {
            let under = after_parent(init, &[], &set);
            format!("{plain}; under `{}` {under}", set.join(" "))
        }
        Init::Dumb => plain.to_owned(),
    }
}
