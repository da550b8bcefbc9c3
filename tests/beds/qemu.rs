//! A real Linux kernel with nothing but cgroup v2, in QEMU: boots an initramfs and hands out the results that it prints. The
//! first guest is made here, of busybox, the static build and the scripts in `guest/`; `systemd.rs` makes another.

use super::lines::Lines;
use super::{busybox, command, copy, run, static_binary};
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Emulated, a guest boots and runs in half a minute, and in much more where the machine is busy with other things.
const LIMIT: Duration = Duration::from_mins(5);

/// The guest's part, by the place where it lies there; beside these, what is to happen in it.
const SCRIPTS: [(&str, &str); 2] =
    [("init", include_str!("guest/init")), ("bin/ingroup", include_str!("guest/ingroup"))];

/// What the guest said: a name may come more than once.
pub(crate) struct Results {
    results: BTreeMap<String, Vec<String>>,
    console: String,
}

impl Results {
    /// All values of one name, in order.
    pub(crate) fn all(&self, name: &str) -> &[String] {
        self.results.get(name).map_or(&[], Vec::as_slice)
    }

    /// The one value of a name.
    pub(crate) fn one(&self, name: &str) -> &str {
        match self.all(name) {
            [value] => value,
            other => {
                panic!("{name}: {} results, not one: {other:?}\n{}", other.len(), self.console)
            }
        }
    }

    /// Shows the guest's console: its kernel's and its programs' own words explain a wrong answer.
    pub(crate) fn console(&self) -> &str {
        &self.console
    }
}

/// Boots a guest whose root file system `fill` makes, waits for its end and returns its results; an error says why it cannot be
/// booted here. `append` goes to the end of the kernel's command line.
///
/// # Panics
///
/// Where the guest does not end in time.
pub(crate) fn boot(
    fill: impl FnOnce(&Path) -> Result<(), String>,
    append: &str,
) -> Result<Results, String> {
    if env::consts::ARCH != "x86_64" {
        return Err("the guest is an x86_64 machine".to_owned());
    }
    let (qemu, setpriv, kernel) = (command("qemu-system-x86_64")?, command("setpriv")?, kernel()?);
    let work = tempfile::Builder::new()
        .prefix("throng-qemu-")
        .tempdir()
        .map_err(|error| error.to_string())?;
    let initramfs = initramfs(work.path(), fill)?;
    let console = work.path().join("console");

    let mut machine = Command::new(setpriv);
    // Ends with us even where we are killed and no destructor runs.
    machine.args(["--pdeathsig", "KILL", "--"]).arg(qemu);
    // Emulation, because KVM hangs where the host is a virtual machine itself. Console on the first port, results on the second.
    machine
        .args("-accel tcg -cpu max -m 512 -smp 2 -no-reboot -nodefaults -display none".split(' '));
    machine.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    machine.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    // Without the last word the kernel gives up where the emulated timer's ticks come late, as they do on a busy machine.
    let words = "console=ttyS0 panic=-1 quiet psi=1 no_timer_check";
    machine.arg("-append").arg(format!("{words} {append}"));

    let mut lines = Lines::spawn(&mut machine)?;
    let read_console = || {
        fs::read(&console).map_or_else(
            |error| error.to_string(),
            |text| String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let printed = lines.until_end(LIMIT);
    drop(lines);
    let console = read_console();
    // Not for want of a bed: here something in the guest hangs.
    let printed = printed
        .unwrap_or_else(|why| panic!("the guest did not end in {LIMIT:?}:\n{why}\n{console}"));

    let mut results = BTreeMap::<String, Vec<String>>::new();
    for line in printed.iter().filter_map(|line| line.strip_prefix("@@ ")) {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        results.entry(name.to_owned()).or_default().push(value.to_owned());
    }
    Ok(Results { results, console })
}

/// The kernel that `tests/beds/fetch-kernel` put there.
fn kernel() -> Result<PathBuf, String> {
    let beds = env::var_os("THRONG_BEDS_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/beds"), PathBuf::from);
    let kernel = beds.join("vmlinuz");
    if kernel.is_file() {
        Ok(kernel)
    } else {
        Err(format!("no {}; run tests/beds/fetch-kernel", kernel.display()))
    }
}

/// Packs a guest's root file system.
fn initramfs(
    work: &Path,
    fill: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let root = work.join("root");
    for folder in ["proc", "sys", "dev", "tmp", "run", "bin"] {
        fs::create_dir_all(root.join(folder)).map_err(|error| error.to_string())?;
    }
    copy(&busybox()?, &root.join("bin/busybox"))?;
    fill(&root)?;
    let cpio = "find . | cpio -o -H newc --quiet > ../initramfs";
    command("cpio")?;
    run(Command::new("sh").args(["-c", cpio]).current_dir(&root))?;
    Ok(work.join("initramfs"))
}

/// The guest of `guest/scenarios`, whose PID 1 is a script.
pub(crate) fn scenarios(root: &Path) -> Result<(), String> {
    guest(root, include_str!("guest/scenarios"))
}

/// The same with the story of `guest/isolate`.
pub(crate) fn isolate(root: &Path) -> Result<(), String> {
    guest(root, include_str!("guest/isolate"))
}

fn guest(root: &Path, story: &str) -> Result<(), String> {
    copy(&static_binary()?, &root.join("throng-rs"))?;
    script(&root.join("scenarios"), story)?;
    for (name, text) in SCRIPTS {
        script(&root.join(name), text)?;
    }
    // busybox knows no cgroup namespaces, so the real unshare goes along.
    with_libraries(&command("unshare")?, &root.join("usr/bin/unshare"), root)
}

/// Writes an executable text file.
pub(crate) fn script(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| error.to_string())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())
}

/// Copies a program to `to` and its libraries, which ldd names, to their places below `root`.
pub(crate) fn with_libraries(program: &Path, to: &Path, root: &Path) -> Result<(), String> {
    copy(program, to)?;
    let parts = run(Command::new(command("ldd")?).arg(program))?;
    for library in String::from_utf8_lossy(&parts.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        copy(Path::new(library), &root.join(library.trim_start_matches('/')))?;
    }
    Ok(())
}
