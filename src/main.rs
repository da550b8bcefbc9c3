//! The `throng-rs` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    throng_rs::main()
}
