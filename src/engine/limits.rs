//! Limits that move while the fleet runs: a pod is resized in place, `docker update`, `systemctl
//! set-property`, another CPU set. The files of the limits are watched, and all is looked at again
//! now and then, because not everything tells of itself: a level that we cannot see, the kernel's own view of a CPU
//! set, a move to another group.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::until;
use super::watch::watch;
use super::{Adapt, Engine, Renewed};
use crate::fleet::{Event, Kind, LASTS};
use crate::probe::{Host, limit_files};

/// Between two looks where nothing tells of itself.
const EVERY: Duration = Duration::from_secs(5);

/// What is watched, and when the next look is due.
pub(super) struct Limits {
    watched: Option<Watched>,
    /// Ticks where nothing tells of itself; none where the number is to stay. The kernel's own timer:
    /// the runtime's wakes up several times on the way to a moment that is far away.
    clock: Option<AsyncFd<OwnedFd>>,
    /// When the running workers are replaced, since what their runtimes were told at their start no longer
    /// holds.
    renew_at: Option<Instant>,
    /// The last failure, told once.
    failed: Option<String>,
}

struct Watched {
    fd: AsyncFd<OwnedFd>,
    files: Vec<PathBuf>,
}

impl Limits {
    pub(super) fn new(adapt: Adapt) -> Self {
        let follows = adapt == Adapt::Auto;
        Self { watched: None, clock: follows.then(clock).flatten(), renew_at: None, failed: None }
    }

    /// Returns when there is something to look at.
    pub(super) async fn next(&self) {
        let written = async {
            match &self.watched {
                Some(watched) => drained(&watched.fd).await,
                None => std::future::pending().await,
            }
        };
        let ticks = async {
            match &self.clock {
                Some(clock) => drained(clock).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = written => {}
            () = ticks => {}
            () = until(self.renew_at) => {}
        }
    }
}

impl Watched {
    /// None where the kernel has no more of them for us; then the looks that come anyway have to do.
    fn new(files: Vec<PathBuf>) -> Option<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
        for file in &files {
            // One that has just gone tells nothing.
            let _ = inotify.add_watch(file, AddWatchFlags::IN_MODIFY);
        }
        Some(Self { fd: watch(OwnedFd::from(inotify), Interest::READABLE).ok()?, files })
    }
}

/// A timer that ticks for ever.
fn clock() -> Option<AsyncFd<OwnedFd>> {
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let clock = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).ok()?;
    let every = Expiration::Interval(TimeSpec::from(EVERY));
    clock.set(every, TimerSetTimeFlags::empty()).ok()?;
    watch(OwnedFd::from(clock), Interest::READABLE).ok()
}

/// Returns when there was something to read, all of which is read: what it was makes no difference.
async fn drained(fd: &AsyncFd<OwnedFd>) {
    let Ok(mut ready) = fd.readable().await else { return std::future::pending().await };
    let mut bytes = [0; 4096];
    while matches!(nix::unistd::read(fd.get_ref(), &mut bytes), Ok(1..) | Err(Errno::EINTR)) {}
    ready.clear_ready();
}

impl Engine {
    /// Computes again, and follows where that leads elsewhere.
    pub(super) fn look_at_limits(&mut self) {
        let now = Instant::now();
        // The first time, since who lives shorter need not pay for it (an end of watching costs the kernel
        // milliseconds); and after a move to another group.
        let files = limit_files(&Host::live());
        if self.limits.watched.as_ref().is_none_or(|watched| watched.files != files) {
            self.limits.watched = Watched::new(files);
        }
        if self.fleet.is_ending() {
            return;
        }
        self.look_for_other_kills();
        self.isolation.share_out(self.fleet.target(), &self.config.sized);
        match self.config.orders.replan() {
            Ok(renewed) => {
                self.limits.failed = None;
                self.follow(renewed, now);
            }
            Err(why) => {
                if self.limits.failed.as_ref() != Some(&why) {
                    warn!(event = "limits", "the limits cannot be looked at: {why}");
                    self.limits.failed = Some(why);
                }
            }
        }
        if self.limits.renew_at.is_some_and(|at| now >= at) {
            self.limits.renew_at = None;
            self.renew(Kind::Reload, None);
        }
    }

    fn follow(&mut self, renewed: Renewed, now: Instant) {
        let before = &self.config.sized;
        if renewed.sized.limits == before.limits && renewed.sized.workers == before.workers {
            return;
        }
        let less = renewed.sized.budget < before.budget;
        if renewed.sized.budget > before.budget {
            self.oom.most = None;
        }
        let told = renewed.sized.runtime != before.runtime;
        let workers = renewed.sized.workers;
        info!(
            event = "limits",
            workers,
            before = before.workers,
            "the limits have moved: {}; {}",
            renewed.sized.limits.join(", "),
            if workers == before.workers {
                format!("still {workers} workers")
            } else {
                format!("{workers} workers instead of {}", before.workers)
            }
        );
        self.take_orders(renewed);
        if told {
            // A smaller share is dangerous from the first moment on; a larger one can wait and see.
            self.limits.renew_at = Some(if less { now } else { now + LASTS });
        }
        debug!(event = "limits", told, less, "running workers are told: {told}");
        let workers = self.oom.most.map_or(workers, |most| workers.min(most));
        self.tell(Event::Planned { workers, at_once: false });
    }
}
