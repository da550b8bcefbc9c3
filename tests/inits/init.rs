//! The programs that are compared.

use std::process::Command;

/// One of them, with how it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Init {
    /// One worker that is not started again: as the others do it.
    Throng,
    /// One worker, and nothing else said.
    Kept,
    Tini,
    Dumb,
}

pub(crate) const THRONG: &str = env!("CARGO_BIN_EXE_throng-rs");

impl Init {
    /// Those of the table, ours first.
    pub(crate) const COMPARED: [Self; 3] = [Self::Throng, Self::Tini, Self::Dumb];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Throng | Self::Kept => "throng-rs",
            Self::Tini => "tini",
            Self::Dumb => "dumb-init",
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Throng | Self::Kept)
    }

    /// The words before the command; `flags` are the ones of this scenario.
    pub(crate) fn words(self, flags: &[&str]) -> Vec<String> {
        let own: &[&str] = match self {
            Self::Throng => &[THRONG, "-q", "--workers", "1", "--restart", "never"],
            Self::Kept => &[THRONG, "-q", "--workers", "1"],
            Self::Tini => &["tini"],
            Self::Dumb => &["dumb-init"],
        };
        own.iter().chain(flags).chain(&["--"]).map(|word| (*word).to_owned()).collect()
    }

    /// `tini 0.19.0`; the error is why it cannot be asked.
    pub(crate) fn version(self) -> Result<String, String> {
        let output = Command::new(self.words(&[])[0].as_str()).arg("--version").output();
        let output = output.map_err(|error| format!("{}: {error}", self.name()))?;
        // dumb-init says it on standard error.
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let digits = |word: &&str| word.trim_start_matches('v').starts_with(char::is_numeric);
        let version = text.split_whitespace().find(digits);
        let version = version.ok_or_else(|| format!("{} says no version: {text}", self.name()))?;
        Ok(format!("{} {}", self.name(), version.trim_start_matches('v')))
    }
}
