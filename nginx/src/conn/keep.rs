//! Connections between requests: given up by one, kept idle, given to the next, closed.
#![allow(unsafe_code)]

use super::{KEPT, Wire};
use crate::guard::callback;
use crate::log;
use crate::process::current;
use crate::sys;
use mod_wsgi_core::reader::{Item, Reader};
use mod_wsgi_wire::encode;
use mod_wsgi_wire::frame::Kind;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::os::fd::AsFd;
use std::ptr::null_mut;

/// Frees a wire that its request gives up. nginx closes the record, unless it has no socket of its own.
pub fn discard(wire: *mut Wire, pc: &mut sys::ngx_peer_connection_t) {
    // SAFETY: a live wire of the request whose peer this is.
    if unsafe { (*wire).lane.is_some() } {
        pc.connection = null_mut();
        return put_away(wire);
    }
    // SAFETY: a box of this module that nobody refers to any more.
    drop(unsafe { Box::from_raw(wire) });
}

/// Takes a connection without a socket from its request: it is used again, or freed.
fn put_away(wire: *mut Wire) {
    // SAFETY: a live wire whose request gives it up; its record is ours, and nothing watches it.
    unsafe {
        let w = &mut *wire;
        if let Some(lane) = w.lane.take() {
            lane.alight(w.row, w.row_generation);
        }
        let c = &mut *w.c;
        c.fd = -1;
        sys::mwr_del_timer(c.read);
        sys::mwr_del_timer(c.write);
        sys::mwr_unpost_event(c.read);
        sys::mwr_unpost_event(c.write);
        (*c.read).set_ready(0);
        (*c.read).set_delayed(0);
        c.data = null_mut();
        tell(c, log::of_process());
        let spoiled = (*c.read).error() != 0
            || (*c.read).eof() != 0
            || (*c.read).timedout() != 0
            || (*c.write).error() != 0
            || (*c.write).timedout() != 0
            || w.stranded.is_some()
            || w.has_fds();
        // A large inbox is not kept.
        if spoiled || w.inbox.capacity() > KEPT {
            return dispose(wire);
        }
        w.inbox.clear();
        w.inbox_at = 0;
        w.group = None;
        match current() {
            Some(p) => p.keep_socketless(wire),
            None => dispose(wire),
        }
    }
}

/// Frees a connection without a socket.
pub fn dispose(wire: *mut Wire) {
    // SAFETY: a wire that nobody refers to any more, whose record is given back. It has no descriptor to be closed.
    unsafe { sys::ngx_free_connection(dissolve(wire)) };
}

/// Closes a connection that no request has.
pub fn close(wire: *mut Wire) {
    // SAFETY: a wire that is in no list any more, whose record is ours to close.
    unsafe { sys::ngx_close_connection(dissolve(wire)) };
}

/// Frees a wire and its record's pool; gives the record.
///
/// # Safety
/// `wire` is a live box of this module that nobody refers to any more.
unsafe fn dissolve(wire: *mut Wire) -> *mut sys::ngx_connection_t {
    // SAFETY: see above; the record outlives its wire.
    unsafe {
        let c = Box::from_raw(wire).c;
        if !(*c).pool.is_null() {
            sys::ngx_destroy_pool((*c).pool);
            (*c).pool = null_mut();
        }
        c
    }
}

/// Takes a connection from a request whose response is whole. `reader` has read it so far; `owes_end`: its streamed body
/// was not sent to its end.
pub fn release(wire: *mut Wire, reader: Reader, owes_end: bool) {
    // SAFETY: a live wire whose request gives it up; nginx's record and its events live as long as it.
    unsafe {
        if (*wire).lane.is_some() {
            // Records may lie behind the end of the answer.
            let mut reader = reader;
            rest(&mut reader, &(&(*wire).inbox)[(*wire).inbox_at..]);
            return put_away(wire);
        }
        let c = &mut *(*wire).c;
        c.data = wire.cast();
        tell(c, log::of_process());
        sys::mwr_del_timer(c.read);
        sys::mwr_del_timer(c.write);
        // wsgi_limit_rate held up the reading of this answer, not of the next.
        (*c.read).set_delayed(0);
        sys::mwr_unpost_event(c.write);
        (*c.write).handler = Some(ignore);
        c.set_idle(1);
        // Neither its own end nor the application's keeps this process, and nginx does not complain of it.
        (*c.read).set_channel(1);
        let done = reader.done();
        (*wire).late = reader;
        (*wire).owes_end = owes_end;
        (*wire).reused = true;
        if done {
            keep(wire);
        } else {
            (*c.read).handler = Some(on_late);
            // What is left of the answer may be in the socket already.
            sys::mwr_post_event(c.read);
        }
    }
}

