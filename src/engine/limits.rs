//! Limits that move while the fleet runs: a pod is resized in place, `docker update`, `systemctl
//! set-property`, another CPU set. The files of the limits are watched, and all is looked at again
//! now and then, because not everything tells of itself: a level that we cannot see, the kernel's own view of a CPU
//! set, a move to another group.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::timer::{Timer, drained};
use super::until;
use super::watch::watch;
use super::{Engine, Renewed};
use crate::fleet::{Adapt, Event, Kind, LASTS};
use crate::probe::{Host, limit_files};
use crate::units::plural;

/// Between two looks where nothing tells of itself.
const EVERY: Duration = Duration::from_secs(5);

/// What is watched, and when the next look is due.
pub(super) struct Limits {
    /// Whether the number of workers moves with them.
    follows: bool,
    watched: Option<Watched>,
    /// Ticks where nothing tells of itself; none where the number is to stay.
    clock: Option<Timer>,
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
    /// `looks`: somebody goes by the clock, also where nothing follows the limits.
    pub(super) fn new(adapt: Adapt, looks: bool) -> Self {
        let follows = adapt != Adapt::Off;
        let clock = (follows || looks).then(|| Timer::every(EVERY)).flatten();
        Self { follows, watched: None, clock, renew_at: None, failed: None }
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
                Some(clock) => clock.next().await,
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

impl Engine {
    /// Computes again, and follows where that leads elsewhere.
    pub(super) fn look_at_limits(&mut self) {
        if !self.fleet.is_ending() {
            // What a group could not give up at once, it may give up by now.
            self.isolation.share_out(self.fleet.target(), &self.config.sized);
        }
        if !self.limits.follows {
            return;
        }
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
        let (then, bounds) = (before.bounds.workers, renewed.sized.bounds);
        if renewed.sized.limits == before.limits && bounds.workers == then {
            return;
        }
        let less = bounds.budget < before.bounds.budget;
        let told = renewed.sized.runtime != before.runtime;
        let (workers, running) = (bounds.workers, self.fleet.target());
        info!(
            event = "limits",
            workers,
            before = then,
            "the limits have moved: {}; {}",
            renewed.sized.limits.join(", "),
            if workers != then {
                format!("the plan says {} instead of {then}", plural(workers, "worker"))
            } else if workers == running {
                format!("still {}", plural(workers, "worker"))
            } else {
                format!("the plan still says {}, and {running} run", plural(workers, "worker"))
            }
        );
        self.take_orders(renewed);
        if told {
            // A smaller share is dangerous from the first moment on; a larger one can wait and see.
            self.limits.renew_at = Some(if less { now } else { now + LASTS });
        }
        debug!(event = "limits", told, less, "running workers are told: {told}");
        self.tell(Event::Planned { bounds, at_once: false });
    }
}
