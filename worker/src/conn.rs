//! One connection of a server process: receiving frames, sending frames. Frames go out whole: whatever a full socket
//! leaves over is kept and sent before anything else. Callers say whether they may block (never with the GIL held).
//!
//! A request that came on a lane has a `Conn` as well, without a socket: small answers go out on the lane. One that needs
//! more (a large body, a stream, a file) gets a connection of its own then ([`crate::lane`]).

use crate::fds::Fd;
use crate::lane::Ride;
use crate::shared::lock;
use crate::sys;
use crate::watch;
use mod_wsgi_wire::decode;
use mod_wsgi_wire::encode;
use mod_wsgi_wire::frame::{AbortReason, Header, Level};
use mod_wsgi_wire::limits;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

/// A connection.
pub struct Conn {
    link: OnceLock<Link>,
    /// The lane that its request came on; of a connection that a peer has made, none.
    pub ride: Option<Ride>,
    /// Requests that came on this connection, a lane, and are not over.
    pub riders: AtomicUsize,
    /// An event is awaited that tells of room in this lane's socket.
    pub stalled: AtomicBool,
    /// Whether a thread serves it: [`IDLE`], [`TAKEN`] or [`MISSED`].
    turn: AtomicU8,
    /// Locked by the thread that serves an event of this connection, for as long as it does.
    input: Mutex<Inbound>,
    out: Mutex<Outbound>,
}

/// A socket in the epoll set.
pub struct Link {
    pub fd: Fd,
    /// Epoll data: generation and index in the table of connections.
    pub key: u64,
}

/// Nobody serves the connection.
const IDLE: u8 = 0;
/// A thread does.
const TAKEN: u8 = 1;
/// A thread does, and another event has come meanwhile.
const MISSED: u8 = 2;

/// What has been received and not been used.
pub struct Inbound {
    pub buf: Vec<u8>,
    pub fd: Option<OwnedFd>,
    /// The server's HELLO has been accepted.
    pub greeted: bool,
    /// The last request had a streamed body whose BODY_END has not come: BODY frames may still arrive.
    pub stream_tail: bool,
    /// A request of this connection is being served.
    pub busy: bool,
    /// The last read took all that the socket had: what comes later makes an event of its own.
    emptied: bool,
    /// An event has told that the peer has ended its side.
    pub hung_up: bool,
    /// No events come for now: [`crate::shared::Shared::mute`].
    pub muted: bool,
    /// Requests with the flag LANE come here, and no others.
    pub lane: bool,
    since: Instant,
}

impl Inbound {
    /// At the end of a turn: whether an event is sure to come for whatever has not been read yet.
    pub fn settle(&mut self) -> bool {
        let muted = std::mem::take(&mut self.muted);
        self.emptied && !self.hung_up && !muted
    }
}

#[derive(Default)]
pub struct Outbound {
    /// Rest of a frame that a full socket did not take; on a lane, answers that wait for others.
    pub pending: Vec<u8>,
    /// LOG records dropped because the socket was full.
    dropped: u32,
    /// The peer has gone.
    pub gone: bool,
    /// Bytes of this request's answer that went out on its lane.
    pub replied: usize,
    /// Since when.
    pub replied_since: Option<Instant>,
    /// Bytes of its records.
    pub logged: usize,
}

/// The peer has gone; nothing more can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// What [`Conn::receive`] found.
pub enum Frame {
    /// A whole frame: its header and where its payload lies, and the descriptor that came with it.
    Whole(Header, Place, Option<OwnedFd>),
    /// More is needed.
    Partial,
    /// The peer has closed.
    End,
}

/// Where a payload lies.
pub enum Place {
    /// In the thread's buffer.
    Thread(std::ops::Range<usize>),
    /// In a buffer of its own.
    Own(Vec<u8>),
    /// In what was read from a lane.
    Shared(Arc<Vec<u8>>, std::ops::Range<usize>),
}

impl Place {
    /// The payload; `buf` is the thread's buffer.
    pub fn payload<'a>(&'a self, buf: &'a [u8]) -> &'a [u8] {
        match self {
            Place::Thread(range) => &buf[range.clone()],
            Place::Own(bytes) => bytes,
            Place::Shared(bytes, range) => &bytes[range.clone()],
        }
    }
}

