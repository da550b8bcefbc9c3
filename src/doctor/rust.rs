//! Rust's `std::thread::available_parallelism`, as of 1.95, for machines that cannot be asked.

use std::path::{Path, PathBuf};

use super::opinion::{Belief, Lens, Taken, quotient, tighter};
use super::view::{MOUNT, cpu_group, groups, join, mounts, nowhere, up_to};
use crate::probe::parse::{number, trim, words};

/// The tightest quota from our group up. `fails` where a group without a path makes it panic.
pub(super) fn cpus(mut lens: Lens<'_>) -> Belief<f64> {
    let groups = groups(&lens.peek("/proc/self/cgroup"));
    let Some((group, v1)) = cpu_group(&groups) else { return nowhere() };
    if group.path.is_empty() {
        let quirk = Some(
            "panics at a line of /proc/self/cgroup that ends behind its second colon".to_owned(),
        );
        return Belief { quirk, fails: true, ..Belief::default() };
    }
    let limit =
        if v1 { v1_quota(&mut lens, &group.path) } else { v2_quota(&mut lens, &group.path) };
    Belief { limit, looks: lens.looks, ..Belief::default() }
}

fn v2_quota(lens: &mut Lens<'_>, path: &[u8]) -> Option<Taken<f64>> {
    let top = Path::new(MOUNT);
    let leaf = join(top, path);
    lens.read(&leaf.join("cgroup.controllers"))?;
    let mut least = None;
    for dir in up_to(&leaf, top) {
        let file = dir.join("cpu.max");
        let Some(text) = lens.read(&file) else { continue };
        let mut words = words(&text);
        let pair = words.next().and_then(number).zip(words.next().and_then(number));
        let here = pair.and_then(|(quota, period)| quotient(quota, period));
        least =
            tighter(least, here.map(|value| Taken { value, source: file.display().to_string() }));
    }
    least
}

fn v1_quota(lens: &mut Lens<'_>, path: &[u8]) -> Option<Taken<f64>> {
    let usual = ["cpu", "cpu,cpuacct"].map(|name| (Path::new(MOUNT).join(name), path));
    let text = lens.peek("/proc/self/mountinfo");
    let listed: Vec<_> = mounts(&text).into_iter().flatten().collect();
    let listed = listed.iter().find(|mount| mount.carries("cpu"));
    let listed = listed.and_then(|mount| Some((mount.point.clone(), mount.inside(path)?)));
    let places: Vec<(PathBuf, &[u8])> = usual.into_iter().chain(listed).collect();
    for (top, path) in places {
        let leaf = join(&top, path);
        if !lens.host.is_dir(&leaf) {
            continue;
        }
        let mut least = None;
        for dir in up_to(&leaf, &top) {
            let file = dir.join("cpu.cfs_quota_us");
            let mut value = |path: &Path| lens.read(path).and_then(|text| number(trim(&text)));
            let pair = value(&file).zip(value(&dir.join("cpu.cfs_period_us")));
            let here = pair.and_then(|(quota, period)| quotient(quota, period));
            least = tighter(
                least,
                here.map(|value| Taken { value, source: file.display().to_string() }),
            );
        }
        return least;
    }
    None
}
