//! What a worker writes: read from its pipe, cut into lines, passed to our own output.
//!
//! Lines stay whole up to [`LONGEST_LINE`]; what is longer goes out in pieces, so that no worker can
//! make us keep more than that. The last output of each slot is kept in a ring of its own.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{fchown, pipe2, read};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;

use super::sink::{Sink, StreamId};
use super::user::User;
use super::watch::watch;

/// A line that is longer is not kept together.
const LONGEST_LINE: usize = 64 << 10;
/// How many of a worker's last bytes a diagnosis looks at.
pub(crate) const LAST_WORDS: usize = 4 << 10;
/// What all rings together may keep, within the bounds of each.
const ALL_RINGS: usize = 512 << 10;
const SMALLEST_RING: usize = 4 << 10;
const LARGEST_RING: usize = 64 << 10;
/// One read.
const PIECE: usize = 16 << 10;

/// The last output of the workers of one slot, both streams together.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    most: usize,
    /// How much has ever gone in.
    total: u64,
}

impl Ring {
    /// One of `count`.
    pub(crate) fn new(count: u32) -> Self {
        let most = ALL_RINGS / usize::try_from(count.max(1)).unwrap_or(usize::MAX);
        let most = most.clamp(SMALLEST_RING, LARGEST_RING);
        Self { bytes: VecDeque::new(), most, total: 0 }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(self.most)..];
        let surplus = (self.bytes.len() + bytes.len()).saturating_sub(self.most);
        self.bytes.drain(..surplus);
        // Grows with what there is, and never beyond its bound.
        if self.bytes.capacity() < self.bytes.len() + bytes.len() {
            let wanted = (self.bytes.len() + bytes.len()).next_power_of_two().min(self.most);
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        self.bytes.extend(bytes);
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Whole lines, as far back as they are kept.
    pub(crate) fn lines(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.bytes.iter().copied().collect();
        if self.total > bytes.len() as u64
            && let Some(end) = bytes.iter().position(|byte| *byte == b'\n')
        {
            bytes.drain(..=end);
        }
        bytes
    }

    /// Goes on with what another one had.
    pub(crate) fn restore(most: usize, total: u64, bytes: &[u8]) -> Self {
        Self { bytes: bytes.iter().copied().collect(), most, total }
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// The last of what came after `start`, at most so much.
    pub(crate) fn since(&self, start: u64, most: usize) -> Vec<u8> {
        let wanted = usize::try_from(self.total - start).unwrap_or(usize::MAX).min(most);
        let skipped = self.bytes.len().saturating_sub(wanted);
        self.bytes.iter().skip(skipped).copied().collect()
    }
}

/// Where the output of one slot goes beside our own.
#[derive(Clone)]
pub(crate) struct Record {
    pub(crate) slot: u32,
    pub(crate) ring: Rc<RefCell<Ring>>,
    pub(crate) news: broadcast::Sender<(u32, Arc<[u8]>)>,
}

/// The reading end of one stream of one worker.
pub(crate) struct Stream {
    id: StreamId,
    fd: AsyncFd<OwnedFd>,
    sink: Rc<Sink>,
    prefix: Vec<u8>,
    /// The beginning of a line whose end has not come.
    partial: RefCell<Vec<u8>>,
    record: Record,
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
        record: Record,
    ) -> io::Result<Self> {
        let fd = watch(fd, Interest::READABLE).map_err(|(_, error)| error)?;
        Ok(Self {
            id,
            fd,
            sink,
            prefix,
            partial: RefCell::default(),
            record,
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

    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }

    pub(crate) fn slot(&self) -> u32 {
        self.record.slot
    }

    pub(crate) fn writes_to(&self, sink: &Rc<Sink>) -> bool {
        Rc::ptr_eq(&self.sink, sink)
    }

    pub(crate) fn partial(&self) -> Vec<u8> {
        self.partial.borrow().clone()
    }

    /// Goes on with the beginning of a line that another program has read.
    pub(crate) fn go_on_with(&self, partial: Vec<u8>) {
        *self.partial.borrow_mut() = partial;
    }

    /// Whether nothing more will come.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    fn push_partial(&self) {
        let partial = std::mem::take(&mut *self.partial.borrow_mut());
        self.pass(&partial);
    }

    /// The beginning of a line whose end has not come.
    pub(crate) fn unfinished(&self) -> Vec<u8> {
        let partial = self.partial.borrow();
        partial[partial.len().saturating_sub(LAST_WORDS)..].to_vec()
    }

    /// Whole lines, or a piece of one that is too long.
    fn pass(&self, piece: &[u8]) {
        if piece.is_empty() {
            return;
        }
        self.record.ring.borrow_mut().add(piece);
        if self.record.news.receiver_count() > 0 {
            // The last one may just have gone.
            let _ = self.record.news.send((self.record.slot, piece.into()));
        }
        if self.prefix.is_empty() {
            self.sink.push(self.id, b"", piece);
            return;
        }
        for line in piece.split_inclusive(|byte| *byte == b'\n') {
            self.sink.push(self.id, &self.prefix, line);
        }
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
        let mut partial = self.partial.borrow_mut();
        let Some(last) = bytes.iter().rposition(|b| *b == b'\n') else {
            partial.extend_from_slice(bytes);
            if partial.len() > LONGEST_LINE {
                self.pass(&partial);
                *partial = Vec::new();
            }
            return;
        };
        let (whole, rest) = bytes.split_at(last + 1);
        if partial.is_empty() {
            self.pass(whole);
        } else {
            partial.extend_from_slice(whole);
            self.pass(&partial);
        }
        // Most workers never leave half a line behind: they cost no buffer.
        *partial = rest.to_vec();
    }
}
