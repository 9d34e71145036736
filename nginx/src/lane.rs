//! Lanes: one connection to a worker for many small requests. What the requests of one turn of nginx's loop send goes out
//! together at its end, and one read brings several answers: a connection for each costs four system calls a request.
//!
//! nginx's upstream wants a connection record for each request. It gets one that no socket belongs to: what is written
//! to it goes to the lane, what the lane brings for its row lies in its inbox. A worker whose answer becomes large passes
//! a socket for it (ADOPT); the record then gets that socket and is a connection like any other.
#![allow(unsafe_code)]

use crate::conn::{self, OpenError, Wire};
use crate::guard::callback;
use crate::log;
use crate::process::Group;
use crate::sys;
use mod_wsgi_core::error::RequestError;
use mod_wsgi_core::passed::Passed;
use mod_wsgi_scoreboard::Lease;
use mod_wsgi_wire::frame::Kind;
use mod_wsgi_wire::{decode, limits};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;
use std::rc::{Rc, Weak};

/// Requests that are sent together at most: with fewer the worker begins sooner.
const TOGETHER: u32 = 8;
/// Bytes read at once.
const READ: usize = 32 * 1024;
/// Most bytes of one row's answer that wait for nginx to take them. An honest worker asks for a socket long before.
const MOST_WAITING: usize = 1024 * 1024;
/// Most bytes of requests that wait for the worker to read, those that have been given up included; with more, requests get
/// connections of their own.
const MOST_UNSENT: usize = 256 * 1024;
/// Requests of a script that get connections of their own after one of its answers needed one.
pub const ASIDE: u32 = 16;

/// A lane. Its record in nginx holds one reference for as long as it is open.
pub struct Lane {
    /// Null once it is closed.
    c: Cell<*mut sys::ngx_connection_t>,
    group: Weak<Group>,
    pub slot: u16,
    pub slot_generation: u32,
    greeted: Cell<bool>,
    /// Has brought an answer.
    used: Cell<bool>,
    /// Nobody else boards it: it is closed when the last request has left.
    leaving: Cell<bool>,
    /// What is to be sent.
    out: RefCell<Vec<u8>>,
    /// Requests in `out` since it was sent last.
    together: Cell<u32>,
    /// Part of a frame.
    rest: RefCell<Vec<u8>>,
    fds: RefCell<VecDeque<Passed>>,
    /// By row: its generation and whose it is. A row may be taken again before the answer of the last request is here.
    riders: RefCell<Vec<Vec<(u32, *mut Wire)>>>,
    riding: Cell<usize>,
    /// Posted while there is something to send.
    flush: RefCell<Box<sys::ngx_event_t>>,
}

/// Whether nginx's event module lets a record exist that it is not told of.
pub fn possible() -> bool {
    // SAFETY: reads what nginx's event module has set at the start of the process.
    unsafe { sys::ngx_event_flags & sys::NGX_USE_CLEAR_EVENT as sys::ngx_uint_t != 0 }
}

impl Lane {
    /// Connects to a worker.
    pub fn open(
        group: &Rc<Group>,
        lease: &Lease,
        client: u32,
        log: *mut sys::ngx_log_t,
    ) -> Result<Rc<Lane>, OpenError> {
        let c = conn::dial(group, lease, client, log)?;
        // SAFETY: nginx's record of numbers and pointers, which nginx itself begins with zeroes.
        let mut flush = Box::new(unsafe { std::mem::zeroed::<sys::ngx_event_t>() });
        flush.handler = Some(on_flush);
        flush.log = log::of_process();
        let lane = Rc::new(Lane {
            c: Cell::new(c),
            group: Rc::downgrade(group),
            slot: lease.slot,
            slot_generation: lease.slot_generation,
            greeted: Cell::new(false),
            used: Cell::new(false),
            leaving: Cell::new(false),
            out: RefCell::default(),
            together: Cell::new(0),
            rest: RefCell::default(),
            fds: RefCell::default(),
            riders: RefCell::default(),
            riding: Cell::new(0),
            flush: RefCell::new(flush),
        });
        lane.flush.borrow_mut().data = Rc::as_ptr(&lane).cast_mut().cast();
        // SAFETY: the record is ours; it lives until `close`, which takes the reference back.
        unsafe {
            (*c).data = Rc::into_raw(lane.clone()).cast_mut().cast();
            (*c).log = log::of_process();
            (*(*c).read).log = (*c).log;
            (*(*c).write).log = (*c).log;
            (*(*c).read).handler = Some(on_readable);
            (*(*c).write).handler = Some(on_writable);
            (*(*c).write).set_ready(1);
            // An idle lane does not keep this process, and nginx does not complain of it.
            (*c).set_idle(1);
            (*(*c).read).set_channel(1);
            if sys::mwr_add_read((*c).read) != 0 {
                lane.close();
                return Err(OpenError::Records);
            }
        }
        Ok(lane)
    }

