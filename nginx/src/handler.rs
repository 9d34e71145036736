//! The content handler: checks what is asked for, has nginx read the body, builds the REQUEST for nginx's upstream.
#![allow(unsafe_code)]

use crate::cache;
use crate::config::{Location, Script, Seen, UNSET, Value};
use crate::feed;
use crate::guard::callback;
use crate::log;
use crate::peer::Exchange;
use crate::process::{Failure, Process, current};
use crate::request::{Body, Request};
use crate::response;
use crate::sys;
use mod_wsgi_core::environ::{Asked, Place, add_header, collapse_slashes, decimal, is_hidden, is_https, is_kept_back};
use mod_wsgi_core::error::RequestError;
use mod_wsgi_core::spool::reopened;
use mod_wsgi_wire::encode::{self, RequestBuilder};
use mod_wsgi_wire::keys;
use mod_wsgi_wire::limits::MAX_INLINE_BODY;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

const ERROR: sys::ngx_int_t = sys::NGX_ERROR as sys::ngx_int_t;
const SERVER_ERROR: sys::ngx_int_t = sys::NGX_HTTP_INTERNAL_SERVER_ERROR as sys::ngx_int_t;

/// A location's request.
pub unsafe extern "C" fn handle(r: *mut sys::ngx_http_request_t) -> sys::ngx_int_t {
    callback("the handler", SERVER_ERROR, || {
        // SAFETY: nginx passes a live request.
        let view = unsafe { Request::new(r) };
        let location = view.location();
        let Some(script) = &location.script else { return SERVER_ERROR };
        if path_info(&collapse_slashes(view.uri()), &script.mount).is_none() {
            return sys::NGX_HTTP_NOT_FOUND as sys::ngx_int_t;
        }
        match admit(&view, location) {
            Ok(streams) => begin(&view, location, script, streams),
            Err(e) => refuse(&view, &e),
        }
    })
}

/// A body is refused before a byte of it is read, or 100 Continue is sent; what has none is refused by the peer, which gives
/// a worker that is just freeing a row a moment. With a cache nobody knows yet whether a worker is needed at all. Gives
/// whether the body is streamed: with a cache it never is, for what is kept needs no body.
fn admit(r: &Request<'_>, location: &Location) -> Result<bool, RequestError> {
    let route = &location.route;
    if cache::may_answer(r, location) {
        return Ok(false);
    }
    let process = serving()?;
    let limits = process.limits(&route.group)?;
    let streams = match location.upstream.request_buffering {
        UNSET => !limits.request_buffering,
        on => on == 0,
    };
    if !feed::is_announced(r) {
        return Ok(streams);
    }
    match process.group(&route.group, &route.application)? {
        Some(g) => g.pool.check_room().map(|()| streams),
        None => Ok(streams),
    }
}

/// This process, as far as it can ask workers.
pub fn serving() -> Result<&'static Process, RequestError> {
    current().ok_or_else(|| RequestError::Supervisor("it was not started".to_owned()))
}

/// Answers a request that goes to no worker.
fn refuse(r: &Request<'_>, e: &RequestError) -> sys::ngx_int_t {
    let f = Failure::from(e);
    if let Some(line) = f.verdict.line(&f.text) {
        log::write(r.log(), f.verdict.level, &line);
    }
    if let Some(seconds) = f.verdict.retry_after {
        r.add_header(c"Retry-After", seconds.to_string().as_bytes());
    }
    f.verdict.status as sys::ngx_int_t
}

