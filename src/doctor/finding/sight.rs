//! What cannot be seen from here, so that our own answer may be wrong.

use std::path::Path;

use super::Severity::{Note, Warning};
use super::{Case, Finding, capital};
use crate::doctor::view::{groups, mounts};
use crate::probe::parse::lines;
use crate::probe::show;

pub(super) fn findings(case: &Case<'_>, found: &mut Vec<Finding>) {
    for file in ["/proc/self/cgroup", "/proc/self/mountinfo"] {
        if case.host.read(Path::new(file)).is_err() {
            found.push(Finding::new(
                Warning,
                "hidden-proc",
                (file, "cannot be read"),
                "Which limits hold for this process is written there; without it they are looked for at the usual places alone.",
                "Mount /proc whole, and allow the process to read it (AppArmor, hidepid).",
            ));
        }
    }
    found.extend(hidepid(case));
    found.extend(namespace(case));
    for warning in case.warnings {
        let about = warning.split_whitespace().next().unwrap_or_default();
        found.push(Finding::new(
            Warning,
            "odd-setting",
            ("settings", about),
            format!("{warning}."),
            "Correct it or take it out: it does nothing as it stands.",
        ));
    }
    for warning in &case.evidence.warnings {
        // Each begins with what it is about, mostly a file.
        let about = warning.split_whitespace().next().unwrap_or_default();
        let source = if about.starts_with('/') { about } else { "probe" };
        found.push(Finding::new(
            Warning,
            "doubt",
            (source, first_quoted(warning)),
            format!("{}.", capital(warning)),
            "Compare the numbers above with what you have set; pin them where they are wrong (--memory, --cpus, --workers).",
        ));
    }
}

fn first_quoted(text: &str) -> &str {
    text.split('"').nth(1).unwrap_or_default()
}

fn hidepid(case: &Case<'_>) -> Option<Finding> {
    let text = case.host.read(Path::new("/proc/self/mountinfo")).ok()?;
    let word = lines(&text).find_map(|line| {
        let mut words = line.split(|b| *b == b' ' || *b == b',');
        words.clone().find(|word| *word == b"/proc")?;
        words.find(|word| {
            word.strip_prefix(b"hidepid=").is_some_and(|how| how != b"0" && how != b"off")
        })
    })?;
    Some(Finding::new(
        Note,
        "hidden-processes",
        ("/proc/self/mountinfo", show(word)),
        "Processes of other users are hidden, so what they use of a limit of processes per user cannot be counted.",
        "Nothing, unless the number of tasks matters: then mount /proc without hidepid for this group.",
    ))
}

/// `0::/` below a root that is not the machine's: levels above exist and cannot be seen.
fn namespace(case: &Case<'_>) -> Option<Finding> {
    let text = case.host.read(Path::new("/proc/self/cgroup")).ok()?;
    let own = groups(&text).into_iter().find(|group| group.is_unified() && group.path == b"/")?;
    let listed = case.host.read(Path::new("/proc/self/mountinfo")).ok()?;
    let mount =
        mounts(&listed).into_iter().flatten().find(|mount| mount.is_v2() && mount.root == b"/")?;
    // Only the machine's own root group has no such file.
    if case.host.read(&mount.point.join("cgroup.events")).is_err()
        && case.host.read(&mount.point.join("memory.max")).is_err()
    {
        return None;
    }
    let pod = case.host.env("KUBERNETES_SERVICE_HOST").is_some();
    let unlimited = case.plan.resources.memory.limit.is_none();
    let text = [&own.id[..], &own.controllers[..], &own.path[..]].join(&b':');
    Some(Finding::new(
        if pod && unlimited { Warning } else { Note },
        "hidden-parents",
        ("/proc/self/cgroup", show(&text)),
        if pod {
            "This container sees its own limits alone. The pod may have tighter ones, shared with its other containers, and they cannot be seen from here."
        } else {
            "This container sees its own limits alone. Groups above it (a slice, a pod) may have tighter ones, which cannot be seen from here."
        },
        "Set the memory and CPU limits on the container itself.",
    ))
}
