//! The directory walk of aliased scripts, with the documented default of AllowOverride.
//!
//! httpd documents AllowOverride None as the default since 2.3.9, but a configuration that never mentions it makes the
//! walk open `.htaccess` in every directory of the path, and answer 500 when it finds one with a directive in it ("not
//! allowed here"). Each of those system calls costs about as much as building a whole environ. For a URL that one of our
//! aliases has mapped to its script the walk runs with the documented default; a `<Directory>` that sets AllowOverride
//! is heeded as ever, and no other request is touched.
#![allow(unsafe_code)]

use crate::pool::Pool;
use crate::request::Request;
use crate::sys;
use std::collections::HashMap;
use std::ffi::c_int;

/// What AllowOverride is when no directive has set it (httpd server/core.c, create_core_dir_config).
const NEVER_SET: sys::overrides_t = (sys::OR_UNSET | sys::OR_NONE) as sys::overrides_t;

/// Copies of servers' default directory configurations, by the address of the original. Addresses, since the table is
/// shared by threads; the records belong to the configuration pool, and outlive every request.
#[derive(Default)]
pub struct Shadows(HashMap<usize, usize>);

impl Shadows {
    /// Copies the defaults of every server that leaves AllowOverride alone.
    pub fn of(pool: Pool<'_>, servers: impl Iterator<Item = *mut sys::server_rec>) -> Shadows {
        let copies = servers.filter_map(|s| {
            // SAFETY: a live server of httpd's list.
            let defaults = unsafe { (*s).lookup_defaults };
            Some((defaults.addr(), copy(pool, defaults)?.expose_provenance()))
        });
        Shadows(copies.collect())
    }

    fn get(&self, defaults: *mut sys::ap_conf_vector_t) -> Option<*mut sys::ap_conf_vector_t> {
        self.0.get(&defaults.addr()).map(|a| std::ptr::with_exposed_provenance_mut(*a))
    }
}

/// A copy of a server's default directory configuration with AllowOverride None; `None` when a directive has set it.
fn copy(pool: Pool<'_>, defaults: *mut sys::ap_conf_vector_t) -> Option<*mut sys::ap_conf_vector_t> {
    // SAFETY: post_config passes live servers; every module's slot is copied as the pointer it is, core's own as a copy
    // of its record. All copies live in the configuration pool, like the originals.
    unsafe {
        let core = sys::mwr_module_config(defaults, &raw const sys::core_module).cast::<sys::core_dir_config>();
        if core.is_null() || (*core).override_ != NEVER_SET {
            return None;
        }
        let mut record = std::ptr::read(core);
        record.override_ = sys::OR_NONE as sys::overrides_t;
        let copy = sys::ap_create_per_dir_config(pool.raw());
        let mut m = sys::ap_top_module;
        while !m.is_null() {
            sys::ap_set_module_config(copy, m, sys::mwr_module_config(defaults, m));
            m = (*m).next;
        }
        sys::ap_set_module_config(copy, &raw const sys::core_module, pool.own(record).cast());
        Some(copy)
    }
}

/// Core's part of map_to_storage for a request that an alias of ours has mapped. A request that a `<Location>` has
/// matched has a configuration of its own already, and is left to core.
pub fn run(r: &Request<'_>, shadows: &Shadows) -> c_int {
    // SAFETY: this thread's request; the copy lives as long as the configuration. The walk merges what it finds onto it,
    // as it would onto the original.
    unsafe {
        let raw = r.raw();
        let Some(copy) = shadows.get((*raw).per_dir_config) else { return sys::DECLINED };
        (*raw).per_dir_config = copy;
        match sys::ap_directory_walk(raw) {
            0 => sys::ap_file_walk(raw),
            status => status,
        }
    }
}
