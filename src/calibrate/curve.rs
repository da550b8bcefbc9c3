//! What the steps of a calibration mean: which comes next, when there have been enough, what one worker costs,
//! and the least number that is as good as any. Numbers in, numbers out.

use serde::{Deserialize, Serialize};

use crate::units::MIB;

/// A gain that is less is noise, and no reason to go on.
const NOISE: f64 = 0.03;
/// Who is so close to the best is as good.
const CLOSE: f64 = 0.015;
/// From this share on the CPUs are in full use.
const FULL: f64 = 0.9;
/// So many steps without a gain are the end.
const FLAT: usize = 2;
/// How far ahead of what grows there must be room, minutes.
const AHEAD: f64 = 0.5;
/// From that number on, half as many more again at each step.
const FIRST: [u32; 6] = [1, 2, 3, 4, 6, 8];

/// What one number of workers gave. Memory in bytes, CPU in CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) workers: u32,
    /// Answers a second; where the load does not tell, the CPUs that the workers used.
    pub(crate) rate: f64,
    /// Requests that failed.
    pub(crate) failed: u64,
    /// The most private memory that nearly every worker had.
    #[serde(rename = "worker_private_bytes")]
    pub(crate) private: u64,
    /// What our group, or the machine, used at most.
    #[serde(rename = "used_bytes")]
    pub(crate) used: u64,
    /// What was left above the headroom at least.
    #[serde(rename = "room_bytes")]
    pub(crate) room: u64,
    /// Used by all workers.
    pub(crate) cpus: f64,
    /// Of the quota's periods, those in which it was used up.
    pub(crate) throttled: f64,
    /// Of one worker.
    #[serde(rename = "growth_bytes_per_minute")]
    pub(crate) growth: u64,
    /// Whether the step was broken off: memory ran low, or a worker ended.
    pub(crate) cut: bool,
    /// Whether it was that a worker ended by itself.
    #[serde(default)]
    pub(crate) ended: bool,
}

/// What ended a calibration, or bounds the throughput at the knee.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Bound {
    /// No more workers fit.
    Memory,
    /// The CPUs are in full use.
    Cpu,
    /// More workers do not help, and neither memory nor CPU is why: the load wants no more.
    Load,
    /// `--max-workers`, or the limit of tasks.
    Workers,
    /// With more, a worker ended by itself.
    Ended,
}

/// Why there is no next step.
pub(crate) type End = Bound;

/// What comes after the steps so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Try(u32),
    End(End),
}

/// How the machine looked when a step was chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// CPUs.
    pub(crate) usable: f64,
    /// No more workers than this, whatever memory allows.
    pub(crate) most: u32,
}

/// The number to try next: never more than what the measured cost leaves the headroom free with.
pub(crate) fn next(steps: &[Step], limits: Limits) -> Next {
    let Some(last) = steps.last() else { return Next::Try(1) };
    if last.cut {
        return Next::End(if last.ended { Bound::Ended } else { Bound::Memory });
    }
    let flat = steps.len() - 1 - last_gain(steps);
    let full = last.cpus >= FULL * limits.usable;
    if full && flat >= 1 {
        return Next::End(Bound::Cpu);
    }
    if flat >= FLAT {
        return Next::End(Bound::Load);
    }
    if last.workers >= limits.most {
        return Next::End(Bound::Workers);
    }
    let wanted = after(last.workers).min(limits.most);
    let fits = last.workers.saturating_add(fitting(last, cost(steps), wanted));
    match wanted.min(fits) {
        more if more > last.workers => Next::Try(more),
        _ => Next::End(Bound::Memory),
    }
}

/// How many more workers of `cost` there is room for; what grows needs its room too.
fn fitting(last: &Step, cost: u64, wanted: u32) -> u32 {
    let growth = scaled(last.growth.saturating_mul(u64::from(wanted)), AHEAD);
    let room = last.room.saturating_sub(growth);
    u32::try_from(room / cost.max(1)).unwrap_or(u32::MAX)
}

/// Where the rate rose last by more than noise above all before.
fn last_gain(steps: &[Step]) -> usize {
    let (mut best, mut at) = (0.0_f64, 0);
    for (index, step) in steps.iter().enumerate() {
        if step.rate > best * (1.0 + NOISE) {
            (best, at) = (step.rate, index);
        }
    }
    at
}

fn after(workers: u32) -> u32 {
    let first = FIRST.iter().find(|next| **next > workers).copied();
    // 8, 12, 16, 24, 32, 48: two steps for each doubling.
    first.unwrap_or_else(|| {
        let power = 1 << workers.ilog2();
        let middle = power + power / 2;
        if workers < middle { middle } else { 2 * power }
    })
}

