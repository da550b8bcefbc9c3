//! Whether an ELF program was made by Go: the linker puts a note named "Go" with the build's id in a
//! segment of its own, which stays when symbols are stripped. Forms: `elf(5)`, and the Go linker's
//! `ELF_NOTE_GOBUILDID` (type 4).

const PT_NOTE: u64 = 4;
const GO_BUILD_ID: u64 = 4;

/// Reads numbers in a file's own width and order; `None` beyond its end.
struct Reader<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl Reader<'_> {
    fn number(&self, at: u64, width: usize) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let field = self.bytes.get(at..at.checked_add(width)?)?;
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.big { field.iter().fold(0, add) } else { field.iter().rev().fold(0, add) })
    }
}

/// `head` is the beginning of the file; a note that lies further back is not seen.
pub(super) fn is_go(head: &[u8]) -> bool {
    has_note(head).unwrap_or(false)
}

fn has_note(head: &[u8]) -> Option<bool> {
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let wide = match head.get(4)? {
        1 => false,
        2 => true,
        _ => return None,
    };
    let file = Reader { bytes: head, big: head.get(5) == Some(&2) };
    // Offsets of e_phoff, e_phentsize and e_phnum, then of p_offset and p_filesz, by width.
    let (table, size, count, width) = if wide { (32, 54, 56, 8) } else { (28, 42, 44, 4) };
    let (offset, length) = if wide { (8, 32) } else { (4, 16) };
    let (start, size, count) =
        (file.number(table, width)?, file.number(size, 2)?, file.number(count, 2)?);
    for index in 0..count {
        let header = start.checked_add(index.checked_mul(size)?)?;
        if file.number(header, 4)? != PT_NOTE {
            continue;
        }
        let at = file.number(header.checked_add(offset)?, width)?;
        let length = file.number(header.checked_add(length)?, width)?;
        if holds_go(&file, at, at.saturating_add(length)) == Some(true) {
            return Some(true);
        }
    }
    Some(false)
}

fn holds_go(file: &Reader<'_>, mut at: u64, end: u64) -> Option<bool> {
    while at < end {
        let (name, described) = (file.number(at, 4)?, file.number(at.checked_add(4)?, 4)?);
        let kind = file.number(at.checked_add(8)?, 4)?;
        let text = at.checked_add(12)?;
        if name == 4 && kind == GO_BUILD_ID && file.number(text, 3)? == go(file.big) {
            return Some(true);
        }
        let padded = |size: u64| size.checked_add(3).map(|size| size & !3);
        at = text.checked_add(padded(name)?)?.checked_add(padded(described)?)?;
    }
    Some(false)
}

/// `Go` and its end mark, as three bytes read by [`Reader::number`].
fn go(big: bool) -> u64 {
    if big { 0x47_6f_00 } else { 0x00_6f_47 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file with one segment of notes: another one first, then `name`'s.
    fn elf(wide: bool, big: bool, name: [u8; 4]) -> Vec<u8> {
        let put = |bytes: &mut Vec<u8>, at: usize, width: usize, value: u64| {
            let all = if big { value.to_be_bytes() } else { value.to_le_bytes() };
            let field = if big { &all[8 - width..] } else { &all[..width] };
            bytes[at..at + width].copy_from_slice(field);
        };
        let mut bytes = vec![0; 256];
        bytes[..6].copy_from_slice(&[
            0x7f,
            b'E',
            b'L',
            b'F',
            1 + u8::from(wide),
            1 + u8::from(big),
        ]);
        let width = if wide { 8 } else { 4 };
        let at = |wide_at, narrow_at| if wide { wide_at } else { narrow_at };
        put(&mut bytes, at(32, 28), width, 64);
        put(&mut bytes, at(54, 42), 2, 56);
        put(&mut bytes, at(56, 44), 2, 1);
        put(&mut bytes, 64, 4, PT_NOTE);
        put(&mut bytes, 64 + at(8, 4), width, 128);
        put(&mut bytes, 64 + at(32, 16), width, 60);
        for (note, name, kind) in [(128, *b"GNU\0", 3), (160, name, GO_BUILD_ID)] {
            put(&mut bytes, note, 4, 4);
            put(&mut bytes, note + 4, 4, 13);
            put(&mut bytes, note + 8, 4, kind);
            bytes[note + 12..note + 16].copy_from_slice(&name);
        }
        bytes
    }

    #[test]
    fn the_note_is_found_in_every_width_and_order() {
        for (wide, big) in [(true, false), (true, true), (false, false), (false, true)] {
            assert!(is_go(&elf(wide, big, *b"Go\0\0")), "{wide} {big}");
            assert!(!is_go(&elf(wide, big, *b"Xo\0\0")));
            let whole = elf(wide, big, *b"Go\0\0");
            assert!((0..160).all(|end| !is_go(&whole[..end])), "a file that was cut");
        }
        assert!(!is_go(b"") && !is_go(b"#!/bin/sh"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_hang(tail in prop::collection::vec(any::<u8>(), 0..300), wide: bool) {
            let mut bytes = elf(wide, false, *b"Go\0\0");
            let _ = is_go(&[b"\x7fELF".as_slice(), &tail].concat());
            for (at, byte) in tail.iter().enumerate().take(200) { bytes[6 + at] ^= byte; }
            let _ = is_go(&bytes);
        }
    }
}
