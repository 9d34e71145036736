//! Connections to workers inside nginx's event loop: opened without waiting, greeted, read and written with descriptors
//! (nginx's own calls know none), and kept between requests.
//!
//! A connection's state is a [`Wire`]. While a request has it, nginx's record points to the request and the request's
//! exchange to the wire; while it is idle the record points to the wire.
#![allow(unsafe_code)]

mod keep;
mod ride;
mod transfer;

pub use keep::{close, discard, dispose, employ, release};
pub use ride::{adopt, board, deposit, strand, wake};
pub use transfer::{receive_from, transmit_parts};

use crate::lane::Lane;
use crate::process::Group;
use crate::sys;
use mod_wsgi_core::passed::{Passed, Trust};
use mod_wsgi_core::reader::Reader;
use mod_wsgi_scoreboard::Lease;
use mod_wsgi_wire::decode;
use mod_wsgi_wire::frame::Kind;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use transfer::{receive, receive_chain, send_chain};

/// Largest inbox that is kept for the next request, bytes.
const KEPT: usize = 64 * 1024;
/// Longest HELLO of a worker, with its header.
const HELLO: usize = 72;

/// One connection.
pub struct Wire {
    pub c: *mut sys::ngx_connection_t,
    /// `None`: leads nowhere, stands in for a connection while a request waits or fails.
    group: Option<Rc<Group>>,
    slot: u16,
    slot_generation: u32,
    /// HELLO of the worker has been read.
    greeted: bool,
    /// Part of the worker's HELLO.
    hello: Vec<u8>,
    /// Has served a request before.
    pub reused: bool,
    fds: VecDeque<Passed>,
    /// What is still to come after END, while nobody waits for it.
    late: Reader,
    /// BODY_END is to be sent before the next request: nobody wanted the body, or its rest.
    owes_end: bool,
    /// What its request rides on; then the record has no socket of its own.
    lane: Option<Rc<Lane>>,
    row: u16,
    row_generation: u32,
    /// What the lane has brought for it, from `inbox_at` on.
    inbox: Vec<u8>,
    inbox_at: usize,
    /// Why the lane has ended.
    stranded: Option<String>,
}

/// Whether a connection leads to this incarnation of its slot.
pub fn leads_to(wire: *mut Wire, generation: u32) -> bool {
    // SAFETY: wires are boxes of this module, freed by `close` and `discard` only, which take them out of every list.
    unsafe { (*wire).slot_generation == generation }
}

/// A record of nginx's for a descriptor; `None` when there is none left, which nginx has logged.
fn record(fd: OwnedFd, log: *mut sys::ngx_log_t) -> Option<*mut sys::ngx_connection_t> {
    let c = bare_record(fd.as_raw_fd(), log)?;
    // The descriptor belongs to the record from now on.
    let _ = fd.into_raw_fd();
    Some(c)
}

fn bare_record(fd: i32, log: *mut sys::ngx_log_t) -> Option<*mut sys::ngx_connection_t> {
    // SAFETY: nginx gives a record for the descriptor, or null. The fields set are those that ngx_event_connect_peer sets.
    unsafe {
        let c = sys::ngx_get_connection(fd, log);
        let k = c.as_mut()?;
        k.recv = Some(receive);
        k.recv_chain = Some(receive_chain);
        k.send = None;
        k.send_chain = Some(send_chain);
        k.set_sendfile(0);
        k.set_log_error(sys::NGX_ERROR_ERR as _);
        k.set_tcp_nopush(sys::NGX_TCP_NOPUSH_DISABLED as _);
        k.set_tcp_nodelay(sys::NGX_TCP_NODELAY_DISABLED as _);
        k.number = sys::mwr_connection_number();
        k.start_time = sys::mwr_now();
        (*k.read).log = log;
        (*k.write).log = log;
        Some(c)
    }
}

fn wire(c: *mut sys::ngx_connection_t, group: Option<Rc<Group>>, slot: u16, slot_generation: u32) -> *mut Wire {
    Box::into_raw(Box::new(Wire {
        c,
        group,
        slot,
        slot_generation,
        greeted: false,
        hello: Vec::new(),
        reused: false,
        fds: VecDeque::new(),
        late: Reader::default(),
        owes_end: false,
        lane: None,
        row: 0,
        row_generation: 0,
        inbox: Vec::new(),
        inbox_at: 0,
        stranded: None,
    }))
}

/// Why a worker cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    System(#[from] Errno),
    #[error("no worker_connections left")]
    Records,
}

/// Connects to a worker and says HELLO. Its answer is read before the first request is sent.
pub fn open(group: &Rc<Group>, lease: &Lease, client: u32, log: *mut sys::ngx_log_t) -> Result<*mut Wire, OpenError> {
    let c = dial(group, lease, client, log)?;
    // SAFETY: the record is ours; the event module watches it from now on.
    unsafe {
        if sys::mwr_add_conn(c) != 0 {
            sys::ngx_close_connection(c);
            return Err(OpenError::Records);
        }
        (*(*c).write).set_ready(1);
    }
    Ok(wire(c, Some(group.clone()), lease.slot, lease.slot_generation))
}

