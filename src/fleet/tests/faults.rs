//! What may happen to a fleet, and how it may be set: for random histories.

use proptest::prelude::*;

use super::visions::{Vision, visions};
use super::*;

/// What a random world does next.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    Wait(u16),
    End {
        pick: usize,
        how: u8,
        group: bool,
    },
    Refuse,
    Resize(i32),
    ResizeTo(u32),
    Planned(u32, bool),
    Free,
    Renew {
        slot: Option<u32>,
        surge: u32,
    },
    Tell {
        pick: usize,
        what: Told,
    },
    /// Somebody has looked, and this is what he believes.
    Measured(Vision),
    OutOfMemory(u32),
    /// The launcher's program is replaced.
    Upgrade,
}

pub(super) fn faults() -> impl Strategy<Value = Fault> {
    let pick = any::<usize>;
    let told = prop_oneof![
        4 => Just(Told::Ready),
        2 => Just(Told::Ping),
        1 => Just(Told::Hung),
        1 => Just(Told::Stopping),
        1 => (1u64..40).prop_map(|s| Told::Extend(Duration::from_secs(s))),
        1 => Just(Told::Drained),
        1 => (1u64..40).prop_map(|s| Told::Watchdog(Duration::from_secs(s))),
    ];
    prop_oneof![
        8 => any::<u16>().prop_map(Fault::Wait),
        8 => (pick(), any::<u8>(), any::<bool>()).prop_map(|(pick, how, group)| Fault::End { pick, how, group }),
        1 => Just(Fault::Refuse),
        1 => (-4i32..5).prop_map(Fault::Resize),
        1 => (0u32..12).prop_map(Fault::ResizeTo),
        1 => (1u32..12, any::<bool>()).prop_map(|(workers, at_once)| Fault::Planned(workers, at_once)),
        1 => Just(Fault::Free),
        2 => (prop::option::of(1u32..12), 0u32..3).prop_map(|(slot, surge)| Fault::Renew { slot, surge }),
        6 => (pick(), told).prop_map(|(pick, what)| Fault::Tell { pick, what }),
        1 => Just(Fault::Upgrade),
        8 => visions().prop_map(Fault::Measured),
        1 => (1u32..12).prop_map(Fault::OutOfMemory),
    ]
}

pub(super) fn policies() -> impl Strategy<Value = Policy> {
    let restart = prop::sample::select(vec![Restart::Always, Restart::OnFailure, Restart::Never]);
    let seconds = |most: u64| prop::option::of((0..most).prop_map(Duration::from_secs));
    (restart, any::<u64>(), seconds(3), any::<bool>(), seconds(90), prop::option::of(1u32..4))
        .prop_map(|(restart, seed, alive, lenient, max_age, parallel)| {
            let readiness = Readiness { alive, timeout: 10 * SECOND, lenient };
            let max_age = max_age.map(|age| age + 20 * SECOND);
            let watchdog = max_age.filter(|_| lenient);
            let drains = seed % 2 == 0;
            let adapt = [Adapt::Auto, Adapt::On, Adapt::Off][(seed / 2 % 3) as usize];
            let guard = seed / 8 % 4 != 0;
            let most_memory = [MostMemory::Off, MostMemory::Share, MostMemory::Size(50 << 20)]
                [(seed / 64 % 3) as usize];
            Policy {
                drains,
                readiness,
                watchdog,
                max_age,
                parallel,
                adapt,
                guard,
                most_memory,
                seed,
                ..policy(restart)
            }
        })
}
