//! How the fleet stands, as a service manager wants to know it: one phase and one line of text,
//! counted from what the fleet decides and says. No clock, no system call, no I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::{Action, Kind, Note, Restart, WorkerKey};
use crate::units::plural;

/// A turn that a service manager is told of (`sd_notify(3)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The start, or a reload, is over.
    Ready,
    Reloading,
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    Reloading,
    Stopping,
}

/// What has been seen so far.
#[derive(Debug)]
pub(super) struct Standing {
    restart: Restart,
    target: u32,
    phase: Phase,
    /// The workers that serve, each with its slot: in a rollout a slot may have two.
    ready: BTreeMap<WorkerKey, u32>,
    /// Slots whose start is decided: ready once, given up, or done and not started again.
    decided: BTreeSet<u32>,
    given_up: BTreeSet<u32>,
    /// The slot at which the last reload stopped.
    reload_stopped: Option<u32>,
    /// Why the run ends, where nobody asked for it.
    end: Option<String>,
}

impl Standing {
    pub(super) fn new(workers: u32, restart: Restart) -> Self {
        Self {
            restart,
            target: workers,
            phase: Phase::Starting,
            ready: BTreeMap::new(),
            decided: BTreeSet::new(),
            given_up: BTreeSet::new(),
            reload_stopped: None,
            end: None,
        }
    }

    /// Goes on where another one stood.
    pub(super) fn resume(
        &mut self,
        target: u32,
        ready: BTreeMap<WorkerKey, u32>,
        given_up: BTreeSet<u32>,
        reloading: bool,
    ) {
        self.target = target;
        // A start that was not over yet is over when the rest is ready.
        let serving = ready.values().collect::<BTreeSet<_>>().len() + given_up.len();
        self.phase = match reloading {
            true => Phase::Reloading,
            false if serving >= target as usize => Phase::Running,
            false => Phase::Starting,
        };
        self.decided = ready.values().chain(&given_up).copied().collect();
        (self.ready, self.given_up) = (ready, given_up);
    }

    /// Takes in what the fleet decided; the answer is the turn that this is.
    pub(super) fn take(&mut self, action: &Action) -> Option<Turn> {
        match action {
            Action::Spawn(to) => {
                self.given_up.remove(&to.slot);
            }
            // Who is to end serves no more, although it has not ended.
            Action::Drain(worker)
            | Action::AskLeader(worker)
            | Action::AskGroup(worker)
            | Action::AbortLeader(worker)
            | Action::Kill(worker) => {
                self.ready.remove(worker);
            }
            Action::Say(note) => {
                if let Some(turn) = self.note(note) {
                    return Some(turn);
                }
            }
            Action::Aged { .. } | Action::Recycle { .. } => {}
            Action::Exit(_) => return self.stop(),
        }
        let all_decided = (1..=self.target).all(|slot| self.decided.contains(&slot));
        if self.phase == Phase::Starting && all_decided && self.serving() > 0 {
            self.phase = Phase::Running;
            return Some(Turn::Ready);
        }
        None
    }

    fn note(&mut self, note: &Note) -> Option<Turn> {
        match note {
            Note::Ready { worker, slot, .. } => {
                self.ready.insert(*worker, *slot);
                self.decided.insert(*slot);
            }
            Note::Ended { worker, slot, how, asked } => {
                self.ready.remove(worker);
                let stays_ended = match self.restart {
                    Restart::Always => false,
                    Restart::OnFailure => how.is_success(),
                    Restart::Never => true,
                };
                if stays_ended && !asked {
                    self.decided.insert(*slot);
                }
            }
            Note::SlotFailed { slot, .. } => {
                self.given_up.insert(*slot);
                self.decided.insert(*slot);
            }
            Note::Resized { to, .. } | Note::Adapted { to, .. } => self.target = *to,
            Note::FirstStartsFailed { workers } => {
                let workers = plural(*workers, "worker");
                self.end = Some(format!("the start failed: {workers} ended before being ready"));
                return self.stop();
            }
            Note::NoneLeft => {
                self.end = Some("no worker is left that may be started again".to_owned());
                return self.stop();
            }
            Note::Stopping { .. } => return self.stop(),
            // Before the start is over nobody has been told that there is anything to reload.
            Note::Rollout { kind: Kind::Reload, .. }
                if matches!(self.phase, Phase::Running | Phase::Reloading) =>
            {
                self.reload_stopped = None;
                self.phase = Phase::Reloading;
                return Some(Turn::Reloading);
            }
            Note::RolloutFailed { kind: Kind::Reload, slot, .. } => {
                self.reload_stopped = Some(*slot);
                return self.reloaded();
            }
            Note::RolloutDone { kind: Kind::Reload } => return self.reloaded(),
            _ => {}
        }
        None
    }

