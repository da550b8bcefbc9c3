//! The rules one by one; `histories` has them all at once under random events in virtual time.

mod adapting;
mod faults;
mod following;
mod histories;
mod pressure;
mod ready;
mod rolling;
mod simulator;
mod trying;
mod visions;

use std::time::Duration;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy(restart: Restart) -> Policy {
    Policy {
        restart,
        max_restarts: 3,
        grace: 8 * SECOND,
        drains: false,
        readiness: Readiness { alive: Some(SECOND), timeout: 30 * SECOND, lenient: true },
        watchdog: None,
        max_age: None,
        parallel: None,
        adapt: Adapt::Auto,
        guard: true,
        most_memory: MostMemory::Off,
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
        let mut bench = Self {
            fleet: Fleet::new(policy, Bounds::of(workers)),
            now: Time::ZERO,
            log: Vec::new(),
        };
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

/// Of all workers, the old ones first.
const RELOAD: Event = renew_all(0);

const fn renew_all(surge: u32) -> Event {
    Event::Renew { kind: Kind::Reload, slot: None, surge }
}

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
    // `timeout` says it twice in a breath.
    assert!(bench.event(Event::Stop(Urgency::Graceful)).is_empty());
    bench.after(SAME_STOP);
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
    assert!(bench.event(RELOAD).contains(&Action::AskLeader(WorkerKey(1))));
    assert_eq!(spawns(&bench.end(1, Ended::Signal(15))), [(1, 2)]);
    assert!(bench.after(SECOND).contains(&Action::AskLeader(WorkerKey(2))), "the first is ready");
    bench.end(2, Ended::Signal(15));
    assert!(bench.after(SECOND).contains(&Action::Say(Note::RolloutDone { kind: Kind::Reload })));

    bench.event(RELOAD);
    bench.end(3, Ended::Signal(15));
    assert!(bench.end(5, CRASH).contains(&Action::Say(Note::RolloutFailed {
        kind: Kind::Reload,
        slot: 1,
        why: Failure::Ended(CRASH)
    })));
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
