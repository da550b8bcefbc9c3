//! A plan for people, programs and shells. Decides nothing. Depends on `plan` and below.

mod json;
mod shell;
mod text;

pub(crate) use json::render as json;
pub(crate) use shell::render as shell;
pub(crate) use text::{brief, render as text};
