//! The rules one by one, and what holds for any machine.

use proptest::prelude::*;

use super::*;
use crate::probe::Fact;

fn ceiling(limit: u64, used: u64) -> Ceiling {
    let limit = Some(Fact { value: limit, source: String::new() });
    let used_source = None;
    Ceiling { limit, high: None, used, used_source, swap: true, oom_group: None, machine: false }
}

fn quota(cpus: f64) -> Cpus {
    Cpus { quota: Some(cpus), set: None }
}

fn inputs() -> Inputs {
    Inputs {
        ceilings: vec![ceiling(512 * MIB, 0)],
        headroom: None,
        worker_memory: 100 * MIB,
        measured: false,
        shared_once: 0,
        cpus: quota(4.0),
        workers_per_cpu: 1.0,
        rounding: Rounding::Nearest,
        task_room: None,
        tasks_per_worker: 1,
        least: 1,
        most: None,
        explicit: None,
    }
}

#[test]
fn headroom_is_a_tenth_within_bounds_and_more_without_swap() {
    let with = inputs();
    let swaps = ceiling(0, 0);
    assert_eq!(with.headroom(256 * MIB, &swaps), 48 * MIB);
    assert_eq!(with.headroom(1000 * MIB, &swaps), 100 * MIB);
    assert_eq!(with.headroom(100 * GIB, &swaps), GIB);
    let none = Ceiling { swap: false, ..ceiling(0, 0) };
    assert_eq!(with.headroom(1000 * MIB, &none), 150 * MIB);
    let measured = Inputs { measured: true, ..inputs() };
    assert_eq!(measured.headroom(500 * MIB, &none), 50 * MIB);
    assert_eq!(measured.headroom(64 * MIB, &none), 16 * MIB);
    let share = Inputs { headroom: Some(Headroom::Share(0.2)), ..inputs() };
    assert_eq!(share.headroom(1000, &none), 200);
}

#[test]
fn more_is_kept_where_one_kill_takes_all() {
    let together = Ceiling { oom_group: Some("file".to_owned()), ..ceiling(0, 0) };
    assert_eq!(inputs().headroom(1000 * MIB, &together), 150 * MIB);
    let worst = Ceiling { swap: false, ..together.clone() };
    assert_eq!(inputs().headroom(1000 * MIB, &worst), 200 * MIB);
    let told = Inputs { headroom: Some(Headroom::Bytes(7)), ..inputs() };
    assert_eq!(told.headroom(1000 * MIB, &together), 7, "what was told holds");
}

#[test]
fn the_least_resource_binds() {
    let outcome = inputs().size();
    assert_eq!((outcome.workers, outcome.bound_by), (4, Bound::Cpu));
    let outcome = Inputs { cpus: quota(8.0), ..inputs() }.size();
    assert_eq!((outcome.workers, outcome.bound_by), (4, Bound::Memory));
    let outcome = Inputs { task_room: Some(11), ..inputs() }.size();
    assert_eq!((outcome.workers, outcome.bound_by), (3, Bound::Tasks));
    let outcome = Inputs { most: Some(2), ..inputs() }.size();
    assert_eq!((outcome.workers, outcome.bound_by), (2, Bound::MaxWorkers));
    let outcome = Inputs { least: 6, ..inputs() }.size();
    assert_eq!((outcome.workers, outcome.bound_by), (6, Bound::MinWorkers));
    let outcome = Inputs { explicit: Some(9), ..inputs() }.size();
    assert_eq!((outcome.workers, outcome.bound_by), (9, Bound::Explicit));
}

#[test]
fn an_ancestor_with_less_room_binds_before_a_tighter_limit() {
    let used_up = ceiling(GIB, 800 * MIB);
    let outcome = Inputs { ceilings: vec![ceiling(512 * MIB, 0), used_up], ..inputs() }.size();
    assert_eq!(outcome.workers, 1);
    assert_eq!(outcome.memory.map(|room| room.index), Some(1));
}

