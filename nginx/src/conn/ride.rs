//! Connections of requests that ride on a lane: records without a socket, what the lane brings for them, and the socket
//! that a worker passes when an answer becomes large.
#![allow(unsafe_code)]

use super::keep::employ;
use super::{KEPT, OpenError, Wire, bare_record, wire};
use crate::lane::{self, Lane};
use crate::process::{Group, current};
use crate::request::Request;
use crate::sys;
use mod_wsgi_scoreboard::Lease;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::rc::Rc;

/// A connection for a request that rides on a lane: one that has been used, or a new record.
pub fn board(
    lane: &Rc<Lane>,
    group: &Rc<Group>,
    lease: &Lease,
    log: *mut sys::ngx_log_t,
) -> Result<*mut Wire, OpenError> {
    let process = current().ok_or(OpenError::Records)?;
    // nginx asks the socket of a connection whether it has failed. This one never does.
    let fd = process.quiet();
    let w = match process.take_socketless() {
        Some(w) => w,
        None => {
            let c = bare_record(fd, log).ok_or(OpenError::Records)?;
            // SAFETY: the record is ours. The event module never hears of it: taken for active, nothing adds it.
            unsafe {
                (*(*c).read).set_active(1);
                (*(*c).write).set_active(1);
                (*(*c).write).set_ready(1);
            }
            wire(c, None, 0, 0)
        }
    };
    // SAFETY: a live wire that nobody else has.
    unsafe {
        employ(w, log);
        let (k, word) = (&mut *w, lease.word);
        (*k.c).fd = fd;
        k.group = Some(group.clone());
        (k.slot, k.slot_generation) = (lease.slot, lease.slot_generation);
        (k.row, k.row_generation) = (lease.row, word.generation);
        k.greeted = true;
        k.reused = lane.was_used();
        k.lane = Some(lane.clone());
        lane.board(k.row, k.row_generation, w);
    }
    Ok(w)
}

/// Puts what a lane has brought into the inbox of its row's connection; gives how much waits there.
pub fn deposit(wire: *mut Wire, bytes: &[u8]) -> usize {
    // SAFETY: a live wire: lanes know only those that ride.
    let w = unsafe { &mut *wire };
    if w.inbox_at > KEPT {
        // One that is never read to its end must not grow for ever.
        w.inbox.drain(..std::mem::take(&mut w.inbox_at));
    }
    w.inbox.extend_from_slice(bytes);
    w.inbox.len() - w.inbox_at
}

/// Makes nginx read a connection that has something in its inbox, or has lost its lane.
pub fn wake(wire: *mut Wire) {
    // SAFETY: a live wire of a request. The handler may end the request and free the wire: nothing is touched after it.
    unsafe {
        let c = (*wire).c;
        (*(*c).read).set_ready(1);
        if let Some(handler) = (*(*c).read).handler {
            handler((*c).read);
        }
    }
}

/// The lane has ended, and is closed: nothing more will come.
pub fn strand(wire: *mut Wire, why: &str) {
    // SAFETY: a live wire that rode on the lane.
    unsafe { (*wire).stranded = Some(why.to_owned()) };
    wake(wire);
}

/// Gives a connection that rode on a lane, and has been taken off it, a socket of its own.
pub fn adopt(wire: *mut Wire, socket: OwnedFd) {
    // SAFETY: a live wire of a request, whose record had no socket of its own.
    unsafe {
        let w = &mut *wire;
        w.lane = None;
        let c = &mut *w.c;
        c.fd = socket.into_raw_fd();
        (*c.read).set_active(0);
        (*c.write).set_active(0);
        if sys::mwr_add_conn(c) != 0 {
            w.stranded = Some("connection lost: no event can be had".to_owned());
        }
        if let Some(script) = &Request::new(c.data.cast()).location().script {
            script.aside.set(lane::ASIDE);
        }
        if w.inbox_at == w.inbox.len() && w.stranded.is_none() {
            (*c.read).set_ready(0);
        } else {
            sys::mwr_post_event(c.read);
        }
    }
}