/// What one worker more costs: the most of what the workers had, and of what the group grew by for each.
///
/// The second counts page tables and sockets too, which the first does not.
fn cost(steps: &[Step]) -> u64 {
    let private = steps.iter().map(|step| step.private).max().unwrap_or(0);
    private.max(slope(steps).unwrap_or(0))
}

/// By how much the memory in use rose for each worker, over all steps that were not broken off.
fn slope(steps: &[Step]) -> Option<u64> {
    let (first, last) = (steps.first()?, steps.iter().rfind(|step| !step.cut)?);
    let workers = last.workers.checked_sub(first.workers).filter(|more| *more >= 3)?;
    Some(last.used.saturating_sub(first.used) / u64::from(workers))
}

/// The whole calibration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Curve {
    pub(crate) steps: Vec<Step>,
    /// What one worker more costs, bytes.
    pub(crate) cost: u64,
    /// What there is once for all workers, bytes.
    pub(crate) shared: u64,
    /// Of one worker, bytes a minute; zero where that is no more than noise.
    pub(crate) growth: u64,
    /// The least number that is as good as the best.
    pub(crate) knee: Step,
    pub(crate) bound: Bound,
}

impl Curve {
    /// `before`: what was in use before the first worker; none where that tells nothing.
    pub(crate) fn new(
        steps: Vec<Step>,
        end: End,
        usable: f64,
        before: Option<u64>,
    ) -> Option<Self> {
        let sound: Vec<Step> = steps.iter().filter(|step| !step.cut).copied().collect();
        let best = sound.iter().max_by(|one, other| one.rate.total_cmp(&other.rate))?;
        let knee = *sound.iter().find(|step| is_enough(step, best))?;
        let last = sound.last()?;
        let cost = cost(&sound);
        let bound = if knee.cpus >= FULL * usable {
            Bound::Cpu
        } else if knee.workers == last.workers {
            end
        } else {
            Bound::Load
        };
        let first = sound.first()?;
        let all = cost.saturating_mul(u64::from(first.workers));
        let shared =
            before.map_or(0, |before| first.used.saturating_sub(before).saturating_sub(all));
        // A garbage collector's breath is no growth.
        let growth = if last.growth > (cost / 20).max(MIB) { last.growth } else { 0 };
        Some(Self { steps, cost, shared, growth, knee, bound })
    }
}

