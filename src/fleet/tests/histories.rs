//! All rules at once: random events in virtual time, and the promises that hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::faults::{Fault, faults, policies};
use super::visions::{Vision, vision};
use super::*;

/// A process, as the kernel would have it.
#[derive(Clone, Copy, Debug, Default)]
struct Process {
    /// Its leader has ended and its group has not.
    group: bool,
    /// When it knew that it has to go.
    told: Option<Time>,
    /// It finishes what it has, and has not got the stop signal yet.
    drains: bool,
}

/// The processes, and the promises that must hold.
struct World {
    fleet: Fleet,
    policy: Policy,
    bounds: Bounds,
    now: Time,
    processes: BTreeMap<WorkerKey, Process>,
    started: BTreeSet<WorkerKey>,
    reaped: BTreeSet<WorkerKey>,
    latest: Option<WorkerKey>,
    /// The largest target since nobody was on the way out, and the largest surge.
    most: u32,
    surge: u32,
    stopping: bool,
    urgent: bool,
    exited: Option<u8>,
}

pub(super) const LARGEST: u32 = 12;

impl World {
    fn new(policy: Policy, workers: u32) -> Self {
        let mut world = Self {
            fleet: Fleet::new(
                policy.clone(),
                Bounds { by_cpu: LARGEST / 2, most: LARGEST, ..Bounds::of(workers) },
            ),
            bounds: Bounds { by_cpu: LARGEST / 2, most: LARGEST, ..Bounds::of(workers) },
            policy,
            now: Time::ZERO,
            processes: BTreeMap::new(),
            started: BTreeSet::new(),
            reaped: BTreeSet::new(),
            latest: None,
            most: workers,
            surge: 0,
            stopping: false,
            urgent: false,
            exited: None,
        };
        world.event(Event::Start);
        world
    }

