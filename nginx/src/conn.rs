//! Connections to workers inside nginx's event loop: opened without waiting, greeted, read and written with descriptors
//! (nginx's own calls know none), and kept between requests.
//!
//! A connection's state is a [`Wire`]. While a request has it, nginx's record points to the request and the request's
//! exchange to the wire; while it is idle the record points to the wire.
#![allow(unsafe_code)]

use crate::guard::callback;
use crate::lane::{self, Lane};
use crate::log;
use crate::peer::{self, Before};
use crate::process::{Group, current};
use crate::request::Request;
use crate::sys;
use mod_wsgi_core::passed::{Passed, Trust};
use mod_wsgi_core::reader::{Item, Reader};
use mod_wsgi_scoreboard::Lease;
use mod_wsgi_wire::frame::Kind;
use mod_wsgi_wire::{decode, encode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, send, sendmsg, socket_with,
};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::null_mut;
use std::rc::Rc;

const AGAIN: isize = sys::NGX_AGAIN as isize;
const FAILED: isize = sys::NGX_ERROR as isize;
/// Most descriptors that may wait unclaimed; a worker sends one with each FILE.
const MAX_WAITING_FDS: usize = 2;
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

thread_local! {
    /// A descriptor kept for when no other is left: with it a request can still be told so.
    static SPARE: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

fn unconnected() -> Result<OwnedFd, Errno> {
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

/// One `recvmsg` into `iov`: how many bytes, 0 for nothing at present. What is passed goes to `fds`.
pub fn receive_from(
    fd: i32,
    iov: &mut [libc::iovec],
    trust: &Trust,
    fds: &mut VecDeque<Passed>,
) -> Result<usize, String> {
    {
        // Aligned for a control message of one descriptor. Without room the kernel drops what was passed.
        let mut space = [0u64; 4];
        let lost = trust.is_lost();
        let (n, flags) = loop {
            // SAFETY: all zero is a value of msghdr; the pieces of `iov` are writable (the caller's buffers), the control
            // buffer has the length that is told.
            let (n, flags) = unsafe {
                let mut m: libc::msghdr = std::mem::zeroed();
                m.msg_iov = iov.as_mut_ptr();
                m.msg_iovlen = iov.len() as _;
                m.msg_control = space.as_mut_ptr().cast();
                m.msg_controllen = if lost { 0 } else { libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) as _ };
                let n = libc::recvmsg(fd, &raw mut m, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT);
                if n >= 0 {
                    let mut h = libc::CMSG_FIRSTHDR(&raw const m);
                    while let Some(head) = h.as_ref() {
                        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
                            let data = libc::CMSG_DATA(h).cast::<libc::c_int>();
                            let count = (head.cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<libc::c_int>();
                            for i in 0..count {
                                let fd = OwnedFd::from_raw_fd(data.add(i).read_unaligned());
                                fds.push_back(Passed::new(fd, trust));
                            }
                        }
                        h = libc::CMSG_NXTHDR(&raw const m, h);
                    }
                }
                (n, m.msg_flags)
            };
            if n >= 0 {
                break (n, flags);
            }
            match std::io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::EINTR) => {}
                e if e.raw_os_error() == Some(libc::EAGAIN) => return Ok(0),
                e => return Err(format!("connection lost: {e}")),
            }
        };
        if flags & libc::MSG_CTRUNC != 0 || fds.len() > MAX_WAITING_FDS {
            return Err("passed descriptor is refused: more than one with a frame".to_owned());
        }
        if n == 0 {
            return Err("connection lost: end of file".to_owned());
        }
        Ok(n as usize)
    }
}

/// What nginx's reading is told.
fn outcome(c: *mut sys::ngx_connection_t, x: *mut peer::Exchange, got: Result<usize, String>) -> isize {
    // SAFETY: nginx passes its live record to `recv`; the exchange lives as long as its request.
    unsafe {
        match got {
            Ok(0) => {
                (*(*c).read).set_ready(0);
                AGAIN
            }
            Ok(n) => n as isize,
            Err(text) => {
                (*(*c).read).set_error(1);
                (*x).lost(text);
                FAILED
            }
        }
    }
}

fn read_into(c: *mut sys::ngx_connection_t, iov: &mut [libc::iovec]) -> isize {
    if iov.iter().all(|v| v.iov_len == 0) {
        // The kernel would answer 0, which is how it tells the end of a connection.
        return AGAIN;
    }
    // SAFETY: nginx calls this for a record that a request of ours has; its exchange lives as long as the request, and
    // no reference to it is held by callers further up while nginx reads.
    unsafe {
        let x = peer::exchange_of(c);
        match (*x).before_receive() {
            Before::Stop => {
                (*(*c).read).set_error(1);
                return FAILED;
            }
            Before::Pretend => {
                if let Some(first) = iov.first() {
                    *first.iov_base.cast::<u8>() = 0;
                }
                return 1;
            }
            Before::Wait => {
                (*(*c).read).set_ready(0);
                return AGAIN;
            }
            Before::Go => {}
        }
        let wire = &mut *(*x).wire;
        if !wire.greeted {
            let got = match wire.greet() {
                Ok(true) => {
                    // The request may go out now; nothing else can have come.
                    (*(*c).write).set_ready(1);
                    sys::mwr_post_event((*c).write);
                    Ok(0)
                }
                Ok(false) => Ok(0),
                Err(text) => Err(text),
            };
            return outcome(c, x, got);
        }
        let got = wire.take(iov);
        outcome(c, x, got)
    }
}

