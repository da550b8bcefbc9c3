//! One sentence for each difference, made from where a detector looked and where our limit is; never
//! a text that was thought up for another machine.

use std::path::Path;

use super::opinion::{Belief, Look, Ours, Taken, Verdict, Whole};
use crate::probe::Fact;
use crate::units::{plural, show_number, show_size};

/// `1 CPU`, `0.4 CPU`, `2.5 CPUs`.
pub(super) fn show_cpus(cpus: f64) -> String {
    let number = match show_number(cpus) {
        tiny if tiny == "0" && cpus > 0.0 => format!("{cpus:.4}"),
        number => number,
    };
    format!("{number} {}", if cpus <= 1.0 { "CPU" } else { "CPUs" })
}

/// Ours beside what others start from: the CPUs that this process may run on.
pub(super) struct Scale<'a> {
    pub(super) ours: &'a Ours,
    /// What the probe says about files that it left out.
    pub(super) warnings: &'a [String],
    /// The size of the affinity mask.
    pub(super) set: u32,
    /// The machine's memory.
    pub(super) ram: Option<&'a Fact<u64>>,
}

impl Scale<'_> {
    /// What a detector makes of its quota and the affinity mask.
    pub(super) fn cpus(&self, belief: &Belief<f64>, whole: Whole) -> Verdict<u32> {
        if belief.fails {
            let why = belief.quirk.clone().unwrap_or_default();
            return Verdict { value: None, agrees: Some(false), why };
        }
        if let Some((by, value)) = &belief.told {
            let agrees = same(f64::from(*value), self.ours.cpus);
            return Verdict {
                value: Some(*value),
                agrees: Some(agrees),
                why: format!("told so by {by}"),
            };
        }
        let quota = belief.limit.as_ref().map(|limit| (limit, whole.of(limit.value)));
        // A quota of more CPUs than there are is none.
        let (quota, beyond) = match quota {
            Some((limit, rounded)) if rounded >= self.set && self.set > 0 => (None, Some(limit)),
            quota => (quota, None),
        };
        let value = quota.map_or(self.set.max(1), |(_, rounded)| rounded);
        let mut why = Vec::new();
        if same(f64::from(value), self.ours.cpus) {
            return Verdict { value: Some(value), agrees: Some(true), why: "agrees".to_owned() };
        }
        let exact = quota.map_or(f64::from(value), |(limit, _)| limit.value);
        why.push(match &quota {
            Some((limit, _)) if same(limit.value, self.ours.cpus) => {
                format!("reads the same {}", show_cpus(limit.value))
            }
            Some((limit, _)) => format!("takes {} from {}", show_cpus(limit.value), limit.source),
            None if belief.looks.is_empty() && belief.quirk.is_none() => {
                "counts the CPUs that it may run on and reads no quota".to_owned()
            }
            None if beyond.is_some_and(|limit| !same(limit.value, self.ours.cpus)) => {
                let (cpus, source) = beyond
                    .map(|limit| (show_cpus(limit.value), limit.source.as_str()))
                    .unwrap_or_default();
                format!("takes {cpus} from {source}, more than it may run on")
            }
            None => "takes no quota and counts the CPUs that it may run on".to_owned(),
        });
        if !same(exact, self.ours.cpus) {
            why.extend(belief.quirk.clone());
        }
        if exact > self.ours.cpus && !same(exact, self.ours.cpus) {
            let limit = Limit {
                text: show_cpus(self.ours.cpus),
                source: self.ours.cpus_source.as_deref(),
                taken: quota.map(|(limit, _)| limit.source.as_str()),
            };
            why.extend(limit.missed(&belief.looks, belief.quirk.is_some()));
        } else if exact < self.ours.cpus {
            why.extend(self.left_out(quota.map(|(limit, _)| limit.source.as_str())));
        }
        if let Some((limit, rounded)) = quota {
            why.extend(rounding(limit, rounded, whole));
        }
        Verdict { value: Some(value), agrees: Some(false), why: why.join("; ") }
    }

    /// What a detector makes of its limit and the machine's memory.
    pub(super) fn memory(&self, belief: &Belief<u64>) -> Option<Verdict<u64>> {
        let ram = self.ram.map(|ram| ram.value);
        let limit = belief.limit.as_ref().filter(|limit| ram.is_none_or(|ram| limit.value < ram));
        let value = limit.map(|limit| limit.value).or(ram)?;
        let verdict = |agrees, why| Some(Verdict { value: Some(value), agrees: Some(agrees), why });
        let Some(ours) = self.ours.memory_bytes else {
            return verdict(false, format!("takes it from {}", limit?.source));
        };
        // Some round down to whole pages.
        if value.abs_diff(ours) < 65_536 {
            return verdict(true, "agrees".to_owned());
        }
        let mut why = vec![match limit {
            Some(limit) => format!("takes it from {}", limit.source),
            None if belief.looks.is_empty() && belief.quirk.is_none() => {
                "takes the machine's memory and reads no limit".to_owned()
            }
            None => "takes the machine's memory".to_owned(),
        }];
        why.extend(belief.quirk.clone());
        if value > ours {
            let source = self.ours.memory_source.as_deref();
            let taken = limit.map(|limit| limit.source.as_str());
            let limit = Limit { text: show_size(ours), source, taken };
            why.extend(limit.missed(&belief.looks, belief.quirk.is_some()));
        } else {
            why.extend(self.left_out(limit.map(|limit| limit.source.as_str())));
        }
        verdict(false, why.join("; "))
    }

    /// Why we do not go by a tighter number that somebody found.
    fn left_out(&self, source: Option<&str>) -> Option<String> {
        let source = source?;
        if self.ours.cpus_source.as_deref().and_then(flag).is_some()
            || self.ours.memory_source.as_deref().and_then(flag).is_some()
        {
            return Some("ours is pretended".to_owned());
        }
        if source.ends_with("soft_limit_in_bytes") {
            return Some(
                "but that is a soft limit, and the kernel gives more while there is some"
                    .to_owned(),
            );
        }
        if source.starts_with("/proc/self/limits") {
            return Some("but that limits one process, and not all of them together".to_owned());
        }
        if let Some(warning) = self.warnings.iter().find(|warning| warning.contains(source)) {
            return Some(format!("throng-rs goes by others: {warning}"));
        }
        if source.ends_with("memory.limit_in_bytes") {
            return Some("but what this process uses is not charged to that group".to_owned());
        }
        Some("but that group is not above this process".to_owned())
    }
}

