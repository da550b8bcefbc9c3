//! How an init is started: as PID 1 of a PID namespace or as a child of ours, with a terminal or without.

use std::env;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::unistd::{Pid, geteuid, ttyname};

use super::init::Init;
use super::scene::Scene;
use super::stage::{LISTEN, STAGE};

/// A command that comes up meanwhile must not die of it: until it listens it ignores it. What is blocked, as in an init, waits
/// whether it is ignored or not.
const MARKER_IS_HARMLESS: &str = "--ignore-signal=64";

/// How an init is started.
pub(crate) struct Setting {
    init: Init,
    flags: Vec<&'static str>,
    pub(crate) pid_1: bool,
    terminal: bool,
    /// Words before those of the init.
    before: Vec<String>,
    pub(crate) input: Option<&'static str>,
}

impl Setting {
    pub(crate) fn new(init: Init) -> Self {
        let (flags, before) = (Vec::new(), Vec::new());
        Self { init, flags, pid_1: true, terminal: false, before, input: None }
    }

    pub(crate) fn flags(mut self, flags: &[&'static str]) -> Self {
        self.flags = flags.to_vec();
        self
    }

    /// Flags that only we have.
    pub(crate) fn ours(self, flags: &[&'static str]) -> Self {
        if self.init.is_ours() { self.flags(flags) } else { self }
    }

    pub(crate) fn below(mut self) -> Self {
        self.pid_1 = false;
        self
    }

    pub(crate) fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    pub(crate) fn before(mut self, words: &[&str]) -> Self {
        self.before = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    pub(crate) fn input(mut self, text: &'static str) -> Self {
        self.input = Some(text);
        self
    }

    /// Starts the init with a shell line.
    pub(crate) fn sh(&self, line: &str) -> Scene {
        self.run(&["sh", "-c", line])
    }

    /// Starts the init with this program as the command.
    pub(crate) fn own(&self, args: &[&str]) -> Scene {
        let own = own();
        self.run(&[&[own.as_str()], args].concat())
    }

    /// Starts the init with a listener and waits until it listens.
    pub(crate) fn listener(&self, behaviour: &str) -> (Scene, Pid) {
        let mut scene = self.own(&[LISTEN, "it", behaviour]);
        let pid = scene.up("it");
        (scene, pid)
    }

    /// Starts the init with a command.
    pub(crate) fn run(&self, command: &[&str]) -> Scene {
        let words = self.init.words(&self.flags);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.alone(&[&words, command].concat())
    }

    /// Starts a command where the init would be.
    pub(crate) fn alone(&self, command: &[&str]) -> Scene {
        let mut words: Vec<String> = Vec::new();
        let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
        if self.pid_1 {
            add(&["unshare", "-pf", "--mount-proc", "--kill-child"]);
            if !geteuid().is_root() {
                add(&["--map-root-user"]);
            }
            add(&["--"]);
        }
        let pty = self.terminal.then(Pty::open);
        let name = pty.as_ref().map_or(PathBuf::from("-"), Pty::name);
        // Whoever runs this in the background ignores INT.
        add(&[
            &own(),
            STAGE,
            name.to_str().unwrap(),
            "env",
            "--default-signal",
            MARKER_IS_HARMLESS,
        ]);
        words.extend(self.before.iter().cloned());
        words.extend(command.iter().map(|word| (*word).to_owned()));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        Scene::new(child, pty, self)
    }
}

/// This program's own path.
pub(crate) fn own() -> String {
    env::current_exe().unwrap().into_os_string().into_string().unwrap()
}

/// A terminal, whose other side stays open here too: without anybody on it there would be an end to read.
pub(crate) struct Pty {
    pub(crate) ours: File,
    pub(crate) theirs: Option<OwnedFd>,
}

impl Pty {
    pub(crate) fn name(&self) -> PathBuf {
        ttyname(self.theirs.as_ref().unwrap()).unwrap()
    }

    fn open() -> Self {
        let pty = openpty(None, None).unwrap();
        for fd in [&pty.master, &pty.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        Self { ours: File::from(pty.master), theirs: Some(pty.slave) }
    }
}
