//! A view on nginx's request.
#![allow(unsafe_code)]

use crate::config::{Location, Main};
use crate::pool::{Pool, bytes};
use crate::sys;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

/// A request during one callback.
#[derive(Clone, Copy)]
pub struct Request<'r> {
    raw: *mut sys::ngx_http_request_t,
    _life: PhantomData<&'r ()>,
}

impl<'r> Request<'r> {
    /// # Safety
    /// nginx guarantees that `raw` is a live request during `'r`: it passes requests to callbacks for their duration.
    pub unsafe fn new(raw: *mut sys::ngx_http_request_t) -> Request<'r> {
        Request { raw, _life: PhantomData }
    }

    pub fn raw(&self) -> *mut sys::ngx_http_request_t {
        self.raw
    }

    fn rec(&self) -> &'r sys::ngx_http_request_t {
        // SAFETY: live for 'r; callers keep no reference across a call into nginx that changes the request.
        unsafe { &*self.raw }
    }

    pub fn pool(&self) -> Pool<'r> {
        // SAFETY: a request's pool lives as long as the request.
        unsafe { Pool::new(self.rec().pool) }
    }

    pub fn log(&self) -> *mut sys::ngx_log_t {
        // SAFETY: a request has a connection, and that a log.
        unsafe { (*self.rec().connection).log }
    }

    /// Settings of the http block, which outlive the request.
    pub fn main(&self) -> &'r Main {
        // SAFETY: nginx has made the slot by `create_main`; nobody changes it while requests are served.
        unsafe { &*sys::mwr_main_conf_of(self.raw, crate::http_module()).cast::<Main>() }
    }

    /// Settings of the location, which outlive the request.
    pub fn location(&self) -> &'r Location {
        // SAFETY: nginx has made the slot of every location by `create_location`.
        unsafe { &*sys::mwr_loc_conf(self.raw, crate::http_module()).cast::<Location>() }
    }

    pub fn upstream(&self) -> *mut sys::ngx_http_upstream_t {
        self.rec().upstream
    }

    /// The method the application is asked with.
    pub fn method(&self) -> &'r [u8] {
        self.asked_method().unwrap_or(bytes(&self.rec().method_name))
    }

    /// The application is asked for a head alone; for the cache it is asked for the whole.
    pub fn is_head(&self) -> bool {
        self.rec().method == sys::NGX_HTTP_HEAD as sys::ngx_uint_t && self.asked_method().is_none()
    }

    /// The method that nginx has the application asked with in place of the client's.
    fn asked_method(&self) -> Option<&'r [u8]> {
        // SAFETY: null, or the request's own upstream.
        unsafe { self.rec().upstream.as_ref() }.map(|u| bytes(&u.method)).filter(|m| !m.is_empty())
    }

    /// A method that nginx takes for repeatable.
    pub fn is_idempotent(&self) -> bool {
        let not = sys::NGX_HTTP_POST | sys::NGX_HTTP_LOCK | sys::NGX_HTTP_PATCH;
        self.rec().method & not as sys::ngx_uint_t == 0
    }

    pub fn is_main(&self) -> bool {
        std::ptr::eq(self.rec().main, self.raw)
    }

    /// The path, decoded and normal.
    pub fn uri(&self) -> &'r [u8] {
        bytes(&self.rec().uri)
    }

    /// The request line's target still names what is asked for: no subrequest, no internal redirect.
    pub fn is_target_current(&self) -> bool {
        self.rec().valid_unparsed_uri() != 0
    }

    /// The target of the request line, untouched.
    pub fn target(&self) -> &'r [u8] {
        bytes(&self.rec().unparsed_uri)
    }

    pub fn args(&self) -> &'r [u8] {
        bytes(&self.rec().args)
    }

    pub fn protocol(&self) -> &'r [u8] {
        bytes(&self.rec().http_protocol)
    }

    pub fn is_tls(&self) -> bool {
        // SAFETY: a live request.
        unsafe { sys::mwr_is_tls(self.raw) != 0 }
    }

    /// Request header fields in order: hash of the name in lower case, name, value.
    pub fn headers(&self) -> impl Iterator<Item = (usize, &'r [u8], &'r [u8])> + use<'r> {
        let mut part: *const sys::ngx_list_part_t = &raw const self.rec().headers_in.headers.part;
        let mut at = 0;
        std::iter::from_fn(move || {
            loop {
                // SAFETY: nginx's list: parts of `nelts` elements each, the last one's `next` is null.
                unsafe {
                    let p = part.as_ref()?;
                    if at < p.nelts {
                        let h = &*p.elts.cast::<sys::ngx_table_elt_t>().add(at);
                        at += 1;
                        if h.hash == 0 {
                            // Removed by another module.
                            continue;
                        }
                        return Some((h.hash, bytes(&h.key), bytes(&h.value)));
                    }
                    part = p.next;
                    at = 0;
                }
            }
        })
    }

    pub fn content_type(&self) -> Option<&'r [u8]> {
        // SAFETY: null or a field of the request's.
        unsafe { self.rec().headers_in.content_type.as_ref() }.map(|h| bytes(&h.value))
    }

    /// Length the client has announced, or that of the body read; -1 for none.
    pub fn content_length(&self) -> i64 {
        self.rec().headers_in.content_length_n
    }

    pub fn is_chunked(&self) -> bool {
        self.rec().headers_in.chunked() != 0
    }

    /// The name the client asked for, else the server's own.
    pub fn host(&self) -> &'r [u8] {
        let asked = bytes(&self.rec().headers_in.server);
        if !asked.is_empty() {
            return asked;
        }
        // SAFETY: nginx has made the core's settings of every server.
        unsafe {
            let core = *self.rec().srv_conf.add(sys::ngx_http_core_module.ctx_index);
            bytes(&(*core.cast::<sys::ngx_http_core_srv_conf_t>()).server_name)
        }
    }

    /// The location's document root.
    pub fn root(&self) -> &'r [u8] {
        // SAFETY: nginx has made the core's settings of every location.
        unsafe {
            let core = sys::mwr_loc_conf(self.raw, &raw mut sys::ngx_http_core_module);
            bytes(&(*core.cast::<sys::ngx_http_core_loc_conf_t>()).root)
        }
    }

    pub fn remote_addr(&self) -> &'r [u8] {
        // SAFETY: a request's connection outlives it; realip changes the text in place.
        unsafe { bytes(&(*self.rec().connection).addr_text) }
    }

    pub fn remote_port(&self) -> u16 {
        // SAFETY: as above; the address is null or of its family's size.
        unsafe { sys::mwr_port((*self.rec().connection).sockaddr) as u16 }
    }

    /// The address and port the client connected to; the text is written into `text`.
    pub fn local<'t>(&self, text: &'t mut [u8; 64]) -> (&'t [u8], u16) {
        let mut s = sys::ngx_str_t { len: text.len(), data: text.as_mut_ptr() };
        // SAFETY: a live connection; nginx writes at most `len` bytes of text (its own longest is 63 with a port).
        unsafe {
            let c = self.rec().connection;
            if sys::ngx_connection_local_sockaddr(c, &raw mut s, 0) != 0 {
                return (&[], 0);
            }
            (&text[..s.len.min(text.len())], sys::mwr_port((*c).local_sockaddr) as u16)
        }
    }

    /// Number of the client's connection, as nginx's messages show it, and of the request on it.
    pub fn number(&self) -> (u64, u64) {
        // SAFETY: a request's connection outlives it.
        unsafe { ((*self.rec().connection).number, (*self.rec().connection).requests as u64) }
    }

    /// When the request came, microseconds since the epoch.
    pub fn start(&self) -> u64 {
        // SAFETY: a live request.
        unsafe { sys::mwr_request_start(self.raw) }
    }

    /// The value of a compiled text with variables; `None` when there is no memory.
    pub fn value(&self, v: *mut sys::ngx_http_complex_value_t) -> Option<&'r [u8]> {
        let mut s = sys::ngx_str_t { len: 0, data: std::ptr::null_mut() };
        // SAFETY: a live request; the value was compiled into the configuration's pool.
        let rc = unsafe { sys::ngx_http_complex_value(self.raw, v, &raw mut s) };
        (rc == 0).then(|| bytes(&s))
    }

    /// nginx has begun to read the body, or to drop it.
    pub fn has_body_record(&self) -> bool {
        !self.rec().request_body.is_null() || self.rec().discard_body() != 0
    }

    /// The client may be waiting for `100 Continue`.
    pub fn awaits_continue(&self) -> bool {
        let r = self.rec();
        !r.headers_in.expect.is_null() && r.expect_tested() == 0 && r.stream.is_null()
    }

    /// The connection is not kept, and what the client sends on it is read for a while and dropped.
    pub fn close_after(&self) {
        // SAFETY: a live request.
        unsafe {
            (*self.raw).set_keepalive(0);
            (*self.raw).set_lingering_close(1);
        }
    }

    /// Has nginx drop the body, of which nothing has been read.
    pub fn discard_body(&self) {
        // SAFETY: a live request. The client is not asked for what will be dropped.
        unsafe {
            (*self.raw).set_expect_tested(1);
            if self.rec().keepalive() == 0 && self.rec().stream.is_null() {
                // The lingering end of the connection does it.
                return;
            }
            if sys::ngx_http_discard_request_body(self.raw) != 0 {
                (*self.raw).set_keepalive(0);
            }
        }
    }

    /// What has been read of a body is not there any more for whoever serves the request next, and the client need not
    /// hurry with the rest.
    pub fn forget_body(&self) {
        // SAFETY: a live request; its body's record is null or nginx's, its connection outlives it.
        unsafe {
            if let Some(body) = (*self.raw).request_body.as_mut() {
                body.bufs = std::ptr::null_mut();
            }
            if self.rec().reading_body() != 0 {
                sys::mwr_del_timer((*self.rec().connection).read);
            }
        }
    }

    /// Whether the body that came with the client's request belongs to this one. Of the subrequests only those that repeat
    /// the request (mirror, a background update of the cache) have its method.
    pub fn has_body(&self) -> bool {
        let conf = &self.location().upstream;
        let bodiless = (sys::NGX_HTTP_GET | sys::NGX_HTTP_HEAD) as sys::ngx_uint_t;
        conf.pass_request_body != 0 && (self.is_main() || self.rec().method & bodiless == 0)
    }

    /// The value of a variable of nginx's by its index, when it has one.
    pub fn variable(&self, index: sys::ngx_int_t) -> Option<&'r [u8]> {
        // SAFETY: a live request, and an index that nginx has given for this configuration; the value lives as long as the
        // request, or there is none.
        unsafe {
            let v = sys::ngx_http_get_flushed_variable(self.raw, index as sys::ngx_uint_t).as_ref()?;
            if v.valid() == 0 || v.not_found() != 0 || v.len() == 0 {
                return None;
            }
            Some(std::slice::from_raw_parts(v.data, v.len() as usize))
        }
    }

    /// The buffers of the body that has been read.
    pub fn body(&self) -> Body<'r> {
        // SAFETY: null, or the record nginx has filled while it read the body.
        let body = unsafe { self.rec().request_body.as_ref() };
        let Some(body) = body.filter(|_| self.has_body()) else { return Body::Memory(Vec::new()) };
        // SAFETY: null, or the temporary file of the body.
        if let Some(file) = unsafe { body.temp_file.as_ref() }
            && file.file.fd >= 0
        {
            return Body::File(file.file.fd, file.offset.max(0) as u64);
        }
        let mut pieces = Vec::new();
        let mut link = body.bufs;
        // SAFETY: a null-terminated chain of buffers in the request's pool.
        while let Some(l) = unsafe { link.as_ref() } {
            // SAFETY: every link has a buffer.
            let b = unsafe { &*l.buf };
            if b.in_file() == 0 && !b.pos.is_null() {
                // SAFETY: a buffer's content is what lies between its two pointers.
                pieces.push(unsafe { std::slice::from_raw_parts(b.pos, b.last.offset_from_unsigned(b.pos)) });
            }
            link = l.next;
        }
        Body::Memory(pieces)
    }

    /// Writes a body that nginx has kept in memory to a temporary file of its own, which lives as long as the request.
    pub fn body_to_file(&self) -> std::io::Result<BorrowedFd<'r>> {
        let file = self.pool().zeroed::<sys::ngx_temp_file_t>();
        // SAFETY: a live request whose body has been read; the record is ours, filled as nginx itself fills it for a body,
        // and nginx closes the file with the request's pool.
        unsafe {
            let Some(file) = file.as_mut() else { return Err(std::io::ErrorKind::OutOfMemory.into()) };
            let core = sys::mwr_loc_conf(self.raw, &raw mut sys::ngx_http_core_module);
            file.file.fd = -1;
            file.file.log = self.log();
            file.path = (*core.cast::<sys::ngx_http_core_loc_conf_t>()).client_body_temp_path;
            file.pool = self.rec().pool;
            if sys::ngx_write_chain_to_temp_file(file, (*self.rec().request_body).bufs) < 0 || file.file.fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(BorrowedFd::borrow_raw(file.file.fd))
        }
    }

    /// The client's socket; `None` where several streams share it.
    pub fn client_fd(&self) -> Option<BorrowedFd<'r>> {
        // SAFETY: a request's connection and its socket outlive it.
        unsafe {
            let fd = (*self.rec().connection).fd;
            (self.rec().stream.is_null() && fd >= 0).then(|| BorrowedFd::borrow_raw(fd))
        }
    }

    /// Only the end of the connection tells where a body without a length ends.
    pub fn is_delimited_by_close(&self) -> bool {
        self.rec().http_version < sys::NGX_HTTP_VERSION_11 as sys::ngx_uint_t
    }

    /// The answer goes into memory, for another module (auth_request, ssi).
    pub fn is_in_memory(&self) -> bool {
        self.rec().subrequest_in_memory() != 0
    }

    /// Adds a field to the answer's head; null when there is no memory.
    pub fn add_header(&self, name: &'static CStr, value: &[u8]) -> *mut sys::ngx_table_elt_t {
        let Some(value) = self.pool().string(value) else { return std::ptr::null_mut() };
        // SAFETY: a live request; nginx gives an element of the list to fill, or null. All its fields are set.
        unsafe {
            let h = sys::ngx_list_push(&raw mut (*self.raw).headers_out.headers).cast::<sys::ngx_table_elt_t>();
            if !h.is_null() {
                std::ptr::write_bytes(h, 0, 1);
                (*h).hash = 1;
                (*h).key = crate::pool::constant(name);
                (*h).value = value;
            }
            h
        }
    }
}

/// A request's body.
pub enum Body<'r> {
    Memory(Vec<&'r [u8]>),
    /// nginx's temporary file and its length.
    File(std::ffi::c_int, u64),
}
