//! What was measured so far, short and bounded: the last five minutes as points, and a whole life as the
//! share of time that was spent at each size.

use std::collections::VecDeque;
use std::time::Duration;

use crate::fleet::Time;

/// Between two points that are kept, in tenths of a second.
const SPACING: u32 = 50;
/// Five minutes.
const POINTS: usize = 60;

/// The last points, oldest first, with their times in tenths of a second: there are as many as workers.
#[derive(Debug)]
pub(super) struct Points<T> {
    points: VecDeque<(u32, T)>,
}

impl<T: Copy> Points<T> {
    pub(super) fn new() -> Self {
        Self { points: VecDeque::new() }
    }

    /// Keeps a point, unless the last one that is kept is recent.
    pub(super) fn add(&mut self, now: Time, point: T) {
        let now = u32::try_from(now.as_millis() / 100).unwrap_or(u32::MAX);
        // Looks come a little early or late.
        let due = |at: &(u32, T)| now.saturating_sub(at.0) >= SPACING - SPACING / 10;
        if !self.points.back().is_none_or(due) {
            return;
        }
        if self.points.len() == POINTS {
            self.points.pop_front();
        }
        self.points.push_back((now, point));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Time, T)> {
        let time = |tenths: u32| Duration::from_millis(u64::from(tenths) * 100);
        self.points.iter().map(move |(at, point)| (time(*at), *point))
    }
}

/// How long a value was how large, in classes that are 4 % apart: a quantile over a whole life takes a few
/// hundred bytes and is off by 2 % at most.
#[derive(Clone, Debug, Default)]
pub(super) struct Sketch {
    /// Class and seconds, in order of the classes.
    classes: Vec<(i16, f32)>,
}

/// How far one class is above the one below it.
const STEP: f64 = 1.04;

impl Sketch {
    pub(super) fn add(&mut self, value: u64, time: Duration) {
        if time.is_zero() || value == 0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "classes are far wider")]
        let class = (value as f64).ln() / STEP.ln();
        #[expect(clippy::cast_possible_truncation, reason = "1131 at most, for 2^64")]
        let class = class.floor() as i16;
        let time = time.as_secs_f32();
        match self.classes.binary_search_by_key(&class, |(class, _)| *class) {
            Ok(at) => self.classes[at].1 += time,
            Err(at) => self.classes.insert(at, (class, time)),
        }
    }

    /// The value that was not exceeded for this share of the time.
    pub(super) fn quantile(&self, share: f32) -> Option<u64> {
        let mut left = self.classes.iter().map(|(_, time)| time).sum::<f32>() * share;
        let (class, _) = self.classes.iter().find(|(_, time)| {
            left -= time;
            left <= 0.0
        })?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the size that it was made of"
        )]
        let middle = STEP.powf(f64::from(*class) + 0.5) as u64;
        Some(middle)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::MIB;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn five_minutes_are_kept_however_often_somebody_looks() {
        let mut points = Points::new();
        for quarter in 0..4 * 600 {
            points.add(Duration::from_millis(250 * quarter), quarter);
        }
        let kept: Vec<_> = points.iter().collect();
        assert_eq!(kept.len(), POINTS);
        let (first, last) = (kept[0].0, kept[POINTS - 1].0);
        assert!(last > seconds(590) && first < seconds(340), "{first:?} {last:?}");
    }

    #[test]
    fn a_short_peak_does_not_count_and_a_long_one_does() {
        let mut sketch = Sketch::default();
        assert_eq!(sketch.quantile(0.95), None);
        sketch.add(100 * MIB, seconds(970));
        sketch.add(400 * MIB, seconds(30));
        let near = |value: Option<u64>, want: u64| {
            let value = value.unwrap();
            assert!(value.abs_diff(want) <= want / 40, "{value} {want}");
        };
        near(sketch.quantile(0.95), 100 * MIB);
        sketch.add(400 * MIB, seconds(50));
        near(sketch.quantile(0.95), 400 * MIB);
        near(sketch.quantile(0.5), 100 * MIB);
        sketch.add(0, seconds(5));
        sketch.add(u64::MAX, seconds(5));
        near(sketch.quantile(1.0), u64::MAX);
    }

    proptest! {
        #[test]
        fn a_quantile_is_that_of_all_values(
            values in proptest::collection::vec(4096u64..1 << 36, 1..200),
        ) {
            let mut sketch = Sketch::default();
            for value in &values {
                sketch.add(*value, seconds(5));
            }
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let found = sketch.quantile(0.95).unwrap();
            // Times are added up in 32 bits: one place more or less.
            let at = (values.len() * 95).div_ceil(100) - 1;
            let near = |at: usize| found.abs_diff(sorted[at]) <= sorted[at] / 30;
            let last = sorted.len() - 1;
            prop_assert!(near(at) || near(at.saturating_sub(1)) || near((at + 1).min(last)));
        }
    }
}
