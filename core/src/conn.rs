//! A blocking connection to one worker: HELLO, one REQUEST, frames of the answer. Used by servers whose request runs in
//! a thread of its own (httpd). Descriptors from a worker are
//! hostile: see [`crate::passed`].

use crate::passed::{Passed, Trust};
use mod_wsgi_wire::frame::{AbortReason, Header, Kind};
use mod_wsgi_wire::{decode, encode, limits};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, send, sendmsg,
    socket_with,
};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// After this long without an answer the row is looked at: recalled if another worker could run it.
pub const TICK: Duration = Duration::from_millis(20);

/// What went wrong on a worker's connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnError {
    /// The other end has closed or reset it, or does not listen.
    #[error("connection lost: {0}")]
    Lost(Errno),
    /// Bytes that are not the protocol.
    #[error("{0}")]
    Protocol(#[from] decode::Error),
    /// A descriptor that may not be used.
    #[error("passed descriptor is refused: {0}")]
    Descriptor(&'static str),
}

/// An idle or busy connection; `slot_generation` says which worker it leads to.
pub struct Conn {
    fd: OwnedFd,
    pub slot_generation: u32,
    /// HELLO of the worker has been read.
    pub greeted: bool,
    /// Whether it may pass descriptors.
    trust: Trust,
}

/// Bytes received and not yet used, and descriptors that came with them. Reused from request to request.
#[derive(Default)]
pub struct Inbox {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    last: (usize, usize),
    fds: VecDeque<Passed>,
    /// The last receive took all there was room for: more is probably waiting.
    filled: bool,
}

/// First receive buffer: one system call takes a whole small answer. Every serving thread of the server has one, so it
/// counts in the memory of each server process.
const FIRST: usize = 4 * 1024;
/// Receive buffer once an answer has filled the first one: many frames in one system call.
const STREAMING: usize = limits::HEADER + limits::MAX_DATA;
/// Largest buffer kept from one request to the next.
const KEPT: usize = 16 * 1024;
/// Most descriptors that may wait unclaimed; a worker sends one with each FILE.
const MAX_WAITING_FDS: usize = 2;

impl Inbox {
    /// Forgets everything (between requests).
    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
        self.last = (0, 0);
        self.filled = false;
        self.fds.clear();
        if self.buf.len() > KEPT {
            self.buf = Vec::new();
        }
    }

    /// Nothing is left over.
    pub fn is_empty(&self) -> bool {
        self.start == self.end && self.fds.is_empty()
    }

    /// Whether a whole frame has been received.
    pub fn has_frame(&self) -> Result<bool, decode::Error> {
        Ok(decode::frame(&self.buf[self.start..self.end])?.is_some())
    }

    /// The reason, when the first frame received is a whole ABORT.
    pub fn begins_with_abort(&self) -> Option<AbortReason> {
        match decode::frame(&self.buf[self.start..self.end]) {
            Ok(Some((h, payload, _))) if h.kind == Kind::Abort => decode::abort(payload).ok(),
            _ => None,
        }
    }

    /// Consumes the next whole frame and gives its header; a FILE's descriptor comes with it. The payload is then at
    /// [`Inbox::payload`] until the next call.
    pub fn take_frame(&mut self) -> Result<(Header, Option<Passed>), decode::Error> {
        let h = match self.frame()? {
            Some((h, _)) => h,
            None => return Err(decode::Error::Truncated { at: 0 }),
        };
        self.last = (self.start - h.len, self.start);
        let fd = if h.kind == Kind::File { self.fds.pop_front() } else { None };
        Ok((h, fd))
    }

    /// Payload of the frame consumed last.
    pub fn payload(&self) -> &[u8] {
        &self.buf[self.last.0..self.last.1]
    }

    /// The next whole frame, if it has been received; consumed by this call.
    pub fn frame(&mut self) -> Result<Option<(Header, &[u8])>, decode::Error> {
        match decode::frame(&self.buf[self.start..self.end])? {
            None => Ok(None),
            Some((h, _, total)) => {
                let at = self.start + limits::HEADER;
                self.start += total;
                Ok(Some((h, &self.buf[at..at + h.len])))
            }
        }
    }

    /// Room for at least the rest of the frame under way.
    fn room(&mut self) -> Result<&mut [u8], decode::Error> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        let least = if self.filled { STREAMING } else { FIRST };
        let need = match decode::header(&self.buf[self.start..self.end])? {
            Some(h) => (limits::HEADER + h.len).max(least),
            None => least,
        };
        if self.start > 0 && self.start + need > self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buf.len() < need {
            self.buf.resize(need, 0);
        }
        Ok(&mut self.buf[self.end..])
    }
}

