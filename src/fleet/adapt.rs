//! How many workers the load wants, within what memory allows.
//!
//! Up in seconds while somebody waits and there are CPU and memory; down after minutes in which fewer would
//! have done; at once where memory does not hold them. A step up is followed by a look at whether
//! it helped, and what did not help is not tried again for a while, longer each time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Fleet;
use super::bounds::{Adapt, Bounds};
use super::lives::{Life, Lives};
use super::looks::{FULL, Load, Look, Looks, percent};
use super::measured::Sample;
use super::memory::{Cap, Room};
use super::messages::{Action, Kind, Restart};
use super::trial::Trial;
use super::why::Why;
use super::worker::{Phase, Time, WorkerKey};

/// A look that begins so long after the last worker became ready sees none of its start.
const SETTLES: Duration = Duration::from_secs(1);
/// With no load that hurries, what workers take is looked at for so long.
const WARM: Duration = Duration::from_secs(5);
/// Where nobody asked for more than the plan's number, for so long, or so long of real work: what a few requests take
/// is not what a worker takes.
const WELL_WARM: Duration = Duration::from_secs(30);
const HARD: Duration = Duration::from_secs(10);
/// And so long lies between two steps.
const SLOWLY: Duration = Duration::from_secs(10);
/// So full of what we may use is what a step up aims at.
const AIM: f64 = 0.95;
/// A step has helped where this part of it came to be used.
const HELPS: f64 = 0.2;
/// CPUs that each who was added uses at least, where he does any work: an idle runtime ticks, too.
const WORKS: f64 = 0.002;
/// Who uses less than this mostly waits, and the next may well wait for the same.
const LITTLE: f64 = 0.05;
/// Fewer would have done for so long: then one goes.
const IDLE: Duration = Duration::from_mins(3);
/// And the next.
const NEXT_IDLE: Duration = Duration::from_mins(1);
const LONGEST: Duration = Duration::from_hours(1);
/// Fewer would do where they had to work this much of what they can.
const EASE: f64 = 0.5;

/// A step up whose effect is not known yet.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Step {
    from: u32,
    to: u32,
    before: Load,
}

/// A change of the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) at: Time,
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// None where it was asked for, or planned.
    pub(crate) why: Option<Why>,
}

/// Everything that was found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Learnt {
    pub(super) bounds: Bounds,
    pub(super) lives: Lives,
    pub(super) looks: Looks,
    pub(super) last: Option<Change>,
    pub(super) step: Option<Step>,
    #[serde(default)]
    pub(super) trial: Option<Trial>,
    /// CPUs that a worker uses that has all that it can do.
    capacity: Option<f64>,
    /// Steps in a row that did not help, and when the next may come.
    pub(super) futile: u32,
    pub(super) grow_after: Time,
    idle_since: Option<Time>,
    /// For how long it has to be idle, doubled where that was too hasty.
    idle_for: Duration,
    /// What was given up for memory.
    pub(super) cap: Option<Cap>,
    /// With more than this the kernel has killed one; stays until there is more memory, or somebody asks.
    pub(super) killed_above: Option<u32>,
    /// How often workers were given up for memory, and when.
    pub(super) cuts: u32,
    pub(super) cut_at: Option<Time>,
    pub(super) last_cut: Option<Time>,
    pub(super) killed_at: Option<Time>,
    /// When the guard may replace the next worker.
    pub(super) recycle_after: Time,
    /// How many in a row had to be replaced who had served for a short time only.
    pub(super) churn: u32,
    /// It has been told that there is nobody to give up.
    pub(super) told_no_room: bool,
}

impl Learnt {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            lives: Lives::default(),
            looks: Looks::default(),
            last: None,
            step: None,
            trial: None,
            capacity: None,
            futile: 0,
            grow_after: Time::ZERO,
            idle_since: None,
            idle_for: IDLE,
            cap: None,
            killed_above: None,
            cuts: 0,
            cut_at: None,
            last_cut: None,
            killed_at: None,
            recycle_after: Time::ZERO,
            churn: 0,
            told_no_room: false,
        }
    }

    /// No more than this, for the sake of memory.
    pub(super) fn most(&self) -> Option<u32> {
        self.cap.map(|cap| cap.most).into_iter().chain(self.killed_above).min()
    }

    pub(super) fn changed(&mut self, at: Time, from: u32, to: u32, why: Option<Why>) {
        self.last = Some(Change { at, from, to, why });
        self.idle_since = None;
        match why {
            None => (self.step, self.trial) = (None, None),
            // They had been there before.
            Some(Why::Relief { .. }) => {}
            Some(_) if to > from => self.try_more(from),
            Some(_) => self.try_no_more_than(to),
        }
    }
}

