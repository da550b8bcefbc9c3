//! Our end of the socket pair that a worker knows by `NODE_CHANNEL_FD`: lines in both directions, a
//! descriptor with some of them, and nothing that waits for who does not read.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::protocol::Lines;

/// libuv reads so much at once, and of a line with a descriptor that is cut in two Node would mix up which
/// descriptor is whose if the next one came with the rest.
const NODE_READS: usize = 64 << 10;
/// What a peer may leave unread, beside what the kernel keeps, before it is no longer read from: its
/// questions would make more answers.
const MOST_UNSENT: usize = 256 << 10;
/// The same while it has a descriptor to confirm, which only comes in by reading: one that never does is not
/// read from for ever.
const MOST_UNCONFIRMED: usize = 1 << 20;
/// As many descriptors as the kernel lets through at once (`SCM_MAX_FD`).
const MOST_FDS: usize = 253;
/// Of one read.
pub(super) const BUFFER: usize = 16 << 10;

/// Our end.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    lines: RefCell<Lines>,
    out: RefCell<Out>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Out {
    queue: VecDeque<Line>,
    /// In the queue.
    bytes: usize,
    /// Sent so far, and how far the peer is known to have read.
    sent: u64,
    read: u64,
    /// Where lines with a descriptor ended that the peer has not confirmed.
    marks: VecDeque<u64>,
    closed: bool,
}

/// A line on its way out, and how much of it has gone.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    pub(super) gone: usize,
    pub(super) fd: Option<Rc<OwnedFd>>,
}

/// Why a queue is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Nothing,
    /// The kernel has no room.
    Full,
    /// The kernel has too many descriptors on the way, and tells nobody when that changes.
    Later,
    /// The peer has to confirm a descriptor first.
    Unconfirmed,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) too_long: bool,
    pub(super) end: bool,
}

/// A new pair: ours, and the worker's.
pub(super) fn pair() -> io::Result<(Channel, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
    Ok((Channel::new(ours)?, theirs))
}

impl Channel {
    pub(super) fn new(ours: OwnedFd) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(ours);
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        Ok(Self { stream, lines: RefCell::default(), out: RefCell::default(), wake: Notify::new() })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// What has come of the next line.
    pub(super) fn partial(&self) -> (Vec<u8>, bool) {
        let lines = self.lines.borrow();
        let (bytes, skips) = lines.rest();
        (bytes.to_vec(), skips)
    }

    /// Goes on where an earlier program was.
    pub(super) fn go_on_with(
        &self,
        partial: Vec<u8>,
        skips: bool,
        unsent: Vec<Line>,
        handles: u32,
    ) {
        *self.lines.borrow_mut() = Lines::restore(partial, skips);
        let mut out = self.out.borrow_mut();
        out.bytes = unsent.iter().map(|line| line.bytes.len() - line.gone).sum();
        out.queue = unsent.into();
        // How much of what was sent is read is not known: one descriptor at a time, until that is.
        out.sent = NODE_READS as u64;
        out.marks = std::iter::repeat_n(NODE_READS as u64, handles as usize).collect();
        drop(out);
        self.wake.notify_one();
    }

    /// What is not sent, in order.
    pub(super) fn unsent(&self, mut each: impl FnMut(&Line)) {
        self.out.borrow().queue.iter().for_each(&mut each);
    }

    /// Lines with a descriptor that are sent and not confirmed.
    pub(super) fn unconfirmed(&self) -> u32 {
        u32::try_from(self.out.borrow().marks.len()).unwrap_or(u32::MAX)
    }

    /// Bytes that the kernel has not taken yet.
    pub(super) fn backlog(&self) -> usize {
        self.out.borrow().bytes
    }

    pub(super) fn is_closed(&self) -> bool {
        self.out.borrow().closed
    }

    /// Sends a line, now or when there is room.
    pub(super) fn push(&self, bytes: Vec<u8>, fd: Option<Rc<OwnedFd>>) {
        let mut out = self.out.borrow_mut();
        if out.closed {
            return;
        }
        out.bytes += bytes.len();
        out.queue.push_back(Line { bytes, gone: 0, fd });
        if out.queue.len() == 1 {
            drop(out);
            if self.flush() != Rest::Nothing {
                self.wake.notify_one();
            }
        }
    }

