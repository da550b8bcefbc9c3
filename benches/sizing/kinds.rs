//! The servers and what a request costs them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::nodes::node;

/// One kind of load on one kind of server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    server: Server,
    /// The server's argument.
    work: &'static str,
    /// Before anything is measured: what grows must be there.
    pub(crate) warm_up: Duration,
    /// Whether `--quick` measures it too.
    pub(crate) quick: bool,
}

#[derive(Clone, Copy, Debug)]
enum Server {
    Python,
    Node,
    /// Node's too, by a port of its own.
    Proxied,
}

const SHORT: Duration = Duration::from_millis(1500);

pub(crate) const KINDS: &[Kind] = &[
    kind("sync-cpu", Server::Python, "cpu", SHORT, true),
    kind("sync-wait", Server::Python, "wait", SHORT, true),
    kind("sync-mixed", Server::Python, "mixed", SHORT, false),
    kind("sync-hungry", Server::Python, "hungry", SHORT, true),
    // Until every cache is full.
    kind("sync-growing", Server::Python, "growing", Duration::from_secs(12), false),
    kind("loop-cpu", Server::Node, "cpu", SHORT, true),
    kind("loop-wait", Server::Node, "wait", SHORT, false),
];

/// Worker 1 of each leaks, whatever it is asked.
pub(crate) const LEAKING: &[Kind] = &[
    kind("leaking", Server::Node, "leak", SHORT, true),
    kind("leaking, proxy", Server::Proxied, "leak", SHORT, true),
];

const fn kind(
    name: &'static str,
    server: Server,
    work: &'static str,
    warm_up: Duration,
    quick: bool,
) -> Kind {
    Kind { name, server, work, warm_up, quick }
}

impl Kind {
    /// How the launcher is told to share.
    pub(crate) fn options(&self) -> &'static [&'static str] {
        match self.server {
            Server::Python => &["--share", "fd", "--ready", "notify"],
            Server::Node => &["--share", "node"],
            Server::Proxied => &["--share", "proxy"],
        }
    }

    /// The command of a worker.
    pub(crate) fn words(&self) -> anyhow::Result<Vec<PathBuf>> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
        let (program, file) = match self.server {
            // Not the one of a version manager, which is a script.
            Server::Python => (PathBuf::from("/usr/bin/python3"), "sizing.py"),
            Server::Node | Server::Proxied => (node()?, "sizing.js"),
        };
        Ok(vec![program, here.join(file), self.work.into()])
    }
}
