//! A second opinion on this process's limits, and what to look at before relying on them.
//!
//! Others are asked where they can be, and computed by their documented algorithms where not, each
//! difference to our answer with its reason ([`Opinion`]); what the machine, the settings and the
//! command hold that hurts sooner or later is told with what to do ([`Finding`]). Reads only through
//! [`Host`], but for the asked ones, who look for themselves. May name `plan`, `probe` and `units`.

mod asked;
mod dotnet;
mod finding;
mod go;
mod jvm;
mod libuv;
mod opinion;
mod others;
mod rust;
#[cfg(test)]
mod tests;
mod view;
mod why;

use std::collections::BTreeMap;

pub(crate) use finding::{Finding, Severity};
pub(crate) use opinion::{Opinion, Ours, Verdict};

use crate::plan::{Given, Plan, Runtime};
use crate::probe::{Evidence, Host};

/// What is looked at.
pub(crate) struct Case<'a> {
    /// The machine.
    pub(crate) host: &'a Host,
    /// What the probe found there.
    pub(crate) evidence: &'a Evidence,
    /// The number, with everything it came from; pretended limits included.
    pub(crate) plan: &'a Plan,
    /// The command's words; none where there is no command.
    pub(crate) command: &'a [String],
    /// What the command runs on.
    pub(crate) runtime: Option<Runtime>,
    /// The environment that workers inherit.
    pub(crate) env: &'a BTreeMap<String, String>,
    /// Whether the command takes our place (`--exec`).
    pub(crate) exec: bool,
    /// What one worker is reckoned with, bytes.
    pub(crate) worker_memory: u64,
    /// What is odd about the settings.
    pub(crate) warnings: &'a [String],
    /// A number of workers that somebody insisted on.
    pub(crate) pinned: Option<&'a Given<u32>>,
}

impl Case<'_> {
    /// A variable that workers inherit; blank is unset.
    fn env(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }
}

/// Everything there is to say.
#[derive(Clone, Debug)]
pub(crate) struct Diagnosis {
    /// Our own answer.
    pub(crate) ours: Ours,
    /// The others', nearest to the kernel first.
    pub(crate) opinions: Vec<Opinion>,
    /// What to look at, the worst first.
    pub(crate) findings: Vec<Finding>,
}

impl Diagnosis {
    /// How many findings are of one severity.
    pub(crate) fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

/// Looks at everything. Never fails: what cannot be read is a finding.
pub(crate) fn examine(case: &Case<'_>) -> Diagnosis {
    let ours = Ours::new(&case.plan.resources, case.plan.workers);
    let opinions = others::opinions(case, &ours);
    Diagnosis { opinions, findings: finding::all(case), ours }
}