    fn reloaded(&mut self) -> Option<Turn> {
        (self.phase == Phase::Reloading).then(|| {
            self.phase = Phase::Running;
            Turn::Ready
        })
    }

    fn stop(&mut self) -> Option<Turn> {
        (self.phase != Phase::Stopping).then(|| {
            self.phase = Phase::Stopping;
            Turn::Stopping
        })
    }

    /// How many slots have a worker that serves.
    fn serving(&self) -> usize {
        let slots: BTreeSet<_> = self.ready.values().filter(|slot| **slot <= self.target).collect();
        slots.len()
    }

    /// One line for `systemctl status`.
    pub(super) fn status(&self) -> String {
        let workers = plural(self.target, "worker");
        let during = match self.phase {
            Phase::Stopping => {
                return self.end.clone().unwrap_or_else(|| format!("stopping {workers}"));
            }
            Phase::Reloading => "reloading: ",
            Phase::Starting | Phase::Running => "",
        };
        let given_up = match self.given_up.iter().filter(|slot| **slot <= self.target).count() {
            0 => String::new(),
            some => format!(", {some} given up"),
        };
        let stopped =
            self.reload_stopped.map(|slot| format!("; the reload stopped at worker {slot}"));
        let stopped = stopped.unwrap_or_default();
        format!("{during}{} of {workers} ready{given_up}{stopped}", self.serving())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Assignment, Ended, Failure};

    fn spawn(key: u64, slot: u32) -> Action {
        Action::Spawn(Assignment { worker: WorkerKey(key), slot, generation: 1, count: 2 })
    }

    fn ready(key: u64, slot: u32) -> Action {
        Action::Say(Note::Ready { worker: WorkerKey(key), slot, late: false })
    }

    fn ended(key: u64, slot: u32, code: u8) -> Action {
        let (worker, how) = (WorkerKey(key), Ended::Code(code));
        Action::Say(Note::Ended { worker, slot, how, asked: false })
    }

    /// The turns that come of `actions`, and the last status.
    fn follow(standing: &mut Standing, actions: &[Action]) -> (Vec<Turn>, String) {
        let turns = actions.iter().filter_map(|action| standing.take(action)).collect();
        (turns, standing.status())
    }

    #[test]
    fn ready_when_every_slot_has_had_a_ready_worker_and_only_once() {
        let mut fleet = Standing::new(2, Restart::Always);
        assert_eq!(fleet.status(), "0 of 2 workers ready");
        let first = [spawn(1, 1), spawn(2, 2), ready(1, 1), ended(2, 2, 1), spawn(3, 2)];
        assert_eq!(follow(&mut fleet, &first), (vec![], "1 of 2 workers ready".to_owned()));
        // Slot 1 has been ready: that its worker has gone again does not hold the start up.
        let rest = [ended(1, 1, 1), ready(3, 2), spawn(4, 1), ready(4, 1)];
        let done = follow(&mut fleet, &rest);
        assert_eq!(done, (vec![Turn::Ready], "2 of 2 workers ready".to_owned()));
    }

