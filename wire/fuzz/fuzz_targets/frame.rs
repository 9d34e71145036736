#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_wsgi_wire_fuzz::frame::run(data));
