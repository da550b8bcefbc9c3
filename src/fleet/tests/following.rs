//! The number of workers, while what there is changes.

use super::super::follow::LASTS;
use super::*;

fn planned(workers: u32) -> Event {
    Event::Planned { bounds: Bounds::of(workers), at_once: false }
}

fn fleet(workers: u32) -> Bench {
    let mut bench = Bench::start(policy(Restart::Always), workers);
    bench.after(2 * SECOND);
    bench
}

#[test]
fn less_room_is_heeded_at_once_and_more_when_it_lasts() {
    let mut bench = fleet(4);
    bench.event(planned(2));
    assert_eq!(bench.fleet.target(), 2);
    bench.event(planned(4));
    assert_eq!(bench.fleet.target(), 2);
    // A look that finds the same does not put it off.
    bench.after(LASTS / 2);
    bench.event(planned(4));
    bench.after(LASTS / 2);
    assert_eq!(bench.fleet.target(), 4);
}

#[test]
fn room_that_goes_again_was_none() {
    let mut bench = fleet(2);
    bench.event(planned(5));
    bench.after(LASTS / 2);
    bench.event(planned(2));
    bench.after(LASTS);
    assert_eq!(bench.fleet.target(), 2);
    // Less of more has to last anew.
    bench.event(planned(5));
    bench.after(LASTS / 2);
    bench.event(planned(4));
    bench.after(LASTS / 2);
    assert_eq!(bench.fleet.target(), 2);
    bench.after(LASTS / 2);
    assert_eq!(bench.fleet.target(), 4);
}

#[test]
fn a_number_that_somebody_said_stays_until_he_takes_it_back() {
    let mut bench = fleet(4);
    bench.event(Event::ResizeTo(3));
    for workers in [1, 8] {
        bench.event(planned(workers));
        bench.after(2 * LASTS);
        assert_eq!(bench.fleet.target(), 3);
    }
    bench.event(Event::Free);
    assert_eq!(bench.fleet.target(), 8);
    // By signals, too.
    bench.event(Event::ResizeBy(1));
    bench.event(planned(2));
    assert_eq!(bench.fleet.target(), 9);
}

#[test]
fn bounds_hold_for_the_plan_too() {
    let mut bench = Bench::start(Policy { least: 2, most: 5, ..policy(Restart::Always) }, 3);
    bench.event(planned(1));
    assert_eq!(bench.fleet.target(), 2);
    bench.event(Event::Planned { bounds: Bounds::of(9), at_once: true });
    assert_eq!(bench.fleet.target(), 5);
}
