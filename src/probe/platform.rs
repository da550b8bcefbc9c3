//! What platforms tell in the environment beside, or instead of, a cgroup. Such a figure can only
//! tighten what the kernel says; one that makes no sense is left out with a warning.
//!
//! A table, so that a platform is a row. What each variable means is from the platform's own
//! documentation, named in the row's comment. Railway, Cloud Run and Azure Container Apps
//! tell no limit in a variable: their containers have cgroups.

use std::os::unix::ffi::OsStrExt;

use super::Evidence;
use super::host::{Host, show};
use super::levels::{Fact, MemoryLevel};
use super::parse::{CpuSet, number, trim};
use crate::units::{Fraction, MIB, parse_size};

/// What a variable holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// The memory limit in MiB.
    Memory,
    /// The same, and the CPUs follow from it: one for so many MiB.
    MemoryAndCpu { per_cpu: u64 },
    /// The memory limit with a unit: `512m`, `1G`.
    Size,
    /// The memory limit as Kubernetes writes it: `512Mi`, bytes, or MiB by `divisor: 1Mi`.
    MemoryQuantity,
    /// CPUs as Kubernetes writes them: `1500m`, `2`, or thousandths by `divisor: 1m`.
    CpuQuantity,
    /// CPUs with a decimal fraction, `0.5`.
    CpuCount,
    /// The ids of the CPUs, `0-2,7`.
    Cpus,
}

impl Holds {
    fn words(self) -> &'static str {
        match self {
            Self::Memory | Self::MemoryAndCpu { .. } => "number of MiB",
            Self::Size | Self::MemoryQuantity => "size",
            Self::CpuQuantity | Self::CpuCount => "number of CPUs",
            Self::Cpus => "list of CPUs",
        }
    }
}

struct Row {
    variable: &'static str,
    holds: Holds,
    /// Counts only where this one is set too: the name alone could be anybody's.
    only_with: Option<&'static str>,
    /// Does not count where this one is set, which says more.
    unless: Option<&'static str>,
}

const fn row(variable: &'static str, holds: Holds) -> Row {
    Row { variable, holds, only_with: None, unless: None }
}

const fn kubernetes(variable: &'static str, holds: Holds) -> Row {
    Row { only_with: Some("KUBERNETES_SERVICE_HOST"), ..row(variable, holds) }
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
    // Google App Engine, standard environment, "Environment variables".
    Row { only_with: Some("GAE_INSTANCE"), ..row("GAE_MEMORY_MB", Holds::Memory) },
    // Render, "Default environment variables": CPUs of the instance, also "0.5".
    Row { only_with: Some("RENDER"), ..row("RENDER_CPU_COUNT", Holds::CpuCount) },
    // Heroku's Python buildpack, from the dyno's own limit.
    Row { only_with: Some("DYNO"), ..row("DYNO_RAM", Holds::Memory) },
    // Cloud Foundry, "Environment variables": memory of an instance with its unit.
    Row { only_with: Some("VCAP_APPLICATION"), ..row("MEMORY_LIMIT", Holds::Size) },
    // Kubernetes, "Expose Pod Information to Containers Through Environment Variables": the names are
    // the author's choice; these are the documentation's own and the usual ones.
    kubernetes("MY_MEM_LIMIT", Holds::MemoryQuantity),
    kubernetes("MY_CPU_LIMIT", Holds::CpuQuantity),
    kubernetes("MEMORY_LIMIT", Holds::MemoryQuantity),
    kubernetes("CPU_LIMIT", Holds::CpuQuantity),
    kubernetes("CONTAINER_MEMORY_LIMIT", Holds::MemoryQuantity),
    kubernetes("CONTAINER_CPU_LIMIT", Holds::CpuQuantity),
    kubernetes("KUBERNETES_MEMORY_LIMIT", Holds::MemoryQuantity),
    kubernetes("KUBERNETES_CPU_LIMIT", Holds::CpuQuantity),
];

/// Adds what the environment says to what the files said.
pub(crate) fn overlay(host: &Host, evidence: &mut Evidence) {
    for row in ROWS {
        let Some(text) = host.env(row.variable) else { continue };
        if row.only_with.is_some_and(|sign| host.env(sign).is_none())
            || row.unless.is_some_and(|other| host.env(other).is_some())
        {
            continue;
        }
        let text = trim(text.as_bytes());
        if evidence.add(row, text).is_none() {
            evidence.warnings.push(format!(
                "{} in the environment is \"{}\", which is no {}, and is ignored",
                row.variable,
                show(text),
                row.holds.words()
            ));
        }
    }
}

impl Evidence {
    /// `None` where the text makes no sense.
    fn add(&mut self, row: &Row, text: &[u8]) -> Option<()> {
        let source = format!("env:{}", row.variable);
        match row.holds {
            Holds::Cpus => {
                let set = CpuSet::from_list(text).filter(|set| set.count() > 0)?;
                self.add_quota(Fraction::new(u64::from(set.count()), 1)?, source);
            }
            Holds::CpuCount => {
                let text = std::str::from_utf8(text).ok()?;
                let cpus: f64 = text.parse().ok()?;
                self.add_quota(Fraction::from_f64(cpus)?, source);
            }
            Holds::CpuQuantity => self.add_quota(cpu_quantity(text)?, source),
            Holds::Memory => self.add_limit(mebibytes(text)?, row.variable, source),
            Holds::MemoryAndCpu { per_cpu } => {
                let bytes = mebibytes(text)?;
                self.add_quota(Fraction::new(bytes / MIB, per_cpu)?, source.clone());
                self.add_limit(bytes, row.variable, source);
            }
            Holds::Size => {
                let bytes = parse_size(std::str::from_utf8(text).ok()?).filter(|b| *b > 0)?;
                self.add_limit(bytes, row.variable, source);
            }
            Holds::MemoryQuantity => {
                self.add_limit(memory_quantity(text)?, row.variable, source);
            }
        }
        Some(())
    }

