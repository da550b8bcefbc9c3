//! Connections under reloads and deaths of workers, and how evenly they are spread; needs `ab`.
//!
//! ```sh
//! cargo bench --bench connections                          # everything, in every mode
//! cargo bench --bench connections -- reload reuseport      # one measure, in one mode
//! cargo bench --bench connections -- reload fd 20000       # of so many requests
//! cargo bench --bench connections -- --check               # ends with 1 where a limit is exceeded
//! ```
//!
//! - `reload`: all workers are replaced ten times under `ab -c64` with a new connection per request; none of
//!   200,000 may fail.
//! - `keep`: the same with 64 connections that are kept alive, by a client that sends a request again where
//!   its reused connection was closed before any byte of the answer (RFC 9112, 9.3.1).
//! - `kill`: KILL to a worker every second under the same `ab`; only what the dead had accepted may be lost.
//! - `shares`: of each worker, under the same `ab`: within two points of even.

#[path = "connections/ab.rs"]
mod ab;
mod common;
#[path = "connections/fleet.rs"]
mod fleet;
#[path = "connections/keep.rs"]
mod keep;
#[path = "connections/measures.rs"]
mod measures;

use std::process::ExitCode;

use anyhow::ensure;
use common::table::{Row, end};
use common::{Nest, nobody_left};
use fleet::{MODES, Mode};

/// What can be asked for.
type Measure = fn(&Nest, &Mode, Option<u64>) -> anyhow::Result<Row>;
const MEASURES: &[(&str, Measure)] = &[
    ("reload", measures::reload),
    ("keep", measures::keep_alive),
    ("kill", measures::kill_one_a_second),
    ("shares", measures::shares),
];

fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let number = words.iter().find_map(|word| word.parse().ok());
    let is_known = |word: &String| {
        word.parse::<u64>().is_ok()
            || MEASURES.iter().any(|(name, _)| name == word)
            || MODES.iter().any(|mode| mode.name == word)
    };
    if let Some(word) = words.iter().find(|word| !is_known(word)) {
        let measures: Vec<_> = MEASURES.iter().map(|(name, _)| *name).collect();
        let modes: Vec<_> = MODES.iter().map(|mode| mode.name).collect();
        ensure!(false, "{word} is none of {} and {}", measures.join(", "), modes.join(", "));
    }
    // Where nothing of a kind is named, all of it.
    let chosen = |name: &str, all: &mut dyn Iterator<Item = &str>| {
        let named: Vec<&str> = all.filter(|one| words.iter().any(|word| word == one)).collect();
        named.is_empty() || named.contains(&name)
    };
    let nest = Nest::new()?;
    let mut rows = Vec::new();
    for mode in MODES {
        for (name, measure) in MEASURES {
            let asked = chosen(name, &mut MEASURES.iter().map(|(name, _)| *name))
                && chosen(mode.name, &mut MODES.iter().map(|mode| mode.name));
            if asked && mode.measures.contains(name) {
                rows.push(measure(&nest, mode, number)?);
                nobody_left()?;
            }
        }
    }
    Ok(end(&rows))
}
