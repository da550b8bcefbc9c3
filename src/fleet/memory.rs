//! How many workers memory holds, by what they have been seen to take; and fewer of them where it does not.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Fleet;
use super::backoff::doubled;
use super::looks::{Look, percent};
use super::measured::Sample;
use super::messages::Action;
use super::why::Why;
use super::worker::{Time, WorkerKey};

/// A tenth is kept free below the limit, within these bounds, as by a plan that knows the cost. One that does not
/// keeps more, for what is in what is used by now.
const FREE: (u64, u64) = (16 << 20, 1 << 30);
/// Between this and the limit the kernel kills any moment: 4 % of it, within these bounds.
const LAST: (u64, u64) = (8 << 20, FREE.1 / 5 * 2);
/// Who comes next may take a little more than those that are there.
const MARGIN: u64 = 20;
/// What grows is counted with what it will have then.
const AHEAD: u64 = 20;
/// Stalled for so much of the time, tasks stand still for memory.
const STALLED: f64 = 0.1;
/// How long what was given up for memory stays given up, for the first time; twice as long each time.
const HOLD: Duration = Duration::from_mins(1);
const LONGEST_HOLD: Duration = Duration::from_hours(1);
/// Kills that come together have one cause.
const TOGETHER: Duration = Duration::from_secs(10);
/// Who was told to go needs this long until what he had is free.
const LEAVES: Duration = Duration::from_secs(2);

/// No more workers than this, for the sake of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cap {
    pub(super) most: u32,
    /// One more may be tried then.
    until: Time,
}

/// How memory stands at one look.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub(super) used: u64,
    pub(super) limit: u64,
    /// What is to be used at most.
    pub(super) ceiling: u64,
    /// Above it the kernel kills any moment.
    pub(super) brink: u64,
    /// What is used beside the workers that are wanted.
    base: u64,
    /// What each of them may take, by slot, and one more.
    each: Vec<(u32, u64)>,
    more: Option<u64>,
    /// Of all together, in a second.
    pub(super) growth: u64,
}

impl Room {
    /// How many workers stay below `line`, were all to take at once what they have taken before.
    pub(super) fn fits(&self, line: u64) -> u32 {
        let mut left = line.saturating_sub(self.base);
        let mut count = 0;
        for (_, cost) in &self.each {
            let Some(rest) = left.checked_sub(*cost) else { return count };
            left = rest;
            count += 1;
        }
        let growth = self.growth.saturating_mul(AHEAD);
        let more = self.more.map_or(0, |more| left.saturating_sub(growth) / more.max(1));
        count.saturating_add(u32::try_from(more).unwrap_or(u32::MAX))
    }

    /// In the middle between what is to stay free and nothing, so that it is no see-saw.
    pub(super) fn tolerated(&self, line: u64) -> u64 {
        line.saturating_add(self.limit.saturating_sub(line) / 3 * 2)
    }

    pub(super) fn left(&self) -> u64 {
        self.ceiling.saturating_sub(self.used)
    }
}

impl Fleet {
    /// None where no limit is known.
    pub(super) fn room(&self, sample: &Sample) -> Option<Room> {
        let memory = sample.memory.filter(|memory| memory.limit > 0)?;
        Some(self.room_of(memory.used, memory.limit))
    }

    pub(super) fn room_of(&self, used: u64, limit: u64) -> Room {
        let free = (limit / 10).clamp(FREE.0, FREE.1);
        let free = self.learnt.bounds.headroom.unwrap_or(free);
        let lives = &self.learnt.lives;
        let cost = lives.cost();
        let mut each = Vec::new();
        let (mut private, mut growth) = (0u64, 0u64);
        for (key, worker) in self.workers.iter().filter(|(_, worker)| worker.is_wanted()) {
            let Some(life) = lives.of(*key) else {
                each.push((worker.slot, cost.unwrap_or(0)));
                continue;
            };
            private = private.saturating_add(life.private);
            growth = growth.saturating_add(life.growth());
            let unknown = if life.has_shown() { 0 } else { cost.unwrap_or(0) };
            each.push((worker.slot, life.peak.max(unknown)));
        }
        each.sort_unstable();
        Room {
            used,
            limit,
            ceiling: limit.saturating_sub(free),
            brink: limit.saturating_sub((limit / 25).clamp(LAST.0, LAST.1)),
            base: used.saturating_sub(private),
            each,
            more: cost.map(|cost| cost.saturating_add(cost / MARGIN)),
            growth,
        }
    }

    /// Somebody is on his way out, and what he has will be free in a moment.
    fn frees_soon(&self, now: Time) -> bool {
        let moved = self.learnt.last_cut.is_some_and(|at| now < at + LEAVES);
        moved || self.workers.values().any(|worker| !worker.is_wanted())
    }