    pub(super) fn add_quota(&mut self, value: Fraction, source: String) {
        self.quotas.push(Fact { value, source });
    }

    pub(super) fn add_limit(&mut self, value: u64, dir: &str, source: String) {
        let limit = Some(Fact { value, source });
        self.memory.push(MemoryLevel { dir: dir.to_owned(), limit, ..MemoryLevel::default() });
    }
}

/// Saturated or zero: nobody runs in no memory, nor in 16 EiB.
fn mebibytes(text: &[u8]) -> Option<u64> {
    number(text).filter(|mib| *mib > 0 && *mib < u64::MAX)?.checked_mul(MIB)
}

/// Below this a plain number may be MiB or, by `divisor: 1Gi`, GiB: nobody can tell.
const UNCLEAR: u64 = 128;

/// Bytes of a Kubernetes quantity. A plain number below 1 MiB is in MiB: no container is that small,
/// and `divisor: 1Mi` is common.
fn memory_quantity(text: &[u8]) -> Option<u64> {
    let (value, unit) = split_unit(text);
    let value = number(value).filter(|value| *value > 0)?;
    let factor: u64 = match unit {
        b"" if value < UNCLEAR => return None,
        b"" if value < MIB => MIB,
        b"" => 1,
        b"k" => 1000,
        b"M" => 1_000_000,
        b"G" => 1_000_000_000,
        b"T" => 1_000_000_000_000,
        b"Ki" => 1 << 10,
        b"Mi" => 1 << 20,
        b"Gi" => 1 << 30,
        b"Ti" => 1 << 40,
        _ => return None,
    };
    value.checked_mul(factor)
}

/// CPUs of a Kubernetes quantity. A plain number from 1000 on is in thousandths (`divisor: 1m`): no
/// node has a thousand CPUs; below, it is taken for CPUs, because too few is worse than too many here.
fn cpu_quantity(text: &[u8]) -> Option<Fraction> {
    let (value, unit) = split_unit(text);
    let value = number(value).filter(|value| *value > 0 && *value < 10_000_000)?;
    match unit {
        b"m" => Fraction::new(value, 1000),
        b"" if value >= 1000 => Fraction::new(value, 1000),
        b"" => Fraction::new(value, 1),
        _ => None,
    }
}

fn split_unit(text: &[u8]) -> (&[u8], &[u8]) {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    text.split_at(digits)
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

    #[test]
    fn a_count_of_cpus_may_be_a_fraction() {
        assert!(with(&[("RENDER_CPU_COUNT", "0.5")]).quotas.is_empty(), "not on Render");
        let render = with(&[("RENDER", "true"), ("RENDER_CPU_COUNT", "0.5")]);
        assert!((render.quotas[0].value.as_f64() - 0.5).abs() < 1e-9);
        for text in ["0", "-1", "many", "1e99", "NaN"] {
            let found = with(&[("RENDER", "true"), ("RENDER_CPU_COUNT", text)]);
            assert!(found.quotas.is_empty() && found.warnings[0].contains(text), "{text}");
        }
        let engine = with(&[("GAE_INSTANCE", "a"), ("GAE_MEMORY_MB", "384")]);
        assert_eq!(limits(&engine), [(384, "env:GAE_MEMORY_MB")]);
    }

    #[test]
    fn generic_names_count_only_on_their_platform() {
        assert!(with(&[("MEMORY_LIMIT", "512Mi"), ("CPU_LIMIT", "2")]).memory.is_empty());
        let foundry = with(&[("VCAP_APPLICATION", "{}"), ("MEMORY_LIMIT", "512m")]);
        assert_eq!(limits(&foundry), [(512, "env:MEMORY_LIMIT")]);
        let pod = with(&[
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            ("MY_MEM_LIMIT", "536870912"),
            ("CONTAINER_MEMORY_LIMIT", "256"),
            ("KUBERNETES_MEMORY_LIMIT", "64"),
            ("MY_CPU_LIMIT", "1500"),
            ("CPU_LIMIT", "500m"),
        ]);
        assert_eq!(limits(&pod), [(512, "env:MY_MEM_LIMIT"), (256, "env:CONTAINER_MEMORY_LIMIT")]);
        let cpus: Vec<_> = pod.quotas.iter().map(|quota| quota.value.as_f64()).collect();
        assert_eq!(cpus, [1.5, 0.5]);
        assert!(pod.warnings[0].contains("KUBERNETES_MEMORY_LIMIT"), "64 of what?");
        let bad = with(&[("KUBERNETES_SERVICE_HOST", "x"), ("MEMORY_LIMIT", "lots")]);
        assert!(bad.memory.is_empty() && bad.warnings[0].contains("lots"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_widens_or_panics(text in "\\PC{0,24}", pick in 0..ROWS.len()) {
            let signs = ["KUBERNETES_SERVICE_HOST", "VCAP_APPLICATION", "DYNO"].map(|s| (s, "x"));
            let mut evidence = Evidence::default();
            let env = signs.into_iter().chain([(ROWS[pick].variable, text.as_str())]);
            overlay(&Host::live().with_env(env), &mut evidence);
            let known = evidence.memory.len() + evidence.quotas.len();
            proptest::prop_assert!(known + evidence.warnings.len() <= 3);
            proptest::prop_assert!(evidence.memory.iter().all(|m| m.limit.as_ref().is_some_and(|l| l.value > 0)));
        }
    }
}
