//! A worker's answer in pieces, through the reader and the framer.
#![no_main]

#[path = "../../../core/tests/answer/mod.rs"]
mod answer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| answer::run(data));
