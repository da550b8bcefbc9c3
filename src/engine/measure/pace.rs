//! How soon to look again: seldom where nothing happens, often where the answer may be another one.

use std::time::Duration;

use crate::fleet::{Memory, Sample};

/// While anything happens.
const ACTIVE: Duration = Duration::from_secs(1);
/// While memory runs out.
const URGENT: Duration = Duration::from_millis(250);
/// Room that would be gone in so many seconds is worth a look, and urgent. What else moves in a machine that
/// has plenty is nothing to us; memory of our own does not grow without CPU.
const NEAR: f64 = 60.0;
const SOON: f64 = 10.0;
/// CPUs of all workers together that are nothing.
const NOTHING: f64 = 0.05;
/// Growth that counts, as a share of the limit and in each second: the rest is noise.
const MOVES: f64 = 0.002;
/// A share of time in which tasks stood still that is nothing, and the share of free room with which it says
/// nothing of us: the machine's own pressure comes from others, mostly.
const STALLED: f64 = 0.01;
const PLENTY: f64 = 0.25;
/// A look costs this share of one CPU at most, and this much where it is urgent.
pub(super) const COST: u32 = 200;
const URGENT_COST: u32 = 50;

/// None: with the next tick of the clock that runs anyway. `young`: a start is recent; `cost`: CPU time
/// of this look.
pub(super) fn next(
    sample: &Sample,
    before: Option<Memory>,
    young: bool,
    cost: Duration,
) -> Option<Duration> {
    let span = sample.span.as_secs_f64();
    let memory = sample.memory.unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "bytes in each second")]
    let growth = before
        .filter(|before| before.limit == memory.limit && span > 0.0)
        .map_or(0.0, |before| (memory.used as f64 - before.used as f64) / span);
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let (limit, room) = (memory.limit as f64, memory.limit.saturating_sub(memory.used) as f64);
    let gone_in = |seconds: f64| growth > limit * MOVES && room < growth * seconds;
    if gone_in(SOON) {
        return Some(URGENT.max(cost * URGENT_COST));
    }
    let happens = young
        || sample.cpu.used > NOTHING
        || sample.waiting.is_some_and(|waiting| waiting > 0)
        || gone_in(NEAR)
        || memory.hits > 0
        || (memory.stalled.is_some_and(|stalled| stalled > STALLED) && room < limit * PLENTY);
    happens.then(|| ACTIVE.max(cost * COST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Cpu;
    use crate::units::MIB;

    fn memory(used: u64) -> Memory {
        Memory { limit: 512 * MIB, used: used * MIB, stalled: Some(0.0), ..Memory::default() }
    }

    fn sample(used: u64) -> Sample {
        Sample {
            span: Duration::from_secs(1),
            memory: Some(memory(used)),
            waiting: Some(0),
            ..Sample::default()
        }
    }

    fn pace(sample: &Sample, before: u64) -> Option<Duration> {
        next(sample, Some(memory(before)), false, Duration::from_micros(300))
    }

    #[test]
    fn nothing_happens() {
        assert_eq!(pace(&sample(100), 100), None);
        assert_eq!(next(&Sample::default(), None, false, Duration::ZERO), None);
    }

    #[test]
    fn something_happens() {
        let busy = Sample { cpu: Cpu { used: 0.2, ..Cpu::default() }, ..sample(100) };
        let queue = Sample { waiting: Some(1), ..sample(100) };
        let stalled = Memory { stalled: Some(0.02), ..memory(400) };
        let stalled = Sample { memory: Some(stalled), ..sample(400) };
        let hit = Memory { hits: 1, ..memory(100) };
        let hit = Sample { memory: Some(hit), ..sample(100) };
        for (sample, before) in
            [(busy, 100), (queue, 100), (stalled, 400), (hit, 100), (sample(304), 300)]
        {
            assert_eq!(pace(&sample, before), Some(ACTIVE), "{sample:?}");
        }
        assert_eq!(next(&sample(100), None, true, Duration::ZERO), Some(ACTIVE));
    }

    #[test]
    fn memory_runs_out() {
        // 60 MiB are left and 10 came in a second.
        assert_eq!(pace(&sample(452), 442), Some(URGENT));
        assert_eq!(pace(&sample(300), 290), Some(ACTIVE));
        assert_eq!(pace(&sample(300), 298), None);
        // Less than a MiB in each second is no growth, however little is left.
        assert_eq!(pace(&sample(511), 511), None);
        // Another limit: nothing can be said of growth.
        let before = Memory { limit: MIB, ..memory(400) };
        assert_eq!(next(&sample(452), Some(before), false, Duration::ZERO), None);
    }

    #[test]
    fn a_look_that_costs_much_comes_less_often() {
        let cost = Duration::from_millis(20);
        let busy = Sample { waiting: Some(9), ..sample(100) };
        assert_eq!(next(&busy, None, false, cost), Some(Duration::from_secs(4)));
        assert_eq!(next(&sample(452), Some(memory(400)), false, cost), Some(ACTIVE));
    }
}
