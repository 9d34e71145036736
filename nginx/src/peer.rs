//! nginx's peer: the row of a worker is taken here, when nginx really needs one, and given back here, when it is known
//! what became of the request (send now, claim, recall: DESIGN 6).
#![allow(unsafe_code)]

use crate::conn::{self, OpenError, Wire};
use crate::feed::{Feed, Left};
use crate::guard::callback;
use crate::handler;
use crate::lane;
use crate::log;
use crate::process::{Failure, Group, Process, Ticket, current};
use crate::request::Request;
use crate::response;
use crate::sys;
use mod_wsgi_core::error::RequestError;
use mod_wsgi_core::pool::Look;
use mod_wsgi_core::reader::Reader;
use mod_wsgi_core::response::Framer;
use mod_wsgi_scoreboard::Lease;
use mod_wsgi_scoreboard::layout::header;
use mod_wsgi_wire::encode::{RowRef, bytes_only, for_lane, patch_row};
use mod_wsgi_wire::limits::MAX_LANE_REQUEST;
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Times a request is recalled and sent again before it is given up.
const MAX_RECALLS: u32 = 20;
/// How long a supervisor that is being restarted is awaited.
const REGISTER_LIMIT: Duration = Duration::from_secs(2);

/// One request's dealings with workers. Lives in the request's pool; nginx's peer points to it.
pub struct Exchange {
    r: *mut sys::ngx_http_request_t,
    /// One REQUEST frame with its inline body.
    pub frame: Vec<u8>,
    /// The body, when it travels as a descriptor.
    pub body: Option<OwnedFd>,
    /// The body, when the application reads it while it comes.
    pub feed: Feed,
    group: Option<Rc<Group>>,
    lease: Option<Lease>,
    pub wire: *mut Wire,
    ticket: Option<Ticket>,
    pub reader: Reader,
    pub framer: Option<Framer>,
    /// The whole answer lies in the first buffer.
    pub small: bool,
    /// The worker has been told that the answer's bytes are wanted.
    pub no_file: bool,
    /// nginx has begun to pass the body on.
    pub passing: bool,
    /// When the head came, and how long the application had had the request then.
    pub head_at: Option<(Instant, Duration)>,
    /// When the last of the answer came.
    pub ended_at: Option<Instant>,
    /// When it was given up, or handed back, before a worker began it.
    pub unrun_at: Option<Instant>,
    /// The worker that was asked last.
    pub pid: Option<u32>,
    /// The Retry-After of a failure, in the answer's head.
    pub retry_after: *mut sys::ngx_table_elt_t,
    /// When it began to look for a worker; its body had been read by then.
    started: Instant,
    /// When it looked for one last.
    looked: Instant,
    /// Workers asked, also those that gave it back unrun.
    tries: u32,
    /// Workers that have begun it.
    runs: u32,
    /// The failure or status that a worker's answer brings lets another worker try, unless nginx finds that too late.
    another: bool,
    recalls: u32,
    patience: u32,
    avoid: Option<u16>,
    /// Since when connections to workers fail.
    failing: Option<Instant>,
    /// The row has been taken back.
    recalled: bool,
    /// A worker that is ending has given the request back unrun.
    pub not_run: bool,
    /// The request was sent before: nginx has to begin its own part anew.
    again: bool,
    /// It has waited, and shall look again.
    woken: bool,
    lost: Option<String>,
    last: String,
    pub failure: Option<Failure>,
}

/// What a read on a request's connection is to do first.
pub enum Before {
    Go,
    /// Nothing can have come.
    Wait,
    /// Fail: the request goes on elsewhere.
    Stop,
    /// Give one byte, so that nginx asks for the head: there is a failure to tell.
    Pretend,
}

/// The exchange of the request that has a connection.
///
/// # Safety
/// `c` is the upstream connection of a live request of this module.
pub unsafe fn exchange_of(c: *mut sys::ngx_connection_t) -> *mut Exchange {
    // SAFETY: nginx sets the data of an upstream's connection to its request, whose peer's data `init` has set.
    unsafe { (*(*(*c).data.cast::<sys::ngx_http_request_t>()).upstream).peer.data.cast() }
}