    /// The peer has the oldest of the descriptors, or knows that it has not: it has read up to there.
    pub(super) fn confirmed(&self) {
        let mut out = self.out.borrow_mut();
        if let Some(mark) = out.marks.pop_front() {
            out.read = mark;
        }
        if !out.queue.is_empty() {
            drop(out);
            self.wake.notify_one();
        }
    }

    /// Sends what the kernel takes.
    pub(super) fn flush(&self) -> Rest {
        let mut out = self.out.borrow_mut();
        let out = &mut *out;
        while let Some(line) = out.queue.front_mut() {
            let unread = usize::try_from(out.sent - out.read).unwrap_or(usize::MAX);
            let fd = line.fd.as_ref().filter(|_| line.gone == 0).map(|fd| [fd.as_raw_fd()]);
            if fd.is_some() && !out.marks.is_empty() && unread + line.bytes.len() >= NODE_READS {
                return Rest::Unconfirmed;
            }
            let control = fd.as_ref().map(|fd| ControlMessage::ScmRights(fd));
            let parts = [IoSlice::new(&line.bytes[line.gone..])];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.stream.as_raw_fd(), &parts, control.as_slice(), flags, None) {
                Ok(count) => {
                    line.gone += count;
                    out.bytes -= count;
                    out.sent += count as u64;
                    if line.gone == line.bytes.len() {
                        if line.fd.is_some() {
                            out.marks.push_back(out.sent);
                        }
                        out.queue.pop_front();
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Rest::Full,
                Err(Errno::ENOBUFS | Errno::ENOMEM | Errno::ETOOMANYREFS) => return Rest::Later,
                Err(_) => {
                    // The end is read, too.
                    out.closed = true;
                    out.queue.clear();
                    out.bytes = 0;
                }
            }
        }
        Rest::Nothing
    }

    /// Waits until there is something to read, sending meanwhile what can be sent.
    pub(super) async fn readable(&self) -> io::Result<()> {
        loop {
            let rest = self.flush();
            // What it has to confirm comes in by reading.
            let most = if rest == Rest::Unconfirmed { MOST_UNCONFIRMED } else { MOST_UNSENT };
            let reads = self.backlog() < most;
            tokio::select! {
                biased;
                result = self.stream.readable(), if reads => return result,
                result = self.stream.writable(), if rest == Rest::Full => {
                    result?;
                    let _ = self.stream.try_io(Interest::WRITABLE, || match self.flush() {
                        Rest::Full => Err(io::ErrorKind::WouldBlock.into()),
                        _ => Ok(()),
                    });
                }
                () = tokio::time::sleep(LATER), if rest == Rest::Later => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Reads what is there, at most one buffer full; `None` where that is nothing.
    pub(super) fn read(&self, buffer: &mut [u8], each: impl FnMut(&[u8])) -> Option<Read> {
        let received = self.stream.try_io(Interest::READABLE, || self.receive(buffer)).ok();
        Some(self.cut(received?.ok(), buffer, each))
    }

    /// The same without asking the event loop: when the peer has ended.
    pub(super) fn read_last(&self, buffer: &mut [u8], each: impl FnMut(&[u8])) -> Option<Read> {
        let received = self.receive(buffer).ok()?;
        Some(self.cut(received.ok(), buffer, each))
    }

    fn cut(&self, length: Option<usize>, buffer: &[u8], each: impl FnMut(&[u8])) -> Read {
        let length = length.unwrap_or(0);
        let too_long = self.lines.borrow_mut().take(&buffer[..length], each);
        Read { too_long, end: length == 0 }
    }

    /// Outer errors: nothing there. Inner ones: the end.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Result<usize, Errno>> {
        let mut parts = [IoSliceMut::new(buffer)];
        let mut space = nix::cmsg_space!([RawFd; MOST_FDS]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        loop {
            let fd = self.stream.as_raw_fd();
            match recvmsg::<()>(fd, &mut parts, Some(&mut space), flags) {
                Ok(message) => {
                    // Nothing here has a use for a descriptor of a worker.
                    for control in message.cmsgs().into_iter().flatten() {
                        if let ControlMessageOwned::ScmRights(fds) = control {
                            for fd in fds {
                                let _ = nix::unistd::close(fd);
                            }
                        }
                    }
                    return Ok(Ok(message.bytes));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => return Ok(Err(error)),
            }
        }
    }
}

/// Between two tries to send a descriptor when too many are on the way.
const LATER: std::time::Duration = std::time::Duration::from_millis(5);
