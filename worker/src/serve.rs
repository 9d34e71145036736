//! The serving loop: one shared epoll set of edge-triggered connections; whoever wakes serves the whole request. Runs in the
//! Python threads `wsgi-<slot>-<n>`, attached for life except while waiting.

use crate::call::{Call, Current};
use crate::conn::{Bad, Conn, Frame, Place};
use crate::environ::Builder;
use crate::fds::Fd;
use crate::input::{Body, Input, Rest};
use crate::lane::{self, Ride, Seat};
use crate::log;
use crate::respond::Response;
use crate::scripts::{self, App, Target};
use crate::shared::{self, BELL, Found, LISTENER, Shared};
use crate::sys;
use crate::turn::Window;
use crate::watch::{self, Clock};
use mod_wsgi_scoreboard::{Lease, RowState, RowWord};
use mod_wsgi_wire::frame::{AbortReason, Header, Kind, Level, flags};
use mod_wsgi_wire::{decode, encode, keys, limits};
use nix::sys::socket::{SockFlag, accept4};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString, PyType};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How long a thread may keep the GIL from request to request. Every other thread of the process waits about this
/// long, times the serving threads, for each time it needs the GIL.
const HOLD: Duration = Duration::from_micros(500);
/// After so many such times it is looked anew whether the application has threads of its own.
const LOOK: u32 = 32;
/// Bytes of a thread's receive buffer; longer frames get a buffer of their own.
const RECEIVE: usize = 8 * 1024;
/// Connections accepted in one go.
const ACCEPTS: usize = 64;

/// Objects of the Python half.
pub struct Runtime {
    /// The class FileWrapper.
    pub file_wrapper: Py<PyType>,
    /// `load(script: bytes, callable: str) -> bool`; calls `register_app`, logs what fails.
    load: Py<PyAny>,
    /// `report(exception, script: str)`: logs an exception with its traceback.
    report: Py<PyAny>,
    /// `missing(script: str, callable: str, found)`: logs a callable that is missing or cannot be called.
    missing: Py<PyAny>,
    /// `started(environ, application, thread) -> application` for subscribers of events.
    started: Py<PyAny>,
    /// `finished(environ, status, reads, input bytes, writes, output bytes)`.
    finished: Py<PyAny>,
    /// The class RequestTimeout.
    request_timeout: Py<PyType>,
}

static RUNTIME: PyOnceLock<Runtime> = PyOnceLock::new();

/// Takes over the Python half's functions. Once, before any thread serves.
#[pyfunction]
#[pyo3(signature = (*, file_wrapper, load, report, missing, started, finished, request_timeout))]
#[allow(clippy::too_many_arguments)]
pub fn configure(
    py: Python<'_>,
    file_wrapper: Py<PyType>,
    load: Py<PyAny>,
    report: Py<PyAny>,
    missing: Py<PyAny>,
    started: Py<PyAny>,
    finished: Py<PyAny>,
    request_timeout: Py<PyType>,
) -> PyResult<()> {
    let shared = shared::get().ok_or_else(|| PyRuntimeError::new_err("not started"))?;
    watch::spawn(shared, request_timeout.clone_ref(py), py)?;
    let runtime = Runtime { file_wrapper, load, report, missing, started, finished, request_timeout };
    RUNTIME.set(py, runtime).map_err(|_| PyRuntimeError::new_err("configured twice"))
}

impl Runtime {
    /// Whether an exception is the interruption of a request that took too long.
    pub fn is_timeout(&self, py: Python<'_>, error: &PyErr) -> bool {
        error.is_instance(py, self.request_timeout.bind(py))
    }

    /// Logs an exception with its traceback.
    pub fn report_exception(&self, py: Python<'_>, error: PyErr, script: &str) {
        if let Err(e) = self.report.bind(py).call1((error.into_value(py), script)) {
            log::record(Level::Error, &format!("MWR0430: exception in {script}; logging it failed: {e}"));
        }
    }
}

/// What a request is for.
enum Callee<'py> {
    Application(Bound<'py, PyAny>),
    /// There is none, and that has been logged.
    Nothing,
    /// Another worker has the version of the script that the request came with.
    Elsewhere,
}

