//! The rules one by one, then all at once under random events in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy(restart: Restart) -> Policy {
    Policy {
        restart,
        max_restarts: 3,
        grace: 8 * SECOND,
        ready_after: SECOND,
        least: 1,
        most: 10_000,
        lifetime: None,
        seed: 1,
    }
}

/// A fleet with the clock, and what the engine would know of it.
struct Bench {
    fleet: Fleet,
    now: Time,
    log: Vec<Action>,
}

impl Bench {
    fn start(policy: Policy, workers: u32) -> Self {
        let mut bench =
            Self { fleet: Fleet::new(policy, workers), now: Time::ZERO, log: Vec::new() };
        bench.event(Event::Start);
        bench
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        let actions = self.fleet.step(self.now, event);
        self.log.extend(&actions);
        actions
    }

    fn after(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.event(Event::Tick)
    }

    fn end(&mut self, worker: u64, how: Ended) -> Vec<Action> {
        self.event(Event::Ended { worker: WorkerKey(worker), how, group: false })
    }
}

fn spawns(actions: &[Action]) -> Vec<(u32, u32)> {
    let spawned = actions.iter().filter_map(|action| match action {
        Action::Spawn(to) => Some((to.slot, to.generation)),
        _ => None,
    });
    spawned.collect()
}

fn exit_of(actions: &[Action]) -> Option<u8> {
    actions.iter().find_map(|action| match action {
        Action::Exit(status) => Some(*status),
        _ => None,
    })
}

const CRASH: Ended = Ended::Code(3);

#[test]
fn a_stable_worker_is_replaced_at_once() {
    let mut bench = Bench::start(policy(Restart::Always), 2);
    bench.after(SECOND);
    bench.after(5 * SECOND);
    assert_eq!(spawns(&bench.end(1, CRASH)), [(1, 2)]);
}

#[test]
fn an_early_end_waits_longer_each_time_and_then_the_slot_fails() {
    let mut bench = Bench::start(policy(Restart::Always), 2);
    bench.after(SECOND);
    assert_eq!(spawns(&bench.end(1, CRASH)), []);
    assert_eq!(spawns(&bench.after(99 * SECOND / 1000)), []);
    assert_eq!(spawns(&bench.after(SECOND / 10)), [(1, 2)]);
    bench.end(3, CRASH);
    assert_eq!(spawns(&bench.after(SECOND / 5)), []);
    assert_eq!(spawns(&bench.after(SECOND / 10)), [(1, 3)]);
    let last = bench.end(4, CRASH);
    assert!(last.contains(&Action::Say(Note::SlotFailed { slot: 1, early_ends: 3 })));
    assert_eq!(exit_of(&last), None, "the other one serves");
    bench.end(2, Ended::Signal(9));
    bench.after(SECOND);
    bench.end(5, Ended::Signal(9));
    bench.after(SECOND);
    assert_eq!(exit_of(&bench.end(6, Ended::Signal(9))), Some(137), "no slot is left");
}

#[test]
fn a_stable_run_forgets_what_was_before() {
    let mut bench = Bench::start(policy(Restart::Always), 2);
    bench.after(SECOND);
    bench.end(1, CRASH);
    bench.after(SECOND);
    bench.end(3, CRASH);
    bench.after(SECOND);
    bench.after(SECOND);
    bench.after(5 * SECOND);
    assert_eq!(spawns(&bench.end(4, CRASH)), [(1, 4)]);
    let next = bench.end(5, CRASH);
    assert!(
        next.iter().any(|action| matches!(action, Action::Say(Note::Waits { early_ends: 1, .. })))
    );
}

#[test]
fn when_every_first_start_fails_the_run_ends_with_its_status() {
    let mut bench = Bench::start(policy(Restart::Always), 2);
    assert_eq!(exit_of(&bench.end(1, CRASH)), None);
    assert_eq!(exit_of(&bench.end(2, CRASH)), Some(3));
    let mut bench = Bench::start(policy(Restart::Always), 1);
    assert_eq!(exit_of(&bench.end(1, Ended::Code(0))), Some(1), "a server that ends has failed");
}