    /// Gives up workers where memory does not hold them: above `line`, or under pressure.
    pub(super) fn relieve(&mut self, now: Time, room: &Room, line: u64, actions: &mut Vec<Action>) {
        let Some(why) = self.shortage(room, line) else { return };
        // On the brink nobody can wait for long.
        let waits =
            room.used <= room.brink || self.learnt.last_cut.is_some_and(|at| now < at + LEAVES);
        if self.target <= self.policy.least || (waits && self.frees_soon(now)) {
            return;
        }
        let fits = room.fits(line).max(self.target / 2);
        self.give_up(now, fits.min(self.target - 1), why, actions);
    }

    /// No more than `most` for a while.
    pub(super) fn give_up(&mut self, now: Time, most: u32, why: Why, actions: &mut Vec<Action>) {
        let most = most.max(self.policy.least);
        self.learnt.last_cut = Some(now);
        let until = self.learnt.hold(now);
        self.learnt.cap = Some(Cap { most, until });
        self.learnt.step = None;
        self.apply(now, Some(why), actions);
    }

    fn shortage(&self, room: &Room, line: u64) -> Option<Why> {
        let (used, limit) = (room.used, room.limit);
        let looks = &self.learnt.looks;
        // Page cache that is in use counts as used, and harms nobody as long as nobody waits for it.
        let hard = |look: &Look| look.hard >= look.memory / 2 || look.stalled >= STALLED / 2.0;
        let over = |look: &Look| look.memory > line && look.limit == limit && hard(look);
        let stalled = |look: &Look| look.stalled >= STALLED && look.memory > look.limit / 10 * 8;
        let hit = |look: &Look| look.hits > 0 && look.memory > look.limit / 20 * 19 && hard(look);
        if looks.mostly(over) && used > line {
            return Some(Why::Full { used, limit });
        }
        // What lies back is over where somebody has gone since; a told number gives way only on the brink.
        let near = used > if self.follows() { line.min(limit / 10 * 8) } else { line };
        if near && (looks.mostly(stalled) || looks.mostly(hit)) {
            let stalled = looks.last().map_or(0, |look| percent(look.stalled));
            return Some(Why::Pressure { stalled, used, limit });
        }
        // What leaks is renewed, and does not tell what the others will take.
        let cost = self.learnt.lives.steady_cost()?;
        let leaks =
            |key: &WorkerKey| self.learnt.lives.of(*key).is_some_and(super::lives::Life::leaks);
        let any_leaks = self.workers.keys().any(leaks);
        let too_many = room.fits(room.tolerated(line)) < self.target && self.all_settled();
        (too_many && !any_leaks && self.follows()).then_some(Why::Cost { cost, limit })
    }

    /// What was given up comes back, one by one, where it fits again.
    pub(super) fn lift(&mut self, now: Time, room: Option<&Room>, actions: &mut Vec<Action>) {
        let Some(cap) = self.learnt.cap.filter(|cap| now >= cap.until) else { return };
        // A number that was told is kept as long as it is not the end.
        let fits = room.is_none_or(|room| {
            let line = if self.follows() { room.ceiling } else { room.brink };
            room.fits(line) > self.target && room.used < line
        });
        if !fits || !self.all_settled() {
            return;
        }
        let most = cap.most.max(self.target).saturating_add(1);
        let left = room.map_or(0, Room::left);
        let until = now.saturating_add(HOLD);
        self.learnt.cap = (most < self.wish.level).then_some(Cap { most, until });
        self.apply(now, Some(Why::Relief { left }), actions);
    }

    /// The kernel has killed a worker for memory: what was reckoned with was too little.
    pub(super) fn out_of_memory(&mut self, now: Time, slot: u32, actions: &mut Vec<Action>) {
        let lately = self.learnt.killed_at.is_some_and(|at| now < at + TOGETHER);
        if !self.follows() || self.ending.is_some() || lately {
            return;
        }
        self.learnt.killed_at = Some(now);
        // Who is wanted no more has been given up already.
        let one_less = self.target.saturating_sub(u32::from(slot <= self.target));
        let most = one_less.max(self.policy.least);
        self.learnt.step = None;
        self.learnt.killed_above = Some(most);
        self.apply(now, Some(Why::Killed { slot }), actions);
    }
}

impl super::adapt::Learnt {
    /// Until when what is given up now stays given up.
    fn hold(&mut self, now: Time) -> Time {
        // Whoever comes through twice as long without it begins anew.
        let calm = self.held().saturating_mul(4).max(LONGEST_HOLD / 2);
        if self.cut_at.is_none_or(|at| now >= at.saturating_add(calm)) {
            self.cuts = 0;
        }
        self.cut_at = Some(now);
        self.cuts = self.cuts.saturating_add(1);
        now.saturating_add(self.held())
    }

    fn held(&self) -> Duration {
        doubled(HOLD, self.cuts, LONGEST_HOLD)
    }

    /// More memory, or somebody's word: what went wrong before tells nothing of now.
    pub(super) fn forget_kills(&mut self) {
        self.cap = None;
        self.killed_above = None;
        self.cuts = 0;
        self.killed_at = None;
        self.lives.forget_cost();
    }
}
