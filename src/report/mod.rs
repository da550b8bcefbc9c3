//! A plan, a diagnosis or a status for people, programs and shells. Decides nothing. Depends on
//! `control`, `doctor`, `plan` and below.

#[cfg(feature = "launcher")]
mod doctor;
mod json;
#[cfg(feature = "launcher")]
mod shell;
#[cfg(feature = "launcher")]
mod status;
#[cfg(feature = "launcher")]
mod subject;
#[cfg(feature = "launcher")]
pub(crate) mod table;
#[cfg(feature = "launcher")]
mod text;

#[cfg(feature = "launcher")]
pub(crate) use doctor::{json as diagnosis_json, text as diagnosis};
#[cfg(feature = "launcher")]
pub(crate) use json::render as json;
#[cfg(feature = "launcher")]
pub(crate) use shell::render as shell;
#[cfg(feature = "launcher")]
pub(crate) use status::status;
#[cfg(feature = "launcher")]
pub(crate) use subject::Subject;
#[cfg(feature = "launcher")]
pub(crate) use text::{brief, render as text};
