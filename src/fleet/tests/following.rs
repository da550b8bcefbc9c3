//! The number of workers, while what there is changes.

use super::super::follow::LASTS;
use super::adapting::{WAITING, adapting};
use super::simulator::{Limits, MIB, Sim, bounds};
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

/// What the plan says of a box of so much memory.
fn of(mib: u64, workers: u32, by_cpu: u32) -> Bounds {
    Bounds { budget: Some(mib / 10 * 8 * MIB), limit: Some(mib * MIB), ..bounds(workers, by_cpu) }
}

/// Two minutes of load in a box of 512 MiB.
fn grown(adapt: Adapt, planned: u32, by_cpu: u32, clients: f64) -> Sim {
    let limits = Limits { cpus: f64::from(by_cpu), memory: 512 * MIB, base: 14.0 };
    let mut sim =
        Sim::new(WAITING, limits, of(512, planned, by_cpu), adapting(adapt), move |_| clients);
    sim.run(Duration::from_mins(2));
    sim
}

fn lower(sim: &mut Sim, mib: u64, workers: u32, by_cpu: u32) {
    sim.limits.memory = mib * MIB;
    sim.event(Event::Planned { bounds: of(mib, workers, by_cpu), at_once: false });
}

#[test]
fn a_lower_limit_leaves_what_was_measured_to_fit() {
    let mut sim = grown(Adapt::On, 2, 2, 40.0);
    let (before, changes) = (sim.workers(), sim.changes.len());
    assert!(before > 20, "{:?}", sim.changes);
    lower(&mut sim, 511, 1, 2);
    assert_eq!((sim.workers(), sim.changes.len()), (before, changes));
    lower(&mut sim, 460, 1, 2);
    let after = sim.workers();
    assert!((before - 5..before).contains(&after), "at once: {before} {after}");
    let Some((_, Note::Adapted { why: Why::Cost { .. }, .. })) = sim.changes.last() else {
        panic!("{:?}", sim.changes);
    };
    sim.run(Duration::from_mins(1));
    assert!(sim.workers() >= after && sim.killed.is_none(), "{:?}", sim.changes);
}

#[test]
fn who_keeps_to_the_cpu_rule_keeps_what_was_measured_below_it() {
    let mut sim = grown(Adapt::Auto, 2, 4, 20.0);
    assert_eq!(sim.workers(), 4, "{:?}", sim.changes);
    lower(&mut sim, 500, 1, 4);
    assert_eq!(sim.workers(), 4, "{:?}", sim.changes);
    lower(&mut sim, 500, 1, 3);
    assert_eq!(sim.workers(), 3, "{:?}", sim.changes);
    let mut sim = grown(Adapt::On, 4, 4, 0.0);
    lower(&mut sim, 500, 4, 3);
    assert_eq!(sim.workers(), 4, "the plan says so");
    lower(&mut sim, 500, 2, 2);
    assert_eq!(sim.workers(), 2);
}

#[test]
fn where_nothing_was_measured_a_lower_limit_is_heeded_as_planned() {
    for adapt in [Adapt::Auto, Adapt::On] {
        let mut sim = grown(adapt, 4, 4, 0.0);
        lower(&mut sim, 500, 3, 4);
        assert_eq!(sim.workers(), 3, "{:?}", sim.changes);
    }
    // Where a cost was told, the plan's number is the most.
    let mut sim = grown(Adapt::On, 4, 4, 2.0);
    let told = Bounds { most: 3, ..of(500, 3, 4) };
    sim.event(Event::Planned { bounds: told, at_once: false });
    assert_eq!(sim.workers(), 3, "{:?}", sim.changes);
}
