//! Four workers, below our primary or below Node's.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::common::{LAUNCHER, Nest, children_of, end, send};

const WORKERS: usize = 4;

/// Whose workers they are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Primary {
    /// With this `--balance`.
    Ours(&'static str),
    Nodes,
    /// Nobody's: they share the port by themselves (`reusePort`), so nothing could be faster.
    Nobodys,
}

/// They listen.
pub(crate) struct Fleet {
    child: Child,
    primary: Primary,
    pub(crate) address: SocketAddr,
    /// Until then.
    pub(crate) took: Duration,
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(name)
}

impl Fleet {
    pub(crate) fn start(nest: &Nest, primary: Primary) -> anyhow::Result<Self> {
        let (node, server, count) =
            (crate::common::nodes::node()?, script("server.js"), WORKERS.to_string());
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = match primary {
            Primary::Ours(balance) => {
                let mut command = nest.command(LAUNCHER);
                command.args(["-q", "--control", "off", "--prefix", "off", "--workers", &count]);
                command.args(["--balance", balance, "--"]).arg(node).arg(server);
                command
            }
            Primary::Nobodys => {
                let mut command = nest.command(LAUNCHER);
                command.args(["-q", "--control", "off", "--prefix", "off", "--workers", &count]);
                command.args(["--share", "off", "--"]).arg(node).arg(server);
                command.env("REUSEPORT", "1");
                command
            }
            Primary::Nodes => {
                let mut command = nest.command(node);
                command.arg(script("cluster.js")).arg(&count).arg(server);
                command
            }
        };
        command.env("PORT", address.port().to_string()).stdout(Stdio::piped());
        let begin = Instant::now();
        let mut child = command.stderr(Stdio::inherit()).spawn().context("cannot run a primary")?;
        let stdout = child.stdout.take().context("no output")?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        for _ in 0..WORKERS {
            line.clear();
            ensure!(stdout.read_line(&mut line)? > 0, "a primary ends before its workers are up");
        }
        let took = begin.elapsed();
        // Whatever else they say must not hold them up.
        std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
        Ok(Self { child, primary, address, took })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stop(self) -> anyhow::Result<()> {
        let workers = match self.primary {
            Primary::Ours(_) | Primary::Nobodys => Vec::new(),
            Primary::Nodes => children_of(Pid::from_raw(self.child.id().cast_signed()))?,
        };
        send(&self.child, Signal::SIGTERM)?;
        let status = end(self.child)?;
        // Node's own ends by the signal; its workers come to us, and end by themselves.
        for worker in workers {
            waitpid(worker, None).context("a worker of Node's did not come to us")?;
        }
        let ours = !matches!(self.primary, Primary::Nodes);
        ensure!(!ours || status.success(), "the launcher ends with {status}");
        while TcpListener::bind(self.address).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}
