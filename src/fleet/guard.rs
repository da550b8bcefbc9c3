//! Before the kernel kills: a worker that has too much memory, or is about to leave no room for
//! who takes its place, is replaced as in a reload, one at a time, drained first.

use std::time::Duration;

use super::Fleet;
use super::bounds::MostMemory;
use super::lives::Life;
use super::measured::Sample;
use super::memory::Room;
use super::messages::{Action, Kind, Note};
use super::why::{Excess, Why};
use super::worker::{Phase, Time, WorkerKey};

/// Larger than it may be for so long, a worker is replaced.
const ABOVE: Duration = Duration::from_secs(3);
/// Who is replaced for its size had served for so long: else the size is wrong, and not the worker.
const SERVED: Duration = Duration::from_secs(30);
/// Between two replacements.
const BETWEEN: Duration = Duration::from_secs(10);
/// What drains, and is looked at now and then, takes this time to be gone.
const DRAINS: Duration = Duration::from_secs(6);
/// So many in a row that had served for so short a time are too many.
const CHURN: u32 = 3;
const SHORT: Duration = Duration::from_mins(2);
/// A start takes no longer, as far as that can be waited for.
const LONGEST_START: Duration = Duration::from_secs(15);

impl Fleet {
    /// True where a worker is being replaced, and nothing else is to be done about memory.
    pub(super) fn guard(
        &mut self,
        now: Time,
        sample: &Sample,
        room: Option<&Room>,
        actions: &mut Vec<Action>,
    ) -> bool {
        self.weigh(sample, actions);
        if let Some(room) = room {
            self.tell_no_room(room, actions);
        }
        if self.rollout.is_some() {
            let patient = room.is_none_or(|room| room.used <= room.brink);
            return patient && self.is_rolling(Kind::Grown);
        }
        if now < self.learnt.recycle_after {
            return false;
        }
        let found = self.too_large(now).or_else(|| {
            room.and_then(|room| self.grows_too_fast(room).or_else(|| self.stands_out(room)))
        });
        let Some((key, why)) = found else { return false };
        self.recycle(now, key, why, actions);
        if let Some(room) = room {
            self.count_churn(now, key, why, room, actions);
        }
        true
    }

    fn recycle(&mut self, now: Time, key: WorkerKey, why: Excess, actions: &mut Vec<Action>) {
        let Some(slot) = self.workers.get(&key).map(|worker| worker.slot) else { return };
        let private = self.learnt.lives.of(key).map_or(0, |life| life.private);
        let fresh = self.learnt.lives.fresh().unwrap_or(private).min(private);
        self.learnt.recycle_after = now.saturating_add(BETWEEN);
        actions.push(Action::Say(Note::Recycled { worker: key, slot, private, why }));
        actions.push(Action::Recycle { slot, fresh });
    }

    /// Where replacing does not last, what grows is no leak that another start heals for long: fewer do it.
    fn count_churn(
        &mut self,
        now: Time,
        key: WorkerKey,
        why: Excess,
        room: &Room,
        actions: &mut Vec<Action>,
    ) {
        let since = self.workers.get(&key).and_then(|worker| worker.ready_since);
        let short = since.is_some_and(|since| now < since.saturating_add(SHORT));
        self.learnt.churn = if short { self.learnt.churn.saturating_add(1) } else { 0 };
        let own = matches!(why, Excess::Above { .. });
        if self.learnt.churn >= CHURN && self.follows() && !own {
            self.learnt.churn = 0;
            let Room { used, limit, .. } = *room;
            self.give_up(now, self.target.saturating_sub(1), Why::Full { used, limit }, actions);
        }
    }

    /// What a worker may have, where that was said.
    fn most_memory(&self) -> Option<u64> {
        match self.policy.most_memory {
            MostMemory::Off => None,
            MostMemory::Share => self.learnt.bounds.share,
            MostMemory::Size(bytes) => Some(bytes),
        }
    }