impl Exchange {
    pub fn new(r: *mut sys::ngx_http_request_t, frame: Vec<u8>) -> Exchange {
        Exchange {
            r,
            frame,
            body: None,
            feed: Feed::default(),
            group: None,
            lease: None,
            wire: std::ptr::null_mut(),
            ticket: None,
            reader: Reader::default(),
            framer: None,
            small: false,
            no_file: false,
            passing: false,
            head_at: None,
            ended_at: None,
            unrun_at: None,
            pid: None,
            retry_after: std::ptr::null_mut(),
            started: Instant::now(),
            looked: Instant::now(),
            tries: 0,
            runs: 0,
            another: false,
            recalls: 0,
            patience: 3,
            avoid: None,
            failing: None,
            recalled: false,
            not_run: false,
            again: false,
            woken: false,
            lost: None,
            last: String::new(),
            failure: None,
        }
    }

    /// The connection is of no use any more.
    pub fn lost(&mut self, why: String) {
        self.lost = Some(why);
    }

    pub fn body_to_send(&self) -> Option<BorrowedFd<'_>> {
        self.body.as_ref().map(AsFd::as_fd)
    }

    pub fn before_receive(&self) -> Before {
        if self.failure.is_some() {
            return Before::Pretend;
        }
        if self.woken || self.recalled {
            return Before::Stop;
        }
        // SAFETY: null or the live wire of this exchange.
        match unsafe { self.wire.as_ref() } {
            Some(w) if !w.is_stand_in() => Before::Go,
            _ => Before::Wait,
        }
    }

    /// Name of the pool and worker, for messages.
    fn who(&self) -> (String, u32) {
        match (&self.group, &self.lease) {
            (Some(g), Some(l)) => (g.pool.label(), g.pool.table.pid(l.slot)),
            (Some(g), None) => (g.pool.label(), 0),
            _ => (String::new(), 0),
        }
    }

    /// Bytes that are not the protocol.
    pub fn protocol_error(&self, error: String) -> RequestError {
        let (group, pid) = self.who();
        RequestError::WorkerProtocol { group, pid, error }
    }

    /// Logs a failure and notes what the client gets.
    pub fn fail(&mut self, e: &RequestError) {
        self.fail_with(Failure::from(e));
    }

    fn fail_with(&mut self, f: Failure) {
        if let Some(line) = f.verdict.line(&f.text) {
            // SAFETY: the request lives as long as its exchange.
            log::write(unsafe { Request::new(self.r) }.log(), f.verdict.level, &line);
        }
        if self.lease.is_none() || self.recalled {
            self.unrun_at = Some(Instant::now());
        }
        self.failure = Some(f);
    }

    /// How long the request waited before a worker began it, or before it was given up.
    pub fn queued(&self) -> Option<Duration> {
        match (self.head_at, self.unrun_at) {
            (Some((at, ran)), _) => Some(at.saturating_duration_since(self.started).saturating_sub(ran)),
            (None, at) => at.map(|at| at.saturating_duration_since(self.started)),
        }
    }

    /// How long the application had the request, from its beginning to the last of its answer.
    pub fn ran(&self) -> Option<Duration> {
        let ((at, ran), end) = (self.head_at?, self.ended_at?);
        Some(ran + end.saturating_duration_since(at))
    }
}

/// Fails a waiting request whose application group cannot be had.
pub fn fail_for(x: *mut Exchange, group: &str, application: &str, f: &Failure) {
    // SAFETY: the process's list holds live exchanges only; nothing of nginx's is called here.
    unsafe {
        let route = &Request::new((*x).r).location().route;
        if route.group == group && route.application == application {
            (*x).fail_with(f.clone());
        }
    }
}

/// Looks at a request that was sent a while ago, and takes it back where that is better.
pub fn look(x: *mut Exchange) -> Look {
    // SAFETY: as in `fail_for`.
    let x = unsafe { &mut *x };
    let (Some(g), Some(lease)) = (&x.group, &x.lease) else { return Look::Claimed };
    let looked = g.pool.look(lease, x.started.elapsed());
    match looked {
        Look::Recalled => x.recalled = true,
        Look::TimedOut(limit) => {
            x.recalled = true;
            let e = RequestError::QueueTimeout { group: g.pool.label(), seconds: limit.as_secs() };
            x.fail(&e);
        }
        _ => {}
    }
    looked
}

