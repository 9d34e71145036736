//! Send now, claim, recall: one request's way to a worker and its answer's way back, for servers that give a request a
//! thread. While it waits, the thread watches worker, row and client.

use crate::conn::{Conn, ConnError, Inbox, Received};
use crate::error::RequestError;
use crate::link::Link;
use crate::pool::{Limits, Look, Pool};
use crate::times::Times;
use mod_wsgi_scoreboard::Lease;
use mod_wsgi_scoreboard::layout::header;
use mod_wsgi_wire::decode::{self, Response};
use mod_wsgi_wire::encode::{RowRef, bytes_only, patch_row};
use mod_wsgi_wire::frame::{AbortReason, Kind, Level};
use mod_wsgi_wire::limits::MAX_FILES;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The client's side, as far as a waiting request needs it.
pub trait ClientWatch {
    /// A descriptor that shows POLLRDHUP or POLLHUP when the client leaves; `None` where there is none (HTTP/2).
    fn poll_fd(&self) -> Option<BorrowedFd<'_>>;
    /// Whether the client has left, as known without polling.
    fn has_left(&self) -> bool;
}

/// Slice of a wait on a running request: after it the row and an unpollable client are looked at.
const SLICE: Duration = Duration::from_millis(250);
/// Slice of a wait for a row or a ready worker.
const ROW_SLICE: Duration = Duration::from_millis(20);
/// Times a request is recalled and sent again before it is given up.
const MAX_RECALLS: u32 = 20;
/// Pause after a connection that failed, more each time it happens again. A worker that is just dying stays READY until
/// its supervisor has noticed.
const CONNECT_PAUSE: Duration = Duration::from_millis(2);
const CONNECT_PAUSE_MOST: Duration = Duration::from_millis(100);

/// What is to be sent.
pub struct Outgoing<'a> {
    /// One REQUEST frame with its inline body; the row's coordinates are written into it here.
    pub frame: &'a mut [u8],
    /// The body, when it travels as a descriptor.
    pub body: Option<BorrowedFd<'a>>,
    /// Longest time in which the worker that runs it sends nothing; `None` = any.
    pub silence: Option<Duration>,
}

/// A request that a worker has been given.
pub struct Exchange {
    pool: Arc<Pool>,
    conn: Conn,
    lease: Lease,
    /// The connection has served a request before.
    reused: bool,
    /// See [`Outgoing::silence`].
    silence: Option<Duration>,
    ended: bool,
    done: bool,
    /// FILE frames so far.
    files: u32,
    times: Times,
}

