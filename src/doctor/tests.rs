//! The detectors on machines that no kernel made: whatever the files hold, an answer and no panic.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::opinion::{Belief, Lens};
use super::{dotnet, go, jvm, libuv, rust};
use crate::probe::Host;

fn write(root: &Path, path: &str, text: &[u8]) {
    let file = root.join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

/// Every detector of CPUs.
fn quotas(host: &Host) -> [Belief<f64>; 6] {
    let lens = || Lens::new(host);
    [
        libuv::cpus(lens()),
        rust::cpus(lens()),
        go::runtime(lens()),
        go::automaxprocs(lens()),
        jvm::cpus(lens()),
        dotnet::cpus(lens()),
    ]
}

fn machine(cgroup: &[u8], mountinfo: &[u8], limit: &[u8]) -> (tempfile::TempDir, Host) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "proc/self/cgroup", cgroup);
    write(dir.path(), "proc/self/mountinfo", mountinfo);
    for folder in ["", "a/", "cpu/", "cpu/a/", "memory/", "memory/a/"] {
        for name in [
            "cgroup.controllers",
            "cpu.max",
            "cpu.cfs_quota_us",
            "cpu.cfs_period_us",
            "memory.max",
            "memory.high",
            "memory.limit_in_bytes",
            "memory.soft_limit_in_bytes",
            "memory.use_hierarchy",
            "memory.stat",
        ] {
            write(dir.path(), &format!("sys/fs/cgroup/{folder}{name}"), limit);
        }
    }
    let host = Host::sysroot(dir.path()).unwrap();
    (dir, host)
}

/// Pieces that lead into every branch, and noise.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"0::/\n".to_vec()),
        Just(b"0::/a\n".to_vec()),
        Just(b"0::\n".to_vec()),
        Just(b"0::/../../a\n".to_vec()),
        Just(b"3:cpu,cpuacct:/a\n2:memory:/a\n1:cpuset:/\n".to_vec()),
        Just(b"31 23 0:27 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n".to_vec()),
        Just(
            b"32 23 0:28 /a /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct,cpuset\n".to_vec()
        ),
        Just(b"33 23 0:29 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n".to_vec()),
        Just(b"9 9 0:4 net:[4026532448] /run/x rw - nsfs nsfs rw\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    proptest::collection::vec(piece, 0..5).prop_map(|parts| parts.concat())
}

fn limits() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"max 100000\n".to_vec()),
        Just(b"cpu memory\n".to_vec()),
        "-?[0-9]{1,25}( [0-9]{1,25})?\n?".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..30),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_the_files_hold_there_is_an_answer(
        cgroup in pieces(), mountinfo in pieces(), limit in limits(), ram: u64,
    ) {
        let (_dir, host) = machine(&cgroup, &mountinfo, &limit);
        for belief in quotas(&host) {
            if let Some(limit) = belief.limit {
                prop_assert!(limit.value.is_finite() && limit.value >= 0.0);
                prop_assert!(limit.source.starts_with("/sys/fs/cgroup"), "{}", limit.source);
            }
        }
        let memory = [
            libuv::memory(Lens::new(&host)),
            jvm::memory(Lens::new(&host), ram),
            dotnet::memory(Lens::new(&host)),
        ];
        for belief in memory {
            prop_assert!(belief.limit.is_none_or(|limit| limit.source.starts_with("/sys/fs/cgroup")));
        }
    }

    #[test]
    fn a_plain_container_is_understood_by_all(quota in 1000u64..3_200_000) {
        let mount = b"31 23 0:27 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let (dir, host) = machine(b"0::/\n", mount, b"");
        write(dir.path(), "sys/fs/cgroup/cgroup.controllers", b"cpu memory\n");
        write(dir.path(), "sys/fs/cgroup/cpu.max", format!("{quota} 100000\n").as_bytes());
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let exact = quota as f64 / 100_000.0;
        for belief in quotas(&host) {
            prop_assert_eq!(belief.limit.map(|limit| limit.value), Some(exact));
        }
    }
}