    #[test]
    fn a_slot_that_is_given_up_does_not_hold_the_others_up() {
        let mut fleet = Standing::new(2, Restart::Always);
        let gave_up = Action::Say(Note::SlotFailed { slot: 2, early_ends: 10 });
        assert_eq!(follow(&mut fleet, &[gave_up]).0, [], "nobody serves yet");
        let (turns, status) = follow(&mut fleet, &[ready(1, 1)]);
        assert_eq!(
            (turns.as_slice(), status.as_str()),
            ([Turn::Ready].as_slice(), "1 of 2 workers ready, 1 given up")
        );
        assert_eq!(follow(&mut fleet, &[spawn(9, 2)]).1, "1 of 2 workers ready");
    }

    #[test]
    fn what_is_done_is_not_waited_for() {
        for (restart, code, want) in [
            (Restart::Never, 1, true),
            (Restart::OnFailure, 0, true),
            (Restart::OnFailure, 1, false),
            (Restart::Always, 0, false),
        ] {
            let mut fleet = Standing::new(2, restart);
            let (turns, _) = follow(&mut fleet, &[ready(1, 1), ended(2, 2, code)]);
            assert_eq!(turns == [Turn::Ready], want, "{restart:?} {code}");
        }
    }

    #[test]
    fn fewer_workers_are_ready_sooner() {
        let mut fleet = Standing::new(3, Restart::Always);
        let resized = Action::Say(Note::Resized { from: 3, to: 1 });
        let (turns, status) = follow(&mut fleet, &[ready(1, 1), ready(3, 3), resized]);
        assert_eq!(
            (turns.as_slice(), status.as_str()),
            ([Turn::Ready].as_slice(), "1 of 1 worker ready")
        );
    }

    #[test]
    fn a_reload_begins_and_ends_and_may_stop() {
        let mut fleet = Standing::new(2, Restart::Always);
        let reload = Action::Say(Note::Rollout { kind: Kind::Reload, workers: 2, surge: 1 });
        assert_eq!(follow(&mut fleet, &[reload]).0, [], "not before the start is over");
        follow(&mut fleet, &[ready(1, 1), ready(2, 2)]);
        let (turns, status) = follow(&mut fleet, &[reload, Action::AskLeader(WorkerKey(1))]);
        assert_eq!(
            (turns.as_slice(), status.as_str()),
            ([Turn::Reloading].as_slice(), "reloading: 1 of 2 workers ready")
        );
        // With a surge a slot has two for a while, and counts once.
        let (_, status) = follow(&mut fleet, &[ready(3, 1), ready(4, 2)]);
        assert_eq!(status, "reloading: 2 of 2 workers ready");
        let (turns, status) = follow(
            &mut fleet,
            &[Action::Say(Note::RolloutFailed { kind: Kind::Reload, slot: 2, why: Failure::Late })],
        );
        assert_eq!(turns, [Turn::Ready]);
        assert_eq!(status, "2 of 2 workers ready; the reload stopped at worker 2");
        let again = follow(
            &mut fleet,
            &[reload, reload, Action::Say(Note::RolloutDone { kind: Kind::Reload })],
        );
        let want = [Turn::Reloading, Turn::Reloading, Turn::Ready];
        assert_eq!(again, (want.to_vec(), "2 of 2 workers ready".to_owned()));
    }

    #[test]
    fn a_stop_is_said_once_and_is_the_last_word() {
        let mut fleet = Standing::new(2, Restart::Always);
        let stop = [
            ready(1, 1),
            Action::Say(Note::Stopping { workers: 2 }),
            ready(2, 2),
            Action::Say(Note::RolloutDone { kind: Kind::Reload }),
            Action::Exit(0),
        ];
        let want = (vec![Turn::Stopping], "stopping 2 workers".to_owned());
        assert_eq!(follow(&mut fleet, &stop), want);
        let mut fleet = Standing::new(2, Restart::Always);
        let failed = Action::Say(Note::FirstStartsFailed { workers: 2 });
        let (turns, status) = follow(&mut fleet, &[failed, Action::Exit(1)]);
        assert_eq!(turns, [Turn::Stopping]);
        assert_eq!(status, "the start failed: 2 workers ended before being ready");
    }
}