/// Answers that wait for each other at most.
const HELD: u32 = 8;

/// A REQUEST to be served.
pub struct Work {
    from: Source,
    header: Header,
    place: Place,
    fd: Option<OwnedFd>,
}

/// Where a request came from.
enum Source {
    /// A connection that carries one request at a time.
    Own(Arc<Conn>),
    Lane(Seat),
}

impl Work {
    /// A request that came on a lane; its payload lies in what was read there.
    pub fn on_lane(seat: Seat, header: Header, bytes: Arc<Vec<u8>>, payload: Range<usize>) -> Work {
        Work { from: Source::Lane(seat), header, place: Place::Shared(bytes, payload), fd: None }
    }
}

/// Lanes with answers that wait to be sent.
#[derive(Default)]
struct Held {
    lanes: Vec<Arc<Conn>>,
    answers: u32,
}

impl Held {
    fn note(&mut self, lane: &Arc<Conn>) {
        if !self.lanes.iter().any(|l| Arc::ptr_eq(l, lane)) {
            self.lanes.push(lane.clone());
        }
        self.answers += 1;
    }

    /// Sends them.
    fn release(&mut self) {
        self.lanes.drain(..).for_each(|l| lane::flush(&l));
        self.answers = 0;
    }
}

/// Whether the application has Python threads of its own, for which a serving thread must make room. Those that C code
/// brings into the interpreter for a moment are not seen: they get the GIL as beside any busy thread, within the
/// interpreter's switch interval.
struct Company {
    current_frames: Py<PyAny>,
    /// Threads of the worker itself: the serving ones and the main thread.
    own: usize,
    looks: u32,
    found: bool,
}

impl Company {
    fn new(py: Python<'_>, threads: u16) -> PyResult<Company> {
        let current_frames = py.import("sys")?.getattr("_current_frames")?.unbind();
        Ok(Company { current_frames, own: threads as usize + 1, looks: 0, found: true })
    }

    /// Asked each time the GIL has been held for long.
    fn is_there(&mut self, py: Python<'_>) -> bool {
        if self.looks.is_multiple_of(LOOK) {
            let frames = self.current_frames.bind(py).call0().and_then(|f| f.len());
            // Without an answer there may be some.
            self.found = frames.map_or(true, |n| n > self.own);
        }
        self.looks = self.looks.wrapping_add(1);
        self.found
    }
}

struct Server {
    shared: &'static Shared,
    runtime: &'static Runtime,
    number: u16,
    builder: Builder,
    out: Vec<u8>,
    last: Option<Arc<App>>,
    input_key: Py<PyString>,
    /// Python's number of this thread.
    ident: u64,
}

/// Serves requests for ever. `base`: the entries of environ that never change for this thread.
#[pyfunction]
pub fn serve(py: Python<'_>, number: u16, base: Py<PyDict>) -> PyResult<()> {
    let missing = || PyRuntimeError::new_err("not started");
    let shared = shared::get().ok_or_else(missing)?;
    let runtime = RUNTIME.get(py).ok_or_else(missing)?;
    let builder = Builder::new(py, base)?;
    let input_key = PyString::intern(py, "wsgi.input").unbind();
    let ident: u64 = py.import("_thread")?.call_method0("get_ident")?.extract()?;
    watch::set_thread(number);
    let mut server = Server { shared, runtime, number, builder, out: Vec::new(), last: None, input_key, ident };
    let mut buf = vec![0; RECEIVE];
    let mut window = Window::new();
    let mut company = Company::new(py, shared.plan.threads)?;
    let mut make_room = false;
    let mut held = Held::default();
    loop {
        let mut work = py.detach(|| {
            if make_room {
                // Nobody else waits for requests: threads of the application that wait for the GIL get it only if this
                // one really sleeps.
                std::thread::sleep(Duration::from_micros(1));
            }
            if shared.plan.threads > 1 {
                shared.turn.await_turn(number, || shared.inside(), || shared.flush_lanes());
            }
            next(shared, number, &mut buf, true)
        });
        make_room = false;
        let since = Instant::now();
        let mut began = since;
        while let Some(w) = work {
            if let Source::Lane(seat) = &w.from {
                held.note(seat.lane());
            }
            server.handle(py, w, &buf);
            if held.answers >= HELD || !(shared.turn.may_hold() && shared.has_queued()) {
                held.release();
            }
            let now = Instant::now();
            let others = shared.inside() > 0;
            shared.turn.ended(number, &mut window, now.duration_since(began), !others);
            began = now;
            if others || now.duration_since(since) >= HOLD {
                make_room = shared.turn.is_owner(number) && company.is_there(py);
                break;
            }
            work = next(shared, number, &mut buf, false);
        }
        if sys::forked() {
            sys::exit_now(0);
        }
        held.release();
    }
}

