//! How many workers fit in the memory and the CPUs that a process really has, why, and keeping that
//! many alive.
//!
//! The way through the crate is one: [`probe`] turns files into facts, [`plan`] facts into a number
//! with its reasons; the launcher behind [`main`] runs that many workers.
//!
//! ```
//! use throng_rs::{plan::{Request, plan}, probe::{Host, probe}};
//!
//! let plan = plan(probe(&Host::live()).resolve(), &Request::default());
//! assert!(plan.workers >= 1);
//! ```

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!(
    "throng-rs runs on Linux on x86_64 and aarch64: limits and supervision are the kernel's"
);

mod cli;
mod command;
mod doctor;
mod engine;
mod exit;
mod fleet;
mod log;
pub mod plan;
pub mod probe;
mod report;
mod settings;
mod sockets;
pub mod units;

pub use command::main;
