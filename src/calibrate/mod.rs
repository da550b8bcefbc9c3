//! Finding by trial how many workers a machine wants: a launcher of our own, a load, more workers step by
//! step, and what that shows kept as a profile.
//!
//! `curve` is arithmetic over what was seen; `profile`, `picture` and `table` are its forms, `files` where they go; `launcher`, `load`,
//! `external`, `room`, `watch` and `trial` are the trial. It names nothing of the engine: it drives a launcher from outside, as any user.

mod curve;
mod external;
mod files;
mod launcher;
mod load;
mod output;
mod picture;
mod profile;
mod room;
mod table;
mod trial;
mod watch;

pub(crate) use curve::{Curve, Limits};
pub(crate) use files::{replace, try_out};
pub(crate) use launcher::{Inside, Launcher, VARIABLE};
pub(crate) use load::Target;
pub(crate) use picture::picture;
pub(crate) use profile::Profile;
pub(crate) use room::left;
pub(crate) use table::{head, line, table};
pub(crate) use trial::{Load, Outcome, Trial};
