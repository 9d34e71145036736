//! The environ dictionary: a prepared dictionary copied, and the request's entries decoded straight into it. Each serving
//! thread has its own, so that nothing here is shared or locked.

use mod_wsgi_wire::decode::{self, Key, Request};
use mod_wsgi_wire::keys;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyString, PyTuple};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest value whose object is kept for the next request.
const MAX_KEPT: usize = 256;
/// Most keys without a number whose objects are kept.
const MAX_NAMED: usize = 64;

/// Most beginnings that are kept: scripts times virtual hosts of one worker.
const MAX_BEGINNINGS: usize = 16;

/// Bytes and the str made of them.
type Known = (Box<[u8]>, Py<PyString>);

/// Builds the environ of one thread's requests.
pub struct Builder {
    base: Py<PyDict>,
    /// Constant entries as they came, and the base with them: about a third of what a request brings. The last used is
    /// among the first.
    beginnings: Vec<(Box<[u8]>, Py<PyDict>)>,
    names: Vec<Py<PyString>>,
    /// The last value of each known key, where it is likely to come again and is no secret.
    kept: Vec<Option<Known>>,
    named: Vec<Known>,
    /// The server's version as last sent, and the tuple made of it.
    version: Option<(Box<[u8]>, Py<PyTuple>)>,
    fsdecode: Py<PyAny>,
}

impl Builder {
    /// `base`: the entries that are the same in every request of this thread.
    pub fn new(py: Python<'_>, base: Py<PyDict>) -> PyResult<Builder> {
        let names = keys::NAMES.iter().map(|n| PyString::intern(py, n).unbind()).collect();
        let kept = keys::NAMES.iter().map(|_| None).collect();
        let fsdecode = py.import("os")?.getattr("fsdecode")?.unbind();
        Ok(Builder { base, beginnings: Vec::new(), names, kept, named: Vec::new(), version: None, fsdecode })
    }

    /// The environ of a request, without `wsgi.input`.
    pub fn build<'py>(&mut self, py: Python<'py>, request: &Request<'_>) -> PyResult<Bound<'py, PyDict>> {
        let (environ, at) = self.begin(py, request)?;
        for (key, value) in request.entries_from(at) {
            self.set(py, &environ, key, value)?;
        }
        // A clock before 1970 is as good as 0 here.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let now = PyFloat::new(py, now);
        environ.set_item(self.names[keys::MW_DAEMON_START as usize].bind(py), &now)?;
        environ.set_item(self.names[keys::MW_APPLICATION_START as usize].bind(py), &now)?;
        Ok(environ)
    }

