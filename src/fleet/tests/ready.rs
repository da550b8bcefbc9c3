//! Readiness, signs of life, and what follows where they do not come.

use super::*;

/// Ready only by saying so, within ten seconds.
fn explicit(lenient: bool) -> Policy {
    let readiness = Readiness { alive: None, timeout: 10 * SECOND, lenient };
    Policy { readiness, ..policy(Restart::Always) }
}

fn told(worker: u64, what: Told) -> Event {
    Event::Told { worker: WorkerKey(worker), what }
}

fn says(actions: &[Action], what: &Note) -> bool {
    actions.contains(&Action::Say(*what))
}

const LATE: Note = Note::Ready { worker: WorkerKey(1), slot: 1, late: true };
const IN_TIME: Note = Note::Ready { worker: WorkerKey(1), slot: 1, late: false };

#[test]
fn who_says_so_is_ready_at_once() {
    let mut bench = Bench::start(explicit(false), 1);
    assert!(!says(&bench.after(9 * SECOND), &IN_TIME));
    assert!(says(&bench.event(told(1, Told::Ready)), &IN_TIME));
    assert_eq!(bench.event(told(1, Told::Ready)), [], "once");
}

#[test]
fn who_does_not_say_so_in_time_has_failed_or_is_taken_for_ready() {
    let mut bench = Bench::start(explicit(true), 1);
    assert!(says(&bench.after(10 * SECOND), &LATE));

    let mut bench = Bench::start(explicit(false), 1);
    let actions = bench.after(10 * SECOND);
    assert!(says(&actions, &Note::NotReady { worker: WorkerKey(1), slot: 1 }));
    assert!(actions.contains(&Action::AskLeader(WorkerKey(1))));
    // It obeys well, and has failed all the same: the only first start, so the run ends.
    assert_eq!(exit_of(&bench.end(1, Ended::Code(0))), Some(1));
}

#[test]
fn a_start_that_asks_for_more_time_gets_it() {
    let mut bench = Bench::start(explicit(false), 1);
    bench.after(9 * SECOND);
    bench.event(told(1, Told::Extend(5 * SECOND)));
    assert_eq!(bench.after(4 * SECOND), []);
    assert!(!bench.after(SECOND).is_empty());
}

#[test]
fn a_stop_that_asks_for_more_time_gets_it_unless_all_stops() {
    let mut bench = Bench::start(policy(Restart::Always), 2);
    bench.after(SECOND);
    bench.event(Event::ResizeBy(-1));
    bench.event(told(2, Told::Extend(20 * SECOND)));
    assert!(!bench.after(19 * SECOND).contains(&Action::Kill(WorkerKey(2))));
    assert!(bench.after(SECOND).contains(&Action::Kill(WorkerKey(2))));

    bench.event(Event::Stop(Urgency::Graceful));
    bench.event(told(1, Told::Extend(20 * SECOND)));
    assert!(bench.after(8 * SECOND).contains(&Action::Kill(WorkerKey(1))));
}

#[test]
fn a_worker_without_signs_of_life_is_aborted_then_killed_and_replaced() {
    let watched = Policy { watchdog: Some(3 * SECOND), ..policy(Restart::Always) };
    let mut bench = Bench::start(watched, 1);
    bench.after(SECOND);
    for _ in 0..4 {
        assert_eq!(bench.after(2 * SECOND), []);
        bench.event(told(1, Told::Ping));
    }
    let actions = bench.after(3 * SECOND);
    assert!(says(&actions, &Note::Hung { worker: WorkerKey(1), slot: 1 }));
    assert!(actions.contains(&Action::AbortLeader(WorkerKey(1))));
    assert!(bench.after(8 * SECOND).contains(&Action::Kill(WorkerKey(1))));
    assert_eq!(spawns(&bench.end(1, Ended::Signal(9))), [(1, 2)], "it had been stable");
}

#[test]
fn a_worker_may_set_how_often_it_shows_that_it_lives() {
    let mut bench = Bench::start(policy(Restart::Always), 1);
    bench.event(told(1, Told::Watchdog(2 * SECOND)));
    assert!(says(&bench.after(SECOND), &IN_TIME), "not before it is ready");
    assert_eq!(bench.after(SECOND), []);
    assert!(bench.after(SECOND).contains(&Action::AbortLeader(WorkerKey(1))));
}

#[test]
fn who_hangs_again_and_again_is_given_up() {
    let mut bench = Bench::start(policy(Restart::OnFailure), 2);
    for key in [1, 3, 4] {
        bench.after(SECOND);
        assert!(bench.event(told(key, Told::Hung)).contains(&Action::AbortLeader(WorkerKey(key))));
        // Status 0 does not make a success of it.
        bench.end(key, Ended::Code(0));
        bench.after(SECOND);
    }
    assert!(says(&bench.log, &Note::SlotFailed { slot: 1, early_ends: 3 }));
}

#[test]
fn who_says_that_it_goes_is_killed_only_after_the_grace() {
    let mut bench = Bench::start(policy(Restart::Always), 1);
    bench.after(6 * SECOND);
    let actions = bench.event(told(1, Told::Stopping));
    assert!(!actions.contains(&Action::AskLeader(WorkerKey(1))), "it knows already");
    assert!(bench.after(8 * SECOND).contains(&Action::Kill(WorkerKey(1))));
    assert_eq!(spawns(&bench.end(1, Ended::Signal(9))), [(1, 2)]);
}

#[test]
fn not_more_start_at_once_than_is_allowed() {
    let few = Policy { parallel: Some(2), ..explicit(false) };
    let mut bench = Bench::start(few, 5);
    assert_eq!(spawns(&bench.log), [(1, 1), (2, 1)]);
    assert_eq!(spawns(&bench.event(told(2, Told::Ready))), [(3, 1)]);
    assert_eq!(
        spawns(&bench.end(1, CRASH)),
        [(4, 1)],
        "who waits for its next start does not start"
    );
    assert_eq!(spawns(&bench.after(SECOND)), [], "and comes after those that are starting");
}

#[test]
fn spawn_is_ready_in_the_next_moment() {
    let readiness = Readiness { alive: Some(Duration::ZERO), timeout: SECOND, lenient: false };
    let mut bench = Bench::start(Policy { readiness, ..policy(Restart::Always) }, 1);
    assert!(!says(&bench.log, &IN_TIME), "it may still be refused");
    let due = bench.fleet.deadline().unwrap();
    assert!(due > bench.now && due < SECOND);
    assert!(says(&bench.after(due), &IN_TIME));
}