/// Why a connection is closed.
#[derive(Debug)]
pub enum Bad {
    Frame(decode::Error),
    /// More than one descriptor with one message, or one where none belongs.
    Descriptors,
    Io(io::Error),
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bad::Frame(e) => write!(f, "{e}"),
            Bad::Descriptors => f.write_str("unexpected descriptors"),
            Bad::Io(e) => write!(f, "{e}"),
        }
    }
}

impl From<decode::Error> for Bad {
    fn from(e: decode::Error) -> Bad {
        Bad::Frame(e)
    }
}

impl Conn {
    /// One that a peer has made.
    pub fn new(fd: Fd, key: u64) -> Conn {
        Conn { link: OnceLock::from(Link { fd, key }), ..Conn::without_link(None) }
    }

    /// That of a request that came on a lane. A thread serves it already.
    pub fn riding(ride: Ride) -> Conn {
        Conn::without_link(Some(ride))
    }

    fn without_link(ride: Option<Ride>) -> Conn {
        let rides = ride.is_some();
        let input = Inbound {
            buf: Vec::new(),
            fd: None,
            greeted: rides,
            stream_tail: false,
            busy: rides,
            emptied: false,
            hung_up: false,
            muted: false,
            lane: false,
            since: Instant::now(),
        };
        Conn {
            link: OnceLock::new(),
            ride,
            riders: AtomicUsize::new(0),
            stalled: AtomicBool::new(false),
            turn: AtomicU8::new(if rides { TAKEN } else { IDLE }),
            input: Mutex::new(input),
            out: Mutex::default(),
        }
    }

    /// Its socket; of a request that came on a lane there may be none.
    #[inline]
    pub fn link(&self) -> Option<&Link> {
        self.link.get()
    }

    /// Gives it a socket. Only where it has none, under the lock of what it sends.
    pub fn set_link(&self, link: Link) {
        let _ = self.link.set(link);
    }

    #[inline]
    pub fn raw(&self) -> i32 {
        // Where there is no socket every call fails with EBADF, which counts as a peer that has gone.
        self.link.get().map_or(-1, |l| l.fd.raw())
    }

