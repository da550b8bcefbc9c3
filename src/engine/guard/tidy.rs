//! The groups of workers that a killed launcher leaves, removed by its guard: without allocating, as all
//! that the guard does. [`super::super::isolate`] makes them.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::sleep;
use std::time::Instant;

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, read, unlinkat, write};

use super::super::isolate::{Inheritance, OURS};
use super::super::spawn::list;
use super::watch::{FOLDER, LATER, PATIENCE, SOON};

/// Longer paths are not tidied up.
const MOST_PATH: usize = 4096;
const MOST_ORDER: usize = 64;

/// What is to be put back, on the stack.
pub(super) struct Remains {
    dir: [u8; MOST_PATH],
    order: [u8; MOST_ORDER],
}

impl Remains {
    /// `None` where there is nothing, or nothing that fits.
    pub(super) fn of(inheritance: Option<&Inheritance>) -> Option<Self> {
        let Inheritance { dir, order } = inheritance?;
        let mut remains = Self { dir: [0; MOST_PATH], order: [0; MOST_ORDER] };
        remains.dir.get_mut(..dir.count_bytes())?.copy_from_slice(dir.to_bytes());
        remains.order.get_mut(..order.count_bytes())?.copy_from_slice(order.to_bytes());
        // The last byte of each stays the NUL that ends it.
        (dir.count_bytes() < MOST_PATH && order.count_bytes() < MOST_ORDER).then_some(remains)
    }

    /// Moves who is left (ourselves, at least) up to the group that was divided, and removes its parts.
    pub(super) fn put_back(&self) {
        let Ok(dir) = CStr::from_bytes_until_nul(&self.dir) else { return };
        let order = self.order.split(|byte| *byte == 0).next().unwrap_or_default();
        let deadline = Instant::now() + PATIENCE;
        let mut wait = SOON;
        while Instant::now() < deadline {
            let Ok(group) = openat(AT_FDCWD, dir, FOLDER, Mode::empty()) else { return };
            put(group.as_fd(), c"cgroup.subtree_control", order);
            if empty(group.as_fd()) == Some(0) {
                return;
            }
            sleep(wait);
            wait = (wait * 2).min(LATER);
        }
    }
}

/// How many of the parts could not be removed.
fn empty(group: BorrowedFd<'_>) -> Option<usize> {
    let mut entries = [0; 4096];
    let mut left = 0;
    loop {
        let length = list(group, &mut entries).ok()?;
        if length == 0 {
            return Some(left);
        }
        let mut rest = &entries[..length];
        // struct linux_dirent64, as in `watch`.
        while let Some(size) = rest.get(16..18) {
            let size = usize::from(u16::from_ne_bytes([size[0], size[1]])).max(20);
            let name = rest.get(19..size).unwrap_or_default();
            rest = rest.get(size..).unwrap_or_default();
            let Ok(name) = CStr::from_bytes_until_nul(name) else { continue };
            if !name.to_bytes().starts_with(OURS.as_bytes()) {
                continue;
            }
            move_up(group, name);
            if unlinkat(group, name, UnlinkatFlags::RemoveDir).is_err() {
                left += 1;
            }
        }
    }
}

fn move_up(group: BorrowedFd<'_>, name: &CStr) {
    let Ok(folder) = openat(group, name, FOLDER, Mode::empty()) else { return };
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let Ok(procs) = openat(&folder, c"cgroup.procs", flags, Mode::empty()) else { return };
    let mut pids = [0; 4096];
    // Who comes behind these is seen at the next look.
    let Ok(length) = read(&procs, &mut pids) else { return };
    for pid in pids[..length].split_inclusive(|byte| *byte == b'\n') {
        put(group, c"cgroup.procs", pid);
    }
}

fn put(group: BorrowedFd<'_>, name: &CStr, text: &[u8]) {
    if let Ok(file) = openat(group, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        // What does not work now is seen by what is left.
        let _ = write(&file, text);
    }
}