fn rounding(limit: &Taken<f64>, rounded: u32, whole: Whole) -> Option<String> {
    let number = f64::from(rounded);
    if same(limit.value, number) {
        return None;
    }
    Some(if whole == Whole::CeilTwo && limit.value <= 1.0 {
        "never goes below 2, so that its garbage collector can run beside the program".to_owned()
    } else if whole == Whole::Floor && limit.value < 1.0 {
        "never goes below 1".to_owned()
    } else if number > limit.value {
        format!("rounds up to {rounded}")
    } else {
        format!("rounds down to {rounded}")
    })
}

pub(super) fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

fn flag(source: &str) -> Option<&str> {
    source.strip_prefix("flag:")
}

/// Our limit, and the file that the other took his from.
struct Limit<'a> {
    text: String,
    source: Option<&'a str>,
    taken: Option<&'a str>,
}

impl Limit<'_> {
    /// Why somebody who looked at `looks` did not meet our limit.
    fn missed(&self, looks: &[Look], explained: bool) -> Option<String> {
        let source = self.source?;
        if let Some(flag) = flag(source) {
            return Some(format!("it reads the machine and knows nothing of {flag}"));
        }
        if let Some(name) = source.strip_prefix("env:") {
            return Some(format!(
                "the limit of {} is told by {name} in the environment, which it does not read",
                self.text
            ));
        }
        if let Some(name) = source.strip_prefix("file:") {
            return Some(format!("the limit of {} is chosen in {name}", self.text));
        }
        let file = Path::new(source);
        if let Some(look) = looks.iter().find(|look| look.path == file) {
            return match &look.text {
                // Its own way to go wrong has been told.
                _ if explained => None,
                Some(text) => Some(format!("it does not take \"{text}\" in {source} for a limit")),
                None => Some(format!("it could not read {source}")),
            };
        }
        if !source.starts_with("/sys/fs/cgroup")
            && !source.contains("cgroup")
            && !is_limit_file(file)
        {
            return Some(format!("{} is from {source}, which it does not read", self.text));
        }
        if explained && looks.is_empty() {
            return Some(format!("the limit of {} is in {source}", self.text));
        }
        if looks.is_empty() {
            return Some(format!("the limit is {}, in {source}", self.text));
        }
        self.elsewhere(looks, file, explained)
    }

    /// The limit is in a file that was never opened.
    fn elsewhere(&self, looks: &[Look], file: &Path, explained: bool) -> Option<String> {
        let source = self.source?;
        let name = file.file_name()?;
        let opened = |look: &&Look| look.path.file_name() == Some(name);
        let soft = matches!(name.to_str(), Some("memory.high" | "memory.memsw.limit_in_bytes"));
        if soft && !looks.iter().any(|look| opened(&look)) {
            return Some(format!(
                "it does not read {}, which is {} in {source}",
                name.display(),
                self.text
            ));
        }
        let cpuset = name.to_str().is_some_and(|name| name.starts_with("cpuset."));
        if cpuset {
            return Some(format!(
                "it does not read the cpuset, which leaves {} ({source})",
                self.text
            ));
        }
        let own = looks.first()?.path.parent()?;
        let (limit, text) = (file.parent()?, &self.text);
        if name == "memory.stat" {
            return Some(format!(
                "it does not read hierarchical_memory_limit, the kernel's own minimum, which is {text} in {source}"
            ));
        }
        if self.taken.is_none() && looks.iter().all(|look| look.text.is_none()) {
            return Some(format!(
                "it looks in {}, where no such file is; the limit of {text} is in {source}",
                own.display()
            ));
        }
        if own != limit && own.starts_with(limit) {
            let levels = own.strip_prefix(limit).ok()?.components().count();
            let far = plural(u64::try_from(levels).unwrap_or(u64::MAX), "level");
            let sits = format!("the limit of {text} sits {far} up, in {}", limit.display());
            let further = looks.iter().any(|look| look.path.parent() != Some(own));
            return Some(match (explained, further) {
                (true, _) => sits,
                (false, true) => format!("it does not get as far: {sits}"),
                (false, false) => format!("it looks only at its own cgroup: {sits}"),
            });
        }
        if limit == own && !explained {
            return Some(format!("it does not read {source}, which says {text}"));
        }
        if limit != own && limit.starts_with(own) {
            return Some(format!(
                "it looks at {}, above our own group; the limit of {text} is in {source}",
                own.display()
            ));
        }
        if explained {
            return Some(format!("the limit of {text} is in {source}"));
        }
        Some(format!("it looks in {}; the limit of {text} is in {source}", own.display()))
    }
}

