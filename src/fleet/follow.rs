//! The number that the plan says, while what it was computed from changes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Fleet;
use super::messages::Action;
use super::worker::Time;

/// How long more room has to last until it is used: a limit that is about to fall again costs starts
/// and stops for nothing.
pub(crate) const LASTS: Duration = Duration::from_secs(10);

/// What the plan wants, and whether it is heeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wish {
    /// What it says now.
    pub(super) planned: u32,
    /// Somebody has said another number, which stays until he takes it back.
    pub(super) pinned: bool,
    /// When the fleet grows to it.
    grow_at: Option<Time>,
}

impl Wish {
    pub(super) fn new(planned: u32) -> Self {
        Self { planned, pinned: false, grow_at: None }
    }
}

impl Fleet {
    /// Somebody says how many.
    pub(super) fn pin(&mut self, now: Time, workers: u32, actions: &mut Vec<Action>) {
        self.wish.pinned = true;
        self.wish.grow_at = None;
        self.resize(now, workers, actions);
    }

    /// He leaves it to the plan again.
    pub(super) fn free(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.wish.pinned = false;
        self.wish.grow_at = None;
        self.resize(now, self.wish.planned, actions);
    }

    pub(super) fn planned(
        &mut self,
        now: Time,
        workers: u32,
        at_once: bool,
        actions: &mut Vec<Action>,
    ) {
        let before = std::mem::replace(&mut self.wish.planned, workers);
        if self.wish.pinned {
            return;
        }
        if at_once || workers <= self.target {
            self.wish.grow_at = None;
            self.resize(now, workers, actions);
        } else if workers < before || self.wish.grow_at.is_none() {
            // What is less than it was a moment ago has to last anew.
            self.wish.grow_at = Some(now + LASTS);
        }
    }

    /// When there is more to do than what is due to workers.
    pub(super) fn grows_at(&self) -> Option<Time> {
        self.wish.grow_at.filter(|_| self.ending.is_none())
    }

    /// More room has lasted long enough.
    pub(super) fn grow(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.grows_at().is_some_and(|at| now >= at) {
            self.wish.grow_at = None;
            self.resize(now, self.wish.planned, actions);
        }
    }
}
