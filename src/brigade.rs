//! Bucket brigades: what goes to the client, and the request body that comes from it.
#![allow(unsafe_code)]

use crate::request::Request;
use crate::sys;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Why nothing more can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The client's connection cannot take any more.
    Disconnected,
    /// A filter has sent another answer in place of this one, such as 416 for a range outside the body.
    Replaced,
}

/// Why a request body could not be read: the HTTP status to answer, 0 when the client has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyError(pub u16);

/// What a read of the request body gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Bytes, not the last.
    Some,
    /// The body is complete; the last bytes may have come with it.
    End,
    /// No bytes yet.
    Nothing,
}

/// Bytes of a file read at a time where sendfile is off: as many as httpd writes in one go.
const FILE_READ: usize = 64 * 1024;

/// One brigade of a request, reused for each pass.
pub struct Brigade<'r> {
    r: Request<'r>,
    bb: *mut sys::apr_bucket_brigade,
}

impl<'r> Brigade<'r> {
    pub fn new(r: Request<'r>) -> Brigade<'r> {
        // SAFETY: pool and allocator of a live request; the brigade lies in that pool.
        let bb = unsafe { sys::apr_brigade_create(r.pool().raw(), r.bucket_alloc()) };
        Brigade { r, bb }
    }

    fn push(&mut self, b: *mut sys::apr_bucket) {
        // SAFETY: `b` was just created with this connection's allocator and is in no other brigade.
        unsafe { sys::mwr_insert_tail(self.bb, b) }
    }

    /// Appends bytes that stay valid until the pass (filters that keep them copy them).
    pub fn data(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            // SAFETY: a transient bucket; whoever keeps it beyond the pass sets it aside, which copies.
            let b =
                unsafe { sys::apr_bucket_transient_create(bytes.as_ptr().cast(), bytes.len(), self.r.bucket_alloc()) };
            self.push(b);
        }
    }

    /// Appends a copy of bytes that will be gone before the pass.
    pub fn data_copied(&mut self, bytes: &[u8]) {
        // SAFETY: a heap bucket without a free function copies the bytes.
        let b = unsafe { sys::apr_bucket_heap_create(bytes.as_ptr().cast(), bytes.len(), None, self.r.bucket_alloc()) };
        self.push(b);
    }

    /// Appends a part of a file. It is never mapped into memory.
    pub fn file(&mut self, fd: OwnedFd, offset: u64, len: u64) -> std::io::Result<()> {
        let failed = |rv: sys::apr_status_t| std::io::Error::from_raw_os_error(rv);
        let mut flags = sys::APR_FOPEN_READ as i32;
        if self.r.sendfile_enabled() {
            flags |= sys::APR_FOPEN_SENDFILE_ENABLED as i32;
        }
        let pool = self.r.pool().raw();
        let mut raw = fd.as_fd().as_raw_fd();
        let (mut f, mut g) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: live pool; apr_os_file_put takes no ownership of the descriptor, so apr_file_dup makes APR's own one,
        // with APR's own cleanup (it moves with the bucket when filters set it aside). Ours closes when `fd` drops.
        unsafe {
            let rv = sys::apr_os_file_put(&mut f, &mut raw, flags, pool);
            if rv != 0 {
                return Err(failed(rv));
            }
            let rv = sys::apr_file_dup(&mut g, f, pool);
            if rv != 0 {
                return Err(failed(rv));
            }
            let alloc = self.r.bucket_alloc();
            let b = sys::apr_bucket_file_create(g, offset as sys::apr_off_t, len as usize, pool, alloc);
            // A mapped file that is truncated by its owner would end httpd by SIGBUS.
            sys::apr_bucket_file_enable_mmap(b, 0);
            sys::mwr_file_read_size(b, FILE_READ);
            self.push(b);
        }
        Ok(())
    }

    pub fn eos(&mut self) {
        // SAFETY: live allocator.
        let b = unsafe { sys::apr_bucket_eos_create(self.r.bucket_alloc()) };
        self.push(b);
    }

    pub fn flush(&mut self) {
        // SAFETY: live allocator.
        let b = unsafe { sys::apr_bucket_flush_create(self.r.bucket_alloc()) };
        self.push(b);
    }