impl Fleet {
    /// Somebody has looked.
    pub(super) fn measured(&mut self, now: Time, sample: &Sample, actions: &mut Vec<Action>) {
        if self.ending.is_some() {
            return;
        }
        let look = Look::of(now, sample);
        self.learnt.looks.push(look);
        self.learnt.lives.take_in(now, sample, &self.workers, look.has_queue());
        // Work that ends by itself is neither broken off nor done once more.
        if self.policy.restart != Restart::Always {
            return;
        }
        self.end_trial(now);
        let room = self.room(sample);
        if self.policy.guard && self.guard(now, sample, room.as_ref(), actions) {
            return;
        }
        if let Some(room) = &room {
            // What is new beside what is old takes room for a moment.
            let rolling = self.rollout.is_some() && room.used <= room.brink;
            let line = if self.follows() { Some(room.ceiling) } else { None };
            let line = line.or_else(|| self.policy.guard.then_some(room.brink));
            if let Some(line) = line.filter(|_| !rolling) {
                self.relieve(now, room, line, actions);
            }
        }
        self.lift(now, room.as_ref(), actions);
        if self.follows() {
            self.move_level(now, room.as_ref(), actions);
        }
    }

    /// Whether the number is ours to choose.
    pub(super) fn follows(&self) -> bool {
        self.policy.adapt != Adapt::Off && !self.learnt.bounds.told && !self.wish.pinned
    }

    /// As high as it may go.
    pub(super) fn highest(&self) -> u32 {
        let Bounds { workers, by_cpu, most, .. } = self.learnt.bounds;
        let most = match self.policy.adapt {
            Adapt::On => most,
            Adapt::Auto => most.min(by_cpu),
            Adapt::Off => workers,
        };
        most.max(workers).min(self.policy.most)
    }

    /// Everybody who is wanted serves, nobody is on his way out, and nothing is being replaced.
    pub(super) fn all_settled(&self) -> bool {
        let serves = |key: WorkerKey| {
            self.workers.get(&key).is_some_and(|worker| worker.phase == Phase::Ready)
        };
        self.rollout.is_none()
            && self.workers.len() == self.slots.len()
            && self.slots.len() == usize::try_from(self.target).unwrap_or(usize::MAX)
            && self.slots.values().all(|slot| slot.current().is_some_and(serves))
    }

    /// Since when nothing has changed.
    fn settled_at(&self) -> Time {
        let ready = self.workers.values().filter_map(|worker| worker.ready_since);
        let changed = self.learnt.last.map(|change| change.at);
        ready.chain(changed).max().unwrap_or(Time::ZERO).saturating_add(SETTLES)
    }

    fn move_level(&mut self, now: Time, room: Option<&Room>, actions: &mut Vec<Action>) {
        if !self.all_settled() || self.policy.lifetime.is_some_and(|end| now >= end) {
            self.learnt.idle_since = None;
            return;
        }
        let since = self.settled_at();
        let looks: Vec<Look> = self.learnt.looks.since(since).copied().collect();
        let Some(load) = Load::of(looks.iter()).filter(|_| looks.len() >= 2) else { return };
        let Some(last) = looks.last().copied() else { return };
        if self.is_futile(now, load, &looks, actions) {
            return;
        }
        let pressed = looks.iter().rev().take(3).filter(|look| look.is_pressed()).count() >= 2;
        let pressed = pressed && last.is_pressed();
        let full = last.is_full() || load.used >= FULL * last.usable;
        let capped = self.learnt.most().is_some_and(|most| most <= self.target);
        if pressed && !full {
            let each = load.used / f64::from(self.target.max(1));
            self.learnt.capacity =
                Some(self.learnt.capacity.map_or(each, |so_far| f64::midpoint(so_far, each)));
            self.learnt.idle_since = None;
            if !capped {
                self.grow_for_load(now, load, last, room, actions);
            }
        } else if self.target < self.learnt.bounds.by_cpu && !capped {
            self.grow_by_measure(now, room, actions);
        } else if pressed || full {
            self.learnt.idle_since = None;
        } else {
            self.give_back(now, load, last, actions);
        }
    }

    /// Looks at what the last step up has brought. True as long as that is not clear, and where it was nothing.
    fn is_futile(
        &mut self,
        now: Time,
        load: Load,
        looks: &[Look],
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(step) = self.learnt.step else { return false };
        let added = step.to.saturating_sub(step.from);
        let grown = f64::from(added) / f64::from(step.from.max(1));
        // Of nothing, any share is nothing: workers that hang do not help one another.
        let least = (step.before.used * HELPS * grown).max(WORKS * f64::from(added));
        let used = load.used >= step.before.used + least;
        // Where all wait for somebody else, it counts that each has taken one from the queue.
        let half = step.before.waiting.div_ceil(2);
        let enough = if step.before.used < LITTLE { added.div_ceil(2).min(half) } else { half };
        let shorter =
            step.before.waiting > 0 && load.waiting.saturating_add(enough) <= step.before.waiting;
        let full = looks.last().is_some_and(Look::is_full);
        let eased = !looks.iter().any(Look::is_pressed);
        if used || shorter || full || eased {
            self.learnt.step = None;
            self.learnt.futile = 0;
            return false;
        }
        if looks.len() >= 3 {
            self.learnt.step = None;
            self.learnt.hold_off(now);
            self.want(now, step.from.max(self.learnt.bounds.workers), Some(Why::NoHelp), actions);
        }
        true
    }

