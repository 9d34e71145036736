//! `wsgi.input`: an inline body, a passed file, or BODY frames as they come. Reading waits with the GIL released.
//! Python's own readers (`io`) are not used: the whole body costs one copy.

use crate::conn::{Bad, Conn, Frame, Place};
use crate::shared::lock;
use mod_wsgi_wire::encode;
use mod_wsgi_wire::frame::Kind;
use nix::poll::PollFlags;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyStopIteration};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

/// Bytes read from a file or a stream at a time, for lines.
const CHUNK: usize = 16 * 1024;

/// Where a request's body is.
pub enum Body {
    /// Nothing (more).
    Empty,
    /// The rest of an inline body, from this offset.
    Inline(Py<PyBytes>, usize),
    /// A passed file: offset, length.
    File(File, u64, u64),
    /// BODY frames of this connection.
    Stream(Stream),
}

/// A streamed body.
pub struct Stream {
    conn: Arc<Conn>,
    /// CONTINUE has been sent.
    asked: bool,
}

/// What of a body may still come on its connection.
pub enum Rest {
    Nothing,
    /// BODY frames until BODY_END.
    Frames,
    /// The connection has failed, or its frames cannot be told apart any more: close it.
    Broken,
}

struct State {
    body: Body,
    /// Bytes fetched from a file or stream and not read yet.
    buf: Vec<u8>,
    at: usize,
    /// A failure sticks.
    error: Option<&'static str>,
    over: bool,
    reads: u32,
    bytes: u64,
}

/// The input stream of one request.
#[pyclass(frozen, name = "Input", module = "mod_wsgi")]
pub struct Input {
    state: Mutex<State>,
}

impl Input {
    pub fn new(body: Body) -> Input {
        let state = State { body, buf: Vec::new(), at: 0, error: None, over: false, reads: 0, bytes: 0 };
        Input { state: Mutex::new(state) }
    }

    /// The body of BODY frames on `conn`.
    pub fn stream(conn: Arc<Conn>) -> Input {
        Input::new(Body::Stream(Stream { conn, asked: false }))
    }

    /// The request is over: drops what it holds.
    pub fn finish(&self, py: Python<'_>) -> Rest {
        let (body, failed) = {
            let mut state = self.state(py);
            state.over = true;
            state.buf = Vec::new();
            (std::mem::replace(&mut state.body, Body::Empty), state.error.is_some())
        };
        match body {
            Body::Stream(_) if failed => Rest::Broken,
            Body::Stream(_) => Rest::Frames,
            _ => Rest::Nothing,
        }
    }

    /// Reads and bytes so far, for events.
    pub fn totals(&self, py: Python<'_>) -> (u32, u64) {
        let state = self.state(py);
        (state.reads, state.bytes)
    }

    /// The state; another thread of the application may be reading: wait for it without the GIL.
    fn state(&self, py: Python<'_>) -> std::sync::MutexGuard<'_, State> {
        loop {
            if let Ok(guard) = self.state.try_lock() {
                return guard;
            }
            py.detach(|| drop(lock(&self.state)));
        }
    }

    /// Runs `f` on the state with the GIL released; raises what has failed.
    fn detached<R: Send>(&self, py: Python<'_>, f: impl FnOnce(&mut State) -> R + Send) -> PyResult<R> {
        let (result, error) = py.detach(|| {
            let mut state = lock(&self.state);
            let result = f(&mut state);
            (result, state.error)
        });
        match error {
            Some(text) => Err(PyOSError::new_err((libc::EIO, text))),
            None => Ok(result),
        }
    }

    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let mut state = self.state(py);
        if state.over {
            return Err(PyRuntimeError::new_err("wsgi.input cannot be used after the request has ended"));
        }
        if let Some(text) = state.error {
            return Err(PyOSError::new_err((libc::EIO, text)));
        }
        state.reads += 1;
        Ok(())
    }

