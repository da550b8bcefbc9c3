//! How many workers fit, why, and keeping that many alive.
#![cfg(target_os = "linux")]

pub mod probe;
pub mod units;
