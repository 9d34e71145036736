//! The answer: frames become nginx's header list and buffers. The framer in core judges the head and counts the body.
#![allow(unsafe_code)]

use crate::cache;
use crate::conn::Wire;
use crate::feed;
use crate::guard::callback;
use crate::handler::exchange;
use crate::log;
use crate::peer::Exchange;
use crate::request::Request;
use crate::settings::LARGE;
use crate::sys;
use mod_wsgi_core::error::RequestError;
use mod_wsgi_core::reader::{Begin, Item, Reader};
use mod_wsgi_core::response::Framer;
use mod_wsgi_wire::decode::Response;
use mod_wsgi_wire::frame::{AbortReason, Level};
use mod_wsgi_wire::limits;
use std::ffi::c_void;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::ptr::null_mut;
use std::time::Instant;

const OK: sys::ngx_int_t = sys::NGX_OK as sys::ngx_int_t;
const ERROR: sys::ngx_int_t = sys::NGX_ERROR as sys::ngx_int_t;
const AGAIN: sys::ngx_int_t = sys::NGX_AGAIN as sys::ngx_int_t;

/// Room that is left behind what is known to come.
const SPARE: usize = 4096;

/// Bytes of one of nginx's buffers that have not been used.
///
/// # Safety
/// `b` is a live buffer whose content nobody changes while the result is used.
unsafe fn content<'b>(b: &sys::ngx_buf_t) -> &'b [u8] {
    // SAFETY: see above; a buffer's content lies between its two pointers.
    unsafe { std::slice::from_raw_parts(b.pos, b.last.offset_from_unsigned(b.pos)) }
}

/// nginx has read something into the first buffer.
pub unsafe extern "C" fn process_header(r: *mut sys::ngx_http_request_t) -> sys::ngx_int_t {
    callback("process_header", ERROR, || {
        // SAFETY: nginx passes a live request that the content handler has prepared.
        let (view, x) = unsafe { (Request::new(r), exchange(r)) };
        // SAFETY: as above; the upstream is a record of its own.
        let u = unsafe { &mut *view.upstream() };
        if cache::is_sending(&view) {
            return from_cache(&view, u, x);
        }
        if x.failure.is_some() {
            return tell(&view, u, x);
        }
        loop {
            // SAFETY: nginx's first buffer; it is changed below only after the bytes have been used.
            let bytes = unsafe { content(&u.buffer) };
            let begin = x.reader.begin(bytes);
            let (item, used) = match begin {
                Err(e) => {
                    let e = x.protocol_error(e.to_string());
                    if x.lets_another_try(sys::NGX_HTTP_UPSTREAM_FT_INVALID_HEADER) {
                        return another(&view, &e);
                    }
                    x.fail(&e);
                    return tell(&view, u, x);
                }
                Ok(Begin::More(need)) => {
                    let before = cache::reserved(&view);
                    return if make_room(&view, u, need, before) { AGAIN } else { ERROR };
                }
                Ok(Begin::Head(head, used)) => {
                    x.head_at = Some((Instant::now(), head.ran));
                    let rc = start(&view, u, x, &head);
                    if rc == OK && x.failure.is_none() {
                        keep_head(&view, u, used);
                    }
                    // SAFETY: `used` bytes of the content.
                    u.buffer.pos = unsafe { u.buffer.pos.add(used) };
                    if rc == OK && x.failure.is_none() {
                        begin_body(&view, u, x);
                        // Where the head fills the buffer exactly nginx would read on into no room, and take that for the
                        // end of the connection.
                        if u.buffer.pos == u.buffer.end {
                            // SAFETY: both lie in the buffer's memory.
                            let head = unsafe { u.buffer.pos.offset_from_unsigned(u.buffer.start) };
                            if !make_room(&view, u, SPARE, head) {
                                return ERROR;
                            }
                        }
                    }
                    return rc;
                }
                Ok(Begin::Other(item, used)) => (item, used),
            };
            // SAFETY: `used` bytes of the content.
            u.buffer.pos = unsafe { u.buffer.pos.add(used) };
            match item {
                Item::Log(level) => log::write(view.log(), level, &String::from_utf8_lossy(x.reader.text())),
                Item::Continue => feed::asked(&view, x),
                Item::Abort(AbortReason::NotRun) => {
                    x.not_run = true;
                    return sys::NGX_HTTP_UPSTREAM_INVALID_HEADER as sys::ngx_int_t;
                }
                Item::Abort(reason) => {
                    let e = RequestError::Aborted(reason);
                    let case = match reason {
                        AbortReason::Timeout => sys::NGX_HTTP_UPSTREAM_FT_TIMEOUT,
                        // The worker has found what is wrong with the head, or with what followed.
                        AbortReason::Protocol => {
                            sys::NGX_HTTP_UPSTREAM_FT_INVALID_HEADER | sys::NGX_HTTP_UPSTREAM_FT_HTTP_500
                        }
                        _ => sys::NGX_HTTP_UPSTREAM_FT_HTTP_500,
                    };
                    if x.lets_another_try(case) {
                        return another(&view, &e);
                    }
                    x.fail(&e);
                    return tell(&view, u, x);
                }
                _ if x.reader.done() => {
                    x.fail(&x.protocol_error("the end before the head".to_owned()));
                    return tell(&view, u, x);
                }
                _ => {}
            }
        }
    })
}