    /// Up to `limit` bytes, all of the body without one.
    fn take<'py>(&self, py: Python<'py>, limit: Option<usize>) -> PyResult<Bound<'py, PyBytes>> {
        self.check(py)?;
        {
            let mut state = self.state(py);
            if let Body::Inline(bytes, at) = &state.body {
                let all = bytes.bind(py).clone();
                let at = *at;
                let left = all.as_bytes().len() - at;
                let n = limit.map_or(left, |l| l.min(left));
                state.bytes += n as u64;
                if n == left {
                    state.body = Body::Empty;
                } else {
                    state.body = Body::Inline(all.clone().unbind(), at + n);
                }
                drop(state);
                return Ok(if n == left && at == 0 { all } else { PyBytes::new(py, &all.as_bytes()[at..at + n]) });
            }
            if state.at == state.buf.len() {
                match state.body {
                    Body::Empty => return Ok(PyBytes::new(py, b"")),
                    Body::File(_, at, len) => {
                        drop(state);
                        return self.take_of_file(py, limit.unwrap_or(usize::MAX).min((len - at) as usize));
                    }
                    _ => {}
                }
            }
        }
        let bytes = self.detached(py, move |state| state.read(limit))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// `n` bytes of a file, read into the object that the application gets.
    fn take_of_file<'py>(&self, py: Python<'py>, n: usize) -> PyResult<Bound<'py, PyBytes>> {
        let mut got = 0;
        let bytes = PyBytes::new_with(py, n, |out| {
            got = self.detached(py, |state| {
                let part = state.read_into(out);
                state.bytes += part as u64;
                part
            })?;
            Ok(())
        })?;
        // Fewer only when another thread of the application has read meanwhile.
        Ok(if got == n { bytes } else { PyBytes::new(py, &bytes.as_bytes()[..got]) })
    }

    /// One line with its end, at most `limit` bytes.
    fn line<'py>(&self, py: Python<'py>, limit: Option<usize>) -> PyResult<Bound<'py, PyBytes>> {
        let limit = limit.unwrap_or(usize::MAX);
        let inline = match &self.state(py).body {
            Body::Inline(bytes, at) => Some(line_end(&bytes.bind(py).as_bytes()[*at..], limit)),
            _ => None,
        };
        if let Some((n, _)) = inline {
            return self.take(py, Some(n));
        }
        self.check(py)?;
        let bytes = self.detached(py, move |state| state.line(limit))?;
        Ok(PyBytes::new(py, &bytes))
    }
}

/// Bytes of the first line of `bytes` within `limit`, and whether it is complete.
fn line_end(bytes: &[u8], limit: usize) -> (usize, bool) {
    let within = &bytes[..bytes.len().min(limit)];
    match within.iter().position(|b| *b == b'\n') {
        Some(i) => (i + 1, true),
        None => (within.len(), within.len() == limit),
    }
}

impl State {
    fn read(&mut self, limit: Option<usize>) -> Vec<u8> {
        let limit = limit.unwrap_or(usize::MAX);
        let mut out = Vec::new();
        while out.len() < limit && self.error.is_none() {
            if self.at < self.buf.len() {
                let n = (self.buf.len() - self.at).min(limit - out.len());
                out.extend_from_slice(&self.buf[self.at..self.at + n]);
                self.at += n;
            } else if let Body::File(_, at, len) = &self.body {
                // Straight into the result.
                let want = (*len - *at).min((limit - out.len()) as u64) as usize;
                if want == 0 {
                    break;
                }
                let have = out.len();
                out.resize(have + want, 0);
                self.read_into(&mut out[have..]);
            } else if !self.fill() {
                break;
            }
        }
        self.bytes += out.len() as u64;
        out
    }

    /// Reads from a file what fits into `out`, as far as it goes; gives the number of bytes.
    fn read_into(&mut self, out: &mut [u8]) -> usize {
        let Body::File(file, at, len) = &mut self.body else { return 0 };
        let n = out.len().min((*len - *at) as usize);
        match file.read_exact_at(&mut out[..n], *at) {
            Ok(()) => {
                *at += n as u64;
                n
            }
            Err(_) => {
                self.error = Some("the spooled request body cannot be read");
                0
            }
        }
    }