/// Whether a request that waits would have to wait on: whoever is woken takes nginx's whole way to the next wait.
pub fn must_wait(x: *mut Exchange) -> bool {
    // SAFETY: as in `fail_for`.
    let x = unsafe { &*x };
    let waited = x.started.elapsed();
    // SAFETY: the request lives as long as its exchange.
    let limit = Duration::from_millis(unsafe { Request::new(x.r) }.location().upstream.connect_timeout as u64);
    // nginx's own timer, which begins anew with every look, must not be the one that ends the wait.
    x.failure.is_none()
        && waited < limit
        && x.looked.elapsed() < limit / 2
        && x.group.as_ref().is_some_and(|g| g.pool.must_wait(waited))
}

/// Makes nginx read the request's connection, which fails: it then asks for another one.
pub fn wake(x: *mut Exchange) {
    // SAFETY: the process's list holds live exchanges only. The handler may end the request and free the exchange:
    // nothing is touched after it.
    unsafe {
        (*x).woken = true;
        let Some(wire) = (*x).wire.as_ref() else { return };
        let c = wire.c;
        (*(*c).read).set_ready(1);
        if let Some(handler) = (*(*c).read).handler {
            handler((*c).read);
        }
    }
}

/// nginx wants an address, and has no use for it but that its messages put a colon behind the name of one in AF_UNIX.
static ADDRESS: Address = Address(libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] });
#[repr(transparent)]
struct Address(libc::sockaddr);
/// What `$upstream_addr` shows before a worker has been chosen.
static NAME: Name = Name(crate::pool::constant(c"wsgi:"));
#[repr(transparent)]
struct Name(sys::ngx_str_t);
// SAFETY: constant data that nginx only reads.
unsafe impl Sync for Name {}

/// nginx begins with the peers of a request.
pub unsafe extern "C" fn init(
    r: *mut sys::ngx_http_request_t,
    _: *mut sys::ngx_http_upstream_srv_conf_t,
) -> sys::ngx_int_t {
    callback("peer.init", sys::NGX_ERROR as sys::ngx_int_t, || {
        // SAFETY: nginx passes a live request whose upstream the content handler has made, with the exchange as data.
        unsafe {
            let peer = &mut (*(*r).upstream).peer;
            peer.get = Some(get);
            peer.free = Some(free);
            peer.tries = 1;
            (*peer.data.cast::<Exchange>()).started = Instant::now();
        }
        0
    })
}

enum Taken {
    Wire(*mut Wire),
    /// Look again a little later.
    Wait,
}

impl Exchange {
    /// A row and a connection to its worker.
    fn take(&mut self, p: &'static Process, log: *mut sys::ngx_log_t) -> Result<Taken, RequestError> {
        // SAFETY: the request lives as long as its exchange.
        let route = &unsafe { Request::new(self.r) }.location().route;
        let waited = self.started.elapsed();
        let client = p.client();
        if client == 0 {
            if waited > REGISTER_LIMIT {
                return Err(RequestError::Supervisor("this server process is not registered".to_owned()));
            }
            return Ok(Taken::Wait);
        }
        let Some(group) = p.group(&route.group, &route.application)? else { return Ok(Taken::Wait) };
        self.group = Some(group.clone());
        let pool = &group.pool;
        let lease = match pool.admit(client, self.avoid, waited) {
            Ok(Some(lease)) => lease,
            Ok(None) => return Ok(Taken::Wait),
            // A worker frees a row just after its last frame: whoever asks again at once may be there first.
            Err(RequestError::QueueFull(_)) if self.patience > 0 => {
                self.patience -= 1;
                return Ok(Taken::Wait);
            }
            Err(e) => {
                if matches!(e, RequestError::QueueFull(_)) {
                    pool.table.count(header::QUEUE_FULL);
                }
                return Err(e);
            }
        };
        self.tries += 1;
        match self.connect(&group, &lease, client, log) {
            Ok(wire) => {
                self.pid = Some(pool.table.pid(lease.slot));
                self.lease = Some(lease);
                self.failing = None;
                Ok(Taken::Wire(wire))
            }
            Err(e) => {
                // Nothing was sent, so nobody can have claimed it.
                pool.table.recall(&lease);
                self.last = e.to_string();
                if matches!(e, OpenError::Records) {
                    return Err(self.undeliverable());
                }
                pool.pass_over(lease.slot);
                self.avoid = Some(lease.slot);
                if self.failing.get_or_insert_with(Instant::now).elapsed() >= pool.limits.connect_timeout {
                    return Err(self.undeliverable());
                }
                // A worker that is just dying stays READY until its supervisor has noticed.
                Ok(Taken::Wait)
            }
        }
    }