/// Whether going on to the best would gain no more than noise, and little for what it costs: where the rate rises
/// with each worker, one worker of thirty is no noise.
fn is_enough(step: &Step, best: &Step) -> bool {
    let gain = best.rate / step.rate - 1.0;
    let more = f64::from(best.workers) / f64::from(step.workers) - 1.0;
    step.rate > 0.0 && (step == best || (gain <= CLOSE && gain <= more / 4.0))
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a forecast needs no exact byte"
)]
fn scaled(bytes: u64, by: f64) -> u64 {
    (bytes as f64 * by) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(workers: u32, rate: f64) -> Step {
        let used = 10 * MIB + u64::from(workers) * 10 * MIB;
        let room = (200 * MIB).saturating_sub(used);
        Step { workers, rate, private: 9 * MIB, used, room, cpus: 0.1, ..Step::default() }
    }

    fn limits(most: u32) -> Limits {
        Limits { usable: 1.0, most }
    }

    #[test]
    fn the_numbers_go_up_by_half_and_by_a_third() {
        let mut numbers = vec![1];
        while *numbers.last().unwrap() < 100 {
            numbers.push(after(*numbers.last().unwrap()));
        }
        assert_eq!(numbers, [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]);
        // From one that memory chose.
        assert_eq!((after(13), after(22)), (16, 24));
    }

    #[test]
    fn it_goes_on_while_the_rate_rises_and_memory_has_room() {
        assert_eq!(next(&[], limits(100)), Next::Try(1));
        let mut steps = vec![step(1, 10.0)];
        assert_eq!(next(&steps, limits(100)), Next::Try(2));
        steps.extend([step(4, 40.0), step(12, 120.0)]);
        // 70 MiB are left, and each cost 10.
        assert_eq!(next(&steps, limits(100)), Next::Try(16));
        steps.push(step(16, 160.0));
        assert_eq!(next(&steps, limits(100)), Next::Try(19));
        steps.push(step(19, 190.0));
        assert_eq!(next(&steps, limits(100)), Next::End(Bound::Memory));
        assert_eq!(next(&[step(4, 1.0)], limits(4)), Next::End(Bound::Workers));
    }

    #[test]
    fn it_ends_where_more_do_not_help() {
        let flat = [step(1, 100.0), step(2, 101.0)];
        assert_eq!(next(&flat, limits(9)), Next::Try(3));
        let flat = [flat[0], flat[1], step(3, 99.0)];
        assert_eq!(next(&flat, limits(9)), Next::End(Bound::Load));
        let full = [step(1, 100.0), Step { cpus: 0.97, ..step(2, 101.0) }];
        assert_eq!(next(&full, limits(9)), Next::End(Bound::Cpu));
        let cut = [step(1, 100.0), Step { cut: true, ..step(2, 200.0) }];
        assert_eq!(next(&cut, limits(9)), Next::End(Bound::Memory));
        let ended = [cut[0], Step { ended: true, ..cut[1] }];
        assert_eq!(next(&ended, limits(9)), Next::End(Bound::Ended));
        let curve = Curve::new(ended.to_vec(), Bound::Ended, 1.0, None).unwrap();
        assert_eq!((curve.knee.workers, curve.bound), (1, Bound::Ended));
    }

    #[test]
    fn what_grows_needs_its_room_too() {
        let growing = Step { growth: 30 * MIB, ..step(8, 80.0) };
        // 12 workers grow by 180 MiB in half a minute, and 110 are left.
        assert_eq!(next(&[growing], limits(100)), Next::End(Bound::Memory));
    }

    #[test]
    fn the_knee_is_the_least_number_that_is_as_good_as_the_best() {
        let steps = vec![step(1, 10.0), step(2, 20.0), step(4, 39.5), step(6, 40.0), step(8, 38.0)];
        let curve = Curve::new(steps, Bound::Load, 1.0, Some(8 * MIB)).unwrap();
        assert_eq!((curve.knee.workers, curve.bound), (4, Bound::Load));
        assert_eq!((curve.cost, curve.shared), (10 * MIB, 2 * MIB));
        let rising = vec![step(1, 10.0), step(2, 20.0)];
        let curve = Curve::new(rising, Bound::Memory, 1.0, None).unwrap();
        assert_eq!((curve.knee.workers, curve.bound, curve.shared), (2, Bound::Memory, 0));
        let full = vec![Step { cpus: 0.98, ..step(1, 40.0) }, Step { cpus: 1.0, ..step(2, 40.0) }];
        let curve = Curve::new(full, Bound::Cpu, 1.0, None).unwrap();
        assert_eq!((curve.knee.workers, curve.bound), (1, Bound::Cpu));
        let rising = vec![step(1, 10.0), step(24, 235.0), step(25, 241.0)];
        assert_eq!(Curve::new(rising, Bound::Memory, 1.0, None).unwrap().knee.workers, 25);
        assert_eq!(Curve::new(vec![step(1, 0.0)], Bound::Load, 1.0, None), None);
    }

    #[test]
    fn a_step_that_was_cut_is_no_choice_and_noise_is_no_growth() {
        let cut = Step { cut: true, ..step(4, 400.0) };
        let breathing = Step { growth: 100 << 10, ..step(1, 10.0) };
        let curve = Curve::new(vec![breathing, cut], Bound::Memory, 1.0, None).unwrap();
        assert_eq!((curve.knee.workers, curve.growth), (1, 0));
        let leaking = Step { growth: 20 * MIB, ..step(1, 10.0) };
        let curve = Curve::new(vec![leaking], Bound::Memory, 1.0, None).unwrap();
        assert_eq!(curve.growth, 20 * MIB);
    }

    proptest! {
        #[test]
        fn it_ends_and_never_takes_more_than_there_is(
            cost in 1..200u64, room in 0..4000u64, flat_from in 1..200u32, most in 1..300u32, usable in 0.1..64.0f64,
        ) {
            let mut steps: Vec<Step> = Vec::new();
            for _ in 0..100 {
                match next(&steps, Limits { usable, most }) {
                    Next::End(_) => return Ok(()),
                    Next::Try(workers) => {
                        prop_assert!(workers <= most);
                        prop_assert!(steps.last().is_none_or(|last| workers > last.workers));
                        let used = cost * u64::from(workers);
                        // The first is run whatever it costs: nobody knows that before.
                        prop_assert!(workers == 1 || used <= room);
                        let rate = f64::from(workers.min(flat_from));
                        steps.push(Step { workers, rate, private: cost, used, room: room.saturating_sub(used), ..Step::default() });
                    }
                }
            }
            prop_assert!(false, "does not end");
        }
    }
}
