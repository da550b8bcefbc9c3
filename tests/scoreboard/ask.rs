//! The child: it is on the machine, and asks everybody.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::thread::available_parallelism;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, alarm, chdir, chroot, setgid, setgroups, setuid};
use serde_json::{Value, json};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};
use throng_rs::{Host, Resources};

use super::MAY_NOT;
use super::affinity::{Cpus, become_machine};

const NOBODY: u32 = 65_534;

/// Makes `folder` the root of this process and prints, as JSON, what everybody says there.
pub(super) fn child(folder: &Path, cpus: &str) -> ExitCode {
    // A peer that never comes back is one that failed.
    alarm::set(20);
    // A process looks itself up by its pid too; there is one process on the machine: this one.
    let pid = std::process::id().to_string();
    let _ = fs::create_dir_all(folder.join("proc"));
    symlink("self", folder.join("proc").join(pid)).unwrap();
    if let Err(error) = enter(folder) {
        eprintln!("cannot change the root of a process: {error}");
        return ExitCode::from(u8::try_from(MAY_NOT).unwrap());
    }
    become_machine(parse(cpus));
    std::panic::set_hook(Box::new(|_| {}));
    let said = json!({
        "ours": asked(ours),
        "std": asked(|| json!(available_parallelism().ok().map(usize::from))),
        "num_cpus": asked(|| json!(num_cpus::get())),
        "sysinfo_system": asked(system_limit),
        "sysinfo_process": asked(process_limit),
    });
    std::io::stdout().write_all(said.to_string().as_bytes()).unwrap();
    ExitCode::SUCCESS
}

fn enter(folder: &Path) -> nix::Result<()> {
    if chroot(folder).is_err() {
        // In a user namespace of its own a process may change its root.
        unshare(CloneFlags::CLONE_NEWUSER)?;
        chroot(folder)?;
    }
    chdir("/")?;
    if Uid::effective().is_root() {
        // To root nothing is unreadable. In a namespace it is so already: nobody is mapped there.
        setgroups(&[])?;
        setgid(Gid::from_raw(NOBODY))?;
        setuid(Uid::from_raw(NOBODY))?;
    }
    Ok(())
}

fn parse(cpus: &str) -> Cpus {
    let (ids, allowed) = cpus.split_once(':').unwrap();
    let allowed = allowed.split(',').filter(|cpu| !cpu.is_empty());
    Cpus { allowed: allowed.map(|cpu| cpu.parse().unwrap()).collect(), ids: ids.parse().unwrap() }
}

/// An answer, or that it panicked.
fn asked(ask: impl FnOnce() -> Value) -> Value {
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|_| json!("panics"))
}

/// By the files alone, as under `--sysroot`: what else we ask the kernel about (the memory of the
/// machine, the type of each mount) would be this machine's.
fn ours() -> Value {
    let resources = Resources::of(&Host::sysroot(Path::new("/")).unwrap());
    json!({
        "cpus": resources.cpu.usable,
        "memory": resources.memory.limit.map(|limit| limit.value),
    })
}

fn system_limit() -> Value {
    let mut system = System::new().unwrap();
    system.refresh_memory();
    json!(system.cgroup_limits().map(|limits| limits.total_memory))
}

fn process_limit() -> Value {
    let mut system = System::new().unwrap();
    system.refresh_memory();
    let pid = get_current_pid().unwrap();
    let only = ProcessesToUpdate::Some(&[pid]);
    system.refresh_processes_specifics(only, false, ProcessRefreshKind::nothing());
    let process = system.process(pid).unwrap();
    json!(process.cgroup_limits().map(|limits| limits.total_memory))
}
