//! Our standard output and error: whole lines from many workers into one stream that may stand still.
//!
//! What the reader does not take waits in a bounded buffer; when that is full nobody reads from the
//! workers any more, so their pipes fill and they wait, as they would without us. A write never
//! blocks: a pipe, a terminal or a socket is written through a description of our own that does not
//! block, and where none can be had, only as much as the kernel promises to take.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::write;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::watch::watch;

/// Above this nothing more is read from the workers. One piece may still go beyond it.
const FULL: usize = 128 << 10;
/// What a pipe that is ready takes without blocking (`PIPE_BUF`, pipe(7)).
const SURE: usize = 4096;
/// A disk that stays full is told no more often.
const BETWEEN_LOSSES: Duration = Duration::from_secs(10);

/// Whose line is being written; lines of different streams are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamId(pub(crate) u64);

/// One of our own output streams.
pub(crate) struct Sink {
    state: RefCell<State>,
    target: Target,
    way: Way,
    /// Something waits to be written.
    work: Notify,
    /// Something has been written.
    space: Notify,
    /// Something has happened that is to be told.
    news: Notify,
}

enum Target {
    Polled(AsyncFd<OwnedFd>),
    /// A regular file or a device that is always ready; epoll refuses those (EPERM).
    Plain(OwnedFd),
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Up to here it is written.
    written: usize,
    /// The stream whose last piece did not end its line.
    open_line: Option<StreamId>,
    /// The reader has gone: what comes is dropped.
    broken: bool,
    /// That has been told.
    told: bool,
    /// What a full disk did not take, since it was last told.
    lost: Option<(Errno, usize)>,
    lost_told: Option<Instant>,
}

impl State {
    fn may_tell(&self) -> bool {
        self.lost_told.is_none_or(|told| told.elapsed() >= BETWEEN_LOSSES)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A description of our own that does not block, or a regular file.
    Own,
    /// A shared socket.
    Socket,
    /// A shared description: ask first and write little.
    Careful,
}

impl Sink {
    /// A sink on `fd`, which stays as it is: its flags are shared with whoever started us.
    pub(crate) fn new(fd: impl AsFd) -> io::Result<Self> {
        let shared = fd.as_fd().try_clone_to_owned()?;
        let kind = SFlag::from_bits_truncate(fstat(&shared)?.st_mode) & SFlag::S_IFMT;
        let (fd, way) = match kind {
            SFlag::S_IFREG => (shared, Way::Own),
            SFlag::S_IFSOCK => (shared, Way::Socket),
            _ => match reopen(&shared) {
                Ok(own) => (own, Way::Own),
                Err(_) => (shared, Way::Careful),
            },
        };
        let target = match watch(fd, Interest::WRITABLE) {
            Ok(ready) => Target::Polled(ready),
            Err((fd, _)) => Target::Plain(fd),
        };
        Ok(Self {
            state: RefCell::default(),
            target,
            way,
            work: Notify::new(),
            space: Notify::new(),
            news: Notify::new(),
        })
    }

    /// Adds a piece of `stream`'s output, with `prefix` before it where it begins a line.
    pub(crate) fn push(&self, stream: StreamId, prefix: &[u8], piece: &[u8]) {
        let mut state = self.state.borrow_mut();
        if state.broken || piece.is_empty() {
            return;
        }
        if state.open_line != Some(stream) {
            if state.open_line.is_some() {
                // Half a line of somebody else's stands there; ours does not go inside it.
                state.waiting.push(b'\n');
            }
            state.waiting.extend_from_slice(prefix);
        }
        state.waiting.extend_from_slice(piece);
        state.open_line = (!piece.ends_with(b"\n")).then_some(stream);
        drop(state);
        self.write_on();
        if !self.is_idle() {
            self.work.notify_one();
        }
    }

    /// What the reader has not taken yet.
    pub(crate) fn unwritten(&self) -> Vec<u8> {
        let state = self.state.borrow();
        state.waiting[state.written..].to_vec()
    }

    /// Goes on with what another program has left.
    pub(crate) fn go_on_with(&self, unwritten: Vec<u8>) {
        if !unwritten.is_empty() {
            self.state.borrow_mut().waiting.extend(unwritten);
            self.work.notify_one();
        }
    }

    /// Whether the workers must wait for the reader.
    pub(crate) fn is_full(&self) -> bool {
        let state = self.state.borrow();
        state.waiting.len() - state.written > FULL
    }

    fn is_idle(&self) -> bool {
        self.state.borrow().waiting.is_empty()
    }

    /// Returns when there is room for more.
    pub(crate) async fn room(&self) {
        while self.is_full() {
            self.space.notified().await;
        }
    }

    /// Returns when everything is written.
    pub(crate) async fn drained(&self) {
        while !self.is_idle() {
            self.space.notified().await;
        }
    }

    /// Writes whenever the reader takes something; never returns.
    pub(crate) async fn serve(self: Rc<Self>) {
        loop {
            self.work.notified().await;
            while !self.is_idle() {
                let Target::Polled(fd) = &self.target else { break };
                let Ok(mut ready) = fd.writable().await else { break };
                self.write_on();
                if !self.is_idle() {
                    ready.clear_ready();
                }
            }
        }
    }

