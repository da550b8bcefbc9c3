//! What a worker finds in its environment: the contract's names, and nothing that was meant for us.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::fleet::Assignment;

/// Addressed to the launcher by systemd.
const OURS: &[&str] = &[
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    // Of a Node that started us: what it is called by is not open in a worker.
    "NODE_CHANNEL_FD",
    "NODE_CHANNEL_SERIALIZATION_MODE",
    "NODE_UNIQUE_ID",
    // Between two programs of ours.
    super::upgrade::VARIABLE,
    super::upgrade::ERROR,
    // Between a calibration and its launcher.
    "THRONG_CALIBRATED_BY",
];

/// The variables of all workers.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    vars: BTreeMap<OsString, OsString>,
    /// What all workers share.
    budget: Option<u64>,
    cpus: f64,
}

impl Environment {
    /// From what the launcher itself was given; `is_setting` knows its own variables.
    pub(crate) fn inherit(
        vars: &BTreeMap<OsString, OsString>,
        is_setting: impl Fn(&OsStr) -> bool,
    ) -> Self {
        let vars = vars.iter().filter(|(name, _)| !is_setting(name));
        let vars = vars.map(|(name, value)| (name.clone(), value.clone())).collect();
        Self { vars, budget: None, cpus: 0.0 }
    }

    /// Leaves out what a service manager addressed to the launcher; not so where it becomes the command.
    pub(crate) fn without_ours(mut self) -> Self {
        for name in OURS {
            self.vars.remove(OsStr::new(name));
        }
        self
    }

    pub(crate) fn with_share(mut self, budget: Option<u64>, cpus: f64) -> Self {
        (self.budget, self.cpus) = (budget, cpus);
        self
    }

    pub(crate) fn set(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.vars.insert(OsString::from(name), value.as_ref().to_owned());
    }

    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.vars.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// Those that are text.
    pub(crate) fn readable(&self) -> BTreeMap<String, String> {
        let text = |value: &OsStr| value.to_str().map(str::to_owned);
        self.vars.iter().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect()
    }

    /// All variables as they are, for a command that takes our place.
    pub(crate) fn all(&self) -> &BTreeMap<OsString, OsString> {
        &self.vars
    }

    /// The variables of one worker, ready for `execve`.
    pub(crate) fn of(&self, worker: Assignment, more: Vec<(&'static str, String)>) -> Vec<CString> {
        let index = (worker.slot - 1).to_string();
        let mut own: BTreeMap<&str, String> = BTreeMap::from([
            // Each worker is one of N already: what it forks by this variable must not be N again.
            ("WEB_CONCURRENCY", "1".to_owned()),
            ("WEB_CONCURRENCY_SET_BY", "throng-rs".to_owned()),
            ("THRONG_WORKER_ID", worker.slot.to_string()),
            ("THRONG_WORKER_INDEX", index.clone()),
            ("THRONG_WORKER_GENERATION", worker.generation.to_string()),
            ("THRONG_WORKER_COUNT", worker.count.to_string()),
            ("THRONG_WORKER_CPUS", trim_number(self.cpus / f64::from(worker.count))),
            ("NODE_APP_INSTANCE", index),
        ]);
        if let Some(budget) = self.budget {
            own.insert("THRONG_WORKER_BUDGET", (budget / u64::from(worker.count)).to_string());
        }
        own.extend(more);
        self.with(&own)
    }

    /// The variables of a command that is no worker.
    pub(crate) fn of_nobody(&self) -> Vec<CString> {
        self.with(&BTreeMap::new())
    }

    fn with(&self, own: &BTreeMap<&str, String>) -> Vec<CString> {
        let inherited =
            self.vars.iter().filter(|(name, _)| !own.keys().any(|own| OsStr::new(own) == *name));
        let inherited = inherited.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let own = own.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        // A NUL cannot come out of a real environment; what has one is left out rather than cut.
        inherited
            .chain(own)
            .filter_map(|(name, value)| CString::new([name, b"=", value].concat()).ok())
            .collect()
    }
}

/// Three digits behind the point at most: `1.333`, `0.5`, `2`.
fn trim_number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::WorkerKey;

    fn worker() -> Assignment {
        Assignment { worker: WorkerKey(9), slot: 2, generation: 3, count: 4 }
    }

    #[test]
    fn a_worker_is_told_who_it_is_and_nothing_that_was_meant_for_us() {
        let given = [
            ("THRONG_WORKERS", "4"),
            ("LISTEN_FDS", "1"),
            ("WEB_CONCURRENCY", "4"),
            ("HOME", "/x"),
        ];
        let given = given.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))).collect();
        let env = Environment::inherit(&given, |name| name == "THRONG_WORKERS");
        let env = env.without_ours().with_share(Some(4000), 16.0 / 3.0).of(worker(), Vec::new());
        let text: Vec<_> = env.iter().map(|entry| entry.to_str().unwrap()).collect();
        for want in [
            "HOME=/x",
            "WEB_CONCURRENCY=1",
            "THRONG_WORKER_ID=2",
            "THRONG_WORKER_INDEX=1",
            "THRONG_WORKER_GENERATION=3",
            "THRONG_WORKER_COUNT=4",
            "THRONG_WORKER_BUDGET=1000",
            "THRONG_WORKER_CPUS=1.333",
            "NODE_APP_INSTANCE=1",
        ] {
            assert_eq!(text.iter().filter(|entry| **entry == want).count(), 1, "{want}");
        }
        assert!(
            !text
                .iter()
                .any(|entry| entry.starts_with("THRONG_WORKERS=") || entry.starts_with("LISTEN_"))
        );
        assert_eq!(text.iter().filter(|entry| entry.starts_with("WEB_CONCURRENCY=")).count(), 1);
    }
}