#[test]
fn a_second_start_is_stopped_before_the_end_after_failed_first_starts() {
    let mut bench = Bench::start(policy(Restart::Always), 2);
    bench.end(1, CRASH);
    bench.after(SECOND / 5);
    let actions = bench.end(2, CRASH);
    assert!(actions.contains(&Action::AskLeader(WorkerKey(3))));
    assert_eq!(exit_of(&actions), None);
    assert_eq!(exit_of(&bench.end(3, Ended::Signal(15))), Some(3));
}

#[test]
fn never_and_on_failure_end_with_the_work() {
    let mut bench = Bench::start(policy(Restart::Never), 2);
    bench.end(1, CRASH);
    assert_eq!(exit_of(&bench.end(2, Ended::Code(0))), Some(3));
    let mut bench = Bench::start(policy(Restart::Never), 2);
    bench.end(1, Ended::Code(0));
    assert_eq!(exit_of(&bench.end(2, Ended::Code(0))), Some(0));
    let mut bench = Bench::start(policy(Restart::OnFailure), 2);
    bench.end(1, Ended::Code(0));
    assert_eq!(exit_of(&bench.end(2, CRASH)), None);
    assert_eq!(spawns(&bench.after(SECOND / 5)), [(2, 2)]);
    assert_eq!(exit_of(&bench.end(3, Ended::Code(0))), Some(0), "it succeeded in the end");
}

#[test]
fn a_stop_asks_then_kills_and_tells_which() {
    let mut bench = Bench::start(policy(Restart::Always), 2);
    let actions = bench.event(Event::Stop(Urgency::Graceful));
    assert!(
        actions.contains(&Action::AskLeader(WorkerKey(1)))
            && actions.contains(&Action::AskLeader(WorkerKey(2)))
    );
    bench.end(1, Ended::Signal(15));
    assert_eq!(exit_of(&bench.end(2, Ended::Code(0))), Some(0));

    let mut bench = Bench::start(policy(Restart::Always), 1);
    bench.event(Event::Stop(Urgency::Graceful));
    assert!(!bench.after(7 * SECOND).contains(&Action::Kill(WorkerKey(1))));
    assert!(bench.after(SECOND).contains(&Action::Kill(WorkerKey(1))));
    assert_eq!(exit_of(&bench.end(1, Ended::Signal(9))), Some(137));

    let mut bench = Bench::start(policy(Restart::Always), 1);
    bench.event(Event::Stop(Urgency::Graceful));
    assert!(bench.event(Event::Stop(Urgency::Graceful)).contains(&Action::Kill(WorkerKey(1))));
    assert_eq!(exit_of(&bench.end(1, Ended::Signal(9))), Some(137));
}

#[test]
fn what_a_leader_leaves_behind_goes_before_the_next_start() {
    let mut bench = Bench::start(policy(Restart::Always), 1);
    bench.after(SECOND);
    bench.after(6 * SECOND);
    let key = WorkerKey(1);
    let actions = bench.event(Event::Ended { worker: key, how: CRASH, group: true });
    assert!(actions.contains(&Action::AskGroup(key)));
    assert_eq!(spawns(&actions), []);
    assert!(bench.after(8 * SECOND).contains(&Action::Kill(key)));
    assert_eq!(spawns(&bench.event(Event::GroupGone { worker: key })), [(1, 2)]);
}

#[test]
fn a_process_that_not_even_kill_ends_is_given_up() {
    let mut bench = Bench::start(policy(Restart::Always), 1);
    bench.event(Event::Stop(Urgency::Now));
    assert_eq!(exit_of(&bench.after(2 * SECOND)), Some(137));
}

#[test]
fn the_highest_slot_leaves_first_and_comes_back() {
    let mut bench = Bench::start(policy(Restart::Always), 3);
    let asked: Vec<_> = bench
        .event(Event::ResizeBy(-2))
        .into_iter()
        .filter(|a| matches!(a, Action::AskLeader(_)))
        .collect();
    assert_eq!(asked, [Action::AskLeader(WorkerKey(3)), Action::AskLeader(WorkerKey(2))]);
    assert_eq!(spawns(&bench.event(Event::ResizeBy(1))), [], "slot 2 is still being left");
    assert_eq!(spawns(&bench.end(2, Ended::Code(0))), [(2, 2)]);
    assert_eq!(spawns(&bench.end(3, Ended::Code(0))), []);
    bench.event(Event::ResizeBy(-9));
    assert_eq!(bench.fleet.target, 1);
}

