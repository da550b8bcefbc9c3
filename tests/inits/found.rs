//! What the command finds when it starts.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;

use super::init::Init;
use super::scene::{MARKER, Scene, WATCH, name, stat, within};
use super::setting::{Setting, own};
use super::stage::{LISTEN, PDEATHSIG};

/// A command that only waits, and its pid.
fn waiting(setting: &Setting) -> (Scene, Pid) {
    let mut scene = setting.sh("echo pid $$; exec sleep 1000");
    scene.wait("pid ");
    let inner = scene.line().parse().unwrap();
    let pid = scene.outer(inner);
    // It says so before it becomes the program that is looked at.
    assert!(within(10 * WATCH, || stat(pid).is_some_and(|stat| stat.comm == "sleep")));
    (scene, pid)
}

pub(crate) fn environment(init: Init) -> String {
    // What there is to share out is no matter of this machine. No shell: it would add `_`.
    let mut scene = Setting::new(init).ours(&["--memory", "1G", "--cpus", "2"]).run(&["env"]);
    let text = scene.text();
    let names: BTreeSet<&str> =
        text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert!(names.contains("PATH"), "{text}");
    let more: Vec<String> =
        names.iter().filter(|name| **name != "PATH").map(|name| format!("`{name}`")).collect();
    if more.is_empty() { "as it was".to_owned() } else { format!("adds {}", more.join(", ")) }
}

pub(crate) fn input(init: Init) -> String {
    let setting = Setting::new(init).input("words\n");
    let mut scene = setting.sh("if read line; then echo \"line $line\"; else echo end; fi");
    let text = scene.text();
    if text.contains("line words") {
        "init's own".to_owned()
    } else {
        assert!(text.contains("end"), "{text}");
        "nothing to read".to_owned()
    }
}

pub(crate) fn output(init: Init) -> String {
    let (scene, pid) = waiting(&Setting::new(init));
    let link = |pid: Pid, fd: i32| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
    let same = [1, 2].map(|fd| link(pid, fd) == link(scene.init(), fd));
    if same == [true, true] { "init's own" } else { "others" }.to_owned()
}

pub(crate) fn descriptors(init: Init) -> String {
    let open = |pid: Pid| -> BTreeSet<String> {
        let names = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        names.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    // Whoever runs this may have left some open: they are there without an init too.
    let without = {
        let own = own();
        let mut scene = Setting::new(init).below().alone(&[own.as_str(), LISTEN, "it"]);
        let pid = scene.up("it");
        open(pid)
    };
    let (_scene, pid) = Setting::new(init).listener("");
    let with = open(pid);
    assert!(with.is_superset(&without));
    match with.difference(&without).map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => "as they were".to_owned(),
        more => format!("adds {}", more.join(", ")),
    }
}

/// Its group and session, seen from init's.
fn place(setting: &Setting) -> String {
    let (scene, pid) = waiting(setting);
    let (its, inits) = (stat(pid).unwrap(), stat(scene.init()).unwrap());
    let group = if its.pgrp == pid.as_raw() { "own group" } else { "init's group" };
    let session = if its.session == pid.as_raw() {
        "own session"
    } else {
        assert_eq!(its.session, inits.session);
        "init's session"
    };
    format!("{group}, {session}")
}

pub(crate) fn group(init: Init) -> String {
    let plain = place(&Setting::new(init));
    if init == Init::Dumb {
        return format!("{plain}; with `-c` {}", place(&Setting::new(init).flags(&["-c"])));
    }
    plain
}

pub(crate) fn group_on_terminal(init: Init) -> String {
    place(&Setting::new(init).terminal())
}

/// Which signals are blocked and ignored.
fn masks(setting: &Setting) -> String {
    let (_scene, pid) = waiting(setting);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        let mask = u64::from_str_radix(line.trim(), 16).unwrap();
        // But for the one that is ignored for our own purposes, and those that the C library keeps for itself: no `env` puts them back.
        let told = |number: &i32| ![32, 33].contains(number) && mask >> (number - 1) & 1 == 1;
        let numbers = (1..MARKER).filter(told);
        let names: Vec<String> = numbers.map(name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    format!("{} blocked, {} ignored", mask("SigBlk:"), mask("SigIgn:"))
}

pub(crate) fn clean_masks(init: Init) -> String {
    masks(&Setting::new(init))
}

pub(crate) fn inherited_masks(init: Init) -> String {
    let before = ["env", "--block-signal=USR1", "--ignore-signal=INT,TTOU,PIPE"];
    masks(&Setting::new(init).before(&before))
}

pub(crate) fn parent_death(init: Init) -> String {
    Setting::new(init).own(&[PDEATHSIG]).text().trim().to_owned()
}

pub(crate) fn oom_score(init: Init) -> String {
    let (scene, pid) = waiting(&Setting::new(init));
    let score = |pid: Pid| -> i32 {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse().unwrap()
    };
    match score(pid) - score(scene.init()) {
        0 => "init's".to_owned(),
        more => format!("{more:+}"),
    }
}

pub(crate) fn open_files(init: Init) -> String {
    let (_scene, pid) = waiting(&Setting::new(init));
    let limits = procfs::process::Process::new(pid.as_raw()).unwrap().limits().unwrap();
    let ours = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let number = |value: procfs::process::LimitValue| match value {
        procfs::process::LimitValue::Value(value) => value,
        procfs::process::LimitValue::Unlimited => u64::MAX,
    };
    let open = limits.max_open_files;
    let same = (number(open.soft_limit), number(open.hard_limit)) == ours;
    if same { "as it was" } else { "another" }.to_owned()
}
