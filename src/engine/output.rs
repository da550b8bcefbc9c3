//! What a worker writes: read from its pipe, cut into lines, passed to our own output.
//!
//! Lines stay whole up to [`LONGEST_LINE`]; what is longer goes out in pieces, so that no worker can
//! make us keep more than that. The last words of each worker are kept for a diagnosis.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{fchown, pipe2, read};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sink::{Sink, StreamId};
use super::user::User;
use super::watch::watch;

/// A line that is longer is not kept together.
const LONGEST_LINE: usize = 64 << 10;
/// How many of the last bytes are kept.
const LAST_WORDS: usize = 4 << 10;
/// One read.
const PIECE: usize = 16 << 10;

/// The last words of a worker, both of its streams together.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(LAST_WORDS)..];
        // Nothing for who never writes, and never more than the limit.
        self.0.reserve_exact(LAST_WORDS - self.0.len());
        let surplus = (self.0.len() + bytes.len()).saturating_sub(LAST_WORDS);
        self.0.drain(..surplus);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn words(&self) -> &[u8] {
        &self.0
    }
}

/// The reading end of one stream of one worker.
pub(crate) struct Stream {
    id: StreamId,
    fd: AsyncFd<OwnedFd>,
    sink: Rc<Sink>,
    prefix: Vec<u8>,
    /// The beginning of a line whose end has not come.
    partial: RefCell<Vec<u8>>,
    tail: Rc<RefCell<Tail>>,
    /// Nobody holds the other end any more.
    ended: Cell<bool>,
}

/// What a read found.
enum Found {
    Bytes,
    Nothing,
    End,
}

/// A pipe: our end, which does not block, and the worker's, which belongs to its user, because a
/// worker may open `/dev/stdout` anew.
pub(crate) fn pipe(user: Option<&User>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    if let Some(user) = user {
        fchown(&theirs, Some(user.uid), Some(user.gid))?;
    }
    Ok((ours, theirs))
}

impl Stream {
    pub(crate) fn new(
        id: StreamId,
        fd: OwnedFd,
        sink: Rc<Sink>,
        prefix: Vec<u8>,
        tail: Rc<RefCell<Tail>>,
    ) -> io::Result<Self> {
        let fd = watch(fd, Interest::READABLE).map_err(|(_, error)| error)?;
        Ok(Self {
            id,
            fd,
            sink,
            prefix,
            partial: RefCell::default(),
            tail,
            ended: Cell::new(false),
        })
    }

    /// Passes everything on until nobody holds the other end any more.
    pub(crate) async fn serve(&self) {
        while !self.ended.get() {
            self.sink.room().await;
            let Ok(mut ready) = self.fd.readable().await else { break };
            if matches!(self.read_some(), Found::Nothing) {
                ready.clear_ready();
            }
        }
    }

    /// Passes on what is there right now, as far as the reader takes it: a worker's last words come
    /// before the news of its end.
    pub(crate) fn catch_up(&self) {
        while !self.sink.is_full() && matches!(self.read_some(), Found::Bytes) {}
    }

    /// Passes on everything that is there, also a last line without an end, as soon as it is taken.
    pub(crate) async fn flush(&self) {
        loop {
            self.sink.room().await;
            if !matches!(self.read_some(), Found::Bytes) {
                break;
            }
        }
        self.push_partial();
    }

    /// Whether nothing more will come.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    fn push_partial(&self) {
        let partial = std::mem::take(&mut *self.partial.borrow_mut());
        self.sink.push(self.id, &self.prefix, &partial);
    }

    fn end(&self) -> Found {
        self.ended.set(true);
        self.push_partial();
        Found::End
    }

    fn read_some(&self) -> Found {
        if self.ended.get() {
            return Found::End;
        }
        let mut piece = [0; PIECE];
        loop {
            match read(self.fd.get_ref(), &mut piece) {
                Ok(0) => return self.end(),
                Ok(length) => {
                    self.take(&piece[..length]);
                    return Found::Bytes;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Found::Nothing,
                Err(_) => return self.end(),
            }
        }
    }

    fn take(&self, bytes: &[u8]) {
        self.tail.borrow_mut().add(bytes);
        let mut partial = self.partial.borrow_mut();
        let Some(last) = bytes.iter().rposition(|b| *b == b'\n') else {
            partial.extend_from_slice(bytes);
            if partial.len() > LONGEST_LINE {
                self.sink.push(self.id, &self.prefix, &partial);
                *partial = Vec::new();
            }
            return;
        };
        let (whole, rest) = bytes.split_at(last + 1);
        if self.prefix.is_empty() {
            if !partial.is_empty() {
                self.sink.push(self.id, b"", &partial);
            }
            self.sink.push(self.id, b"", whole);
        } else {
            for line in whole.split_inclusive(|b| *b == b'\n') {
                if !partial.is_empty() {
                    self.sink.push(self.id, &self.prefix, &std::mem::take(&mut *partial));
                }
                self.sink.push(self.id, &self.prefix, line);
            }
        }
        // Most workers never leave half a line behind: they cost no buffer.
        *partial = rest.to_vec();
    }
}
