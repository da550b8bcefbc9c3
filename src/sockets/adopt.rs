//! Taking over descriptors that somebody else opened for us (`sd_listen_fds(3)`).
#![expect(unsafe_code, reason = "a number in the environment becomes a descriptor")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockFlag, accept4};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::FIRST_FD;

static CLAIMED: AtomicBool = AtomicBool::new(false);

/// Open descriptors from [`FIRST_FD`] on, in order, which nothing else in this process owns.
#[derive(Debug)]
pub(super) struct Claim(Vec<RawFd>);

impl Claim {
    /// Claims `count` descriptors. The error is the first number that is not open, or that has been
    /// claimed before.
    ///
    /// To be called before this process opens anything, on the word of `LISTEN_PID`.
    pub(super) fn lay(count: usize) -> Result<Self, RawFd> {
        if CLAIMED.swap(true, Ordering::Relaxed) {
            return Err(FIRST_FD);
        }
        let mut fds = Vec::new();
        for fd in (FIRST_FD..RawFd::MAX).take(count) {
            // SAFETY: borrowed for one call, which fails harmlessly where the number is not open.
            let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
            fcntl(borrowed, FcntlArg::F_GETFD).map_err(|_| fd)?;
            fds.push(fd);
        }
        Ok(Self(fds))
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Owns them; a command that we start does not inherit them under these numbers.
    pub(super) fn take(self) -> Vec<OwnedFd> {
        let own = |fd| {
            // SAFETY: it was open when it was claimed and whoever started us opened it for us alone,
            // as LISTEN_PID says; a claim is laid once and ends here, so it gets one owner.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // Fails for no open descriptor.
            let _ = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
            fd
        };
        self.0.into_iter().map(own).collect()
    }
}

/// A copy of `fd` that is at least `end`, closed on exec.
pub(crate) fn above(fd: &impl AsFd, end: RawFd) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(end))?;
    // SAFETY: fcntl just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// A copy, closed on exec, of a descriptor that our predecessor in this process has left open for us.
/// The original stays as it is until [`give_up`].
pub(crate) fn handed_down(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < FIRST_FD {
        return Err(io::Error::other("no descriptor of ours"));
    }
    // SAFETY: borrowed for one call, which fails harmlessly where the number is not open.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// The next connection of a listening socket, closed on exec; neither it nor this call ever waits.
pub(super) fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: accept4 just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Watches a descriptor, which is owned from here on, for something to read.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is open, the watch owns it, and nothing takes it out and closes it before
    // the watch has ended.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// A descriptor that our predecessor in this process has left open for us, under its number; closed on exec
/// from here on. Each is taken over once, and when there is no way back.
pub(super) fn take_over(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < FIRST_FD {
        return Err(io::Error::other("no descriptor of ours"));
    }
    // SAFETY: borrowed for one call, which fails harmlessly where the number is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, the predecessor kept it open under this number for us alone, nothing here owns
    // it, and each number is taken over once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes a descriptor that was handed down, after a copy was made of it.
pub(crate) fn give_up(fd: RawFd) {
    if fd >= FIRST_FD {
        // SAFETY: the predecessor kept it open under this number for us alone, nothing here owns it, and
        // each number is given up once.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}
