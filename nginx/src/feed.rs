//! The request body of a streaming place (request buffering off): it goes to the worker while the client sends it and
//! while the answer is under way. Nothing is read before the application asks (CONTINUE), so that it may refuse without
//! a byte of it; until then a request can be recalled and sent again like any other.
//!
//! nginx reads the body unbuffered; what it has read is sent from its own buffers, and a worker that takes nothing stops
//! the reading when they are full. Runs in the events of the client's and of the worker's connection.
#![allow(unsafe_code)]

use crate::conn;
use crate::guard::callback;
use crate::handler::exchange;
use crate::log;
use crate::peer::Exchange;
use crate::request::Request;
use crate::sys;
use mod_wsgi_wire::encode;
use mod_wsgi_wire::frame::{Kind, Level};
use mod_wsgi_wire::limits::{HEADER, MAX_DATA};
use rustix::io::Errno;
use std::ptr::null_mut;

const OK: sys::ngx_int_t = sys::NGX_OK as sys::ngx_int_t;
const AGAIN: sys::ngx_int_t = sys::NGX_AGAIN as sys::ngx_int_t;
const SPECIAL: sys::ngx_int_t = sys::NGX_HTTP_SPECIAL_RESPONSE as sys::ngx_int_t;
const SERVER_ERROR: sys::ngx_int_t = sys::NGX_HTTP_INTERNAL_SERVER_ERROR as sys::ngx_int_t;
/// More unread body than this is not worth reading for the sake of keep-alive.
const WORTH_READING: i64 = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No body, or one that went with the request.
    Whole,
    /// The application has not asked yet.
    Unasked,
    /// It has: the reading is about to begin.
    Asked,
    /// nginx has been told to read, and will say when there is something.
    Opening,
    Open,
    /// BODY_END has been framed.
    Ending,
    /// BODY_END has been sent.
    Ended,
    /// Nothing more can go to the worker.
    Shut,
}

/// What the worker's connection is good for when the response is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// BODY_END has to follow DONE.
    End,
    /// The body broke off: close it.
    Broken,
}

/// One streamed body, or none. Its buffers live in the request's pool.
pub struct Feed {
    state: State,
    /// Buffers that nginx has filled and that have not been sent whole.
    pending: *mut sys::ngx_chain_t,
    /// Header of the frame under way, sent up to `at`.
    head: [u8; HEADER],
    at: usize,
    /// Bytes of that frame's payload that are to be sent, all of them in the first of the pending buffers.
    left: usize,
    /// What watched the client before.
    watch: sys::ngx_http_event_handler_pt,
}

impl Default for Feed {
    fn default() -> Feed {
        Feed { state: State::Whole, pending: null_mut(), head: [0; HEADER], at: HEADER, left: 0, watch: None }
    }
}

/// What came of sending.
enum Sent {
    All,
    /// The worker takes nothing at present; whether it has taken something before.
    Blocked(bool),
    /// The connection is gone.
    Lost,
}

impl Feed {
    /// The request goes out without its body, which the application will ask for.
    pub fn stream(&mut self) {
        self.state = State::Unasked;
    }

    pub fn is_streamed(&self) -> bool {
        self.state != State::Whole
    }

    /// Something of the body may have been read: the request cannot be sent a second time.
    pub fn has_begun(&self) -> bool {
        !matches!(self.state, State::Whole | State::Unasked)
    }

    /// A frame has been sent in part.
    fn is_amid(&self) -> bool {
        self.left > 0 || (self.at > 0 && self.at < HEADER)
    }

    /// What is left for the worker's connection when the response is over; `done`: the application is, too.
    pub fn left(&self, done: bool) -> Left {
        match self.state {
            State::Whole => Left::Nothing,
            State::Ended if self.at == HEADER => Left::Nothing,
            State::Unasked => Left::End,
            State::Shut | State::Ended => Left::Broken,
            // An application that still reads must not take what it has for the whole.
            _ if !done || self.is_amid() => Left::Broken,
            _ => Left::End,
        }
    }