    /// Whether the reader has gone and nobody has been told yet.
    pub(crate) fn take_broken(&self) -> bool {
        let mut state = self.state.borrow_mut();
        state.broken && !std::mem::replace(&mut state.told, true)
    }

    /// The error and the number of bytes that were lost to it since they were last told, which is not
    /// often, unless it is the end.
    pub(crate) fn take_lost(&self, end: bool) -> Option<(Errno, usize)> {
        let mut state = self.state.borrow_mut();
        if !end && !state.may_tell() {
            return None;
        }
        let lost = state.lost.take()?;
        state.lost_told = Some(Instant::now());
        Some(lost)
    }

    /// Returns when [`Sink::take_lost`] or [`Sink::take_broken`] have something to tell.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }

    /// Writes as much as is taken at once.
    fn write_on(&self) {
        let mut state = self.state.borrow_mut();
        while state.written < state.waiting.len() {
            match self.try_write(&state.waiting[state.written..]) {
                Ok(written) => state.written += written,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EIO | Errno::EFBIG)) => {
                    let lost = state.waiting.len() - state.written;
                    let before = state.lost.map_or(0, |(_, bytes)| bytes);
                    state.lost = Some((errno, before + lost));
                    state.written = state.waiting.len();
                    if state.may_tell() {
                        self.news.notify_one();
                    }
                }
                Err(_) => {
                    state.broken = true;
                    state.written = state.waiting.len();
                    self.news.notify_one();
                }
            }
        }
        if state.written == state.waiting.len() {
            state.waiting.clear();
            state.waiting.shrink_to(SURE);
            state.written = 0;
        } else if state.written > FULL {
            let written = state.written;
            state.waiting.drain(..written);
            state.written = 0;
        }
        drop(state);
        self.space.notify_waiters();
    }

    fn try_write(&self, bytes: &[u8]) -> nix::Result<usize> {
        let fd = match &self.target {
            Target::Polled(ready) => ready.get_ref(),
            Target::Plain(fd) => fd,
        };
        match self.way {
            Way::Own => write(fd, bytes),
            Way::Socket => {
                send(fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)
            }
            Way::Careful => {
                let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut polled, PollTimeout::ZERO)? == 0 {
                    return Err(Errno::EAGAIN);
                }
                write(fd, &bytes[..bytes.len().min(SURE)])
            }
        }
    }
}

/// Whether both lead to one file, pipe or terminal.
pub(crate) fn same_file(a: &impl AsFd, b: &impl AsFd) -> bool {
    let place = |fd| fstat(fd).ok().map(|info| (info.st_dev, info.st_ino));
    place(a.as_fd()).is_some_and(|a| Some(a) == place(b.as_fd()))
}

/// The same pipe or terminal by a description of our own, which may be told not to block.
fn reopen(fd: &OwnedFd) -> nix::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(
        path.as_str(),
        OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY,
        Mode::empty(),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    const A: StreamId = StreamId(1);
    const B: StreamId = StreamId(2);

    #[test]
    fn lines_of_two_streams_never_mix() {
        run(async {
            let file = tempfile::NamedTempFile::new().unwrap();
            let sink = Sink::new(file.as_file()).unwrap();
            sink.push(A, b"[a] ", b"one\n");
            sink.push(A, b"[a] ", b"half");
            sink.push(A, b"[a] ", b" a line");
            sink.push(B, b"[b] ", b"two\n");
            sink.push(A, b"[a] ", b"rest\n");
            let text = std::fs::read_to_string(file.path()).unwrap();
            assert_eq!(text, "[a] one\n[a] half a line\n[b] two\n[a] rest\n");
        });
    }

    #[test]
    fn a_reader_that_stands_still_fills_the_sink_and_nothing_is_lost() {
        run(async {
            let (mut reader, writer) = UnixStream::pair().unwrap();
            let sink = Rc::new(Sink::new(&writer).unwrap());
            drop(writer);
            tokio::task::spawn_local({
                let sink = Rc::clone(&sink);
                sink.serve()
            });
            let line = [b'x'; 999];
            let mut pushed = 0;
            while !sink.is_full() {
                sink.push(A, b"", &line);
                sink.push(A, b"", b"\n");
                pushed += 1000;
            }
            let taken = std::thread::spawn(move || {
                let mut got = vec![0; pushed];
                reader.read_exact(&mut got).unwrap();
                got
            });
            sink.drained().await;
            let got = taken.join().unwrap();
            assert!(got.chunks(1000).all(|chunk| chunk[999] == b'\n'));
            sink.push(A, b"", b"to nobody\n");
            assert!(sink.take_broken() && !sink.take_broken());
        });
    }

    #[test]
    fn a_full_disk_is_counted_and_survived() {
        run(async {
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let sink = Sink::new(&full).unwrap();
            sink.push(A, b"", b"12345\n");
            sink.news().await;
            assert_eq!(sink.take_lost(false), Some((Errno::ENOSPC, 6)));
            assert!(sink.take_lost(true).is_none() && !sink.take_broken());
            sink.push(A, b"", b"123\n");
            assert_eq!(sink.take_lost(false), None, "not so soon again");
            assert_eq!(sink.take_lost(true), Some((Errno::ENOSPC, 4)));
        });
    }
}