/// Puts a connection among the idle ones.
///
/// # Safety
/// `wire` is live and no request has it.
unsafe fn keep(wire: *mut Wire) {
    // SAFETY: see above.
    unsafe {
        let c = &mut *(*wire).c;
        if !(*wire).late.is_between() || (*wire).has_fds() || !(*wire).inbox.is_empty() || (*c.read).pending_eof() != 0
        {
            return close(wire);
        }
        if std::mem::take(&mut (*wire).owes_end) {
            let mut end = Vec::new();
            encode::empty(&mut end, Kind::BodyEnd, 0);
            if send((*wire).fd(), &end, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) != Ok(end.len()) {
                return close(wire);
            }
        }
        // All has been read: the next event tells of something new, and no request need look before.
        (*c.read).set_ready(0);
        sys::mwr_unpost_event(c.read);
        (*c.read).handler = Some(on_idle);
        (*wire).late = Reader::default();
        match (*wire).group.clone() {
            Some(group) => group.put_idle((*wire).slot, wire),
            None => close(wire),
        }
    }
}

/// Gives an idle connection to a request.
pub fn employ(wire: *mut Wire, log: *mut sys::ngx_log_t) {
    // SAFETY: a live wire that has just been taken from the idle ones.
    unsafe {
        let c = &mut *(*wire).c;
        c.set_idle(0);
        (*c.read).set_channel(0);
        c.sent = 0;
        c.data = null_mut();
        tell(c, log);
    }
}

/// Gives a record the log of whoever has it now: that of a request ends with its client's connection.
///
/// # Safety
/// `c` is a live record.
unsafe fn tell(c: &mut sys::ngx_connection_t, log: *mut sys::ngx_log_t) {
    c.log = log;
    // SAFETY: a record's events, and its pool if it has one, live as long as it.
    unsafe {
        (*c.read).log = log;
        (*c.write).log = log;
        if !c.pool.is_null() {
            (*c.pool).log = log;
        }
    }
}

unsafe extern "C" fn ignore(_: *mut sys::ngx_event_t) {}

/// The wire of an event of a connection that no request has.
///
/// # Safety
/// `ev` is such an event: its connection's data is the wire.
unsafe fn idle_wire(ev: *mut sys::ngx_event_t) -> *mut Wire {
    // SAFETY: see above; nginx's events point to their connection.
    unsafe { (*(*ev).data.cast::<sys::ngx_connection_t>()).data.cast() }
}

/// Something has happened on an idle connection: it is of no use any more.
unsafe extern "C" fn on_idle(ev: *mut sys::ngx_event_t) {
    callback("an idle connection", (), || {
        // SAFETY: nginx passes the read event of a connection that `keep` has put among the idle ones.
        unsafe {
            let wire = idle_wire(ev);
            let mut byte = [0u8; 1];
            let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
            let quiet = matches!(rustix::net::recv((*wire).fd().as_fd(), &mut byte, flags), Err(Errno::AGAIN));
            if quiet && (*(*wire).c).close() == 0 {
                (*ev).set_ready(0);
                return;
            }
            if let Some(group) = (*wire).group.clone() {
                group.forget(wire);
            }
            close(wire);
        }
    });
}

/// What comes after END: records, then DONE, and the connection is free.
unsafe extern "C" fn on_late(ev: *mut sys::ngx_event_t) {
    callback("the end of an answer", (), || {
        // SAFETY: nginx passes the read event of a connection that `release` has prepared.
        unsafe {
            let wire = idle_wire(ev);
            if (*(*wire).c).close() != 0 {
                return close(wire);
            }
            let mut buf = [0u8; 4096];
            loop {
                let got = (*wire).take(&mut [libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() }]);
                let n = match got {
                    Ok(0) => {
                        (*ev).set_ready(0);
                        return;
                    }
                    Ok(n) => n,
                    Err(_) => return close(wire),
                };
                if !rest(&mut (*wire).late, &buf[..n]) {
                    return close(wire);
                }
                if (*wire).late.done() {
                    return keep(wire);
                }
            }
        }
    });
}

/// Takes what comes after END out of `bytes`; `false`: it is not the protocol.
fn rest(reader: &mut Reader, mut bytes: &[u8]) -> bool {
    loop {
        let Ok((used, item)) = reader.next(bytes) else { return false };
        bytes = &bytes[used..];
        match item {
            Item::Log(level) => log::process(level, &String::from_utf8_lossy(reader.text())),
            Item::Mark => {}
            Item::More => return true,
            _ => return false,
        }
        if reader.done() && bytes.is_empty() {
            return true;
        }
    }
}
