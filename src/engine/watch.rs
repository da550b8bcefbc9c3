//! Descriptors that the event loop watches.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signalfd::SignalFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Types that keep one descriptor open as long as they live, and always the same one.
pub(super) trait Watchable: std::os::fd::AsRawFd {}

impl Watchable for OwnedFd {}
impl Watchable for SignalFd {}

/// Registers `fd`; hands it back where epoll refuses its kind (EPERM for regular files).
#[expect(
    deprecated,
    reason = "the successor is unsafe because of types that change their descriptor; Watchable has none"
)]
pub(super) fn watch<T: Watchable>(fd: T, interest: Interest) -> Result<AsyncFd<T>, (T, io::Error)> {
    AsyncFd::try_with_interest(fd, interest)
        .map_err(tokio::io::unix::AsyncFdTryNewError::into_parts)
}