/// One thing that came from the worker.
pub enum Event<'e> {
    Response(Response<'e>),
    Data(&'e [u8]),
    File {
        fd: OwnedFd,
        offset: u64,
        len: u64,
    },
    Log(Level, &'e [u8]),
    Abort(AbortReason),
    /// CONTINUE: the application asks for the body.
    Continue,
    /// END or DONE alone: look at [`Exchange::ended`] and [`Exchange::done`].
    Mark,
    /// Nothing whole has arrived yet (non-blocking calls only).
    Pause,
}

enum Sent {
    /// The first bytes of the answer are there.
    Answering,
    /// The row has been taken back: nothing has run, send elsewhere.
    Recalled,
    /// The same, because an idle connection had been closed by the worker meanwhile: send again, on a fresh one.
    Stale,
}

/// Waits until `worker` is readable or `slice` has passed; `true` when the client has left.
fn poll_both(worker: Option<BorrowedFd<'_>>, client: &dyn ClientWatch, slice: Duration) -> bool {
    let limit = Timespec { tv_sec: slice.as_secs() as _, tv_nsec: slice.subsec_nanos() as _ };
    let mut fds = Vec::with_capacity(2);
    if let Some(fd) = client.poll_fd() {
        fds.push(PollFd::from_borrowed_fd(fd, PollFlags::RDHUP));
    }
    let watched = fds.len();
    if let Some(fd) = worker {
        fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
    }
    // An interrupted or failed poll only makes the slice shorter.
    let polled = poll(&mut fds, Some(&limit)).is_ok();
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    (polled && watched == 1 && fds[0].revents().intersects(gone)) || client.has_left()
}

/// Gives the request to a worker. On return the first bytes of the answer have arrived in `inbox`.
pub fn begin(
    link: &Link,
    key: (&str, &str),
    limits: &Limits,
    out: &mut Outgoing<'_>,
    client: &dyn ClientWatch,
    inbox: &mut Inbox,
) -> Result<Exchange, RequestError> {
    let started = Instant::now();
    let mut avoid = None;
    let mut last = String::new();
    let (mut tries, mut recalls) = (0, 0);
    // Since when connections fail, and the next pause.
    let mut failing: Option<(Instant, Duration)> = None;
    let mut pool = link.pool(key.0, key.1, limits)?;
    while recalls < MAX_RECALLS {
        inbox.clear();
        if pool.retired() {
            pool = link.pool(key.0, key.1, limits)?;
        }
        let number = registered(link, client, started)?;
        let Some(lease) = take_row(&pool, number, avoid, client, started)? else {
            // The table was retired. Its content is not to be trusted: no loop without a pause and an end.
            if poll_both(None, client, ROW_SLICE) {
                return Err(RequestError::ClientGone);
            }
            if started.elapsed() >= limits.startup_timeout {
                return Err(RequestError::NotReady { group: pool.label(), seconds: limits.startup_timeout.as_secs() });
            }
            continue;
        };
        tries += 1;
        let idle = pool.take_conn(lease.slot, lease.slot_generation);
        let reused = idle.is_some();
        let conn = match idle {
            Some(conn) => Ok(conn),
            None => pool.open_conn(&lease, number),
        };
        let conn = match conn {
            Ok(conn) => {
                failing = None;
                conn
            }
            Err(e) => {
                // Nothing was sent, so nobody can have claimed it.
                pool.table.recall(&lease);
                pool.pass_over(lease.slot);
                last = e.to_string();
                avoid = Some(lease.slot);
                let (since, pause) = failing.unwrap_or((Instant::now(), CONNECT_PAUSE));
                failing = Some((since, (pause * 2).min(CONNECT_PAUSE_MOST)));
                if since.elapsed() >= limits.connect_timeout {
                    break;
                }
                if poll_both(None, client, pause) {
                    return Err(RequestError::ClientGone);
                }
                continue;
            }
        };
        let mut x = Exchange {
            pool: pool.clone(),
            conn,
            lease,
            reused,
            silence: out.silence,
            ended: false,
            done: false,
            files: 0,
            times: Times::new(started),
        };
        match x.deliver(out, client, inbox, started)? {
            Sent::Answering => return Ok(x),
            // At most once for each slot: its other idle connections go too.
            Sent::Stale => pool.forget_idle(lease.slot),
            Sent::Recalled => {
                pool.table.count(header::RECALLS);
                recalls += 1;
                avoid = Some(lease.slot);
                last.clear();
                last.push_str("recalled");
            }
        }
    }
    Err(RequestError::Undeliverable { group: pool.label(), tries, error: last })
}

/// This process's number; waits up to two seconds for a supervisor that is being restarted.
fn registered(link: &Link, client: &dyn ClientWatch, started: Instant) -> Result<u32, RequestError> {
    loop {
        match link.client() {
            0 if started.elapsed() > Duration::from_secs(2) => {
                return Err(RequestError::Supervisor("this server process is not registered".to_owned()));
            }
            0 if poll_both(None, client, ROW_SLICE) => return Err(RequestError::ClientGone),
            0 => {}
            n => return Ok(n),
        }
    }
}

/// One row, after waiting for a first ready worker if need be. `Ok(None)`: look again (the table was retired).
fn take_row(
    pool: &Pool,
    number: u32,
    avoid: Option<u16>,
    client: &dyn ClientWatch,
    started: Instant,
) -> Result<Option<Lease>, RequestError> {
    if let Some(lease) = pool.take(number, avoid) {
        return Ok(Some(lease));
    }
    struct Waiting<'p>(&'p Pool);
    impl Drop for Waiting<'_> {
        fn drop(&mut self) {
            self.0.waiting.fetch_sub(1, Relaxed);
        }
    }
    let full = || {
        pool.table.count(header::QUEUE_FULL);
        RequestError::QueueFull(pool.label())
    };
    // A worker frees a row just after its last frame: whoever asks again at once may be there first.
    let mut patience = 3;
    let capacity = pool.shape().rows as usize;
    let waiting = Waiting(pool);
    if pool.waiting.fetch_add(1, Relaxed) >= capacity {
        return Err(full());
    }
    loop {
        if pool.retired() {
            return Ok(None);
        }
        let pause = match pool.admit(number, avoid, started.elapsed()) {
            Ok(Some(lease)) => {
                drop(waiting);
                return Ok(Some(lease));
            }
            Ok(None) => ROW_SLICE / 4,
            Err(RequestError::QueueFull(_)) if patience > 0 => {
                patience -= 1;
                Duration::from_millis(1)
            }
            Err(RequestError::QueueFull(_)) => return Err(full()),
            Err(e) => return Err(e),
        };
        if poll_both(None, client, pause) {
            return Err(RequestError::ClientGone);
        }
    }
}

