//! A clock of the kernel's own: the runtime's wakes up several times on the way to a moment that is far away.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::watch::{Watchable, watch};

/// Goes by the monotonic clock.
pub(super) struct Timer(AsyncFd<Fd>);

/// As its own type, through which it is set anew.
struct Fd(TimerFd);

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Watchable for Fd {}

impl Timer {
    /// Not set. None where the kernel has none for us.
    pub(super) fn new() -> Option<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).ok()?;
        Some(Self(watch(Fd(timer), Interest::READABLE).ok()?))
    }

    /// Ticks for ever.
    pub(super) fn every(time: Duration) -> Option<Self> {
        let timer = Self::new()?;
        timer.apply(Expiration::Interval(TimeSpec::from(time)))?;
        Some(timer)
    }

    /// Ticks once after `wait`, in place of what was set before.
    pub(super) fn set(&self, wait: Duration) {
        // A time of zero would be no timer.
        let wait = wait.max(Duration::from_millis(1));
        self.apply(Expiration::OneShot(TimeSpec::from(wait)));
    }

    fn apply(&self, when: Expiration) -> Option<()> {
        self.0.get_ref().0.set(when, TimerSetTimeFlags::empty()).ok()
    }

    /// Returns when it ticks.
    pub(super) async fn next(&self) {
        drained(&self.0).await;
    }
}

/// Returns when there was something to read, all of which is read: what it was makes no difference.
pub(super) async fn drained<T: Watchable + AsFd>(fd: &AsyncFd<T>) {
    let Ok(mut ready) = fd.readable().await else { return std::future::pending().await };
    drain(fd.get_ref());
    ready.clear_ready();
}

/// Reads all that there is.
pub(super) fn drain(fd: impl AsFd) {
    let mut bytes = [0; 4096];
    while matches!(nix::unistd::read(&fd, &mut bytes), Ok(1..) | Err(Errno::EINTR)) {}
}
