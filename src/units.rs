//! Sizes, durations and exact fractions: how they are written, read and compared.
//!
//! Depends on nothing else of the crate. A parser here returns what is wrong with the text as a
//! short fragment; whoever knows where the text came from adds that.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

/// Bytes in a kibibyte.
pub const KIB: u64 = 1 << 10;
/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;
/// Bytes in a gibibyte.
pub const GIB: u64 = 1 << 30;

/// What a size may look like, for error messages.
pub const SIZE_FORMS: &str = "a size such as 512M, 512MiB, 1.5G or plain bytes";
/// What a duration may look like, for error messages.
pub const DURATION_FORMS: &str = "a duration such as 500ms, 5s, 2m or 1h";

/// Reads a size: `512M`, `512MiB`, `1.5G`, `536870912`.
///
/// `K`, `M`, `G` and `T` are powers of 1024 with or without `B` or `iB`, as on Heroku and Docker.
/// Returns bytes, rounded down; `None` where the text is no size or does not fit 64 bits.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => GIB,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    scaled(number, factor)
}

/// Reads a duration: `500ms`, `5s`, `2m`, `1h`, `1.5s`; a bare `0` is allowed, other bare numbers
/// are not, because half of the tools around mean seconds by them and the other half milliseconds.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(digits);
    let nanos: u64 = match unit {
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    scaled(number, nanos).map(Duration::from_nanos)
}

/// `number` (decimal digits with at most one point) times `factor`, rounded down.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !plain(whole) || !plain(fraction) || number.ends_with('.') {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    // Eighteen digits behind the point are more than any unit here can resolve.
    let fraction = &fraction[..fraction.len().min(18)];
    let parts: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let factor = u128::from(factor);
    let total = whole.checked_mul(factor)?.checked_add(parts * factor / scale)?;
    u64::try_from(total).ok()
}

/// Bytes as a person writes them: `512 MiB`, `1.5 GiB`, `87 KiB`, `3 B`.
///
/// At most one digit behind the point, cut (never rounded up, so that a limit is not overstated).
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..KIB => return format!("{bytes} B"),
        KIB..MIB => (KIB, "KiB"),
        MIB..GIB => (MIB, "MiB"),
        _ => (GIB, "GiB"),
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {name}"),
        // From a hundred on the digit behind the point is noise, but for GiB.
        (whole, _) if whole >= 100 && unit != GIB => format!("{whole} {name}"),
        (whole, tenth) => format!("{whole}.{tenth} {name}"),
    }
}

/// A number of CPUs or workers without needless zeros: `4`, `1.5`, `0.33`.
#[must_use]
pub fn show_number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A duration as the flags take it: `8s`, `500ms`, `2m`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0s".to_owned(),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ if ms > 10_000 => format!("{:.1}s", duration.as_secs_f64()),
        _ => format!("{ms}ms"),
    }
}

/// The text with everything escaped that a terminal or a log could take for more than text: control
/// characters, and those that turn the direction of reading.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    let odd =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(odd) {
        return Cow::Borrowed(text);
    }
    let escaped =
        text.chars().map(|c| if odd(c) { c.escape_default().to_string() } else { c.to_string() });
    Cow::Owned(escaped.collect())
}

/// `1 worker`, `2 workers`.
#[must_use]
pub fn plural(n: impl Into<u64>, noun: &str) -> String {
    match n.into() {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}

/// The number of a signal by its name (`TERM`, `SIGTERM`) or number; real-time ones have numbers alone.
#[cfg(feature = "launcher")]
pub(crate) fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = format!("SIG{}", upper.strip_prefix("SIG").unwrap_or(&upper));
    name.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

/// A CPU quota as the kernel has it: microseconds of CPU time per period of microseconds.
///
/// Kept as two integers so that levels compare exactly; the quotient is a number of CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Fraction {
    numerator: u64,
    denominator: u64,
}

impl Fraction {
    /// `None` where the denominator is zero.
    #[must_use]
    pub fn new(numerator: u64, denominator: u64) -> Option<Self> {
        (denominator != 0).then_some(Self { numerator, denominator })
    }

    /// To the millionth; `None` for what is not positive or above a million.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive and at most a million"
    )]
    pub fn from_f64(value: f64) -> Option<Self> {
        let parts = (value * 1e6).round();
        (1.0..=1e12).contains(&parts).then(|| Self::new(parts as u64, 1_000_000)).flatten()
    }

    /// The quotient.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "periods are at most a second in microseconds")]
    pub fn as_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }
}

impl Ord for Fraction {
    fn cmp(&self, other: &Self) -> Ordering {
        let left = u128::from(self.numerator) * u128::from(other.denominator);
        let right = u128::from(other.numerator) * u128::from(self.denominator);
        left.cmp(&right)
    }
}

impl PartialOrd for Fraction {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Fraction {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Fraction {}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", show_number(self.as_f64()))
    }
}

/// How many times `b` is in `a`.
#[expect(clippy::cast_precision_loss, reason = "only compared")]
pub(crate) fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_every_form() {
        for (text, bytes) in [
            ("512M", 512 * MIB),
            ("512MiB", 512 * MIB),
            ("512mb", 512 * MIB),
            (" 512 MiB ", 512 * MIB),
            ("1.5G", 1536 * MIB),
            ("536870912", 536_870_912),
            ("0", 0),
            ("0.5k", 512),
            ("1T", 1 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "M",
            "-1",
            "1.M",
            ".5G",
            "1e9",
            "1.2.3G",
            "0x10",
            "512 X",
            "18446744073709551616",
            "99999999999T",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_mins(2)));
        assert_eq!(parse_duration("1h"), Some(Duration::from_hours(1)));
        assert_eq!(parse_duration("0"), Some(Duration::ZERO));
        for text in ["", "5", "s", "-1s", "5 s", "1d", "99999999999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn shown_sizes_never_overstate() {
        assert_eq!(show_size(512 * MIB), "512 MiB");
        assert_eq!(show_size(512 * MIB - 1), "511 MiB");
        assert_eq!(show_size(1536 * MIB), "1.5 GiB");
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size(53_687_091), "51.1 MiB");
        assert_eq!(show_size(u64::MAX), "17179869183.9 GiB");
    }

    #[test]
    fn what_is_more_than_text_is_escaped() {
        assert_eq!(printable("plain ü 漢"), "plain ü 漢");
        assert_eq!(printable("a\nb\x1b[1m\u{202e}"), "a\\nb\\u{1b}[1m\\u{202e}");
    }

    #[test]
    fn fractions_compare_exactly() {
        let third = Fraction::new(33_333, 100_000).unwrap();
        let more = Fraction::new(1, 3).unwrap();
        assert!(third < more);
        assert_eq!(Fraction::new(50_000, 100_000), Fraction::new(1, 2));
        assert!(Fraction::new(u64::MAX, 1).unwrap() > Fraction::new(u64::MAX - 1, 1).unwrap());
        assert_eq!(Fraction::new(1, 0), None);
    }
}
