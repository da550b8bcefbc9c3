//! What the kernel's text means. Pure functions over bytes: hostile input gives `Malformed`, never a panic.
//!
//! The forms are those of the kernel's `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/` and
//! `proc(5)`; the tolerance (white space, NUL, missing newline) is for emulated file systems.

use crate::units::Fraction;

/// A limit file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit<T> {
    /// The kernel's `max` or `-1`: nothing is limited here.
    Unlimited,
    At(T),
    /// No number that the kernel could have written.
    Malformed,
}

/// CPU ids above this are not believed: no kernel is built for more.
const MAX_CPUS: usize = 8192;

/// Without the white space and NULs around.
pub(crate) fn trim(text: &[u8]) -> &[u8] {
    let noise = |b: &u8| b.is_ascii_whitespace() || *b == 0;
    let start = text.iter().position(|b| !noise(b)).unwrap_or(text.len());
    let end = text.iter().rposition(|b| !noise(b)).map_or(start, |last| last + 1);
    &text[start..end]
}

/// Decimal digits only; what does not fit saturates.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, b| {
        b.is_ascii_digit().then(|| sum.saturating_mul(10).saturating_add(u64::from(b - b'0')))
    })
}

/// `memory.max`, `memory.high`, `pids.max`, `memory.limit_in_bytes` and their like.
pub(crate) fn limit(text: &[u8]) -> Limit<u64> {
    let text = trim(text);
    if text == b"max" || is_negative(text) {
        return Limit::Unlimited;
    }
    number(text).map_or(Limit::Malformed, Limit::At)
}

/// v1 writes -1 for "no limit"; any negative number is taken for that.
fn is_negative(text: &[u8]) -> bool {
    text.strip_prefix(b"-").is_some_and(|digits| number(digits).is_some())
}

/// v2's `cpu.max`: `QUOTA PERIOD` in microseconds; the period defaults to 100000.
pub(crate) fn cpu_max(text: &[u8]) -> Limit<Fraction> {
    let mut words = words(text);
    let Some(quota) = words.next() else { return Limit::Malformed };
    fraction(limit(quota), words.next())
}

/// v1's `cpu.cfs_quota_us` with the content of `cpu.cfs_period_us`, where there is one.
pub(crate) fn cfs(quota: &[u8], period: Option<&[u8]>) -> Limit<Fraction> {
    fraction(limit(quota), period.map(trim))
}

fn fraction(quota: Limit<u64>, period: Option<&[u8]>) -> Limit<Fraction> {
    let quota = match quota {
        Limit::At(quota) => quota,
        Limit::Unlimited => return Limit::Unlimited,
        Limit::Malformed => return Limit::Malformed,
    };
    let period = period.map_or(Some(100_000), number);
    // The kernel refuses a quota of 0 and a period of 0 (EINVAL), so neither is a limit.
    match period.and_then(|period| Fraction::new(quota, period)) {
        Some(fraction) if quota > 0 => Limit::At(fraction),
        _ => Limit::Malformed,
    }
}

pub(crate) fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| b.is_ascii_whitespace() || *b == 0).filter(|word| !word.is_empty())
}

/// By memchr, as mountinfo can hold lines of a hundred kilobytes that are nothing to us.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, after) = match memchr::memchr(b'\n', rest) {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = after;
        Some(line)
    })
    .filter(|line| !line.is_empty())
}

/// The first value of `key` in a flat-keyed file (`memory.stat`, `cpu.stat`) whatever the order.
pub(crate) fn keyed(text: &[u8], key: &str) -> Option<u64> {
    lines(text).find_map(|line| {
        let mut words = words(line);
        (words.next() == Some(key.as_bytes())).then(|| words.next().and_then(number)).flatten()
    })
}

/// A field of `/proc/meminfo`, in bytes.
pub(crate) fn meminfo(text: &[u8], field: &str) -> Option<u64> {
    lines(text).find_map(|line| {
        let rest = line.strip_prefix(field.as_bytes())?.strip_prefix(b":")?;
        words(rest).next().and_then(number).map(|kib| kib.saturating_mul(1024))
    })
}

/// The value of a `Name:\tvalue` line of `/proc/self/status`.
pub(crate) fn status_field<'a>(text: &'a [u8], field: &str) -> Option<&'a [u8]> {
    lines(text)
        .find_map(|line| Some(trim(line.strip_prefix(field.as_bytes())?.strip_prefix(b":")?)))
}

/// A set of CPU ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet {
    bits: Vec<u64>,
}

