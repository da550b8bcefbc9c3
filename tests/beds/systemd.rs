//! The QEMU guest whose PID 1 is systemd, with the units of `docs/systemd.md` as they stand there: what is documented is what
//! is tested. `guest/systemd/driver` asks for things by systemctl, as a user would.

use super::qemu::{Results, boot, script, with_libraries};
use super::{command, copy, static_binary};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const UNITS: &str = "etc/systemd/system";

/// What the guest has beside the documented units: targets that those name, the driver, a command that fails. Nothing of
/// Debian's own, which would bring a whole system up.
const OWN_UNITS: [(&str, &str); 10] = [
    ("default.target", "[Unit]\nDefaultDependencies=no\nRequires=driver.service\n"),
    (
        "driver.service",
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=/driver\n\
         StandardOutput=file:/dev/console\nStandardError=file:/dev/console\n",
    ),
    (
        // The documented unit with a number of workers that a small guest has room for and shares that suffice them, a watchdog that is worth waiting for (on a
        // busy machine a process, and so the guest's CPU, was seen to stand still for 4 s), and the sizing report of a process inside.
        "app.service.d/guest.conf",
        "[Service]\nEnvironment=THRONG_WORKERS=3 THRONG_WORKER_MEMORY=40M\nWatchdogSec=10\n\
         ExecStartPre=/bin/sh -c \"/usr/local/bin/throng-rs --dry-run --format json >/run/size.json\"\n\
         StandardOutput=file:/dev/console\nStandardError=file:/dev/console\n",
    ),
    (
        "kept.service",
        "[Service]\nType=notify\nMemoryMax=100M\n\
         ExecStart=/usr/local/bin/throng-rs --isolate on --worker-memory 10M --workers 2 -- sleep 1000\n\
         StandardOutput=file:/dev/console\nStandardError=file:/dev/console\n",
    ),
    (
        "broken.service",
        "[Service]\nType=notify\nExecStart=/usr/local/bin/throng-rs --workers 2 -- sh -c \"exit 7\"\n\
         StandardOutput=file:/dev/console\nStandardError=file:/dev/console\n",
    ),
    ("sysinit.target", EMPTY),
    ("basic.target", EMPTY),
    ("shutdown.target", EMPTY),
    ("sockets.target", EMPTY),
    ("multi-user.target", EMPTY),
];

const EMPTY: &str = "[Unit]\nDefaultDependencies=no\n";

/// Boots it; an error says why that cannot be here.
pub(crate) fn boot_systemd() -> Result<Results, String> {
    let words = "systemd.log_target=console systemd.log_color=no systemd.show_status=no \
                 systemd.unified_cgroup_hierarchy=1";
    boot(fill, words)
}

fn fill(root: &Path) -> Result<(), String> {
    let places = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"].map(Path::new);
    let systemd = places.into_iter().find(|path| path.is_file());
    let systemd = systemd.ok_or("no systemd here; run tests/beds/install")?;
    with_libraries(systemd, &root.join("init"), root)?;
    with_libraries(&command("systemctl")?, &root.join("usr/bin/systemctl"), root)?;
    with_libraries(&command("bash")?, &root.join("usr/bin/bash"), root)?;
    copy(&static_binary()?, &root.join("usr/local/bin/throng-rs"))?;
    let failed = |error: std::io::Error| error.to_string();
    symlink("busybox", root.join("bin/sh")).map_err(failed)?;
    script(&root.join("driver"), include_str!("guest/systemd/driver"))?;
    fs::create_dir_all(root.join("srv/app")).map_err(failed)?;
    script(&root.join("srv/app/server"), include_str!("guest/systemd/server"))?;
    // With one, it is not the first boot, at which systemd would set the machine up.
    fs::create_dir_all(root.join(UNITS).join("app.service.d")).map_err(failed)?;
    fs::write(root.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").map_err(failed)?;
    for (name, text) in OWN_UNITS {
        fs::write(root.join(UNITS).join(name), text).map_err(failed)?;
    }
    for (path, text) in documented() {
        fs::write(root.join(path.trim_start_matches('/')), text).map_err(failed)?;
    }
    Ok(())
}

/// The units of `docs/systemd.md`, each with the path that its first line names in a comment.
pub(crate) fn documented() -> Vec<(&'static str, &'static str)> {
    let text = include_str!("../../docs/systemd.md");
    let blocks = text.split("```ini\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter_map(|block| Some((block.lines().next()?.strip_prefix("# ")?, block))).collect()
}