/// The next request. `None` only when not to block. No interpreter needed.
fn next(shared: &Shared, number: u16, buf: &mut [u8], block: bool) -> Option<Work> {
    loop {
        let alone = shared.plan.threads == 1 || shared.turn.is_owner(number);
        let event = match shared.wait(block, alone) {
            Some(Found::Work(work)) => return Some(work),
            Some(Found::Event(event)) => event,
            None if block => continue,
            None => return None,
        };
        if event.key == LISTENER {
            accept(shared);
        } else if event.key == BELL {
            // What it rings for is looked at first.
        } else if let Some(conn) = shared.conn(event.key).filter(|c| c.take())
            && let Some(work) = inspect(shared, conn, event.hung_up, buf)
        {
            return Some(work);
        }
    }
}

fn accept(shared: &Shared) {
    for _ in 0..ACCEPTS {
        let accepted = accept4(shared.listener.raw(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
        let added = match accepted {
            Ok(raw) => sys::own(raw).ok_or(nix::Error::EBADF).and_then(Fd::new).and_then(|fd| shared.add(fd)),
            Err(nix::Error::EAGAIN) => break,
            Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => continue,
            Err(e) => Err(e),
        };
        if let Err(e) = added {
            // Not armed again at once: the control thread does it within a second.
            shared.log_hostile(&format!("MWR0420: a connection cannot be accepted: {e}"));
            return;
        }
    }
    shared.rearm_listener();
}

/// Reads from a connection that has something to read. A request comes back; everything else is settled here.
fn inspect(shared: &Shared, conn: Arc<Conn>, hung_up: bool, buf: &mut [u8]) -> Option<Work> {
    let mut inbound = conn.inbound();
    inbound.hung_up |= hung_up;
    let bad: Bad = loop {
        if inbound.lane {
            if conn.stalled.load(Relaxed) {
                lane::flush(&conn);
                if lane::is_full(&conn) {
                    // An event comes when there is room, and with it what has not been read.
                    drop(inbound);
                    shared.leave_conn(&conn, true);
                    return None;
                }
            }
            match lane::read(shared, &conn, &mut inbound, buf) {
                Ok(true) => {
                    let settled = inbound.settle();
                    drop(inbound);
                    shared.leave_conn(&conn, settled);
                    return None;
                }
                // Its server process is gone, or has no use for it.
                Ok(false) => {
                    drop(inbound);
                    shared.close(&conn);
                    return None;
                }
                Err(e) => break e,
            }
        }
        let (h, place, fd) = match conn.receive(&mut inbound, buf) {
            Ok(Frame::Whole(h, place, fd)) => (h, place, fd),
            Ok(Frame::Partial) => {
                let settled = inbound.settle();
                drop(inbound);
                shared.leave_conn(&conn, settled);
                return None;
            }
            Ok(Frame::End) => {
                // Of a streamed body that nobody read, a part of a frame is no loss. nginx takes requests back while it sends
                // them: their clients have left, or another worker is free.
                if !inbound.buf.is_empty() && !inbound.stream_tail {
                    shared
                        .log(Level::Info, "MWR0421: a server process left in the middle of a frame; connection closed");
                }
                drop(inbound);
                shared.close(&conn);
                return None;
            }
            Err(e) => break e,
        };
        if !inbound.greeted {
            let payload = place.payload(buf);
            if let Err(e) = greet(shared, &conn, h, payload) {
                // A peer that has left meanwhile (its request was recalled, its process ended) is no news.
                if let Some(e) = e {
                    shared.log_hostile(&format!("MWR0422: a peer's greeting was refused: {e}"));
                }
                drop(inbound);
                shared.close(&conn);
                return None;
            }
            inbound.greeted = true;
            if fd.is_some() || !inbound.buf.is_empty() {
                break Bad::Descriptors;
            }
            continue;
        }
        match h.kind {
            Kind::Request if h.flags & flags::LANE != 0 => {
                // The first: from now on nothing else comes here.
                inbound.lane = true;
                shared.add_lane(&conn);
                let mut bytes = frame_of(h, place.payload(buf));
                bytes.append(&mut inbound.buf);
                inbound.buf = bytes;
                inbound.fd = fd;
                match lane::seat(shared, &conn, &mut inbound) {
                    Ok(()) => continue,
                    Err(e) => break e,
                }
            }
            Kind::Request => {
                if fd.is_some() != (h.flags & flags::BODY_FD != 0) {
                    break Bad::Descriptors;
                }
                if !inbound.buf.is_empty() && h.flags & flags::BODY_STREAM == 0 {
                    break Bad::Frame(decode::Error::Trailing { at: limits::HEADER + h.len });
                }
                inbound.busy = true;
                inbound.stream_tail = false;
                if h.flags & flags::BODY_STREAM != 0 {
                    // Its body is read by the application; events of that would only wake other threads.
                    shared.mute(&conn);
                    inbound.muted = true;
                }
                drop(inbound);
                return Some(Work { from: Source::Own(conn), header: h, place, fd });
            }
            // The rest of a streamed body whose request ended early. A descriptor that came in the same read belongs to
            // the request behind it.
            Kind::Body | Kind::BodyEnd if inbound.stream_tail && (fd.is_none() || !inbound.buf.is_empty()) => {
                inbound.fd = fd;
                inbound.stream_tail = h.kind == Kind::Body;
            }
            kind => break Bad::Frame(decode::Error::Unexpected { kind }),
        }
    };
    drop(inbound);
    shared.log_hostile(&format!("MWR0423: a server process sent a malformed frame: {bad}"));
    shared.close(&conn);
    None
}

/// A frame again, from its header and payload.
fn frame_of(h: Header, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(limits::HEADER + payload.len());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[h.kind as u8, h.flags, 0, 0]);
    bytes.extend_from_slice(payload);
    bytes
}

/// Checks a peer's HELLO and answers it. `Err(None)`: the peer has left.
fn greet(shared: &Shared, conn: &Conn, h: Header, payload: &[u8]) -> Result<(), Option<String>> {
    if h.kind != Kind::Hello {
        return Err(Some(format!("{:?} came before HELLO", h.kind)));
    }
    let hello = decode::hello_server(payload).map_err(|e| Some(e.to_string()))?;
    if !decode::token_matches(&hello.token, &shared.token) {
        return Err(Some("wrong token".into()));
    }
    let mut answer = Vec::new();
    encode::hello_worker(&mut answer, shared.plan.slot, shared.plan.slot_generation);
    match conn.try_send(&answer, &[]) {
        Ok(true) => Ok(()),
        _ => Err(None),
    }
}

/// Frees the row when dropped, whatever happens.
struct RowGuard<'a> {
    shared: &'a Shared,
    lease: Lease,
    counts: bool,
}