fn begin(r: &Request<'_>, location: &Location, script: &Script, streams: bool) -> sys::ngx_int_t {
    if let Err(e) = modified(script) {
        return refuse(r, &e);
    }
    let raw = r.raw();
    // SAFETY: a live request. Everything that is hung into its upstream lives in its pool, in the configuration's, or is
    // static; nginx's functions are called as its own upstream modules call them.
    unsafe {
        if sys::ngx_http_upstream_create(raw) != 0 {
            return SERVER_ERROR;
        }
        let frame = current().map(Process::take_frame).unwrap_or_default();
        let Some(x) = r.pool().own(Exchange::new(raw, frame)) else { return SERVER_ERROR };
        let pipe = r.pool().zeroed::<sys::ngx_event_pipe_t>();
        if pipe.is_null() {
            return SERVER_ERROR;
        }
        (*pipe).input_filter = Some(response::pipe_filter);
        (*pipe).input_ctx = raw.cast();
        let u = &mut *r.upstream();
        // Messages name the peer, "wsgi:group", and nothing before it.
        u.schema = crate::pool::constant(c"");
        u.output.tag = cache::tag();
        u.conf = (&raw const location.upstream).cast_mut();
        cache::prepare(r, u);
        u.peer.data = x.cast();
        u.set_buffering((location.upstream.buffering != 0).into());
        u.pipe = pipe;
        u.create_request = Some(create_request);
        u.reinit_request = Some(reinit_request);
        u.process_header = Some(response::process_header);
        u.abort_request = Some(abort_request);
        u.finalize_request = Some(finalize_request);
        u.input_filter_init = Some(response::filter_init);
        u.input_filter = Some(response::filter);
        u.input_filter_ctx = raw.cast();
        u.set_accel(1);
        (*raw).state = 0;
        if streams && location.upstream.pass_request_body != 0 && feed::is_announced(r) {
            // Nothing is read before the application asks. The request is in use until its upstream is done with it, as
            // while a body is read.
            (*x).feed.stream();
            (*(*raw).main).set_count((*(*raw).main).count() + 1);
            sys::ngx_http_upstream_init(raw);
            return sys::NGX_DONE as sys::ngx_int_t;
        }
        if r.content_length() > MAX_INLINE_BODY as i64 {
            // A descriptor travels; what nginx would keep in memory had to be written out all the same.
            (*raw).set_request_body_in_file_only(1);
            // And that is no reason for nginx to warn.
            (*raw).set_request_body_file_log_level(0);
        }
        let rc = sys::ngx_http_read_client_request_body(raw, Some(sys::ngx_http_upstream_init));
        if rc >= sys::NGX_HTTP_SPECIAL_RESPONSE as sys::ngx_int_t { rc } else { sys::NGX_DONE as sys::ngx_int_t }
    }
}

/// The script's modification time in microseconds, or the same answers as on httpd for what is no script. The file is
/// looked at once in a millisecond of nginx's clock, which stands still during one turn of its loop: requests that came
/// together share the answer.
fn modified(script: &Script) -> Result<u64, RequestError> {
    // SAFETY: reads a counter of this process, which has one thread that serves.
    let now = unsafe { sys::mwr_now() } as usize;
    let seen = script.seen.get();
    if seen.at == now && now != 0 {
        return Ok(seen.modified);
    }
    let name = || script.file.clone();
    match std::fs::metadata(&script.file) {
        Err(_) => Err(RequestError::NoScript(name())),
        Ok(m) if m.is_dir() => Err(RequestError::ScriptIsDirectory(name())),
        Ok(m) if !m.is_file() => Err(RequestError::ScriptIsNoFile(name())),
        Ok(m) => {
            let modified = u64::try_from(m.mtime() * 1_000_000 + m.mtime_nsec() / 1000).unwrap_or(0);
            script.seen.set(Seen { at: now, modified });
            Ok(modified)
        }
    }
}

/// The exchange of a request whose upstream is ours.
///
/// # Safety
/// `r` is a live request that `begin` has prepared.
pub unsafe fn exchange<'x>(r: *mut sys::ngx_http_request_t) -> &'x mut Exchange {
    // SAFETY: see above; the exchange lives in the request's pool, and callers keep no other reference to it.
    unsafe { &mut *(*(*r).upstream).peer.data.cast() }
}

/// The exchange of a request whose upstream is, or has been, ours: after an internal redirect it may be another module's.
pub fn dealings<'x>(r: &'x Request<'_>) -> Option<&'x Exchange> {
    // SAFETY: null, or the request's own upstream; the tag says that `begin` has made it, with an exchange.
    unsafe {
        let u = r.upstream().as_ref()?;
        if u.output.tag != cache::tag() { None } else { u.peer.data.cast::<Exchange>().as_ref() }
    }
}

