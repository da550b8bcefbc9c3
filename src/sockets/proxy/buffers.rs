//! Where bytes are while they wait. One buffer serves all connections; only what a socket would not
//! take is kept for its connection, so one that is quiet costs nothing here.

/// The most that is read at once.
pub(super) const MOST: usize = 64 << 10;
/// The most that is read at once where much waits already.
const LEAST: usize = 4 << 10;
/// What may wait of all connections together before reads become small.
const PLENTY: usize = 16 << 20;

/// Bytes that a socket has not taken yet.
#[derive(Debug)]
pub(super) struct Rest {
    bytes: Box<[u8]>,
    taken: usize,
}

impl Rest {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), taken: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// So many more have been taken.
    pub(super) fn take(&mut self, count: usize) {
        self.taken += count;
    }

    /// The memory that it holds, in bytes.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// The buffer of all, and the sum of what waits.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) shared: Box<[u8]>,
    pub(super) waiting: usize,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self { shared: vec![0; MOST].into(), waiting: 0 }
    }

    /// How much may be read at once: so the memory of `n` connections that stand still is bounded by
    /// [`PLENTY`] and [`LEAST`] for each way of each.
    pub(super) fn room(&self) -> usize {
        if self.waiting < PLENTY { MOST } else { LEAST }
    }

    pub(super) fn keep(&mut self, bytes: &[u8]) -> Rest {
        let rest = Rest::new(bytes);
        self.waiting += rest.size();
        rest
    }

    pub(super) fn forget(&mut self, rest: &Rest) {
        self.waiting -= rest.size();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_become_small_where_much_waits() {
        let mut buffers = Buffers::new();
        let mut kept = Vec::new();
        while buffers.room() == MOST {
            kept.push(buffers.keep(&vec![7; MOST]));
        }
        assert_eq!((buffers.waiting, buffers.room()), (PLENTY, LEAST));
        let mut rest = kept.pop().unwrap();
        rest.take(MOST - 3);
        assert_eq!(rest.bytes(), [7; 3]);
        buffers.forget(&rest);
        assert_eq!(buffers.room(), MOST);
    }
}