#[test]
fn a_reload_goes_one_by_one_and_stops_where_a_new_worker_fails() {
    let mut bench = Bench::start(policy(Restart::Always), 2);
    bench.after(SECOND);
    assert!(bench.event(Event::Reload).contains(&Action::AskLeader(WorkerKey(1))));
    assert_eq!(spawns(&bench.end(1, Ended::Signal(15))), [(1, 2)]);
    assert!(bench.after(SECOND).contains(&Action::AskLeader(WorkerKey(2))), "the first is ready");
    bench.end(2, Ended::Signal(15));
    assert!(bench.after(SECOND).contains(&Action::Say(Note::Reloaded)));

    bench.event(Event::Reload);
    bench.end(3, Ended::Signal(15));
    assert!(bench.end(5, CRASH).contains(&Action::Say(Note::ReloadStopped { slot: 1 })));
    bench.after(SECOND);
    bench.after(SECOND);
    assert!(!bench.log.contains(&Action::AskLeader(WorkerKey(4))));
}

#[test]
fn a_refused_fork_is_tried_again_without_end_and_a_bad_command_is_not() {
    let mut bench = Bench::start(policy(Restart::Always), 2);
    for round in 0..20 {
        bench.event(Event::Refused { worker: WorkerKey(2 + round), why: Refusal::Resources });
        bench.after(40 * SECOND);
    }
    assert_eq!(exit_of(&bench.log), None);
    let mut bench = Bench::start(policy(Restart::Always), 2);
    bench.event(Event::Refused { worker: WorkerKey(1), why: Refusal::Command { status: 126 } });
    assert_eq!(exit_of(&bench.end(2, Ended::Signal(15))), Some(126));
}

#[test]
fn after_its_lifetime_nothing_is_started_again() {
    let lived = Policy { lifetime: Some(10 * SECOND), ..policy(Restart::Always) };
    let mut bench = Bench::start(lived, 1);
    bench.after(SECOND);
    bench.after(8 * SECOND);
    assert_eq!(spawns(&bench.end(1, Ended::Code(0))), [(1, 2)]);
    bench.after(2 * SECOND);
    assert_eq!(exit_of(&bench.end(2, Ended::Code(0))), Some(0));
}

/// What a random world does next.
#[derive(Clone, Debug)]
enum Fault {
    Wait(u16),
    End { pick: prop::sample::Index, how: u8, group: bool },
    Refuse { pick: prop::sample::Index },
    Resize(i32),
    Reload,
}

fn faults() -> impl Strategy<Value = Fault> {
    let pick = any::<prop::sample::Index>;
    prop_oneof![
        4 => any::<u16>().prop_map(Fault::Wait),
        6 => (pick(), any::<u8>(), any::<bool>()).prop_map(|(pick, how, group)| Fault::End { pick, how, group }),
        1 => pick().prop_map(|pick| Fault::Refuse { pick }),
        1 => (-4i32..5).prop_map(Fault::Resize),
        1 => Just(Fault::Reload),
    ]
}

/// The processes as the kernel would have them, and the promises that must hold.
#[derive(Default)]
struct World {
    /// Alive leaders; the value tells when it was asked to stop.
    alive: BTreeMap<WorkerKey, Option<Time>>,
    groups: BTreeMap<WorkerKey, Option<Time>>,
    seen: BTreeSet<WorkerKey>,
    stopping: bool,
    urgent: bool,
    exited: Option<u8>,
}

