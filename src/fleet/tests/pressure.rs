//! What counts as pressure of the box, and how much of it stays free.

use super::simulator::{MIB, bounds};
use super::*;

/// Four workers that do nothing, in a box of 512 MiB that is nearly full.
fn full() -> Bench {
    let mut bench = Bench {
        fleet: Fleet::new(policy(Restart::Always), bounds(4, 4)),
        now: Time::ZERO,
        log: Vec::new(),
    };
    bench.event(Event::Start);
    bench.after(2 * SECOND);
    bench
}

/// Ten looks at it.
fn look(bench: &mut Bench, memory: Memory) -> u32 {
    let worker = |key| Measured {
        worker: WorkerKey(key),
        private: memory.used / 5,
        peak: memory.used / 5,
        shared: 0,
        cpu: 0.0,
        busiest: 0.0,
        delayed: 0.0,
        active: None,
    };
    for _ in 0..10 {
        once(bench, memory, (1..=4).map(worker).collect());
    }
    bench.fleet.target()
}

fn once(bench: &mut Bench, memory: Memory, workers: Vec<Measured>) {
    let sample = Sample { span: SECOND, memory: Some(memory), workers, ..Sample::default() };
    bench.now += SECOND;
    bench.event(Event::Measured(Box::new(sample)));
}

#[test]
fn what_fills_a_box_and_cannot_be_dropped_takes_workers_though_it_is_no_ones_own() {
    let idle = |shmem: u64| {
        let mut bench = full();
        let memory =
            Memory { limit: 512 * MIB, used: 500 * MIB, shmem: shmem * MIB, ..Memory::default() };
        for _ in 0..10 {
            once(&mut bench, memory, Vec::new());
        }
        bench.fleet.target()
    };
    assert_eq!(idle(0), 4, "page cache harms nobody");
    assert!(idle(400) < 4);
}

#[test]
fn pressure_that_is_over_takes_nobody() {
    let stalled =
        Memory { limit: 512 * MIB, used: 480 * MIB, stalled: Some(0.6), ..Memory::default() };
    let over = Memory { used: 200 * MIB, stalled: Some(0.0), ..stalled };
    let mut bench = full();
    // Meanwhile somebody is on his way out.
    bench.fleet.learnt.last_cut = Some(bench.now + SECOND / 2);
    for memory in [stalled, stalled, over] {
        once(&mut bench, memory, Vec::new());
    }
    assert_eq!(bench.fleet.target(), 4);
}

#[test]
fn a_number_that_was_told_gives_way_to_pressure_only_on_the_brink() {
    let told = |used: u64| {
        let mut bench = full();
        bench.fleet.learnt.bounds.told = true;
        let memory =
            Memory { limit: 512 * MIB, used: used * MIB, stalled: Some(0.6), ..Memory::default() };
        look(&mut bench, memory)
    };
    assert_eq!(told(480), 4);
    assert!(told(500) < 4);
}

#[test]
fn who_stands_still_at_a_limit_of_its_own_is_no_pressure_of_the_box() {
    let stalled =
        Memory { limit: 512 * MIB, used: 450 * MIB, stalled: Some(0.6), ..Memory::default() };
    assert!(look(&mut full(), stalled) < 4);
    let apart = Memory { divided: true, ..stalled };
    assert_eq!(look(&mut full(), apart), 4);
    assert!(look(&mut full(), Memory { hits: 1, ..apart }) < 4, "the box was hit itself");
}

#[test]
fn of_a_large_machine_no_more_than_a_gibibyte_stays_free() {
    let used = |mib: u64| Memory { limit: 65536 * MIB, used: mib * MIB, ..Memory::default() };
    assert_eq!(look(&mut full(), used(65536 - 1100)), 4);
    assert!(look(&mut full(), used(65536 - 1000)) < 4);
    let small = |mib: u64| Memory { limit: 512 * MIB, used: mib * MIB, ..Memory::default() };
    assert_eq!(look(&mut full(), small(460)), 4);
    assert!(look(&mut full(), small(462)) < 4);
}
