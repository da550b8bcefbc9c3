//! Node in each of its major versions, Deno, and what servers are written with; `tests/beds/fetch-nodes` brings them.

use std::env;
use std::path::{Path, PathBuf};

fn bed() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/beds");
    env::var_os("THRONG_BEDS_DIR").map_or(here, PathBuf::from)
}

/// A runtime's program: `node18` to `node26`, `deno`.
pub(crate) fn runtime(name: &str) -> Result<String, String> {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    let package = bed().join(format!("nodes/node_modules/{name}-{arch}"));
    let program = package.join(if name == "deno" { "deno" } else { "bin/node" });
    if program.is_file() && bed().join("apps/complete").is_file() {
        Ok(program.display().to_string())
    } else {
        Err(format!("no {} here; run tests/beds/fetch-nodes", program.display()))
    }
}

/// Where the packages are, for `NODE_PATH`.
pub(crate) fn packages() -> String {
    bed().join("apps/node_modules").display().to_string()
}

/// A server of `fixtures/apps/node`.
pub(crate) fn app(name: &str) -> String {
    format!("{}/fixtures/apps/node/{name}", env!("CARGO_MANIFEST_DIR"))
}