#[test]
fn throttling_is_a_ceiling_too() {
    let high = Some(Fact { value: 200 * MIB, source: String::new() });
    let throttled = Ceiling { high, ..ceiling(512 * MIB, 0) };
    let room = Inputs { ceilings: vec![throttled], ..inputs() }.size().memory.unwrap();
    assert!(room.by_high);
    assert_eq!(room.budget, 190 * MIB);
}

#[test]
fn fractions_are_rounded_only_at_the_end() {
    for (cpus, nearest, floor, ceil) in
        [(0.01, 1, 1, 1), (1.5, 2, 1, 2), (2.4, 2, 2, 3), (2.6, 3, 2, 3)]
    {
        let by = |rounding| Inputs { cpus: quota(cpus), rounding, ..inputs() }.by_cpu();
        assert_eq!(
            (by(Rounding::Nearest), by(Rounding::Floor), by(Rounding::Ceil)),
            (nearest, floor, ceil)
        );
    }
}

#[test]
fn one_worker_runs_even_where_none_fits() {
    let outcome = Inputs { ceilings: vec![ceiling(4096, 0)], ..inputs() }.size();
    assert_eq!((outcome.workers, outcome.memory.map(|room| room.workers)), (1, Some(0)));
}

#[test]
fn a_limit_at_or_above_the_machine_does_not_bind() {
    let machine = Ceiling { machine: true, ..ceiling(GIB, 0) };
    let index = |limit| {
        let ceilings = vec![ceiling(limit, 900 * MIB), machine.clone()];
        Inputs { ceilings, ..inputs() }.size().memory.map(|room| room.index)
    };
    assert_eq!(index(GIB), Some(1));
    assert_eq!(index(GIB - 1), Some(0));
}

prop_compose! {
    fn any_inputs()(
        limits in proptest::collection::vec((any::<u64>(), any::<u64>(), proptest::option::of(any::<u64>())), 0..4),
        ram in proptest::option::of(any::<u64>()), swap: bool, worker_memory: u64, cpus in 0.0..9000.0f64, per in 0.01..50.0f64,
        room in proptest::option::of(any::<u64>()), tasks_per_worker: u64,
        most in proptest::option::of(1u32..100), least in 1u32..3,
    ) -> Inputs {
        let ceilings = limits.into_iter().map(|(limit, used, high)| Ceiling {
            high: high.map(|value| Fact { value, source: String::new() }),
            swap,
            ..ceiling(limit, used)
        });
        // What a group uses, the machine uses.
        let used = ceilings.clone().map(|ceiling| ceiling.used).max().unwrap_or(0);
        let machine = ram.map(|ram| Ceiling { machine: true, swap, ..ceiling(ram, used) });
        Inputs { ceilings: ceilings.chain(machine).collect(), worker_memory, cpus: quota(cpus), workers_per_cpu: per,
                 task_room: room, tasks_per_worker, most: most.map(|m| m.max(least)), least, ..inputs() }
    }
}

proptest! {
    #[test]
    fn never_none_and_never_above_a_bound(inputs in any_inputs()) {
        let outcome = inputs.size();
        prop_assert!(outcome.workers >= 1 && outcome.workers <= MOST_WORKERS);
        prop_assert!(inputs.most.is_none_or(|most| outcome.workers <= most));
        if outcome.workers > inputs.least.max(1) {
            prop_assert!(outcome.memory.is_none_or(|room| outcome.workers <= room.workers));
            prop_assert!(outcome.by_tasks.is_none_or(|most| outcome.workers <= most));
            prop_assert!(outcome.workers <= outcome.by_cpu);
        }
    }

    #[test]
    fn more_never_gives_fewer(inputs in any_inputs(), extra: u64, cpus in 0.0..100.0f64) {
        let before = inputs.size().workers;
        let mut roomier = inputs;
        for ceiling in &mut roomier.ceilings {
            if let Some(limit) = &mut ceiling.limit {
                limit.value = limit.value.saturating_add(extra);
            }
        }
        roomier.cpus = quota(roomier.cpus.usable() + cpus);
        roomier.task_room = roomier.task_room.map(|room| room.saturating_add(extra));
        prop_assert!(roomier.size().workers >= before);
    }
}
