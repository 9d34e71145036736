//! Rust values in httpd's pools, and the few string helpers that need a pool.
#![allow(unsafe_code)]

use crate::sys;
use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomData;

/// A pool that lives at least as long as `'p`.
#[derive(Clone, Copy)]
pub struct Pool<'p> {
    raw: *mut sys::apr_pool_t,
    _life: PhantomData<&'p ()>,
}

impl<'p> Pool<'p> {
    /// # Safety
    /// httpd guarantees that `raw` is a live pool during `'p` (it passes pools to callbacks for their duration).
    pub unsafe fn new(raw: *mut sys::apr_pool_t) -> Pool<'p> {
        Pool { raw, _life: PhantomData }
    }

    pub fn raw(self) -> *mut sys::apr_pool_t {
        self.raw
    }

    /// Moves `value` into the pool: it is dropped when the pool is cleared. The pointer is valid until then.
    pub fn own<T>(self, value: T) -> *mut T {
        unsafe extern "C" fn drop_box<T>(p: *mut c_void) -> sys::apr_status_t {
            crate::guard::callback("a pool cleanup", 0, || {
                // SAFETY: `p` came from Box::into_raw below, and httpd runs a cleanup once.
                drop(unsafe { Box::from_raw(p.cast::<T>()) });
                0
            })
        }
        let p = Box::into_raw(Box::new(value));
        // SAFETY: the pool is live; the cleanup's argument is the box it drops. A child process after fork runs no
        // child cleanup (exec'd children do not share memory).
        unsafe {
            sys::apr_pool_cleanup_register(self.raw, p.cast(), Some(drop_box::<T>), Some(sys::apr_pool_cleanup_null));
        }
        p
    }

    /// A copy of a plain value in the pool, which needs no cleanup.
    pub fn place<T: Copy>(self, value: T) -> *mut T {
        const { assert!(align_of::<T>() <= 8) };
        // SAFETY: the pool is live and gives memory that is aligned to 8 bytes (httpd aborts without memory).
        unsafe {
            let p = sys::apr_palloc(self.raw, size_of::<T>()).cast::<T>();
            p.write(value);
            p
        }
    }

    /// A NUL-terminated copy of `text` in the pool; bytes from a NUL on are cut.
    pub fn c_string(self, text: &[u8]) -> *mut c_char {
        let len = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        // SAFETY: the pool is live; `len` bytes of `text` are readable. apr_pstrmemdup adds the NUL.
        unsafe { sys::apr_pstrmemdup(self.raw, text.as_ptr().cast(), len) }
    }

    /// `path` below the server's run-time directory, or itself when absolute.
    pub fn runtime_path(self, path: &str) -> Option<String> {
        let c = CString::new(path).ok()?;
        // SAFETY: pool and string are live; the result lies in the pool or is null.
        let p = unsafe { sys::ap_runtime_dir_relative(self.raw, c.as_ptr()) };
        c_str(p).map(|b| String::from_utf8_lossy(b).into_owned())
    }

    /// Compiles a regular expression that lives as long as the pool; `None` for a wrong one.
    pub fn regex(self, pattern: &str) -> Option<usize> {
        let c = CString::new(pattern).ok()?;
        // SAFETY: pool and string are live; the result lies in the pool or is null.
        let p = unsafe { sys::ap_pregcomp(self.raw, c.as_ptr(), sys::AP_REG_EXTENDED as _) };
        (!p.is_null()).then_some(p as usize)
    }
}

/// Bytes of a C string that httpd owns; `None` for null.
pub fn c_str<'a>(p: *const c_char) -> Option<&'a [u8]> {
    if p.is_null() {
        return None;
    }
    // SAFETY: httpd's strings are NUL-terminated and live in the pool of the object they were read from; callers bind
    // the result to that object's lifetime.
    Some(unsafe { CStr::from_ptr(p) }.to_bytes())
}