impl CpuSet {
    /// How many CPUs are in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.bits.iter().map(|word| word.count_ones()).sum()
    }

    /// Adds a CPU; ids that no kernel has are left out.
    pub(crate) fn insert(&mut self, cpu: usize) {
        if cpu >= MAX_CPUS {
            return;
        }
        if self.bits.len() <= cpu / 64 {
            self.bits.resize(cpu / 64 + 1, 0);
        }
        self.bits[cpu / 64] |= 1 << (cpu % 64);
    }

    /// The CPUs that are in both.
    #[must_use]
    pub(crate) fn intersect(&self, other: &Self) -> Self {
        let bits = self.bits.iter().zip(&other.bits).map(|(a, b)| a & b).collect();
        Self { bits }
    }

    /// The kernel's list form, `0-3,8`. `None` for anything else; an empty text is an empty set.
    pub(crate) fn from_list(text: &[u8]) -> Option<Self> {
        let mut set = Self::default();
        let text = trim(text);
        if text.is_empty() {
            return Some(set);
        }
        for part in text.split(|b| *b == b',') {
            let (first, last) = match part.iter().position(|b| *b == b'-') {
                Some(dash) => (number(&part[..dash])?, number(&part[dash + 1..])?),
                None => (number(part)?, number(part)?),
            };
            if first > last || last >= MAX_CPUS as u64 {
                return None;
            }
            for cpu in first..=last {
                set.insert(usize::try_from(cpu).ok()?);
            }
        }
        Some(set)
    }

    /// The kernel's mask form, `ff` or `00000000,000000ff`, highest word first.
    pub(crate) fn from_mask(text: &[u8]) -> Option<Self> {
        let mut set = Self::default();
        let digits: Vec<u8> = trim(text).iter().copied().filter(|b| *b != b',').collect();
        if digits.is_empty() || digits.len() > MAX_CPUS / 4 {
            return None;
        }
        for (nibble, digit) in digits.iter().rev().enumerate() {
            let value = char::from(*digit).to_digit(16)?;
            for bit in (0..4).filter(|bit| value >> bit & 1 == 1) {
                set.insert(nibble * 4 + bit);
            }
        }
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits() {
        for (text, want) in [
            (&b"536870912\n"[..], Limit::At(536_870_912)),
            (b" 12\0\n", Limit::At(12)),
            (b"0", Limit::At(0)),
            (b"max\n", Limit::Unlimited),
            (b"-1\n", Limit::Unlimited),
            (b"99999999999999999999999", Limit::At(u64::MAX)),
            (b"0x100", Limit::Malformed),
            (b"512M", Limit::Malformed),
            (b"+5", Limit::Malformed),
            (b"-", Limit::Malformed),
            (b"1 2", Limit::Malformed),
            (b"", Limit::Malformed),
        ] {
            assert_eq!(limit(text), want, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn quotas() {
        let at = |q, p| Limit::At(Fraction::new(q, p).unwrap());
        assert_eq!(cpu_max(b"150000 100000\n"), at(3, 2));
        assert_eq!(cpu_max(b"150000"), at(3, 2));
        assert_eq!(cpu_max(b"12800000 1000000"), at(64, 5));
        assert_eq!(cpu_max(b"1 2 3"), at(1, 2));
        assert_eq!(cpu_max(b"max 100000"), Limit::Unlimited);
        assert_eq!(cpu_max(b"-1 100000"), Limit::Unlimited);
        for bad in [&b""[..], b"0 100000", b"100000 0", b"x 1", b"1 x"] {
            assert_eq!(cpu_max(bad), Limit::Malformed);
        }
        assert_eq!(cfs(b"50000\n", None), at(1, 2));
        assert_eq!(cfs(b"50000\n", Some(b"25000\n")), at(2, 1));
        assert_eq!(cfs(b"-1", Some(b"0")), Limit::Unlimited);
    }

    #[test]
    fn cpu_lists_and_masks() {
        let count = |set: Option<CpuSet>| set.map(|set| set.count());
        assert_eq!(count(CpuSet::from_list(b"0-3,8\n")), Some(5));
        assert_eq!(count(CpuSet::from_list(b"\n")), Some(0));
        assert_eq!(count(CpuSet::from_list(b"0-0,0")), Some(1));
        for bad in [&b"0-"[..], b"3-1", b"a", b"0-99999999999", b"1,,2", b"-1"] {
            assert_eq!(CpuSet::from_list(bad), None);
        }
        assert_eq!(CpuSet::from_mask(b"ff"), CpuSet::from_list(b"0-7"));
        assert_eq!(CpuSet::from_mask(b"1,00000001"), CpuSet::from_list(b"0,32"));
        assert_eq!(CpuSet::from_mask(b""), None);
        assert_eq!(CpuSet::from_mask(b"xy"), None);
    }

    #[test]
    fn keys_are_found_wherever_they_stand() {
        let text = b"file 3\ninactive_file 7\ninactive_file 9\nbad\nanon x\n";
        assert_eq!(keyed(text, "inactive_file"), Some(7));
        assert_eq!(keyed(text, "file"), Some(3));
        assert_eq!(keyed(text, "anon"), None);
        assert_eq!(keyed(text, "slab"), None);
        let text = b"MemTotal:       25165824 kB\nMemFree: 1 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24 << 30));
        assert_eq!(meminfo(text, "Mem"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (limit(&text), cpu_max(&text), cfs(&text, Some(&text)), keyed(&text, "a"));
            let _ = (CpuSet::from_list(&text), CpuSet::from_mask(&text), meminfo(&text, "a"));
        }

        #[test]
        fn a_list_has_the_cpus_it_names(cpus in proptest::collection::btree_set(0usize..8192, 1..40)) {
            let text: Vec<String> = cpus.iter().map(usize::to_string).collect();
            let set = CpuSet::from_list(text.join(",").as_bytes()).unwrap();
            prop_assert_eq!(set.count() as usize, cpus.len());
        }
    }
}
