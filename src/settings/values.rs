//! What the text of one setting means. Pure functions; `None` is "not that".

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use super::{Ready, Watchdog};
use crate::fleet::MostMemory;
use crate::plan::{Headroom, MOST_WORKERS};
use crate::units::{parse_duration, parse_signal, parse_size};

pub(super) fn whole(text: &str) -> Option<u32> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|n| (1..=MOST_WORKERS).contains(n))
}

/// A size that is not zero.
pub(super) fn positive_size(text: &str) -> Option<u64> {
    parse_size(text).filter(|bytes| *bytes > 0)
}

/// `off`, `auto`, a size.
pub(super) fn max_memory(text: &str) -> Option<MostMemory> {
    match text {
        "off" => Some(MostMemory::Off),
        "auto" => Some(MostMemory::Share),
        size => positive_size(size).map(MostMemory::Size),
    }
}

pub(super) fn positive(text: &str) -> Option<f64> {
    text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0 && *n <= 1e6)
}

pub(super) fn headroom(text: &str) -> Option<Headroom> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.trim().parse().ok()?;
            (0.0..=99.0).contains(&percent).then_some(Headroom::Share(percent / 100.0))
        }
        None => parse_size(text).map(Headroom::Bytes),
    }
}

/// `TERM`, `sigterm`, `15`.
pub(super) fn signal(text: &str) -> Option<Signal> {
    let signal = Signal::try_from(parse_signal(text)?).ok()?;
    // A worker can neither catch these nor end by STOP and CONT.
    (!matches!(signal, Signal::SIGSTOP | Signal::SIGCONT | Signal::SIGCHLD)).then_some(signal)
}

/// `660`, `0660`: permissions alone.
pub(super) fn mode(text: &str) -> Option<Mode> {
    let digits = text.strip_prefix('0').unwrap_or(text);
    let octal = digits.len() == 3 && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    octal.then(|| u32::from_str_radix(digits, 8).ok().and_then(Mode::from_bits)).flatten()
}

/// JSON, or a plain text, which nobody wants to quote twice: `shutdown`.
pub(crate) fn message(text: String) -> serde_json::Value {
    serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text))
}

pub(super) fn ready(text: &str) -> Option<Ready> {
    match text {
        "auto" => Some(Ready::Auto),
        "spawn" => Some(Ready::Spawn),
        "notify" => Some(Ready::Notify),
        "listen" => Some(Ready::Listen),
        _ => match text.split_once(':')? {
            ("http", path) => http_path(path).map(Ready::Http),
            ("delay", delay) => parse_duration(delay).map(Ready::Delay),
            _ => None,
        },
    }
}

/// `None` inside is off.
#[expect(clippy::option_option, reason = "no text, and text that says off")]
pub(super) fn watchdog(text: &str) -> Option<Option<Watchdog>> {
    match text.split_once(':') {
        Some(("http", path)) => http_path(path).map(Watchdog::Http).map(Some),
        None if text == "off" => Some(None),
        None => parse_duration(text).filter(|time| !time.is_zero()).map(Watchdog::Ping).map(Some),
        Some(_) => None,
    }
}

/// What can stand in a request line.
fn http_path(path: &str) -> Option<String> {
    let sound = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    sound.then(|| path.to_owned())
}
