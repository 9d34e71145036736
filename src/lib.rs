//! mod_wsgi_rs.so: the Apache httpd adapter of mod-wsgi-rs. Module record and wiring only; what a request becomes is
//! decided in `core`, Python runs in processes of its own.
#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]
#![warn(clippy::print_stdout)]

mod access;
mod brigade;
mod config;
mod directives;
mod guard;
mod handler;
mod hooks;
mod ledger;
mod log;
mod pool;
mod request;
mod runtime;
mod sys;
mod walk;

use std::ffi::c_int;

const fn record() -> sys::module {
    sys::module {
        version: sys::MODULE_MAGIC_NUMBER_MAJOR as c_int,
        minor_version: sys::MODULE_MAGIC_NUMBER_MINOR as c_int,
        module_index: -1,
        // The name existing configurations ask for with <IfModule mod_wsgi.c>.
        name: c"mod_wsgi.c".as_ptr(),
        dynamic_load_handle: std::ptr::null_mut(),
        next: std::ptr::null_mut(),
        magic: sys::MODULE_MAGIC_COOKIE as _,
        rewrite_args: None,
        create_dir_config: Some(config::create_dir),
        merge_dir_config: Some(config::merge_dir),
        create_server_config: Some(config::create_server),
        merge_server_config: Some(config::merge_server),
        cmds: directives::COMMANDS.as_ptr(),
        register_hooks: Some(hooks::register),
        flags: 0,
    }
}

/// httpd's view of this module; httpd writes to it when it loads the file.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub static mut wsgi_module: sys::module = record();