/// nginx wants what is to be sent.
unsafe extern "C" fn create_request(r: *mut sys::ngx_http_request_t) -> sys::ngx_int_t {
    callback("create_request", ERROR, || {
        // SAFETY: nginx passes a live request that `begin` has prepared.
        let (view, x) = unsafe { (Request::new(r), exchange(r)) };
        if let Err(e) = build(&view, x) {
            // Told to the client by `process_header`: nginx would answer 500 to any failure here.
            x.fail(&e);
        }
        // SAFETY: the records are ours to fill, zeroed; the frame's bytes stay where they are until the exchange goes.
        unsafe {
            let (link, b) = (view.pool().zeroed::<sys::ngx_chain_t>(), view.pool().zeroed::<sys::ngx_buf_t>());
            if link.is_null() || b.is_null() {
                return ERROR;
            }
            if x.frame.is_empty() {
                x.frame.push(0);
            }
            let bytes = x.frame.as_mut_ptr_range();
            ((*b).start, (*b).pos, (*b).last, (*b).end) = (bytes.start, bytes.start, bytes.end, bytes.end);
            (*b).set_memory(1);
            (*link).buf = b;
            (*view.upstream()).request_bufs = link;
        }
        0
    })
}

fn build(r: &Request<'_>, x: &mut Exchange) -> Result<(), RequestError> {
    let location = r.location();
    let process = serving()?;
    let Some(script) = &location.script else { return Err(RequestError::Supervisor("no script".to_owned())) };
    let body = r.body();
    let len = match &body {
        Body::File(_, n) => *n,
        Body::Memory(pieces) => pieces.iter().map(|p| p.len() as u64).sum(),
    };
    environ(r, location, script, process, len, x)?;
    match body {
        _ if x.feed.is_streamed() => {}
        Body::File(fd, _) => {
            // SAFETY: nginx's temporary file is open for as long as the request; the borrow ends here.
            let file = unsafe { BorrowedFd::borrow_raw(fd) };
            x.body = Some(reopened(file).map_err(RequestError::Spool)?);
        }
        Body::Memory(_) if len > MAX_INLINE_BODY as u64 => {
            let file = r.body_to_file().map_err(RequestError::Spool)?;
            x.body = Some(reopened(file).map_err(RequestError::Spool)?);
        }
        Body::Memory(pieces) => pieces.iter().for_each(|p| x.frame.extend_from_slice(p)),
    }
    Ok(())
}

