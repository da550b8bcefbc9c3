//! Why a worker ended, where its siblings tell: the commonest mistake is a server that binds its
//! port by itself, N times.

use std::time::Duration;

use tracing::error;

use super::{Engine, ports};
use crate::fleet::{Ended, Event, Restart, WorkerKey};

/// A server that finds its port taken does not live longer.
const SOON: Duration = Duration::from_secs(30);

/// An end so soon is the sign of a start that cannot work.
const QUICK: Duration = Duration::from_secs(1);

/// A port that one worker wanted and another one has.
#[derive(Debug)]
pub(super) struct Taken {
    port: u16,
    wanted_by: u32,
    /// The pid of the worker that listens.
    holder: i32,
}

impl Engine {
    /// The port that `worker`, which has just ended, could not have because a sibling listens on it.
    ///
    /// Only an end by itself with a failure counts, and only where it would be tried again in vain. It
    /// is believed where the worker said so (every runtime has words for it), or where it was told its
    /// port by `PORT`, a sibling listens on exactly that, and the slot fails like this again and again.
    pub(super) fn wanted_port(&mut self, worker: WorkerKey, how: Ended) -> Option<Taken> {
        let now = self.now();
        let ended = self.running.get(&worker)?;
        let failed = matches!(how, Ended::Code(code) if code != 0) && !ended.asked;
        let soon = now <= ended.since + QUICK;
        let failures = self.quick_failures.entry(ended.slot).or_default();
        *failures = if failed && soon { *failures + 1 } else { 0 };
        let again_and_again = *failures >= 2;
        let futile =
            self.config.policy.restart != Restart::Never && self.config.listeners.is_empty();
        if !failed || !futile || self.fleet.is_ending() || now > ended.since + SOON {
            return None;
        }
        let words = ended.last_words();
        let said = ports::says_taken(&words);
        let told = self.config.env.get("PORT").and_then(|port| port.to_str()?.parse().ok());
        let told = told.filter(|_| again_and_again);
        if !said && told.is_none() {
            return None;
        }
        let words = String::from_utf8_lossy(&words);
        let ours = self.sharing.ours();
        let siblings = self.running.values().filter(|running| !running.reaped);
        let mut open: Vec<(u16, i32)> = siblings
            .flat_map(|running| {
                let addresses = ports::listening(running.pid, &ours).into_iter();
                let taken = addresses.filter(|address| !ports::is_shared(address));
                taken.map(|address| (address.port(), running.pid.as_raw()))
            })
            .collect();
        // The one that it named comes first, then the one that it was told.
        open.sort_by_key(|(port, _)| (!words.contains(&port.to_string()), Some(*port) != told));
        let (port, holder) = open.into_iter().find(|(port, _)| said || Some(*port) == told)?;
        Some(Taken { port, wanted_by: ended.slot, holder })
    }

    pub(super) fn port_taken(&mut self, taken: &Taken, how: Ended) {
        if self.fleet.is_ending() {
            return;
        }
        let Taken { port, wanted_by, holder } = taken;
        let owner = self
            .running
            .values()
            .find(|running| running.pid.as_raw() == *holder)
            .map_or(0, |running| running.slot);
        error!(
            event = "port_taken",
            port,
            "worker {wanted_by} wanted port {port}, on which worker {owner} (pid {holder}) listens: only one process can bind it by itself. \
             Add --listen {port} if the server listens on what PORT says, which gives each worker a port of its own, or --listen {port} --share fd if it takes an inherited socket (LISTEN_FDS); or run one with --workers 1"
        );
        self.tell(Event::Abort { status: how.status().max(1) });
    }
}
