//! One connection: two sockets, and the bytes on their way between them.
//!
//! They are copied through a buffer that stays in the processor's cache. splice(2) saved nothing with pipes of 64 KiB,
//! and with larger ones what it saved here was spent by the receivers, which find the bytes in many small
//! pieces.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, setsockopt, shutdown, sockopt};

use super::buffers::{Buffers, Rest};

/// How often one connection may read before others have their turn.
const ROUNDS: u32 = 4;

/// One of the two sockets, and what waits to be written to it.
#[derive(Debug, Default)]
pub(super) struct End {
    /// None where there is no worker at the moment.
    pub(super) fd: Option<OwnedFd>,
    flags: u8,
    pub(super) rest: Option<Box<Rest>>,
}

/// There may be bytes to read.
pub(super) const READABLE: u8 = 1;
/// The peer has ended or broken it, so that reading goes on until that is found.
pub(super) const HUNG_UP: u8 = 1 << 1;
/// The peer sends no more, and all of it has been read.
pub(super) const ENDED: u8 = 1 << 2;
/// We send no more.
pub(super) const SHUT: u8 = 1 << 3;
/// Not the first write, which Nagle's algorithm never holds back.
const WRITTEN: u8 = 1 << 4;
/// Told not to hold small writes back, or no TCP socket.
const PROMPT: u8 = 1 << 5;
/// The peer has ended in order: all that it sent is there to be read.
pub(super) const FINAL: u8 = 1 << 6;

impl End {
    pub(super) fn of_client(fd: OwnedFd) -> Self {
        // Inherits TCP_NODELAY from the listening socket.
        Self { fd: Some(fd), flags: PROMPT, rest: None }
    }

    /// As an earlier program left it.
    pub(super) fn restored(fd: OwnedFd, flags: u8, rest: Option<Box<Rest>>) -> Self {
        Self { fd: Some(fd), flags: flags | READABLE, rest }
    }

    pub(super) fn flags(&self) -> u8 {
        self.flags
    }

