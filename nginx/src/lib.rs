//! ngx_http_wsgi_rs_module.so: the nginx adapter of mod-wsgi-rs. Module records and wiring only; what a request becomes
//! is decided in `core`, Python runs in processes of its own.
#![deny(unsafe_code)]
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[cfg_attr(not(nginx_cache), path = "no_cache.rs")]
mod cache;
mod config;
mod conn;
mod directives;
mod feed;
mod guard;
mod handler;
mod hooks;
mod lane;
mod log;
mod peer;
mod pool;
mod process;
mod ready;
mod request;
mod response;
mod settings;
mod store;
mod sys;
mod variables;

use std::ffi::c_char;

const fn record() -> sys::ngx_module_t {
    sys::ngx_module_t {
        // NGX_MODULE_UNSET_INDEX
        ctx_index: usize::MAX,
        index: usize::MAX,
        name: std::ptr::null_mut(),
        spare0: 0,
        spare1: 0,
        version: sys::nginx_version as sys::ngx_uint_t,
        signature: (&raw const sys::mwr_signature).cast(),
        ctx: std::ptr::null_mut(),
        commands: std::ptr::null_mut(),
        type_: 0,
        init_master: None,
        init_module: None,
        init_process: None,
        init_thread: None,
        exit_thread: None,
        exit_process: None,
        exit_master: None,
        spare_hook0: 0,
        spare_hook1: 0,
        spare_hook2: 0,
        spare_hook3: 0,
        spare_hook4: 0,
        spare_hook5: 0,
        spare_hook6: 0,
        spare_hook7: 0,
    }
}

/// The module of the http part: directives, requests. nginx writes its indices when it loads the file.
static mut HTTP: sys::ngx_module_t = sys::ngx_module_t {
    ctx: (&raw const config::HTTP_CONTEXT).cast_mut().cast(),
    commands: directives::COMMANDS.as_ptr().cast_mut(),
    type_: sys::NGX_HTTP_MODULE as sys::ngx_uint_t,
    init_module: Some(hooks::init_module),
    init_process: Some(hooks::init_process),
    exit_process: Some(hooks::exit_process),
    exit_master: Some(hooks::exit_master),
    ..record()
};

/// A module of the core, for its `init_conf`: it runs when the whole configuration has been read (also `user`, which may
/// stand behind http), and an error there fails a reload, not the running server.
static mut CHECK: sys::ngx_module_t = sys::ngx_module_t {
    ctx: (&raw const hooks::CHECK_CONTEXT).cast_mut().cast(),
    commands: directives::NONE.as_ptr().cast_mut(),
    type_: sys::NGX_CORE_MODULE as sys::ngx_uint_t,
    ..record()
};

/// A null-terminated list that nginx reads.
#[repr(transparent)]
pub struct List<T, const N: usize>([*const T; N]);
// SAFETY: constant pointers; only nginx's one thread follows them.
#[allow(unsafe_code)]
unsafe impl<T, const N: usize> Sync for List<T, N> {}

/// What `load_module` looks for: the modules of this file, their names, and where they go among others (anywhere).
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub static ngx_modules: List<sys::ngx_module_t, 3> = List([&raw const HTTP, &raw const CHECK, std::ptr::null()]);
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub static ngx_module_names: List<c_char, 3> =
    List([c"ngx_http_wsgi_rs_module".as_ptr(), c"ngx_wsgi_rs_check_module".as_ptr(), std::ptr::null()]);
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub static ngx_module_order: List<c_char, 1> = List([std::ptr::null()]);

/// The http module's record, for looking up configuration.
pub(crate) const fn http_module() -> *mut sys::ngx_module_t {
    &raw mut HTTP
}
