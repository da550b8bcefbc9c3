//! Every parser of the kernel's text, and of sizes and durations, on any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| throng_rs::fuzzing::parsers(text));