impl World {
    fn perform(&mut self, now: Time, grace: Duration, actions: &[Action], most: u32) {
        for action in actions {
            assert!(self.exited.is_none(), "{action:?} after the end");
            match *action {
                Action::Spawn(to) => {
                    assert!(!self.stopping, "a start while stopping");
                    assert!(self.seen.insert(to.worker), "a key used twice");
                    self.alive.insert(to.worker, None);
                    assert!(
                        self.alive.len() + self.groups.len() <= most as usize,
                        "too many alive"
                    );
                }
                Action::AskLeader(key) => *self.alive.get_mut(&key).unwrap() = Some(now),
                Action::AskGroup(key) => {
                    self.groups.get_mut(&key).unwrap().get_or_insert(now);
                }
                Action::Kill(key) => {
                    let asked = self.alive.get(&key).or_else(|| self.groups.get(&key)).unwrap();
                    let patient = asked.is_some_and(|asked| now >= asked + grace);
                    assert!(self.urgent || patient, "KILL before the grace was over");
                }
                // Only a process stuck in the kernel gets there; this world has them.
                Action::Say(Note::GaveUp { worker, .. }) => {
                    self.alive.remove(&worker);
                    self.groups.remove(&worker);
                }
                Action::Say(_) => {}
                Action::Exit(status) => {
                    assert!(
                        self.alive.is_empty() && self.groups.is_empty(),
                        "an end that leaves processes"
                    );
                    self.exited = Some(status);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_promises_hold_whatever_happens(
        workers in 1u32..9,
        restart in prop::sample::select(vec![Restart::Always, Restart::OnFailure, Restart::Never]),
        history in prop::collection::vec(faults(), 0..200),
        urgent: bool,
        seed: u64,
    ) {
        let policy = Policy { seed, ..policy(restart) };
        let grace = policy.grace;
        let mut fleet = Fleet::new(policy, workers);
        let mut world = World::default();
        let mut now = Time::ZERO;
        // Slots above a lowered target may still be leaving.
        let most = 9 + 12;
        let actions = fleet.step(now, Event::Start);
        world.perform(now, grace, &actions, most);
        for fault in history {
            if world.exited.is_some() { break; }
            let event = match fault {
                Fault::Wait(ms) => { now += Duration::from_millis(u64::from(ms)); Event::Tick }
                Fault::Resize(by) if fleet.target.saturating_add_signed(by) < 12 => Event::ResizeBy(by),
                Fault::Resize(_) => continue,
                Fault::Reload => Event::Reload,
                Fault::End { pick, how, group } => {
                    let all: Vec<_> = world.alive.keys().copied().chain(world.groups.keys().copied()).collect();
                    if all.is_empty() { continue; }
                    let worker = *pick.get(&all);
                    match world.alive.remove(&worker) {
                        None => { world.groups.remove(&worker); Event::GroupGone { worker } }
                        Some(asked) => {
                            if group { world.groups.insert(worker, asked); }
                            let how = if how < 128 { Ended::Code(how % 4) } else { Ended::Signal(9) };
                            Event::Ended { worker, how, group }
                        }
                    }
                }
                Fault::Refuse { pick } => {
                    let fresh: Vec<_> = world.alive.keys().copied().filter(|key| Some(key) == world.seen.last()).collect();
                    if fresh.is_empty() { continue; }
                    let worker = *pick.get(&fresh);
                    if world.alive[&worker].is_some() { continue; }
                    world.alive.remove(&worker);
                    Event::Refused { worker, why: Refusal::Resources }
                }
            };
            let actions = fleet.step(now, event);
            world.perform(now, grace, &actions, most);
            prop_assert!(fleet.is_ending() || fleet.deadline().is_none_or(|at| at > now), "a deadline that has passed");
        }
        // However it went, a stop ends it: nobody obeys, so everybody is killed.
        if world.exited.is_none() {
            world.stopping = true;
            world.urgent = urgent;
            let how = if urgent { Urgency::Now } else { Urgency::Graceful };
            let actions = fleet.step(now, Event::Stop(how));
            world.perform(now, grace, &actions, most);
            now += 2 * grace;
            let actions = fleet.step(now, Event::Tick);
            world.urgent = true;
            world.perform(now, grace, &actions, most);
            let left: Vec<_> = world.alive.keys().copied().collect();
            for worker in left {
                world.alive.remove(&worker);
                let actions = fleet.step(now, Event::Ended { worker, how: Ended::Signal(9), group: false });
                world.perform(now, grace, &actions, most);
            }
            let left: Vec<_> = world.groups.keys().copied().collect();
            for worker in left {
                world.groups.remove(&worker);
                let actions = fleet.step(now, Event::GroupGone { worker });
                world.perform(now, grace, &actions, most);
            }
            prop_assert!(world.exited.is_some(), "a stop that does not end");
        }
    }
}