    /// Sends what there is.
    fn send(&mut self, c: *mut sys::ngx_connection_t, pool: *mut sys::ngx_pool_t) -> Sent {
        let mut moved = false;
        loop {
            if self.at == HEADER && self.left == 0 && !self.frame(pool) {
                return Sent::All;
            }
            // SAFETY: a frame's payload lies in the first of the pending buffers, which nginx leaves alone until its
            // content has been used; the worker's connection is live.
            let sent = unsafe {
                let data = match self.pending.as_ref() {
                    Some(link) if self.left > 0 => std::slice::from_raw_parts((*link.buf).pos, self.left),
                    _ => &[],
                };
                conn::transmit_parts((*c).fd, &self.head[self.at..], data)
            };
            match sent {
                Ok(n) => {
                    let of_head = n.min(HEADER - self.at);
                    self.at += of_head;
                    self.left -= n - of_head;
                    moved = true;
                    // SAFETY: as above; `n - of_head` bytes of the buffer's content have been used.
                    unsafe {
                        (*c).sent += n as sys::off_t;
                        if n > of_head
                            && let Some(link) = self.pending.as_ref()
                        {
                            (*link.buf).pos = (*link.buf).pos.add(n - of_head);
                        }
                    }
                }
                Err(Errno::AGAIN) => {
                    // SAFETY: a live connection.
                    unsafe { (*(*c).write).set_ready(0) };
                    return Sent::Blocked(moved);
                }
                Err(_) => return Sent::Lost,
            }
        }
    }

    /// Begins the next frame; `false`: there is nothing to send.
    fn frame(&mut self, pool: *mut sys::ngx_pool_t) -> bool {
        // SAFETY: a null-terminated chain of live links, each with a buffer; used ones are given back to their pool.
        unsafe {
            while let Some(link) = self.pending.as_ref() {
                let have = (*link.buf).last.offset_from_unsigned((*link.buf).pos);
                if have > 0 {
                    self.left = have.min(MAX_DATA);
                    self.head = encode::body_header(self.left);
                    self.at = 0;
                    return true;
                }
                let next = link.next;
                sys::mwr_free_chain(pool, self.pending);
                self.pending = next;
            }
        }
        if self.state == State::Ending {
            let mut end = Vec::with_capacity(HEADER);
            encode::empty(&mut end, Kind::BodyEnd, 0);
            if let Some(head) = end.first_chunk() {
                (self.head, self.at) = (*head, 0);
            }
            self.state = State::Ended;
            return true;
        }
        false
    }

    /// Takes over what nginx has read; `false`: nothing.
    ///
    /// # Safety
    /// `r` is a live request whose body is being read, or has been.
    unsafe fn take(&mut self, r: *mut sys::ngx_http_request_t) -> bool {
        // SAFETY: see above; both chains are null-terminated and in the request's pool.
        unsafe {
            let Some(body) = (*r).request_body.as_mut() else { return false };
            let more = std::mem::replace(&mut body.bufs, null_mut());
            let mut tail = &raw mut self.pending;
            while !(*tail).is_null() {
                tail = &raw mut (**tail).next;
            }
            *tail = more;
            !more.is_null()
        }
    }
}

/// The request has a body that nobody has begun to read.
pub fn is_announced(r: &Request<'_>) -> bool {
    r.is_main() && !r.has_body_record() && (r.content_length() > 0 || r.is_chunked())
}

/// CONTINUE has come: the application reads. Goes on in an event of its own, because nginx is amid its reading of the
/// worker's answer.
pub fn asked(r: &Request<'_>, x: &mut Exchange) {
    if x.feed.state != State::Unasked {
        return;
    }
    x.feed.state = State::Asked;
    // SAFETY: the worker's connection is live while nginx reads from it.
    unsafe {
        let u = r.upstream();
        (*u).write_event_handler = Some(on_worker);
        if let Some(c) = (*u).peer.connection.as_ref() {
            // How long the application may pause is counted from the body's end on.
            sys::mwr_del_timer(c.read);
            sys::mwr_post_event(c.write);
        }
    }
}

