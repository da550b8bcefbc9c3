//! What a worker may write into its channel: any bytes, cut anywhere.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    throng_rs::fuzzing::channel(input.1, usize::from(input.0));
});
