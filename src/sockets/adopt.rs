//! Taking over a socket that somebody else opened for us (`sd_listen_fds(3)`).
#![expect(unsafe_code, reason = "a number in the environment becomes a descriptor")]

use std::net::TcpListener;
use std::os::fd::{BorrowedFd, FromRawFd};

use nix::sys::socket::{getsockopt, sockopt::AcceptConn};

use super::FIRST_FD;

/// The first inherited listening socket, where `LISTEN_PID` says that it is for this process.
pub(crate) fn inherited() -> Option<TcpListener> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let ours = number("LISTEN_PID") == Some(std::process::id()) && number("LISTEN_FDS") >= Some(1);
    // SAFETY: borrowed for one call, which fails harmlessly where the number is not open.
    let listens = || getsockopt(&unsafe { BorrowedFd::borrow_raw(FIRST_FD) }, AcceptConn);
    if !ours || listens() != Ok(true) {
        return None;
    }
    // SAFETY: whoever started us opened this descriptor for us alone, as LISTEN_PID says, it is a
    // listening socket, and this function is called once.
    Some(unsafe { TcpListener::from_raw_fd(FIRST_FD) })
}
