//! What a command is recognised as, by its words and by the bytes of its file.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (Vec<String>, Vec<u8>)| {
    throng_rs::fuzzing::command(&input.0, &input.1);
});
