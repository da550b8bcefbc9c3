//! What a calibration found, as a file: `throng.profile.json`.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::curve::{Bound, Curve, Step};
use crate::found::Found;
use crate::plan::{MOST_WORKERS, Profiled};

/// The form that this version writes and reads.
const SCHEMA: u32 = 1;
/// No profile is longer.
const LONGEST: u64 = 1 << 20;
/// Bytes; more than any machine has, and far from where sums overflow.
const MOST_BYTES: u64 = 1 << 46;
/// No process costs less: that much the kernel alone keeps for it, as stacks and page tables.
const LEAST_BYTES: u64 = 32 << 10;
const MOST_CPUS: f64 = 1e6;
/// Of all workers together. Less is not told from nothing: it is a tick of the clock or two in a short step.
const LEAST_CPUS: f64 = 0.02;
/// So many times the most workers that were tried is as far as a forecast goes.
const FORECAST: f64 = 4.0;

/// The file. Memory in bytes, CPU in CPUs. Fields may be added; none changes its meaning while `schema` is 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Profile {
    schema: u32,
    /// Of throng-rs.
    version: String,
    pub(crate) command: Vec<String>,
    /// What there was.
    limits: Limits,
    /// The load, in words.
    load: String,
    /// What the rates count: `requests` or `cpu`.
    measure: String,
    worker: Worker,
    knee: Knee,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Limits {
    memory_bytes: Option<u64>,
    cpus: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Worker {
    /// What one more costs, under load.
    private_bytes: u64,
    /// What there is once for all.
    shared_once_bytes: u64,
    growth_bytes_per_minute: u64,
    /// Used by each at the knee.
    cpus: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Knee {
    workers: u32,
    rate: f64,
    bound_by: Bound,
    throttled: f64,
}

impl Profile {
    pub(crate) fn new(
        command: Vec<String>,
        memory: Option<u64>,
        cpus: f64,
        load: String,
        counts_requests: bool,
        curve: &Curve,
    ) -> Self {
        let knee = curve.knee;
        // It was measured within that.
        let most = memory.unwrap_or(MOST_BYTES).clamp(LEAST_BYTES, MOST_BYTES);
        let cost = curve.cost.clamp(LEAST_BYTES, most);
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command,
            limits: Limits { memory_bytes: memory, cpus },
            load,
            measure: if counts_requests { "requests" } else { "cpu" }.to_owned(),
            worker: Worker {
                private_bytes: cost,
                shared_once_bytes: curve.shared.min(most - cost),
                growth_bytes_per_minute: curve.growth,
                cpus: knee.cpus / f64::from(knee.workers),
            },
            knee: Knee {
                workers: knee.workers,
                rate: knee.rate,
                bound_by: curve.bound,
                throttled: knee.throttled,
            },
            steps: curve.steps.clone(),
        }
    }

    /// Reads `path`. `Ok(None)` where there is none; the second is why one that is there is not taken, where
    /// nobody asked for it by name.
    pub(crate) fn read(path: &Path, asked: bool) -> Result<(Option<Self>, Option<String>), String> {
        let shown = path.display();
        let unreadable = |error| format!("cannot read the profile {shown}: {error}");
        let file = match Found::at(path, asked).map_err(unreadable)? {
            Found::Nothing => return Ok((None, None)),
            Found::Foreign => {
                let why = format!(
                    "{shown} is not taken, because others may write it; --profile {shown} takes it"
                );
                return Ok((None, Some(why)));
            }
            Found::File(file) => file,
        };
        let mut text = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut text).map_err(unreadable)?;
        let again = "calibrate anew, or leave it out by --profile off";
        if text.len() as u64 > LONGEST {
            return Err(format!("{shown} is too long for a profile; {again}"));
        }
        Self::parse(&text).map(|profile| (Some(profile), None)).map_err(|why| {
            format!("{shown} is no profile that this version can use: {why}; {again}")
        })
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let value: serde_json::Value =
            serde_json::from_slice(text).map_err(|error| error.to_string())?;
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            Some(1) => {}
            Some(other) => return Err(format!("its schema is {other} and not {SCHEMA}")),
            None => return Err("it has no schema".to_owned()),
        }
        let profile: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        profile.check().map_err(|what| format!("its {what} makes no sense"))?;
        Ok(profile)
    }

    fn check(&self) -> Result<(), &'static str> {
        let worker = &self.worker;
        let sane = |cpus: f64| (0.0..=MOST_CPUS).contains(&cpus);
        // No more was measured than there was.
        let most = self.limits.memory_bytes.unwrap_or(MOST_BYTES).clamp(LEAST_BYTES, MOST_BYTES);
        let rest = most.saturating_sub(worker.private_bytes);
        let rules = [
            ((LEAST_BYTES..=most).contains(&worker.private_bytes), "worker.private_bytes"),
            (worker.shared_once_bytes <= rest, "worker.shared_once_bytes"),
            (sane(worker.cpus), "worker.cpus"),
            (sane(self.limits.cpus) && self.limits.cpus > 0.0, "limits.cpus"),
            ((1..=MOST_WORKERS).contains(&self.knee.workers), "knee.workers"),
            (self.steps.iter().any(|step| step.workers == self.knee.workers), "knee.workers"),
        ];
        rules.iter().find(|(good, _)| !good).map_or(Ok(()), |(_, what)| Err(what))
    }

    /// What the plan takes of it on a machine with so many CPUs.
    pub(crate) fn profiled(&self, path: &Path, usable: f64) -> Profiled {
        let usable = usable.max(1e-6);
        let per_cpu = match self.knee.bound_by {
            // As many for each CPU as were enough to fill those that there were.
            Bound::Cpu => f64::from(self.knee.workers) / self.limits.cpus,
            // The rate still rose: as many as would fill the CPUs.
            Bound::Memory => self.filling(usable) / usable,
            // The load wants no more, however many CPUs there are, or nobody knows what more would give.
            Bound::Load | Bound::Workers | Bound::Ended => f64::from(self.knee.workers) / usable,
        };
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        Profiled {
            source: format!("profile:{name}"),
            worker_memory: self.worker.private_bytes,
            shared_once: self.worker.shared_once_bytes,
            workers_per_cpu: per_cpu.min(f64::from(MOST_WORKERS)),
        }
    }

    /// How many workers would fill so many CPUs, as far as that can be told.
    fn filling(&self, usable: f64) -> f64 {
        let knee = f64::from(self.knee.workers);
        if self.worker.cpus * knee < LEAST_CPUS {
            return knee;
        }
        let tried = self.steps.iter().map(|step| step.workers).max().unwrap_or(0);
        let forecast = FORECAST * f64::from(tried.max(self.knee.workers));
        (usable / self.worker.cpus).min(forecast)
    }

    pub(crate) fn to_json(&self) -> String {
        // Numbers and text: nothing that JSON has no form for.
        serde_json::to_string_pretty(self).map(|text| text + "\n").unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(bound: Bound) -> Profile {
        let knee = Step { workers: 4, rate: 40.0, cpus: 0.5, ..Step::default() };
        let steps = vec![knee];
        let curve = Curve { steps, cost: 10 << 20, shared: 1 << 20, growth: 0, knee, bound };
        let load = "GET /".to_owned();
        Profile::new(vec!["node".to_owned()], Some(256 << 20), 0.5, load, true, &curve)
    }

    #[test]
    fn what_is_written_is_read() {
        let profile = profile(Bound::Cpu);
        assert_eq!(Profile::parse(profile.to_json().as_bytes()), Ok(profile));
    }

    fn workers(profile: &Profile, usable: f64) -> f64 {
        profile.profiled(Path::new("p"), usable).workers_per_cpu * usable
    }

    #[test]
    fn a_forecast_goes_no_further_than_what_was_tried_bears() {
        // Nobody has tried more than was allowed.
        let most = profile(Bound::Workers);
        assert!((workers(&most, 0.5) - 4.0).abs() < 1e-9);
        assert!((workers(&most, 64.0) - 4.0).abs() < 1e-9);
        // An eighth of a CPU each would be 512.
        assert!((workers(&profile(Bound::Memory), 64.0) - 16.0).abs() < 1e-9);
        // What was too little to be measured tells nothing.
        let mut idle = profile(Bound::Memory);
        idle.worker.cpus = 0.004;
        assert!((workers(&idle, 64.0) - 4.0).abs() < 1e-9);
        idle.worker.cpus = 0.0;
        assert!((workers(&idle, 64.0) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_written_is_taken_whatever_was_measured() {
        let knee = Step { workers: 1, rate: 1.0, ..Step::default() };
        for (cost, shared, memory) in
            [(0, 0, None), (9, 1 << 60, Some(1 << 20)), (1 << 60, 9, Some(1))]
        {
            let curve =
                Curve { steps: vec![knee], cost, shared, growth: 0, knee, bound: Bound::Load };
            let profile = Profile::new(vec![], memory, 0.5, String::new(), true, &curve);
            assert_eq!(Profile::parse(profile.to_json().as_bytes()), Ok(profile));
        }
    }

    #[test]
    fn it_scales_with_the_cpus_where_these_were_what_bound() {
        let per = |bound, usable| profile(bound).profiled(Path::new("p"), usable).workers_per_cpu;
        assert!((per(Bound::Cpu, 2.0) - 8.0).abs() < 1e-9);
        // A worker uses an eighth of a CPU.
        assert!((per(Bound::Memory, 2.0) - 8.0).abs() < 1e-9);
        assert!((per(Bound::Load, 2.0) * 2.0 - 4.0).abs() < 1e-9);
        assert!((per(Bound::Load, 0.5) * 0.5 - 4.0).abs() < 1e-9);
    }

    #[test]
    fn hostile_files_are_refused_with_what_is_wrong() {
        let good = profile(Bound::Cpu).to_json();
        for (from, to, what) in [
            ("\"schema\": 1", "\"schema\": 2", "schema is 2"),
            ("\"schema\": 1", "\"x\": 1", "no schema"),
            ("\"private_bytes\": 10485760", "\"private_bytes\": 0", "worker.private_bytes"),
            ("\"private_bytes\": 10485760", "\"private_bytes\": -1", "-1"),
            ("\"private_bytes\": 10485760", "\"private_bytes\": 1", "worker.private_bytes"),
            // More than there was.
            ("\"private_bytes\": 10485760", "\"private_bytes\": 268435457", "worker.private_bytes"),
            (
                "\"shared_once_bytes\": 1048576",
                "\"shared_once_bytes\": 1125899906842624",
                "worker.shared_once_bytes",
            ),
            ("\"workers\": 4,\n    \"rate\"", "\"workers\": 9,\n    \"rate\"", "knee.workers"),
            ("\"private_bytes\": 10485760", "\"private_bytes\": 1e300", "1e+300"),
            ("\"private_bytes\": 10485760", "\"private_bytes\": 18446744073709551615", "private"),
            (
                "\"workers\": 4,\n    \"rate\"",
                "\"workers\": 4000000,\n    \"rate\"",
                "knee.workers",
            ),
            ("\"cpus\": 0.5\n  },\n  \"load\"", "\"cpus\": 0.0\n  },\n  \"load\"", "limits.cpus"),
            ("\"cpu\"", "\"gpu\"", "gpu"),
            ("{", "", "trailing"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            let why = Profile::parse(bad.as_bytes()).unwrap_err();
            assert!(why.contains(what), "{to}: {why}");
        }
    }
}
