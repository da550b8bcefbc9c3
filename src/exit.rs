//! How this program ends: the statuses of the contract, and the failures that lead to them.

/// Stopped on request, or every worker done.
pub(crate) const SUCCESS: u8 = 0;
/// The launcher itself failed.
pub(crate) const FAILURE: u8 = 1;
/// A worker had to be killed; what `timeout -k` returns.
pub(crate) const KILLED: u8 = 137;
/// The command exists and cannot be executed.
pub(crate) const CANNOT_EXECUTE: u8 = 126;
/// The command does not exist.
pub(crate) const NOT_FOUND: u8 = 127;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A flag, a variable, a file or an argument is wrong.
    #[error("{0}")]
    Usage(String),
    /// `--strict`, and nothing fits.
    #[error("{0}")]
    DoesNotFit(String),
    /// The command itself.
    #[error("{message}")]
    Command {
        /// 126 or 127.
        status: u8,
        /// What is wrong with it.
        message: String,
    },
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Failure {
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::DoesNotFit(_) => 3,
            Self::Command { status, .. } => *status,
            Self::Other(_) => FAILURE,
        }
    }
}

/// A complaint about what the user gave.
pub(crate) fn usage(message: impl Into<String>) -> Failure {
    Failure::Usage(message.into())
}
