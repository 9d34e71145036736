//! From what the application returned to frames: the response in one piece where it is complete at once, else block by
//! block, or a file's descriptor.

use crate::call::{self, Call, SendError};
use crate::conn::Conn;
use crate::file;
use crate::head;
use crate::log;
use crate::serve::Runtime;
use crate::sys;
use crate::watch;
use mod_wsgi_wire::encode;
use mod_wsgi_wire::frame::{AbortReason, Kind, Level, flags};
use mod_wsgi_wire::limits;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyList, PyTuple};
use std::sync::Arc;

/// How a response ended.
#[derive(Debug)]
pub enum End {
    /// Everything has been sent, DONE included.
    Done,
    /// END has been sent, or ABORT; DONE has not.
    Closing,
    /// The server process or its client has gone: the connection is of no use.
    Gone,
}

/// One response under way.
pub struct Response<'a, 'py> {
    pub py: Python<'py>,
    pub runtime: &'a Runtime,
    pub conn: &'a Arc<Conn>,
    pub call: &'a Py<Call>,
    /// The thread's buffer for outgoing frames.
    pub out: &'a mut Vec<u8>,
    pub script: &'a str,
}

impl<'py> Response<'_, 'py> {
    /// Sends what the application returned, runs its `close()`, sends DONE. `false`: the connection must be closed.
    pub fn send(mut self, result: PyResult<Bound<'py, PyAny>>) -> bool {
        if sys::forked() {
            // A child of the application that came back by the parent's stack.
            sys::exit_now(0);
        }
        let result = match result {
            Ok(result) => result,
            Err(e) => {
                watch::over(self.py);
                let reason = self.reason(AbortReason::Application, &e);
                self.report(e);
                return self.abort(reason, true);
            }
        };
        let end = match self.body(&result) {
            Ok(end) => end,
            Err((reason, e)) => {
                watch::over(self.py);
                let reason = self.reason(reason, &e);
                self.report(e);
                if self.abort(reason, false) { End::Closing } else { End::Gone }
            }
        };
        if matches!(end, End::Done) {
            return true;
        }
        self.close(&result);
        drop(result);
        !matches!(end, End::Gone) && self.done()
    }

    fn body(&mut self, result: &Bound<'py, PyAny>) -> Result<End, (AbortReason, PyErr)> {
        if let Some(end) = self.whole(result)? {
            return Ok(end);
        }
        if result.get_type().is(self.runtime.file_wrapper.bind(self.py)) && !self.call.get().head_sent() {
            return match file::passable(result) {
                Some(file) => self.file(file),
                None => {
                    let declared = self.call.get().with_head(|head| head.content_length).flatten();
                    self.blocks(result, declared.unwrap_or(u64::MAX))
                }
            };
        }
        self.blocks(result, u64::MAX)
    }

    /// An exact list or tuple is complete: one frame, if it fits.
    fn whole(&mut self, result: &Bound<'py, PyAny>) -> Result<Option<End>, (AbortReason, PyErr)> {
        let mut joined = Vec::new();
        let single;
        let data: &[u8] = if let Ok(list) = result.cast_exact::<PyList>() {
            match list.len() {
                0 => &[],
                1 => {
                    single = list.get_item(0).map_err(application)?;
                    block(&single)?
                }
                _ => {
                    let Some(()) = join(&mut joined, list.iter())? else { return Ok(None) };
                    &joined
                }
            }
        } else if let Ok(tuple) = result.cast_exact::<PyTuple>() {
            match tuple.len() {
                1 => {
                    single = tuple.get_item(0).map_err(application)?;
                    block(&single)?
                }
                _ => {
                    let Some(()) = join(&mut joined, tuple.iter())? else { return Ok(None) };
                    &joined
                }
            }
        } else {
            return Ok(None);
        };
        if self.call.get().head_sent() {
            return Ok(None);
        }
        if data.len() > limits::MAX_DATA {
            // One item, for join() stops before: several frames, but their sum is known.
            let length = data.len() as u64;
            self.call.get().with_head(|head| head.declare_length(length));
            return Ok(None);
        }
        self.out.clear();
        let bits = flags::END | flags::DONE;
        self.call.get().encode_whole(self.out, data, bits).map_err(|e| (AbortReason::Protocol, e))?;
        self.before_done();
        if sys::forked() {
            sys::exit_now(0);
        }
        match call::transmit(self.py, self.conn, self.out, &[], 0) {
            Ok(()) => Ok(Some(End::Done)),
            Err(_) => Ok(Some(End::Gone)),
        }
    }

    /// Sends block by block. `limit`: what is beyond it is neither sent nor, in blocks of its own, asked for: of a file
    /// the Content-Length takes a part, however it is sent.
    fn blocks(&mut self, result: &Bound<'py, PyAny>, limit: u64) -> Result<End, (AbortReason, PyErr)> {
        let iterator: Bound<'py, PyIterator> = result.try_iter().map_err(|e| {
            let text = format!("application returned {}, which cannot be iterated", head::type_name(result));
            let error = PyTypeError::new_err(text);
            error.set_cause(self.py, Some(e));
            (AbortReason::Protocol, error)
        })?;
        let mut left = limit;
        for item in iterator {
            let item = item.map_err(application)?;
            let bytes = block(&item)?;
            let bytes = &bytes[..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            left -= bytes.len() as u64;
            if bytes.is_empty() && left > 0 {
                continue;
            }
            match self.call.get().send(self.py, bytes, 0) {
                Ok(()) => {}
                Err(SendError::Gone) => return Ok(End::Gone),
                Err(SendError::Rule(e)) => return Err((AbortReason::Protocol, e)),
            }
            if left == 0 {
                break;
            }
        }
        watch::over(self.py);
        match self.call.get().send(self.py, b"", flags::END) {
            Ok(()) => Ok(End::Closing),
            Err(SendError::Gone) => Ok(End::Gone),
            Err(SendError::Rule(e)) => Err((AbortReason::Protocol, e)),
        }
    }

    fn file(&mut self, file: file::Passed) -> Result<End, (AbortReason, PyErr)> {
        let rest = file.len;
        let declared = self.call.get().with_head(|head| {
            head.declare_length(rest);
            head.content_length
        });
        let len = declared.flatten().map_or(rest, |d| d.min(rest));
        let mut frame = Vec::new();
        match self.call.get().send_head(self.py) {
            Ok(()) => {}
            Err(SendError::Gone) => return Ok(End::Gone),
            Err(SendError::Rule(e)) => return Err((AbortReason::Protocol, e)),
        }
        encode::file(&mut frame, file.offset, len, flags::END);
        watch::over(self.py);
        let conn = self.conn;
        let no_file = self.call.get().no_file();
        let passed = || if no_file { Ok(false) } else { conn.send_file(&frame, &file.fd) };
        let sent = self.py.detach(|| match passed() {
            Ok(false) => file.send_bytes(conn, len),
            other => other,
        });
        match sent {
            Ok(true) => Ok(End::Closing),
            // The file became shorter while it was read: the response is not whole.
            Ok(false) => {
                let text = format!("file of {len} bytes became shorter while it was sent");
                Err((AbortReason::Application, pyo3::exceptions::PyOSError::new_err((libc::EIO, text))))
            }
            Err(_) => Ok(End::Gone),
        }
    }

    fn close(&mut self, result: &Bound<'py, PyAny>) {
        if result.is_exact_instance_of::<PyList>() || result.is_exact_instance_of::<PyTuple>() {
            return;
        }
        let closed = match result.getattr_opt("close") {
            Ok(Some(close)) => close.call0().map(drop),
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = closed {
            self.report(e);
        }
    }

    fn reason(&self, otherwise: AbortReason, error: &PyErr) -> AbortReason {
        if self.runtime.is_timeout(self.py, error) { AbortReason::Timeout } else { otherwise }
    }

    /// Logs an exception with its traceback.
    fn report(&self, error: PyErr) {
        self.runtime.report_exception(self.py, error, self.script);
    }

    /// The last acts before DONE: unfinished lines, dropped records. Later records go to the supervisor.
    fn before_done(&self) {
        watch::over(self.py);
        log::flush_all();
        let dropped = self.conn.take_dropped();
        if dropped > 0 {
            let text =
                format!("MWR0427: {dropped} log records of this request were dropped, the server did not read them");
            let mut frame = Vec::new();
            encode::log(&mut frame, Level::Warn, text.as_bytes());
            // This one waits for the server, without the GIL: it must not be dropped in its turn. Whether the server has
            // gone shows at the next frame.
            let _ = call::transmit(self.py, self.conn, &frame, &[], 0);
        }
        call::detach_conn(self.call.get());
    }

    fn done(&mut self) -> bool {
        self.before_done();
        self.out.clear();
        encode::empty(self.out, Kind::Done, 0);
        call::transmit(self.py, self.conn, self.out, &[], 0).is_ok()
    }

    /// Sends ABORT, with DONE if nothing more of the application will run.
    pub fn abort(&mut self, reason: AbortReason, done: bool) -> bool {
        if sys::forked() {
            sys::exit_now(0);
        }
        if done {
            self.before_done();
        }
        self.out.clear();
        encode::abort(self.out, reason, if done { flags::DONE } else { 0 });
        call::transmit(self.py, self.conn, self.out, &[], 0).is_ok()
    }
}

fn application(e: PyErr) -> (AbortReason, PyErr) {
    (AbortReason::Application, e)
}

/// The bytes of one item of the iterable.
fn block<'a>(item: &'a Bound<'_, PyAny>) -> Result<&'a [u8], (AbortReason, PyErr)> {
    match item.cast::<PyBytes>() {
        Ok(bytes) => Ok(bytes.as_bytes()),
        Err(_) => {
            let text = format!("response iterable must yield bytes, not {}", head::type_name(item));
            Err((AbortReason::Protocol, PyTypeError::new_err(text)))
        }
    }
}

/// Joins items; `None`: together they are too long for one frame.
fn join<'py>(
    out: &mut Vec<u8>,
    items: impl Iterator<Item = Bound<'py, PyAny>>,
) -> Result<Option<()>, (AbortReason, PyErr)> {
    for item in items {
        let bytes = block(&item)?;
        if out.len() + bytes.len() > limits::MAX_DATA {
            return Ok(None);
        }
        out.extend_from_slice(bytes);
    }
    Ok(Some(()))
}
