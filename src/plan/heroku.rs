//! What Heroku's buildpacks recommend on the same machine, and which of their assumptions makes the
//! difference: found by taking their assumptions over, one after the other, until the number is theirs.
//!
//! The formulas are those of heroku-buildpack-nodejs (`profile/WEB_CONCURRENCY.sh`) and
//! heroku-buildpack-python (`vendor/WEB_CONCURRENCY.sh`).

use super::reason::Given;
use super::runtime::Runtime;
use super::sizing::{Cpus, Headroom, Inputs, Rounding};
use super::{Request, inputs};
use crate::probe::Resources;
use crate::units::{MIB, plural, show_size};

/// The number that the Node.js buildpack recommends.
///
/// `memory` in MiB; `web_memory` is `WEB_MEMORY` in MiB, where it is set.
#[must_use]
pub fn nodejs(memory: u64, web_memory: Option<u64>) -> u64 {
    const MOST_MEMORY: u64 = 129_024;
    let memory = memory.min(MOST_MEMORY);
    match memory / each_nodejs(memory, web_memory) {
        // What looks too many is taken for a detection that went wrong.
        0 | 201.. => 1,
        workers => workers,
    }
}

fn each_nodejs(memory: u64, web_memory: Option<u64>) -> u64 {
    web_memory.unwrap_or(if memory > 16_384 { 2048 } else { 512 }).max(1)
}

/// The number that the Python buildpack recommends; `memory` in MiB, `cpus` as `nproc` prints them.
#[must_use]
pub fn python(memory: u64, cpus: u64) -> u64 {
    (memory / 256).min(cpus.saturating_mul(2).saturating_add(1)).max(1)
}

/// A buildpack's number beside ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The buildpack: `heroku/nodejs`.
    pub buildpack: &'static str,
    /// Its number.
    pub workers: u64,
    /// Which of its assumptions make the difference; none where the numbers agree.
    pub because: Vec<String>,
}

/// An assumption of a buildpack that is not ours.
#[derive(Clone, Copy, Debug)]
enum Assumption {
    /// A worker costs so many bytes.
    Cost(u64),
    /// Nothing is kept free.
    NoHeadroom,
    /// CPUs do not count.
    NoCpuRule,
    /// Two workers a CPU and one more.
    TwoAndOne,
}

impl Assumption {
    fn apply(self, inputs: &mut Inputs) {
        match self {
            Self::Cost(bytes) => inputs.worker_memory = bytes,
            Self::NoHeadroom => inputs.headroom = Some(Headroom::Bytes(0)),
            Self::NoCpuRule => inputs.workers_per_cpu = f64::from(super::MOST_WORKERS),
            Self::TwoAndOne => {
                inputs.cpus = Cpus { quota: Some(2.0 * inputs.cpus.usable() + 1.0), set: None };
                inputs.workers_per_cpu = 1.0;
                inputs.rounding = Rounding::Floor;
            }
        }
    }

    fn words(self) -> String {
        match self {
            Self::Cost(bytes) => format!("reckons with {} a worker", show_size(bytes)),
            Self::NoHeadroom => "keeps nothing free".to_owned(),
            Self::NoCpuRule => "does not look at CPUs".to_owned(),
            Self::TwoAndOne => "takes two workers a CPU and one more".to_owned(),
        }
    }
}

/// What the buildpack of `request`'s runtime recommends on this machine; `None` where there is none
/// that computes a number.
#[must_use]
pub fn compare(resources: &Resources, request: &Request) -> Option<Comparison> {
    let memory = resources.memory.limit.as_ref()?.value / MIB;
    let told = request.worker_memory.as_ref().filter(|cost| cost.is_from("env:WEB_MEMORY"));
    let web_memory = told.map(|cost| cost.value / MIB);
    let (buildpack, workers, assumptions) = match request.runtime {
        Runtime::Node => {
            let each = each_nodejs(memory, web_memory) * MIB;
            let assumptions =
                [Assumption::NoCpuRule, Assumption::Cost(each), Assumption::NoHeadroom];
            ("heroku/nodejs", nodejs(memory, web_memory), assumptions)
        }
        Runtime::Python => {
            let assumptions =
                [Assumption::Cost(256 * MIB), Assumption::TwoAndOne, Assumption::NoHeadroom];
            ("heroku/python", python(memory, whole(resources.cpu.usable)), assumptions)
        }
        _ => return None,
    };
    let request = Request { workers: None, min_workers: Given::default_of(1), ..request.clone() };
    let because = reasons(&inputs(resources, &request), workers, &assumptions);
    Some(Comparison { buildpack, workers, because })
}

/// The fewest assumptions that give their number.
fn reasons(inputs: &Inputs, theirs: u64, assumptions: &[Assumption; 3]) -> Vec<String> {
    let chosen = |set: u8| {
        assumptions.iter().enumerate().filter(move |(at, _)| set >> at & 1 == 1).map(|(_, a)| *a)
    };
    let gives = |set: u8| {
        let mut inputs = inputs.clone();
        chosen(set).for_each(|assumption| assumption.apply(&mut inputs));
        u64::from(inputs.size().workers)
    };
    let mut sets: Vec<u8> = (0..8).collect();
    sets.sort_by_key(|set| set.count_ones());
    match sets.into_iter().find(|set| gives(*set) == theirs) {
        Some(set) => chosen(set).map(Assumption::words).collect(),
        None => vec![format!("ends at {} by a rule of its own", plural(theirs, "worker"))],
    }
}

/// As `nproc` prints it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
fn whole(cpus: f64) -> u64 {
    (cpus as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::units::Fraction;

    /// Memory in MiB and CPUs of the dynos, and the published numbers of both buildpacks.
    const PUBLISHED: &[(u64, u64, u64, u64)] = &[
        (512, 8, 1, 2),
        (1024, 8, 2, 4),
        (2560, 2, 5, 5),
        (14_336, 8, 28, 17),
        (30_720, 4, 15, 9),
        (63_488, 8, 31, 17),
        (129_024, 16, 63, 33),
    ];

    fn asked(runtime: Runtime) -> Request {
        Request { runtime, ..Request::default() }
    }

    #[test]
    fn the_formulas_give_the_published_numbers() {
        for (memory, cpus, node, py) in PUBLISHED {
            assert_eq!((nodejs(*memory, None), python(*memory, *cpus)), (*node, *py), "{memory}");
        }
        assert_eq!(nodejs(14_336, Some(1024)), 14);
        assert_eq!(nodejs(1024, Some(2048)), 1);
        assert_eq!(nodejs(14_336, Some(10)), 1, "more than 200 is not believed");
    }

    #[test]
    fn with_their_assumptions_our_arithmetic_gives_their_numbers() {
        for (memory, cpus, node, py) in PUBLISHED {
            let there = Resources::pretend(memory * MIB, Fraction::new(*cpus, 1).unwrap());
            for (runtime, theirs) in [(Runtime::Node, *node), (Runtime::Python, *py)] {
                let compared = compare(&there, &asked(runtime)).unwrap();
                assert_eq!(compared.workers, theirs);
                assert!(!compared.because.iter().any(|why| why.contains("own")), "{compared:?}");
                let ours = Plan::new(there.clone(), &asked(runtime)).workers;
                assert_eq!(compared.because.is_empty(), u64::from(ours) == theirs);
            }
        }
    }
}