impl Exchange {
    fn deliver(
        &mut self,
        out: &mut Outgoing<'_>,
        client: &dyn ClientWatch,
        inbox: &mut Inbox,
        started: Instant,
    ) -> Result<Sent, RequestError> {
        if !self.conn.greeted {
            loop {
                match self.conn.greet(inbox) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(e) => return self.lost(e),
                }
                match self.wait(client, inbox, started)? {
                    Sent::Answering => {}
                    other => return Ok(other),
                }
            }
        }
        let row = RowRef {
            slot_generation: self.lease.slot_generation,
            row: self.lease.row,
            row_generation: self.lease.word.generation,
            client: self.lease.word.client,
        };
        patch_row(out.frame, 0, &row);
        if self.pool.trust.is_lost() {
            bytes_only(out.frame, 0);
        }
        if let Err(e) = self.conn.send(out.frame, out.body) {
            return self.lost(e);
        }
        match self.wait(client, inbox, started)? {
            // An ending worker has given the request back unrun.
            Sent::Answering if inbox.begins_with_abort() == Some(AbortReason::NotRun) => {
                self.pool.pass_over(self.lease.slot);
                Ok(Sent::Recalled)
            }
            sent => Ok(sent),
        }
    }

    /// The connection is of no use any more. Whether anything has run is what the row says, not the socket.
    fn lost(&self, e: ConnError) -> Result<Sent, RequestError> {
        if self.pool.table.recall(&self.lease) {
            if self.reused {
                return Ok(Sent::Stale);
            }
            self.pool.pass_over(self.lease.slot);
            return Ok(Sent::Recalled);
        }
        Err(self.died(e))
    }

    fn died(&self, e: ConnError) -> RequestError {
        let (group, pid) = (self.pool.label(), self.pid());
        match e {
            ConnError::Lost(_) => RequestError::WorkerDied { group, pid },
            e => RequestError::WorkerProtocol { group, pid, error: e.to_string() },
        }
    }

    /// Waits for bytes, with an eye on row, worker and client.
    fn wait(&self, client: &dyn ClientWatch, inbox: &mut Inbox, started: Instant) -> Result<Sent, RequestError> {
        let (pool, lease) = (&*self.pool, &self.lease);
        let mut first = true;
        // Since when the worker has been seen to run the request and to say nothing.
        let mut silent: Option<Instant> = None;
        loop {
            match self.conn.receive(inbox, first) {
                Ok(Received::Bytes) => return Ok(Sent::Answering),
                Ok(Received::Nothing) => first = false,
                Err(e) => return self.lost(e),
            }
            let sent = match pool.look(lease, started.elapsed()) {
                Look::Waits => true,
                Look::Claimed => false,
                Look::Recalled => return Ok(Sent::Recalled),
                Look::TimedOut(limit) => {
                    return Err(RequestError::QueueTimeout { group: pool.label(), seconds: limit.as_secs() });
                }
            };
            if !sent && !pool.table.is_running(lease) {
                // Finished between the two looks: then its last frames were sent before the row was freed. Else the row
                // was buried or given to the next tenant without a word: the worker is dead.
                return match self.conn.receive(inbox, false) {
                    Ok(Received::Bytes) => Ok(Sent::Answering),
                    Ok(Received::Nothing) => Err(RequestError::WorkerDied { group: pool.label(), pid: self.pid() }),
                    Err(e) => Err(self.died(e)),
                };
            }
            let mut slice = if sent { ROW_SLICE } else { SLICE };
            if let Some(limit) = self.silence.filter(|_| !sent) {
                let left = limit.saturating_sub(silent.get_or_insert_with(Instant::now).elapsed());
                if left.is_zero() {
                    return Err(self.silent(limit));
                }
                slice = slice.min(left);
            }
            if poll_both(Some(self.conn.fd()), client, slice) {
                pool.table.recall(lease);
                return Err(RequestError::ClientGone);
            }
        }
    }

    /// Nothing has moved for as long as it may.
    pub fn silent(&self, limit: Duration) -> RequestError {
        RequestError::Silent { group: self.pool.label(), pid: self.pid(), seconds: limit.as_secs_f64() }
    }

    /// Longest time in which nothing may move.
    pub fn silence(&self) -> Option<Duration> {
        self.silence
    }

    /// Process id of the worker, for messages.
    pub fn pid(&self) -> u32 {
        self.pool.table.pid(self.lease.slot)
    }

    /// The pool the request went to.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How long it waited and ran.
    pub fn times(&self) -> &Times {
        &self.times
    }

    /// The worker's connection, to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.conn.fd()
    }

    /// Gives the worker as many of `frames`' bytes as its socket takes at once. `None`: its end has gone; what it has
    /// said before is still to be read. A frame that was begun must be finished before the connection is released.
    pub fn offer(&self, frames: &[u8]) -> Option<usize> {
        self.conn.offer(frames).ok()
    }

    /// The response is whole.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The worker is free; nothing more will come.
    pub fn done(&self) -> bool {
        self.done
    }

    /// The next thing from the worker. `block`: wait for it, else [`Event::Pause`]. A client that leaves meanwhile
    /// ends the exchange; the worker's row stays with it until the application has noticed and returned.
    pub fn next<'e>(
        &mut self,
        client: &dyn ClientWatch,
        inbox: &'e mut Inbox,
        block: bool,
    ) -> Result<Event<'e>, RequestError> {
        loop {
            match inbox.has_frame() {
                Ok(true) => break,
                Ok(false) => {}
                Err(e) => return Err(self.died(e.into())),
            }
            if !block {
                match self.conn.receive(inbox, false) {
                    Ok(Received::Bytes) => continue,
                    Ok(Received::Nothing) => return Ok(Event::Pause),
                    Err(e) => return Err(self.died(e)),
                }
            }
            if !matches!(self.wait(client, inbox, Instant::now())?, Sent::Answering) {
                return Err(self.died(ConnError::Protocol(decode::Error::Value { at: 0 })));
            }
        }
        self.event(inbox)
    }

    /// The next thing after END, waiting at most `limit` for it: `close()` runs on whatever the client does.
    pub fn next_after_end<'e>(&mut self, inbox: &'e mut Inbox, limit: Duration) -> Result<Event<'e>, RequestError> {
        struct Nobody;
        impl ClientWatch for Nobody {
            fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
                None
            }
            fn has_left(&self) -> bool {
                false
            }
        }
        if !matches!(inbox.has_frame(), Ok(true)) {
            poll_both(Some(self.conn.fd()), &Nobody, limit);
        }
        self.next(&Nobody, inbox, false)
    }

    fn event<'e>(&mut self, inbox: &'e mut Inbox) -> Result<Event<'e>, RequestError> {
        let broken = |error: String| RequestError::WorkerProtocol { group: self.pool.label(), pid: self.pid(), error };
        let wrong = |e: decode::Error| broken(e.to_string());
        if self.done {
            return Err(broken("a frame after DONE".to_owned()));
        }
        let (h, fd) = inbox.take_frame().map_err(wrong)?;
        if self.ended && !matches!(h.kind, Kind::Log | Kind::Done) {
            return Err(broken(format!("{:?} after END", h.kind)));
        }
        let payload = inbox.payload();
        let event = match h.kind {
            Kind::Response => Event::Response(decode::response(payload).map_err(wrong)?),
            Kind::Data => Event::Data(payload),
            Kind::File => {
                if self.files >= MAX_FILES {
                    return Err(broken(format!("more than {MAX_FILES} files in one response")));
                }
                let (offset, len) = decode::file(payload).map_err(wrong)?;
                let fd = fd.ok_or_else(|| broken("FILE without a descriptor".to_owned()))?;
                let fd = fd.check(offset, len).map_err(|e| broken(e.to_string()))?;
                Event::File { fd, offset, len }
            }
            Kind::Log => {
                let (level, text) = decode::log(payload).map_err(wrong)?;
                Event::Log(level, text)
            }
            Kind::Abort => Event::Abort(decode::abort(payload).map_err(wrong)?),
            Kind::Continue => Event::Continue,
            Kind::End | Kind::Done => Event::Mark,
            kind => return Err(broken(format!("unexpected {kind:?}"))),
        };
        self.files += u32::from(h.kind == Kind::File);
        if let Event::Response(head) = &event {
            self.times.head(head.ran);
        }
        if h.is_end() {
            self.times.end(h.kind == Kind::Response);
        }
        self.ended |= h.is_end();
        self.done |= h.is_done();
        Ok(event)
    }

    /// The exchange is over: a connection on which DONE has been read serves the next request.
    pub fn release(self, inbox: &Inbox) {
        if self.done && inbox.is_empty() {
            self.pool.put_conn(self.lease.slot, self.conn);
        }
    }
}