    /// Whether another request may go to that incarnation of its slot on it.
    pub fn takes(&self, slot_generation: u32) -> bool {
        !self.c.get().is_null() && !self.leaving.get() && self.slot_generation == slot_generation
    }

    /// The worker does not read: it is to take nothing more for now.
    pub fn is_crowded(&self) -> bool {
        self.out.borrow().len() > MOST_UNSENT
    }

    /// It has brought an answer before.
    pub fn was_used(&self) -> bool {
        self.used.get()
    }

    /// Lets a request ride; its answer is that of this row.
    pub fn board(&self, row: u16, generation: u32, wire: *mut Wire) {
        let mut riders = self.riders.borrow_mut();
        if riders.len() <= row as usize {
            riders.resize_with(row as usize + 1, Vec::new);
        }
        riders[row as usize].push((generation, wire));
        self.riding.set(self.riding.get() + 1);
        // SAFETY: the live record: a lane that is closed takes nobody.
        unsafe { (*self.c.get()).set_idle(0) };
    }

    /// A request leaves: nothing that comes for its row is its any more.
    pub fn alight(&self, row: u16, generation: u32) {
        if self.take_rider(row, generation).is_some() {
            self.rest_if_empty();
        }
    }

    /// Once nobody rides: idle, or closed where nobody else boards.
    fn rest_if_empty(&self) {
        if self.riding.get() > 0 {
            return;
        }
        if self.leaving.get() {
            self.close();
        // SAFETY: null, or the live record.
        } else if let Some(c) = unsafe { self.c.get().as_mut() } {
            c.set_idle(1);
        }
    }

    fn take_rider(&self, row: u16, generation: u32) -> Option<*mut Wire> {
        let mut riders = self.riders.borrow_mut();
        let of_row = riders.get_mut(row as usize)?;
        let at = of_row.iter().position(|(g, _)| *g == generation)?;
        self.riding.set(self.riding.get() - 1);
        Some(of_row.swap_remove(at).1)
    }

    fn rider(&self, row: u16, generation: u32) -> Option<*mut Wire> {
        let riders = self.riders.borrow();
        riders.get(row as usize)?.iter().find(|(g, _)| *g == generation).map(|(_, w)| *w)
    }

    /// Takes the bytes of one request.
    pub fn send(&self, bytes: &[u8]) {
        self.out.borrow_mut().extend_from_slice(bytes);
        self.together.set(self.together.get() + 1);
        if self.together.get() >= TOGETHER {
            self.flush();
        } else if self.greeted.get() {
            // SAFETY: the event lives as long as the lane, and is taken out of nginx's queue before it goes.
            unsafe { sys::mwr_post_event(&raw mut **self.flush.borrow_mut()) };
        }
    }

    fn flush(&self) {
        // SAFETY: null, or the live record.
        let Some(c) = (unsafe { self.c.get().as_mut() }) else { return };
        if !self.greeted.get() {
            return;
        }
        self.together.set(0);
        let mut out = self.out.borrow_mut();
        while !out.is_empty() {
            // SAFETY: the record's descriptor is open for as long as the record lives.
            let fd = unsafe { BorrowedFd::borrow_raw(c.fd) };
            match send(fd, &out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(n) if n == out.len() => out.clear(),
                Ok(n) => drop(out.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // SAFETY: the record's event; nginx adds it if it is not there.
                    unsafe {
                        (*c.write).set_ready(0);
                        sys::mwr_add_write(c.write);
                    }
                    return;
                }
                Err(_) => {
                    // The reading end finds out why, and when nobody is in the midst of a request.
                    // SAFETY: the record's event.
                    unsafe { sys::mwr_post_event(c.read) };
                    return;
                }
            }
        }
        if out.capacity() > MOST_WAITING {
            *out = Vec::new();
        }
    }