unsafe extern "C" fn receive(c: *mut sys::ngx_connection_t, buf: *mut u8, size: usize) -> isize {
    callback("receiving from a worker", FAILED, || {
        read_into(c, &mut [libc::iovec { iov_base: buf.cast(), iov_len: size }])
    })
}

unsafe extern "C" fn receive_chain(
    c: *mut sys::ngx_connection_t,
    chain: *mut sys::ngx_chain_t,
    limit: sys::off_t,
) -> isize {
    callback("receiving from a worker", FAILED, || {
        let mut iov = Vec::with_capacity(8);
        let mut left = if limit > 0 { limit as usize } else { usize::MAX };
        let mut link = chain;
        // SAFETY: nginx passes a null-terminated chain of its buffers, each with room between `last` and `end`.
        while let Some(l) = unsafe { link.as_ref() } {
            // SAFETY: as above.
            let b = unsafe { &*l.buf };
            // SAFETY: both pointers lie in the buffer's memory.
            let room = unsafe { b.end.offset_from_unsigned(b.last) }.min(left);
            if room > 0 && iov.len() < 64 {
                iov.push(libc::iovec { iov_base: b.last.cast::<c_void>(), iov_len: room });
            }
            left -= room;
            link = l.next;
        }
        read_into(c, &mut iov)
    })
}

/// Sends what there is of the request; its descriptor goes with the first byte.
unsafe extern "C" fn send_chain(
    c: *mut sys::ngx_connection_t,
    chain: *mut sys::ngx_chain_t,
    _: sys::off_t,
) -> *mut sys::ngx_chain_t {
    // NGX_CHAIN_ERROR
    let failed = usize::MAX as *mut sys::ngx_chain_t;
    callback("sending to a worker", failed, || {
        let mut link = chain;
        // SAFETY: nginx passes its live record and a null-terminated chain of buffers; the exchange and its wire live as
        // long as the request that has the record.
        unsafe {
            let x = peer::exchange_of(c);
            let wire = (*x).wire;
            while let Some(l) = link.as_ref() {
                let b = &mut *l.buf;
                let bytes = std::slice::from_raw_parts(b.pos, b.last.offset_from_unsigned(b.pos));
                if bytes.is_empty() {
                    link = l.next;
                    continue;
                }
                if (*wire).is_stand_in() {
                    b.pos = b.last;
                    continue;
                }
                if !(*wire).greeted {
                    (*(*c).write).set_ready(0);
                    return link;
                }
                if let Some(lane) = &(*wire).lane {
                    if let Some(why) = &(*wire).stranded {
                        (*(*c).write).set_error(1);
                        (*x).lost(why.clone());
                        return failed;
                    }
                    lane.send(bytes);
                    (*c).sent += bytes.len() as sys::off_t;
                    b.pos = b.last;
                    continue;
                }
                let body = (*x).body_to_send().filter(|_| (*c).sent == 0);
                match transmit((*wire).fd(), bytes, body) {
                    Ok(n) => {
                        b.pos = b.pos.add(n);
                        (*c).sent += n as sys::off_t;
                    }
                    Err(Errno::AGAIN) => {
                        (*(*c).write).set_ready(0);
                        return link;
                    }
                    Err(e) => {
                        (*(*c).write).set_error(1);
                        (*x).lost(format!("connection lost: {e}"));
                        return failed;
                    }
                }
            }
        }
        null_mut()
    })
}

/// One `sendmsg`.
fn transmit(fd: BorrowedFd<'_>, bytes: &[u8], pass: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
    loop {
        let sent = match pass {
            // Also where the worker has made a socket that it has passed a blocking one.
            None => send(fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT),
            Some(pass) => {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let fds = [pass];
                control.push(SendAncillaryMessage::ScmRights(&fds));
                sendmsg(fd, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
            }
        };
        match sent {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Sends two pieces, one behind the other, on a worker's connection.
///
/// # Safety
/// `fd` is an open socket.
pub unsafe fn transmit_parts(fd: i32, first: &[u8], second: &[u8]) -> Result<usize, Errno> {
    // SAFETY: see above.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    loop {
        let parts = [IoSlice::new(first), IoSlice::new(second)];
        match sendmsg(fd, &parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

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
    // SAFETY: a box of this module that nobody refers to any more; its record is given back with its pool. It has no
    // descriptor that could be closed.
    unsafe {
        let c = (*wire).c;
        drop(Box::from_raw(wire));
        if !(*c).pool.is_null() {
            sys::ngx_destroy_pool((*c).pool);
            (*c).pool = null_mut();
        }
        sys::ngx_free_connection(c);
    }
}

/// Closes a connection that no request has.
pub fn close(wire: *mut Wire) {
    // SAFETY: a box of this module that is in no list any more; its record is ours to close, with its pool.
    unsafe {
        let c = (*wire).c;
        drop(Box::from_raw(wire));
        if !(*c).pool.is_null() {
            sys::ngx_destroy_pool((*c).pool);
            (*c).pool = null_mut();
        }
        sys::ngx_close_connection(c);
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
