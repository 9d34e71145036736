//! wsgi_store: copies of responses as plain files.
#![allow(unsafe_code)]

use crate::config::{ERROR, Location, location, words};
use crate::guard::callback;
use crate::pool::Pool;
use crate::sys;
use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

/// A location has a cache or a store, never both: the inner block's word counts.
pub fn decide(inner: &mut Location) {
    match (inner.store, inner.cache) {
        (Some(true), _) => inner.cache = Some(false),
        (_, Some(true)) => inner.store = Some(false),
        _ => {}
    }
}

/// Inherits the store.
pub fn inherit(outer: &Location, inner: &mut Location) {
    let (o, i) = (&outer.upstream, &mut inner.upstream);
    if inner.store.is_none() {
        inner.store = outer.store.or(Some(false));
        (i.store_lengths, i.store_values) = (o.store_lengths, o.store_values);
    }
    i.set_store((inner.store == Some(true)).into());
}

pub unsafe extern "C" fn set(cf: *mut sys::ngx_conf_t, _: *mut sys::ngx_command_t, conf: *mut c_void) -> *mut c_char {
    callback("wsgi_store", ERROR, || {
        // SAFETY: nginx passes the location's settings.
        let loc = unsafe { location(conf) };
        let Some(&path) = words(cf).first() else { return ERROR };
        match (loc.store, loc.cache, path) {
            (Some(_), ..) => return c"is duplicate".as_ptr().cast_mut(),
            (_, _, b"off") => {
                loc.store = Some(false);
                return null_mut();
            }
            (_, Some(true), _) => return c"is incompatible with \"wsgi_cache\"".as_ptr().cast_mut(),
            _ => loc.store = Some(true),
        }
        if path == b"on" {
            return null_mut();
        }
        // SAFETY: nginx passes a live configuration; the path, with its NUL as part of it (it becomes a file's name), and
        // the compiled code live in its pool. All zero is how nginx's own modules begin this record.
        let rc = unsafe {
            let Some(mut source) = Pool::new((*cf).pool).string(path) else { return ERROR };
            source.len += 1;
            let mut sc: sys::ngx_http_script_compile_t = std::mem::zeroed();
            sc.cf = cf;
            sc.source = &raw mut source;
            sc.lengths = &raw mut loc.upstream.store_lengths;
            sc.values = &raw mut loc.upstream.store_values;
            sc.variables = sys::ngx_http_script_variables_count(&raw mut source);
            sc.set_complete_lengths(1);
            sc.set_complete_values(1);
            sys::ngx_http_script_compile(&raw mut sc)
        };
        if rc == 0 { null_mut() } else { ERROR }
    })
}
