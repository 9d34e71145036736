//! A view on one `request_rec` and its connection; the only code that reads or writes them.
#![allow(unsafe_code)]

use crate::pool::{Pool, c_str};
use crate::sys;
use mod_wsgi_core::exchange::ClientWatch;
use std::ffi::{CStr, CString, c_int, c_void};
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

/// A request for the duration of a hook or handler call.
#[derive(Clone, Copy)]
pub struct Request<'r> {
    raw: *mut sys::request_rec,
    _life: PhantomData<&'r ()>,
}

impl<'r> Request<'r> {
    /// # Safety
    /// httpd passes a live `request_rec` to hooks and handlers, valid until they return.
    pub unsafe fn new(raw: *mut sys::request_rec) -> Request<'r> {
        Request { raw, _life: PhantomData }
    }

    pub fn raw(&self) -> *mut sys::request_rec {
        self.raw
    }

    /// The structure itself.
    fn rec(&self) -> &'r sys::request_rec {
        // SAFETY: live for 'r by the contract of `new`. Fields are written through raw pointers only, and by this
        // thread only (httpd: a request belongs to one thread).
        unsafe { &*self.raw }
    }

    fn conn(&self) -> &'r sys::conn_rec {
        // SAFETY: a request's connection outlives it.
        unsafe { &*self.rec().connection }
    }

    pub fn pool(&self) -> Pool<'r> {
        // SAFETY: a request's pool lives as long as the request.
        unsafe { Pool::new(self.rec().pool) }
    }

    pub fn logs(&self, index: c_int, level: c_int) -> bool {
        // SAFETY: live request; the shim only reads its log configuration.
        unsafe { sys::mwr_logs_r(self.raw, index, level) != 0 }
    }

    pub fn handler(&self) -> Option<&'r [u8]> {
        c_str(self.rec().handler)
    }
    pub fn uri(&self) -> &'r [u8] {
        c_str(self.rec().uri).unwrap_or_default()
    }
    pub fn path_info(&self) -> &'r [u8] {
        c_str(self.rec().path_info).unwrap_or_default()
    }
    pub fn args(&self) -> &'r [u8] {
        c_str(self.rec().args).unwrap_or_default()
    }
    pub fn filename(&self) -> &'r [u8] {
        c_str(self.rec().filename).unwrap_or_default()
    }
    pub fn method(&self) -> &'r [u8] {
        c_str(self.rec().method).unwrap_or_default()
    }
    pub fn protocol(&self) -> &'r [u8] {
        c_str(self.rec().protocol).unwrap_or_default()
    }
    pub fn user(&self) -> Option<&'r [u8]> {
        c_str(self.rec().user)
    }
    pub fn auth_type(&self) -> Option<&'r [u8]> {
        c_str(self.rec().ap_auth_type)
    }
    /// The request's id in the error log (`%L`), made now if nothing has been logged yet.
    pub fn log_id(&self) -> Option<&'r [u8]> {
        if self.rec().log_id.is_null() {
            // SAFETY: this thread's live request and its connection; the hook's id lies in the request's pool.
            unsafe { sys::ap_run_generate_log_id(self.rec().connection, self.raw, &raw mut (*self.raw).log_id) };
        }
        c_str(self.rec().log_id)
    }
    /// The connection's id in the error log, if anything has been logged about it.
    pub fn connection_log_id(&self) -> Option<&'r [u8]> {
        c_str(self.conn().log_id)
    }
    /// CGIPassAuth of the request's place.
    pub fn cgi_passes_authorization(&self) -> bool {
        // SAFETY: live request, read only.
        unsafe { sys::mwr_cgi_passes_authorization(self.raw) != 0 }
    }
    /// The request line as it came.
    pub fn the_request(&self) -> &'r [u8] {
        c_str(self.rec().the_request).unwrap_or_default()
    }
    /// The target of the request line, untouched.
    pub fn raw_target(&self) -> &'r [u8] {
        let mut words = self.the_request().split(|b| *b == b' ').filter(|w| !w.is_empty());
        words.next();
        words.next().unwrap_or_default()
    }
    /// Answers with a short body of this module's own.
    pub fn answer(&self, kind: &'static CStr, body: &[u8]) -> c_int {
        // SAFETY: this thread's live request before its first output; httpd copies what it needs of the body.
        unsafe {
            sys::ap_set_content_type(self.raw, kind.as_ptr());
            sys::ap_set_content_length(self.raw, body.len() as sys::apr_off_t);
            sys::ap_rwrite(body.as_ptr().cast(), body.len() as c_int, self.raw);
        }
        sys::OK as c_int
    }
    /// Status of the response, for the log.
    pub fn status(&self) -> i32 {
        self.rec().status
    }
    /// Bytes of the response's body that went to the connection, for the log.
    pub fn bytes_sent(&self) -> i64 {
        self.rec().bytes_sent
    }
    /// When the request came, in local time as RFC 3339 writes it, with milliseconds.
    pub fn time_stamp(&self) -> String {
        // SAFETY: an all-zero record is valid (integers and null pointers), and APR fills it.
        let t = unsafe {
            let mut t: sys::apr_time_exp_t = std::mem::zeroed();
            sys::ap_explode_recent_localtime(&raw mut t, self.rec().request_time);
            t
        };
        let (sign, offset) = (if t.tm_gmtoff < 0 { '-' } else { '+' }, t.tm_gmtoff.unsigned_abs() / 60);
        let date = format!("{:04}-{:02}-{:02}", t.tm_year + 1900, t.tm_mon + 1, t.tm_mday);
        let time = format!("{:02}:{:02}:{:02}.{:03}", t.tm_hour, t.tm_min, t.tm_sec, t.tm_usec / 1000);
        format!("{date}T{time}{sign}{:02}:{:02}", offset / 60, offset % 60)
    }
    pub fn header_only(&self) -> bool {
        self.rec().header_only != 0
    }
    /// HTTP/1.1 is 1001.
    pub fn proto_num(&self) -> c_int {
        self.rec().proto_num
    }
    /// A subrequest, or the GET that an ErrorDocument or an internal redirect made of another request: the body, and the
    /// fields that describe it, belong to the request before. A rewritten GET keeps its own.
    pub fn has_no_body_of_its_own(&self) -> bool {
        let r = self.rec();
        // SAFETY: null, or the request that was redirected to this one, which lives as long.
        let became_get = unsafe { r.prev.as_ref() }.is_some_and(|prev| {
            r.method_number == sys::M_GET as c_int && (prev.method_number != r.method_number || prev.status >= 400)
        });
        !r.main.is_null() || became_get
    }
    /// The request that an internal redirect replaced by this one.
    pub fn previous(&self) -> Option<Request<'r>> {
        let raw = self.rec().prev;
        // SAFETY: an earlier request of the chain outlives the later one.
        (!raw.is_null()).then(|| unsafe { Request::new(raw) })
    }
    /// Microseconds since the epoch.
    pub fn request_time(&self) -> i64 {
        self.rec().request_time
    }
    /// Modification time of the file, microseconds since the epoch (from httpd's own stat).
    pub fn mtime(&self) -> i64 {
        self.rec().finfo.mtime
    }
    pub fn is_file(&self) -> bool {
        self.rec().finfo.filetype == sys::APR_REG
    }
    pub fn is_dir(&self) -> bool {
        self.rec().finfo.filetype == sys::APR_DIR
    }
    pub fn exists(&self) -> bool {
        self.rec().finfo.filetype != sys::APR_NOFILE
    }
    pub fn rejects_path_info(&self) -> bool {
        // SAFETY: live request, read only.
        unsafe { sys::mwr_rejects_path_info(self.raw) != 0 }
    }
    pub fn may_execute(&self) -> bool {
        // SAFETY: live request, read only.
        unsafe { sys::ap_allow_options(self.raw) & sys::OPT_EXECCGI as c_int != 0 }
    }

    /// SERVER_NAME by the rules of UseCanonicalName, HTML-escaped as mod_cgi does.
    pub fn server_name(&self) -> &'r [u8] {
        // SAFETY: live request; results lie in its pool.
        unsafe {
            let name = sys::ap_get_server_name(self.raw);
            let bytes = c_str(name).unwrap_or_default();
            if bytes.iter().any(|b| b"<>&\"".contains(b)) {
                return c_str(sys::ap_escape_html2(self.rec().pool, name, 0)).unwrap_or_default();
            }
            bytes
        }
    }
    pub fn server_port(&self) -> u16 {
        // SAFETY: live request, read only.
        unsafe { sys::ap_get_server_port(self.raw) }
    }
    pub fn server_admin(&self) -> Option<&'r [u8]> {
        // SAFETY: a request's server outlives it.
        c_str(unsafe { (*self.rec().server).server_admin })
    }
    pub fn server_hostname(&self) -> Option<&'r [u8]> {
        // SAFETY: a request's server outlives it.
        c_str(unsafe { (*self.rec().server).server_hostname })
    }
    /// ServerName and port as configured; nothing of the client's takes part.
    pub fn configured_name(&self) -> (String, u16) {
        // SAFETY: a request's server outlives it.
        let s = unsafe { &*self.rec().server };
        (String::from_utf8_lossy(c_str(s.server_hostname).unwrap_or_default()).into_owned(), s.port)
    }
    pub fn server(&self) -> *mut sys::server_rec {
        self.rec().server
    }
    pub fn hostname(&self) -> Option<&'r [u8]> {
        c_str(self.rec().hostname)
    }
    pub fn document_root(&self) -> &'r [u8] {
        // SAFETY: live request; the string belongs to the configuration.
        c_str(unsafe { sys::ap_document_root(self.raw) }).unwrap_or_default()
    }
    pub fn context_prefix(&self) -> &'r [u8] {
        // SAFETY: live request.
        c_str(unsafe { sys::ap_context_prefix(self.raw) }).unwrap_or_default()
    }
    pub fn context_document_root(&self) -> &'r [u8] {
        // SAFETY: live request.
        c_str(unsafe { sys::ap_context_document_root(self.raw) }).unwrap_or_default()
    }
    pub fn scheme(&self) -> &'r [u8] {
        // SAFETY: live request; runs the http_scheme hook.
        c_str(unsafe { sys::ap_run_http_scheme(self.raw) }).unwrap_or(b"http")
    }
    /// REMOTE_ADDR as mod_remoteip left it.
    pub fn remote_addr(&self) -> &'r [u8] {
        c_str(self.rec().useragent_ip).unwrap_or_default()
    }
    pub fn remote_port(&self) -> u16 {
        let a = self.conn().client_addr;
        // SAFETY: null or an address in the request's or connection's pool.
        if a.is_null() { 0 } else { unsafe { (*a).port } }
    }
    pub fn local_addr(&self) -> &'r [u8] {
        c_str(self.conn().local_ip).unwrap_or_default()
    }
    pub fn local_port(&self) -> u16 {
        let a = self.conn().local_addr;
        // SAFETY: null or the connection's own address.
        if a.is_null() { 0 } else { unsafe { (*a).port } }
    }
    /// HTTP/2: the stream runs on a connection below the client's.
    pub fn is_secondary(&self) -> bool {
        !self.conn().master.is_null()
    }

    /// Response bytes wait in the connection's output filters: the client is behind.
    pub fn output_waits(&self) -> bool {
        self.conn().data_in_output_filters != 0
    }
    pub fn is_aborted(&self) -> bool {
        self.conn().aborted != 0
    }

    /// The client's socket; `None` on HTTP/2, where it says nothing about one stream.
    pub fn client_socket(&self) -> Option<BorrowedFd<'r>> {
        if self.is_secondary() {
            return None;
        }
        let mut fd = -1;
        // SAFETY: live connection; the socket, if any, belongs to it and outlives the request.
        unsafe {
            let sock = sys::ap_get_conn_socket(self.rec().connection);
            if sock.is_null() || sys::apr_os_sock_get(&mut fd, sock) != 0 || fd < 0 {
                return None;
            }
            Some(BorrowedFd::borrow_raw(fd))
        }
    }

    pub fn headers_in(&self) -> Table<'r> {
        Table { raw: self.rec().headers_in, pool: self.pool() }
    }
    pub fn headers_out(&self) -> Table<'r> {
        Table { raw: self.rec().headers_out, pool: self.pool() }
    }
    pub fn err_headers_out(&self) -> Table<'r> {
        Table { raw: self.rec().err_headers_out, pool: self.pool() }
    }
    pub fn subprocess_env(&self) -> Table<'r> {
        Table { raw: self.rec().subprocess_env, pool: self.pool() }
    }
    pub fn notes(&self) -> Table<'r> {
        Table { raw: self.rec().notes, pool: self.pool() }
    }

    pub fn set_handler(&self, name: &'static std::ffi::CStr) {
        // SAFETY: this thread's request; the string is static.
        unsafe { (*self.raw).handler = name.as_ptr() }
    }
    pub fn set_filename(&self, name: &[u8]) {
        let p = self.pool().c_string(name);
        // SAFETY: this thread's request; the string lies in its pool.
        unsafe { (*self.raw).filename = p }
    }
    pub fn set_path_info(&self, rest: &[u8]) {
        let p = self.pool().c_string(rest);
        // SAFETY: this thread's request; the string lies in its pool.
        unsafe { (*self.raw).path_info = p }
    }
    /// Status and reason of the answer.
    pub fn set_status(&self, status: u16, reason: &[u8]) {
        let mut line = format!("{status} ").into_bytes();
        line.extend_from_slice(reason);
        let p = self.pool().c_string(&line);
        // SAFETY: this thread's request; the string lies in its pool.
        unsafe {
            (*self.raw).status = status as c_int;
            (*self.raw).status_line = p;
        }
    }
    pub fn set_content_type(&self, value: &[u8]) {
        let p = self.pool().c_string(value);
        // SAFETY: as above; httpd keeps the pointer.
        unsafe { sys::ap_set_content_type(self.raw, p) }
    }
    pub fn set_content_length(&self, n: u64) {
        // SAFETY: live request.
        unsafe { sys::ap_set_content_length(self.raw, n as sys::apr_off_t) }
    }
    /// Nothing may store this answer, nor the page that it is a part of.
    pub fn set_no_cache(&self) {
        // SAFETY: this thread's request, and the one around it if it is a subrequest.
        unsafe {
            (*self.raw).no_cache = 1;
            if let Some(page) = self.rec().main.as_mut() {
                page.no_cache = 1;
            }
        }
    }
    /// Asks the client for the body it announced with `Expect: 100-continue`, if it still waits for that.
    pub fn send_continue(&self) {
        if self.rec().expecting_100 == 0 || self.rec().proto_num < 1001 {
            return;
        }
        // SAFETY: this thread's request, nothing of whose answer has been sent; the status is put back before anybody
        // else looks at it (as ap_http_filter does).
        unsafe {
            let r = self.raw;
            let (status, line) = ((*r).status, (*r).status_line);
            (*r).status = sys::HTTP_CONTINUE as c_int;
            (*r).status_line = std::ptr::null();
            sys::ap_send_interim_response(r, 0);
            (*r).status = status;
            (*r).status_line = line;
        }
    }
    /// The client connection ends after this answer.
    pub fn close_after(&self) {
        // SAFETY: the connection belongs to this request's thread while the request runs.
        unsafe { (*self.rec().connection).keepalive = sys::AP_CONN_CLOSE }
    }
    /// Nothing more can be sent: filters stop, the connection is dropped.
    pub fn mark_aborted(&self) {
        // SAFETY: as in `close_after`.
        unsafe { (*self.rec().connection).aborted = 1 }
    }

    /// Serves another path of this server in place of this request, as the answer to a GET. The request's body, whoever
    /// was to read it, is not the other's. Not `ap_internal_redirect_handler`, which would give the other this one's
    /// content type, and with it, in places, a handler.
    pub fn redirect_internally(&self, path: &[u8]) {
        let path = self.pool().c_string(path);
        // SAFETY: this thread's live request, called from its handler; method and path outlive it. What is left of the
        // body is read before the fields that frame it go.
        unsafe {
            if sys::ap_discard_request_body(self.raw) != sys::OK as c_int {
                self.close_after();
            }
            self.headers_in().unset(c"Content-Length");
            self.headers_in().unset(c"Transfer-Encoding");
            (*self.raw).method = c"GET".as_ptr();
            (*self.raw).method_number = sys::M_GET as c_int;
            sys::ap_internal_redirect(path, self.raw);
        }
    }

    /// Bytes that the client's socket holds and the client has not acknowledged; 0 where there is no socket to ask.
    pub fn unsent(&self) -> u32 {
        use std::os::fd::AsRawFd;
        // SAFETY: the shim asks the kernel about a descriptor that the connection keeps open, and writes nowhere of ours.
        self.client_socket().map_or(0, |fd| unsafe { sys::mwr_unsent(fd.as_raw_fd()) })
    }

    /// The server's Timeout.
    pub fn timeout(&self) -> std::time::Duration {
        // SAFETY: a request's server outlives it.
        let micros = unsafe { (*self.rec().server).timeout };
        std::time::Duration::from_micros(u64::try_from(micros).unwrap_or(60_000_000))
    }

    /// Largest body the place allows (LimitRequestBody); `None` = any.
    pub fn body_limit(&self) -> Option<u64> {
        // SAFETY: live request, read only.
        let n = unsafe { sys::ap_get_limit_req_body(self.raw) };
        u64::try_from(n).ok().filter(|n| *n > 0)
    }
    pub fn sendfile_enabled(&self) -> bool {
        // SAFETY: live request, read only.
        unsafe { sys::mwr_enable_sendfile(self.raw) != 0 }
    }

    /// A filter other than those of the protocol stands between the client and who reads the body (SetInputFilter).
    pub fn filters_body(&self) -> bool {
        // SAFETY: a live, null-terminated chain; each filter has its record.
        std::iter::successors(unsafe { self.rec().input_filters.as_ref() }, |f| unsafe { f.next.as_ref() })
            .any(|f| unsafe { (*f.frec).ftype } < sys::AP_FTYPE_PROTOCOL)
    }
    pub fn input_filters(&self) -> *mut sys::ap_filter_t {
        self.rec().input_filters
    }
    pub fn output_filters(&self) -> *mut sys::ap_filter_t {
        self.rec().output_filters
    }
    /// The core filter, last of the connection's.
    pub fn core_output_filter(&self) -> *mut sys::ap_filter_t {
        let mut f = self.conn().output_filters;
        // SAFETY: a live, null-terminated chain.
        while let Some(next) = unsafe { f.as_ref() }.map(|f| f.next).filter(|n| !n.is_null()) {
            f = next;
        }
        f
    }
    pub fn bucket_alloc(&self) -> *mut sys::apr_bucket_alloc_t {
        self.conn().bucket_alloc
    }

    /// The slot of this module in the request's directory configuration.
    pub fn dir_config(&self) -> *mut c_void {
        // SAFETY: both are live for the request.
        unsafe { sys::mwr_module_config(self.rec().per_dir_config, &raw const crate::wsgi_module) }
    }
    /// The slot of this module in the request's own configuration.
    pub fn request_config(&self) -> *mut c_void {
        // SAFETY: as above.
        unsafe { sys::mwr_module_config(self.rec().request_config, &raw const crate::wsgi_module) }
    }
    pub fn set_request_config(&self, p: *mut c_void) {
        // SAFETY: as above; `p` lives in the request's pool.
        unsafe { sys::ap_set_module_config(self.rec().request_config, &raw const crate::wsgi_module, p) }
    }

    /// Replaces `$0` to `$9` in `template` when `regex` (from [`Pool::regex`]) matches `text`.
    pub fn substitute(&self, regex: usize, text: &[u8], template: &str) -> Option<Vec<u8>> {
        let source = self.pool().c_string(text);
        let input = CString::new(template).ok()?;
        let mut groups = [sys::ap_regmatch_t { rm_so: -1, rm_eo: -1 }; 10];
        // SAFETY: `regex` was compiled into the configuration pool, which outlives requests; strings are
        // NUL-terminated; `groups` has the length that is passed.
        unsafe {
            let compiled = regex as *const sys::ap_regex_t;
            if sys::ap_regexec(compiled, source, groups.len(), groups.as_mut_ptr(), 0) != 0 {
                return None;
            }
            let p = sys::ap_pregsub(self.rec().pool, input.as_ptr(), source, groups.len(), groups.as_mut_ptr());
            c_str(p).map(<[u8]>::to_vec)
        }
    }
}

