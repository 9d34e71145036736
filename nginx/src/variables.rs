//! Variables about a request's dealings with workers, for logs: `$wsgi_process_group`, `$wsgi_worker_pid`,
//! `$wsgi_queue_time`, `$wsgi_app_time`. Evaluated in the process that serves the request.
#![allow(unsafe_code)]

use crate::guard::callback;
use crate::handler;
use crate::pool::constant;
use crate::request::Request;
use crate::sys;
use std::time::Duration;

const ERROR: sys::ngx_int_t = sys::NGX_ERROR as sys::ngx_int_t;

type Value = fn(&Request<'_>) -> Option<String>;

static ALL: [(&std::ffi::CStr, Value); 4] = [
    (c"wsgi_process_group", |r| {
        let location = r.location();
        location.script.as_ref()?;
        let group = &location.route.group;
        Some(if group.is_empty() { "%{GLOBAL}".to_owned() } else { group.clone() })
    }),
    (c"wsgi_worker_pid", |r| handler::dealings(r)?.pid.map(|p| p.to_string())),
    (c"wsgi_queue_time", |r| handler::dealings(r)?.queued().map(seconds)),
    (c"wsgi_app_time", |r| handler::dealings(r)?.ran().map(seconds)),
];

/// As nginx writes `$upstream_response_time`.
fn seconds(d: Duration) -> String {
    format!("{}.{:03}", d.as_secs(), d.subsec_millis())
}

/// Makes the variables known, before a configuration is read.
pub unsafe extern "C" fn add(cf: *mut sys::ngx_conf_t) -> sys::ngx_int_t {
    callback("preconfiguration", ERROR, || {
        for (i, (name, _)) in ALL.iter().enumerate() {
            let mut name = constant(name);
            // SAFETY: nginx passes a live configuration and gives a record to fill, or null; it copies the name.
            unsafe {
                let flags = sys::NGX_HTTP_VAR_NOCACHEABLE as sys::ngx_uint_t;
                let Some(v) = sys::ngx_http_add_variable(cf, &raw mut name, flags).as_mut() else { return ERROR };
                v.get_handler = Some(get);
                v.data = i;
            }
        }
        0
    })
}

unsafe extern "C" fn get(
    r: *mut sys::ngx_http_request_t,
    v: *mut sys::ngx_http_variable_value_t,
    data: usize,
) -> sys::ngx_int_t {
    callback("a variable", ERROR, || {
        // SAFETY: nginx passes a live request and the value to fill.
        let (r, v) = unsafe { (Request::new(r), &mut *v) };
        match ALL.get(data).and_then(|(_, value)| value(&r)) {
            Some(text) => {
                let Some(s) = r.pool().string(text.as_bytes()) else { return ERROR };
                v.set_valid(1);
                v.set_no_cacheable(0);
                v.set_not_found(0);
                v.set_len(s.len as u32);
                v.data = s.data;
            }
            None => v.set_not_found(1),
        }
        0
    })
}