    /// Whoever rides stays to the end, nobody else boards.
    pub fn leave(&self) {
        self.leaving.set(true);
        self.rest_if_empty();
    }

    /// Closes the socket. The lane stays as long as somebody refers to it.
    fn close(&self) {
        let c = self.c.replace(null_mut());
        // SAFETY: the record of this lane, given back once; its data is the reference that `open` has made. The event
        // lives in this lane.
        unsafe {
            sys::mwr_unpost_event(&raw mut **self.flush.borrow_mut());
            if c.is_null() {
                return;
            }
            let own = Rc::from_raw((*c).data.cast::<Lane>().cast_const());
            sys::ngx_close_connection(c);
            if let Some(group) = self.group.upgrade() {
                group.forget_lane(self);
            }
            drop(own);
        }
    }

    /// The worker has gone, or does not speak the protocol: whoever rides is told.
    fn lose(&self, why: &str) {
        if let (false, Some(group)) = (why.starts_with("connection lost"), self.group.upgrade()) {
            let (label, pid) = (group.pool.label(), group.pool.table.pid(self.slot));
            let e = RequestError::WorkerProtocol { group: label, pid, error: why.to_owned() };
            log::process(e.verdict().level, &format!("{}: {e}", e.verdict().code));
        }
        self.close();
        loop {
            let next = self.riders.borrow_mut().iter_mut().find_map(Vec::pop);
            let Some((_, wire)) = next else { return };
            self.riding.set(self.riding.get() - 1);
            // The request may end with this, and others with it: they take themselves out of the list.
            conn::strand(wire, why);
        }
    }

    /// Reads what has come, and gives it to whom it belongs.
    fn read(&self) {
        let mut buf = std::mem::take(&mut *self.rest.borrow_mut());
        loop {
            // SAFETY: null, or the live record.
            let Some(c) = (unsafe { self.c.get().as_mut() }) else { return };
            let Some(group) = self.group.upgrade() else { return self.lose("connection lost: its group has gone") };
            buf.reserve(READ);
            let room = buf.spare_capacity_mut();
            let mut iov = [libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: READ }];
            let mut fds = self.fds.borrow_mut();
            let before = fds.len();
            let got = conn::receive_from(c.fd, &mut iov, &group.pool.trust, &mut fds);
            let passed = fds.len() > before;
            drop(fds);
            let n = match got {
                Ok(n) => n,
                Err(why) => return self.lose(&why),
            };
            // SAFETY: the kernel has written so many bytes behind what was there, into memory that is reserved.
            unsafe { buf.set_len(buf.len() + n) };
            let woken = match self.sort(&buf) {
                Ok((used, woken)) => {
                    buf.drain(..used);
                    woken
                }
                Err(why) => return self.lose(&why),
            };
            for (row, generation) in woken {
                if let Some(wire) = self.rider(row, generation) {
                    conn::wake(wire);
                }
            }
            // SAFETY: as above; it may have been closed meanwhile.
            let Some(read) = (unsafe { self.c.get().as_ref().and_then(|c| c.read.as_mut()) }) else { return };
            // Less than there was room for is all there was, unless a descriptor was passed there; the end of the
            // connection, once nginx has been told of it, makes no other event.
            if n == 0 || n < READ && !passed && read.pending_eof() == 0 {
                read.set_ready(0);
                break;
            }
        }
        *self.rest.borrow_mut() = buf;
    }

    /// Puts whole frames where they belong; gives how many bytes they took and the rows that got something.
    #[allow(clippy::type_complexity)]
    fn sort(&self, bytes: &[u8]) -> Result<(usize, Vec<(u16, u32)>), String> {
        let mut used = 0;
        let mut woken: Vec<(u16, u32)> = Vec::new();
        while let Some((h, payload, total)) = decode::frame(&bytes[used..]).map_err(|e| e.to_string())? {
            used += total;
            match h.kind {
                Kind::Hello if !self.greeted.get() => {
                    let hello = decode::hello_worker(payload).map_err(|e| e.to_string())?;
                    if hello.slot_generation != self.slot_generation {
                        return Err("greeting of another worker".to_owned());
                    }
                    self.greeted.set(true);
                    self.flush();
                }
                Kind::Reply if self.greeted.get() => {
                    let of = decode::of_row(payload).map_err(|e| e.to_string())?;
                    self.used.set(true);
                    let Some(wire) = self.rider(of.row, of.row_generation) else {
                        // Whoever has left does not want it, but what the application has logged since is of use.
                        records(of.frames)?;
                        continue;
                    };
                    if conn::deposit(wire, of.frames) > MOST_WAITING {
                        return Err(format!("more than {MOST_WAITING} bytes of an answer without a connection"));
                    }
                    if !woken.contains(&(of.row, of.row_generation)) {
                        woken.push((of.row, of.row_generation));
                    }
                }
                Kind::Adopt if self.greeted.get() => {
                    let of = decode::of_row(payload).map_err(|e| e.to_string())?;
                    let Some(passed) = self.fds.borrow_mut().pop_front() else {
                        return Err("passed descriptor is refused: there is none".to_owned());
                    };
                    let socket = passed.socket().map_err(|e| e.to_string())?;
                    if let Some(wire) = self.take_rider(of.row, of.row_generation) {
                        conn::adopt(wire, socket);
                        self.rest_if_empty();
                        if self.c.get().is_null() {
                            // What is left of these bytes is nobody's.
                            return Ok((bytes.len(), woken));
                        }
                    }
                }
                kind => return Err(decode::Error::Unexpected { kind }.to_string()),
            }
        }
        match decode::header(&bytes[used..]).map_err(|e| e.to_string())? {
            Some(h) if h.len > limits::COORDINATES + limits::MAX_REPLY => {
                Err(decode::Error::TooLong { len: h.len }.to_string())
            }
            _ => Ok((used, woken)),
        }
    }
}

