//! The answer's way to the client: read as fast as the worker writes, kept where the client is slower, exact in length,
//! and never ended as if whole when it is not.

use super::feed::Feed;
use super::{OK, refuse};
use crate::access::Outcome;
use crate::brigade::{Brigade, Stopped};
use crate::config;
use crate::log;
use crate::request::Request;
use mod_wsgi_core::conn::Inbox;
use mod_wsgi_core::error::RequestError;
use mod_wsgi_core::exchange::{Event, Exchange};
use mod_wsgi_core::response::{Framer, Instead};
use mod_wsgi_core::spool::{Spool, Store};
use mod_wsgi_wire::decode::Response;
use mod_wsgi_wire::frame::Level;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;
use std::ffi::c_int;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Memory bytes handed to the filters at a time: below httpd's FlushMaxThreshold (64 KiB), at which it would block.
const PIECE: usize = 32 * 1024;
/// Blocks up to this size are passed together, if they have arrived together.
const SMALL: usize = 16 * 1024;
/// What is kept in memory for a slow client; more goes to a file.
const SPOOL_MEMORY: usize = 256 * 1024;
/// What is kept for a slow client at all; beyond it the worker waits.
const SPOOL_LIMIT: u64 = 1 << 30;
/// How long the end of `close()` is awaited after the response.
const DONE_WAIT: Duration = Duration::from_millis(50);
/// On HTTP/2, how long the worker must pause before spooled bytes are passed on in small pieces.
const SECONDARY_PAUSE: Duration = Duration::from_millis(20);
/// How long a block waits for the next to go with it, where they come quickly.
const MOMENT: Duration = Duration::from_micros(100);
/// How long one wait for worker and client lasts at most.
pub const SLICE: Duration = Duration::from_millis(250);

/// Why the answer cannot be finished.
pub enum Broken {
    /// The client has gone or cannot be written to.
    Client,
    /// A filter has answered the client itself.
    Replaced,
    /// The worker, the application or our own spool failed.
    Other(RequestError),
}

impl From<Stopped> for Broken {
    fn from(s: Stopped) -> Broken {
        match s {
            Stopped::Disconnected => Broken::Client,
            Stopped::Replaced => Broken::Replaced,
        }
    }
}

impl From<RequestError> for Broken {
    fn from(e: RequestError) -> Broken {
        match e {
            RequestError::ClientGone => Broken::Client,
            e => Broken::Other(e),
        }
    }
}

impl From<Broken> for RequestError {
    fn from(b: Broken) -> RequestError {
        match b {
            // Only what passes output to filters can be replaced by them; a request body is no output.
            Broken::Client | Broken::Replaced => RequestError::ClientGone,
            Broken::Other(e) => e,
        }
    }
}

impl From<std::io::Error> for Broken {
    fn from(e: std::io::Error) -> Broken {
        Broken::Other(RequestError::Spool(e))
    }
}

/// What to tell httpd.
enum Told {
    Status(c_int),
    Instead(Other),
}

/// How an answer is sent.
#[derive(Clone, Copy)]
pub struct Manner<'s> {
    pub store: Store<'s>,
    /// Errors of the application get the server's pages.
    pub error_pages: bool,
    /// How long the client may take nothing.
    pub patience: Duration,
}

/// Receives the answer and sends it, and with `feed` the request body meanwhile. An error before the head is returned;
/// after it the client is shown that the answer broke off.
pub fn send(
    r: &Request<'_>,
    mut x: Exchange,
    inbox: &mut Inbox,
    mut feed: Option<Feed<'_>>,
    manner: Manner<'_>,
) -> Result<c_int, RequestError> {
    let told = answer(r, &mut x, inbox, &mut feed, manner);
    config::set_outcome(r, Outcome::new(r.pool(), &x));
    if feed.as_ref().is_some_and(Feed::is_unread) && !matches!(told, Ok(Told::Status(OK) | Told::Instead(_))) {
        // httpd would read the rest before it sends the error, which the client may be waiting for.
        r.close_after();
    }
    let reusable = feed.is_none_or(|mut f| f.settle(&x));
    if reusable {
        x.release(inbox);
    }
    Ok(match told? {
        Told::Status(status) => status,
        Told::Instead(other) => other.serve(r),
    })
}

