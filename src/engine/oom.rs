//! A worker that ends by KILL and was not killed by us: whether the kernel did it because memory ran out,
//! and what follows from that.

use nix::sys::signal::Signal;
use tracing::warn;

use super::Engine;
use crate::fleet::{Ended, Event, WorkerKey};
use crate::probe::{Host, OomCause, OomLevel, oom_levels};
use crate::units::show_size;

/// What the kernel has counted so far.
pub(super) struct Oom {
    levels: Vec<OomLevel>,
    /// Kills that no worker's end has been matched with yet, and where memory ran out.
    open: Option<OomCause>,
}

impl Oom {
    pub(super) fn new() -> Self {
        Self { levels: Vec::new(), open: None }
    }

    /// Takes in what was counted since the last look; the first one has nothing to compare with.
    pub(super) fn look(&mut self) {
        let levels = oom_levels(&Host::live());
        if let Some(cause) = OomCause::between(&self.levels, &levels) {
            let before = self.open.take().map_or(0, |open| open.kills);
            self.open = Some(OomCause { kills: before + cause.kills, ..cause });
        }
        self.levels = levels;
    }

    /// One of the kills, for a worker that has just ended.
    fn claim(&mut self) -> Option<OomCause> {
        self.look();
        let cause = self.open.clone()?;
        self.open =
            Some(OomCause { kills: cause.kills - 1, ..cause.clone() }).filter(|c| c.kills > 0);
        Some(cause)
    }
}

impl Engine {
    /// A worker has ended; `peak`: the most memory that its leader had, bytes.
    pub(super) fn look_for_oom(&mut self, worker: WorkerKey, how: Ended, peak: u64) {
        let Some(running) = self.running.get(&worker) else { return };
        let (slot, pid, ours) = (running.slot, running.pid.as_raw(), running.killed);
        if how != Ended::Signal(Signal::SIGKILL as i32) || ours {
            return;
        }
        let Some(cause) = self.oom.claim() else { return };
        let had = show_size(peak);
        let place = used_up(&cause).unwrap_or_else(|| {
            "the machine, or a group around ours that cannot be seen, had none left".to_owned()
        });
        let (file, limit) = cause.level.unzip();
        warn!(
            event = "oom",
            worker = slot,
            pid,
            memory_bytes = peak,
            limit_bytes = limit,
            level = file,
            "worker {slot} (pid {pid}) was killed by the kernel for its memory: it had {had} at most, and {place}"
        );
        self.tell(Event::OutOfMemory { slot });
    }

    /// Kills that hit no worker of ours, but somebody whom one has started.
    pub(super) fn look_for_other_kills(&mut self) {
        // What was counted before the last look has had time to be matched with a worker's end.
        if let Some(cause) = self.oom.open.take() {
            let kills = cause.kills;
            let place = used_up(&cause).map(|place| format!(": {place}"));
            warn!(
                event = "oom",
                kills,
                "the kernel killed {} of ours for memory that led no worker{}",
                if kills == 1 { "a process".to_owned() } else { format!("{kills} processes") },
                place.unwrap_or_default()
            );
        }
        self.oom.look();
    }
}

/// Which limit was, where it can be seen.
fn used_up(cause: &OomCause) -> Option<String> {
    let (file, limit) = cause.level.as_ref()?;
    Some(format!("{} ({file}) were used up", show_size(*limit)))
}
