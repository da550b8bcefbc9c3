//! The processes of a scenario that are this program itself: what starts an init as a container's engine
//! does, and commands that tell exactly what reaches them.
//!
//! Commands tell by lines on standard output: `up NAME PID` and `got NUMBER`.

use std::env;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use nix::sys::prctl::get_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{getppid, setsid};

/// `--stage TERMINAL WORD...`: becomes WORD... as the leader of a session, with this terminal or with `-` as it is.
pub(crate) const STAGE: &str = "--stage";
/// `--listen NAME [BEHAVIOUR]`: a command that hears every signal that can be blocked and says so.
pub(crate) const LISTEN: &str = "--listen";
/// `--leave STATUS`: a command that leaves a listener behind, in its own group, and ends.
pub(crate) const LEAVE: &str = "--leave";
/// `--parent WORD...`: starts WORD... and waits.
pub(crate) const PARENT: &str = "--parent";
/// `--pdeathsig`: a command that says which signal it gets when its parent dies.
pub(crate) const PDEATHSIG: &str = "--pdeathsig";

/// A listener with another in its own group.
pub(crate) const FAMILY: &str = "family";
/// A listener that tells its parent, by USR1, that it listens.
const REPORT: &str = "report";

/// Does what the words say; nothing where they are no words of ours.
pub(crate) fn act(args: &[OsString]) -> Option<ExitCode> {
    let (mode, rest) = args.split_first()?;
    let status = match mode.to_str()? {
        STAGE => stage(rest),
        LISTEN => listen(rest),
        LEAVE => leave(rest),
        PARENT => {
            Command::new(&rest[0]).args(&rest[1..]).status().unwrap();
            0
        }
        PDEATHSIG => {
            let signal = get_pdeathsig().unwrap();
            println!("{}", signal.map_or("none", |signal| &Signal::as_str(signal)[3..]));
            0
        }
        _ => return None,
    };
    Some(ExitCode::from(status))
}

#[expect(clippy::zombie_processes, reason = "who reaps it is what is watched")]
fn begin(words: &[OsString]) {
    Command::new(&words[0]).args(&words[1..]).spawn().unwrap();
}

fn stage(args: &[OsString]) -> u8 {
    let (terminal, words) = args.split_first().unwrap();
    setsid().unwrap();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    if terminal != "-" {
        // The first terminal that the leader of a session opens becomes the session's.
        let file = OpenOptions::new().read(true).write(true).open(terminal).unwrap();
        let copy = || Stdio::from(file.try_clone().unwrap());
        command.stdin(copy()).stdout(copy()).stderr(copy());
    }
    panic!("{command:?}: {}", command.exec());
}

fn listen(args: &[OsString]) -> u8 {
    let name = args[0].to_str().unwrap();
    let behaviour = args.get(1).and_then(|arg| arg.to_str()).unwrap_or_default();
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).unwrap();
    let signals = SignalFd::new(&all).unwrap();
    if behaviour == FAMILY {
        begin(&[env::current_exe().unwrap().into(), LISTEN.into(), "child".into()]);
    }
    println!("up {name} {}", std::process::id());
    if behaviour == REPORT {
        kill(getppid(), Signal::SIGUSR1).unwrap();
    }
    let end: Option<u8> = behaviour.strip_prefix("end=").map(|status| status.parse().unwrap());
    loop {
        let Some(info) = signals.read_signal().unwrap() else { continue };
        println!("got {name} {}", info.ssi_signo);
        let stop = [Signal::SIGTERM, Signal::SIGINT].map(|signal| signal as u32);
        if let Some(status) = end.filter(|_| stop.contains(&info.ssi_signo)) {
            return status;
        }
    }
}

fn leave(args: &[OsString]) -> u8 {
    let mut reported = SigSet::empty();
    reported.add(Signal::SIGUSR1);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&reported), None).unwrap();
    let listener = env::current_exe().unwrap();
    begin(&[listener.into(), LISTEN.into(), "left".into(), REPORT.into()]);
    reported.wait().unwrap();
    args[0].to_str().unwrap().parse().unwrap()
}
