//! A worker that ends by KILL and was not killed by us: whether the kernel did it because memory ran out,
//! and what follows from that.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tracing::warn;

use super::Engine;
use super::kmsg::{Kmsg, Victim};
use crate::fleet::{Ended, Event, WorkerKey};
use crate::probe::{Host, OomCause, OomLevel, oom_levels};
use crate::units::show_size;

/// A worker that outgrew the limit of its own may have had a bad moment; if that comes again so soon, the shares
/// are too small.
const AGAIN: Duration = Duration::from_mins(5);

/// What the kernel has counted so far.
pub(super) struct Oom {
    levels: Vec<OomLevel>,
    /// Kills that no worker's end has been matched with yet, and where memory ran out.
    open: Option<OomCause>,
    /// What the kernel says of it.
    kernel: Kmsg,
    /// When a worker was last killed at the limit of its own group.
    alone: Option<Instant>,
}

impl Oom {
    pub(super) fn new() -> Self {
        Self { levels: Vec::new(), open: None, kernel: Kmsg::open(), alone: None }
    }

    /// Takes in what was counted since the last look; the first one has nothing to compare with.
    pub(super) fn look(&mut self) {
        let levels = oom_levels(&Host::live());
        if let Some(cause) = OomCause::between(&self.levels, &levels) {
            self.kernel.read();
            let before = self.open.take().map_or(0, |open| open.kills);
            self.open = Some(OomCause { kills: before + cause.kills, ..cause });
        }
        self.levels = levels;
    }

    /// So many of the kills, for a worker that has just ended.
    fn claim(&mut self, kills: u64) -> Option<OomCause> {
        self.look();
        let cause = self.open.clone()?;
        let left = cause.kills.saturating_sub(kills);
        self.open = Some(OomCause { kills: left, ..cause.clone() }).filter(|c| c.kills > 0);
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
        let own = self.isolation.counted(worker);
        // A group of its own tells whether it was this one, and counts every process of it.
        let kills = own.as_ref().map_or(1, |own| own.kills);
        if kills == 0 {
            return;
        }
        self.isolation.told(worker, kills);
        let counted = self.oom.claim(kills);
        let alone = own.as_ref().is_some_and(|own| own.hits > 0 && own.limit.is_some());
        let cause = match own {
            Some(own) if alone => OomCause { kills, level: Some(own.file).zip(own.limit) },
            Some(_) => counted.unwrap_or(OomCause { kills, level: None }),
            None => match counted {
                Some(cause) => cause,
                None => return,
            },
        };
        let peak = self.isolation.peak(worker).unwrap_or(peak);
        let had = show_size(peak);
        let victim = self.oom.kernel.claim(pid, self.isolation.name(worker).as_deref());
        // What lies above all that we can see, the kernel may name.
        let told = || victim.as_ref().and_then(Victim::place);
        let place = used_up(&cause).or_else(told).unwrap_or_else(|| {
            "the machine, or a group around ours that cannot be seen, had none left".to_owned()
        });
        let (file, limit) = cause.level.unzip();
        // All of a group may have gone because of one.
        let chosen = victim.as_ref().filter(|victim| victim.pid != pid);
        let chosen = chosen.map(|victim| format!("; the kernel chose {}", victim.show()));
        warn!(
            event = "oom",
            worker = slot,
            pid,
            victim_pid = victim.as_ref().map(|victim| victim.pid),
            memory_bytes = peak,
            limit_bytes = limit,
            source = file,
            "worker {slot} (pid {pid}) was killed by the kernel for its memory: it had {had} at most, and {place}{}",
            chosen.unwrap_or_default()
        );
        let again = self.oom.alone.is_some_and(|at| at.elapsed() < AGAIN);
        if alone {
            self.oom.alone = Some(Instant::now());
            if !again {
                // The others have what they had: this one is replaced, and nothing else follows.
                return;
            }
        }
        self.tell(Event::OutOfMemory { slot });
    }

    /// The last of a worker has gone, and its group goes.
    pub(super) fn leave_group(&mut self, worker: WorkerKey) {
        // The kernel was still at work in it when the worker's end was told.
        let rest = self.isolation.untold(worker);
        if rest > 0 {
            self.oom.claim(rest);
        }
        self.isolation.gone(worker, self.fleet.target());
    }

    /// Kills that hit no worker of ours, but somebody whom one has started.
    pub(super) fn look_for_other_kills(&mut self) {
        // What was counted before the last look has had time to be matched with a worker's end.
        if let Some(cause) = self.oom.open.take() {
            let kills = cause.kills;
            let place = used_up(&cause).map(|place| format!(": {place}"));
            let victims = self.oom.kernel.others();
            let names = victims.iter().map(Victim::show).collect::<Vec<_>>().join(", ");
            let names = if names.is_empty() { names } else { format!(" ({names})") };
            warn!(
                event = "oom",
                kills,
                "the kernel killed {} of ours for memory that led no worker{names}{}",
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
