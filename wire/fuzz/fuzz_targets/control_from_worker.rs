#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_wsgi_wire_fuzz::control_from_worker::run(data));
