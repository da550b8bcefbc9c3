//! What others use of what we have, remembered from before our own processes ran: while they run, the
//! counters hold both, and a plan made then would take our own memory for somebody else's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Resources;

/// What was used when nothing of ours ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Others {
    /// Bytes, by what told of them.
    memory: BTreeMap<String, u64>,
    /// Processes and threads, by the file of their limit.
    tasks: BTreeMap<String, u64>,
}

impl Resources {
    /// What is used now, to be kept until nothing of it can be told apart any more.
    #[must_use]
    pub fn others(&self) -> Others {
        let memory = self.memory.ceilings.iter();
        let memory =
            memory.filter_map(|ceiling| Some((ceiling.used_source.clone()?, ceiling.used)));
        let tasks = self.tasks.limit.iter().zip(self.tasks.room);
        let tasks =
            tasks.map(|(limit, room)| (limit.source.clone(), limit.value.saturating_sub(room)));
        Others { memory: memory.collect(), tasks: tasks.collect() }
    }

    /// The limits of now, and what `others` used before we ran. Of a level that was not there then, nothing
    /// is known to be somebody else's. Who came or went since then is not seen: that is no limit.
    #[must_use]
    pub fn beside(mut self, others: &Others) -> Self {
        for ceiling in &mut self.memory.ceilings {
            let used = ceiling.used_source.as_ref().and_then(|source| others.memory.get(source));
            ceiling.used = used.copied().unwrap_or(0);
        }
        if let Some(limit) = &self.tasks.limit {
            let used = others.tasks.get(&limit.source).copied().unwrap_or(0);
            self.tasks.room = Some(limit.value.saturating_sub(used));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Host;

    fn machine(limit: u64, used: u64, tasks: u64) -> Resources {
        let root = "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw";
        let (limit, used, tasks) = (limit.to_string(), used.to_string(), tasks.to_string());
        let files = [
            ("/proc/self/cgroup", "0::/\n"),
            ("/proc/self/mountinfo", root),
            ("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 8000000 kB\n"),
            ("/sys/fs/cgroup/memory.max", limit.as_str()),
            ("/sys/fs/cgroup/memory.current", used.as_str()),
            ("/sys/fs/cgroup/pids.max", "100"),
            ("/sys/fs/cgroup/pids.current", tasks.as_str()),
        ];
        Resources::of(&Host::from_files(files))
    }

    #[test]
    fn what_our_own_processes_use_is_not_somebody_elses() {
        let before = machine(512 << 20, 10 << 20, 3);
        let others = before.others();
        assert_eq!(before.clone().beside(&others).memory.ceilings, before.memory.ceilings);
        // Twice the room, and nearly all of the old one is in use, by us.
        let now = machine(1 << 30, 500 << 20, 60).beside(&others);
        let ceiling = &now.memory.ceilings[0];
        assert_eq!((ceiling.limit.as_ref().unwrap().value, ceiling.used), (1 << 30, 10 << 20));
        assert_eq!(now.tasks.room, Some(97));
    }

    #[test]
    fn it_goes_through_json() {
        let others = machine(512 << 20, 10 << 20, 3).others();
        let json = serde_json::to_string(&others).unwrap();
        assert_eq!(serde_json::from_str::<Others>(&json).unwrap(), others);
    }
}