    fn event(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            if let Event::Renew { surge, .. } = event {
                self.surge = self.surge.max(surge);
            }
            for action in self.fleet.step(self.now, event) {
                self.perform(action, &mut events);
            }
        }
        self.most = self.most.max(self.fleet.target());
        let wanted = self.processes.values().filter(|process| process.told.is_none()).count();
        let most = self.fleet.target() + self.surge;
        assert!(wanted <= most as usize, "{wanted} wanted of {most}");
        // Who is on its way out for a smaller size counts for the larger one, until it has gone.
        if self.processes.values().all(|process| process.told.is_none() && !process.group) {
            self.most = self.fleet.target();
        }
        let deadline = self.fleet.deadline();
        assert!(
            deadline.is_none_or(|at| at > self.now),
            "a deadline that has passed: {deadline:?}"
        );
    }

    fn perform(&mut self, action: Action, events: &mut Vec<Event>) {
        assert!(self.exited.is_none(), "{action:?} after the end");
        let now = self.now;
        match action {
            Action::Spawn(to) => {
                assert!(!self.stopping, "a start while stopping");
                assert!(self.started.insert(to.worker), "a key used twice");
                self.latest = Some(to.worker);
                self.processes.insert(to.worker, Process::default());
                let most = self.most.max(self.fleet.target()) + self.surge;
                assert!(self.processes.len() <= most as usize, "more than {most} alive");
            }
            Action::Drain(key) => {
                let process = self.processes.get_mut(&key).unwrap();
                assert!(self.policy.drains && !process.group && process.told.is_none());
                (process.told, process.drains) = (Some(now), true);
            }
            Action::AskLeader(key) | Action::AbortLeader(key) => {
                let process = self.processes.get_mut(&key).unwrap();
                let drained = std::mem::take(&mut process.drains);
                assert!(!process.group && drained == process.told.is_some(), "told twice, or late");
                process.told.get_or_insert(now);
            }
            Action::AskGroup(key) => {
                let process = self.processes.get_mut(&key).unwrap();
                assert!(process.group);
                process.told.get_or_insert(now);
            }
            Action::Kill(key) => {
                let told = self.processes[&key].told;
                let patient = told.is_some_and(|told| now >= told + self.policy.grace);
                assert!(self.urgent || patient, "KILL before the grace was over");
            }
            // Only a process stuck in the kernel gets there; this world has them.
            Action::Say(Note::GaveUp { worker, .. }) => {
                self.processes.remove(&worker);
            }
            Action::Aged { slot } => {
                events.push(Event::Renew { kind: Kind::Aged, slot: Some(slot), surge: 0 });
            }
            Action::Recycle { slot, .. } => {
                events.push(Event::Renew {
                    kind: Kind::Grown,
                    slot: Some(slot),
                    surge: u32::from(self.now.as_millis().is_multiple_of(2)),
                });
            }
            Action::Say(_) => {}
            Action::Exit(status) => {
                assert!(self.processes.is_empty(), "an end that leaves processes");
                self.exited = Some(status);
            }
        }
    }

    fn look(&mut self, vision: &Vision) {
        let keys: Vec<_> = self.processes.keys().copied().collect();
        let strangers = (0..vision.strangers).map(|key| WorkerKey(1_000_000 + key));
        let keys = keys.into_iter().chain(strangers);
        let workers = keys.zip(&vision.workers).map(|(worker, seen)| Measured {
            worker,
            private: seen.0,
            peak: seen.1,
            shared: seen.1,
            cpu: seen.2,
            busiest: seen.2,
            delayed: seen.2,
            active: seen.3,
        });
        let sample = Sample {
            span: Duration::from_millis(u64::from(vision.span)),
            memory: vision.memory.map(|(limit, used, stalled, hits)| Memory {
                limit,
                used,
                stalled,
                hits,
                divided: vision.strangers == 1,
                shmem: 0,
            }),
            cpu: Cpu { usable: vision.cpu.0, used: vision.cpu.1, throttled: vision.cpu.2 },
            waiting: vision.waiting,
            workers: workers.collect(),
        };
        let (before, pinned) = (self.fleet.target(), self.fleet.view(self.now).pinned);
        self.event(Event::Measured(Box::new(sample)));
        let after = self.fleet.target();
        assert!(after <= before.max(LARGEST) && after >= self.policy.least, "{before} -> {after}");
        let moves = self.policy.adapt != Adapt::Off && !pinned;
        let may_return = after <= before || moves || self.policy.guard;
        assert!(may_return, "{before} -> {after} by a look");
        assert!(
            moves || self.policy.guard || after == before,
            "nobody may move it: {before} -> {after}"
        );
        if after > before && self.policy.adapt == Adapt::Auto && moves {
            let planned = self.bounds.workers.max(self.bounds.by_cpu);
            assert!(after <= planned, "{after} above the CPU rule");
        }
    }

    fn pick(&self, pick: usize) -> Option<WorkerKey> {
        let keys: Vec<_> = self.processes.keys().copied().collect();
        (!keys.is_empty()).then(|| keys[pick % keys.len()])
    }

    fn end(&mut self, key: WorkerKey, how: Ended, group: bool) {
        let process = self.processes.get_mut(&key).unwrap();
        if process.group {
            self.processes.remove(&key);
            self.event(Event::GroupGone { worker: key });
            return;
        }
        process.group = true;
        assert!(self.reaped.insert(key), "reaped twice");
        if !group {
            self.processes.remove(&key);
        }
        self.event(Event::Ended { worker: key, how, group });
    }

    fn suffer(&mut self, fault: &Fault) {
        match *fault {
            Fault::Wait(ms) => {
                self.now += Duration::from_millis(u64::from(ms));
                self.event(Event::Tick);
            }
            Fault::Resize(by) => {
                if self.fleet.target().saturating_add_signed(by) < LARGEST {
                    self.event(Event::ResizeBy(by));
                }
            }
            Fault::ResizeTo(workers) => self.event(Event::ResizeTo(workers)),
            Fault::Planned(workers, at_once) => {
                self.bounds = Bounds { by_cpu: LARGEST / 2, most: LARGEST, ..Bounds::of(workers) };
                self.event(Event::Planned { bounds: self.bounds, at_once });
            }
            Fault::Measured(ref looks) => self.look(looks),
            Fault::OutOfMemory(slot) => self.event(Event::OutOfMemory { slot }),
            Fault::Free => self.event(Event::Free),
            Fault::Renew { slot, surge } => {
                let kind = if slot.is_some() { Kind::Restart } else { Kind::Reload };
                self.event(Event::Renew { kind, slot, surge });
            }
            Fault::End { pick, how, group } => {
                let how = if how < 128 { Ended::Code(how % 4) } else { Ended::Signal(9) };
                if let Some(key) = self.pick(pick) {
                    self.end(key, how, group);
                }
            }
            Fault::Refuse => {
                let fresh = |key: &WorkerKey| {
                    self.processes.get(key).is_some_and(|p| !p.group && p.told.is_none())
                };
                if let Some(worker) = self.latest.take().filter(fresh) {
                    self.processes.remove(&worker);
                    self.event(Event::Refused { worker, why: Refusal::Resources });
                }
            }
            Fault::Tell { pick, what } => {
                if let Some(worker) = self.pick(pick) {
                    let process = self.processes.get_mut(&worker).unwrap();
                    if what == Told::Stopping && !process.group {
                        process.told.get_or_insert(self.now);
                    }
                    self.event(Event::Told { worker, what });
                }
            }
            Fault::Upgrade if self.exited.is_none() => {
                let text = serde_json::to_string(&self.fleet.save()).unwrap();
                let saved = serde_json::from_str(&text).unwrap();
                self.fleet = Fleet::restore(self.policy.clone(), self.bounds, saved);
            }
            Fault::Upgrade => {}
        }
    }

    /// However it went, a stop ends it: nobody obeys, so everybody is killed.
    fn stop(&mut self, urgent: bool) {
        self.stopping = true;
        self.urgent = urgent;
        self.event(Event::Stop(if urgent { Urgency::Now } else { Urgency::Graceful }));
        // Who had asked for more time before keeps it.
        self.now += 2 * self.policy.grace + 60 * SECOND;
        self.event(Event::Tick);
        self.urgent = true;
        while let Some(key) = self.pick(0) {
            self.end(key, Ended::Signal(9), false);
        }
        assert!(self.exited.is_some(), "a stop that does not end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_promises_hold_whatever_happens(
        workers in 1u32..9,
        policy in policies(),
        history in prop::collection::vec(faults(), 0..200),
        urgent: bool,
    ) {
        let mut world = World::new(policy, workers);
        for fault in history {
            if world.exited.is_some() { break; }
            world.suffer(&fault);
        }
        if world.exited.is_none() {
            world.stop(urgent);
        }
    }
}

