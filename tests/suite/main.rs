//! The real binary, by topic. One test program, so that it links once.

#[path = "../beds/mod.rs"]
mod beds;
mod docker;
mod qemu;