/// PATH_INFO; `None` where the path is not below the mount (`location /app` also matches /application).
fn path_info<'u>(uri: &'u [u8], mount: &[u8]) -> Option<&'u [u8]> {
    uri.strip_prefix(mount).filter(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Encodes the environ, straight from nginx's structures into the frame.
fn environ(
    r: &Request<'_>,
    location: &Location,
    script: &Script,
    process: &Process,
    body: u64,
    x: &mut Exchange,
) -> Result<(), RequestError> {
    let route = &location.route;
    let mut num = [0u8; 20];
    // 0 = not to be compared, also where the file has gone since.
    let mtime = if route.reloading { modified(script).unwrap_or(0) } else { 0 };
    let streamed = x.feed.is_streamed();
    // SAFETY: a live request, whose upstream `begin` has made.
    let (kept, stored) = unsafe { ((*r.upstream()).cacheable() != 0, (*r.upstream()).store() != 0) };
    let mut b = RequestBuilder::new(&mut x.frame, mtime);
    b.timeout(route.timeout);
    let mut text = [0u8; 64];
    let (addr, port) = r.local(&mut text);
    let mut scheme: &[u8] = if r.is_tls() { b"https" } else { b"http" };
    let place = Place {
        server_software: &sys::NGINX_VER[..sys::NGINX_VER.len() - 1],
        after_software: &[],
        local: (addr, port),
        scheme,
        document_root: r.root(),
        after_root: &[],
        script: script.file.as_bytes(),
        callable: route.callable.as_bytes(),
        application_group: route.application.as_bytes(),
    };
    place.write(&mut b);
    if location.upstream.pass_request_headers != 0 {
        headers(r, &mut b, route.pass_authorization, streamed, kept);
    }
    if kept {
        cache::conditions(r).for_each(|(name, value)| _ = add_header(&mut b, name, value));
    }
    x.no_file = kept || stored || r.is_in_memory();
    if x.no_file {
        b.no_file();
    }
    if let Some(t) = r.content_type() {
        b.known(keys::CONTENT_TYPE, t);
    }
    if streamed {
        if let Ok(n) = u64::try_from(r.content_length()) {
            b.known(keys::CONTENT_LENGTH, decimal(n, &mut num));
        }
    } else if r.has_body() && (r.content_length() >= 0 || r.is_chunked() || body > 0) {
        // The body is presented whole, with its length.
        b.known(keys::CONTENT_LENGTH, decimal(body, &mut num));
    }
    let uri = collapse_slashes(r.uri());
    let asked = Asked {
        method: r.method(),
        target: r.target(),
        script_name: &script.mount,
        path_info: path_info(&uri, &script.mount).unwrap_or_default(),
        args: r.args(),
        protocol: r.protocol(),
        server: (r.host(), port),
        remote: (r.remote_addr(), r.remote_port()),
        process: process.pid(),
        start: r.start(),
    };
    asked.write(&mut b);
    let (connection, nth) = r.number();
    let connection = decimal(connection, &mut num);
    let mut nth_digits = [0; 20];
    b.known_parts(keys::MW_REQUEST_ID, &[connection, b"-", decimal(nth, &mut nth_digits)]);
    b.known(keys::MW_CONNECTION_ID, connection);
    for p in location.params.iter().flat_map(|p| p.iter()) {
        let value = match &p.value {
            Value::Constant(v) => v,
            Value::Variable(v) => r.value(*v).unwrap_or_default(),
        };
        if p.if_not_empty && value.is_empty() {
            continue;
        }
        if p.key == b"HTTPS" {
            scheme = if is_https(value) { b"https" } else { b"http" };
        } else if !is_hidden(&p.key) {
            b.named(&p.key, value);
        }
    }
    b.known(keys::URL_SCHEME, scheme);
    b.finish(match body {
        _ if streamed => encode::Body::Stream,
        n if n > MAX_INLINE_BODY as u64 || matches!(r.body(), Body::File(..)) => encode::Body::Descriptor(n),
        n => encode::Body::Inline(n as usize),
    })?;
    Ok(())
}

/// The request's headers; fields of one name are joined, as nginx does for its own upstreams. `kept`: nginx may keep the
/// response, so that it must not depend on what this client has.
fn headers(r: &Request<'_>, b: &mut RequestBuilder<'_>, pass_authorization: bool, streamed: bool, kept: bool) {
    for (i, (hash, name, value)) in r.headers().enumerate() {
        let hidden = is_kept_back(name, streamed, pass_authorization, pass_authorization);
        let hidden = hidden || kept && cache::replaced(name);
        // Few fields, whose hashes are there already: walking the list again is less than keeping a copy of it.
        let same = |other: &(usize, &[u8], &[u8])| other.0 == hash && other.1.eq_ignore_ascii_case(name);
        if hidden || r.headers().take(i).any(|h| same(&h)) {
            continue;
        }
        let mut rest = r.headers().skip(i + 1).filter(same).peekable();
        if rest.peek().is_none() {
            add_header(b, name, value);
            continue;
        }
        let between: &[u8] = if name.eq_ignore_ascii_case(b"Cookie") { b"; " } else { b", " };
        let mut joined = value.to_vec();
        for (_, _, more) in rest {
            joined.extend_from_slice(between);
            joined.extend_from_slice(more);
        }
        add_header(b, name, &joined);
    }
}

/// The request is sent again, or nginx answers with what it has in the cache.
unsafe extern "C" fn reinit_request(r: *mut sys::ngx_http_request_t) -> sys::ngx_int_t {
    callback("reinit_request", ERROR, || {
        // SAFETY: nginx passes a live request that `begin` has prepared.
        let (view, x) = unsafe { (Request::new(r), exchange(r)) };
        // What has been read of the answer's frames still says whether its connection is free: the next try begins anew
        // by itself.
        x.framer = None;
        x.small = false;
        // SAFETY: as above.
        unsafe { (*view.upstream()).set_buffering((view.location().upstream.buffering != 0).into()) };
        0
    })
}

unsafe extern "C" fn abort_request(_: *mut sys::ngx_http_request_t) {}

unsafe extern "C" fn finalize_request(r: *mut sys::ngx_http_request_t, rc: sys::ngx_int_t) {
    callback("finalize_request", (), || {
        // SAFETY: as in `reinit_request`.
        unsafe { response::finalize(&Request::new(r), exchange(r), rc) }
    })
}
