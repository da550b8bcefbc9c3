//! What reading a machine costs: a mountinfo with a line of a hundred kilobytes that is nothing to us,
//! beside the same without it, whole machines in memory, and beside the `procfs` crate's parser.
//!
//! ```text
//! cargo bench --bench probe
//! ```

use std::hint::black_box;
use std::time::{Duration, Instant};

use procfs::FromRead;
use procfs::process::MountInfos;
use throng_rs::{Host, Resources};

const ROUNDS: usize = 2000;

fn median(work: impl Fn()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

fn machine(mountinfo: &str) -> Host {
    Host::from_files([
        ("/proc/self/cgroup", "0::/\n"),
        ("/proc/self/mountinfo", mountinfo),
        ("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 8000000 kB\n"),
        ("/proc/self/status", "Cpus_allowed_list:\t0-7\n"),
        ("/sys/fs/cgroup/memory.max", "536870912\n"),
        ("/sys/fs/cgroup/cpu.max", "150000 100000\n"),
    ])
}

fn main() {
    let cgroup = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    let layers = vec!["/var/lib/containers/layer"; 4000].join(":");
    let long = format!("24 1 0:30 / / rw - overlay overlay rw,lowerdir={layers}\n{cgroup}");
    let (short, with_long) = (machine(cgroup), machine(&long));
    let plain = median(|| drop(black_box(Resources::of(&short))));
    let whole = median(|| drop(black_box(Resources::of(&with_long))));
    let theirs = median(|| drop(black_box(MountInfos::from_read(long.as_bytes()))));
    println!("a machine in memory                     {plain:?}");
    println!("with a mountinfo line of {} KB         {whole:?}", long.len() >> 10);
    println!("that line costs us                      {:?}", whole.saturating_sub(plain));
    println!("procfs for the same mountinfo alone     {theirs:?}");
}
