//! A plan or a diagnosis for people, programs and shells. Decides nothing. Depends on `doctor`, `plan`
//! and below.

use std::collections::BTreeMap;

use crate::plan::{Choice, Plan};

mod doctor;
mod json;
mod shell;
mod text;

pub(crate) use doctor::{json as diagnosis_json, text as diagnosis};
pub(crate) use json::render as json;
pub(crate) use shell::render as shell;
pub(crate) use text::{brief, render as text};

/// What a report is about.
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
