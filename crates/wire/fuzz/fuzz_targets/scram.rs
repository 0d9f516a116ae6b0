//! Both ends of SCRAM.
#![no_main]

#[path = "../../tests/bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8])| bodies::scram::any(input.0, input.1));