/// The worker's connection takes bytes, or has not for too long; or it is time to begin.
unsafe extern "C" fn on_worker(r: *mut sys::ngx_http_request_t, u: *mut sys::ngx_http_upstream_t) {
    callback("the body's way to the worker", (), || {
        // SAFETY: nginx passes a live request of ours with its upstream and that upstream's connection.
        unsafe {
            if (*(*(*u).peer.connection).write).timedout() != 0 {
                let log = (*(*r).connection).log;
                let text = format!(
                    "MWR0231: worker has read nothing of the request's body for {} s (wsgi_send_timeout)",
                    (*(*u).conf).send_timeout / 1000
                );
                log::write(log, Level::Error, &text);
                return finish(r, sys::NGX_HTTP_GATEWAY_TIME_OUT as sys::ngx_int_t);
            }
            let state = exchange(r).feed.state;
            match state {
                State::Asked => open(r),
                State::Open | State::Ending | State::Ended => flow(r),
                State::Whole | State::Unasked | State::Opening | State::Shut => {}
            }
        }
    });
}

/// The client sends, or has left, or has not sent for too long.
unsafe extern "C" fn on_client(r: *mut sys::ngx_http_request_t) {
    callback("the body's way from the client", (), || {
        // SAFETY: nginx passes a live request; this handler is set while its upstream is ours.
        unsafe { flow(r) }
    });
}

/// Has nginx read the body unbuffered, which sends `100 Continue` where the client waits for it.
///
/// # Safety
/// `r` is a live request of ours, and nobody has a reference to its exchange. It may be gone when this returns.
unsafe fn open(r: *mut sys::ngx_http_request_t) {
    // SAFETY: see above. nginx's function is called as its own modules call it, but for what it does to the handler of
    // the client's writing side, which belongs to the answer.
    unsafe {
        if (*(*r).upstream).header_sent() != 0 {
            // Inside an answer it is too late for 100 Continue.
            (*r).set_expect_tested(1);
        }
        exchange(r).feed.state = State::Opening;
        exchange(r).feed.watch = (*r).read_event_handler;
        let writing = (*r).write_event_handler;
        (*r).set_request_body_no_buffering(1);
        let rc = sys::ngx_http_read_client_request_body(r, Some(on_body));
        (*r).write_event_handler = writing;
        if rc >= SPECIAL {
            return finish(r, rc);
        }
        // It has counted a use of the request, for a handler that returns; this is none.
        let main = (*r).main;
        (*main).set_count((*main).count() - 1);
        if rc != OK && rc != AGAIN {
            finish(r, SERVER_ERROR);
        }
    }
}

/// nginx has begun to read (or, where all had come on HTTP/2, has read) the body. Called from inside its function.
unsafe extern "C" fn on_body(r: *mut sys::ngx_http_request_t) {
    callback("the beginning of a body", (), || {
        // SAFETY: nginx passes the request for which `open` has called it; its upstream and worker are still there, or
        // this handler would have been replaced.
        unsafe {
            let x = exchange(r);
            if x.feed.state != State::Opening {
                return;
            }
            x.feed.state = State::Open;
            (*r).read_event_handler = Some(on_client);
            if let Some(c) = (*(*r).upstream).peer.connection.as_ref() {
                sys::mwr_post_event(c.write);
            }
        }
    });
}

