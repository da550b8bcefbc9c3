//! `wrk`, and what it says.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// Requests a second with 64 connections, or with a new one for each.
pub(crate) fn wrk(address: SocketAddr, new: bool) -> anyhow::Result<f64> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c64", "-d2s"]);
    if new {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{address}/")).stdin(Stdio::null());
    let output = command.output().context("cannot run wrk; install it")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!text.contains("Non-2xx"), "wrk got other answers: {text}");
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    let rate = rate.with_context(|| format!("wrk gave up ({}): {text}", output.status))?;
    Ok(rate.trim().parse()?)
}