    /// An aborted response, as the protocol filters understand it: error 502 and end of stream. Where the head has gone
    /// out, the chunk filter withholds the last chunk and HTTP/2 resets the stream; else the client gets the page of
    /// that status. An end-of-connection bucket would make the header filter send nothing at all.
    pub fn abort(&mut self) {
        // SAFETY: live pool and allocator.
        unsafe {
            let (alloc, pool) = (self.r.bucket_alloc(), self.r.pool().raw());
            let b = sys::ap_bucket_error_create(sys::HTTP_BAD_GATEWAY as i32, std::ptr::null(), pool, alloc);
            self.push(b);
        }
        self.eos();
    }

    /// Hands everything to the output filters.
    pub fn pass(&mut self) -> Result<(), Stopped> {
        // SAFETY: live request and brigade; the filters consume or keep the buckets, the cleanup drops the rest.
        let rv = unsafe {
            let rv = sys::ap_pass_brigade(self.r.output_filters(), self.bb);
            sys::apr_brigade_cleanup(self.bb.cast());
            rv
        };
        match rv {
            0 if !self.r.is_aborted() => Ok(()),
            sys::AP_FILTER_ERROR if !self.r.is_aborted() => Err(Stopped::Replaced),
            _ => Err(Stopped::Disconnected),
        }
    }

    /// Lets the core filter write what it holds, without blocking: they take a null brigade for that (as the
    /// event MPM's write completion does).
    pub fn nudge(&mut self) -> Result<(), Stopped> {
        let f = self.r.core_output_filter();
        if f.is_null() {
            return Ok(());
        }
        // SAFETY: a live filter and its record; out_func is set for output filters.
        let rv = unsafe {
            match (*(*f).frec).filter_func.out_func {
                Some(out) => out(f, std::ptr::null_mut()),
                None => 0,
            }
        };
        // "Would block" only says that the client is still behind.
        if self.r.is_aborted() || (rv != 0 && rv != libc::EAGAIN) { Err(Stopped::Disconnected) } else { Ok(()) }
    }

    /// Reads the next piece of the request body, at most `max` bytes asked of the filters, and gives it to `take`.
    /// Without `block`, [`Piece::Nothing`] when the client has sent nothing (more) yet.
    pub fn read(
        &mut self,
        max: usize,
        block: bool,
        mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<std::io::Result<Piece>, BodyError> {
        let how = if block { sys::APR_BLOCK_READ } else { sys::APR_NONBLOCK_READ };
        // SAFETY: live request and brigade.
        let rv = unsafe {
            sys::ap_get_brigade(self.r.input_filters(), self.bb, sys::AP_MODE_READBYTES, how, max as sys::apr_off_t)
        };
        if !block && rv == libc::EAGAIN {
            return Ok(Ok(Piece::Nothing));
        }
        if rv != 0 {
            return Err(self.body_error(rv));
        }
        let mut done = Piece::Nothing;
        let mut kept = Ok(());
        let mut b = std::ptr::null_mut();
        loop {
            // SAFETY: walks the brigade that ap_get_brigade filled; buckets live until the cleanup below.
            b = unsafe { sys::mwr_next(self.bb, b) };
            if b.is_null() {
                break;
            }
            // SAFETY: as above.
            if unsafe { sys::mwr_is_eos(b) != 0 } {
                done = Piece::End;
                break;
            }
            // SAFETY: as above.
            if unsafe { sys::mwr_is_metadata(b) != 0 } {
                continue;
            }
            let (mut data, mut len) = (std::ptr::null(), 0usize);
            // SAFETY: as above; data and len describe memory that lives until the bucket is destroyed.
            let rv = unsafe { sys::mwr_bucket_read(b, &mut data, &mut len) };
            if rv != 0 {
                // SAFETY: live brigade.
                unsafe { sys::apr_brigade_cleanup(self.bb.cast()) };
                return Err(self.body_error(rv));
            }
            if len > 0 && kept.is_ok() {
                done = Piece::Some;
                // SAFETY: see above.
                kept = take(unsafe { std::slice::from_raw_parts(data.cast(), len) });
            }
        }
        // SAFETY: live brigade.
        unsafe { sys::apr_brigade_cleanup(self.bb.cast()) };
        Ok(kept.map(|()| done))
    }

    fn body_error(&self, rv: sys::apr_status_t) -> BodyError {
        if self.r.is_aborted() {
            return BodyError(0);
        }
        // SAFETY: a pure function of the two numbers.
        let status = unsafe { sys::ap_map_http_request_error(rv, sys::HTTP_BAD_REQUEST as i32) };
        BodyError(u16::try_from(status).ok().filter(|s| *s >= 400).unwrap_or(400))
    }
}