/// The worker's answer is of no use, and another worker may be asked: nginx does that for an invalid head.
fn another(r: &Request<'_>, e: &RequestError) -> sys::ngx_int_t {
    let v = e.verdict();
    if let Some(line) = v.line(&e.to_string()) {
        log::write(r.log(), v.level, &format!("{line}; another worker is asked"));
    }
    sys::NGX_HTTP_UPSTREAM_INVALID_HEADER as sys::ngx_int_t
}

/// The case of wsgi_next_upstream that a worker's own status is.
fn case_of(status: u16) -> Option<u32> {
    Some(match status {
        500 => sys::NGX_HTTP_UPSTREAM_FT_HTTP_500,
        503 => sys::NGX_HTTP_UPSTREAM_FT_HTTP_503,
        403 => sys::NGX_HTTP_UPSTREAM_FT_HTTP_403,
        404 => sys::NGX_HTTP_UPSTREAM_FT_HTTP_404,
        429 => sys::NGX_HTTP_UPSTREAM_FT_HTTP_429,
        _ => return None,
    })
}

/// The request fails with a status that nginx shall answer with its own page. For nginx it is the answer of a worker that
/// makes it try the next one, of which there is none: this way the cache's stale answers and error_page work as well.
fn tell(r: &Request<'_>, u: &mut sys::ngx_http_upstream_t, x: &mut Exchange) -> sys::ngx_int_t {
    let Some(f) = &x.failure else { return ERROR };
    if let Some(seconds) = f.verdict.retry_after {
        x.retry_after = r.add_header(c"Retry-After", seconds.to_string().as_bytes());
    }
    cache::allow_stale(r, u, f.case);
    if !matches!(f.verdict.status, 500 | 502 | 503 | 504) {
        // Not one of those that make nginx look for the next worker: the client's answer, but nobody else's.
        u.set_cacheable(0);
    }
    // Whatever wsgi_next_upstream_timeout says: there is no next one to be asked in vain.
    // SAFETY: reads nginx's clock.
    u.peer.start_time = unsafe { sys::mwr_now() };
    u.headers_in.status_n = f.verdict.status as sys::ngx_uint_t;
    u.headers_in.content_length_n = 0;
    u.peer.tries = 2;
    u.set_request_sent(0);
    OK
}