fn answer(
    r: &Request<'_>,
    x: &mut Exchange,
    inbox: &mut Inbox,
    feed: &mut Option<Feed<'_>>,
    manner: Manner<'_>,
) -> Result<Told, RequestError> {
    let (mut out, first) = loop {
        let active = feed.as_ref().is_some_and(Feed::is_active);
        let event = x.next(r, inbox, !active)?;
        note_heard(feed, &event);
        match event {
            Event::Log(level, text) => log::worker(r, level, text),
            Event::Response(head) => {
                // Only an exact list or tuple that is complete at once comes as a RESPONSE with END.
                let whole = x.ended().then_some(head.data.len() as u64);
                let framer = Framer::new(r.header_only(), head.status, head.reason, head.headers(), whole)?;
                if let Some(other) = Instead::of(head.status, head.headers(), manner.error_pages) {
                    let other = Other::new(r, &head, other);
                    discard(r, x, inbox, feed)?;
                    return Ok(Told::Instead(other));
                }
                if whole.is_some() && feed.as_ref().is_some_and(Feed::leaves_much) {
                    r.close_after();
                }
                let mut out = Output::start(*r, &head, framer, manner);
                let first = out.data(head.data, x.ended());
                break (out, first);
            }
            Event::Abort(reason) => return Err(RequestError::Aborted(reason)),
            event @ (Event::Continue | Event::Pause) => feed_on(feed, x, &event)?,
            Event::Data(_) | Event::File { .. } | Event::Mark => {
                let (group, pid) = (x.pool().label(), x.pid());
                return Err(RequestError::WorkerProtocol { group, pid, error: "body before the head".to_owned() });
            }
        }
    };
    match first.and_then(|()| out.pump(x, inbox, feed)) {
        Ok(()) => Ok(Told::Status(OK)),
        Err(Broken::Client) => {
            r.mark_aborted();
            Ok(Told::Status(OK))
        }
        Err(Broken::Replaced) => {
            if x.ended() {
                // A worker that fails here has not said DONE: its connection is given up.
                let _ = await_done(r, x, inbox);
            }
            Ok(Told::Status(OK))
        }
        Err(Broken::Other(e)) => Ok(Told::Status(out.broken(&e))),
    }
}

/// What is served instead of the answer; nothing of it refers to the answer, whose buffers serve the next request.
enum Other {
    Path(Vec<u8>),
    ErrorPage(c_int),
}

impl Other {
    fn new(r: &Request<'_>, head: &Response<'_>, other: Instead<'_>) -> Other {
        // Which credentials are wanted is part of a 401 whoever writes its page.
        for (name, value) in head.headers().filter(|(name, _)| is_challenge(name)) {
            r.err_headers_out().add(name, value);
        }
        match other {
            Instead::Path(path) => Other::Path(path.to_vec()),
            Instead::ErrorPage(status) => Other::ErrorPage(c_int::from(status)),
        }
    }

    /// The status for httpd.
    fn serve(self, r: &Request<'_>) -> c_int {
        match self {
            Other::Path(path) => {
                r.redirect_internally(&path);
                OK
            }
            Other::ErrorPage(status) => status,
        }
    }
}

fn is_challenge(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"www-authenticate")
}

/// Reads the rest of an answer that nobody gets. One that breaks off is an error as any other.
fn discard(
    r: &Request<'_>,
    x: &mut Exchange,
    inbox: &mut Inbox,
    feed: &mut Option<Feed<'_>>,
) -> Result<(), RequestError> {
    while !x.ended() {
        let active = feed.as_ref().is_some_and(Feed::is_active);
        let event = x.next(r, inbox, !active)?;
        note_heard(feed, &event);
        match event {
            Event::Log(level, text) => log::worker(r, level, text),
            Event::Abort(reason) => return Err(RequestError::Aborted(reason)),
            Event::Response(_) => return Err(second_head(x)),
            Event::Data(_) | Event::File { .. } | Event::Mark => {}
            event @ (Event::Continue | Event::Pause) => feed_on(feed, x, &event)?,
        }
    }
    await_done(r, x, inbox)
}

