//! One request as the application sees it: `start_response`, `write`, and which thread serves which request. All
//! Python objects here may be kept by the application beyond the request; the connection is taken from them at its end.

use crate::conn::{Conn, Gone};
use crate::head::{self, Head};
use crate::shared::lock;
use crate::sys;
use mod_wsgi_wire::frame::{Kind, flags};
use mod_wsgi_wire::{encode, limits};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Bytes up to which a frame is sent with the GIL held, without waiting.
const HELD_SEND: usize = 16 * 1024;

/// What a serving thread serves: the connection until DONE, the call until the end.
type Serving = (Option<Arc<Conn>>, Py<Call>);

thread_local! {
    /// The connection is taken away before DONE is sent: what is logged later belongs to no request.
    static CURRENT: RefCell<Option<Serving>> = const { RefCell::new(None) };
}

/// A request being served: its environ and its call.
type Active = (Py<PyDict>, Py<Call>);

/// The requests being served, for `mod_wsgi.active_requests`; by serving thread.
static ACTIVE: Mutex<Vec<Option<Active>>> = Mutex::new(Vec::new());

/// The connection of the request that this thread serves.
pub fn current_conn() -> Option<Arc<Conn>> {
    CURRENT.try_with(|c| c.try_borrow().ok()?.as_ref().and_then(|(conn, _)| conn.clone())).ok().flatten()
}

/// DONE is about to be sent: nothing more of this thread's request may go out on its connection.
pub fn detach_conn(call: &Call) {
    call.finish();
    CURRENT.with_borrow_mut(|c| {
        if let Some((conn, _)) = c {
            *conn = None;
        }
    });
}

/// Marks the request this thread serves, until the guard is dropped.
pub struct Current {
    thread: usize,
}

impl Current {
    pub fn enter(
        py: Python<'_>,
        thread: usize,
        conn: &Arc<Conn>,
        environ: &Bound<'_, PyDict>,
        call: &Py<Call>,
    ) -> Self {
        CURRENT.with_borrow_mut(|c| *c = Some((Some(conn.clone()), call.clone_ref(py))));
        let mut active = lock(&ACTIVE);
        if active.len() <= thread {
            active.resize_with(thread + 1, || None);
        }
        active[thread] = Some((environ.clone().unbind(), call.clone_ref(py)));
        Current { thread }
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // Taken out first: dropping objects may run code of the application.
        let active = lock(&ACTIVE).get_mut(self.thread).and_then(Option::take);
        let current = CURRENT.try_with(|c| c.borrow_mut().take());
        drop((active, current));
    }
}

/// `mod_wsgi.request_data()`: the dictionary of the request this thread serves.
#[pyfunction]
pub fn request_data(py: Python<'_>) -> PyResult<Py<PyDict>> {
    let call = CURRENT.with_borrow(|c| c.as_ref().map(|(_, call)| call.clone_ref(py)));
    match call {
        Some(call) => Ok(call.get().data(py)),
        None => Err(PyRuntimeError::new_err("no active request for thread")),
    }
}

/// The requests being served: a list of (environ, request data).
#[pyfunction]
pub fn active_requests(py: Python<'_>) -> Vec<(Py<PyDict>, Py<PyDict>)> {
    let calls: Vec<_> = lock(&ACTIVE).iter().flatten().map(|(e, c)| (e.clone_ref(py), c.clone_ref(py))).collect();
    calls.into_iter().map(|(environ, call)| (environ, call.get().data(py))).collect()
}

/// Why nothing (more) can be sent.
#[derive(Debug)]
pub enum SendError {
    /// The server process, or its client, has gone.
    Gone,
    /// The application broke a rule; the message is logged.
    Rule(PyErr),
}

impl From<Gone> for SendError {
    fn from(_: Gone) -> Self {
        SendError::Gone
    }
}

/// `start_response` of one request.
#[pyclass(frozen, name = "start_response", module = "mod_wsgi")]
pub struct Call {
    state: Mutex<State>,
    data: Mutex<Option<Py<PyDict>>>,
    /// When the request was claimed.
    since: Instant,
    no_file: bool,
}

