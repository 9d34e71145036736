//! The shared table and the journal, whose content belongs to whoever writes last.
#![no_main]

#[path = "../../../scoreboard/tests/content/mod.rs"]
mod content;

libfuzzer_sys::fuzz_target!(|data: &[u8]| content::run(data));