/// What the worker says shows that it gets on, also while it takes nothing of the request body.
fn note_heard(feed: &mut Option<Feed<'_>>, event: &Event<'_>) {
    if let Some(feed) = feed
        && !matches!(event, Event::Pause)
    {
        feed.heard();
    }
}

/// Before anything of an answer can be sent: the request body alone moves.
fn feed_on(feed: &mut Option<Feed<'_>>, x: &Exchange, event: &Event<'_>) -> Result<(), RequestError> {
    match (feed, event) {
        (Some(feed), Event::Continue) => feed.ask(false),
        (Some(feed), _) => {
            feed.turn(x, false)?;
        }
        (None, _) => {}
    }
    Ok(())
}

fn second_head(x: &Exchange) -> RequestError {
    let (group, pid) = (x.pool().label(), x.pid());
    RequestError::WorkerProtocol { group, pid, error: "a second head".to_owned() }
}

/// Waits for the end of `close()`, which is usually over in no time; its log records belong to this request. Where it
/// takes longer this thread does not wait: the worker frees its row by itself, and the connection is given up.
fn await_done(r: &Request<'_>, x: &mut Exchange, inbox: &mut Inbox) -> Result<(), RequestError> {
    let deadline = Instant::now() + DONE_WAIT;
    while !x.done() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Also for a worker that only logs and never ends.
            break;
        }
        if let Event::Log(level, text) = x.next_after_end(inbox, left)? {
            log::worker(r, level, text);
        }
    }
    Ok(())
}

struct Output<'r> {
    r: Request<'r>,
    brigade: Brigade<'r>,
    framer: Framer,
    spool: Spool<'r>,
    /// Nothing more can be kept: the worker waits for the client.
    full: bool,
    /// Bytes have been passed since the last FLUSH.
    unflushed: bool,
    /// Anything has been passed: the head may be on its way.
    passed: bool,
    /// EOS has been passed.
    ended: bool,
    /// Bytes passed since the worker last paused (HTTP/2).
    direct: usize,
    /// Small blocks that have arrived together: each pass through the filters costs more than they do.
    gathered: Vec<u8>,
    /// Blocks have been arriving together, or within a moment.
    brisk: bool,
    /// When the client last took something.
    progress: Instant,
    /// How long it may take nothing.
    patience: Duration,
    /// Bytes that its socket held when it was last looked at.
    unsent: u32,
}