    fn connect(
        &self,
        group: &Rc<Group>,
        lease: &Lease,
        client: u32,
        log: *mut sys::ngx_log_t,
    ) -> Result<*mut Wire, OpenError> {
        if self.may_ride() {
            let lane = group.lane(lease, client, log)?;
            if !lane.is_crowded() {
                return conn::board(&lane, group, lease, log);
            }
        }
        match group.take_idle(lease.slot, lease.slot_generation) {
            Some(wire) => {
                conn::employ(wire, log);
                Ok(wire)
            }
            None => conn::open(group, lease, client, log),
        }
    }

    /// Whether the request may share a connection with others: small, whole, and probably with a small answer.
    fn may_ride(&self) -> bool {
        // SAFETY: the request lives as long as its exchange.
        let Some(script) = &unsafe { Request::new(self.r) }.location().script else { return false };
        let fits = !self.feed.is_streamed() && self.body.is_none() && self.frame.len() <= MAX_LANE_REQUEST;
        let trusted = self.group.as_ref().is_some_and(|g| !g.pool.trust.is_lost());
        if !fits || !trusted || !lane::possible() {
            return false;
        }
        let aside = script.aside.get();
        script.aside.set(aside.saturating_sub(1));
        aside == 0
    }

    /// Fails a request that has waited as long as wsgi_connect_timeout allows. nginx's own timer begins anew with every look.
    fn give_up_waiting(&mut self) {
        // SAFETY: the request lives as long as its exchange.
        let location = unsafe { Request::new(self.r) }.location();
        let limit = Duration::from_millis(location.upstream.connect_timeout as u64);
        if self.started.elapsed() >= limit {
            let group = self.group.as_ref().map_or_else(|| location.route.group.clone(), |g| g.pool.label());
            self.fail(&RequestError::NotReady { group, seconds: limit.as_secs() });
        }
    }

    fn undeliverable(&self) -> RequestError {
        RequestError::Undeliverable { group: self.who().0, tries: self.tries, error: self.last.clone() }
    }
}

/// nginx wants a connection for the request.
unsafe extern "C" fn get(pc: *mut sys::ngx_peer_connection_t, data: *mut c_void) -> sys::ngx_int_t {
    callback("peer.get", sys::NGX_ERROR as sys::ngx_int_t, || {
        // SAFETY: nginx passes the peer of a live request of ours with the exchange as data; nobody else refers to it
        // during this call.
        unsafe {
            let (pc, x) = (&mut *pc, &mut *data.cast::<Exchange>());
            pc.sockaddr = (&raw const ADDRESS.0).cast_mut().cast();
            pc.socklen = size_of::<libc::sockaddr>() as _;
            pc.name = (&raw const NAME.0).cast_mut();
            pc.set_cached(0);
            (x.woken, x.recalled, x.not_run, x.lost, x.another) = (false, false, false, None, false);
            (x.reader, x.framer, x.head_at, x.ended_at) = (Reader::default(), None, None, None);
            if std::mem::take(&mut x.again) {
                sys::mwr_force_reinit((*x.r).upstream);
            }
            let taken = match handler::serving() {
                Ok(p) if x.failure.is_none() => x.take(p, pc.log),
                Err(e) if x.failure.is_none() => Err(e),
                _ => Ok(Taken::Wait),
            };
            match taken {
                Ok(Taken::Wire(wire)) => {
                    x.wire = wire;
                    if let Some(lease) = &x.lease {
                        let row = RowRef {
                            slot_generation: lease.slot_generation,
                            row: lease.row,
                            row_generation: lease.word.generation,
                            client: lease.word.client,
                        };
                        patch_row(&mut x.frame, 0, &row);
                        for_lane(&mut x.frame, 0, (*wire).rides());
                    }
                    if let Some(g) = &x.group {
                        if g.pool.trust.is_lost() {
                            x.no_file = true;
                            bytes_only(&mut x.frame, 0);
                        }
                        pc.name = (&raw const g.name.1).cast_mut();
                    }
                    pc.connection = (*wire).c;
                    x.ticket = current().map(|p| p.watch_sent(data.cast()));
                    sys::NGX_DONE as sys::ngx_int_t
                }
                taken => {
                    match taken {
                        Err(e) => x.fail(&e),
                        Ok(_) if x.failure.is_none() => x.give_up_waiting(),
                        Ok(_) => {}
                    }
                    let Ok((wire, short)) = conn::stand_in(pc.log) else { return sys::NGX_ERROR as sys::ngx_int_t };
                    if let (Some(e), None) = (short, &x.failure) {
                        x.last = e.to_string();
                        x.fail(&x.undeliverable());
                    }
                    x.wire = wire;
                    pc.connection = (*wire).c;
                    if x.failure.is_some() {
                        return sys::NGX_DONE as sys::ngx_int_t;
                    }
                    x.looked = Instant::now();
                    x.ticket = current().map(|p| p.park(data.cast()));
                    sys::NGX_AGAIN as sys::ngx_int_t
                }
            }
        }
    })
}