/// Moves the body on as far as it goes.
///
/// # Safety
/// As for `open`.
unsafe fn flow(r: *mut sys::ngx_http_request_t) {
    // SAFETY: see above; the upstream has its connection while the exchange has a worker. The exchange is not touched
    // after `finish`.
    unsafe {
        let x: *mut Exchange = exchange(r);
        let u = (*r).upstream;
        let c = (*u).peer.connection;
        let mut blocked;
        let mut moved = false;
        loop {
            match (*x).feed.send(c, (*r).pool) {
                Sent::All => blocked = false,
                Sent::Blocked(some) => {
                    blocked = true;
                    moved |= some;
                }
                Sent::Lost => {
                    // What the worker has answered is still to be read.
                    (*x).feed.state = State::Shut;
                    (*x).feed.pending = null_mut();
                    return close(r);
                }
            }
            if (*x).feed.state != State::Open {
                break;
            }
            if (*r).reading_body() != 0 {
                let rc = sys::ngx_http_read_unbuffered_request_body(r);
                if rc != OK && rc != AGAIN {
                    return finish(r, if rc >= SPECIAL { rc } else { SERVER_ERROR });
                }
            }
            if !(*x).feed.take(r) {
                if (*r).reading_body() != 0 {
                    break;
                }
                (*x).feed.state = State::Ending;
                if blocked {
                    break;
                }
            }
        }
        if sys::mwr_watch_write((*c).write) != OK {
            return finish(r, SERVER_ERROR);
        }
        let conf = &*(*u).conf;
        if blocked {
            if moved || (*(*c).write).timer_set() == 0 {
                sys::mwr_add_timer((*c).write, conf.send_timeout);
            }
        } else {
            sys::mwr_del_timer((*c).write);
        }
        match (*x).feed.state {
            State::Ended if !blocked => close(r),
            // A client that takes its time is no pause of the application.
            _ => sys::mwr_del_timer((*c).read),
        }
    }
}

/// The body has gone its way: the client is watched as for a request without one, and the application's pauses count.
///
/// # Safety
/// As for `open`.
unsafe fn close(r: *mut sys::ngx_http_request_t) {
    // SAFETY: see above.
    unsafe {
        let u = (*r).upstream;
        let client = (*r).connection;
        sys::mwr_add_timer((*(*u).peer.connection).read, (*(*u).conf).read_timeout);
        sys::mwr_del_timer((*client).read);
        (*r).read_event_handler = exchange(r).feed.watch;
        if (*(*client).read).ready() != 0 {
            // That it has left may have been told together with its last bytes.
            sys::mwr_post_event((*client).read);
        }
    }
}

/// The body cannot be completed: the request ends with a status, or, amid its answer, broken off. As
/// ngx_http_upstream_finalize_request does it, which modules cannot call.
///
/// # Safety
/// `r` is a live request of ours whose upstream has not been finalized. It may be gone when this returns.
unsafe fn finish(r: *mut sys::ngx_http_request_t, rc: sys::ngx_int_t) {
    // SAFETY: see above. The clean-up is nginx's own: it ends the upstream and one use of the request, which is counted
    // before.
    unsafe {
        let u = (*r).upstream;
        let answered = (*u).header_sent() != 0;
        let Some(cleanup) = (*u).cleanup.as_ref().copied().flatten() else { return };
        (*(*r).main).set_count((*(*r).main).count() + 1);
        cleanup(r.cast());
        let gone = rc == sys::NGX_HTTP_REQUEST_TIME_OUT as sys::ngx_int_t;
        let rc = if answered && !gone {
            (*r).set_keepalive(0);
            sys::ngx_http_send_special(r, sys::NGX_HTTP_FLUSH as sys::ngx_uint_t)
        } else {
            rc
        };
        sys::ngx_http_finalize_request(r, rc);
    }
}

/// Whether more of the body is unread than is worth reading for the sake of keep-alive, or a client may still wait for
/// 100 Continue and not send it at all.
fn leaves_much(r: &Request<'_>) -> bool {
    r.is_chunked() || r.content_length() > WORTH_READING || r.awaits_continue()
}

/// The head of a whole answer is about to be sent.
pub fn answered_whole(r: &Request<'_>, x: &Exchange) {
    if x.feed.state == State::Unasked && leaves_much(r) {
        r.close_after();
    }
}

/// The upstream is over with `rc`. What nobody has asked for of a body is not taken for the next request.
pub fn settle(r: &Request<'_>, x: &mut Exchange, rc: sys::ngx_int_t) {
    x.feed.pending = null_mut();
    match x.feed.state {
        State::Whole => {}
        State::Unasked => {
            // Before a page of its own nginx reads the rest itself; a location to which the request is handed on has the
            // body before it.
            if rc == OK {
                if leaves_much(r) {
                    r.close_after();
                }
                r.discard_body();
            }
        }
        // nginx itself closes the connection where it has not read the whole.
        _ => r.forget_body(),
    }
}