    fn grow_for_load(
        &mut self,
        now: Time,
        load: Load,
        last: Look,
        room: Option<&Room>,
        actions: &mut Vec<Action>,
    ) {
        if now < self.learnt.grow_after || self.shown() * 2 < self.workers.len() {
            return;
        }
        // Twice as many at most, so that what the new ones take is seen before the next step.
        let from = self.target;
        // A load that has just begun is not all of it in the average.
        let enough = enough(from, load.most, last.usable);
        let step = from.saturating_add(from.max(2));
        let to = step.min(enough.max(from + 1)).min(self.highest());
        let to = room.map_or(to, |room| to.min(room.fits(room.ceiling)));
        if to <= from {
            return;
        }
        // It was given back too early.
        let gave = self.learnt.last.is_some_and(|change| {
            matches!(change.why, Some(Why::Idle { .. })) && now < change.at + IDLE
        });
        if gave {
            self.learnt.idle_for = self.learnt.idle_for.saturating_mul(2).min(LONGEST);
        }
        let (free, cost) = (percent(last.free()), self.learnt.lives.cost());
        let why = match load.waiting {
            0 => Why::Busy { busiest: percent(last.busiest), free, cost },
            waiting => Why::Queue { waiting, free, cost },
        };
        self.learnt.step = Some(Step { from, to, before: load });
        self.want(now, to, Some(why), actions);
    }

    /// Memory held the number below the CPU rule, by a cost that was assumed; now it has been measured.
    fn grow_by_measure(&mut self, now: Time, room: Option<&Room>, actions: &mut Vec<Action>) {
        let Some((room, cost)) = room.zip(self.learnt.lives.cost()) else { return };
        let hurries = self.policy.adapt == Adapt::On;
        let enough = |life: &Life| {
            let well = life.worked >= WELL_WARM || life.worked_hard >= HARD;
            well || (hurries && life.worked >= WARM)
        };
        let warm = |key: &WorkerKey| self.learnt.lives.of(*key).is_some_and(enough);
        let lately = self.learnt.last.is_some_and(|change| now < change.at + SLOWLY);
        if lately || now < self.learnt.grow_after || !self.workers.keys().all(warm) {
            return;
        }
        let most = self.learnt.bounds.by_cpu.min(self.highest());
        let to = self.target.saturating_mul(2).min(most).min(room.fits(room.ceiling));
        if to > self.target {
            self.want(now, to, Some(Why::Measured { cost, left: room.left() }), actions);
        }
    }

    /// Fewer would do: after a long time of that, one goes.
    fn give_back(&mut self, now: Time, load: Load, last: Look, actions: &mut Vec<Action>) {
        let Bounds { workers, by_cpu, .. } = self.learnt.bounds;
        let bottom = workers.max(by_cpu.min(self.target));
        let fewer = f64::from(self.target.saturating_sub(1));
        let could = self.learnt.capacity.map_or(last.usable / 5.0, |each| each * fewer);
        if self.target <= bottom || load.used > could * EASE {
            self.learnt.idle_since = None;
            return;
        }
        let since = *self.learnt.idle_since.get_or_insert(now);
        if now < since.saturating_add(self.learnt.idle_for) {
            return;
        }
        let seconds = self.learnt.idle_for.as_secs();
        self.want(now, self.target - 1, Some(Why::Idle { seconds }), actions);
        // The next one goes sooner.
        let before = self.learnt.idle_for.saturating_sub(NEXT_IDLE);
        self.learnt.idle_since = Some(now.saturating_sub(before));
    }

    /// How many have shown what they take.
    fn shown(&self) -> usize {
        let lives = &self.learnt.lives;
        let shown = |key: &&WorkerKey| lives.of(**key).is_some_and(Life::has_shown);
        self.workers.keys().filter(shown).count()
    }

    /// A worker of `kind` is being replaced.
    pub(super) fn is_rolling(&self, kind: Kind) -> bool {
        self.rollout.as_ref().is_some_and(|rollout| rollout.kind == kind)
    }
}

/// So many would use up the CPUs, if each of them did what each does now.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn enough(workers: u32, used: f64, usable: f64) -> u32 {
    (f64::from(workers) * usable * AIM / used.max(1e-6)).ceil() as u32
}