/// nginx is done with the connection: the response is whole, or this try has failed, or the request ends.
unsafe extern "C" fn free(pc: *mut sys::ngx_peer_connection_t, data: *mut c_void, state: sys::ngx_uint_t) {
    callback("peer.free", (), || {
        // SAFETY: as in `get`.
        let (pc, x) = unsafe { (&mut *pc, &mut *data.cast::<Exchange>()) };
        let wire = std::mem::replace(&mut x.wire, std::ptr::null_mut());
        x.ended_at = x.head_at.map(|_| Instant::now());
        if let (Some(p), Some(ticket)) = (current(), x.ticket.take()) {
            p.drop_ticket(ticket);
        }
        if wire.is_null() {
            return;
        }
        let failed = state & sys::NGX_PEER_FAILED as sys::ngx_uint_t != 0;
        // nginx goes on to another worker, for a reason of `lets_another_try`.
        let another = x.another && state & (sys::NGX_PEER_FAILED | sys::NGX_PEER_NEXT) as sys::ngx_uint_t != 0;
        // SAFETY: the record of a live wire.
        let timed_out = unsafe {
            let c = (*wire).c;
            (*(*c).read).timedout() != 0 || (*(*c).write).timedout() != 0
        };
        // SAFETY: a live wire.
        if unsafe { (*wire).is_stand_in() } {
            conn::discard(wire, pc);
            // Waited: look again. Failed, or nginx's own time-out: the end.
            pc.tries = usize::from(failed && x.woken && x.failure.is_none()) as sys::ngx_uint_t;
            if pc.tries > 0 {
                x.unrecorded(pc);
            }
            return;
        }
        let Some(lease) = x.lease.take() else { return conn::discard(wire, pc) };
        let Some(group) = x.group.clone() else { return conn::discard(wire, pc) };
        if another {
            // SAFETY: the request lives as long as its exchange, and nginx reads nothing more of this answer.
            unsafe {
                let r = Request::new(x.r);
                response::drop_rest(&r, x, &mut (*r.upstream()).buffer);
            }
        }
        if x.reader.ended() || (x.reader.done() && !x.not_run) {
            pc.tries = 0;
            if another {
                x.run_again(pc, lease.slot);
            }
            let left = x.feed.left(x.reader.done());
            if left == Left::Broken {
                return conn::discard(wire, pc);
            }
            // nginx must not close it.
            pc.connection = std::ptr::null_mut();
            return conn::release(wire, std::mem::take(&mut x.reader), left == Left::End);
        }
        // SAFETY: a live wire.
        let reused = unsafe { (*wire).reused };
        conn::discard(wire, pc);
        // Whoever asks for the body has begun, whatever the row says.
        let nothing_ran = (x.recalled || x.not_run || group.pool.table.recall(&lease)) && !x.feed.has_begun();
        if !nothing_ran {
            if let Some(why) = x.lost.take() {
                let (label, pid) = (group.pool.label(), group.pool.table.pid(lease.slot));
                let e = match why.strip_prefix("connection lost") {
                    Some(_) => RequestError::WorkerDied { group: label, pid },
                    None => RequestError::WorkerProtocol { group: label, pid, error: why },
                };
                let v = e.verdict();
                if let Some(line) = v.line(&e.to_string()) {
                    // SAFETY: the request lives as long as its exchange.
                    log::write(unsafe { Request::new(x.r) }.log(), v.level, &line);
                }
            }
            let case = if timed_out { sys::NGX_HTTP_UPSTREAM_FT_TIMEOUT } else { sys::NGX_HTTP_UPSTREAM_FT_ERROR };
            pc.tries = 0;
            if another || (failed && x.framer.is_none() && x.may_run_again(case)) {
                x.run_again(pc, lease.slot);
            }
            return;
        }
        if x.lost.take().is_some() {
            if reused {
                group.forget_slot(lease.slot);
            } else {
                group.pool.pass_over(lease.slot);
            }
        }
        if x.not_run {
            group.pool.pass_over(lease.slot);
        }
        if !failed || timed_out || x.failure.is_some() {
            pc.tries = 0;
            return;
        }
        if !reused || x.recalled || x.not_run {
            group.pool.table.count(header::RECALLS);
            x.recalls += 1;
            x.avoid = Some(lease.slot);
        }
        if x.recalls > MAX_RECALLS {
            x.last = "recalled".to_owned();
            let e = x.undeliverable();
            x.fail(&e);
        }
        x.reader = Reader::default();
        x.again = true;
        pc.tries = 1;
        x.unrecorded(pc);
    })
}

