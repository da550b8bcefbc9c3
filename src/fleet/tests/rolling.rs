//! Rollouts: by request and for age, with the new worker first or the old one.

use super::*;

fn asked(actions: &[Action]) -> Vec<u64> {
    let asked = actions.iter().filter_map(|action| match action {
        Action::AskLeader(key) => Some(key.0),
        _ => None,
    });
    asked.collect()
}

fn serving(workers: u32) -> Bench {
    let mut bench = Bench::start(policy(Restart::Always), workers);
    bench.after(SECOND);
    bench
}

const DONE: Action = Action::Say(Note::RolloutDone { kind: Kind::Reload });

#[test]
fn with_surge_the_new_one_is_ready_before_the_old_one_goes() {
    let mut bench = serving(2);
    let actions = bench.event(renew_all(1));
    assert_eq!((spawns(&actions), asked(&actions)), (vec![(1, 2)], vec![]));
    let actions = bench.after(SECOND);
    assert_eq!((spawns(&actions), asked(&actions)), (vec![], vec![1]), "one more is there still");
    let actions = bench.end(1, Ended::Signal(15));
    assert_eq!(spawns(&actions), [(2, 2)]);
    assert_eq!(asked(&bench.after(SECOND)), [2]);
    assert!(bench.end(2, Ended::Signal(15)).contains(&DONE), "when the last old one has gone");
    assert_eq!(bench.fleet.workers.len(), 2);
}

#[test]
fn a_larger_surge_renews_several_at_once() {
    let mut bench = serving(4);
    assert_eq!(spawns(&bench.event(renew_all(3))), [(1, 2), (2, 2), (3, 2)]);
    assert_eq!(asked(&bench.after(SECOND)), [1, 2, 3]);
    assert_eq!(spawns(&bench.end(2, Ended::Signal(15))), [(4, 2)]);
}

#[test]
fn where_the_new_one_fails_the_old_ones_stay() {
    for how in [CRASH, Ended::Signal(11)] {
        let mut bench = serving(2);
        bench.event(renew_all(1));
        let actions = bench.end(3, how);
        let why = Failure::Ended(how);
        let failed = Note::RolloutFailed { kind: Kind::Reload, slot: 1, why };
        assert!(actions.contains(&Action::Say(failed)));
        assert_eq!((asked(&bench.log), spawns(&actions)), (vec![], vec![]));
        assert_eq!(bench.fleet.workers.len(), 2);
        assert!(spawns(&bench.after(99 * SECOND)).is_empty(), "nothing is tried again");
    }
}

#[test]
fn one_that_cannot_be_started_stops_the_rollout_and_not_the_run() {
    for why in [Refusal::Resources, Refusal::Command { status: 127 }] {
        let mut bench = serving(2);
        bench.event(renew_all(1));
        let actions = bench.event(Event::Refused { worker: WorkerKey(3), why });
        let why = Failure::Refused;
        let failed = Note::RolloutFailed { kind: Kind::Reload, slot: 1, why };
        assert_eq!(actions, [Action::Say(failed)]);
    }
}

