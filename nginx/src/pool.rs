//! Rust values and bytes in nginx's pools.
#![allow(unsafe_code)]

use crate::guard::callback;
use crate::sys;
use std::ffi::{CStr, c_void};
use std::marker::PhantomData;

/// A pool that lives at least as long as `'p`.
#[derive(Clone, Copy)]
pub struct Pool<'p> {
    raw: *mut sys::ngx_pool_t,
    _life: PhantomData<&'p ()>,
}

impl<'p> Pool<'p> {
    /// # Safety
    /// nginx guarantees that `raw` is a live pool during `'p` (it passes pools to callbacks for their duration).
    pub unsafe fn new(raw: *mut sys::ngx_pool_t) -> Pool<'p> {
        Pool { raw, _life: PhantomData }
    }

    pub fn raw(self) -> *mut sys::ngx_pool_t {
        self.raw
    }

    /// Moves `value` into the pool: it is dropped when the pool is destroyed. `None` when there is no memory.
    pub fn own<T>(self, value: T) -> Option<*mut T> {
        unsafe extern "C" fn drop_box<T>(p: *mut c_void) {
            // SAFETY: `p` came from Box::into_raw below, and nginx runs a cleanup once.
            callback("a pool cleanup", (), || drop(unsafe { Box::from_raw(p.cast::<T>()) }));
        }
        // SAFETY: the pool is live; the record it gives is ours to fill.
        unsafe {
            let cleanup = sys::ngx_pool_cleanup_add(self.raw, 0);
            if cleanup.is_null() {
                return None;
            }
            let p = Box::into_raw(Box::new(value));
            (*cleanup).handler = Some(drop_box::<T>);
            (*cleanup).data = p.cast();
            Some(p)
        }
    }

    /// Memory for a value of nginx's, all zero; null when there is none.
    pub fn zeroed<T>(self) -> *mut T {
        // SAFETY: the pool is live; its memory is aligned for any of nginx's structures.
        unsafe { sys::ngx_pcalloc(self.raw, size_of::<T>()).cast() }
    }

    /// `n` bytes; null when there is no memory.
    pub fn bytes(self, n: usize) -> *mut u8 {
        // SAFETY: the pool is live.
        unsafe { sys::ngx_pnalloc(self.raw, n).cast() }
    }

    /// A copy of `text` with a NUL behind it; `None` when there is no memory.
    pub fn string(self, text: &[u8]) -> Option<sys::ngx_str_t> {
        let p = self.bytes(text.len() + 1);
        if p.is_null() {
            return None;
        }
        // SAFETY: `p` has room for the text and one byte more.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), p, text.len());
            *p.add(text.len()) = 0;
        }
        Some(sys::ngx_str_t { len: text.len(), data: p })
    }
}

/// The bytes of one of nginx's strings; callers bind the result to the life of the object they read it from.
pub fn bytes<'a>(s: &sys::ngx_str_t) -> &'a [u8] {
    if s.data.is_null() || s.len == 0 {
        return &[];
    }
    // SAFETY: nginx's strings are `len` readable bytes in the pool of the object they belong to.
    unsafe { std::slice::from_raw_parts(s.data, s.len) }
}

/// A string of nginx's that is constant. Much of nginx compares such strings up to a NUL.
pub const fn constant(text: &'static CStr) -> sys::ngx_str_t {
    sys::ngx_str_t { len: text.count_bytes(), data: text.as_ptr().cast_mut().cast() }
}
