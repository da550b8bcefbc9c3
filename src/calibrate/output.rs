//! What a child of ours prints: read as it comes, so that it never waits for us, and only its end kept.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::net::unix::pipe::Receiver;
use tokio::task::AbortHandle;

/// Enough for the summary of a load generator, and for a stack trace.
const KEPT: usize = 64 << 10;

pub(super) struct Output {
    kept: Rc<RefCell<VecDeque<u8>>>,
    reader: AbortHandle,
}

impl Output {
    /// With the end that the child writes to. Must be called inside a `LocalSet`.
    pub(super) fn new() -> io::Result<(Self, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        let reader = Receiver::from_owned_fd(OwnedFd::from(reader))?;
        let kept = Rc::new(RefCell::new(VecDeque::new()));
        let into = Rc::clone(&kept);
        let task = tokio::task::spawn_local(async move {
            let mut part = vec![0; 16 << 10];
            while reader.readable().await.is_ok() {
                match reader.try_read(&mut part) {
                    Ok(0) => break,
                    Ok(length) => {
                        let mut kept = into.borrow_mut();
                        kept.extend(&part[..length]);
                        let over = kept.len().saturating_sub(KEPT);
                        kept.drain(..over);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
        });
        Ok((Self { kept, reader: task.abort_handle() }, writer))
    }

    /// Whether everything has come: nobody can write any more.
    pub(super) fn is_whole(&self) -> bool {
        self.reader.is_finished()
    }

    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self.kept.borrow().iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its last lines, for an error.
    pub(super) fn last(&self, lines: usize) -> String {
        let text = self.text();
        let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