struct State {
    conn: Option<Arc<Conn>>,
    head: Option<Head>,
    /// The head has been sent.
    sent: bool,
    /// Bytes of the body handed to the server.
    written: u64,
    writes: u32,
}

impl Call {
    /// For a request that has just been claimed. `no_file`: the server wants bytes, not a file.
    pub fn new(conn: Arc<Conn>, no_file: bool) -> Call {
        let state = State { conn: Some(conn), head: None, sent: false, written: 0, writes: 0 };
        Call { state: Mutex::new(state), data: Mutex::new(None), since: Instant::now(), no_file }
    }

    /// The server wants bytes, not a file.
    pub fn no_file(&self) -> bool {
        self.no_file
    }

    fn encode(&self, head: &Head, out: &mut Vec<u8>, data: &[u8], bits: u8) -> PyResult<()> {
        let start = out.len();
        head.encode(out, data, bits)?;
        encode::patch_ran(out, start, self.since.elapsed());
        Ok(())
    }

    fn data(&self, py: Python<'_>) -> Py<PyDict> {
        if let Some(data) = &*lock(&self.data) {
            return data.clone_ref(py);
        }
        // Not under the lock: an object that is made can start the collector, and with it code that asks for this too.
        let made = PyDict::new(py).unbind();
        lock(&self.data).get_or_insert(made).clone_ref(py)
    }

    /// Whether the head has been sent.
    pub fn head_sent(&self) -> bool {
        lock(&self.state).sent
    }

    /// Status, bytes and writes so far, for events. Status 0: start_response was not called.
    pub fn totals(&self) -> (u16, u64, u32) {
        let state = lock(&self.state);
        (state.head.as_ref().map_or(0, |h| h.status), state.written, state.writes)
    }

    /// Encodes a response that is complete with `data` (at most `MAX_DATA` bytes) as one frame.
    pub fn encode_whole(&self, out: &mut Vec<u8>, data: &[u8], bits: u8) -> PyResult<()> {
        let mut state = lock(&self.state);
        let Some(head) = &state.head else { return Err(not_started()) };
        self.encode(head, out, data, bits)?;
        state.sent = true;
        state.written = data.len() as u64;
        state.writes = 1;
        Ok(())
    }

    /// Changes the head before it is sent.
    pub fn with_head<R>(&self, f: impl FnOnce(&mut Head) -> R) -> Option<R> {
        lock(&self.state).head.as_mut().map(f)
    }

    /// The request is over: whoever keeps this object can send nothing any more.
    pub fn finish(&self) {
        lock(&self.state).conn = None;
    }

    /// Sends the head alone, for a body that follows as a file.
    pub fn send_head(&self, py: Python<'_>) -> Result<(), SendError> {
        if sys::forked() {
            sys::exit_now(0);
        }
        let mut frame = Vec::new();
        let conn = {
            let mut state = lock(&self.state);
            let Some(head) = &state.head else { return Err(SendError::Rule(not_started())) };
            self.encode(head, &mut frame, &[], 0).map_err(SendError::Rule)?;
            state.sent = true;
            state.conn.clone().ok_or(SendError::Gone)?
        };
        transmit(py, &conn, &frame, &[], 0)
    }

    /// Sends one block, the head before it if need be; with `bits` (END, DONE) also an empty one.
    pub fn send(&self, py: Python<'_>, block: &[u8], bits: u8) -> Result<(), SendError> {
        if sys::forked() {
            // A child of the application that came back by the parent's stack: it must not answer again.
            sys::exit_now(0);
        }
        let mut frames = Vec::new();
        let mut rest = block;
        let conn = {
            let mut state = lock(&self.state);
            let Some(conn) = state.conn.clone() else {
                return Err(SendError::Rule(PyRuntimeError::new_err("write() called after request completed")));
            };
            let Some(head) = &state.head else { return Err(SendError::Rule(not_started())) };
            if !state.sent {
                let (data, bits) = if block.len() <= HELD_SEND { (block, bits) } else { (&[][..], 0) };
                self.encode(head, &mut frames, data, bits).map_err(SendError::Rule)?;
                rest = &block[data.len()..];
                state.sent = true;
            } else if bits & flags::END != 0 && block.is_empty() {
                encode::empty(&mut frames, Kind::End, bits & flags::DONE);
            }
            state.written += block.len() as u64;
            state.writes += !block.is_empty() as u32;
            conn
        };
        transmit(py, &conn, &frames, rest, bits)
    }
}

