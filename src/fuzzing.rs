//! Doors for the fuzz targets of `tests/fuzz`, which see the crate from outside. Built for them alone.

/// All parsers of the kernel's text, and of sizes and durations.
pub fn parsers(text: &[u8]) {
    crate::probe::fuzz(text);
    if let Ok(text) = std::str::from_utf8(text) {
        let _ = (crate::units::parse_size(text), crate::units::parse_duration(text));
        let _ = crate::units::printable(text);
    }
}

/// All parsers of settings.
pub fn settings(text: &str) {
    crate::settings::fuzz(text);
}

/// The lines of a worker, cut into parts of so many bytes.
pub fn channel(bytes: &[u8], cut: usize) {
    crate::sockets::node::fuzz(bytes, cut);
}

/// Recognises a command by its words and its file's bytes.
pub fn command(words: &[String], file: &[u8]) {
    crate::program::fuzz(words, file);
}
