//! The configuration file, environment files, addresses and single values, on any text.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| throng_rs::fuzzing::settings(text));
