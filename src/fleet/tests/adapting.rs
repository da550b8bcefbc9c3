//! The controller in a simulated box: where it settles, how soon, and with how many changes.

use super::simulator::{Limits, MIB, SERVER, Server, Sim, bounds};
use super::*;

/// As the program has it behind its proxy, with the number free to move.
fn adapting(adapt: Adapt) -> Policy {
    let readiness = Readiness { alive: None, timeout: 30 * SECOND, lenient: true };
    Policy { adapt, readiness, max_restarts: 10, seed: 7, ..policy(Restart::Always) }
}

fn limits(cpus: f64, mib: u64) -> Limits {
    Limits { cpus, memory: mib * MIB, base: 14.0 }
}

/// The load of the sizing benchmark: nobody, and then many.
fn bench(server: Server, limits: Limits, planned: u32) -> (Sim, u32, f64) {
    let clients = |seconds: f64| if seconds < 12.0 { 0.0 } else { 40.0 };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "few")]
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

const WAITING: Server = Server { cpu: 0.004, wait: 0.096, ..SERVER };
const MIXED: Server = Server { cpu: 0.02, wait: 0.02, ..SERVER };
const LOOP: Server = Server { cpu: 0.002, wait: 0.02, event_loop: true, idle: 25.0, warm: 15.0, start: 0.3, ..SERVER };
const HUNGRY: Server = Server { cpu: 0.05, wait: 0.05, request: 40.0, ..SERVER };

#[test]
fn under_load_it_comes_near_the_best_number_within_half_a_minute() {
    let servers = [("cpu-bound", SERVER), ("waiting", WAITING), ("mixed", MIXED), ("event loop", LOOP), ("hungry", HUNGRY)];
    let boxes = [limits(0.5, 256), limits(1.0, 256), limits(1.5, 512), limits(1.25, 1024)];
    let mut all = Vec::new();
    for (name, server) in servers {
        for limits in boxes {
            let (sim, best, regret) = bench(server, limits, 1);
            let settled = settled(&sim) - 12.0;
            println!(
                "{name:10} {:>4} CPUs {:>4} MiB: {:>2} workers, best {best:>2}, regret {regret:>6.3}, settled after {settled:>4.1} s by {} changes",
                limits.cpus, limits.memory / MIB, sim.workers(), sim.changes.len()
            );
            assert_eq!(sim.killed, None, "{name} {limits:?}");
            assert!(regret <= 0.25, "{name} {limits:?}: {regret}");
            assert!(settled <= 25.0 && sim.changes.len() <= 8, "{name} {limits:?}: {:?}", sim.changes);
            all.push(regret);
        }
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    println!("mean regret {mean:.3}");
    assert!(mean <= 0.1, "{mean}");
}
