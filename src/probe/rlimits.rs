//! Limits of `getrlimit(2)`: processes per user (`RLIMIT_NPROC`, which counts threads too), and
//! memory per process (`RLIMIT_AS`, `RLIMIT_DATA`), which says nothing about how many fit.

use std::path::Path;

use super::levels::{Fact, Reader, TaskLevel};
use super::parse::{lines, number, status_field, words};

pub(crate) const LIMITS: &str = "/proc/self/limits";
const STATUS: &str = "/proc/self/status";

/// Above this nobody's fleet is bound by it, and counting the user's tasks would only cost time.
const RELEVANT: u64 = 4096;
/// `CAP_SYS_ADMIN` and `CAP_SYS_RESOURCE`: whoever has one is not held to the limit.
const EXEMPT: u64 = 1 << 21 | 1 << 24;

/// The limit with what the user runs already, where it holds for this process.
pub(crate) fn tasks(reader: &mut Reader<'_>, text: &[u8]) -> Option<TaskLevel> {
    let row = lines(text).find_map(|line| line.strip_prefix(b"Max processes"))?;
    // The soft limit comes first; `unlimited` is no number.
    let value = words(row).next().and_then(number).filter(|most| *most < RELEVANT)?;
    let status = reader.host.read(Path::new(STATUS)).ok()?;
    let uid = real_uid(&status)?;
    if uid == 0 || capabilities(&status) & EXEMPT != 0 {
        return None;
    }
    let current = running(reader, uid);
    Some(TaskLevel { limit: Fact { value, source: LIMITS.to_owned() }, current })
}

/// The smaller soft limit of what one process may have: its data, or its addresses. Addresses are
/// counted as reserved, not as used; a runtime that reserves many needs that limit far above its share.
pub(crate) fn memory(text: &[u8]) -> Option<Fact<u64>> {
    let soft = |name: &[u8]| {
        let row = lines(text).find_map(|line| line.strip_prefix(name))?;
        words(row).next().and_then(number)
    };
    let limits = [soft(b"Max data size"), soft(b"Max address space")];
    let value = limits.into_iter().flatten().min()?;
    Some(Fact { value, source: LIMITS.to_owned() })
}

fn real_uid(status: &[u8]) -> Option<u64> {
    words(status_field(status, "Uid")?).next().and_then(number)
}

fn capabilities(status: &[u8]) -> u64 {
    let mask = status_field(status, "CapEff").and_then(|text| std::str::from_utf8(text).ok());
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0)
}

/// Threads of all processes of a user that can be seen.
fn running(reader: &Reader<'_>, uid: u64) -> u64 {
    const MOST_PROCESSES: usize = 32_768;
    let processes = reader.host.subdirectories(Path::new("/proc"), MOST_PROCESSES);
    let named = processes.iter().filter(|dir| {
        let name = dir.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| number(name.as_bytes()).is_some())
    });
    let threads = named.filter_map(|dir| {
        let status = reader.host.read(&dir.join("status")).ok()?;
        let ours = real_uid(&status) == Some(uid);
        ours.then(|| status_field(&status, "Threads").and_then(number).unwrap_or(1))
    });
    threads.sum()
}
