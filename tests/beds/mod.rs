//! The real test beds: a Docker engine of our own, and a Linux kernel with cgroup v2 in QEMU.
//!
//! The modules here only bring a bed up, talk to it and take it down again without a trace; what must hold in it is said in
//! `tests/suite/docker.rs`, `tests/suite/qemu.rs` and `tests/suite/systemd.rs`. `tests/beds/install` brings the packages and the kernel.

pub(crate) mod docker;
pub(crate) mod lines;
pub(crate) mod nodes;
pub(crate) mod qemu;
pub(crate) mod systemd;

use serde_json::Value;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A test whose bed is not here says so by name, and fails where everything was asked for.
///
/// # Panics
///
/// Under `THRONG_TESTS=all`.
pub(crate) fn skip(name: &str, reason: &str) {
    assert!(
        env::var_os("THRONG_TESTS").is_none_or(|tests| tests != "all"),
        "{name} cannot run: {reason}"
    );
    println!("skipped: {name}: {reason}");
}

/// The static build under test: the beds have no C library for any other.
pub(crate) fn static_binary() -> Result<PathBuf, String> {
    let path = env::var_os("THRONG_STATIC_BIN")
        .ok_or("THRONG_STATIC_BIN is not set; tests/run builds it")?;
    // A bed is entered from other directories.
    std::path::absolute(&path)
        .ok()
        .filter(|path| path.is_file())
        .ok_or_else(|| format!("THRONG_STATIC_BIN={} is not a file", path.display()))
}

/// Where a command lies; sbin counts too, which the `PATH` of a user may leave out.
pub(crate) fn command(name: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("no {name} here; run tests/beds/install"))
}

/// Runs a command to its end; how it failed is the error.
pub(crate) fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// A busybox that needs no C library either.
pub(crate) fn busybox() -> Result<PathBuf, String> {
    let path = command("busybox")?;
    let parts = run(Command::new("ldd").arg(&path));
    // ldd fails on a static file, and says so.
    if parts.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("=>")) {
        return Err(format!("{} is not static; run tests/beds/install", path.display()));
    }
    Ok(path)
}

/// Copies a file with its mode; the folders above it are made.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let folder = to.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    std::fs::copy(from, to)
        .map(drop)
        .map_err(|error| format!("{} to {}: {error}", from.display(), to.display()))
}

/// A sizing report, and where it came from, for messages that say which answer was wrong.
pub(crate) struct Report {
    name: String,
    json: Value,
}

impl Report {
    pub(crate) fn parse(name: &str, text: &str) -> Self {
        let json = serde_json::from_str(text)
            .unwrap_or_else(|error| panic!("{name}: no JSON ({error}): {text:?}"));
        Self { name: name.to_owned(), json }
    }

    /// The value at a JSON pointer below `resources`.
    fn resource(&self, pointer: &str) -> &Value {
        let value = self.json.pointer(&format!("/resources{pointer}"));
        value.unwrap_or_else(|| panic!("{}: no /resources{pointer} in {}", self.name, self.json))
    }

    /// Checks a whole number, or null.
    pub(crate) fn count(&self, pointer: &str, expected: Option<u64>) -> &Self {
        let value = self.resource(pointer);
        assert_eq!(value.as_u64(), expected, "{}: {pointer} is {value}", self.name);
        assert!(value.is_null() || value.is_u64(), "{}: {pointer} is {value}", self.name);
        self
    }

    /// Checks a number of CPUs, or null.
    pub(crate) fn cpus(&self, pointer: &str, expected: Option<f64>) -> &Self {
        let value = self.resource(pointer);
        let right = match (value.as_f64(), expected) {
            (Some(value), Some(expected)) => (value - expected).abs() < 1e-9,
            (None, None) => value.is_null(),
            _ => false,
        };
        assert!(right, "{}: {pointer} is {value}, not {expected:?}", self.name);
        self
    }

    /// Checks the file that an answer is said to come from.
    pub(crate) fn source(&self, pointer: &str, expected: &[&str]) -> &Self {
        let value = self.resource(pointer);
        let right = value.as_str().is_some_and(|source| expected.contains(&source));
        assert!(right, "{}: {pointer} is {value}, not one of {expected:?}", self.name);
        self
    }
}
