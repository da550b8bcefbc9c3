//! Steps up that do not help, and workers that cannot serve beside the others.

use super::adapting::{ONLY_WAITING, WAITING, adapting, limits, up};
use super::simulator::{Server, Sim, bounds};
use super::*;

#[test]
fn who_hangs_is_given_company_once_and_then_seldom() {
    let hung = Server { hangs: true, ..ONLY_WAITING };
    let mut sim = Sim::new(hung, limits(2.0, 1024), bounds(1, 2), adapting(Adapt::On), |_| 900.0);
    sim.run(Duration::from_mins(1));
    let ups = |sim: &Sim| sim.changes.iter().filter(|(_, note)| up(note)).count();
    assert_eq!((ups(&sim), sim.workers()), (1, 1), "{:?}", sim.changes);
    let Some((_, Note::Adapted { from: 3, to: 1, why: Why::NoHelp })) = sim.changes.last() else {
        panic!("{:?}", sim.changes);
    };
    sim.run(Duration::from_hours(1));
    assert!(ups(&sim) <= 7 && sim.workers() <= 3, "{:?}", sim.changes);
}

#[test]
fn who_cannot_start_beside_the_others_is_taken_back_and_not_missed() {
    for (adapt, places) in [(Adapt::Auto, 1), (Adapt::On, 1), (Adapt::On, 4)] {
        let mut sim = Sim::new(WAITING, limits(4.0, 512), bounds(1, 2), adapting(adapt), |_| 20.0);
        sim.places = places;
        let (mut steps, mut ready) = (0, false);
        while steps < 3 {
            sim.run(SECOND / 10);
            // The first start is a start like any other.
            let view = sim.bench.fleet.view(sim.bench.now);
            ready |= view.is_ready();
            assert!(view.is_ready() || !ready, "{adapt:?} {places}: {view:?}");
            let failed =
                |note: &Note| matches!(note, Note::Adapted { why: Why::CannotStart { .. }, .. });
            steps = sim.changes.iter().filter(|(_, note)| failed(note)).count();
            assert!(sim.bench.now < Duration::from_mins(15), "{:?}", sim.changes);
        }
        let at = |index: usize| sim.changes[index].0;
        let last = sim.changes.len() - 1;
        assert!(at(last) >= at(last - 2) + Duration::from_mins(2), "{:?}", sim.changes);
        assert!(at(last) < at(last - 1) + SECOND, "at once: {:?}", sim.changes);
        assert_eq!(sim.workers() as usize, if places == 1 { 1 } else { 3 }, "{:?}", sim.changes);
    }
}

#[test]
fn who_was_tried_and_has_served_is_one_like_the_others() {
    let mut sim =
        Sim::new(WAITING, limits(4.0, 512), bounds(1, 2), adapting(Adapt::Auto), |_| 20.0);
    sim.run(Duration::from_mins(2));
    assert_eq!(sim.workers(), 2, "{:?}", sim.changes);
    let view = sim.bench.fleet.view(sim.bench.now);
    assert_eq!(view.needed, 2);
    sim.places = 1;
    sim.event(Event::Ended { worker: view.workers[1].key, how: CRASH, group: false });
    sim.run(10 * SECOND);
    assert_eq!(sim.workers(), 2, "it was there for long: it is tried again");
    assert!(!sim.bench.fleet.view(sim.bench.now).is_ready());
}