/// nginx answers with a file of its cache, whose beginning is what a worker's RESPONSE was.
fn from_cache(r: &Request<'_>, u: &mut sys::ngx_http_upstream_t, x: &mut Exchange) -> sys::ngx_int_t {
    // SAFETY: nginx's buffer with the beginning of the file, which is changed below only.
    let bytes = unsafe { content(&u.buffer) };
    let mut reader = Reader::default();
    let Ok(Begin::Head(head, used)) = reader.begin(bytes) else {
        return sys::NGX_HTTP_UPSTREAM_INVALID_HEADER as sys::ngx_int_t;
    };
    let whole = reader.ends_with_head();
    let Ok(framer) = Framer::new(r.is_head(), head.status, head.reason, head.headers(), whole) else {
        return sys::NGX_HTTP_UPSTREAM_INVALID_HEADER as sys::ngx_int_t;
    };
    // A failure that this answer takes the place of is not told.
    // SAFETY: null, or a field of the answer's head, which lives as long as the request.
    if let Some(field) = unsafe { std::mem::replace(&mut x.retry_after, null_mut()).as_mut() } {
        field.hash = 0;
    }
    let rc = give_head(r, u, &head, framer.content_length());
    // SAFETY: `used` bytes of the content.
    u.buffer.pos = unsafe { u.buffer.pos.add(used) };
    rc
}

/// A file of the cache begins with the head, and nothing but the head: what came before it (records of the log) goes. A
/// head that a later reader has no room for is not kept. Nothing is done where nginx keeps no response.
fn keep_head(r: &Request<'_>, u: &mut sys::ngx_http_upstream_t, head: usize) {
    let Some((first, room)) = cache::head(r, u) else { return };
    if first + head > room {
        log::write(r.log(), Level::Info, "response is not kept: its head is larger than wsgi_buffer_size");
        u.set_cacheable(0);
        return;
    }
    let b = &mut u.buffer;
    // SAFETY: the pointers lie in one block of memory, in which the content begins at `first` or behind it.
    unsafe {
        let n = b.last.offset_from_unsigned(b.pos);
        let to = b.start.add(first);
        std::ptr::copy(b.pos, to, n);
        (b.pos, b.last) = (to, to.add(n));
    }
}

/// Room for at least `need` bytes from the content's first on; of what lies before the content `keep` bytes stay, the
/// beginning of a cache file, and the rest has been used. nginx has one small buffer for a head.
fn make_room(r: &Request<'_>, u: &mut sys::ngx_http_upstream_t, need: usize, keep: usize) -> bool {
    let b = &mut u.buffer;
    // SAFETY: the four pointers lie in one block of memory.
    let (before, have, room) = unsafe {
        let before = b.pos.offset_from_unsigned(b.start);
        (before, b.last.offset_from_unsigned(b.pos), b.end.offset_from_unsigned(b.pos))
    };
    if need <= room && have < room {
        return true;
    }
    let keep = keep.min(before);
    let whole = before - keep + room;
    if need <= whole && have < whole {
        // Records of the log that came before the head: however many, they need no memory.
        // SAFETY: the content moves towards the beginning of its own block.
        unsafe {
            let to = b.start.add(keep);
            std::ptr::copy(b.pos, to, have);
            (b.pos, b.last) = (to, to.add(have));
        }
        return true;
    }
    let most = limits::HEADER + limits::MAX_RESPONSE_HEAD + limits::MAX_DATA;
    let size = (need + SPARE).max(2 * whole).min(most.max(need + SPARE));
    let p = r.pool().bytes(keep + size);
    if p.is_null() {
        return false;
    }
    // SAFETY: the new block has room for both parts; nginx reads the buffer's fields anew after each call.
    unsafe {
        std::ptr::copy_nonoverlapping(b.start, p, keep);
        std::ptr::copy_nonoverlapping(b.pos, p.add(keep), have);
        b.start = p;
        b.pos = p.add(keep);
        b.last = b.pos.add(have);
        b.end = p.add(keep + size);
    }
    true
}