impl Drop for RowGuard<'_> {
    fn drop(&mut self) {
        if !sys::forked() {
            self.shared.leave();
            if !self.counts {
                self.shared.table.set_aside(self.lease.slot);
            }
            self.shared.table.finish(&self.lease);
            if self.counts {
                self.shared.served();
            }
        }
    }
}

impl Server {
    /// Serves one REQUEST, whose payload may lie in `buf`. The GIL is held.
    fn handle(&mut self, py: Python<'_>, work: Work, buf: &[u8]) {
        let Work { from, header, place, fd } = work;
        let shared = self.shared;
        let request = match decode::request(header, place.payload(buf)) {
            Ok(r) => r,
            Err(e) => {
                shared.log_hostile(&format!("MWR0423: a server process sent a malformed frame: {e}"));
                return shared.close(match &from {
                    Source::Own(conn) => conn,
                    Source::Lane(seat) => seat.lane(),
                });
            }
        };
        let conn = match from {
            Source::Own(conn) => conn,
            Source::Lane(seat) => Arc::new(Conn::riding(Ride::new(seat, request.row.row, request.row.row_generation))),
        };
        let word =
            RowWord { generation: request.row.row_generation, state: RowState::Sent, client: request.row.client };
        let generation = request.row.slot_generation;
        let lease = Lease { slot: shared.plan.slot, slot_generation: generation, row: request.row.row, word };
        let mut alive = true;
        if generation == shared.plan.slot_generation && shared.table.claim(&lease) {
            shared.enter();
            let guard = RowGuard { shared, lease, counts: !shared.is_health_check(&request) };
            let line = (
                request.get(keys::REQUEST_METHOD).unwrap_or_default(),
                request.get(keys::REQUEST_URI).or(request.get(keys::PATH_INFO)).unwrap_or_default(),
            );
            let timeout = match request.timeout {
                0 => None,
                u32::MAX => Some(Duration::ZERO),
                ms => Some(Duration::from_millis(ms.into())),
            };
            let clock = Clock::start(shared, (self.number, self.ident), &conn, lease, timeout, line);
            let served = catch_unwind(AssertUnwindSafe(|| self.run(py, &conn, &request, fd, &clock)));
            alive = served.unwrap_or_else(|_| {
                // The panic hook has written where it happened to fd 2.
                log::record(
                    Level::Error,
                    "MWR0424: the worker failed while it served this request (a defect in mod-wsgi-rs)",
                );
                let mut frame = Vec::new();
                encode::abort(&mut frame, AbortReason::Internal, 0);
                let _ = conn.try_send(&frame, &[]);
                false
            });
            // Before the row: whoever sees the row free finds no request in the journal.
            drop(clock);
            drop(guard);
        } else {
            // Recalled: nothing of it may run. The server closes this connection.
            conn.inbound().stream_tail = request.body_stream;
        }
        if let Some(ride) = &conn.ride {
            if !alive && conn.link().is_none() {
                // The end of a connection would tell it; the row is free, so nobody looks at it any more.
                ride.abort();
            }
            ride.end();
        }
        if alive {
            let settled = {
                let mut inbound = conn.inbound();
                inbound.busy = false;
                inbound.settle()
            };
            shared.leave_conn(&conn, settled);
        } else {
            shared.close(&conn);
        }
    }

