//! The controller in a simulated box: where it settles, how soon, and with how many changes.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a model"
)]

use proptest::prelude::*;

use super::simulator::{Limits, MIB, SERVER, Server, Sim, bounds};
use super::*;

/// As the program has it behind its proxy, with the number free to move.
pub(super) fn adapting(adapt: Adapt) -> Policy {
    let readiness = Readiness { alive: None, timeout: 30 * SECOND, lenient: true };
    Policy { adapt, readiness, max_restarts: 10, seed: 7, ..policy(Restart::Always) }
}

pub(super) fn limits(cpus: f64, mib: u64) -> Limits {
    Limits { cpus, memory: mib * MIB, base: 14.0 }
}

/// The load of the sizing benchmark: nobody, and then many.
fn bench(server: Server, limits: Limits, planned: u32) -> (Sim, u32, f64) {
    let clients = |seconds: f64| if seconds < 12.0 { 0.0 } else { 40.0 };
    let by_cpu = limits.cpus.round().max(1.0) as u32;
    let mut sim = Sim::new(server, limits, bounds(planned, by_cpu), adapting(Adapt::On), clients);
    sim.run(42 * SECOND);
    let rate = sim.run(10 * SECOND);
    let (best, most) = sim.best(40.0);
    (sim, best, 1.0 - rate / most)
}

/// When the number came within a tenth of where it stayed.
fn settled(sim: &Sim) -> f64 {
    let last = f64::from(sim.workers());
    let far = |note: &Note| match note {
        Note::Adapted { from, .. } => (f64::from(*from) - last).abs() > last / 10.0,
        _ => false,
    };
    let change = sim.changes.iter().rev().find(|(_, note)| far(note));
    change.map_or(12.0, |(at, _)| at.as_secs_f64())
}

pub(super) const WAITING: Server = Server { cpu: 0.004, wait: 0.096, ..SERVER };
pub(super) const ONLY_WAITING: Server =
    Server { cpu: 0.001, wait: 0.1, idle: 7.0, warm: 1.0, ..SERVER };
const MIXED: Server = Server { cpu: 0.02, wait: 0.02, ..SERVER };
const LOOP: Server = Server {
    cpu: 0.002,
    wait: 0.02,
    event_loop: true,
    idle: 25.0,
    warm: 15.0,
    start: 0.3,
    ..SERVER
};
const HUNGRY: Server = Server { cpu: 0.05, wait: 0.05, request: 40.0, ..SERVER };

