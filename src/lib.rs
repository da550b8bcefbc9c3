//! How many workers fit in the memory and the CPUs that a process really has, why, and keeping that
//! many alive.
//!
//! Size a thread pool by the CPUs that this process really has, quotas of every cgroup level
//! included:
//!
//! ```
//! use throng_rs::Resources;
//!
//! let threads = Resources::detect().threads();
//! # assert!(threads >= 1);
//! ```
//!
//! Ask how many worker processes fit in its memory and CPUs, and why:
//!
//! ```
//! use throng_rs::{Plan, Resources, plan::{Given, Request}};
//!
//! let request = Request {
//!     worker_memory: Some(Given::default_of(200 << 20)), // bytes of private memory of one
//!     ..Request::default()
//! };
//! let plan = Plan::new(Resources::detect(), &request);
//! println!("{} workers, bound by {}", plan.workers, plan.bound_by.name());
//! for step in &plan.steps {
//!     let source = step.source.as_deref().unwrap_or("computed");
//!     println!("{}: {} from {source}, {}", step.name, step.value, step.because);
//! }
//! # assert!(plan.workers >= 1);
//! ```
//!
//! Ask "what if", without the machine:
//!
//! ```
//! use throng_rs::{Plan, Resources, plan::Request, units::{Fraction, MIB}};
//!
//! let cpus = Fraction::new(5, 2).expect("no zero below");
//! let plan = Plan::new(Resources::pretend(1024 * MIB, cpus), &Request::default());
//! assert_eq!(plan.workers, 3);
//! let json = plan.to_json(); // the fields of `throng-rs --dry-run --format json`
//! # assert!(json.contains("\"schema\": 1"));
//! ```
//!
//! Nothing here panics, starts a thread or needs an async runtime, and no input makes it fail: what
//! could not be read or made no sense is a warning in the answer. [`Host`] is where facts come from,
//! this machine or a recorded one:
//!
//! ```no_run
//! use throng_rs::{Host, Resources};
//!
//! let recorded = Host::sysroot("/tmp/their-machine".as_ref())?; // holds proc and sys
//! println!("{:?}", Resources::of(&recorded).memory.limit);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! The way through is one: [`probe`] turns files into facts, [`plan`] facts into a number with its
//! reasons. With the feature `launcher` (on by default; a library switches it off) the crate is also
//! the program, which runs that many workers.

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!(
    "throng-rs runs on Linux on x86_64 and aarch64: limits and supervision are the kernel's"
);

#[cfg(feature = "launcher")]
mod calibrate;
#[cfg(feature = "launcher")]
mod cli;
#[cfg(feature = "launcher")]
mod command;
#[cfg(feature = "launcher")]
mod control;
#[cfg(feature = "launcher")]
mod doctor;
#[cfg(feature = "launcher")]
mod engine;
#[cfg(feature = "launcher")]
mod exit;
#[cfg(feature = "launcher")]
mod fleet;
#[cfg(feature = "launcher")]
mod found;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "launcher")]
mod http;
#[cfg(feature = "launcher")]
mod log;
pub mod plan;
pub mod probe;
#[cfg(feature = "launcher")]
mod program;
mod report;
#[cfg(feature = "launcher")]
mod settings;
#[cfg(feature = "launcher")]
mod sockets;
pub mod units;

#[cfg(feature = "launcher")]
pub use command::main;
pub use plan::Plan;
pub use probe::{Host, Resources};
