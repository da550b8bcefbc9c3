//! What this process runs on: for the explanation only, never for a number. A table, so that a
//! platform is a row; each is told with the file or variable that gave it away.

use std::path::Path;

use super::dynos::DYNOS;
use super::host::Host;
use super::levels::Fact;
use super::parse::lines;
use crate::units::MIB;

/// Something that this process runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surrounding {
    /// Its name, with the file or variable that gave it away.
    pub name: Fact<String>,
    /// What one must know of it to understand the numbers.
    pub because: String,
}

/// What gives a platform away.
#[derive(Clone, Copy, Debug)]
enum Sign {
    /// A variable that is set.
    Set(&'static str),
    /// A variable with this value.
    Is(&'static str, &'static str),
    File(&'static str),
    /// `/proc/version` holds this text.
    Version(&'static str),
    /// A mount of this type.
    Mount(&'static str),
}

const VERSION: &str = "/proc/version";
const MOUNTINFO: &str = "/proc/self/mountinfo";

const ROWS: &[(&str, Sign, &str)] = &[
    (
        "AWS Lambda",
        Sign::Set("AWS_LAMBDA_FUNCTION_NAME"),
        "a virtual machine of its own; one CPU comes with each 1,769 MB",
    ),
    (
        "Amazon ECS",
        Sign::Set("ECS_CONTAINER_METADATA_URI_V4"),
        "a task's limits may be invisible in the container; then its metadata is asked",
    ),
    ("Cloud Run", Sign::Set("K_SERVICE"), "files that are written there count as memory"),
    ("Cloud Run", Sign::Set("CLOUD_RUN_JOB"), "files that are written there count as memory"),
    ("Heroku", Sign::Set("DYNO"), "small dynos share their CPUs"),
    ("Fly.io", Sign::Set("FLY_MACHINE_ID"), "a virtual machine of its own"),
    ("Render", Sign::Is("RENDER", "true"), "its limits are those of the cgroup"),
    ("Railway", Sign::Set("RAILWAY_PROJECT_ID"), "its limits are those of the cgroup"),
    ("Azure App Service", Sign::Set("WEBSITE_INSTANCE_ID"), "several apps may share the plan"),
    ("Nomad", Sign::Set("NOMAD_ALLOC_ID"), "CPU shares in MHz are no limit"),
    ("Cloud Foundry", Sign::Set("VCAP_APPLICATION"), "CPU follows memory, as a share"),
    (
        "Kubernetes",
        Sign::Set("KUBERNETES_SERVICE_HOST"),
        "limits of the pod are invisible in a container; requests are no limits",
    ),
    ("Docker", Sign::File("/.dockerenv"), "limits are those of --memory and --cpus"),
    ("Podman", Sign::File("/run/.containerenv"), "limits are those of --memory and --cpus"),
    ("LXC", Sign::Is("container", "lxc"), "a whole system in a container"),
    ("systemd-nspawn", Sign::Is("container", "systemd-nspawn"), "a whole system in a container"),
    (
        "gVisor",
        // The one version that its kernel tells (pkg/sentry/syscalls/linux).
        Sign::Version("4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016"),
        "limits of the pod are often invisible inside; --memory and --cpus, or the downward API, tell them",
    ),
    ("WSL 2", Sign::Version("microsoft-standard"), "the machine is as large as .wslconfig says"),
    (
        "lxcfs",
        Sign::Mount("fuse.lxcfs"),
        "/proc shows the container's share; system calls and parent groups still count",
    ),
];

/// Everything in the table that holds here; `mountinfo` has been read already.
pub(crate) fn find(host: &Host, mountinfo: &[u8], limit: Option<u64>) -> Vec<Surrounding> {
    let version = host.read(Path::new(VERSION)).unwrap_or_default();
    let mut found: Vec<Surrounding> = Vec::new();
    for (name, sign, because) in ROWS {
        let source = match sign {
            Sign::Set(name) if host.env(name).is_some() => format!("env:{name}"),
            Sign::Is(name, value) if host.env(name).is_some_and(|set| set == *value) => {
                format!("env:{name}")
            }
            Sign::File(path) if host.exists(Path::new(path)) => (*path).to_owned(),
            Sign::Version(text) if holds(&version, text) => VERSION.to_owned(),
            Sign::Mount(kind) if is_mounted(mountinfo, kind) => MOUNTINFO.to_owned(),
            _ => continue,
        };
        if found.iter().any(|known| known.name.value == *name) {
            continue;
        }
        let because = match (*name, limit.and_then(dyno)) {
            ("Heroku", Some(dyno)) => format!("as much memory as {dyno}; {because}"),
            _ => (*because).to_owned(),
        };
        found.push(Surrounding { name: Fact { value: (*name).to_owned(), source }, because });
    }
    found
}

/// The dyno with exactly this memory.
fn dyno(bytes: u64) -> Option<&'static str> {
    DYNOS.iter().find(|dyno| dyno.memory_mib * MIB == bytes).map(|dyno| dyno.name)
}

fn holds(text: &[u8], part: &str) -> bool {
    text.windows(part.len()).any(|window| window == part.as_bytes())
}

fn is_mounted(mountinfo: &[u8], kind: &str) -> bool {
    // The type is the first word behind the dash; such lines are short, and foreign ones may be long.
    lines(mountinfo)
        .filter(|line| line.len() < 1024)
        .any(|line| holds(line, &format!(" - {kind} ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(env: &[(&'static str, &'static str)], mountinfo: &str) -> Vec<(String, String)> {
        let host = Host::sysroot(Path::new("/dev/shm")).unwrap().with_env(env.iter().copied());
        let found = find(&host, mountinfo.as_bytes(), Some(512 * MIB));
        found.into_iter().map(|one| (one.name.value, one.because)).collect()
    }

    #[test]
    fn each_is_named_once_and_a_dyno_by_its_size() {
        let run = names(&[("K_SERVICE", "a"), ("CLOUD_RUN_JOB", "b"), ("RENDER", "no")], "");
        assert_eq!(run.len(), 1);
        let heroku = names(&[("DYNO", "web.1")], "");
        assert!(heroku[0].1.starts_with("as much memory as Eco Basic Standard-1X"), "{heroku:?}");
        let lxcfs = "40 1 0:9 /proc/meminfo /proc/meminfo rw - fuse.lxcfs lxcfs rw\n";
        assert_eq!(names(&[("container", "lxc")], lxcfs).len(), 2);
        assert!(names(&[], "1 1 0:1 / / rw - ext4 fuse.lxcfs rw\n").is_empty());
    }
}