#[test]
fn under_load_it_comes_near_the_best_number_within_half_a_minute() {
    let servers = [
        ("cpu-bound", SERVER),
        ("waiting", WAITING),
        ("waits only", ONLY_WAITING),
        ("mixed", MIXED),
        ("event loop", LOOP),
        ("hungry", HUNGRY),
    ];
    let boxes = [limits(0.5, 256), limits(1.0, 256), limits(1.5, 512), limits(1.25, 1024)];
    let mut all = Vec::new();
    for (name, server) in servers {
        for limits in boxes {
            let (sim, best, regret) = bench(server, limits, 1);
            let settled = settled(&sim) - 12.0;
            println!(
                "{name:10} {:>4} CPUs {:>4} MiB: {:>2} workers, best {best:>2}, regret {regret:>6.3}, settled after {settled:>4.1} s by {} changes",
                limits.cpus,
                limits.memory / MIB,
                sim.workers(),
                sim.changes.len()
            );
            assert_eq!(sim.killed, None, "{name} {limits:?}");
            assert!(regret <= 0.25, "{name} {limits:?}: {regret}");
            assert!(
                settled <= 25.0 && sim.changes.len() <= 8,
                "{name} {limits:?}: {:?}",
                sim.changes
            );
            all.push(regret);
        }
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    println!("mean regret {mean:.3}");
    assert!(mean <= 0.1, "{mean}");
}

type Load = fn(f64) -> f64;

/// Steps, a day in an hour, bursts: each as the number of clients at a second.
fn loads() -> Vec<(&'static str, Load)> {
    vec![
        ("steps", |seconds| [0.0, 5.0, 40.0, 5.0, 60.0, 0.0][(seconds / 500.0) as usize % 6]),
        ("a day", |seconds| {
            (30.0 - 30.0 * (seconds / 3600.0 * std::f64::consts::TAU).cos()).round()
        }),
        ("bursts", |seconds| if seconds % 300.0 < 20.0 { 50.0 } else { 1.0 }),
        ("flicker", |seconds| if seconds % 6.0 < 3.0 { 30.0 } else { 0.0 }),
        ("sawtooth", |seconds| seconds % 900.0 / 15.0),
    ]
}

#[test]
fn loads_that_come_and_go_cost_few_changes() {
    for (name, clients) in loads() {
        for server in [SERVER, WAITING, MIXED, LOOP] {
            let limits = limits(1.5, 512);
            let mut sim = Sim::new(server, limits, bounds(1, 2), adapting(Adapt::On), clients);
            sim.run(Duration::from_hours(1));
            let changes = sim.changes.len();
            println!(
                "{name:9} {:>5} ms of CPU: {changes:>3} changes in an hour, {:>2} workers at the end",
                server.cpu * 1000.0,
                sim.workers()
            );
            assert_eq!(sim.killed, None, "{name}");
            assert!(changes <= 40, "{name}: {changes} {:?}", sim.changes);
        }
    }
}

#[test]
fn an_idle_fleet_stays_as_planned() {
    for adapt in [Adapt::Auto, Adapt::On] {
        let mut sim = Sim::new(SERVER, limits(4.0, 512), bounds(2, 4), adapting(adapt), |_| 0.0);
        sim.run(Duration::from_hours(1));
        assert_eq!((sim.workers(), sim.changes.len()), (2, 0));
    }
}

#[test]
fn a_measured_cost_lets_auto_grow_to_the_cpu_rule_and_no_further() {
    let mut sim = Sim::new(SERVER, limits(4.0, 512), bounds(2, 4), adapting(Adapt::Auto), |_| 2.0);
    sim.run(Duration::from_mins(2));
    assert_eq!(sim.workers(), 4, "{:?}", sim.changes);
    let mut sim =
        Sim::new(WAITING, limits(4.0, 512), bounds(2, 4), adapting(Adapt::Auto), |_| 50.0);
    sim.run(Duration::from_mins(10));
    assert_eq!(sim.workers(), 4, "{:?}", sim.changes);
    let mut sim = Sim::new(SERVER, limits(4.0, 512), bounds(2, 4), adapting(Adapt::Off), |_| 50.0);
    sim.run(Duration::from_mins(10));
    assert_eq!(sim.workers(), 2);
}

#[test]
fn a_few_requests_are_not_enough_to_grow_by_unless_that_was_asked_for() {
    // A fifth of a CPU each, and three fifths: none of it hurries.
    let light = Server { cpu: 0.02, wait: 0.08, ..SERVER };
    let heavy = Server { cpu: 0.06, wait: 0.04, ..SERVER };
    let first = |server: Server, adapt: Adapt| {
        let mut sim = Sim::new(server, limits(4.0, 512), bounds(2, 4), adapting(adapt), |_| 2.0);
        sim.run(Duration::from_mins(2));
        sim.changes.first().unwrap().0.as_secs()
    };
    let times = [(light, Adapt::Auto), (heavy, Adapt::Auto), (light, Adapt::On)]
        .map(|(server, adapt)| first(server, adapt));
    assert!((30..=45).contains(&times[0]), "{times:?}");
    assert!((10..=20).contains(&times[1]), "{times:?}");
    assert!((5..=15).contains(&times[2]), "{times:?}");
}

#[test]
fn what_workers_take_holds_the_number_where_the_plan_believed_too_little() {
    // Planned for workers of 100 MiB, which take 200.
    let large = Server { idle: 60.0, warm: 140.0, requests: 200.0, ..WAITING };
    for adapt in [Adapt::Auto, Adapt::On] {
        let mut sim = Sim::new(large, limits(4.0, 512), bounds(4, 4), adapting(adapt), |_| 20.0);
        sim.run(Duration::from_mins(10));
        assert_eq!(sim.killed, None, "{:?}", sim.changes);
        assert_eq!(sim.workers(), 2, "{:?}", sim.changes);
        assert!(sim.changes.len() <= 12, "{:?}", sim.changes);
    }
}

#[test]
fn a_leaking_worker_is_replaced_before_the_kernel_kills_and_somebody_serves_all_the_time() {
    let leaking = Server { leak: 5.0, ..WAITING };
    for (planned, adapt) in
        [(1, Adapt::Off), (1, Adapt::Auto), (2, Adapt::Off), (2, Adapt::Auto), (1, Adapt::On)]
    {
        let policy = Policy { drains: true, ..adapting(adapt) };
        let mut sim =
            Sim::new(leaking, limits(1.0, 256), bounds(planned, planned), policy, |_| 4.0);
        sim.run(5 * SECOND);
        sim.unserved = 0.0;
        sim.run(Duration::from_mins(10));
        println!(
            "{planned} leaking, {adapt:?}: {} recycled, {} changes, {} workers",
            sim.recycled,
            sim.changes.len(),
            sim.workers()
        );
        assert_eq!(sim.killed, None, "{planned} {adapt:?}: {:?}", sim.changes);
        assert!(sim.unserved == 0.0, "{planned} {adapt:?}: {} s without", sim.unserved);
        assert!(sim.recycled >= 10 && sim.changes.len() <= 8, "{:?}", sim.changes);
    }
}

#[test]
fn without_the_guard_nobody_is_replaced() {
    let leaking = Server { leak: 5.0, ..WAITING };
    let policy = Policy { guard: false, ..adapting(Adapt::Off) };
    let mut sim = Sim::new(leaking, limits(1.0, 256), bounds(1, 1), policy, |_| 4.0);
    sim.run(Duration::from_mins(10));
    assert!(sim.killed.is_some() && sim.recycled == 0);
}

#[test]
fn who_has_more_than_it_may_is_replaced_and_not_too_often() {
    let leaking = Server { leak: 0.5, ..WAITING };
    let policy = Policy { most_memory: MostMemory::Size(40 * MIB), ..adapting(Adapt::Off) };
    let mut sim = Sim::new(leaking, limits(1.0, 2048), bounds(3, 3), policy, |_| 4.0);
    sim.run(Duration::from_mins(30));
    // From 15 to 40 MiB takes 50 seconds.
    assert!((60..=120).contains(&sim.recycled), "{}", sim.recycled);
    let large = Server { idle: 50.0, ..WAITING };
    let mut sim = Sim::new(large, limits(1.0, 2048), bounds(3, 3), policy_of(40), |_| 4.0);
    sim.run(Duration::from_mins(30));
    assert!(sim.recycled <= 180, "it is the size that is wrong: {}", sim.recycled);
}

fn policy_of(mib: u64) -> Policy {
    Policy { most_memory: MostMemory::Size(mib * MIB), ..adapting(Adapt::Off) }
}

#[test]
fn a_number_that_was_told_gives_way_only_on_the_brink_and_comes_back() {
    // Four take 64 MiB each, and for a minute a neighbour takes 60 more.
    let server = Server { idle: 40.0, warm: 3.0, ..WAITING };
    let told = Bounds { told: true, ..bounds(4, 4) };
    let mut sim = Sim::new(server, limits(1.0, 256), told, adapting(Adapt::Auto), |_| 4.0);
    sim.run(Duration::from_mins(2));
    assert_eq!((sim.workers(), sim.changes.len()), (4, 0));
    sim.limits.base = 75.0;
    sim.run(Duration::from_mins(1));
    assert_eq!(sim.workers(), 3, "{:?}", sim.changes);
    sim.limits.base = 14.0;
    sim.run(Duration::from_mins(3));
    assert_eq!(sim.workers(), 4, "{:?}", sim.changes);
    assert_eq!(sim.killed, None);
}

/// Any server that fits at least as often as was planned, and does not grow without an end.
fn servers() -> impl Strategy<Value = Server> {
    let times = (1u32..100, 0u32..200, any::<bool>());
    let sizes = (5u32..60, 0u32..40, 0u32..60, 20u32..400);
    (times, sizes, 5u32..50).prop_map(
        |((cpu, wait, event_loop), (idle, warm, request, requests), start)| Server {
            cpu: f64::from(cpu) / 1000.0,
            wait: f64::from(wait) / 1000.0,
            event_loop,
            idle: f64::from(idle),
            warm: f64::from(warm),
            requests: f64::from(requests),
            request: if event_loop { 0.0 } else { f64::from(request) },
            leak: 0.0,
            start: f64::from(start) / 100.0,
            hangs: false,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn under_any_load_it_is_never_killed_and_never_swings(
        server in servers(),
        cpus in 0.25..4.0f64,
        mib in 160u64..1500,
        loads in prop::collection::vec((0u32..60, 5u32..120), 12),
        adapt in prop::sample::select(vec![Adapt::Auto, Adapt::On]),
        seed: u64,
    ) {
        let limits = limits(cpus, mib);
        let full = server.idle + server.warm + server.request;
        let (fit, by_cpu) = (((mib as f64 * 0.8 - limits.base) / full) as u32, cpus.round().max(1.0) as u32);
        prop_assume!(fit >= 1);
        let planned = by_cpu.min(fit).min(1 + (seed % 3) as u32);
        let total: u32 = loads.iter().map(|(_, seconds)| seconds).sum();
        let clients = move |now: f64| {
            let mut left = now % f64::from(total);
            for (clients, seconds) in &loads {
                left -= f64::from(*seconds);
                if left < 0.0 {
                    return f64::from(*clients);
                }
            }
            0.0
        };
        let policy = Policy { seed, drains: seed % 2 == 0, ..adapting(adapt) };
        let mut sim = Sim::new(server, limits, bounds(planned, by_cpu), policy, clients);
        sim.run(Duration::from_mins(20));
        prop_assert_eq!(sim.killed, None, "{:?}", sim.changes);
        // One down for each minute of idleness, and steps up.
        prop_assert!(sim.changes.len() <= 30, "{:?}", sim.changes);
        let turns = sim.changes.windows(2).filter(|pair| up(&pair[0].1) != up(&pair[1].1)).count();
        prop_assert!(turns <= 12, "{turns} {:?}", sim.changes);
    }
}

pub(super) fn up(note: &Note) -> bool {
    matches!(note, Note::Adapted { from, to, .. } if to > from)
}

#[test]
fn what_was_learnt_outlives_an_upgrade() {
    let clients = |seconds: f64| if seconds < 40.0 { 40.0 } else { 0.0 };
    let mut sim = Sim::new(WAITING, limits(1.0, 512), bounds(1, 1), adapting(Adapt::On), clients);
    sim.run(50 * SECOND);
    let workers = sim.workers();
    assert!(workers > 10, "{:?}", sim.changes);
    let before = sim.bench.fleet.view(sim.bench.now).change;
    let saved = serde_json::to_string(&sim.bench.fleet.save()).unwrap();
    let saved = serde_json::from_str(&saved).unwrap();
    sim.bench.fleet = Fleet::restore(adapting(Adapt::On), bounds(1, 1), saved);
    sim.run(60 * SECOND);
    assert_eq!(sim.workers(), workers, "nothing is forgotten: {:?}", sim.changes);
    assert_eq!(sim.bench.fleet.view(sim.bench.now).change, before);
    sim.run(Duration::from_mins(30));
    assert_eq!(sim.workers(), 1, "and what was to come comes: {:?}", sim.changes);
}

#[test]
fn a_program_that_learnt_nothing_can_be_gone_on_with() {
    let bench = Bench::start(policy(Restart::Always), 3);
    let mut saved = serde_json::to_value(bench.fleet.save()).unwrap();
    saved.as_object_mut().unwrap().remove("learnt");
    saved["wish"].as_object_mut().unwrap().remove("level");
    let saved = serde_json::from_value(saved).unwrap();
    let mut fleet = Fleet::restore(policy(Restart::Always), Bounds::of(3), saved);
    fleet.step(SECOND, Event::Tick);
    assert_eq!(fleet.target(), 3);
}

#[test]
fn who_is_pinned_or_works_for_a_while_only_is_left_alone() {
    let mut sim = Sim::new(WAITING, limits(1.0, 512), bounds(1, 1), adapting(Adapt::On), |_| 40.0);
    sim.event(Event::ResizeTo(2));
    sim.run(Duration::from_mins(2));
    assert_eq!(sim.workers(), 2);
    sim.event(Event::Free);
    sim.run(Duration::from_mins(2));
    assert!(sim.workers() > 10);
    let jobs = Policy { restart: Restart::OnFailure, ..adapting(Adapt::On) };
    let mut sim = Sim::new(WAITING, limits(1.0, 512), bounds(1, 1), jobs, |_| 40.0);
    sim.run(Duration::from_mins(2));
    assert_eq!(sim.workers(), 1);
}

#[test]
fn what_the_kernel_has_taught_stays_until_there_is_more_memory() {
    let mut sim =
        Sim::new(WAITING, limits(1.0, 512), bounds(3, 3), adapting(Adapt::Auto), |_| 40.0);
    sim.run(10 * SECOND);
    sim.event(Event::OutOfMemory { slot: 2 });
    sim.event(Event::OutOfMemory { slot: 3 });
    sim.run(Duration::from_mins(30));
    assert_eq!(sim.workers(), 2, "once for kills that come together");
    let more = Bounds { budget: Some(500 * MIB), ..bounds(3, 3) };
    sim.event(Event::Planned { bounds: more, at_once: false });
    sim.run(Duration::from_mins(1));
    assert_eq!(sim.workers(), 3);
}
