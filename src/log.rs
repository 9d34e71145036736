//! httpd's error log: for the process, for a server, for a request. Text is passed as an argument, never as a format;
//! httpd escapes control characters, so that one message is one line.
#![allow(unsafe_code)]

use crate::request::Request;
use crate::sys;
use mod_wsgi_wire::frame::Level;
use std::ffi::{CString, c_int};

/// Severities of messages of our own.
#[derive(Debug, Clone, Copy)]
pub enum Severity {
    Crit = 2,
    Error = 3,
    Warn = 4,
    Notice = 5,
    Info = 6,
}

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
pub fn process(severity: Severity, text: &str) {
    let text = c_text(text);
    // SAFETY: ap_server_conf is httpd's main server or null; both are allowed. Strings are NUL-terminated and live
    // during the call; "%s" takes exactly the one argument.
    unsafe {
        let level = severity as c_int | sys::APLOG_STARTUP as c_int;
        sys::ap_log_error_(c"wsgi".as_ptr(), 0, index(), level, 0, sys::ap_server_conf, c"%s".as_ptr(), text.as_ptr());
    }
}

/// Logs for a request.
pub fn request(r: &Request<'_>, severity: Severity, text: &str) {
    at_level(r, severity as c_int, text);
}

/// Logs a LOG record of the worker for its request.
pub fn worker(r: &Request<'_>, level: Level, text: &[u8]) {
    if r.logs(index(), level as c_int) {
        at_level(r, level as c_int, &String::from_utf8_lossy(text));
    }
}

fn at_level(r: &Request<'_>, level: c_int, text: &str) {
    let text = c_text(text);
    // SAFETY: as in `process`; the request is live for the view's lifetime.
    unsafe {
        sys::ap_log_rerror_(c"wsgi".as_ptr(), 0, index(), level, 0, r.raw(), c"%s".as_ptr(), text.as_ptr());
    }
}