impl Exchange {
    /// The try that is over is none that configuration counts: it does not show in the log, limits no later one, and
    /// nginx takes the request for unsent.
    fn unrecorded(&self, pc: &mut sys::ngx_peer_connection_t) {
        // SAFETY: the request lives as long as its exchange; nginx pushes a state before each try.
        unsafe {
            pc.start_time = sys::mwr_now();
            (*(*self.r).upstream).set_request_sent(0);
            if let Some(states) = (*self.r).upstream_states.as_mut()
                && states.nelts > 0
            {
                states.nelts -= 1;
            }
        }
    }

    /// Whether configuration lets another worker run what one has begun, in a case of wsgi_next_upstream (a bit of
    /// nginx's) and before a byte of an answer has been passed on.
    fn may_run_again(&self, case: u32) -> bool {
        // SAFETY: the request lives as long as its exchange.
        let r = unsafe { Request::new(self.r) };
        let location = r.location();
        let mask = location.next_upstream;
        let any = sys::NGX_HTTP_UPSTREAM_FT_NON_IDEMPOTENT as sys::ngx_uint_t;
        let most = match location.upstream.next_upstream_tries {
            0 => 2,
            n => n as u32,
        };
        let limit = location.upstream.next_upstream_timeout;
        // SAFETY: nginx's clock, and its record of the request's peers.
        let late = limit > 0 && unsafe { sys::mwr_now().wrapping_sub((*r.upstream()).peer.start_time) } >= limit;
        self.failure.is_none()
            && !late
            && !self.feed.has_begun()
            && mask & case as sys::ngx_uint_t != 0
            && (r.is_idempotent() || mask & any != 0)
            && self.runs + 1 < most
    }

    /// The answer of the worker is such a case: notes whether another one may try.
    pub fn lets_another_try(&mut self, case: u32) -> bool {
        self.another = self.may_run_again(case);
        self.another
    }

    /// Another worker is to run the request.
    fn run_again(&mut self, pc: &mut sys::ngx_peer_connection_t, slot: u16) {
        self.runs += 1;
        self.again = true;
        self.avoid = Some(slot);
        self.started = Instant::now();
        pc.tries = 1;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        conn::keep_spare();
        if let Some(p) = current() {
            if let Some(ticket) = self.ticket.take() {
                p.drop_ticket(ticket);
            }
            p.give_frame(std::mem::take(&mut self.frame));
        }
    }
}