#[test]
fn one_that_is_not_ready_in_time_is_stopped_and_the_others_of_its_batch_too() {
    let readiness = Readiness { alive: None, timeout: 10 * SECOND, lenient: false };
    let mut bench = Bench::start(Policy { readiness, ..policy(Restart::Always) }, 2);
    for worker in [1, 2] {
        bench.event(Event::Told { worker: WorkerKey(worker), what: Told::Ready });
    }
    bench.event(renew_all(2));
    bench.event(Event::Told { worker: WorkerKey(4), what: Told::Extend(60 * SECOND) });
    let actions = bench.after(10 * SECOND);
    let failed = Note::RolloutFailed { kind: Kind::Reload, slot: 1, why: Failure::Late };
    assert!(actions.contains(&Action::Say(failed)));
    assert_eq!(asked(&actions), [3, 4]);
    bench.end(3, Ended::Signal(15));
    assert_eq!(spawns(&bench.end(4, Ended::Signal(15))), []);
    assert_eq!(bench.fleet.workers.keys().map(|key| key.0).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn an_old_one_that_ends_meanwhile_makes_room_for_its_successor() {
    let mut bench = serving(2);
    bench.event(renew_all(1));
    assert_eq!(spawns(&bench.end(1, CRASH)), [], "its successor is there already");
    let actions = bench.after(SECOND);
    assert_eq!(spawns(&actions), [(2, 2)]);
    bench.after(SECOND);
    assert!(bench.end(2, Ended::Signal(15)).contains(&DONE));
}

#[test]
fn a_stop_always_wins() {
    let mut bench = serving(2);
    bench.event(renew_all(1));
    let actions = bench.event(Event::Stop(Urgency::Graceful));
    assert!(actions.contains(&Action::Say(Note::RolloutCut { kind: Kind::Reload })));
    assert_eq!(asked(&actions), [1, 2, 3]);
    bench.end(1, Ended::Signal(15));
    bench.end(3, Ended::Signal(15));
    assert_eq!(exit_of(&bench.end(2, Ended::Code(0))), Some(0));
    assert_eq!(bench.event(renew_all(1)), []);
}

#[test]
fn a_second_reload_begins_anew() {
    let mut bench = serving(2);
    bench.event(renew_all(1));
    let actions = bench.event(renew_all(1));
    assert_eq!((asked(&actions), spawns(&actions)), (vec![3], vec![]));
    assert_eq!(spawns(&bench.end(3, Ended::Signal(15))), [(1, 3)]);
}

#[test]
fn who_does_not_serve_need_not_wait_for_its_turn() {
    let mut bench = Bench::start(policy(Restart::Always), 2);
    assert_eq!(asked(&bench.event(renew_all(1))), [1, 2]);
    assert_eq!(spawns(&bench.end(1, Ended::Signal(15))), [(1, 2)]);
    assert_eq!(spawns(&bench.end(2, Ended::Signal(15))), [(2, 2)]);
    assert!(bench.after(SECOND).contains(&DONE));

    let mut bench = serving(2);
    bench.end(1, CRASH);
    assert_eq!(spawns(&bench.event(renew_all(1))), [(1, 2)], "no backoff for a mended command");
    let mut bench = serving(2);
    for key in [1, 3, 4] {
        bench.after(SECOND);
        bench.end(key, CRASH);
        bench.after(SECOND);
    }
    assert!(bench.log.contains(&Action::Say(Note::SlotFailed { slot: 1, early_ends: 3 })));
    assert_eq!(spawns(&bench.event(renew_all(1))), [(1, 4)], "nor for what was given up");
}

#[test]
fn one_worker_is_restarted_alone() {
    let restart = |slot| Event::Renew { kind: Kind::Restart, slot: Some(slot), surge: 1 };
    let mut bench = serving(3);
    assert_eq!(spawns(&bench.event(restart(2))), [(2, 2)]);
    assert_eq!(bench.event(restart(2)), [], "it is new already");
    bench.event(restart(3));
    assert_eq!(asked(&bench.after(SECOND)), [2]);
    assert_eq!(spawns(&bench.end(2, Ended::Signal(15))), [(3, 2)], "one after the other");
    assert_eq!(bench.event(restart(9)), []);
}

#[test]
fn the_old_are_renewed_one_at_a_time_and_not_during_a_reload() {
    let aging = Policy { max_age: Some(100 * SECOND), ..policy(Restart::Always) };
    let mut bench = Bench::start(aging, 3);
    bench.after(SECOND);
    let due = bench.fleet.deadline().unwrap();
    assert!(due >= 91 * SECOND && due <= 101 * SECOND, "{due:?}");
    let aged = |actions: &[Action]| -> Vec<u32> {
        let slots = actions.iter().filter_map(|action| match action {
            Action::Aged { slot } => Some(*slot),
            _ => None,
        });
        slots.collect()
    };
    let first = aged(&bench.after(105 * SECOND));
    assert_eq!(first.len(), 1, "all are due");
    let renew = |slot| Event::Renew { kind: Kind::Aged, slot: Some(slot), surge: 0 };
    let actions = bench.event(renew(first[0]));
    assert_eq!((asked(&actions), aged(&actions)), (vec![u64::from(first[0])], vec![]));
    assert!(aged(&bench.end(u64::from(first[0]), Ended::Signal(15))).is_empty());
    let next = aged(&bench.after(SECOND));
    assert_eq!(next.len(), 1, "when the first has been renewed");
    bench.event(RELOAD);
    assert_eq!(bench.event(renew(next[0])), []);
}

#[test]
fn a_slot_that_is_given_up_for_a_smaller_size_is_renewed_no_more() {
    let mut bench = serving(2);
    bench.event(renew_all(1));
    bench.after(SECOND);
    bench.end(1, Ended::Signal(15));
    let actions = bench.event(Event::ResizeTo(1));
    assert_eq!(asked(&actions), [4, 2], "the new one and the old one");
    assert!(bench.end(2, Ended::Signal(15)).contains(&DONE));
    bench.end(4, Ended::Signal(15));
    assert_eq!(bench.fleet.slots.len(), 1);
}

#[test]
fn what_was_saved_goes_on_where_it_stood() {
    let mut bench = serving(2);
    bench.event(renew_all(1));
    let text = serde_json::to_string(&bench.fleet.save()).unwrap();
    bench.fleet = Fleet::restore(
        policy(Restart::Always),
        Bounds::of(2),
        serde_json::from_str(&text).unwrap(),
    );
    assert_eq!(asked(&bench.after(SECOND)), [1]);
    assert_eq!(spawns(&bench.end(1, Ended::Signal(15))), [(2, 2)]);
}

#[test]
fn who_serves_is_drained_before_it_gets_the_signal() {
    let mut bench = Bench::start(Policy { drains: true, ..policy(Restart::Always) }, 2);
    bench.after(2 * SECOND);
    let actions = bench.event(Event::ResizeTo(1));
    assert!(actions.contains(&Action::Drain(WorkerKey(2))), "{actions:?}");
    assert!(!actions.contains(&Action::AskLeader(WorkerKey(2))));
    let drained = Event::Told { worker: WorkerKey(2), what: Told::Drained };
    assert_eq!(bench.event(drained.clone()), [Action::AskLeader(WorkerKey(2))]);
    assert_eq!(bench.event(drained), []);
    bench.end(2, Ended::Code(0));
    // Who does not finish gets the signal at three quarters of its grace, and is killed at its end.
    bench.event(Event::Stop(Urgency::Graceful));
    assert_eq!(bench.after(5 * SECOND), []);
    assert_eq!(bench.after(SECOND), [Action::AskLeader(WorkerKey(1))]);
    assert!(bench.after(2 * SECOND).contains(&Action::Kill(WorkerKey(1))));
}

#[test]
fn who_does_not_serve_yet_has_nothing_to_finish() {
    let mut bench = Bench::start(Policy { drains: true, ..policy(Restart::Always) }, 1);
    let actions = bench.event(Event::Stop(Urgency::Graceful));
    assert!(actions.contains(&Action::AskLeader(WorkerKey(1))), "{actions:?}");
}

#[test]
fn the_room_of_a_slot_that_is_done_stays_free() {
    let mut bench = Bench::start(policy(Restart::OnFailure), 3);
    bench.after(SECOND);
    bench.end(3, Ended::Code(0));
    assert_eq!(spawns(&bench.event(renew_all(1))), [(1, 2)]);
    let actions = bench.after(SECOND);
    assert_eq!((spawns(&actions), asked(&actions)), (vec![], vec![1]), "one has to go first");
}
