//! What a look could find, and what it could not: numbers for random histories.

use proptest::prelude::*;

use super::histories::LARGEST;

/// What somebody believes to have seen: any number at all, also of workers that nobody has.
#[derive(Clone, Debug)]
pub(super) struct Vision {
    pub(super) span: u16,
    pub(super) memory: Option<(u64, u64, Option<f64>, u64)>,
    pub(super) cpu: (f64, f64, f64),
    pub(super) waiting: Option<u32>,
    pub(super) workers: Vec<(u64, u64, f64, Option<u32>)>,
    pub(super) strangers: u64,
}

/// Nonsense, and what could be.
fn float() -> impl Strategy<Value = f64> {
    prop_oneof![
        1 => any::<f64>(),
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, -1.0, 0.0, f64::MAX]),
        8 => 0.0..3.0f64,
    ]
}

fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => any::<u64>(),
        1 => Just(0u64),
        8 => (1u64..400).prop_map(|mib| mib << 20),
    ]
}

pub(super) fn visions() -> impl Strategy<Value = Vision> {
    let waiting = prop::option::of(prop_oneof![0u32..3, any::<u32>()]);
    let memory = (bytes(), bytes(), prop::option::of(float()), 0u64..3);
    let worker = (bytes(), bytes(), float(), prop::option::of(0u32..5));
    (
        any::<u16>(),
        prop::option::of(memory),
        (float(), float(), float()),
        waiting,
        prop::collection::vec(worker, 0..LARGEST as usize),
        0u64..3,
    )
        .prop_map(|(span, memory, cpu, waiting, workers, strangers)| Vision {
            span,
            memory,
            cpu,
            waiting,
            workers,
            strangers,
        })
}

/// What could be, in a box of 512 MiB with two CPUs.
pub(super) fn vision(random: &mut fastrand::Rng) -> Vision {
    let workers = (0..LARGEST).map(|_| {
        let private = random.u64(5..60) << 20;
        (private, private + (random.u64(..20) << 20), random.f64(), None)
    });
    let workers: Vec<_> = workers.collect();
    let used = workers.iter().map(|worker| worker.0).sum::<u64>() / 2;
    Vision {
        span: 1000,
        memory: Some((512 << 20, used, Some(random.f64() / 8.0), 0)),
        cpu: (2.0, random.f64() * 2.0, random.f64()),
        waiting: Some(random.u32(..3)),
        workers,
        strangers: random.u64(..2),
    }
}
