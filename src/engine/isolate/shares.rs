//! How much memory each worker's group may have. Numbers in, numbers out.

use super::super::Sized;
use crate::units::MIB;

/// Kept for the launcher and its guard: a quarter of the headroom, within these bounds. The rest of the headroom
/// goes to the groups, because the kernel's own memory and the files that a worker reads are charged to its group.
const LAUNCHER: (u64, u64) = (16 * MIB, 256 * MIB);
/// The kernel begins to reclaim and to slow a group down by this share below its limit: so near that what
/// cannot be reclaimed gets there within seconds and the kernel decides, and no group stands still for ever.
const GAP: u64 = 32;
/// A group that has to shrink keeps what it uses, and this to go on with: an eighth, at least.
const MARGIN: u64 = 16 * MIB;
const PAGE: u64 = 4096;

/// What there is to share out, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    total: u64,
}

impl Shares {
    /// `None` where no limit is known.
    pub(super) fn of(sized: &Sized) -> Option<Self> {
        Some(Self::between(sized.room?, sized.bounds.budget?))
    }

    /// `room` is left to the limit itself, `budget` of it for the workers.
    fn between(room: u64, budget: u64) -> Self {
        let launcher = (room.saturating_sub(budget) / 4).clamp(LAUNCHER.0, LAUNCHER.1);
        Self { total: room.saturating_sub(launcher) }
    }

    /// What each of `workers` may have, where `lost` is held by groups that have no worker any more.
    pub(super) fn each(self, workers: u64, lost: u64) -> u64 {
        let share = self.total.saturating_sub(lost) / workers.max(1);
        (share / PAGE).max(1) * PAGE
    }
}

/// The next limit of a group that has `now`, is to have `wanted` and uses `used`: more at once, less only as far
/// as it can be had without a kill.
pub(super) fn next(now: u64, wanted: u64, used: u64) -> u64 {
    if wanted >= now {
        return wanted;
    }
    let margin = (used / 8).max(MARGIN);
    let least = used.saturating_add(margin) / PAGE * PAGE;
    wanted.max(least).min(now)
}

/// Where the kernel begins to reclaim from a group with this limit.
pub(super) fn high(limit: u64) -> u64 {
    (limit - limit / GAP) / PAGE * PAGE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_launcher_keeps_a_part_of_the_headroom() {
        let each = |room, budget, workers| Shares::between(room, budget).each(workers, 0);
        assert_eq!(each(1000 * MIB, 900 * MIB, 3), 325 * MIB);
        assert_eq!(each(256 * MIB, 256 * MIB, 2), 120 * MIB, "also without headroom");
        assert_eq!(each(1 << 40, 1 << 39, 1), (1 << 40) - 256 * MIB, "and no more than it can use");
        assert_eq!(
            each(MIB, 0, 4),
            PAGE,
            "never nothing, which would be no limit that a process can start in"
        );
        let shares = Shares::between(256 * MIB, 256 * MIB);
        assert_eq!(shares.each(2, 40 * MIB), 100 * MIB, "what nobody can have is nobody's share");
    }

    #[test]
    fn less_is_taken_as_far_as_nobody_is_killed() {
        assert_eq!(next(100 * MIB, 200 * MIB, 90 * MIB), 200 * MIB);
        assert_eq!(next(200 * MIB, 100 * MIB, 20 * MIB), 100 * MIB);
        assert_eq!(next(200 * MIB, 100 * MIB, 120 * MIB), 136 * MIB);
        assert_eq!(next(200 * MIB, 100 * MIB, 195 * MIB), 200 * MIB, "never more than it had");
    }

    proptest! {
        #[test]
        fn together_they_stay_within_what_there_is(total in 0u64..1 << 44, workers in 1u64..10_000, lost in 0u64..1 << 40) {
            let each = Shares { total }.each(workers, lost);
            prop_assert!(each == PAGE || each * workers <= total - lost.min(total));
            prop_assert!(high(each) <= each && each.is_multiple_of(PAGE));
        }

        #[test]
        fn a_step_down_never_goes_below_what_is_used(now in 0u64..1 << 44, wanted in 0u64..1 << 44, used in 0u64..1 << 44) {
            let next = next(now, wanted, used);
            prop_assert!(next >= wanted.min(now));
            prop_assert!(next <= now.max(wanted));
            prop_assert!(next >= used.min(now) / PAGE * PAGE);
        }
    }
}