/// What a receive gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    Bytes,
    /// Nothing within [`TICK`] (or at once, when asked not to wait).
    Nothing,
}

impl Conn {
    /// Connects to `<slot>.<generation>` in the directory `dir` and says HELLO. The answer is not awaited here: a
    /// worker whose threads are all busy accepts late, and the caller waits with its eye on the row.
    pub fn open(
        dir: BorrowedFd<'_>,
        slot: u16,
        slot_generation: u32,
        token: &[u8; 16],
        client: u32,
        trust: &Trust,
    ) -> Result<Conn, ConnError> {
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(ConnError::Lost)?;
        set_socket_timeout(&fd, Timeout::Recv, Some(TICK)).map_err(ConnError::Lost)?;
        // A full backlog blocks connect for as long as the send time-out says.
        set_socket_timeout(&fd, Timeout::Send, Some(Duration::from_secs(1))).map_err(ConnError::Lost)?;
        let path = crate::pool::socket_path(dir, slot, slot_generation);
        let addr = SocketAddrUnix::new(path).map_err(ConnError::Lost)?;
        connect(&fd, &addr).map_err(ConnError::Lost)?;
        let conn = Conn { fd, slot_generation, greeted: false, trust: trust.clone() };
        let mut hello = Vec::with_capacity(32);
        encode::hello_server(&mut hello, token, client);
        conn.send(&hello, None)?;
        Ok(conn)
    }

    /// The descriptor, to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends all of `bytes`; `pass` goes with the first byte.
    pub fn send(&self, bytes: &[u8], pass: Option<BorrowedFd<'_>>) -> Result<(), ConnError> {
        let mut sent = 0;
        let mut pass = pass;
        while sent < bytes.len() {
            if pass.is_none() {
                match send(&self.fd, &bytes[sent..], SendFlags::NOSIGNAL) {
                    Ok(n) => sent += n,
                    Err(Errno::INTR) => {}
                    Err(e) => return Err(ConnError::Lost(e)),
                }
                continue;
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let holder = pass.map(|fd| [fd]);
            if let Some(fds) = &holder {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            match sendmsg(&self.fd, &[IoSlice::new(&bytes[sent..])], &mut control, SendFlags::NOSIGNAL) {
                Ok(n) => {
                    sent += n;
                    pass = None;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(ConnError::Lost(e)),
            }
        }
        Ok(())
    }

    /// Sends what the socket takes at once; 0 when it is full.
    pub fn offer(&self, bytes: &[u8]) -> Result<usize, ConnError> {
        loop {
            match send(&self.fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(n) => return Ok(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(e) => return Err(ConnError::Lost(e)),
            }
        }
    }

    /// Receives into `inbox`: waits at most [`TICK`], or not at all.
    pub fn receive(&self, inbox: &mut Inbox, wait: bool) -> Result<Received, ConnError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        // Without room the kernel drops what was passed.
        let space = if self.trust.is_lost() { &mut space[..0] } else { &mut space[..] };
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        if !wait {
            flags |= RecvFlags::DONTWAIT;
        }
        let (n, returned) = loop {
            let mut control = RecvAncillaryBuffer::new(space);
            let room = inbox.room()?;
            match recvmsg(&self.fd, &mut [IoSliceMut::new(room)], &mut control, flags) {
                Ok(m) => {
                    for message in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(fds) = message {
                            inbox.fds.extend(fds.map(|fd| Passed::new(fd, &self.trust)));
                        }
                    }
                    break (m.bytes, m.flags);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(e) => return Err(ConnError::Lost(e)),
            }
        };
        if returned.contains(ReturnFlags::CTRUNC) || inbox.fds.len() > MAX_WAITING_FDS {
            return Err(ConnError::Descriptor("more than one with a frame"));
        }
        if n == 0 {
            return Err(ConnError::Lost(Errno::PIPE));
        }
        inbox.end += n;
        inbox.filled |= inbox.end == inbox.buf.len();
        Ok(Received::Bytes)
    }

    /// Takes the worker's HELLO out of `inbox`, if it is there.
    pub fn greet(&mut self, inbox: &mut Inbox) -> Result<bool, ConnError> {
        let Some((h, payload)) = inbox.frame()? else { return Ok(false) };
        if h.kind != Kind::Hello {
            return Err(decode::Error::Unexpected { kind: h.kind }.into());
        }
        let hello = decode::hello_worker(payload)?;
        if hello.slot_generation != self.slot_generation {
            return Err(decode::Error::Value { at: 4 }.into());
        }
        self.greeted = true;
        Ok(true)
    }
}
