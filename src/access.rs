//! What access logs can say of a request: items for mod_log_config's formats, `%{queue_time}^WS` and the like, and `%^WJ`,
//! a whole record as JSON. Runs in the process and thread that served the request, when httpd logs it.
#![allow(unsafe_code)]

use crate::config;
use crate::guard::callback;
use crate::log;
use crate::pool::Pool;
use crate::request::Request;
use crate::sys;
use mod_wsgi_core::exchange::Exchange;
use mod_wsgi_core::times::Seconds;
use mod_wsgi_wire::frame::Level;
use serde::Serialize;
use std::ffi::{CStr, c_char, c_int};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What became of a request that a worker answered. In the request's pool.
#[derive(Clone, Copy)]
pub struct Outcome {
    group: *const c_char,
    pid: u32,
    queue: Option<Duration>,
    application: Option<Duration>,
}

impl Outcome {
    /// Of the exchange that has just ended.
    pub fn new(pool: Pool<'_>, x: &Exchange) -> Outcome {
        let (queue, application) = (x.times().queue(), x.times().application());
        Outcome { group: pool.c_string(x.pool().group.as_bytes()), pid: x.pid(), queue, application }
    }

    fn group(&self) -> String {
        // SAFETY: made by `new` in the pool that this record lies in.
        unsafe { CStr::from_ptr(self.group) }.to_string_lossy().into_owned()
    }
}

/// One line of `%^WJ`. Times are seconds. As nginx writes it, text that is missing is empty, and a number that is missing null.
#[derive(Serialize)]
struct Record {
    time: String,
    client: String,
    user: String,
    method: String,
    target: String,
    protocol: String,
    status: i32,
    bytes: i64,
    seconds: f64,
    host: String,
    referer: String,
    user_agent: String,
    request_id: String,
    process_group: String,
    worker_pid: Option<u32>,
    queue_seconds: Option<f64>,
    app_seconds: Option<f64>,
}

/// Milliseconds are what times are known to.
fn seconds(d: Duration) -> f64 {
    d.as_millis() as f64 / 1000.0
}

/// Bytes that may be anything as text: what is no UTF-8 becomes U+FFFD.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn record(r: &Request<'_>) -> Record {
    let outcome = config::outcome(r);
    let header = |name| r.headers_in().get(name).map(text).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
    let took = u64::try_from(now - r.request_time()).unwrap_or(0);
    Record {
        time: r.time_stamp(),
        client: text(r.remote_addr()),
        user: r.user().map(text).unwrap_or_default(),
        method: text(r.method()),
        target: text(r.raw_target()),
        protocol: text(r.protocol()),
        status: r.status(),
        bytes: r.bytes_sent(),
        seconds: seconds(Duration::from_micros(took)),
        host: header(c"Host"),
        referer: header(c"Referer"),
        user_agent: header(c"User-Agent"),
        request_id: r.log_id().map(text).unwrap_or_default(),
        process_group: outcome.map(Outcome::group).unwrap_or_default(),
        worker_pid: outcome.map(|o| o.pid),
        queue_seconds: outcome.and_then(|o| o.queue).map(seconds),
        app_seconds: outcome.and_then(|o| o.application).map(seconds),
    }
}

/// `%{NAME}^WS`: the names are those of the nginx module's variables, without `$wsgi_`.
fn item(outcome: &Outcome, name: &[u8]) -> Option<String> {
    match name {
        b"process_group" => Some(outcome.group()),
        b"worker_pid" => Some(outcome.pid.to_string()),
        b"queue_time" => outcome.queue.map(|d| Seconds(d).to_string()),
        b"app_time" => outcome.application.map(|d| Seconds(d).to_string()),
        _ => None,
    }
}

unsafe extern "C" fn log_item(r: *mut sys::request_rec, name: *mut c_char) -> *const c_char {
    callback("a log item", std::ptr::null(), || {
        // SAFETY: mod_log_config passes a live request and the text between the braces, an empty one without.
        let (r, name) = unsafe { (Request::new(r), CStr::from_ptr(name)) };
        let found = config::outcome(&r).and_then(|o| item(o, name.to_bytes()));
        // Null is written as "-".
        found.map_or(std::ptr::null(), |t| r.pool().c_string(t.as_bytes()).cast_const())
    })
}

unsafe extern "C" fn log_json(r: *mut sys::request_rec, _: *mut c_char) -> *const c_char {
    callback("a log record", std::ptr::null(), || {
        // SAFETY: mod_log_config passes a live request.
        let r = unsafe { Request::new(r) };
        match serde_json::to_string(&record(&r)) {
            Ok(line) => r.pool().c_string(line.as_bytes()).cast_const(),
            Err(_) => std::ptr::null(),
        }
    })
}

/// Before the configuration is read: mod_log_config, where it is loaded, learns the items.
pub unsafe extern "C" fn pre_config(
    p: *mut sys::apr_pool_t,
    _: *mut sys::apr_pool_t,
    _: *mut sys::apr_pool_t,
) -> c_int {
    callback("pre_config", sys::HTTP_INTERNAL_SERVER_ERROR as c_int, || {
        let items: [(&CStr, sys::mwr_log_item); 2] = [(c"^WS", Some(log_item)), (c"^WJ", Some(log_json))];
        for (tag, item) in items {
            // SAFETY: httpd passes its live configuration pool; tags and functions are static, and httpd forgets them
            // together with this module when it reads its configuration anew.
            if unsafe { sys::mwr_register_log_item(p, tag.as_ptr(), item) } == 0 {
                // Without mod_log_config there are no formats.
                log::process(Level::Debug, "mod_log_config is not loaded: no log items of this module");
                break;
            }
        }
        sys::OK as c_int
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_those_of_nginx() {
        let o = Outcome { group: c"blog".as_ptr(), pid: 7, queue: Some(Duration::from_millis(12)), application: None };
        assert_eq!(item(&o, b"process_group").as_deref(), Some("blog"));
        assert_eq!(item(&o, b"worker_pid").as_deref(), Some("7"));
        assert_eq!(item(&o, b"queue_time").as_deref(), Some("0.012"));
        assert_eq!((item(&o, b"app_time"), item(&o, b"other")), (None, None));
    }
}