/// Logs the records among whole frames that nobody waits for.
fn records(mut frames: &[u8]) -> Result<(), String> {
    while let Some((h, payload, total)) = decode::frame(frames).map_err(|e| e.to_string())? {
        if h.kind == Kind::Log {
            let (level, text) = decode::log(payload).map_err(|e| e.to_string())?;
            log::process(level, &String::from_utf8_lossy(text));
        }
        frames = &frames[total..];
    }
    Ok(())
}

impl Drop for Lane {
    fn drop(&mut self) {
        // SAFETY: the event lives in this lane; nginx must not find it afterwards.
        unsafe { sys::mwr_unpost_event(&raw mut **self.flush.borrow_mut()) };
    }
}

/// The lane of an event of its connection, held while the event is dealt with.
///
/// # Safety
/// `ev` is an event of the record that [`Lane::open`] has made.
unsafe fn lane_of(ev: *mut sys::ngx_event_t) -> Rc<Lane> {
    // SAFETY: see above; the record's data is a reference that lives as long as the record.
    unsafe {
        let lane = (*(*ev).data.cast::<sys::ngx_connection_t>()).data.cast::<Lane>().cast_const();
        Rc::increment_strong_count(lane);
        Rc::from_raw(lane)
    }
}

unsafe extern "C" fn on_readable(ev: *mut sys::ngx_event_t) {
    callback("reading from a lane", (), || {
        // SAFETY: nginx passes the read event of a lane's record.
        let lane = unsafe { lane_of(ev) };
        // SAFETY: as above.
        let asked_to_close = unsafe { (*lane.c.get()).close() } != 0;
        if asked_to_close {
            // nginx ends this process when its requests have ended.
            lane.leave();
        }
        lane.read();
    });
}

unsafe extern "C" fn on_writable(ev: *mut sys::ngx_event_t) {
    callback("writing to a lane", (), || {
        // SAFETY: nginx passes the write event of a lane's record.
        unsafe { lane_of(ev) }.flush();
    });
}

unsafe extern "C" fn on_flush(ev: *mut sys::ngx_event_t) {
    callback("sending to a lane", (), || {
        // SAFETY: the event's data is the lane it lives in, which takes it out of nginx's queue before it goes.
        let lane = unsafe { (*ev).data.cast::<Lane>().cast_const() };
        // SAFETY: as above; held, since the last reference may go meanwhile.
        let lane = unsafe {
            Rc::increment_strong_count(lane);
            Rc::from_raw(lane)
        };
        lane.flush();
    });
}