/// Judges the head and gives it to nginx.
fn start(r: &Request<'_>, u: &mut sys::ngx_http_upstream_t, x: &mut Exchange, head: &Response<'_>) -> sys::ngx_int_t {
    let whole = x.reader.ends_with_head();
    let framer = match Framer::new(r.is_head(), head.status, head.reason, head.headers(), whole) {
        Ok(framer) => framer,
        Err(e) => {
            let e = RequestError::BadResponse(e);
            if x.lets_another_try(sys::NGX_HTTP_UPSTREAM_FT_INVALID_HEADER) {
                return another(r, &e);
            }
            x.fail(&e);
            return tell(r, u, x);
        }
    };
    let rc = give_head(r, u, head, framer.content_length());
    // For $upstream_status: nginx leaves it to whoever reads the head.
    // SAFETY: null, or the record of this try.
    if let Some(state) = unsafe { u.state.as_mut() }.filter(|s| s.status == 0) {
        state.status = u.headers_in.status_n;
    }
    if whole.is_some() {
        feed::answered_whole(r, x);
    }
    x.framer = Some(framer);
    // nginx asks another worker where tries are left and the status is in its own mask, which has them all; so it does
    // for a 502 and a 504 of the application, which are no case of ours.
    u.peer.tries = if case_of(head.status).is_some_and(|case| x.lets_another_try(case)) { 2 } else { 1 };
    rc
}

/// Gives status and fields to nginx.
fn give_head(
    r: &Request<'_>,
    u: &mut sys::ngx_http_upstream_t,
    head: &Response<'_>,
    length: Option<u64>,
) -> sys::ngx_int_t {
    u.headers_in.status_n = head.status as sys::ngx_uint_t;
    let mut line = head.status.to_string().into_bytes();
    line.push(b' ');
    line.extend_from_slice(head.reason);
    let Some(line) = r.pool().string(&line) else { return ERROR };
    u.headers_in.status_line = line;
    for (name, value) in head.headers() {
        if !name.eq_ignore_ascii_case(b"content-length") && !add_field(r, u, name, value) {
            return ERROR;
        }
    }
    u.headers_in.content_length_n = length.map_or(-1, |n| n as sys::off_t);
    OK
}

/// Adds a field to the worker's head, as nginx's own upstream modules do.
fn add_field(r: &Request<'_>, u: &mut sys::ngx_http_upstream_t, name: &[u8], value: &[u8]) -> bool {
    let p = r.pool().bytes(2 * name.len() + value.len() + 3);
    if p.is_null() {
        return false;
    }
    // SAFETY: `p` has room for name, value and the name in lower case, each with a NUL. nginx gives an element of the list
    // to fill, or null; the handlers are those of its own table, called as its modules call them.
    unsafe {
        let h = sys::ngx_list_push(&raw mut u.headers_in.headers).cast::<sys::ngx_table_elt_t>();
        if h.is_null() {
            return false;
        }
        std::ptr::write_bytes(h, 0, 1);
        let (key, data) = (p, p.add(name.len() + 1));
        let low = data.add(value.len() + 1);
        std::ptr::copy_nonoverlapping(name.as_ptr(), key, name.len());
        *key.add(name.len()) = 0;
        std::ptr::copy_nonoverlapping(value.as_ptr(), data, value.len());
        *data.add(value.len()) = 0;
        (*h).hash = sys::ngx_hash_strlow(low, key, name.len());
        *low.add(name.len()) = 0;
        (*h).key = sys::ngx_str_t { len: name.len(), data: key };
        (*h).value = sys::ngx_str_t { len: value.len(), data };
        (*h).lowcase_key = low;
        let main = sys::mwr_main_conf_of(r.raw(), &raw mut sys::ngx_http_upstream_module);
        let main = main.cast::<sys::ngx_http_upstream_main_conf_t>();
        let known = sys::ngx_hash_find(&raw mut (*main).headers_in_hash, (*h).hash, low, name.len());
        match known.cast::<sys::ngx_http_upstream_header_t>().as_ref() {
            Some(known) => match known.handler {
                Some(handler) => handler(r.raw(), h, known.offset) == OK,
                None => true,
            },
            None => true,
        }
    }
}