    /// The base with the request's constant entries, and how many bytes they were.
    fn begin<'py>(&mut self, py: Python<'py>, request: &Request<'_>) -> PyResult<(Bound<'py, PyDict>, usize)> {
        let sent = request.environ();
        if let Some(i) = self.beginnings.iter().position(|(bytes, _)| sent.starts_with(bytes)) {
            self.beginnings.swap(0, i);
            let (bytes, environ) = &self.beginnings[0];
            return Ok((environ.bind(py).copy()?, bytes.len()));
        }
        let bytes = request.beginning();
        let environ = self.base.bind(py).copy()?;
        for (key, value) in decode::entries(bytes) {
            self.set(py, &environ, key, value)?;
        }
        if !bytes.is_empty() {
            self.beginnings.truncate(MAX_BEGINNINGS - 1);
            self.beginnings.insert(0, (bytes.into(), environ.copy()?.unbind()));
        }
        Ok((environ, bytes.len()))
    }

    fn set<'py>(&mut self, py: Python<'py>, environ: &Bound<'py, PyDict>, key: Key<'_>, value: &[u8]) -> PyResult<()> {
        let id = match key {
            Key::Known(id) => id,
            Key::Named(name) => return environ.set_item(self.name(py, name), latin1(py, value)),
        };
        match id {
            // Microseconds since the epoch; applications get seconds.
            keys::MW_REQUEST_START | keys::MW_QUEUE_START => {
                environ.set_item(self.names[id as usize].bind(py), PyFloat::new(py, decimal(value) as f64 / 1e6))
            }
            keys::APACHE_VERSION => {
                let version = self.version(py, value)?;
                environ.set_item(self.names[id as usize].bind(py), version)
            }
            _ => {
                let value = self.known_value(py, id, value)?;
                environ.set_item(self.names[id as usize].bind(py), value)
            }
        }
    }

    /// `2.4.71` as (2, 4, 71).
    fn version<'py>(&mut self, py: Python<'py>, value: &[u8]) -> PyResult<Bound<'py, PyTuple>> {
        if let Some((bytes, tuple)) = &self.version
            && **bytes == *value
        {
            return Ok(tuple.bind(py).clone());
        }
        let tuple = PyTuple::new(py, value.split(|b| *b == b'.').map(decimal).collect::<Vec<_>>())?;
        self.version = Some((value.into(), tuple.clone().unbind()));
        Ok(tuple)
    }

    fn known_value<'py>(&mut self, py: Python<'py>, id: u8, value: &[u8]) -> PyResult<Bound<'py, PyString>> {
        let keep = value.len() <= MAX_KEPT && is_kept(id);
        if keep
            && let Some((bytes, object)) = &self.kept[id as usize]
            && **bytes == *value
        {
            return Ok(object.bind(py).clone());
        }
        let object = if matches!(id, keys::DOCUMENT_ROOT | keys::SCRIPT_FILENAME) && !value.is_ascii() {
            self.path(py, value)?
        } else {
            latin1(py, value)
        };
        if keep {
            self.kept[id as usize] = Some((value.into(), object.clone().unbind()));
        }
        Ok(object)
    }

    /// A path in the file system's encoding, so that the application can open it; Latin-1 where that fails.
    fn path<'py>(&self, py: Python<'py>, value: &[u8]) -> PyResult<Bound<'py, PyString>> {
        match self.fsdecode.bind(py).call1((value,)) {
            Ok(text) => Ok(text.cast_into::<PyString>()?),
            Err(_) => Ok(latin1(py, value)),
        }
    }

    fn name<'py>(&mut self, py: Python<'py>, name: &[u8]) -> Bound<'py, PyString> {
        if let Some((_, object)) = self.named.iter().find(|(n, _)| **n == *name) {
            return object.bind(py).clone();
        }
        let object = latin1(py, name);
        if self.named.len() < MAX_NAMED && name.len() <= MAX_KEPT {
            self.named.push((name.into(), object.clone().unbind()));
        }
        object
    }
}

/// Keys whose value is often that of the request before, and is neither a secret nor different each time.
fn is_kept(id: u8) -> bool {
    !matches!(
        id,
        keys::REMOTE_PORT
            | keys::UNIQUE_ID
            | keys::CONTENT_LENGTH
            | keys::REMOTE_USER
            | keys::QUERY_STRING
            | keys::HTTP_AUTHORIZATION
            | keys::HTTP_COOKIE
            | keys::HTTP_REFERER
            | keys::HTTP_RANGE
            | keys::HTTP_X_REQUEST_ID
            | keys::HTTP_IF_MATCH
            | keys::HTTP_IF_NONE_MATCH
            | keys::HTTP_IF_MODIFIED_SINCE
            | keys::HTTP_IF_UNMODIFIED_SINCE
            | keys::MW_REQUEST_ID
            | keys::MW_CONNECTION_ID
            | keys::MW_REQUEST_START
            | keys::MW_QUEUE_START
    )
}

/// The number that `text` begins with.
fn decimal(text: &[u8]) -> u64 {
    let digits = text.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0u64, |n, b| n.saturating_mul(10).saturating_add((b - b'0') as u64))
}

/// Bytes as a str in Latin-1, as PEP 3333 wants every value.
pub fn latin1<'py>(py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyString> {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.is_ascii() => PyString::new(py, text),
        _ => PyString::new(py, &bytes.iter().map(|b| *b as char).collect::<String>()),
    }
}
