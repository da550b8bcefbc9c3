//! Signals as events: all are blocked and read from a signalfd (`signalfd(2)`), so none interrupts
//! anything, each comes with its sender, and dispositions that we inherited stay as they are.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::watch::watch;

/// What the kernel says of a signal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// `None` for a real-time signal: those have numbers and no names.
    pub(crate) signal: Option<Signal>,
    pub(crate) number: i32,
    /// Sent by a process, and not by the kernel for a key press or a hangup.
    pub(crate) by_process: bool,
}

/// The stream of signals.
pub(crate) struct Signals {
    fd: AsyncFd<SignalFd>,
    /// CHLD alone: the kernel hands out the lowest number first, and a storm of ended orphans must not
    /// hold up those above it.
    children: AsyncFd<SignalFd>,
    /// The mask as it was, for the workers.
    pub(crate) inherited: SigSet,
}

impl Signals {
    /// Blocks and collects everything that can be, but for faults of our own code.
    pub(crate) fn block() -> io::Result<Self> {
        let mut inherited = SigSet::empty();
        let mut mask = SigSet::all();
        for fault in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGILL,
            Signal::SIGTRAP,
            Signal::SIGABRT,
            Signal::SIGSYS,
        ] {
            mask.remove(fault);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), Some(&mut inherited))?;
        let stream = |mask: &SigSet| -> io::Result<AsyncFd<SignalFd>> {
            let fd = SignalFd::with_flags(mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
            watch(fd, Interest::READABLE).map_err(|(_, error)| error)
        };
        let mut children = SigSet::empty();
        children.add(Signal::SIGCHLD);
        mask.remove(Signal::SIGCHLD);
        Ok(Self { fd: stream(&mask)?, children: stream(&children)?, inherited })
    }

    /// The next signal.
    pub(crate) async fn next(&self) -> io::Result<Received> {
        tokio::select! {
            biased;
            received = read(&self.fd) => received,
            received = read(&self.children) => received,
        }
    }
}

async fn read(fd: &AsyncFd<SignalFd>) -> io::Result<Received> {
    loop {
        let mut ready = fd.readable().await?;
        match fd.get_ref().read_signal()? {
            None => ready.clear_ready(),
            Some(info) => {
                let number = i32::try_from(info.ssi_signo).unwrap_or_default();
                // SI_USER and below are kill, tkill and sigqueue; the kernel's own are above.
                let signal = Signal::try_from(number).ok();
                return Ok(Received { signal, number, by_process: info.ssi_code <= 0 });
            }
        }
    }
}

/// Whether `signal` was ignored when we were started (`nohup` does that to HUP).
pub(crate) fn was_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal as i32 - 1) & 1 == 1
}
