//! Lanes: connections that carry many small requests of a server process that has one event loop (nginx), each a REQUEST
//! with the flag LANE. Several arrive with one read and several answers leave with one write, which saves most of the
//! system calls and wake-ups of a connection for each. An answer goes out in REPLY frames as long as it is small; one
//! that becomes larger, or passes a file, gets a connection of its own by ADOPT, so that one slow client never holds up
//! another's answer, and back-pressure stays the socket's.
//!
//! In a brisk phase ([`crate::turn`]) answers wait for those of the requests that are served next. The thread that serves
//! sends them when nothing is left to serve, and the thread that ticks sends what is there once a tick, so that a request
//! that blocks delays the answers before it by a tick at most.

use crate::conn::{Bad, Conn, Gone, Inbound, Outbound, send_flags};
use crate::fds::Fd;
use crate::serve::Work;
use crate::shared::{self, Shared, lock};
use crate::sys;
use crate::watch;
use mod_wsgi_wire::frame::{AbortReason, Kind, flags};
use mod_wsgi_wire::{decode, encode, limits};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, ControlMessage, SockFlag, SockType, send, sendmsg, socketpair};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::{AcqRel, SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes that may wait for room in a lane's socket before records of the log are dropped.
const MOST_WAITING: usize = 256 * 1024;
/// Bytes that may wait before no more requests are read.
const MOST_OWED: usize = 1024 * 1024;
/// Bytes of records after which a request gets a connection of its own.
const MOST_LOGGED: usize = 64 * 1024;
/// After this long since its first part an answer gets a connection of its own: on a lane its application would never
/// learn that the client has left.
const LONG: Duration = Duration::from_secs(1);

/// A request that came on a lane and is not over: the lane is in use for as long as this lives.
pub struct Seat(Arc<Conn>);

impl Seat {
    pub fn on(lane: &Arc<Conn>) -> Seat {
        lane.riders.fetch_add(1, AcqRel);
        Seat(lane.clone())
    }

    pub fn lane(&self) -> &Arc<Conn> {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.riders.fetch_sub(1, AcqRel);
    }
}

/// The way back of a request that came on a lane.
pub struct Ride {
    seat: Mutex<Option<Seat>>,
    lane: Arc<Conn>,
    row: u16,
    row_generation: u32,
}

impl Ride {
    pub fn new(seat: Seat, row: u16, row_generation: u32) -> Ride {
        Ride { lane: seat.lane().clone(), seat: Mutex::new(Some(seat)), row, row_generation }
    }

    /// The request is over. (The connection that it may have got is used on.)
    pub fn end(&self) {
        drop(lock(&self.seat).take());
    }

    /// Sends whole frames as a REPLY, without waiting. `Ok(false)`: they are too many or come too late, [`Ride::adopt`]
    /// must be used.
    pub fn reply(&self, own: &mut Outbound, head: &[u8], data: &[u8]) -> Result<bool, Gone> {
        let n = head.len() + data.len();
        if n == 0 {
            return Ok(true);
        }
        let late = own.replied_since.get_or_insert_with(Instant::now).elapsed() > LONG;
        if late || own.replied + n > limits::MAX_REPLY {
            return Ok(false);
        }
        own.replied += n;
        let lane = &self.lane;
        let mut out = lane.outbound();
        if out.gone {
            own.gone = true;
            return Err(Gone);
        }
        encode::reply(&mut out.pending, self.row, self.row_generation, &[head, data]);
        // In this order: whoever ends the holding sends what waits afterwards.
        if !shared::get().is_some_and(|s| s.turn.may_hold()) {
            push(lane, &mut out);
        }
        Ok(true)
    }

    /// Sends a LOG frame without waiting. `Ok(false)`: it was dropped, since the server does not read.
    pub fn log(&self, own: &mut Outbound, conn: &Arc<Conn>, frame: &[u8]) -> Result<bool, Gone> {
        own.logged += frame.len();
        if own.logged > MOST_LOGGED {
            // Without a descriptor the record is dropped, not the answer.
            let Some((own, other)) = pair() else { return Ok(false) };
            let moved = self.change(conn, own, &other, false)?;
            return Ok(moved && send(conn.raw(), frame, send_flags()) == Ok(frame.len()));
        }
        let lane = &self.lane;
        let mut out = lane.outbound();
        if out.gone {
            return Err(Gone);
        }
        if out.pending.len() > MOST_WAITING {
            return Ok(false);
        }
        encode::reply(&mut out.pending, self.row, self.row_generation, &[frame]);
        push(lane, &mut out);
        Ok(true)
    }

    /// Sends the last that this request sends, from outside its thread.
    pub fn last_word(&self, frame: &[u8]) {
        let lane = &self.lane;
        let mut out = lane.outbound();
        if !out.gone {
            encode::reply(&mut out.pending, self.row, self.row_generation, &[frame]);
            push(lane, &mut out);
        }
    }

    /// Says that there will be no answer, or no more of it.
    pub fn abort(&self) {
        let mut frame = Vec::new();
        encode::abort(&mut frame, AbortReason::Internal, 0);
        self.last_word(&frame);
    }

    /// Gives `conn`, whose way back this is, a socket, and the server the other end. Waits for room on the lane (never with
    /// the GIL held). Under the lock of what `conn` sends.
    pub fn adopt(&self, conn: &Arc<Conn>) -> Result<(), Gone> {
        let Some((own, other)) = pair() else {
            self.abort();
            return Err(Gone);
        };
        self.change(conn, own, &other, true).map(drop)
    }

    fn change(&self, conn: &Arc<Conn>, own: Fd, other: &OwnedFd, block: bool) -> Result<bool, Gone> {
        let shared = shared::get().ok_or(Gone)?;
        if !self.hand_over(other, block)? {
            return Ok(false);
        }
        shared.add_link(conn, own).map_err(|_| Gone)?;
        Ok(true)
    }

    /// Sends ADOPT. `Ok(false)`: there is no room on the lane, and not to `block`.
    fn hand_over(&self, other: &OwnedFd, block: bool) -> Result<bool, Gone> {
        let lane = &self.lane;
        let mut frame = Vec::new();
        encode::adopt(&mut frame, self.row, self.row_generation);
        loop {
            let mut out = lane.outbound();
            push(lane, &mut out);
            if out.gone {
                return Err(Gone);
            }
            let mut crowded = false;
            if out.pending.is_empty() {
                let fds = [other.as_raw_fd()];
                let rights = [ControlMessage::ScmRights(&fds)];
                match sendmsg::<()>(lane.raw(), &[IoSlice::new(&frame)], &rights, send_flags(), None) {
                    Ok(n) => {
                        out.pending.extend_from_slice(&frame[n..]);
                        return Ok(true);
                    }
                    Err(nix::Error::EINTR) => continue,
                    Err(nix::Error::EAGAIN) => {}
                    // Too many descriptors under way.
                    Err(nix::Error::ETOOMANYREFS) => crowded = true,
                    Err(_) => {
                        out.gone = true;
                        return Err(Gone);
                    }
                }
            }
            drop(out);
            if !block {
                return Ok(false);
            }
            if crowded {
                std::thread::sleep(Duration::from_millis(1));
            } else if let Some(link) = lane.link() {
                // An error (EINTR) only means another round.
                let _ =
                    watch::blocked(|| poll(&mut [PollFd::new(link.fd.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE));
            }
        }
    }
}

/// Two ends of a new connection; `None` for want of descriptors, which is logged.
fn pair() -> Option<(Fd, OwnedFd)> {
    let kind = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socketpair(AddressFamily::Unix, SockType::Stream, None, kind);
    match made.and_then(|(own, other)| Ok((Fd::new(own)?, other))) {
        Ok(pair) => Some(pair),
        Err(e) => {
            if let Some(shared) = shared::get() {
                shared.log_seldom(&format!("MWR0425: no connection for an answer can be made: {e}"));
            }
            None
        }
    }
}

/// Whether so much waits that its server process must read before it is read from.
pub fn is_full(lane: &Conn) -> bool {
    lane.outbound().pending.len() > MOST_OWED
}

/// Sends what waits on a lane.
pub fn flush(lane: &Conn) {
    push(lane, &mut lane.outbound());
}

/// Sends what the socket takes of what waits; an event tells when there is room for the rest.
fn push(lane: &Conn, out: &mut Outbound) {
    if sys::forked() {
        return;
    }
    while !out.pending.is_empty() && !out.gone {
        match send(lane.raw(), &out.pending, send_flags()) {
            Ok(n) if n == out.pending.len() => out.pending.clear(),
            Ok(n) => drop(out.pending.drain(..n)),
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => {
                if !lane.stalled.swap(true, SeqCst) {
                    raise(lane);
                }
                return;
            }
            Err(_) => out.gone = true,
        }
    }
    if out.gone {
        out.pending = Vec::new();
    }
    if out.pending.capacity() > MOST_WAITING {
        out.pending = Vec::new();
    }
    if lane.stalled.load(SeqCst) && lane.stalled.swap(false, SeqCst) {
        raise(lane);
    }
}

fn raise(lane: &Conn) {
    if let Some(shared) = shared::get() {
        shared.raise(lane);
    }
}

/// Reads what has come on a lane, and queues the requests. `Ok(false)`: the peer has ended it.
pub fn read(shared: &Shared, lane: &Arc<Conn>, inbound: &mut Inbound, buf: &mut [u8]) -> Result<bool, Bad> {
    let Some(n) = lane.read(inbound, buf)? else { return Ok(true) };
    if n == 0 {
        return Ok(false);
    }
    inbound.buf.extend_from_slice(&buf[..n]);
    seat(shared, lane, inbound)?;
    Ok(true)
}

/// Queues the whole requests of what has been read.
pub fn seat(shared: &Shared, lane: &Arc<Conn>, inbound: &mut Inbound) -> Result<(), Bad> {
    if inbound.fd.take().is_some() {
        return Err(Bad::Descriptors);
    }
    let bytes = Arc::new(std::mem::take(&mut inbound.buf));
    let mut at = 0;
    let mut works = Vec::new();
    while let Some(h) = decode::header(&bytes[at..])? {
        let total = limits::HEADER + h.len;
        if h.kind != Kind::Request || h.flags & flags::LANE == 0 {
            return Err(decode::Error::Unexpected { kind: h.kind }.into());
        }
        if total > limits::MAX_LANE_REQUEST {
            return Err(decode::Error::TooLong { len: h.len }.into());
        }
        if bytes.len() - at < total {
            break;
        }
        works.push(Work::on_lane(Seat::on(lane), h, bytes.clone(), at + limits::HEADER..at + total));
        at += total;
    }
    inbound.buf.extend_from_slice(&bytes[at..]);
    shared.queue_up(works);
    Ok(())
}
