//! What keeper and supervisor say to each other, and what one supervisor leaves to the next.
#![no_main]

#[path = "../../../supervisor/tests/records/mod.rs"]
mod records;

libfuzzer_sys::fuzz_target!(|data: &[u8]| records::run(data));
