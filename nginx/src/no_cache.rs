//! What takes the place of `cache.rs` in a build for an nginx that was configured without its cache.
#![allow(unsafe_code)]

use crate::config::{ERROR, Location, fail};
use crate::guard::callback;
use crate::request::Request;
use crate::settings::Reading;
use crate::sys;
use mod_wsgi_core::directives::nginx::Setting;
use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

/// What marks our buffers.
pub fn tag() -> *mut c_void {
    (&raw const crate::config::HTTP_CONTEXT).cast_mut().cast()
}

pub const fn reading(_: Setting) -> Reading {
    Reading { arguments: sys::NGX_CONF_ANY, set: refuse, offset: 0, post: null_mut() }
}

unsafe extern "C" fn refuse(cf: *mut sys::ngx_conf_t, _: *mut sys::ngx_command_t, _: *mut c_void) -> *mut c_char {
    callback("a directive", ERROR, || {
        fail(cf, "this directive needs nginx's cache: this nginx was configured with --without-http-cache")
    })
}

pub fn begin(_: Setting, _: &mut sys::ngx_http_upstream_conf_t) {}

pub fn merge(_: Setting, _: &Location, _: &mut Location) {}

pub fn inherit(_: &Location, _: &mut Location) -> Result<(), String> {
    Ok(())
}

pub fn may_answer(_: &Request<'_>, _: &Location) -> bool {
    false
}

pub fn prepare(_: &Request<'_>, _: &mut sys::ngx_http_upstream_t) {}

pub fn is_sending(_: &Request<'_>) -> bool {
    false
}

pub fn reserved(_: &Request<'_>) -> usize {
    0
}

pub fn head(_: &Request<'_>, _: &sys::ngx_http_upstream_t) -> Option<(usize, usize)> {
    None
}

pub fn allow_stale(_: &Request<'_>, _: &sys::ngx_http_upstream_t, _: u32) {}

pub fn replaced(_: &[u8]) -> bool {
    false
}

pub fn conditions<'r>(_: &Request<'r>) -> impl Iterator<Item = (&'static [u8], &'r [u8])> {
    std::iter::empty()
}
