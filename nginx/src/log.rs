//! nginx's error log: for the process and for a request. Text is passed as an argument, never as a format. nginx writes it
//! as it is and cuts a line at 2 KiB: control characters are escaped here, and each line of a text is a line of the log.
#![allow(unsafe_code)]

use crate::sys;
use mod_wsgi_wire::frame::Level;
use std::fmt::Write as _;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// Most bytes of one line; nginx adds time, process, connection and request to it.
const LINE: usize = 1200;

/// nginx's number of a level.
pub fn number(level: Level) -> sys::ngx_uint_t {
    // nginx has the levels of syslog, from 1 (emergency) on.
    level as sys::ngx_uint_t + 1
}

/// nginx's number of wsgi_log_level; 0 where there is none. Set in the master; processes that serve inherit it.
static LEAST: AtomicUsize = AtomicUsize::new(0);

/// Lines of this level are written also where the log itself takes fewer.
pub fn set_least(level: Option<Level>) {
    LEAST.store(level.map_or(0, number), Relaxed);
}

fn piece(log: *mut sys::ngx_log_t, level: sys::ngx_uint_t, text: &str) {
    // SAFETY: nginx's logs live as long as the cycle or the connection whose callback is running; the text is read only
    // during the call.
    unsafe { sys::mwr_log(log, level, text.as_ptr().cast(), text.len()) }
}

/// Writes `text` to a log of nginx.
pub fn write(log: *mut sys::ngx_log_t, level: Level, text: &str) {
    let number = number(level);
    // SAFETY: as in `piece`; null is no log.
    if log.is_null() || unsafe { (*log).log_level }.max(LEAST.load(Relaxed)) < number {
        return;
    }
    for line in text.lines() {
        let mut safe = String::with_capacity(line.len());
        for c in line.chars() {
            // As the supervisor escapes them.
            match c {
                '\t' => safe.push(c),
                '\r' => safe.push_str("\\r"),
                '\u{2028}' | '\u{2029}' => safe.extend(c.escape_unicode()),
                c if c.is_control() => {
                    let _ = write!(safe, "\\x{:02x}", u32::from(c));
                }
                c => safe.push(c),
            }
            if safe.len() >= LINE {
                piece(log, number, &safe);
                safe.clear();
            }
        }
        if !safe.is_empty() {
            piece(log, number, &safe);
        }
    }
}

/// The log of the current cycle: for the process, and for connections that serve no request.
pub fn of_process() -> *mut sys::ngx_log_t {
    // SAFETY: nginx sets ngx_cycle before it calls any module, and its log lives as long as the cycle.
    unsafe { if sys::ngx_cycle.is_null() { std::ptr::null_mut() } else { (*sys::ngx_cycle).log } }
}

/// Logs for the process.
pub fn process(level: Level, text: &str) {
    write(of_process(), level, text);
}