    /// Runs a claimed request. `false`: the connection must be closed.
    fn run(
        &mut self,
        py: Python<'_>,
        conn: &Arc<Conn>,
        request: &decode::Request<'_>,
        fd: Option<OwnedFd>,
        clock: &Clock<'_>,
    ) -> bool {
        let call = match Py::new(py, Call::new(conn.clone(), request.no_file)) {
            Ok(call) => call,
            Err(_) => return false,
        };
        let target = Target::of(request);
        let mut out = std::mem::take(&mut self.out);
        if out.capacity() > 4 * RECEIVE {
            out = Vec::new();
        }
        let script = String::from_utf8_lossy(target.script);
        let response = Response { py, runtime: self.runtime, conn, call: &call, out: &mut out, script: &script };
        let alive = self.run_with(response, &target, request, fd, clock);
        call.get().finish();
        self.out = out;
        alive
    }

    fn run_with<'py>(
        &mut self,
        mut response: Response<'_, 'py>,
        target: &Target<'_>,
        request: &decode::Request<'_>,
        fd: Option<OwnedFd>,
        clock: &Clock<'_>,
    ) -> bool {
        let py = response.py;
        let (conn, call) = (response.conn, response.call);
        if self.shared.exiting() {
            return response.abort(AbortReason::NotRun, true);
        }
        let prepared = self.builder.build(py, request).and_then(|environ| {
            let input = Py::new(py, input_of(py, conn, request, fd))?;
            environ.set_item(self.input_key.bind(py), input.bind(py))?;
            Ok((environ, input))
        });
        let (environ, input) = match prepared {
            Ok(p) => p,
            Err(e) => {
                self.runtime.report_exception(py, e, response.script);
                return response.abort(AbortReason::Internal, true);
            }
        };
        let current = Current::enter(py, self.number as usize, conn, &environ, call);
        let alive = match self.application(py, target, request.script_mtime, clock) {
            Ok(Callee::Application(application)) => {
                if self.shared.events.load(Relaxed) {
                    self.call_with_events(response, &environ, &input, application, clock)
                } else {
                    clock.enter(py);
                    let result = application.call1((&environ, call));
                    response.send(result)
                }
            }
            Ok(Callee::Nothing) => response.abort(AbortReason::Load, true),
            Ok(Callee::Elsewhere) => response.abort(AbortReason::NotRun, true),
            Err(e) => {
                self.runtime.report_exception(py, e, response.script);
                response.abort(AbortReason::Load, true)
            }
        };
        let intact = match input.get().finish(py) {
            Rest::Nothing => true,
            Rest::Frames => {
                conn.inbound().stream_tail = true;
                true
            }
            Rest::Broken => false,
        };
        drop(current);
        alive && intact
    }

    /// The callable of a request; loads the script if need be.
    fn application<'py>(
        &mut self,
        py: Python<'py>,
        target: &Target<'_>,
        mtime: u64,
        clock: &Clock<'_>,
    ) -> PyResult<Callee<'py>> {
        let app = match scripts::find(target, &mut self.last) {
            Some(app) => app,
            None => {
                let callable = String::from_utf8_lossy(target.callable);
                let load = || self.runtime.load.bind(py).call1((target.script, &*callable));
                let loaded: bool = match clock.load(load) {
                    Some(loaded) => loaded?.extract()?,
                    // Given up; whatever is sent goes nowhere.
                    None => return Ok(Callee::Nothing),
                };
                match scripts::find(target, &mut self.last) {
                    Some(app) if loaded => app,
                    _ => return Ok(Callee::Nothing),
                }
            }
        };
        if app.compare(py, mtime) {
            return Ok(Callee::Elsewhere);
        }
        match app.callable(py)? {
            Some(callable) if callable.is_callable() => Ok(Callee::Application(callable)),
            found => {
                let script = String::from_utf8_lossy(target.script);
                let callable = String::from_utf8_lossy(target.callable);
                self.runtime.missing.bind(py).call1((&*script, &*callable, found))?;
                Ok(Callee::Nothing)
            }
        }
    }

    /// The same with subscribers of events: they may wrap the application.
    fn call_with_events<'py>(
        &self,
        response: Response<'_, 'py>,
        environ: &Bound<'py, PyDict>,
        input: &Py<Input>,
        application: Bound<'py, PyAny>,
        clock: &Clock<'_>,
    ) -> bool {
        let (py, call) = (response.py, response.call);
        let wrapped = self.runtime.started.bind(py).call1((environ, &application, self.number));
        let application = match wrapped {
            Ok(a) => a,
            Err(e) => {
                self.runtime.report_exception(py, e, response.script);
                application
            }
        };
        let script = response.script;
        clock.enter(py);
        let result = application.call1((environ, call));
        let alive = response.send(result);
        let (status, written, writes) = call.get().totals();
        let (reads, read) = input.get().totals(py);
        let finished = self.runtime.finished.bind(py).call1((environ, status, reads, read, writes, written));
        if let Err(e) = finished {
            self.runtime.report_exception(py, e, script);
        }
        alive
    }
}

fn input_of(py: Python<'_>, conn: &Arc<Conn>, request: &decode::Request<'_>, fd: Option<OwnedFd>) -> Input {
    match fd {
        Some(fd) => Input::new(Body::File(fd.into(), 0, request.body_len)),
        None if request.body_stream => Input::stream(conn.clone()),
        None if request.body.is_empty() => Input::new(Body::Empty),
        None => Input::new(Body::Inline(PyBytes::new(py, request.body).unbind(), 0)),
    }
}