/// A day of faults in one long run; `THRONG_SEED` plays one again.
#[test]
fn a_day_of_faults() {
    let seed = std::env::var("THRONG_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("to play it again: THRONG_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let drains = random.bool();
    let policy = Policy { max_restarts: u32::MAX, drains, seed, ..policy(Restart::Always) };
    let mut world = World::new(policy, 8);
    // One that has served before: else a bad start would end the run.
    world.suffer(&Fault::Wait(1500));
    let day = Duration::from_hours(24);
    while world.now < day {
        let pick = random.usize(..);
        world.suffer(&match random.u32(..100) {
            0..60 => Fault::Wait(random.u16(..)),
            60..85 => Fault::End { pick, how: random.u8(..), group: random.bool() },
            85 => Fault::Refuse,
            86 => Fault::Resize(random.i32(-3..4)),
            87 => match random.u32(..3) {
                0 => Fault::ResizeTo(random.u32(1..LARGEST)),
                1 => Fault::Planned(random.u32(1..LARGEST), random.bool()),
                _ => Fault::Free,
            },
            88..90 => Fault::Renew { slot: None, surge: random.u32(..3) },
            90 => Fault::Renew { slot: Some(random.u32(1..LARGEST)), surge: random.u32(..3) },
            91..99 => {
                Fault::Tell { pick, what: if random.bool() { Told::Ready } else { Told::Hung } }
            }
            99 if random.bool() => Fault::Measured(vision(&mut random)),
            _ => Fault::Upgrade,
        });
        if random.u32(..4) == 0 {
            world.suffer(&Fault::Measured(vision(&mut random)));
        }
        assert_eq!(world.exited, None, "nobody asked for an end");
    }
    // Left alone, everything heals.
    for _ in 0..200 {
        world.suffer(&Fault::Wait(u16::MAX));
        let doomed: Vec<_> =
            world.processes.iter().filter(|(_, p)| p.told.is_some()).map(|(key, _)| *key).collect();
        for key in doomed {
            world.end(key, Ended::Signal(15), false);
        }
    }
    let view = world.fleet.view(world.now);
    assert!(view.is_ready(), "{view:?}");
    assert!(view.rollout.is_none() && view.workers.len() == view.target as usize, "{view:?}");
    world.stop(false);
}
