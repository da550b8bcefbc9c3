//! Go: the runtime since 1.25 (`GOMAXPROCS` from `cpu.max`), and Uber's `automaxprocs` before it.
//! Written from the described behaviour, for Go 1.27 and automaxprocs 1.6.

use std::path::{Path, PathBuf};

use super::opinion::{Belief, Lens, Taken, quotient};
use super::view::{MOUNT, RawMount, cpu_group, groups, join, mounts, nowhere};
use crate::probe::parse::number;
use crate::probe::show;

/// The runtime's quota: of its own group alone, read by strict rules.
pub(super) fn runtime(mut lens: Lens<'_>) -> Belief<f64> {
    let text = lens.peek("/proc/self/cgroup");
    if !text.is_empty() && !text.ends_with(b"\n") {
        let quirk = "gives up at the end of /proc/self/cgroup, which has no newline";
        return Belief { quirk: Some(quirk.to_owned()), ..Belief::default() };
    }
    let groups = groups(&text);
    let Some((group, v1)) = cpu_group(&groups) else { return nowhere() };
    let dir = match find(&lens, &group.path, v1) {
        Ok(Some(dir)) => dir,
        Ok(None) => {
            let quirk = Some("finds no mount that shows its own cgroup".to_owned());
            return Belief { quirk, ..Belief::default() };
        }
        Err(quirk) => return Belief { quirk: Some(quirk), ..Belief::default() },
    };
    let mut belief = if v1 { cfs(&mut lens, &dir) } else { cpu_max(&mut lens, &dir) };
    belief.looks = lens.looks;
    belief
}

/// The first mount whose root holds our path; an error where a line before it does not please.
fn find(lens: &Lens<'_>, path: &[u8], v1: bool) -> Result<Option<PathBuf>, String> {
    let text = lens.peek("/proc/self/mountinfo");
    let gives_up = |what: &str| format!("gives up at a line of /proc/self/mountinfo {what}");
    let all = mounts(&text);
    let whole = if text.ends_with(b"\n") { all.len() } else { all.len().saturating_sub(1) };
    for (at, mount) in all.into_iter().enumerate() {
        let Some(mount) = mount.filter(|_| at < whole) else {
            return Err(gives_up("that it cannot read"));
        };
        if !mount.raw_root.starts_with(b"/") {
            return Err(gives_up(&format!(
                "that belongs to another mount, \"{}\"",
                show(&mount.raw_root)
            )));
        }
        let carries = if v1 { mount.carries("cpu") } else { mount.is_v2() };
        if carries && let Some(rest) = mount.inside(path).filter(|rest| !rest.starts_with(b"/..")) {
            return Ok(Some(join(&mount.point, rest)));
        }
    }
    Ok(None)
}

/// Exactly two numbers and a newline; anything else is an error and no limit.
fn cpu_max(lens: &mut Lens<'_>, dir: &Path) -> Belief<f64> {
    let file = dir.join("cpu.max");
    let Some(text) = lens.read(&file) else { return Belief::default() };
    let odd = || Belief {
        quirk: Some(format!("cannot make sense of \"{}\" in {}", show(&text), file.display())),
        ..Belief::default()
    };
    let Some(line) = text.strip_suffix(b"\n") else { return odd() };
    let parts: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    match parts[..] {
        [b"max", period] if number(period).is_some() => Belief::default(),
        [quota, period] => match number(quota).zip(number(period)) {
            Some(pair) => take(pair, &file),
            None => odd(),
        },
        _ => odd(),
    }
}

fn cfs(lens: &mut Lens<'_>, dir: &Path) -> Belief<f64> {
    let file = dir.join("cpu.cfs_quota_us");
    let quota = lens.read(&file);
    let period = lens.read(&dir.join("cpu.cfs_period_us"));
    let line = |text: Option<Vec<u8>>| number(text?.strip_suffix(b"\n")?);
    match line(quota).zip(line(period)) {
        Some(pair) => take(pair, &file),
        None => Belief::default(),
    }
}

fn take((quota, period): (u64, u64), file: &Path) -> Belief<f64> {
    let source = file.display().to_string();
    if period == 0 {
        let quirk = Some(format!("dies at its start of a period of 0 in {source}"));
        return Belief { quirk, fails: true, ..Belief::default() };
    }
    let limit = quotient(quota, period).map(|value| Taken { value, source });
    Belief { limit, ..Belief::default() }
}

/// automaxprocs: our own group alone; one mount it cannot place stops it altogether.
pub(super) fn automaxprocs(mut lens: Lens<'_>) -> Belief<f64> {
    let groups = groups(&lens.peek("/proc/self/cgroup"));
    let all = mounts(&lens.peek("/proc/self/mountinfo"));
    let gives_up = |quirk: &str| Belief { quirk: Some(quirk.to_owned()), ..Belief::default() };
    if all.iter().any(Option::is_none) {
        return gives_up("gives up at a line of /proc/self/mountinfo that it cannot read");
    }
    let all: Vec<RawMount> = all.into_iter().flatten().collect();
    let belief = if all.iter().any(|mount| mount.is_v2() && mount.point == Path::new(MOUNT)) {
        let Some(group) = groups.iter().find(|group| group.id == b"0") else {
            return nowhere();
        };
        lenient(&mut lens, &join(Path::new(MOUNT), &group.path))
    } else {
        // Every v1 mount with a group of ours is placed, whether it matters or not.
        let placed = groups.iter().flat_map(|group| {
            let is_there = |name: &&[u8]| !name.is_empty();
            let names = group.controllers.split(|b| *b == b',').filter(is_there);
            names.map(move |name| (group, String::from_utf8_lossy(name).into_owned()))
        });
        let mut dir = None;
        for (group, name) in placed {
            let Some(mount) = all.iter().find(|mount| mount.carries(&name)) else { continue };
            let Some(rest) = mount.inside(&group.path) else {
                return gives_up(&format!(
                    "cannot place its cgroup below the mount of \"{name}\" and stops there"
                ));
            };
            if name == "cpu" {
                dir = Some(join(&mount.point, rest));
            }
        }
        dir.map_or_else(nowhere, |dir| cfs(&mut lens, &dir))
    };
    // A period of 0 is an error to it, not its end.
    Belief { looks: lens.looks, fails: false, ..belief }
}

/// One or two fields; the period is 100000 where it is not there.
fn lenient(lens: &mut Lens<'_>, dir: &Path) -> Belief<f64> {
    let file = dir.join("cpu.max");
    let Some(text) = lens.read(&file) else { return Belief::default() };
    let mut fields = text.trim_ascii().split(u8::is_ascii_whitespace);
    let (quota, period, more) = (fields.next(), fields.next(), fields.next());
    let period = period.map_or(Some(100_000), number);
    let value =
        quota.and_then(number).zip(period).and_then(|(quota, period)| quotient(quota, period));
    match value.filter(|_| more.is_none()) {
        Some(value) => {
            let limit = Some(Taken { value, source: file.display().to_string() });
            Belief { limit, ..Belief::default() }
        }
        None => Belief::default(),
    }
}
