//! What platforms tell in the environment beside, or instead of, a cgroup. Such a figure can only
//! tighten what the kernel says; one that makes no sense is left out with a warning.
//!
//! A table, so that a platform is a row. What each variable means is from the platform's own
//! documentation, named in the row's comment.

use std::os::unix::ffi::OsStrExt;

use super::Evidence;
use super::host::{Host, show};
use super::levels::{Fact, MemoryLevel};
use super::parse::{CpuSet, number, trim};
use crate::units::{Fraction, MIB};

/// What a variable holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// The memory limit in MiB.
    Memory,
    /// The same, and the CPUs follow from it: one for so many MiB.
    MemoryAndCpu { per_cpu: u64 },
    /// The ids of the CPUs, `0-2,7`.
    Cpus,
}

struct Row {
    variable: &'static str,
    holds: Holds,
    /// Does not count where this one is set, which says more.
    unless: Option<&'static str>,
}

const fn row(variable: &'static str, holds: Holds) -> Row {
    Row { variable, holds, unless: None }
}

const ROWS: &[Row] = &[
    // AWS Lambda, "Configure Lambda function memory": at 1,769 MB a function has one vCPU.
    row("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", Holds::MemoryAndCpu { per_cpu: 1769 }),
    // Nomad, "Runtime environment settings": the second is a soft limit where the first is set.
    // NOMAD_CPU_LIMIT is in MHz of unknown CPUs, and a share: no limit.
    row("NOMAD_MEMORY_MAX_LIMIT", Holds::Memory),
    Row { unless: Some("NOMAD_MEMORY_MAX_LIMIT"), ..row("NOMAD_MEMORY_LIMIT", Holds::Memory) },
    row("NOMAD_CPU_CORES", Holds::Cpus),
    // Fly.io, "The machine runtime environment".
    row("FLY_VM_MEMORY_MB", Holds::Memory),
    // Azure App Service, "Environment variables and app settings".
    row("WEBSITE_MEMORY_LIMIT_MB", Holds::Memory),
];

/// Adds what the environment says to what the files said.
pub(crate) fn overlay(host: &Host, evidence: &mut Evidence) {
    for row in ROWS {
        let Some(text) = host.env(row.variable) else { continue };
        if row.unless.is_some_and(|other| host.env(other).is_some()) {
            continue;
        }
        let text = trim(text.as_bytes());
        if !evidence.add(row, text) {
            evidence.warnings.push(format!(
                "{} in the environment is \"{}\", which is no {}, and is ignored",
                row.variable,
                show(text),
                if row.holds == Holds::Cpus { "list of CPUs" } else { "number of MiB" }
            ));
        }
    }
}

impl Evidence {
    /// False where the text makes no sense.
    fn add(&mut self, row: &Row, text: &[u8]) -> bool {
        let source = format!("env:{}", row.variable);
        if row.holds == Holds::Cpus {
            let set = CpuSet::from_list(text).filter(|set| set.count() > 0);
            let cpus = set.and_then(|set| Fraction::new(u64::from(set.count()), 1));
            self.quotas.extend(cpus.map(|value| Fact { value, source }));
            return cpus.is_some();
        }
        // Saturated or zero: nobody runs in no memory, nor in 16 EiB.
        let mib = number(text).filter(|mib| *mib > 0 && *mib < u64::MAX);
        let Some(mib) = mib else { return false };
        if let Holds::MemoryAndCpu { per_cpu } = row.holds {
            let cpus = Fraction::new(mib, per_cpu);
            self.quotas.extend(cpus.map(|value| Fact { value, source: source.clone() }));
        }
        let limit = Some(Fact { value: mib.saturating_mul(MIB), source });
        self.memory.push(MemoryLevel {
            dir: row.variable.to_owned(),
            limit,
            ..MemoryLevel::default()
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(env: &[(&'static str, &'static str)]) -> Evidence {
        let mut evidence = Evidence::default();
        overlay(&Host::live().with_env(env.iter().copied()), &mut evidence);
        evidence
    }

    fn limits(evidence: &Evidence) -> Vec<(u64, &str)> {
        let facts = evidence.memory.iter().filter_map(|level| level.limit.as_ref());
        facts.map(|fact| (fact.value / MIB, fact.source.as_str())).collect()
    }

    #[test]
    fn lambda_has_memory_and_the_cpu_that_goes_with_it() {
        let found = with(&[("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")]);
        assert_eq!(limits(&found), [(512, "env:AWS_LAMBDA_FUNCTION_MEMORY_SIZE")]);
        assert!((found.quotas[0].value.as_f64() - 512.0 / 1769.0).abs() < 1e-9);
    }

    #[test]
    fn nomads_hard_limit_counts_before_its_soft_one() {
        let found = with(&[
            ("NOMAD_MEMORY_LIMIT", "256"),
            ("NOMAD_MEMORY_MAX_LIMIT", "512"),
            ("NOMAD_CPU_CORES", "0-2,7"),
            ("NOMAD_CPU_LIMIT", "2400"),
        ]);
        assert_eq!(limits(&found), [(512, "env:NOMAD_MEMORY_MAX_LIMIT")]);
        assert_eq!(found.quotas.len(), 1);
        assert_eq!(Some(found.quotas[0].value), Fraction::new(4, 1));
        assert_eq!(
            limits(&with(&[("NOMAD_MEMORY_LIMIT", "256")])),
            [(256, "env:NOMAD_MEMORY_LIMIT")]
        );
    }

    #[test]
    fn hostile_values_are_ignored_with_a_warning() {
        for text in ["-1", "abc", "0", "99999999999999999999", "1e3", "512M"] {
            let found = with(&[("FLY_VM_MEMORY_MB", text)]);
            assert!(found.memory.is_empty(), "{text}");
            assert!(found.warnings[0].contains(text), "{:?}", found.warnings);
        }
        let found = with(&[("NOMAD_CPU_CORES", "3-1"), ("WEBSITE_MEMORY_LIMIT_MB", " ")]);
        assert!(found.quotas.is_empty() && found.memory.is_empty());
        assert_eq!(found.warnings.len(), 1, "blank is unset");
    }
}
