//! Node 24, which some workers are run by.

use std::path::{Path, PathBuf};

use anyhow::ensure;

/// As `tests/beds/fetch-nodes` brings it, or what `THRONG_BENCH_NODE` names.
pub(crate) fn node() -> anyhow::Result<PathBuf> {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bed = here.join(format!("target/beds/nodes/node_modules/node24-{arch}/bin/node"));
    let node = std::env::var_os("THRONG_BENCH_NODE").map_or(bed, PathBuf::from);
    ensure!(node.is_file(), "no {}; run tests/beds/fetch-nodes", node.display());
    Ok(node)
}
