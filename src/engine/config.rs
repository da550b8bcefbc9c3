//! What a run is given: the command, the rules, the sockets; and where more of that comes from.

use std::ffi::OsString;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use super::{Check, Environment, Manager, Surge, User};
use crate::control::Place;
use crate::fleet::{Bounds, Policy};
use crate::plan::Bound;
use crate::probe::Others;
use crate::sockets::{Address, Balance, Listener, ProxyOptions, Share};

/// What to run, and how.
#[expect(clippy::struct_excessive_bools, reason = "settings, each by itself")]
pub(crate) struct Config {
    pub(crate) program: PathBuf,
    pub(crate) words: Vec<OsString>,
    /// Where all of this comes from.
    pub(crate) orders: Box<dyn Orders>,
    /// The number of workers, and what comes with it.
    pub(crate) sized: Sized,
    pub(crate) isolate: Isolate,
    /// Whether placeholders in the words are replaced.
    pub(crate) template: bool,
    pub(crate) env: Environment,
    pub(crate) policy: Policy,
    pub(crate) stop_signal: Signal,
    pub(crate) prefix: Prefix,
    /// Whether the one worker has our terminal.
    pub(crate) terminal: bool,
    pub(crate) user: Option<User>,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) share: Share,
    /// None where it was not said.
    pub(crate) balance: Option<Balance>,
    /// Where the workers of Node are to listen, by `--listen`.
    pub(crate) asked: Option<Address>,
    /// Whether workers get a channel for messages.
    pub(crate) ipc: bool,
    /// Each worker's debugger gets a port of its own.
    pub(crate) inspect: Option<Inspect>,
    /// What a worker is sent before its stop signal.
    pub(crate) stop_message: Option<serde_json::Value>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) proxy: ProxyOptions,
    /// A shell command that runs once, before the first worker.
    pub(crate) before: Option<String>,
    pub(crate) surge: Surge,
    /// Whether `READY=1` makes a worker ready.
    pub(crate) ready_by_notice: bool,
    /// Whether a server that listens makes a worker ready: Node tells us.
    pub(crate) ready_by_listening: bool,
    pub(crate) ready_check: Option<Check>,
    pub(crate) health_check: Option<Check>,
    /// Of this instance.
    pub(crate) name: Option<String>,
    pub(crate) control: Place,
    /// Who started us and wants to know how we are.
    pub(crate) manager: Option<Manager>,
}

/// Where debuggers of Node listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inspect {
    /// Which word is the script; the option goes before it.
    pub(crate) at: usize,
    /// All but the port.
    pub(crate) host: String,
    /// Of worker 1.
    pub(crate) port: u16,
}

impl Inspect {
    pub(super) fn option(&self, slot: u32) -> OsString {
        let port = u32::from(self.port) + slot - 1;
        format!("--inspect-port={}{port}", self.host).into()
    }
}

/// Where the orders come from. An error tells what is wrong; then all stays as it is.
pub(crate) trait Orders {
    /// Everything anew, for a reload.
    fn reload(&self) -> Result<Renewed, String>;
    /// The same for what limits there are now.
    fn replan(&self) -> Result<Renewed, String>;
}

/// Whether each worker gets a cgroup of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolate {
    /// Where that can be had.
    Auto,
    /// Or nothing is run.
    On,
    Off,
}

/// What may change while the fleet runs.
pub(crate) struct Renewed {
    pub(crate) program: PathBuf,
    pub(crate) words: Vec<OsString>,
    pub(crate) env: Environment,
    pub(crate) sized: Sized,
}

/// How many workers, and why.
#[derive(Clone, Debug)]
pub(crate) struct Sized {
    /// The number, and what may be made of it.
    pub(crate) bounds: Bounds,
    pub(crate) bound_by: Bound,
    /// The whole report, as JSON.
    pub(crate) plan: String,
    /// What runtimes are told of their share at their start.
    pub(crate) runtime: Vec<(String, String)>,
    /// The limits that it was computed from, in words.
    pub(crate) limits: Vec<String>,
    /// CPUs that may be used.
    pub(crate) cpus: f64,
    /// A limit of memory that no file tells, bytes, and what does: the environment of a platform, `--memory`.
    pub(crate) told: Option<(u64, String)>,
    /// What is left for all of us below the limit that binds, headroom included, bytes.
    pub(crate) room: Option<u64>,
    /// What one worker is reckoned with, bytes.
    pub(crate) cost: u64,
    /// What was used when nothing of ours ran.
    pub(crate) others: Others,
}

/// What each line of a worker begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    None,
    Plain,
    Colored,
}
