//! The session tracker, any conversation.
#![no_main]

#[path = "../../tests/bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|input: (Vec<(u8, u8)>, &[u8])| bodies::track::any(&input.0, input.1));
