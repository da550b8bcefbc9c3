//! Promises of the whole chain, on random machines held in memory: files in, number out.

use proptest::prelude::*;
use throng_rs::plan::{Change, Given, Request};
use throng_rs::{Host, Plan, Resources};

/// One cgroup level. Memory in MiB, CPUs in hundredths.
#[derive(Clone, Debug)]
struct Level {
    memory: Option<u64>,
    high: Option<u64>,
    used: u64,
    quota: Option<u64>,
    tasks: Option<u64>,
}

#[derive(Clone, Debug)]
struct Machine {
    ram: u64,
    free: u64,
    cpus: u32,
    swap: bool,
    levels: Vec<Level>,
}

const NAMES: [&str; 3] = ["", "/web.slice", "/web.slice/app.service"];

impl Machine {
    fn files(&self) -> Vec<(String, String)> {
        let own = NAMES[self.levels.len() - 1];
        let (ram, free) = (self.ram * 1024, self.free.min(self.ram) * 1024);
        let swap = if self.swap { 1_048_576 } else { 0 };
        let mut files = vec![
            ("/proc/self/cgroup".to_owned(), format!("0::{own}\n")),
            (
                "/proc/self/mountinfo".to_owned(),
                "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n".to_owned(),
            ),
            (
                "/proc/meminfo".to_owned(),
                format!("MemTotal: {ram} kB\nMemAvailable: {free} kB\nSwapTotal: {swap} kB\n"),
            ),
            ("/proc/self/status".to_owned(), format!("Cpus_allowed_list:\t0-{}\n", self.cpus - 1)),
        ];
        for (name, level) in NAMES.iter().zip(&self.levels) {
            let mut put = |file: &str, text: String| {
                files.push((format!("/sys/fs/cgroup{name}/{file}"), text));
            };
            let bytes = |mib: u64| (mib << 20).to_string();
            put("memory.current", bytes(level.used));
            put("memory.swap.max", "max".to_owned());
            if let Some(most) = level.memory {
                put("memory.max", bytes(most));
            }
            if let Some(high) = level.high {
                put("memory.high", bytes(high));
            }
            if let Some(quota) = level.quota {
                put("cpu.max", format!("{} 100000", quota * 1000));
            }
            if let Some(most) = level.tasks {
                put("pids.max", most.to_string());
                put("pids.current", "3".to_owned());
            }
        }
        files
    }

    fn plan(&self, request: &Request) -> Plan {
        Plan::new(Resources::of(&Host::from_files(self.files())), request)
    }
}

fn levels() -> impl Strategy<Value = Vec<Level>> {
    let option = |range| prop::option::of(range);
    let level = (
        option(40..9000u64),
        option(40..9000u64),
        0..2000u64,
        option(5..3000u64),
        option(10..600u64),
    );
    let level = level.prop_map(|(memory, high, used, quota, tasks)| Level {
        memory,
        high,
        used,
        quota,
        tasks,
    });
    prop::collection::vec(level, 1..=3)
}

prop_compose! {
    fn machines()(ram in 100..20_000u64, free in 50..20_000u64, cpus in 1..64u32, swap: bool, levels in levels()) -> Machine {
        Machine { ram, free, cpus, swap, levels }
    }
}

prop_compose! {
    fn requests()(cost in 20..600u64, most in prop::option::of(1..20u32), per in 0.2..4.0f64) -> Request {
        Request {
            worker_memory: Some(Given::default_of(cost << 20)),
            max_workers: most.map(Given::default_of),
            workers_per_cpu: Given::default_of(per),
            ..Request::default()
        }
    }
}

