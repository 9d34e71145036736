//! The request body of a streaming place (request-buffering off): it goes to the worker while the client sends it and
//! while the answer is under way. Nothing is read before the application asks (CONTINUE), so that it may refuse without
//! a byte of it; until then a request can be recalled and sent again like any other.

use super::reply::{Broken, SLICE};
use super::upload::{Announced, WORTH_READING};
use crate::brigade::{Brigade, Piece};
use crate::request::Request;
use mod_wsgi_core::error::RequestError;
use mod_wsgi_core::exchange::Exchange;
use mod_wsgi_wire::encode;
use mod_wsgi_wire::frame::Kind;
use mod_wsgi_wire::limits::MAX_DATA;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::time::{Duration, Instant};

/// On HTTP/2 the client cannot be polled: the input is looked at again after this long, more while nothing comes.
const SECONDARY_LOOK: Duration = Duration::from_millis(1);
const SECONDARY_LOOK_MOST: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The application has not asked yet.
    Unasked,
    Open,
    /// BODY_END has been framed.
    Ended,
    /// Nothing more can go to the worker.
    Shut,
}

/// What the body waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wants {
    Nothing,
    Client,
    Worker,
    /// It moved and may move again at once.
    Turn,
}

/// One streamed body.
pub struct Feed<'r> {
    r: Request<'r>,
    brigade: Brigade<'r>,
    announced: Announced,
    state: State,
    /// Frames under way, sent up to `at`.
    frames: Vec<u8>,
    at: usize,
    /// Body bytes that have come from the client.
    got: u64,
    /// When the client last sent something.
    progress: Instant,
    /// How long it may send nothing.
    patience: Duration,
    /// Since when the worker has taken nothing of what waits for it, and said nothing.
    stuck: Option<Instant>,
    look: Duration,
}

impl<'r> Feed<'r> {
    /// `patience`: how long the client may send nothing.
    pub fn new(r: Request<'r>, announced: Announced, patience: Duration) -> Feed<'r> {
        Feed {
            r,
            brigade: Brigade::new(r),
            announced,
            state: State::Unasked,
            frames: Vec::new(),
            at: 0,
            got: 0,
            progress: Instant::now(),
            patience,
            stuck: None,
            look: SECONDARY_LOOK,
        }
    }

    /// CONTINUE has come: the application reads. `answered`: its head is on its way, too late for `100 Continue`.
    pub fn ask(&mut self, answered: bool) {
        if self.state == State::Unasked {
            self.state = State::Open;
            self.progress = Instant::now();
            if !answered {
                self.r.send_continue();
            }
        }
    }

    /// The worker has said something.
    pub fn heard(&mut self) {
        self.stuck = None;
    }

    /// Bytes are to be moved: whoever waits for the worker must not wait for it alone.
    pub fn is_active(&self) -> bool {
        self.state == State::Open || self.at < self.frames.len()
    }

    /// Moves at most one piece from the client to the worker.
    fn step(&mut self, x: &Exchange) -> Result<Wants, Broken> {
        if self.at < self.frames.len() {
            let Some(n) = x.offer(&self.frames[self.at..]) else {
                self.state = State::Shut;
                self.frames.clear();
                self.at = 0;
                return Ok(Wants::Nothing);
            };
            self.at += n;
            if n > 0 {
                self.stuck = None;
            }
            if self.at < self.frames.len() {
                let since = *self.stuck.get_or_insert_with(Instant::now);
                return match x.silence() {
                    Some(limit) if since.elapsed() >= limit => Err(Broken::Other(x.silent(limit))),
                    _ => Ok(Wants::Worker),
                };
            }
            self.frames.clear();
            self.at = 0;
        }
        if self.state != State::Open {
            return Ok(Wants::Nothing);
        }
        let (frames, got) = (&mut self.frames, &mut self.got);
        let read = self.brigade.read(MAX_DATA, false, |bytes| {
            for part in bytes.chunks(MAX_DATA) {
                frames.extend_from_slice(&encode::body_header(part.len()));
                frames.extend_from_slice(part);
            }
            *got += bytes.len() as u64;
            Ok(())
        });
        let piece = match read {
            Err(e) if e.0 == 0 => return Err(Broken::Client),
            Err(e) => return Err(Broken::Other(RequestError::Body(e.0))),
            Ok(kept) => kept?,
        };
        match piece {
            Piece::Nothing if self.progress.elapsed() > self.patience => Err(Broken::Other(RequestError::Body(408))),
            Piece::Nothing => Ok(Wants::Client),
            Piece::Some => {
                self.progress = Instant::now();
                self.look = SECONDARY_LOOK;
                Ok(Wants::Turn)
            }
            Piece::End => {
                self.state = State::Ended;
                encode::empty(&mut self.frames, Kind::BodyEnd, 0);
                Ok(Wants::Turn)
            }
        }
    }

    /// Moves body bytes, or waits at most [`SLICE`] for what moves them, for the worker's next frame and, with
    /// `to_client`, for room towards the client. `true`: the client takes bytes.
    pub fn turn(&mut self, x: &Exchange, to_client: bool) -> Result<bool, Broken> {
        let wants = self.step(x)?;
        let mut limit = if wants == Wants::Turn { Duration::ZERO } else { SLICE };
        let mut watch = PollFlags::RDHUP;
        if to_client {
            watch |= PollFlags::OUT;
        }
        if wants == Wants::Client {
            watch |= PollFlags::IN;
        }
        let mut of_worker = PollFlags::IN;
        if wants == Wants::Worker {
            of_worker |= PollFlags::OUT;
        }
        let mut fds = vec![PollFd::from_borrowed_fd(x.fd(), of_worker)];
        let client = self.r.client_socket();
        match client {
            Some(client) => fds.push(PollFd::from_borrowed_fd(client, watch)),
            None if wants == Wants::Client => {
                limit = limit.min(self.look);
                self.look = (self.look * 2).min(SECONDARY_LOOK_MOST);
            }
            None => {}
        }
        let limit = Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos() as _ };
        if poll(&mut fds, Some(&limit)).is_err() {
            return Ok(false);
        }
        let Some(client) = fds.get(1).map(PollFd::revents) else {
            return if self.r.is_aborted() { Err(Broken::Client) } else { Ok(to_client) };
        };
        if client.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
            return Err(Broken::Client);
        }
        Ok(client.contains(PollFlags::OUT))
    }

    /// Whether anything of the body may still be with the client.
    pub fn is_unread(&self) -> bool {
        self.state != State::Ended
    }

    /// Whether more of the body is unread than is worth reading for the sake of keep-alive.
    pub fn leaves_much(&self) -> bool {
        match (self.state, self.announced) {
            (State::Ended, _) => false,
            (_, Announced::Chunked) => true,
            (_, Announced::Length(n)) => n.saturating_sub(self.got) > WORTH_READING,
        }
    }

    /// The exchange is over. `true`: the worker's connection is between two frames and can serve the next request.
    pub fn settle(&mut self, x: &Exchange) -> bool {
        if self.leaves_much() {
            self.r.close_after();
        }
        if !x.done() || self.at < self.frames.len() || self.state == State::Shut {
            // The connection is closed: an application that still reads must not take what it has for the whole.
            return false;
        }
        if self.state == State::Ended {
            return true;
        }
        self.state = State::Shut;
        encode::empty(&mut self.frames, Kind::BodyEnd, 0);
        x.offer(&self.frames) == Some(self.frames.len())
    }
}
