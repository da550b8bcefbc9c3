//! What a report of the program is about.

use std::collections::BTreeMap;

use crate::plan::{Choice, Plan};

/// A plan with what it is for.
pub(crate) struct Subject<'a> {
    pub(crate) plan: &'a Plan,
    /// ` of node server.js`, or nothing.
    pub(crate) command: &'a str,
    /// What each worker is told.
    pub(crate) environment: &'a BTreeMap<String, String>,
    /// The settings that are not defaults.
    pub(crate) settings: &'a [Choice],
    /// One line about the machine, where that is wanted.
    pub(crate) machine: Option<String>,
}
