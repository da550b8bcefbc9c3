//! Workers that are there only because something was measured, until they have shown that they can serve: who cannot
//! start beside the others (a lock, a port, no descriptors left) is not tried for ever.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::backoff::doubled;
use super::messages::Action;
use super::why::Why;
use super::worker::{End, Phase, Reached, Time};
use super::{Fleet, STABLE};

/// What did not work is not tried again for so long; twice as long each time.
const AGAIN: Duration = Duration::from_mins(1);
const LONGEST: Duration = Duration::from_hours(1);

/// Steps up whose workers have not all been stable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trial {
    /// With so many all was well.
    proven: u32,
    /// With so many everybody was ready when the last step was made.
    from: u32,
}

impl super::adapt::Learnt {
    /// Those above `from` are new.
    pub(super) fn try_more(&mut self, from: u32) {
        let proven = self.trial.map_or(from, |trial| trial.proven);
        self.trial = Some(Trial { proven, from });
    }

    /// The number became another one.
    pub(super) fn try_no_more_than(&mut self, to: u32) {
        self.trial = self.trial.filter(|trial| trial.proven < to);
        if let Some(trial) = &mut self.trial {
            trial.from = trial.from.min(to);
        }
    }

    /// Somebody wants the plan's number tried: what did not work before tells nothing of now.
    pub(super) fn begin_anew(&mut self) {
        (self.step, self.trial) = (None, None);
        (self.futile, self.grow_after) = (0, Time::ZERO);
    }

    /// Something did not work once more: more are not tried for a while.
    pub(super) fn hold_off(&mut self, now: Time) {
        self.futile = self.futile.saturating_add(1);
        self.grow_after = now.saturating_add(doubled(AGAIN, self.futile, LONGEST));
    }
}

impl Fleet {
    /// So many have to serve: those who are only being tried are not missed.
    pub(super) fn needed(&self) -> u32 {
        self.learnt.trial.map_or(self.target, |trial| trial.from.min(self.target))
    }

    /// Those who were tried have come to stay, where all have.
    pub(super) fn end_trial(&mut self, now: Time) {
        let stays = |since: Time| now >= since.saturating_add(STABLE);
        let mut workers = self.workers.values();
        if self.all_settled()
            && workers.all(|one| one.phase == Phase::Ready && one.ready_since.is_some_and(stays))
        {
            self.learnt.trial = None;
        }
    }

    /// The worker of `slot` has ended by itself. True where it was only tried: then it is tried no more, nor
    /// who came with it.
    pub(super) fn take_back(
        &mut self,
        now: Time,
        slot: u32,
        end: End,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(trial) = self.learnt.trial else { return false };
        if end.reached >= Reached::Stable || slot <= trial.proven || !self.follows() {
            return false;
        }
        let level = if slot > trial.from { trial.from } else { trial.proven };
        let level = level.max(self.wish.planned).max(self.policy.least);
        if slot <= level {
            return false;
        }
        self.learnt.step = None;
        self.learnt.hold_off(now);
        self.want(now, level, Some(Why::CannotStart { slot }), actions);
        slot > self.target
    }
}
