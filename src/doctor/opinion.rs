//! What another program believes, in its own terms, before and after it is laid beside ours.
//! Pure data; depends on `probe` and `units`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::probe::{Host, Resources, show};
use crate::units::Fraction;

/// Another program's view of this machine, with the reason for each difference to ours.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Opinion {
    /// A short name for programs to go by.
    pub(crate) id: &'static str,
    /// Whose opinion it is.
    pub(crate) who: &'static str,
    /// Whether the real thing was asked; else it was computed by its documented algorithm.
    pub(crate) asked: bool,
    /// CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpus: Option<Verdict<u32>>,
    /// Memory, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<Verdict<u64>>,
    /// How large its heap may grow where nothing is said, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) heap_bytes: Option<Verdict<u64>>,
}

/// One number with its reason.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict<T> {
    /// What is believed; `None` where the program would not say or not even start.
    pub(crate) value: Option<T>,
    /// Whether it is our answer too; a heap has no answer of ours to agree with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) agrees: Option<bool>,
    /// One sentence.
    pub(crate) why: String,
}

/// Our own answer, which the others are compared with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ours {
    /// CPUs, a fraction.
    pub(crate) cpus: f64,
    /// The file, variable or flag behind it.
    pub(crate) cpus_source: Option<String>,
    /// Bytes: the least of limit, `memory.high` and the machine's memory.
    pub(crate) memory_bytes: Option<u64>,
    /// The file, variable or flag behind it.
    pub(crate) memory_source: Option<String>,
    /// How many workers that makes.
    pub(crate) workers: u32,
}

impl Ours {
    pub(crate) fn new(resources: &Resources, workers: u32) -> Self {
        let memory = &resources.memory;
        let facts = [&memory.limit, &memory.high, &memory.ram];
        let least = facts.into_iter().flatten().min_by_key(|fact| fact.value);
        Self {
            cpus: resources.cpu.usable,
            cpus_source: resources.cpu.source.clone(),
            memory_bytes: least.map(|fact| fact.value),
            memory_source: least.map(|fact| fact.source.clone()),
            workers,
        }
    }
}

/// A file that a detector opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) path: PathBuf,
    /// What it held, for a person; `None` where there is no such file.
    pub(super) text: Option<String>,
}

/// Reads as a detector does, and remembers where it looked.
pub(super) struct Lens<'a> {
    pub(super) host: &'a Host,
    pub(super) looks: Vec<Look>,
}

impl<'a> Lens<'a> {
    pub(super) fn new(host: &'a Host) -> Self {
        Self { host, looks: Vec::new() }
    }

    /// A limit file.
    pub(super) fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        let content = self.host.read(path).ok();
        let text = content.as_deref().map(show);
        self.looks.push(Look { path: path.to_owned(), text });
        content
    }

    /// A file that holds no limit.
    pub(super) fn peek(&self, path: &str) -> Vec<u8> {
        self.host.read(Path::new(path)).unwrap_or_default()
    }
}

/// A limit as a detector takes it, with its file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Taken<T> {
    pub(super) value: T,
    pub(super) source: String,
}

/// How a detector came to its number.
#[derive(Clone, Debug, Default)]
pub(super) struct Belief<T> {
    /// The limit that it took.
    pub(super) limit: Option<Taken<T>>,
    /// Every limit file that it opened, in order.
    pub(super) looks: Vec<Look>,
    /// What of its own ways decided here, where that is more than where it looked.
    pub(super) quirk: Option<String>,
    /// The whole variable that overrules it, `GOMAXPROCS=8`.
    pub(super) told: Option<(String, u32)>,
    /// Set where the program fails instead of answering.
    pub(super) fails: bool,
}

/// How a fraction of CPUs becomes the number that a program tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// Down, and at least 1.
    Floor,
    /// Up, and at least 1.
    Ceil,
    /// Up, and at least 2.
    CeilTwo,
}

impl Whole {
    /// Never 0; what is beyond 32 bits saturates.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float casts saturate"
    )]
    pub(super) fn of(self, cpus: f64) -> u32 {
        match self {
            Self::Floor => (cpus.floor() as u32).max(1),
            Self::Ceil => (cpus.ceil() as u32).max(1),
            Self::CeilTwo => (cpus.ceil() as u32).max(2),
        }
    }
}

/// The smaller of two limits; the first of equals.
pub(super) fn tighter<T: PartialOrd>(
    best: Option<Taken<T>>,
    next: Option<Taken<T>>,
) -> Option<Taken<T>> {
    match (best, next) {
        (Some(best), Some(next)) => Some(if next.value < best.value { next } else { best }),
        (best, next) => best.or(next),
    }
}

/// `quota / period` where both make sense to a careful reader.
pub(super) fn quotient(quota: u64, period: u64) -> Option<f64> {
    (quota > 0).then(|| Fraction::new(quota, period)).flatten().map(Fraction::as_f64)
}