/// The machine and the request with a change applied, by the change's own data alone: limits by the
/// files that it names.
fn changed(machine: &Machine, request: &Request, change: &Change) -> Plan {
    let mut files = machine.files();
    let edit = &change.edit;
    let mut at = |path: &str, new: &dyn Fn(&str) -> String| {
        let (_, text) = files.iter_mut().find(|(name, _)| name == path).unwrap();
        *text = new(text);
    };
    if let Some(memory) = &edit.add_memory {
        for path in &memory.at {
            if path == "/proc/meminfo" {
                // More memory in the machine is more that is free.
                let more = memory.bytes / 1024;
                at(path, &|text| {
                    let grown = text.lines().map(|line| {
                        let mut words = line.split(' ');
                        let (name, kib) = (words.next().unwrap(), words.next().unwrap());
                        let more = if name == "SwapTotal:" { 0 } else { more };
                        format!("{name} {} kB\n", kib.parse::<u64>().unwrap() + more)
                    });
                    grown.collect()
                });
            } else {
                at(path, &|text| (text.parse::<u64>().unwrap() + memory.bytes).to_string());
            }
        }
    }
    if let Some(cpus) = edit.add_cpus {
        let all = machine.cpus + cpus;
        at("/proc/self/status", &|_| format!("Cpus_allowed_list:\t0-{}\n", all - 1));
    }
    if let Some(more) = edit.add_quota {
        // The tightest level is the one that binds; every level may have to follow.
        let tightest = machine.levels.iter().filter_map(|level| level.quota).min().unwrap();
        let more: u64 = format!("{:.0}", more * 100.0).parse().unwrap();
        let hundredths = tightest + more;
        for (name, level) in NAMES.iter().zip(&machine.levels) {
            if level.quota.is_some_and(|quota| quota < hundredths) {
                let text = format!("{} 100000", hundredths * 1000);
                at(&format!("/sys/fs/cgroup{name}/cpu.max"), &|_| text.clone());
            }
        }
    }
    if let Some(more) = edit.add_tasks {
        let tightest = machine.levels.iter().filter_map(|level| level.tasks).min().unwrap();
        for (name, level) in NAMES.iter().zip(&machine.levels) {
            if level.tasks.is_some_and(|tasks| tasks < tightest + more) {
                at(&format!("/sys/fs/cgroup{name}/pids.max"), &|_| (tightest + more).to_string());
            }
        }
    }
    let mut request = request.clone();
    if let Some(bytes) = edit.worker_memory_bytes {
        request.worker_memory = Some(Given::default_of(bytes));
    }
    if edit.no_max_workers {
        request.max_workers = None;
    }
    Plan::new(Resources::of(&Host::from_files(files)), &request)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn never_none_and_never_above_a_bound(machine in machines(), request in requests()) {
        let plan = machine.plan(&request);
        prop_assert!(plan.workers >= 1);
        prop_assert!(request.max_workers.as_ref().is_none_or(|most| plan.workers <= most.value));
        let cost = request.worker_memory.as_ref().unwrap().value;
        if plan.shortage.is_none() {
            prop_assert!(u64::from(plan.workers) * cost <= plan.all_memory.unwrap());
        }
        for level in &machine.levels {
            prop_assert!(plan.workers == 1 || level.memory.is_none_or(|most| u64::from(plan.workers) * cost <= most << 20));
            prop_assert!(plan.workers == 1 || level.tasks.is_none_or(|most| u64::from(plan.workers) <= most));
        }
    }

    #[test]
    fn a_tighter_limit_never_raises_the_number(
        machine in machines(), request in requests(), at: prop::sample::Index, what in 0..5u8, by in 1..5000u64,
    ) {
        let mut tighter = machine.clone();
        let at = at.index(tighter.levels.len());
        let level = &mut tighter.levels[at];
        let less = |limit: Option<u64>, none: u64| Some(limit.unwrap_or(none).saturating_sub(by).max(1));
        match what {
            0 => level.memory = less(level.memory, 20_000),
            1 => level.high = less(level.high, 20_000),
            2 => level.quota = less(level.quota, 6400),
            3 => level.tasks = less(level.tasks, 5000),
            _ => tighter.cpus = (tighter.cpus / 2).max(1),
        }
        prop_assert!(tighter.plan(&request).workers <= machine.plan(&request).workers);
    }

    #[test]
    fn more_memory_and_more_cpus_never_give_fewer(machine in machines(), request in requests(), more in 1..9000u64) {
        // What a group uses, the machine uses: else the machine contradicts itself.
        let mut machine = machine;
        for level in &mut machine.levels {
            level.used = level.used.min(machine.ram);
            machine.free = machine.free.min(machine.ram - level.used);
        }
        let mut larger = machine.clone();
        (larger.ram, larger.free) = (larger.ram + more, larger.free.min(machine.ram) + more);
        larger.cpus += 3;
        for level in &mut larger.levels {
            level.memory = level.memory.map(|most| most + more);
            level.high = level.high.map(|high| high + more);
            level.quota = level.quota.map(|quota| quota + 50);
        }
        prop_assert!(larger.plan(&request).workers >= machine.plan(&request).workers);
    }

    #[test]
    fn every_change_that_is_named_gives_the_number_that_is_named(machine in machines(), request in requests()) {
        for change in machine.plan(&request).changes {
            let plan = changed(&machine, &request, &change);
            prop_assert_eq!(plan.workers, change.workers, "{}", change.with);
        }
    }

    #[test]
    fn the_json_says_what_the_plan_says(machine in machines(), request in requests()) {
        let plan = machine.plan(&request);
        let json: serde_json::Value = serde_json::from_str(&plan.to_json()).unwrap();
        prop_assert_eq!(&json["workers"], plan.workers);
        prop_assert_eq!(json["fits"] == true, plan.shortage.is_none());
        prop_assert_eq!(json["worker"]["memory_bytes"].as_u64(), plan.worker_memory);
        prop_assert_eq!(json["changes"].as_array().unwrap().len(), plan.changes.len());
    }
}
