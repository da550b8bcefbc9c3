//! The number that the plan says, while what it was computed from changes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Fleet;
use super::bounds::{Adapt, Bounds};
use super::memory::Room;
use super::messages::Action;
use super::why::Why;
use super::worker::Time;

/// How long more room has to last until it is used: a limit that is about to fall again costs starts
/// and stops for nothing.
pub(crate) const LASTS: Duration = Duration::from_secs(10);

/// How many workers are wanted, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wish {
    /// What the plan says now.
    pub(super) planned: u32,
    /// What is wanted, as long as memory allows it: the plan's number, what was made of it since, or what
    /// somebody has said. 0 from a program that knew no difference between this and the target.
    #[serde(default)]
    pub(super) level: u32,
    /// Somebody has said another number, which stays until he takes it back.
    pub(super) pinned: bool,
    /// When the fleet grows to what the plan says.
    grow_at: Option<Time>,
}

impl Wish {
    pub(super) fn new(planned: u32) -> Self {
        Self { planned, level: planned, pinned: false, grow_at: None }
    }
}

impl Fleet {
    /// Somebody says how many.
    pub(super) fn pin(&mut self, now: Time, workers: u32, actions: &mut Vec<Action>) {
        self.wish.pinned = true;
        self.wish.grow_at = None;
        self.learnt.trial = None;
        (self.learnt.cap, self.learnt.killed_above) = (None, None);
        self.want(now, workers, None, actions);
    }

    /// He leaves it to the plan again.
    pub(super) fn free(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.wish.pinned = false;
        self.wish.grow_at = None;
        self.learnt.begin_anew();
        self.want(now, self.wish.planned, None, actions);
    }

    pub(super) fn planned(
        &mut self,
        now: Time,
        bounds: Bounds,
        at_once: bool,
        actions: &mut Vec<Action>,
    ) {
        let workers = bounds.workers;
        let before = std::mem::replace(&mut self.learnt.bounds, bounds);
        self.wish.planned = workers;
        if at_once || bounds.more_memory_than(&before) {
            self.learnt.forget_kills();
        }
        if at_once {
            self.learnt.begin_anew();
        }
        if self.wish.pinned {
            return;
        }
        let level = self.wish.level;
        if at_once {
            self.wish.grow_at = None;
            self.want(now, workers, None, actions);
        } else if workers <= level {
            self.wish.grow_at = None;
            let (kept, why) = self.kept(level, &before);
            self.want(now, kept.max(workers), why, actions);
        } else if workers < before.workers || self.wish.grow_at.is_none() {
            // What is less than it was a moment ago has to last anew.
            self.wish.grow_at = Some(now + LASTS);
        }
    }

    /// What of `level` holds by what was found out, now that the bounds are others: the plan believes in less than
    /// what was measured. Nothing does where nothing was measured.
    fn kept(&self, level: u32, before: &Bounds) -> (u32, Option<Why>) {
        let bounds = &self.learnt.bounds;
        if self.policy.adapt == Adapt::Off {
            return (bounds.workers, None);
        }
        // Who was within the CPU rule, or the plan, stays within it.
        let rule = |bounds: &Bounds| bounds.by_cpu.max(bounds.workers);
        let level = if level <= rule(before) { level.min(rule(bounds)) } else { level };
        let level = level.min(self.highest());
        if !bounds.less_memory_than(before) {
            return (level, None);
        }
        let fits = self.learnt.lives.cost().zip(self.room_below(before));
        let Some((cost, room)) = fits else { return (bounds.workers, None) };
        if room.fits(room.tolerated(room.ceiling)) >= level {
            return (level, None);
        }
        let limit = room.limit;
        (level.min(room.fits(room.ceiling)), Some(Why::Cost { cost, limit }))
    }

    /// How memory stood at the last look, under the limit of now.
    fn room_below(&self, before: &Bounds) -> Option<Room> {
        let look = self.learnt.looks.last()?;
        let (now, then) = self.learnt.bounds.limit.zip(before.limit)?;
        // Where the level that was looked at is another one, it has less room than this one had.
        let lower = look.limit.saturating_sub(then.saturating_sub(now)).min(now);
        let limit = if look.limit == now { now } else { lower };
        (look.limit > 0).then(|| self.room_of(look.memory, limit))
    }

    /// When there is more to do than what is due to workers.
    pub(super) fn grows_at(&self) -> Option<Time> {
        self.wish.grow_at.filter(|_| self.ending.is_none())
    }

    /// More room has lasted long enough.
    pub(super) fn grow(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.grows_at().is_some_and(|at| now >= at) {
            self.wish.grow_at = None;
            self.want(now, self.wish.planned, None, actions);
        }
    }

    /// So many are wanted from now on; there are as many as memory allows.
    pub(super) fn want(
        &mut self,
        now: Time,
        level: u32,
        why: Option<Why>,
        actions: &mut Vec<Action>,
    ) {
        self.wish.level = level.clamp(self.policy.least, self.policy.most);
        self.apply(now, why, actions);
    }

    /// Makes the number what is wanted, under what memory allows.
    pub(super) fn apply(&mut self, now: Time, why: Option<Why>, actions: &mut Vec<Action>) {
        let most = self.learnt.most().unwrap_or(u32::MAX);
        self.resize(now, self.wish.level.min(most), why, actions);
    }
}
