//! The real binary, by topic. One test program, so that it links once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod activation;
mod adapt;
mod architecture;
#[path = "../beds/mod.rs"]
mod beds;
mod calibrate;
mod cli;
mod control;
mod docker;
mod doctor;
mod driven;
mod faults;
mod guarded;
mod hosts;
mod inherit;
mod isolate;
mod launch;
mod limits;
mod load;
mod manager;
mod measured;
mod messages;
mod node;
mod node_lives;
mod output;
mod properties;
mod proxied;
mod proxy;
mod proxy_lives;
mod proxy_servers;
mod qemu;
mod ready;
mod report;
mod reuseport;
mod rolling;
mod runtimes;
mod signals;
mod sockets;
mod supervise;
mod support;
mod systemd;
mod table;
mod terminal;
mod upgrade;
