//! What nginx calls to read and write a connection to a worker, and the system calls behind it.
#![allow(unsafe_code)]

use crate::guard::callback;
use crate::peer::{self, Before};
use crate::sys;
use mod_wsgi_core::passed::{Passed, Trust};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;

const AGAIN: isize = sys::NGX_AGAIN as isize;
const FAILED: isize = sys::NGX_ERROR as isize;
/// Most descriptors that may wait unclaimed; a worker sends one with each FILE.
const MAX_WAITING_FDS: usize = 2;

/// One `recvmsg` into `iov`: how many bytes, 0 for nothing at present. What is passed goes to `fds`.
pub fn receive_from(
    fd: i32,
    iov: &mut [libc::iovec],
    trust: &Trust,
    fds: &mut VecDeque<Passed>,
) -> Result<usize, String> {
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

pub unsafe extern "C" fn receive(c: *mut sys::ngx_connection_t, buf: *mut u8, size: usize) -> isize {
    callback("receiving from a worker", FAILED, || {
        read_into(c, &mut [libc::iovec { iov_base: buf.cast(), iov_len: size }])
    })
}

pub unsafe extern "C" fn receive_chain(
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
pub unsafe extern "C" fn send_chain(
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