impl<'r> Output<'r> {
    /// Gives the head, as `framer` has judged it, to httpd, which sends it with the first bytes.
    fn start(r: Request<'r>, head: &Response<'_>, framer: Framer, manner: Manner<'r>) -> Output<'r> {
        r.set_status(head.status, head.reason);
        let table = r.headers_out();
        for (name, value) in head.headers() {
            if name.eq_ignore_ascii_case(b"content-type") {
                r.set_content_type(value);
            } else if is_challenge(name) {
                // Where mod_auth_* keep theirs, and mod_headers looks for them (`Header always`).
                r.err_headers_out().add(name, value);
            } else if !name.eq_ignore_ascii_case(b"content-length") {
                if name.eq_ignore_ascii_case(b"accept-ranges") && value.eq_ignore_ascii_case(b"none") {
                    // httpd would make ranges all the same.
                    r.headers_in().unset(c"Range");
                }
                table.add(name, value);
            }
        }
        if let Some(n) = framer.content_length() {
            r.set_content_length(n);
        }
        Output {
            r,
            brigade: Brigade::new(r),
            framer,
            spool: Spool::new(manner.store, SPOOL_MEMORY),
            full: false,
            unflushed: false,
            passed: false,
            ended: false,
            direct: 0,
            gathered: Vec::new(),
            brisk: true,
            progress: Instant::now(),
            patience: manner.patience,
            unsent: 0,
        }
    }

    /// The client is behind: bytes wait in httpd or here. HTTP/2 streams cannot be asked, and a pass beyond what their
    /// buffers take blocks: there all but the first piece is kept until the worker pauses or ends.
    fn behind(&self) -> bool {
        if self.r.is_secondary() {
            return !self.spool.is_empty() || self.direct >= PIECE;
        }
        !self.spool.is_empty() || self.r.output_waits()
    }

    /// Takes body bytes. `last`: nothing follows, so they need not be passed by themselves.
    fn data(&mut self, bytes: &[u8], last: bool) -> Result<(), Broken> {
        let n = self.framer.accept(bytes.len() as u64) as usize;
        let mut bytes = &bytes[..n];
        if last && bytes.len() <= PIECE && !self.behind() {
            return self.end_with(bytes);
        }
        while !bytes.is_empty() {
            if !self.behind() {
                let (now, later) = bytes.split_at(bytes.len().min(PIECE));
                self.pass(now)?;
                bytes = later;
            } else if self.full {
                self.drain(None, SLICE)?;
            } else {
                match self.spool.push(bytes) {
                    Ok(()) => bytes = &[],
                    Err(e) => self.no_room(&e),
                }
                if self.spool.len() >= SPOOL_MEMORY as u64 / 4 && !self.r.is_secondary() {
                    self.drain(None, Duration::ZERO)?;
                }
            }
        }
        Ok(())
    }

    /// What is kept for a slow client cannot grow: the worker goes at the client's pace from here.
    fn no_room(&mut self, e: &std::io::Error) {
        self.full = true;
        let text = format!("MWR0217: no room to keep the answer for a slow client, the worker waits for it: {e}");
        log::request(&self.r, Level::Warn, &text);
    }

    fn pass(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.brigade.data(bytes);
        self.passed = true;
        self.unflushed = true;
        self.direct += bytes.len();
        self.brigade.pass()?;
        self.progress = Instant::now();
        Ok(())
    }

    /// A whole answer in one pass.
    fn end_with(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.framer.finish().map_err(|e| Broken::Other(RequestError::Shortfall(e)))?;
        self.brigade.data(bytes);
        self.brigade.eos();
        self.passed = true;
        self.brigade.pass()?;
        self.ended = true;
        Ok(())
    }

    fn file(&mut self, fd: OwnedFd, offset: u64, len: u64) -> Result<(), Broken> {
        let n = self.framer.accept(len);
        if n == 0 {
            return Ok(());
        }
        self.rest()?;
        self.brigade.file(fd, offset, n)?;
        self.passed = true;
        self.unflushed = true;
        Ok(())
    }

    /// Puts what is spooled into the brigade: a little as memory, more as a file, for which the filters never wait.
    fn rest(&mut self) -> Result<(), Broken> {
        let len = self.spool.len();
        if len == 0 {
            return Ok(());
        }
        if len <= PIECE as u64 {
            let mut buf = vec![0; len as usize];
            self.spool.take(&mut buf)?;
            self.brigade.data_copied(&buf);
        } else {
            match self.spool.rest_as_file() {
                Ok((fd, offset, len, held)) => {
                    // The bytes are on disk until httpd has sent them.
                    self.r.pool().own(held);
                    self.brigade.file(fd, offset, len)?;
                }
                Err(e) => {
                    self.no_room(&e);
                    while !self.spool.is_empty() {
                        self.drain(None, SLICE)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves frames from the worker to the client until the response is whole and the worker is done.
    fn pump(&mut self, x: &mut Exchange, inbox: &mut Inbox, feed: &mut Option<Feed<'_>>) -> Result<(), Broken> {
        while !x.ended() {
            // A stream of HTTP/2 that its client has reset: nothing else shows it while the worker never pauses.
            if self.r.is_aborted() {
                return Err(Broken::Client);
            }
            let behind = self.behind();
            let active = feed.as_ref().is_some_and(Feed::is_active);
            if behind && self.spool.len() >= SPOOL_LIMIT {
                self.drain(None, SLICE)?;
                continue;
            }
            let block = !behind && !self.unflushed && !active && self.gathered.is_empty();
            let event = x.next(&self.r, inbox, block)?;
            note_heard(feed, &event);
            match event {
                Event::Data(_) => {}
                Event::Pause if self.comes_soon(x) => continue,
                _ => self.pass_gathered()?,
            }
            match event {
                Event::Data(bytes) if bytes.len() <= SMALL => {
                    self.gathered.extend_from_slice(bytes);
                    self.brisk |= matches!(inbox.has_frame(), Ok(true));
                    if self.gathered.len() >= PIECE {
                        self.pass_gathered()?;
                    }
                }
                Event::Data(bytes) => {
                    self.pass_gathered()?;
                    self.data(bytes, false)?;
                }
                Event::File { fd, offset, len } => {
                    self.file(fd, offset, len)?;
                    if !x.ended() {
                        self.brigade.pass()?;
                    }
                }
                Event::Log(level, text) => log::worker(&self.r, level, text),
                Event::Abort(reason) => return Err(RequestError::Aborted(reason).into()),
                Event::Response(_) => return Err(second_head(x).into()),
                Event::Mark => {}
                Event::Continue => {
                    if let Some(feed) = feed {
                        feed.ask(self.passed);
                    }
                }
                Event::Pause if active => {
                    if let Some(feed) = feed {
                        self.duplex(feed, x, behind)?;
                    }
                }
                Event::Pause if behind => self.drain(Some(x), SLICE)?,
                Event::Pause => self.flush(x)?,
            }
        }
        self.pass_gathered()?;
        self.finish(x, inbox, feed.as_ref().is_some_and(Feed::is_unread))
    }

    /// Whether to keep what has been gathered for a moment: an application that yields blocks quickly gets them sent in
    /// larger pieces. One that takes its time is found out once, and then each block goes out by itself.
    fn comes_soon(&mut self, x: &Exchange) -> bool {
        if self.gathered.is_empty() || !self.brisk {
            return false;
        }
        let limit = Timespec { tv_sec: 0, tv_nsec: MOMENT.subsec_nanos() as _ };
        let mut fds = [PollFd::from_borrowed_fd(x.fd(), PollFlags::IN)];
        self.brisk = matches!(poll(&mut fds, Some(&limit)), Ok(1..));
        self.brisk
    }

    fn pass_gathered(&mut self) -> Result<(), Broken> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.gathered);
        let passed = self.data(&bytes, false);
        bytes.clear();
        self.gathered = bytes;
        passed
    }

    /// Waits for client and worker; a client that can take more gets more.
    fn drain(&mut self, x: Option<&Exchange>, limit: Duration) -> Result<(), Broken> {
        if self.r.is_secondary() {
            return self.drain_secondary(x);
        }
        if self.wait(x, limit)? {
            self.brigade.nudge()?;
            self.progress = Instant::now();
            let mut buf = [0; PIECE];
            while !self.r.output_waits() && !self.spool.is_empty() {
                let n = self.spool.take(&mut buf)?;
                self.pass(&buf[..n])?;
            }
        } else {
            self.check_client()?;
        }
        Ok(())
    }

    /// HTTP/2: after a real pause of the worker, or when no more can be kept, one piece goes out.
    fn drain_secondary(&mut self, x: Option<&Exchange>) -> Result<(), Broken> {
        if let Some(x) = x {
            let limit = Timespec { tv_sec: 0, tv_nsec: SECONDARY_PAUSE.subsec_nanos() as _ };
            let mut fds = [PollFd::from_borrowed_fd(x.fd(), PollFlags::IN)];
            if matches!(poll(&mut fds, Some(&limit)), Ok(1..)) {
                return Ok(());
            }
        }
        let mut buf = [0; PIECE];
        let n = self.spool.take(&mut buf)?;
        self.direct = 0;
        self.brigade.data(&buf[..n]);
        self.brigade.flush();
        self.passed = true;
        self.unflushed = false;
        self.brigade.pass()?;
        Ok(())
    }

    /// Both directions: body bytes to the worker, and to the client whatever it takes.
    fn duplex(&mut self, feed: &mut Feed<'_>, x: &Exchange, behind: bool) -> Result<(), Broken> {
        let takes = feed.turn(x, behind || self.unflushed)?;
        if behind {
            if takes {
                self.drain(Some(x), Duration::ZERO)?;
            } else {
                self.check_client()?;
            }
        } else if takes && self.unflushed {
            self.flush(x)?;
        }
        Ok(())
    }

    /// The client's socket takes nothing: is the client still there? A socket of some megabytes has room again only after
    /// a third of them has been taken, which a slow reader needs minutes for: what it still holds tells sooner.
    fn check_client(&mut self) -> Result<(), Broken> {
        let unsent = self.r.unsent();
        if unsent < self.unsent {
            self.progress = Instant::now();
        }
        self.unsent = unsent;
        if self.progress.elapsed() <= self.patience {
            return Ok(());
        }
        let seconds = self.patience.as_secs_f64();
        let text =
            format!("client has taken nothing for {seconds} s (response-socket-timeout), the response is given up");
        log::request(&self.r, Level::Info, &text);
        Err(Broken::Client)
    }

    /// The worker pauses and the client keeps up: what has been passed shall be seen.
    fn flush(&mut self, x: &Exchange) -> Result<(), Broken> {
        if self.wait(Some(x), SLICE)? {
            self.brigade.flush();
            self.brigade.pass()?;
            self.unflushed = false;
            self.progress = Instant::now();
        } else {
            self.check_client()?;
        }
        Ok(())
    }

    /// `true` when the client's socket takes bytes; returns early when the worker has some.
    fn wait(&self, x: Option<&Exchange>, limit: Duration) -> Result<bool, Broken> {
        let Some(client) = self.r.client_socket() else {
            // HTTP/2: its own flow control decides, inside the pass.
            return Ok(true);
        };
        let mut fds = vec![PollFd::from_borrowed_fd(client, PollFlags::OUT | PollFlags::RDHUP)];
        if let Some(x) = x {
            fds.push(PollFd::from_borrowed_fd(x.fd(), PollFlags::IN));
        }
        let limit = Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos() as _ };
        if poll(&mut fds, Some(&limit)).is_err() {
            return Ok(false);
        }
        let seen = fds[0].revents();
        if seen.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
            return Err(Broken::Client);
        }
        Ok(seen.contains(PollFlags::OUT))
    }

    /// END has come: the rest goes out, then the worker is awaited until `close()` has run.
    /// `unread`: of the request body something is left, which httpd reads before it writes what it still holds.
    fn finish(&mut self, x: &mut Exchange, inbox: &mut Inbox, unread: bool) -> Result<(), Broken> {
        if self.framer.surplus() > 0 {
            let text = format!(
                "MWR0215: response body has {} bytes more than its Content-Length; they were cut",
                self.framer.surplus()
            );
            log::request(&self.r, Level::Warn, &text);
        }
        if !self.ended {
            self.framer.finish().map_err(|e| Broken::Other(RequestError::Shortfall(e)))?;
            self.rest()?;
            self.brigade.eos();
            self.passed = true;
            self.brigade.pass()?;
            self.ended = true;
        }
        if (unread || !x.done()) && !self.r.is_secondary() {
            // The client need not wait for close() or the end of its own body, and this thread not for the client.
            self.brigade.nudge()?;
        }
        Ok(await_done(&self.r, x, inbox)?)
    }

    /// The answer cannot be finished. Before anything was passed the client gets an error page, else it must see that
    /// the body broke off, whatever the protocol.
    fn broken(&mut self, e: &RequestError) -> c_int {
        if self.ended {
            // The client has everything; only close() or DONE failed.
            refuse(&self.r, e);
            return OK;
        }
        let status = refuse(&self.r, e);
        if !self.passed {
            return status;
        }
        self.r.set_no_cache();
        // A filter that changes the body (mod_deflate) has taken the length away.
        let by_close = self.r.proto_num() < 1001 && self.r.headers_out().get(c"Content-Length").is_none();
        if by_close {
            // The end of such a body is the end of the connection: only a reset tells the two apart.
            if let Some(fd) = self.r.client_socket() {
                // A socket that is gone already needs no reset.
                let _ = set_socket_linger(fd, Some(Duration::ZERO));
            }
            self.r.mark_aborted();
            return OK;
        }
        self.r.close_after();
        self.brigade.abort();
        // A client that has gone meanwhile has seen the break too.
        let _ = self.brigade.pass();
        OK
    }
}