/// Nobody will read more of the answer: what is here of it is dropped, so that the connection is free where it was all.
pub fn drop_rest(r: &Request<'_>, x: &mut Exchange, buffer: &mut sys::ngx_buf_t) {
    // SAFETY: nginx's first buffer, whose content nobody changes.
    let mut rest = unsafe { content(buffer) };
    while !rest.is_empty() && !x.reader.done() {
        match x.reader.next(rest) {
            Ok((used, item)) => {
                rest = &rest[used..];
                if let Item::Log(level) = item {
                    log::write(r.log(), level, &String::from_utf8_lossy(x.reader.text()));
                }
            }
            Err(_) => break,
        }
    }
    buffer.pos = buffer.last;
}

/// After the head: what decides how the body goes on.
fn begin_body(r: &Request<'_>, u: &mut sys::ngx_http_upstream_t, x: &mut Exchange) {
    if r.is_head() || matches!(u.headers_in.status_n, 204 | 304) {
        let end = u.buffer.pos;
        drop_rest(r, x, &mut u.buffer);
        // In a file of the cache the head ends where it ends.
        (u.buffer.pos, u.buffer.last) = (end, end);
        return;
    }
    // SAFETY: nginx's first buffer.
    let rest = unsafe { content(&u.buffer) };
    // SAFETY: a live upstream.
    let stored = unsafe { sys::mwr_is_stored(u) != 0 };
    let whole = x.reader.ends_with_head().is_some_and(|n| n > 0 && n <= rest.len() as u64);
    if whole && u.buffering() != 0 && !stored && !r.is_in_memory() {
        // Everything is here: nginx's pipe with its buffers and temporary file is not needed, and head and body leave in
        // one write.
        x.small = true;
        u.set_buffering(0);
    }
}

/// nginx is about to pass the body on. The length is none: only END ends a response, and an end of file is a failure.
pub unsafe extern "C" fn filter_init(data: *mut c_void) -> sys::ngx_int_t {
    callback("input_filter_init", ERROR, || {
        // SAFETY: nginx passes the request that the content handler has named as context.
        unsafe {
            let r = data.cast::<sys::ngx_http_request_t>();
            let (u, x) = (&mut *(*r).upstream, exchange(r));
            x.passing = true;
            let left = if x.reader.ended() && x.reader.is_between() { 0 } else { 1 };
            if left == 0 && !finished(&Request::new(r), x) {
                return ERROR;
            }
            u.length = left;
            let pipe = &mut *u.pipe;
            pipe.length = left;
            enlarge(&Request::new(r), x, pipe);
            // The first buffer may have grown with the head; the pipe passes no buffer on that is larger than this.
            pipe.busy_size = pipe.busy_size.max(u.buffer.end.offset_from(u.buffer.start));
        }
        OK
    })
}

/// A long answer, or one whose length nobody knows, is passed on in larger pieces, unless configuration says how large.
fn enlarge(r: &Request<'_>, x: &Exchange, pipe: &mut sys::ngx_event_pipe_t) {
    let few = pipe.bufs.num as u64 * pipe.bufs.size as u64;
    let length = x.framer.as_ref().and_then(Framer::content_length);
    if r.location().enlarges && length.is_none_or(|n| n > few) {
        pipe.bufs.size = LARGE;
        pipe.busy_size = pipe.bufs.num / 2 * LARGE as isize;
        pipe.temp_file_write_size = 2 * LARGE as isize;
    }
}

/// What a piece of the answer means for the buffers.
enum Piece {
    /// So many of the bytes just used are body.
    Data(usize),
    File(OwnedFd, u64, u64),
    /// END has come, and the response is right.
    End,
    /// All bytes are used.
    More,
    /// The response cannot be finished.
    Broken,
}