impl ClientWatch for Request<'_> {
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.client_socket()
    }
    fn has_left(&self) -> bool {
        self.is_aborted()
    }
}

/// SERVER_SOFTWARE, as ServerTokens allows.
pub fn server_banner() -> &'static [u8] {
    // SAFETY: a string of httpd's that lives as long as the configuration; the reference does not outlive a request.
    c_str(unsafe { sys::ap_get_server_banner() }).unwrap_or_default()
}

/// An `apr_table_t`: names compare without case, order is kept.
#[derive(Clone, Copy)]
pub struct Table<'r> {
    raw: *mut sys::apr_table_t,
    pool: Pool<'r>,
}

impl<'r> Table<'r> {
    /// The entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'r [u8], &'r [u8])> + use<'r> {
        let (mut at, count) = if self.raw.is_null() {
            (std::ptr::null(), 0)
        } else {
            // SAFETY: a live table; its elements are an array of apr_table_entry_t.
            unsafe {
                let a = &*sys::apr_table_elts(self.raw);
                (a.elts.cast::<sys::apr_table_entry_t>().cast_const(), a.nelts)
            }
        };
        let mut left = count;
        std::iter::from_fn(move || {
            while left > 0 {
                left -= 1;
                // SAFETY: `at` points to one of the `count` entries; the table is not changed while iterated.
                let e = unsafe { &*at };
                // SAFETY: at most one past the last entry.
                at = unsafe { at.add(1) };
                if let (Some(k), Some(v)) = (c_str(e.key), c_str(e.val)) {
                    return Some((k, v));
                }
            }
            None
        })
    }

    pub fn get(&self, name: &std::ffi::CStr) -> Option<&'r [u8]> {
        // SAFETY: live table and string.
        c_str(unsafe { sys::apr_table_get(self.raw, name.as_ptr()) })
    }

    /// Adds an entry beside others of its name.
    pub fn add(&self, name: &[u8], value: &[u8]) {
        let (k, v) = (self.pool.c_string(name), self.pool.c_string(value));
        // SAFETY: live table; both strings lie in the request's pool, which the table shares.
        unsafe { sys::apr_table_addn(self.raw, k, v) }
    }

    /// Removes the entries of a name.
    pub fn unset(&self, name: &std::ffi::CStr) {
        // SAFETY: live table and string.
        unsafe { sys::apr_table_unset(self.raw, name.as_ptr()) }
    }

    /// Sets the only entry of its name.
    pub fn set(&self, name: &std::ffi::CStr, value: &[u8]) {
        let v = self.pool.c_string(value);
        // SAFETY: as above; apr_table_set copies the name.
        unsafe { sys::apr_table_set(self.raw, name.as_ptr(), v) }
    }
}
