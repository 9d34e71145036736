//! This module's slots in httpd's configuration vectors: created, merged, found.
#![allow(unsafe_code)]

use crate::access::Outcome;
use crate::guard::callback;
use crate::pool::Pool;
use crate::request::Request;
use crate::runtime::Runtime;
use crate::sys;
use mod_wsgi_core::config::{DirConfig, ServerConfig};
use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Settings of one server or virtual host, and the runtime once there is one.
#[derive(Default)]
pub struct Host {
    pub settings: ServerConfig,
    /// Lives in the configuration pool; null until post_config.
    runtime: AtomicPtr<Runtime>,
}

impl Host {
    pub fn set_runtime(&self, runtime: *mut Runtime) {
        self.runtime.store(runtime, Ordering::Release);
    }

    /// The runtime; `None` before the first real post_config.
    pub fn runtime(&self) -> Option<&Runtime> {
        // SAFETY: null, or a value owned by the configuration pool, in which this Host lies too.
        unsafe { self.runtime.load(Ordering::Acquire).as_ref() }
    }
}

pub unsafe extern "C" fn create_dir(p: *mut sys::apr_pool_t, _: *mut c_char) -> *mut c_void {
    callback("create_dir_config", std::ptr::null_mut(), || {
        // SAFETY: httpd passes a live pool.
        unsafe { Pool::new(p) }.own(DirConfig::default()).cast()
    })
}

pub unsafe extern "C" fn merge_dir(p: *mut sys::apr_pool_t, base: *mut c_void, inner: *mut c_void) -> *mut c_void {
    callback("merge_dir_config", base, || {
        // SAFETY: httpd passes two values that `create_dir` or this function made, and a live pool.
        unsafe {
            let merged = (*base.cast::<DirConfig>()).merged(&*inner.cast::<DirConfig>());
            Pool::new(p).own(merged).cast()
        }
    })
}

pub unsafe extern "C" fn create_server(p: *mut sys::apr_pool_t, _: *mut sys::server_rec) -> *mut c_void {
    callback("create_server_config", std::ptr::null_mut(), || {
        // SAFETY: httpd passes a live pool.
        unsafe { Pool::new(p) }.own(Host::default()).cast()
    })
}

pub unsafe extern "C" fn merge_server(p: *mut sys::apr_pool_t, base: *mut c_void, host: *mut c_void) -> *mut c_void {
    callback("merge_server_config", base, || {
        // SAFETY: httpd passes two values that `create_server` made, and a live pool.
        unsafe {
            let settings = (*base.cast::<Host>()).settings.merged(&(*host.cast::<Host>()).settings);
            Pool::new(p).own(Host { settings, ..Host::default() }).cast()
        }
    })
}

/// Settings of the place a request is for.
pub fn dir<'r>(r: &Request<'r>) -> Option<&'r DirConfig> {
    // SAFETY: null or a DirConfig whose pool outlives the request (configuration, or the request's own).
    unsafe { r.dir_config().cast::<DirConfig>().as_ref() }
}

/// What this module keeps of one request, in its pool.
#[derive(Clone, Copy)]
struct Own {
    alias: *const DirConfig,
    outcome: Option<Outcome>,
}

fn own<'r>(r: &Request<'r>) -> Option<&'r Own> {
    // SAFETY: null or set by `set_own` to a record in the request's pool, which is replaced, never changed.
    unsafe { r.request_config().cast::<Own>().as_ref() }
}

fn set_own(r: &Request<'_>, own: Own) {
    r.set_request_config(r.pool().place(own).cast());
}

/// Settings of the alias that mapped the request, if one did.
pub fn alias<'r>(r: &Request<'r>) -> Option<&'r DirConfig> {
    // SAFETY: null or set by `set_alias` to a part of the configuration, which outlives requests.
    own(r).and_then(|own| unsafe { own.alias.as_ref() })
}

pub fn set_alias(r: &Request<'_>, dir: &DirConfig) {
    set_own(r, Own { alias: dir, outcome: None });
}

/// What became of the request, for the access log; `None` when no worker has answered it.
pub fn outcome<'r>(r: &Request<'r>) -> Option<&'r Outcome> {
    own(r).and_then(|own| own.outcome.as_ref())
}

pub fn set_outcome(r: &Request<'_>, outcome: Outcome) {
    set_own(r, Own { alias: own(r).map_or(std::ptr::null(), |own| own.alias), outcome: Some(outcome) });
}

/// Settings of the server a request came to.
pub fn host<'r>(r: &Request<'r>) -> Option<&'r Host> {
    host_of(r.server())
}

/// Settings of a server.
pub fn host_of<'s>(s: *mut sys::server_rec) -> Option<&'s Host> {
    // SAFETY: httpd's servers live as long as the configuration pool; the slot is null or a Host in that pool.
    unsafe { sys::mwr_module_config((*s).module_config, &raw const crate::wsgi_module).cast::<Host>().as_ref() }
}

/// Settings a server gives to all its places (directives outside any section).
pub fn server_dir<'s>(s: *mut sys::server_rec) -> Option<&'s DirConfig> {
    // SAFETY: as in `host_of`, for the server's default directory configuration.
    unsafe { sys::mwr_module_config((*s).lookup_defaults, &raw const crate::wsgi_module).cast::<DirConfig>().as_ref() }
}

/// httpd's servers, main server first.
pub fn servers(main: *mut sys::server_rec) -> impl Iterator<Item = *mut sys::server_rec> {
    let mut at = main;
    std::iter::from_fn(move || {
        let s = at;
        // SAFETY: a null-terminated list that lives as long as the configuration.
        at = unsafe { s.as_ref()? }.next;
        Some(s)
    })
}