/// The next piece of `bytes`, and how many of them it used.
fn next(r: &Request<'_>, x: &mut Exchange, bytes: &[u8]) -> (usize, Piece) {
    let mut total = 0;
    loop {
        let had_ended = x.reader.ended();
        let (used, item) = match x.reader.next(&bytes[total..]) {
            Ok(step) => step,
            Err(e) => {
                x.fail(&x.protocol_error(e.to_string()));
                return (bytes.len(), Piece::Broken);
            }
        };
        total += used;
        match item {
            Item::More => return (total, Piece::More),
            Item::Log(level) => log::write(r.log(), level, &String::from_utf8_lossy(x.reader.text())),
            Item::Abort(reason) => {
                x.fail(&RequestError::Aborted(reason));
                return (bytes.len(), Piece::Broken);
            }
            Item::Data(n) => return (total, Piece::Data(n)),
            Item::File { offset, len } => {
                // SAFETY: null or the live wire of this exchange.
                let wire: Option<&mut Wire> = unsafe { x.wire.as_mut() };
                let fd = wire.and_then(Wire::take_fd).ok_or("FILE without a descriptor".to_owned());
                let fd = fd.and_then(|fd| fd.check(offset, len).map_err(|e| e.to_string()));
                match fd {
                    Ok(_) if x.no_file => {
                        x.fail(&x.protocol_error("FILE where bytes were asked for".to_owned()));
                        return (bytes.len(), Piece::Broken);
                    }
                    Ok(_) if !x.reader.ended() => {
                        x.fail(&x.protocol_error("FILE without END".to_owned()));
                        return (bytes.len(), Piece::Broken);
                    }
                    Ok(fd) => return (total, Piece::File(fd, offset, len)),
                    Err(e) => {
                        x.fail(&x.protocol_error(e));
                        return (bytes.len(), Piece::Broken);
                    }
                }
            }
            Item::Continue => feed::asked(r, x),
            Item::Mark => {}
        }
        if x.reader.ended() && !had_ended {
            return (total, Piece::End);
        }
        if x.reader.ended() && total == bytes.len() {
            return (total, Piece::More);
        }
    }
}

/// END has come: whether the response is whole.
fn finished(r: &Request<'_>, x: &mut Exchange) -> bool {
    let Some(framer) = &x.framer else { return false };
    if framer.surplus() > 0 {
        let text = format!(
            "MWR0215: response body has {} bytes more than its Content-Length; they were cut",
            framer.surplus()
        );
        log::write(r.log(), Level::Warn, &text);
    }
    match framer.finish() {
        Ok(()) => true,
        Err(e) => {
            x.fail(&RequestError::Shortfall(e));
            false
        }
    }
}

/// Body bytes that may go out.
fn accept(x: &mut Exchange, n: u64) -> u64 {
    x.framer.as_mut().map_or(0, |f| f.accept(n))
}

/// A buffer of nginx's for a part of a passed file, which is closed with the request.
///
/// # Safety
/// `b` is a zeroed buffer in the request's pool.
unsafe fn file_buffer(r: &Request<'_>, b: *mut sys::ngx_buf_t, fd: OwnedFd, offset: u64, len: u64) -> bool {
    // SAFETY: see above; records in the request's pool, filled as nginx's static module does. The cleanup owns the
    // descriptor from the moment it is set.
    unsafe {
        let pool = r.pool();
        let file = pool.zeroed::<sys::ngx_file_t>();
        let cleanup = sys::ngx_pool_cleanup_add(pool.raw(), size_of::<sys::ngx_pool_cleanup_file_t>());
        if file.is_null() || cleanup.is_null() {
            return false;
        }
        let raw = fd.into_raw_fd();
        let held = (*cleanup).data.cast::<sys::ngx_pool_cleanup_file_t>();
        (*held).fd = raw;
        (*held).name = c"wsgi.file_wrapper".as_ptr().cast_mut().cast();
        (*held).log = r.log();
        (*cleanup).handler = Some(sys::ngx_pool_cleanup_file);
        (*file).fd = raw;
        (*file).name = crate::pool::constant(c"wsgi.file_wrapper");
        (*file).log = r.log();
        (*b).file = file;
        (*b).file_pos = offset as sys::off_t;
        (*b).file_last = (offset + len) as sys::off_t;
        (*b).set_in_file(1);
    }
    true
}

