//! How long to wait before what did not work is tried again: a slot's next start, a larger number.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(30);

/// The wait the `times`th time in a row (1 is the first): doubled each time, up to `longest`.
pub(super) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.saturating_sub(1).min(20)).min(longest)
}

/// The wait after `ends` early ends in a row (1 is the first): doubled each time up to [`LONGEST`],
/// and up to a quarter longer, so that workers that fell together do not come back together.
pub(crate) fn delay(ends: u32, random: &mut fastrand::Rng) -> Duration {
    doubled(FIRST, ends, LONGEST).mul_f64(1.0 + random.f64() / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_a_limit_with_jitter_upwards() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut at = |ends| delay(ends, &mut random).as_millis();
        assert!((100..=125).contains(&at(1)));
        assert!((200..=250).contains(&at(2)));
        assert!((25_600..=32_000).contains(&at(9)));
        assert!((30_000..=37_500).contains(&at(10)));
        assert!((30_000..=37_500).contains(&at(u32::MAX)));
    }
}
