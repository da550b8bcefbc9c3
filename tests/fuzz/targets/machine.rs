//! Whole machines: any files in the places that matter, through probe, plan and JSON. The number keeps
//! its promises, and a tighter limit never raises it.
#![no_main]

use arbitrary::Arbitrary;
use throng_rs::plan::{Given, Request};
use throng_rs::{Host, Plan, Resources};

/// Limits as a kernel writes them, so that most machines make sense.
#[derive(Arbitrary, Clone, Debug)]
struct Level {
    memory: Option<u32>,
    high: Option<u32>,
    used: u32,
    cache: u32,
    quota: Option<(u16, u16)>,
    tasks: Option<(u16, u16)>,
}

#[derive(Arbitrary, Debug)]
struct Input {
    /// Any text in the place of these; `None` leaves what makes sense.
    cgroup: Option<Vec<u8>>,
    mountinfo: Option<Vec<u8>>,
    meminfo: Option<Vec<u8>>,
    status: Option<Vec<u8>>,
    cpuset: Option<Vec<u8>>,
    odd: Option<(u8, Vec<u8>)>,
    v1: bool,
    ram: u32,
    levels: Vec<Level>,
    most: Option<u8>,
    cost: u32,
    tighten: (u8, u8, u16),
}

const NAMES: [&str; 4] = ["", "/web.slice", "/web.slice/app.service", "/web.slice/app.service/x"];

fn files(input: &Input, levels: &[Level]) -> Vec<(String, Vec<u8>)> {
    let depth = levels.len().min(NAMES.len());
    let own = NAMES[depth.saturating_sub(1)];
    let (cgroup, mounts) = if input.v1 {
        (
            format!("5:memory:{own}\n4:cpu,cpuacct:{own}\n3:pids:{own}\n"),
            "31 1 0:1 / /sys/fs/cgroup/memory rw - cgroup c rw,memory\n\
             32 1 0:2 / /sys/fs/cgroup/cpu rw - cgroup c rw,cpu,cpuacct\n\
             33 1 0:3 / /sys/fs/cgroup/pids rw - cgroup c rw,pids\n"
                .to_owned(),
        )
    } else {
        (format!("0::{own}\n"), "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 c rw\n".to_owned())
    };
    let ram = u64::from(input.ram) * 4;
    let meminfo = format!("MemTotal: {ram} kB\nMemAvailable: {} kB\nSwapTotal: 0 kB\n", ram / 2);
    let or = |text: &Option<Vec<u8>>, usual: String| text.clone().unwrap_or(usual.into_bytes());
    let mut files = vec![
        ("/proc/self/cgroup".to_owned(), or(&input.cgroup, cgroup)),
        ("/proc/self/mountinfo".to_owned(), or(&input.mountinfo, mounts)),
        ("/proc/meminfo".to_owned(), or(&input.meminfo, meminfo)),
        (
            "/proc/self/status".to_owned(),
            or(&input.status, "Cpus_allowed_list:\t0-63\n".to_owned()),
        ),
        ("/proc/self/stat".to_owned(), b"4242 (x) S".to_vec()),
    ];
    for (name, level) in NAMES.iter().zip(levels) {
        let mut put = |v1: &str, v2: &str, text: String| {
            let path = if input.v1 { v1.replace('@', name) } else { format!("{name}/{v2}") };
            files.push((format!("/sys/fs/cgroup{path}"), text.into_bytes()));
        };
        let bytes = |quarter: u32| u64::from(quarter) * 4096;
        let memory = level.memory.map_or("max".to_owned(), |m| bytes(m).to_string());
        put("/memory@/memory.limit_in_bytes", "memory.max", memory);
        if let Some(high) = level.high.filter(|_| !input.v1) {
            put("", "memory.high", bytes(high).to_string());
        }
        put("/memory@/memory.usage_in_bytes", "memory.current", bytes(level.used).to_string());
        let stat = format!("inactive_file {}\n", bytes(level.cache));
        put("/memory@/memory.stat", "memory.stat", stat);
        if let Some((quota, period)) = level.quota {
            put("/cpu@/cpu.cfs_period_us", "cpu.max", format!("{quota} {period}\n"));
            if input.v1 {
                put("/cpu@/cpu.cfs_quota_us", "", quota.to_string());
            }
        }
        if let Some((most, current)) = level.tasks {
            put("/pids@/pids.max", "pids.max", most.to_string());
            put("/pids@/pids.current", "pids.current", current.to_string());
        }
    }
    if let Some(cpuset) = &input.cpuset {
        files.push((format!("/sys/fs/cgroup{own}/cpuset.cpus.effective"), cpuset.clone()));
    }
    if let Some((pick, text)) = &input.odd {
        let at = usize::from(*pick) % files.len();
        files[at].1.clone_from(text);
    }
    files
}

fn tightened(input: &Input) -> Vec<Level> {
    let mut levels = input.levels.clone();
    let (at, what, by) = input.tighten;
    let many = levels.len().max(1);
    if let Some(level) = levels.get_mut(usize::from(at) % many) {
        match what % 3 {
            0 => level.memory = level.memory.map(|m| m.saturating_sub(u32::from(by)).max(1)),
            1 => level.quota = level.quota.map(|(q, p)| (q.saturating_sub(by).max(1), p)),
            _ => level.tasks = level.tasks.map(|(m, c)| (m.saturating_sub(by).max(1), c)),
        }
    }
    levels
}

libfuzzer_sys::fuzz_target!(|input: Input| {
    let request = Request {
        max_workers: input.most.filter(|most| *most > 0).map(|n| Given::default_of(n.into())),
        worker_memory: Some(Given::default_of(u64::from(input.cost).max(1) * 4096)),
        ..Request::default()
    };
    let plan = |levels: &[Level]| {
        Plan::new(Resources::of(&Host::from_files(files(&input, levels))), &request)
    };
    let loose = plan(&input.levels);
    assert!(loose.workers >= 1);
    if let Some(most) = &request.max_workers {
        assert!(loose.workers <= most.value);
    }
    if let Some(all) = loose.all_memory.filter(|_| loose.shortage.is_none()) {
        let cost = request.worker_memory.as_ref().unwrap().value;
        assert!(u64::from(loose.workers).saturating_mul(cost) <= all, "more than fit");
    }
    let json: serde_json::Value = serde_json::from_str(&loose.to_json()).unwrap();
    assert_eq!(json["workers"], loose.workers);
    // A text in a limit's place may make either machine another one altogether.
    if input.odd.is_none() {
        let tight = plan(&tightened(&input));
        assert!(tight.workers <= loose.workers, "{} became {}", loose.workers, tight.workers);
    }
});