/// Unbuffered: `n` more bytes lie behind the buffer's content.
pub unsafe extern "C" fn filter(data: *mut c_void, n: isize) -> sys::ngx_int_t {
    callback("input_filter", ERROR, || {
        // SAFETY: nginx passes the request that the content handler has named as context, and has put the bytes behind
        // the content of its first buffer.
        unsafe {
            let r = data.cast::<sys::ngx_http_request_t>();
            let (view, u, x) = (Request::new(r), &mut *(*r).upstream, exchange(r));
            let first = u.buffer.last;
            let bytes = std::slice::from_raw_parts(first, n.max(0) as usize);
            u.buffer.last = first.add(bytes.len());
            let mut tail = &raw mut u.out_bufs;
            while !(*tail).is_null() {
                tail = &raw mut (**tail).next;
            }
            let mut at = 0;
            loop {
                let (used, piece) = next(&view, x, &bytes[at..]);
                at += used;
                let (buffer, file) = match piece {
                    Piece::Data(n) => {
                        let start = first.add(at - n);
                        let pass = accept(x, n as u64) as usize;
                        (Some((start, pass)), None)
                    }
                    Piece::File(fd, offset, len) => (None, Some((fd, offset, accept(x, len)))),
                    Piece::End => (None, None),
                    Piece::More => return OK,
                    Piece::Broken => {
                        u.set_error(1);
                        return OK;
                    }
                };
                let some = buffer.is_some_and(|b| b.1 > 0) || file.as_ref().is_some_and(|f| f.2 > 0);
                if some {
                    let link = sys::ngx_chain_get_free_buf((*r).pool, &raw mut u.free_bufs);
                    if link.is_null() {
                        return ERROR;
                    }
                    let b = (*link).buf;
                    std::ptr::write_bytes(b, 0, 1);
                    if !x.small {
                        (*b).tag = u.output.tag;
                        (*b).set_flush(1);
                    }
                    // A whole answer needs no flush, LAST follows at once; without our tag nginx does not wait for the
                    // buffer to come back before it goes on to that.
                    if let Some((start, n)) = buffer {
                        ((*b).start, (*b).pos) = (start, start);
                        ((*b).last, (*b).end) = (start.add(n), start.add(n));
                        (*b).set_memory(1);
                    } else if let Some((fd, offset, len)) = file
                        && !file_buffer(&view, b, fd, offset, len)
                    {
                        return ERROR;
                    }
                    (*link).next = null_mut();
                    *tail = link;
                    tail = &raw mut (*link).next;
                }
                if x.reader.ended() && u.length != 0 {
                    u.length = 0;
                    if !finished(&view, x) {
                        u.length = 1;
                        u.set_error(1);
                        return OK;
                    }
                }
            }
        }
    })
}

