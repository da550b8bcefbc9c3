//! `ab`, and what it says.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// How many connections are open at the same time.
pub(crate) const AT_ONCE: u64 = 64;

/// A run of it.
pub(crate) struct Ab(Child);

/// What came out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) complete: u64,
    pub(crate) failed: u64,
    /// Requests a second.
    pub(crate) rate: f64,
}

impl Ab {
    /// So many requests, a new connection for each.
    pub(crate) fn start(address: SocketAddr, requests: u64) -> anyhow::Result<Self> {
        let mut command = Command::new("ab");
        // It goes on where a connection is broken, and counts that.
        command.args(["-r", "-q", "-s", "60", "-c", &AT_ONCE.to_string()]);
        command.args(["-n", &requests.to_string(), &format!("http://{address}/")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self(command.spawn().context("cannot run ab; install apache2-utils")?))
    }

    pub(crate) fn end(self) -> anyhow::Result<Outcome> {
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()
        };
        let whole = |name: &str| number(name).and_then(|number| number.parse().ok());
        let (Some(complete), Some(counted)) =
            (whole("Complete requests:"), whole("Failed requests:"))
        else {
            bail!("ab gave up ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
        };
        Ok(Outcome {
            complete,
            // It counts one that is reset as up to three failures: reception, length, exception.
            failed: broken(&text).unwrap_or(counted),
            rate: number("Requests per second:")
                .and_then(|number| number.parse().ok())
                .unwrap_or_default(),
        })
    }
}

/// How many requests failed, of `(Connect: 0, Receive: 6, Length: 11, Exceptions: 11)`.
fn broken(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.trim_start().starts_with("(Connect:"))?;
    let numbers = line.split([',', ')']).filter_map(|part| part.rsplit(' ').next()?.parse().ok());
    numbers.max()
}