    fn line(&mut self, limit: usize) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let (n, complete) = line_end(&self.buf[self.at..], limit - out.len());
            out.extend_from_slice(&self.buf[self.at..self.at + n]);
            self.at += n;
            if complete || !self.fill() {
                self.bytes += out.len() as u64;
                return out;
            }
        }
    }

    /// Fetches more into the empty buffer; `false` at the end.
    fn fill(&mut self) -> bool {
        self.buf.clear();
        self.at = 0;
        let ended = match &mut self.body {
            Body::Empty | Body::Inline(..) => return false,
            Body::File(file, at, len) => {
                let want = (*len - *at).min(CHUNK as u64) as usize;
                self.buf.resize(want, 0);
                match file.read_exact_at(&mut self.buf, *at) {
                    Ok(()) => *at += want as u64,
                    Err(_) => {
                        self.buf.clear();
                        self.error = Some("the spooled request body cannot be read");
                    }
                }
                want == 0
            }
            Body::Stream(stream) => match stream.next() {
                Ok(Some(bytes)) => {
                    self.buf = bytes;
                    false
                }
                Ok(None) => true,
                Err(text) => {
                    self.error = Some(text);
                    false
                }
            },
        };
        if ended {
            self.body = Body::Empty;
        }
        !ended && self.error.is_none()
    }
}

impl Stream {
    /// The next piece; `None` after BODY_END.
    fn next(&mut self) -> Result<Option<Vec<u8>>, &'static str> {
        const GONE: &str = "the client has closed the connection before the request body was complete";
        if !self.asked {
            self.asked = true;
            let mut frame = Vec::new();
            encode::empty(&mut frame, Kind::Continue, 0);
            self.conn.send_blocking(&frame, &[]).map_err(|_| GONE)?;
        }
        let mut scratch = vec![0; CHUNK];
        loop {
            let got = {
                // The serving thread has let go of this lock for the time of the request.
                let mut inbound = self.conn.inbound();
                self.conn.receive(&mut inbound, &mut scratch)
            };
            match got {
                Ok(Frame::Whole(h, place, None)) => match (h.kind, place) {
                    (Kind::Body, Place::Thread(range)) => return Ok(Some(scratch[range].to_vec())),
                    (Kind::Body, Place::Own(bytes)) => return Ok(Some(bytes)),
                    (Kind::BodyEnd, _) => return Ok(None),
                    _ => return Err("the server sent a frame that does not belong to a request body"),
                },
                Ok(Frame::Whole(..)) | Err(Bad::Descriptors) => return Err("the server sent an unexpected descriptor"),
                Ok(Frame::Partial) => self.conn.wait(PollFlags::POLLIN),
                Ok(Frame::End) => return Err(GONE),
                Err(_) => return Err("the server sent a malformed request body"),
            }
        }
    }
}

/// A size argument: `None` and negative numbers mean all.
fn size(n: Option<isize>) -> Option<usize> {
    n.and_then(|n| usize::try_from(n).ok())
}

#[pymethods]
impl Input {
    #[pyo3(signature = (size = None, /))]
    fn read<'py>(&self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        self.take(py, self::size(size))
    }

    #[pyo3(signature = (size = None, /))]
    fn readline<'py>(&self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        self.line(py, self::size(size))
    }

    #[pyo3(signature = (hint = None, /))]
    fn readlines<'py>(&self, py: Python<'py>, hint: Option<isize>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        let hint = hint.and_then(|h| usize::try_from(h).ok()).filter(|h| *h > 0);
        let mut total = 0;
        loop {
            let line = self.line(py, None)?;
            let n = line.as_bytes().len();
            if n == 0 {
                return Ok(list);
            }
            total += n;
            list.append(line)?;
            if hint.is_some_and(|h| total >= h) {
                return Ok(list);
            }
        }
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let line = self.line(py, None)?;
        if line.as_bytes().is_empty() { Err(PyStopIteration::new_err(())) } else { Ok(line) }
    }

    /// Does nothing: the server owns the stream.
    fn close(&self) {}
}