/// A record for a new socket to a worker on which HELLO has been sent; nothing watches it yet.
pub fn dial(
    group: &Rc<Group>,
    lease: &Lease,
    client: u32,
    log: *mut sys::ngx_log_t,
) -> Result<*mut sys::ngx_connection_t, OpenError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // A Unix socket connects at once or not at all: a full backlog is EAGAIN.
    connect(&fd, &SocketAddrUnix::new(group.pool.socket_path(lease))?)?;
    send(&fd, &group.pool.hello(client), SendFlags::NOSIGNAL)?;
    record(fd, log).ok_or(OpenError::Records)
}

thread_local! {
    /// A descriptor kept for when no other is left: with it a request can still be told so.
    static SPARE: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

/// A socket that nothing is connected to.
pub fn unconnected() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// Sees to it that there is a descriptor for a request that fails for want of one.
pub fn keep_spare() {
    SPARE.with_borrow_mut(|spare| {
        if spare.is_none() {
            // Without one now: it is tried again when a request has ended.
            *spare = unconnected().ok();
        }
    });
}

/// A connection that leads nowhere: nginx's upstream wants one, also while a request waits for a row or fails. With the
/// error when it took the last descriptor, kept for those that fail: the request must not wait on it.
pub fn stand_in(log: *mut sys::ngx_log_t) -> Result<(*mut Wire, Option<Errno>), OpenError> {
    let (fd, short) = match unconnected() {
        Ok(fd) => (fd, None),
        Err(e) => (SPARE.take().ok_or(e)?, Some(e)),
    };
    let c = record(fd, log).ok_or(OpenError::Records)?;
    // SAFETY: the record is ours. The event module never hears of it: taken for active, nothing adds it later.
    unsafe {
        (*(*c).read).set_active(1);
        (*(*c).write).set_active(1);
        (*(*c).write).set_ready(1);
        (*(*c).read).set_ready(1);
    }
    Ok((wire(c, None, 0, 0), short))
}

impl Wire {
    /// Its request shares a lane with others.
    pub fn rides(&self) -> bool {
        self.lane.is_some()
    }

    pub fn is_stand_in(&self) -> bool {
        self.group.is_none()
    }

    /// The descriptor that came with a FILE frame.
    pub fn take_fd(&mut self) -> Option<Passed> {
        self.fds.pop_front()
    }

    pub fn has_fds(&self) -> bool {
        !self.fds.is_empty()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the record's descriptor is open for as long as the wire lives.
        unsafe { BorrowedFd::borrow_raw((*self.c).fd) }
    }

    /// Reads the worker's HELLO and nothing beyond it.
    fn greet(&mut self) -> Result<bool, String> {
        loop {
            let want = match decode::header(&self.hello).map_err(|e| e.to_string())? {
                None => mod_wsgi_wire::limits::HEADER,
                Some(h) if h.kind != Kind::Hello => {
                    return Err(decode::Error::Unexpected { kind: h.kind }.to_string());
                }
                Some(h) => mod_wsgi_wire::limits::HEADER + h.len,
            };
            if self.hello.len() > mod_wsgi_wire::limits::HEADER && self.hello.len() == want {
                let hello = decode::hello_worker(&self.hello[mod_wsgi_wire::limits::HEADER..]);
                if hello.map_err(|e| e.to_string())?.slot_generation != self.slot_generation {
                    return Err("greeting of another worker".to_owned());
                }
                self.greeted = true;
                self.hello = Vec::new();
                return Ok(true);
            }
            let mut buf = [0u8; HELLO];
            let have = self.hello.len();
            match rustix::net::recv(self.fd(), &mut buf[..(want - have).min(HELLO)], rustix::net::RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err("connection closed before the greeting".to_owned()),
                Ok((n, _)) => self.hello.extend_from_slice(&buf[..n]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    /// What is there for `iov`: how many bytes, 0 for nothing at present.
    fn take(&mut self, iov: &mut [libc::iovec]) -> Result<usize, String> {
        let waiting = &self.inbox[self.inbox_at..];
        if !waiting.is_empty() {
            let mut n = 0;
            for v in iov {
                let part = v.iov_len.min(waiting.len() - n);
                // SAFETY: the pieces of `iov` are writable (the caller's buffers) and lie apart from the inbox.
                unsafe { std::ptr::copy_nonoverlapping(waiting[n..].as_ptr(), v.iov_base.cast::<u8>(), part) };
                n += part;
            }
            self.inbox_at += n;
            if self.inbox_at == self.inbox.len() {
                self.inbox.clear();
                self.inbox_at = 0;
            }
            return Ok(n);
        }
        if let Some(why) = &self.stranded {
            return Err(why.clone());
        }
        if self.lane.is_some() {
            return Ok(0);
        }
        let trust = self.group.as_ref().map_or_else(|| Trust::new(false), |g| g.pool.trust.clone());
        // SAFETY: the record's descriptor is open for as long as the wire lives.
        receive_from(unsafe { (*self.c).fd }, iov, &trust, &mut self.fds)
    }
}
