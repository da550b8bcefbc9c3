//! What a finding is; the rules that make them are beside, by what they look at.

use serde::Serialize;

mod command;
mod cpu;
mod events;
mod memory;
pub(super) mod runtime;
mod sight;
mod tasks;

use super::Case;

/// How much it hurts, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Severity {
    /// Something fails, or has failed already.
    Problem,
    /// Something will fail or be slow when the load comes.
    Warning,
    /// Good to know.
    Note,
}

/// One thing to look at.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// A short name for programs to go by; stays the same.
    pub(crate) id: &'static str,
    /// How much it hurts.
    pub(crate) severity: Severity,
    /// The file, `env:NAME`, `flag:--NAME` or `command` that it is based on.
    pub(crate) source: String,
    /// What stands there.
    pub(crate) text: String,
    /// What it means, whole sentences.
    pub(crate) what: String,
    /// What to do.
    #[serde(rename = "do")]
    pub(crate) remedy: String,
}

impl Finding {
    fn new(
        severity: Severity,
        id: &'static str,
        (source, text): (impl Into<String>, impl Into<String>),
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (source, text) = (source.into(), text.into());
        Self { id, severity, source, text, what: what.into(), remedy: remedy.into() }
    }
}

/// Every rule, the worst findings first.
pub(super) fn all(case: &Case<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    memory::findings(case, &mut found);
    events::findings(case, &mut found);
    cpu::findings(case, &mut found);
    tasks::findings(case, &mut found);
    runtime::findings(case, &mut found);
    command::findings(case, &mut found);
    sight::findings(case, &mut found);
    found.sort_by_key(|finding| finding.severity);
    found
}

/// A fragment as a sentence.
fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