/// Whether the name is that of a limit of a cgroup, wherever it is mounted.
fn is_limit_file(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ["memory.", "cpu.", "cpuset."].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn look(path: &str, text: Option<&str>) -> Look {
        Look { path: PathBuf::from(path), text: text.map(str::to_owned) }
    }

    fn missed(source: &str, looks: &[Look]) -> String {
        let limit = Limit { text: "1.5 CPUs".to_owned(), source: Some(source), taken: None };
        limit.missed(looks, false).unwrap_or_default()
    }

    #[test]
    fn the_sentence_says_where_the_limit_is_from_where_they_looked() {
        let leaf = "/sys/fs/cgroup/web.slice/a.slice/u.service/cpu.max";
        assert_eq!(
            missed("/sys/fs/cgroup/web.slice/cpu.max", &[look(leaf, Some("max 100000"))]),
            "it looks only at its own cgroup: the limit of 1.5 CPUs sits 2 levels up, in /sys/fs/cgroup/web.slice"
        );
        assert_eq!(
            missed("/mnt/cg/cpu.max", &[look(leaf, None)]),
            "it looks in /sys/fs/cgroup/web.slice/a.slice/u.service, where no such file is; the limit of 1.5 CPUs is in /mnt/cg/cpu.max"
        );
        assert_eq!(missed("flag:--cpus", &[]), "it reads the machine and knows nothing of --cpus");
        assert!(missed("env:NOMAD_CPU_CORES", &[]).contains("NOMAD_CPU_CORES"));
        assert_eq!(
            missed("/sys/fs/cgroup/cpuset.cpus.effective", &[look(leaf, Some("max"))]),
            "it does not read the cpuset, which leaves 1.5 CPUs (/sys/fs/cgroup/cpuset.cpus.effective)"
        );
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(show_cpus(1.0), "1 CPU");
        assert_eq!(show_cpus(0.4), "0.4 CPU");
        assert_eq!(show_cpus(2.5), "2.5 CPUs");
        assert_eq!(show_cpus(0.001), "0.0010 CPU");
    }
}
