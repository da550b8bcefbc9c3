//! What workers tell us by `NOTIFY_SOCKET` (`sd_notify(3)`): that they serve, live, need time, go.
//!
//! The socket has an abstract name, so no file is left behind and no directory has to be writable.
//! The kernel says who sent each message; only processes of our own workers are heard.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, setsockopt,
    sockopt::PassCred,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::Engine;
use super::watch::watch;
use crate::fleet::{Event, Told, WorkerKey};

/// The longest message; systemd's own limit is 4096 too. What is longer is cut.
const LONGEST: usize = 4096;
/// As many descriptors as the kernel lets through at once (`SCM_MAX_FD`): all are closed.
const MOST_FDS: usize = 253;

/// Our end.
pub(crate) struct NotifySocket {
    fd: AsyncFd<OwnedFd>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) pid: i32,
    pub(crate) told: Vec<Told>,
    pub(crate) status: Option<String>,
}

impl NotifySocket {
    /// Listens under the value of `NOTIFY_SOCKET` that workers get: an abstract name behind an at sign.
    pub(crate) fn bind(name: &str) -> io::Result<Self> {
        let address = SocketAddr::from_abstract_name(name.trim_start_matches('@'))?;
        Self::adopt(UnixDatagram::bind_addr(&address)?.into())
    }

    /// Goes on with a socket that was bound before.
    pub(crate) fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let socket = UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        setsockopt(&socket, PassCred, &true)?;
        let fd = watch(OwnedFd::from(socket), Interest::READABLE).map_err(|(_, error)| error)?;
        Ok(Self { fd })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }

    /// The next message.
    pub(crate) async fn next(&self) -> io::Result<Message> {
        loop {
            let mut ready = self.fd.readable().await?;
            match self.take() {
                Some(message) => return Ok(message),
                None => ready.clear_ready(),
            }
        }
    }

    /// The next message that is there; what makes no sense is passed over.
    fn take(&self) -> Option<Message> {
        loop {
            let mut text = [0; LONGEST];
            let mut parts = [IoSliceMut::new(&mut text)];
            let mut space = nix::cmsg_space!([std::os::fd::RawFd; MOST_FDS], UnixCredentials);
            let fd = self.fd.get_ref().as_raw_fd();
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<UnixAddr>(fd, &mut parts, Some(&mut space), flags);
            let (length, pid) = match received {
                Ok(message) => {
                    let mut pid = None;
                    for control in message.cmsgs().into_iter().flatten() {
                        match control {
                            ControlMessageOwned::ScmCredentials(sender) => pid = Some(sender.pid()),
                            // `systemd-notify` waits until its barrier is closed.
                            ControlMessageOwned::ScmRights(fds) => {
                                for fd in fds {
                                    let _ = nix::unistd::close(fd);
                                }
                            }
                            _ => {}
                        }
                    }
                    (message.bytes, pid)
                }
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return None,
            };
            let Some(pid) = pid.filter(|pid| *pid > 0) else { continue };
            let (told, status) = parse(&text[..length]);
            if !told.is_empty() || status.is_some() {
                return Some(Message { pid, told, status });
            }
        }
    }
}

impl Engine {
    /// Believes a message of a worker, or of a process of its group.
    pub(super) fn heard(&mut self, message: io::Result<Message>) {
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                warn!(event = "no_notify", "workers are no longer heard: {error}");
                self.notify = None;
                return;
            }
        };
        let leader = if self.leads(message.pid).is_some() {
            Some(message.pid)
        } else {
            let process = procfs::process::Process::new(message.pid);
            process.and_then(|process| process.stat()).ok().map(|stat| stat.pgrp)
        };
        let Some(worker) = leader.and_then(|leader| self.leads(leader)) else { return };
        if let Some(running) = self.running.get_mut(&worker)
            && message.status.is_some()
        {
            running.status = message.status;
        }
        for what in message.told {
            if what != Told::Ready || self.config.ready_by_notice {
                self.tell(Event::Told { worker, what });
            }
        }
    }

    /// The worker whose leader is `pid`.
    fn leads(&self, pid: i32) -> Option<WorkerKey> {
        let mut running = self.running.iter();
        running
            .find(|(_, running)| running.pid.as_raw() == pid && !running.reaped)
            .map(|(key, _)| *key)
    }
}

/// The lines of one message, and the status text among them.
fn parse(text: &[u8]) -> (Vec<Told>, Option<String>) {
    let mut told = Vec::new();
    let mut status = None;
    for line in text.split(|byte| *byte == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else { continue };
        let Some((name, value)) = line.split_once('=') else { continue };
        let time = || value.parse().ok().map(Duration::from_micros).filter(|time| !time.is_zero());
        match (name, value) {
            ("READY", "1") => told.push(Told::Ready),
            ("STOPPING", "1") => told.push(Told::Stopping),
            ("WATCHDOG", "1") => told.push(Told::Ping),
            ("WATCHDOG", "trigger") => told.push(Told::Hung),
            ("WATCHDOG_USEC", _) => told.extend(time().map(Told::Watchdog)),
            ("EXTEND_TIMEOUT_USEC", _) => told.extend(time().map(Told::Extend)),
            ("STATUS", text) => status = Some(text.chars().take(200).collect()),
            _ => {}
        }
    }
    (told, status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_protocol_and_nothing_else() {
        let text = b"READY=1\nSTATUS=up\nMAINPID=7\nEXTEND_TIMEOUT_USEC=2000000\nWATCHDOG=1\nX\n\xff=1\nREADY=0";
        let (told, status) = parse(text);
        assert_eq!(told, [Told::Ready, Told::Extend(Duration::from_secs(2)), Told::Ping]);
        assert_eq!(status.as_deref(), Some("up"));
        let (told, status) = parse(b"WATCHDOG=trigger\nSTOPPING=1\nWATCHDOG_USEC=500000");
        assert_eq!(told, [Told::Hung, Told::Stopping, Told::Watchdog(Duration::from_millis(500))]);
        assert_eq!(status, None);
        for junk in
            ["", "=", "READY", "WATCHDOG_USEC=-1", "EXTEND_TIMEOUT_USEC=0", "WATCHDOG_USEC=1e9"]
        {
            assert_eq!(parse(junk.as_bytes()), (vec![], None), "{junk}");
        }
    }
}