fn not_started() -> PyErr {
    PyRuntimeError::new_err("start_response() must be called before response content is produced")
}

#[pymethods]
impl Call {
    #[pyo3(signature = (status, headers, exc_info = None, /))]
    fn __call__(
        slf: &Bound<'_, Self>,
        status: &Bound<'_, PyAny>,
        headers: &Bound<'_, PyAny>,
        exc_info: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Write> {
        let this = slf.get();
        if lock(&this.state).conn.is_none() {
            return Err(PyRuntimeError::new_err("start_response() called after request completed"));
        }
        if let Some(exc_info) = exc_info {
            let Some(info) = exc_info.cast::<PyTuple>().ok().filter(|t| t.len() == 3) else {
                let text = "start_response() argument 'exc_info' must be a 3-tuple or None";
                return Err(PyRuntimeError::new_err(text));
            };
            if this.head_sent() {
                // The client has the head already: the exception goes on through the application.
                let exception = info.get_item(1)?.call_method1("with_traceback", (info.get_item(2)?,))?;
                return Err(PyErr::from_value(exception));
            }
        } else if this.head_sent() {
            return Err(PyRuntimeError::new_err("start_response() called more than once without exc_info"));
        }
        let head = Head::parse(status, headers)?;
        let mut state = lock(&this.state);
        // A second call before anything is sent replaces the first.
        state.head = Some(head);
        Ok(Write { call: slf.clone().unbind() })
    }
}

/// The `write` callable that `start_response` returns.
#[pyclass(frozen, name = "write", module = "mod_wsgi")]
pub struct Write {
    call: Py<Call>,
}

#[pymethods]
impl Write {
    #[pyo3(signature = (data, /))]
    fn __call__(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let Ok(bytes) = data.cast::<PyBytes>() else {
            let text = format!("write() argument must be bytes, not {}", head::type_name(data));
            return Err(PyTypeError::new_err(text));
        };
        if bytes.as_bytes().is_empty() {
            return Ok(());
        }
        match self.call.get().send(py, bytes.as_bytes(), 0) {
            Ok(()) => Ok(()),
            Err(SendError::Rule(e)) => Err(e),
            Err(SendError::Gone) => Err(PyOSError::new_err((libc::EPIPE, "mod_wsgi client connection closed"))),
        }
    }
}

/// Sends whole frames, then `data` as DATA frames; small ones with the GIL held as long as the socket takes them.
pub fn transmit(py: Python<'_>, conn: &Arc<Conn>, frames: &[u8], mut data: &[u8], bits: u8) -> Result<(), SendError> {
    let held = if data.is_empty() {
        frames.len() <= HELD_SEND + limits::HEADER && conn.try_send(frames, &[])?
    } else {
        let small = frames.is_empty() && data.len() <= HELD_SEND;
        small && conn.try_send(&encode::data_header(data.len(), bits), data)?
    };
    if held {
        if !conn.has_pending() {
            return Ok(());
        }
        return Ok(py.detach(|| conn.send_blocking(&[], &[]))?);
    }
    Ok(py.detach(move || {
        conn.send_blocking(frames, &[])?;
        while !data.is_empty() {
            let n = data.len().min(limits::MAX_DATA);
            let header = encode::data_header(n, if n == data.len() { bits } else { 0 });
            conn.send_blocking(&header, &data[..n])?;
            data = &data[n..];
        }
        Ok::<(), Gone>(())
    })?)
}