/// Buffered: a buffer has been filled.
pub unsafe extern "C" fn pipe_filter(p: *mut sys::ngx_event_pipe_t, buf: *mut sys::ngx_buf_t) -> sys::ngx_int_t {
    callback("the pipe's filter", ERROR, || {
        // SAFETY: nginx passes its live pipe, whose context is the request, and one of its raw buffers. The buffers made
        // here are its shadows, linked as nginx's own filters link them: the raw buffer is free again when the last of
        // them has gone out.
        unsafe {
            let r = (*p).input_ctx.cast::<sys::ngx_http_request_t>();
            let (view, x) = (Request::new(r), exchange(r));
            if (*buf).pos == (*buf).last {
                return OK;
            }
            let bytes = content(&*buf);
            let mut last: *mut sys::ngx_buf_t = null_mut();
            let mut shadow = &raw mut (*buf).shadow;
            let mut at = 0;
            loop {
                let (used, piece) = next(&view, x, &bytes[at..]);
                at += used;
                match piece {
                    Piece::Data(n) => {
                        let start = (*buf).pos.add(at - n);
                        let pass = accept(x, n as u64) as usize;
                        if pass > 0 {
                            let link = sys::ngx_chain_get_free_buf((*p).pool, &raw mut (*p).free);
                            if link.is_null() {
                                return ERROR;
                            }
                            let b = (*link).buf;
                            std::ptr::write_bytes(b, 0, 1);
                            ((*b).pos, (*b).last) = (start, start.add(pass));
                            ((*b).start, (*b).end) = ((*buf).start, (*buf).end);
                            (*b).tag = (*p).tag;
                            (*b).num = (*buf).num;
                            (*b).set_temporary(1);
                            (*b).set_recycled(1);
                            *shadow = b;
                            shadow = &raw mut (*b).shadow;
                            last = b;
                            append(p, link);
                        }
                    }
                    Piece::File(fd, offset, len) => {
                        let pass = accept(x, len);
                        if pass > 0 {
                            let link = sys::ngx_chain_get_free_buf((*p).pool, &raw mut (*p).free);
                            if link.is_null() {
                                return ERROR;
                            }
                            let b = (*link).buf;
                            std::ptr::write_bytes(b, 0, 1);
                            (*b).tag = (*p).tag;
                            (*b).num = (*buf).num;
                            if !file_buffer(&view, b, fd, offset, pass) {
                                return ERROR;
                            }
                            append(p, link);
                        }
                    }
                    Piece::End => {}
                    Piece::More => break,
                    Piece::Broken => {
                        (*p).set_upstream_error(1);
                        break;
                    }
                }
                if x.reader.ended() && (*p).length != 0 {
                    if finished(&view, x) {
                        (*p).length = 0;
                    } else {
                        (*p).set_upstream_error(1);
                        break;
                    }
                }
            }
            (*buf).pos = (*buf).last;
            if last.is_null() {
                return sys::ngx_event_pipe_add_free_buf(p, buf);
            }
            if x.reader.is_between() && !x.reader.ended() {
                // A block of the application ends here, and nobody knows when the next one comes: neither TLS nor gzip
                // keeps it back.
                (*last).set_flush(1);
            }
            (*last).shadow = buf;
            (*last).set_last_shadow(1);
        }
        OK
    })
}

/// Appends to what the pipe has to pass on.
///
/// # Safety
/// Both belong to the same live pipe.
unsafe fn append(p: *mut sys::ngx_event_pipe_t, link: *mut sys::ngx_chain_t) {
    // SAFETY: see above; `last_in` is set whenever `in` is.
    unsafe {
        (*link).next = null_mut();
        if (*p).in_.is_null() {
            (*p).in_ = link;
        } else {
            *(*p).last_in = link;
        }
        (*p).last_in = &raw mut (*link).next;
    }
}

/// The request leaves the upstream. A response that broke off must look so: where only the connection's end marks the
/// body's, it is reset.
pub fn finalize(r: &Request<'_>, x: &mut Exchange, rc: sys::ngx_int_t) {
    feed::settle(r, x, rc);
    if !x.passing && x.framer.is_some() {
        // SAFETY: the request's own upstream; nobody else has a reference to it now.
        drop_rest(r, x, unsafe { &mut (*r.upstream()).buffer });
    }
    let broken = rc != OK && rc != sys::NGX_DECLINED as sys::ngx_int_t;
    if !broken || x.framer.is_none() {
        return;
    }
    if let Some(lost) = x.framer.as_ref().filter(|f| f.content_length().is_none()).and(r.client_fd())
        && r.is_delimited_by_close()
    {
        // Over TLS an orderly goodbye would say that this was all.
        // SAFETY: a live request.
        unsafe { sys::mwr_no_goodbye(r.raw()) };
        // A socket that is gone already needs no reset.
        let _ = rustix::net::sockopt::set_socket_linger(lost.as_fd(), Some(std::time::Duration::ZERO));
    }
}
