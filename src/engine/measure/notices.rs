//! What the kernel tells between two looks: tasks stand still for want of memory (PSI), a limit was hit
//! (v2: `memory.events` is written to), usage comes near to a limit (v1: an eventfd).
//!
//! Nothing here may fail the run: what cannot be had is left out. The latter two tell once and are silent until
//! they are armed again, since they would tell a hundred times in a second: what follows a notice is closer
//! looks anyway.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::super::timer::drain;
use super::super::watch::watch;
use crate::probe::Notices as Wanted;

/// A task stood still for 150 ms within 2 s: the window that needs no privilege (`accounting/psi.rst`).
const TRIGGER: &[u8] = b"some 150000 2000000\0";
/// Shares of a limit, in percent.
const THRESHOLDS: [u64; 3] = [80, 90, 95];

/// What was asked for, and how it is heard.
#[derive(Default)]
pub(super) struct Notices {
    wanted: Option<Wanted>,
    pressure: Option<AsyncFd<OwnedFd>>,
    events: Option<AsyncFd<OwnedFd>>,
    thresholds: Option<AsyncFd<OwnedFd>>,
    /// A limit was hit, and that has not been read yet.
    hit: bool,
}

/// What told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Notice {
    Pressure,
    Events,
    Threshold,
}

impl Notice {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Pressure => "tasks stand still for want of memory",
            Self::Events => "a memory limit was hit",
            Self::Threshold => "memory has passed a share of its limit",
        }
    }
}

impl Notices {
    /// Asks for what there is, anew where limits or groups have changed; and lets those speak again that have.
    /// `plenty`: memory is far from its limit, where pressure is somebody else's.
    pub(super) fn arm(&mut self, wanted: Wanted, plenty: bool) {
        if self.wanted.as_ref() != Some(&wanted) {
            *self = Self { events: events(&wanted), ..Self::default() };
        }
        if plenty {
            self.pressure = None;
        } else if self.pressure.is_none() {
            self.pressure = pressure(&wanted.pressure);
        }
        if self.thresholds.is_none() {
            self.thresholds = thresholds(&wanted);
        }
        if std::mem::take(&mut self.hit)
            && let Some(events) = &self.events
        {
            drain(events.get_ref());
        }
        self.wanted = Some(wanted);
    }

    /// What tells first, of those that are armed.
    pub(super) async fn next(&mut self) -> Notice {
        let events = self.events.as_ref().filter(|_| !self.hit);
        let notice = tokio::select! {
            () = told(self.pressure.as_ref(), Interest::PRIORITY) => Notice::Pressure,
            () = told(events, Interest::READABLE) => Notice::Events,
            () = told(self.thresholds.as_ref(), Interest::READABLE) => Notice::Threshold,
        };
        match notice {
            // Once in 2 s at most; closing it makes us wait for the kernel.
            Notice::Pressure => {}
            // Open, it would wake us up each time.
            Notice::Threshold => self.thresholds = None,
            // What is not read is not told again, and closing it costs the kernel milliseconds.
            Notice::Events => self.hit = true,
        }
        notice
    }
}

/// Returns when there is news.
async fn told(fd: Option<&AsyncFd<OwnedFd>>, interest: Interest) {
    let Some(fd) = fd else { return std::future::pending().await };
    match fd.ready(interest).await {
        // The group has gone: what is asked for anew tells.
        Ok(ready) if ready.ready().is_error() => std::future::pending().await,
        Ok(mut ready) => ready.clear_ready(),
        Err(_) => std::future::pending().await,
    }
}

fn pressure(path: &Path) -> Option<AsyncFd<OwnedFd>> {
    let mut how = OpenOptions::new();
    how.read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let mut file = how.open(path).ok()?;
    file.write_all(TRIGGER).ok()?;
    watch(OwnedFd::from(file), Interest::PRIORITY).ok()
}

fn events(wanted: &Wanted) -> Option<AsyncFd<OwnedFd>> {
    if wanted.events.is_empty() {
        return None;
    }
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    for file in &wanted.events {
        // One that has just gone tells nothing.
        let _ = inotify.add_watch(file, AddWatchFlags::IN_MODIFY);
    }
    watch(OwnedFd::from(inotify), Interest::READABLE).ok()
}

fn thresholds(wanted: &Wanted) -> Option<AsyncFd<OwnedFd>> {
    if wanted.thresholds.is_empty() {
        return None;
    }
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok()?;
    for (dir, limit) in &wanted.thresholds {
        // A read-only group tells nothing.
        let _ = ask(&event, dir, *limit);
    }
    watch(OwnedFd::from(event), Interest::READABLE).ok()
}

/// Lets the kernel count the eventfd up when usage passes the shares, in either direction
/// (`cgroup-v1/memory.rst`, "Memory thresholds").
fn ask(event: &EventFd, dir: &Path, limit: u64) -> std::io::Result<()> {
    let usage = File::open(dir.join("memory.usage_in_bytes"))?;
    for share in THRESHOLDS {
        let order = format!("{} {} {}", event.as_raw_fd(), usage.as_raw_fd(), limit / 100 * share);
        OpenOptions::new()
            .write(true)
            .open(dir.join("cgroup.event_control"))?
            .write_all(order.as_bytes())?;
    }
    Ok(())
}
