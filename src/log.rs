//! httpd's error log: for the process, for a server, for a request. Text is passed as an argument, never as a format;
//! httpd escapes control characters, so that one message is one line.
#![allow(unsafe_code)]

use crate::request::Request;
use crate::sys;
use mod_wsgi_wire::frame::Level;
use std::ffi::{CString, c_int};

/// Text as a C string. httpd escapes control characters itself; a NUL would cut the line.
fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\\0")).unwrap_or_default()
}

/// The module's slot in httpd's tables; -1 before it is loaded.
fn index() -> c_int {
    // SAFETY: httpd writes the index once, when it loads the module, before any callback can run.
    unsafe { crate::wsgi_module.module_index }
}

/// Logs for the process (start, configuration; no server at hand).
pub fn process(level: Level, text: &str) {
    let text = c_text(text);
    // SAFETY: ap_server_conf is httpd's main server or null; both are allowed. Strings are NUL-terminated and live
    // during the call; "%s" takes exactly the one argument.
    unsafe {
        let level = level as c_int | sys::APLOG_STARTUP as c_int;
        sys::ap_log_error_(c"wsgi".as_ptr(), 0, index(), level, 0, sys::ap_server_conf, c"%s".as_ptr(), text.as_ptr());
    }
}

/// Logs for a request.
pub fn request(r: &Request<'_>, level: Level, text: &str) {
    let text = c_text(text);
    // SAFETY: as in `process`; the request is live for the view's lifetime.
    unsafe {
        sys::ap_log_rerror_(c"wsgi".as_ptr(), 0, index(), level as c_int, 0, r.raw(), c"%s".as_ptr(), text.as_ptr());
    }
}

/// Logs a LOG record of the worker for its request.
pub fn worker(r: &Request<'_>, level: Level, text: &[u8]) {
    if r.logs(index(), level as c_int) {
        request(r, level, &String::from_utf8_lossy(text));
    }
}