    /// Counts for how long who has been above its share, and warns where nothing else is to be done about it.
    fn weigh(&mut self, sample: &Sample, actions: &mut Vec<Action>) {
        let told = self.most_memory();
        let Some(most) = told.or(self.learnt.bounds.share) else { return };
        for (key, worker) in &self.workers {
            let Some(life) = self.learnt.lives.of_mut(*key) else { continue };
            life.weigh(most, sample.span);
            if told.is_none() && worker.phase == Phase::Ready && life.is_long_above() {
                let (slot, private) = (worker.slot, life.private);
                actions.push(Action::Say(Note::AboveShare {
                    worker: *key,
                    slot,
                    private,
                    share: most,
                }));
            }
        }
    }

    /// Those that serve, with what they have cost.
    fn serving(&self) -> impl Iterator<Item = (WorkerKey, &Life, Time)> {
        self.workers.iter().filter(|(_, worker)| worker.phase == Phase::Ready).filter_map(
            |(key, worker)| {
                let life = self.learnt.lives.of(*key)?;
                Some((*key, life, worker.ready_since.unwrap_or(worker.started)))
            },
        )
    }

    /// Above what a worker may have.
    fn too_large(&self, now: Time) -> Option<(WorkerKey, Excess)> {
        let most = self.most_memory()?;
        let large = self.serving().filter(|(_, life, since)| {
            life.above >= ABOVE && life.private > most && now >= *since + SERVED
        });
        let (key, ..) = large.max_by_key(|(_, life, _)| life.private)?;
        Some((key, Excess::Above { most }))
    }

    /// While it grows on as it does, a new worker could not become ready beside it any more.
    fn grows_too_fast(&self, room: &Room) -> Option<(WorkerKey, Excess)> {
        if room.growth == 0 {
            return None;
        }
        let fresh = self.learnt.lives.fresh()?;
        let ms = u64::try_from((self.start_time() + DRAINS).as_millis()).unwrap_or(u64::MAX);
        let grown = room.growth.saturating_mul(ms) / 1000;
        let needed = fresh.saturating_add(fresh / 4).saturating_add(grown);
        let left = room.brink.saturating_sub(room.used);
        // Who grows slower and slower may come to an end by himself, as long as there is time.
        let due =
            |life: &Life| (life.leaks() && left <= needed) || (life.has_grown() && left <= grown);
        let due = self.serving().filter(|(_, life, _)| due(life));
        let (key, life, _) = due.max_by_key(|(_, life, _)| life.private)?;
        Some((key, Excess::Grows { rate: life.growth(), left }))
    }

    /// The box is nearly full, and one worker has much more than it began with and than the others have.
    fn stands_out(&self, room: &Room) -> Option<(WorkerKey, Excess)> {
        let Room { used, limit, brink, .. } = *room;
        if !self.learnt.looks.mostly(|look| look.limit == limit && look.memory > brink) {
            return None;
        }
        let mut sizes: Vec<u64> = self.serving().map(|(_, life, _)| life.private).collect();
        sizes.sort_unstable();
        let (key, life, _) = self.serving().max_by_key(|(_, life, _)| life.private)?;
        let median = match sizes.len() {
            // It has nobody to be compared with but itself.
            0 | 1 => 0,
            count => sizes[(count - 1) / 2],
        };
        let large = life.private / 2 >= life.fresh? && life.private / 3 >= median / 2;
        large.then_some((key, Excess::Largest { used, limit }))
    }

    /// Told once, until there is room again.
    fn tell_no_room(&mut self, room: &Room, actions: &mut Vec<Action>) {
        let Room { used, limit, brink, ceiling, .. } = *room;
        let brim = self.learnt.looks.mostly(|look| look.limit == limit && look.memory > brink);
        if used <= ceiling {
            self.learnt.told_no_room = false;
        } else if brim && self.target <= self.policy.least && !self.learnt.told_no_room {
            self.learnt.told_no_room = true;
            actions.push(Action::Say(Note::NoRoom { used, limit }));
        }
    }

    /// What a start has taken lately.
    fn start_time(&self) -> Time {
        let taken = self.workers.values().filter_map(|worker| {
            worker.ready_since.map(|ready| ready.saturating_sub(worker.started))
        });
        taken.max().unwrap_or(Duration::ZERO).min(LONGEST_START)
    }
}
