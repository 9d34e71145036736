//! `wsgi_ready`: tells load balancers whether they should send requests here. No worker hears of it, and nothing waits:
//! the tables are fetched when a process begins to serve.
#![allow(unsafe_code)]

use crate::guard::callback;
use crate::log;
use crate::pool::{Pool, constant};
use crate::process::current;
use crate::request::Request;
use crate::sys;
use mod_wsgi_wire::frame::Level;

const ANSWER: &std::ffi::CStr = c"ready\n";

/// A location's request.
pub unsafe extern "C" fn handle(r: *mut sys::ngx_http_request_t) -> sys::ngx_int_t {
    callback("wsgi_ready", sys::NGX_HTTP_INTERNAL_SERVER_ERROR as sys::ngx_int_t, || {
        // SAFETY: nginx passes a live request.
        let view = unsafe { Request::new(r) };
        view.add_header(c"Cache-Control", b"no-store");
        let unready = match current() {
            Some(process) => process.unready(),
            None => Some("the supervisor was not started".to_owned()),
        };
        if let Some(why) = unready {
            log::write(view.log(), Level::Info, &format!("not ready: {why}"));
            view.add_header(c"Retry-After", b"1");
            return sys::NGX_HTTP_SERVICE_UNAVAILABLE as sys::ngx_int_t;
        }
        // SAFETY: a live request; the record is in its pool and zeroed, so that nginx takes the text as it is. The strings
        // are static.
        unsafe {
            let value = Pool::zeroed::<sys::ngx_http_complex_value_t>(view.pool());
            if value.is_null() {
                return sys::NGX_HTTP_INTERNAL_SERVER_ERROR as sys::ngx_int_t;
            }
            (*value).value = constant(ANSWER);
            let mut kind = constant(c"text/plain");
            sys::ngx_http_send_response(r, sys::NGX_HTTP_OK as sys::ngx_uint_t, &raw mut kind, value)
        }
    })
}
