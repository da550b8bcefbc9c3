//! The real binary, by topic. One test program, so that it links once.

mod architecture;
#[path = "../beds/mod.rs"]
mod beds;
mod cli;
mod docker;
mod hosts;
mod launch;
mod output;
mod qemu;
mod report;
mod sockets;
mod supervise;
mod support;
mod terminal;