    pub(super) fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u8) {
        self.flags |= flag;
    }

    fn clear(&mut self, flag: u8) {
        self.flags &= !flag;
    }

    /// Takes another socket in place of the one before; what waits stays.
    pub(super) fn replace(&mut self, fd: Option<OwnedFd>) -> Option<OwnedFd> {
        self.flags = 0;
        std::mem::replace(&mut self.fd, fd)
    }

    /// Nothing is on its way to it, and nothing more will be.
    pub(super) fn is_done(&self) -> bool {
        self.is(SHUT)
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> nix::Result<usize> {
        let Some(fd) = &self.fd else { return Err(Errno::EAGAIN) };
        if self.is(WRITTEN) && !self.is(PROMPT) {
            // Fails for a Unix socket, which has no such delay.
            let _ = setsockopt(fd, sockopt::TcpNoDelay, &true);
            self.flags |= PROMPT;
        }
        loop {
            match send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(count) => {
                    self.flags |= WRITTEN;
                    return Ok(count);
                }
            }
        }
    }

    fn recv(&mut self, into: &mut [u8]) -> nix::Result<usize> {
        let Some(fd) = &self.fd else { return Err(Errno::EAGAIN) };
        loop {
            match recv(fd.as_raw_fd(), into, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Tells the peer that no more comes.
    pub(super) fn shut(&mut self) {
        if let Some(fd) = self.fd.as_ref().filter(|_| self.flags & SHUT == 0) {
            // The peer may have gone already.
            let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
        }
        self.flags |= SHUT;
    }

    /// Nobody reads it any more: what is to be written is dropped.
    pub(super) fn give_up(&mut self, buffers: &mut Buffers) {
        self.flags |= SHUT;
        self.forget(buffers);
    }

    pub(super) fn forget(&mut self, buffers: &mut Buffers) {
        if let Some(rest) = self.rest.take() {
            buffers.forget(&rest);
        }
    }

    /// Closes with a reset, as its other end was broken off.
    pub(super) fn reset(&mut self) {
        if let Some(fd) = self.fd.take() {
            let now = libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = setsockopt(&fd, sockopt::Linger, &now);
        }
    }

    /// What is wrong with it, where the kernel says that something is.
    pub(super) fn error(&self) -> io::Result<()> {
        let Some(fd) = &self.fd else { return Ok(()) };
        match nix::sys::socket::getsockopt(&fd.as_fd(), sockopt::SocketError)? {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// What one turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// The receiver's socket has taken some.
    pub(super) some: bool,
    /// There is more, and it is the turn of others.
    pub(super) more: bool,
}

/// Which side broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Sender,
    Receiver,
}

/// Passes on what `from` has sent, as far as `to` takes it.
pub(super) fn pump(from: &mut End, to: &mut End, buffers: &mut Buffers) -> Result<Moved, Broken> {
    let mut moved = Moved::default();
    for _ in 0..ROUNDS {
        if let Some(mut rest) = to.rest.take() {
            match to.send(rest.bytes()) {
                Ok(count) => {
                    moved.some = true;
                    rest.take(count);
                }
                Err(Errno::EAGAIN) => {
                    to.rest = Some(rest);
                    return Ok(moved);
                }
                Err(_) => {
                    to.rest = Some(rest);
                    return Err(Broken::Receiver);
                }
            }
            if !rest.bytes().is_empty() {
                to.rest = Some(rest);
                return Ok(moved);
            }
            buffers.forget(&rest);
        }
        if from.is(ENDED) || !from.is(READABLE) || to.is(SHUT) {
            break;
        }
        let room = buffers.room();
        let mut shared = std::mem::take(&mut buffers.shared);
        let read = from.recv(&mut shared[..room]);
        let mut broken = None;
        match read {
            Ok(0) => from.set(ENDED),
            Ok(count) => {
                // Less than was asked for is all there was (epoll(7)); what comes later is told.
                if count < room && !from.is(HUNG_UP) {
                    from.clear(READABLE);
                }
                let taken = match to.send(&shared[..count]) {
                    Ok(taken) => taken,
                    Err(Errno::EAGAIN) => 0,
                    Err(_) => {
                        broken = Some(Broken::Receiver);
                        0
                    }
                };
                moved.some |= taken > 0;
                // What is read short of it is the last of it, which need not be asked for.
                if count < room && from.is(FINAL) {
                    from.set(ENDED);
                }
                if taken < count {
                    to.rest = Some(Box::new(buffers.keep(&shared[taken..count])));
                }
            }
            Err(Errno::EAGAIN) => from.clear(READABLE),
            Err(_) => broken = Some(Broken::Sender),
        }
        buffers.shared = shared;
        match broken {
            Some(broken) => return Err(broken),
            // The socket is full, and tells when it is not.
            None if to.rest.is_some() => return Ok(moved),
            None => {}
        }
    }
    moved.more = from.is(READABLE) && !from.is(ENDED) && !to.is(SHUT) && to.rest.is_none();
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    /// A peer, and our end of the connection with it.
    fn pair() -> (TcpStream, End) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut end = End::of_client(ours.into());
        end.set(READABLE);
        (peer, end)
    }

    #[test]
    fn bytes_and_the_end_pass() {
        let (mut client, mut from) = pair();
        let (mut worker, mut to) = pair();
        let mut buffers = Buffers::new();
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        from.set(HUNG_UP);
        while !from.is(ENDED) {
            from.set(READABLE);
            pump(&mut from, &mut to, &mut buffers).unwrap();
        }
        to.shut();
        let mut text = String::new();
        worker.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        // The other way is still open.
        worker.write_all(b"answer").unwrap();
        to.set(READABLE);
        while !pump(&mut to, &mut from, &mut buffers).unwrap().some {
            to.set(READABLE);
        }
        let mut answer = [0; 6];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
    }

    #[test]
    fn a_receiver_that_does_not_read_stops_the_sender_and_loses_nothing() {
        let (client, mut from) = pair();
        let (worker, mut to) = pair();
        let mut buffers = Buffers::new();
        client.set_nonblocking(true).unwrap();
        let (mut sent, mut counter) = (Vec::<u8>::new(), 0_u32);
        // Until nothing moves any more.
        let mut quiet = 0;
        while quiet < 100 {
            counter += 1;
            let piece: Vec<u8> = counter.to_le_bytes().repeat(4096);
            match (&client).write(&piece) {
                Ok(count) => {
                    sent.extend(&piece[..count]);
                    quiet = 0;
                }
                Err(_) => quiet += 1,
            }
            from.set(READABLE);
            pump(&mut from, &mut to, &mut buffers).unwrap();
        }
        assert!(buffers.waiting > 0 && buffers.waiting <= super::super::buffers::MOST);
        client.shutdown(Shutdown::Write).unwrap();
        from.set(HUNG_UP);
        let mut got = vec![0; sent.len()];
        worker.set_nonblocking(true).unwrap();
        let mut have = 0;
        while have < got.len() {
            from.set(READABLE);
            pump(&mut from, &mut to, &mut buffers).unwrap();
            have += (&worker).read(&mut got[have..]).unwrap_or(0);
        }
        assert!(got == sent && buffers.waiting == 0);
    }

    #[test]
    fn a_reset_is_told_from_an_end() {
        let (client, mut from) = pair();
        let (_worker, mut to) = pair();
        let mut ours = End { fd: Some(client.into()), ..End::default() };
        ours.reset();
        let mut buffers = Buffers::new();
        let broken = loop {
            from.set(READABLE);
            if let Err(broken) = pump(&mut from, &mut to, &mut buffers) {
                break broken;
            }
        };
        assert_eq!((broken, from.is(ENDED)), (Broken::Sender, false));
    }
}