    /// What waits to be sent.
    pub fn outbound(&self) -> MutexGuard<'_, Outbound> {
        lock(&self.out)
    }

    /// Takes the connection for the thread that got an event of it. `false`: another thread has it, and will see at its
    /// [`Conn::leave`] that there was an event.
    pub fn take(&self) -> bool {
        let next = |turn| match turn {
            IDLE => Some(TAKEN),
            TAKEN => Some(MISSED),
            _ => None,
        };
        self.turn.fetch_update(AcqRel, Acquire, next) == Ok(IDLE)
    }

    /// Gives the connection up. `false`: an event has come meanwhile, and nobody has looked at it.
    pub fn leave(&self) -> bool {
        self.turn.swap(IDLE, AcqRel) == TAKEN
    }

    /// The receiving side, for the thread that got the event.
    pub fn inbound(&self) -> MutexGuard<'_, Inbound> {
        lock(&self.input)
    }

    /// Since when nothing has happened; `None` while a thread serves it.
    pub fn idle_since(&self) -> Option<Instant> {
        if self.riders.load(Acquire) > 0 {
            return None;
        }
        self.input.try_lock().ok().filter(|i| !i.busy).map(|i| i.since)
    }

    /// Sends `head` and then `data` as one frame (or several: the caller's bytes are whole frames). With `block` waits
    /// for room; without, keeps what did not fit (`data` must then be small) for the next call.
    fn write(&self, out: &mut Outbound, mut head: &[u8], mut data: &[u8], block: bool) -> Result<(), Gone> {
        loop {
            if out.gone {
                return Err(Gone);
            }
            let pending = !out.pending.is_empty();
            if !pending && head.is_empty() && data.is_empty() {
                return Ok(());
            }
            let sent = if pending { self.send_once(&out.pending, &[]) } else { self.send_once(head, data) };
            match sent {
                Ok(n) if pending => {
                    out.pending.drain(..n);
                }
                Ok(n) => {
                    let of_head = n.min(head.len());
                    head = &head[of_head..];
                    data = &data[n - of_head..];
                }
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::EAGAIN) if block => self.wait(PollFlags::POLLOUT),
                Err(nix::Error::EAGAIN) => {
                    out.pending.extend_from_slice(head);
                    out.pending.extend_from_slice(data);
                    return Ok(());
                }
                Err(_) => {
                    out.gone = true;
                    return Err(Gone);
                }
            }
        }
    }

    /// One call: how many bytes of both the socket has taken.
    fn send_once(&self, head: &[u8], data: &[u8]) -> nix::Result<usize> {
        if data.is_empty() {
            return send(self.raw(), head, send_flags());
        }
        sendmsg::<()>(self.raw(), &[IoSlice::new(head), IoSlice::new(data)], &[], send_flags(), None)
    }

    /// Tries to send whole frames, `head` and what follows it in `data`, without waiting. `Ok(true)`: the bytes have been
    /// taken; a rest that the socket did not take goes before anything else. `Ok(false)`: nothing was taken,
    /// [`Conn::send_blocking`] must be used.
    #[inline]
    pub fn try_send(&self, head: &[u8], data: &[u8]) -> Result<bool, Gone> {
        let Ok(mut out) = self.out.try_lock() else { return Ok(false) };
        if out.gone {
            return Err(Gone);
        }
        if let Some(ride) = self.rides() {
            return ride.reply(&mut out, head, data);
        }
        if !out.pending.is_empty() {
            return Ok(false);
        }
        match self.send_once(head, data) {
            Ok(n) if n == head.len() + data.len() => Ok(true),
            Ok(n) => {
                out.pending.extend_from_slice(&head[n.min(head.len())..]);
                out.pending.extend_from_slice(&data[n.saturating_sub(head.len())..]);
                Ok(true)
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(false),
            Err(_) => {
                out.gone = true;
                Err(Gone)
            }
        }
    }

    /// The lane that answers of this request still go out on.
    fn rides(&self) -> Option<&Ride> {
        self.ride.as_ref().filter(|_| self.link.get().is_none())
    }

    /// Makes sure that there is a socket. May wait. Never with the GIL held.
    fn alight(self: &Arc<Self>, out: &mut Outbound) -> Result<(), Gone> {
        match self.rides() {
            Some(ride) if !out.gone => ride.adopt(self).inspect_err(|_| out.gone = true),
            Some(_) => Err(Gone),
            None => Ok(()),
        }
    }

    /// Sends whole frames, waiting as long as it takes. Never with the GIL held.
    pub fn send_blocking(self: &Arc<Self>, head: &[u8], data: &[u8]) -> Result<(), Gone> {
        let mut out = lock(&self.out);
        if let Some(ride) = self.rides()
            && (out.gone || ride.reply(&mut out, head, data)?)
        {
            return if out.gone { Err(Gone) } else { Ok(()) };
        }
        self.alight(&mut out)?;
        self.write(&mut out, head, data, true)
    }

    /// Sends ABORT from outside the serving thread and ends the connection: whatever the application still sends goes
    /// nowhere. `false`: a frame is just being sent; to be tried again.
    pub fn give_up(&self, reason: AbortReason) -> bool {
        let Ok(mut out) = self.out.try_lock() else { return false };
        let mut frame = Vec::new();
        encode::abort(&mut frame, reason, 0);
        if let Some(ride) = self.rides() {
            if !out.gone {
                ride.last_word(&frame);
            }
            out.gone = true;
            return true;
        }
        if !out.gone && out.pending.is_empty() {
            // A full socket: the peer sees the end of the connection instead.
            let _ = send(self.raw(), &frame, send_flags());
        }
        out.gone = true;
        drop(out);
        let _ = nix::sys::socket::shutdown(self.raw(), nix::sys::socket::Shutdown::Both);
        true
    }

    /// Whether a rest of a frame waits to be sent.
    pub fn has_pending(&self) -> bool {
        self.out.try_lock().map_or(true, |o| !o.pending.is_empty())
    }

    /// Sends FILE with its descriptor. `Ok(false)`: the descriptor could not be passed (too many in flight); send the
    /// bytes instead. Never with the GIL held.
    pub fn send_file(self: &Arc<Self>, frame: &[u8], file: &OwnedFd) -> Result<bool, Gone> {
        let mut out = lock(&self.out);
        self.alight(&mut out)?;
        self.write(&mut out, &[], &[], true)?;
        loop {
            let fds = [file.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            match sendmsg::<()>(self.raw(), &[IoSlice::new(frame)], &rights, send_flags(), None) {
                Ok(n) => return self.write(&mut out, &frame[n..], &[], true).map(|()| true),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => self.wait(PollFlags::POLLOUT),
                Err(nix::Error::ETOOMANYREFS) => return Ok(false),
                Err(_) => {
                    out.gone = true;
                    return Err(Gone);
                }
            }
        }
    }

    /// Sends one LOG frame without ever waiting; `false`: dropped (counted) or the peer has gone.
    pub fn log(self: &Arc<Self>, level: Level, text: &[u8]) -> bool {
        let Ok(mut out) = self.out.try_lock() else { return false };
        if out.gone {
            return false;
        }
        if let Some(ride) = self.rides() {
            let mut frame = Vec::with_capacity(limits::HEADER + 1 + text.len());
            encode::log(&mut frame, level, text);
            let taken = ride.log(&mut out, self, &frame);
            out.dropped += u32::from(taken == Ok(false));
            return taken.is_ok();
        }
        if !out.pending.is_empty() && self.write(&mut out, &[], &[], false).is_err() {
            return false;
        }
        if !out.pending.is_empty() {
            out.dropped += 1;
            return true;
        }
        let mut frame = Vec::with_capacity(limits::HEADER + 1 + text.len());
        encode::log(&mut frame, level, text);
        self.write(&mut out, &frame, &[], false).is_ok()
    }

    /// LOG records dropped since the last call.
    pub fn take_dropped(&self) -> u32 {
        self.out.try_lock().map_or(0, |mut o| std::mem::take(&mut o.dropped))
    }

    /// Waits until the socket may be read or written, or has failed.
    pub fn wait(&self, flags: PollFlags) {
        // An error (EINTR) only means another round for the caller.
        let Some(link) = self.link.get() else { return };
        let _ = watch::blocked(|| poll(&mut [PollFd::new(link.fd.as_fd(), flags)], PollTimeout::NONE));
    }

    /// Receives towards one frame, into `buf` if it fits there in one go.
    pub fn receive(&self, inbound: &mut Inbound, buf: &mut [u8]) -> Result<Frame, Bad> {
        if inbound.buf.is_empty() {
            let Some(n) = self.read(inbound, buf)? else { return Ok(Frame::Partial) };
            if n == 0 {
                return Ok(Frame::End);
            }
            if let Some((h, _, total)) = decode::frame(&buf[..n])? {
                inbound.buf.extend_from_slice(&buf[total..n]);
                return Ok(Frame::Whole(h, Place::Thread(limits::HEADER..total), inbound.fd.take()));
            }
            inbound.buf.extend_from_slice(&buf[..n]);
        }
        loop {
            // Checked before each allocation: a header over its limit is an error.
            if let Some((h, _, total)) = decode::frame(&inbound.buf)? {
                let rest = inbound.buf.split_off(total);
                let mut own = std::mem::replace(&mut inbound.buf, rest);
                own.drain(..limits::HEADER);
                return Ok(Frame::Whole(h, Place::Own(own), inbound.fd.take()));
            }
            let have = inbound.buf.len();
            let want = match decode::header(&inbound.buf)? {
                Some(h) => (limits::HEADER + h.len - have).min(limits::MAX_DATA),
                None => limits::HEADER,
            };
            let mut part = std::mem::take(&mut inbound.buf);
            part.resize(have + want, 0);
            let got = self.read(inbound, &mut part[have..]);
            part.truncate(have + got.as_ref().ok().and_then(|n| *n).unwrap_or(0));
            inbound.buf = part;
            match got? {
                None => return Ok(Frame::Partial),
                Some(0) => return Ok(Frame::End),
                Some(_) => {}
            }
        }
    }

    /// One read: how many bytes, 0 for the end, `None` where nothing is there.
    pub fn read(&self, inbound: &mut Inbound, buf: &mut [u8]) -> Result<Option<usize>, Bad> {
        inbound.since = Instant::now();
        match sys::receive(self.raw(), buf) {
            Ok(got) => {
                // Less than was asked for: a stream socket had no more, unless it stopped at a descriptor.
                inbound.emptied = 0 < got.len && got.len < buf.len() && got.fd.is_none() && !got.excess;
                if got.excess || got.fd.is_some() && inbound.fd.is_some() {
                    return Err(Bad::Descriptors);
                }
                if got.fd.is_some() {
                    inbound.fd = got.fd;
                }
                Ok(Some(got.len))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                inbound.emptied = true;
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(Some(0)),
            Err(e) => Err(Bad::Io(e)),
        }
    }
}

pub fn send_flags() -> MsgFlags {
    MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL
}
