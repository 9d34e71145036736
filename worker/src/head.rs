//! Status and headers as `start_response` takes them: checked by PEP 3333 and HTTP, kept as bytes. What is wrong raises
//! in the application, nothing is repaired. Types and texts of exceptions are mod_wsgi's where it has the check too.

use mod_wsgi_wire::encode;
use mod_wsgi_wire::fields::{is_control, is_hop_by_hop, is_token, parse_length};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};
use std::borrow::Cow;

/// A checked response head.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    reason: Vec<u8>,
    /// Names and values one after the other.
    bytes: Vec<u8>,
    /// Lengths of name and value.
    spans: Vec<(u32, u32)>,
    /// The declared length of the body.
    pub content_length: Option<u64>,
}

impl Head {
    /// Checks the arguments of `start_response`.
    pub fn parse(status: &Bound<'_, PyAny>, headers: &Bound<'_, PyAny>) -> PyResult<Head> {
        let line = latin1(status)?;
        let Ok(list) = headers.cast::<PyList>() else {
            return Err(PyTypeError::new_err(format!("headers must be a list, not {}", type_name(headers))));
        };
        let digits = line.first_chunk::<3>().filter(|d| d.iter().all(u8::is_ascii_digit));
        let Some(digits) = digits.filter(|_| !line.get(3).is_some_and(u8::is_ascii_digit)) else {
            return Err(wrong("status code must be a 3 digit integer", &line));
        };
        let number = digits.iter().fold(0, |n, d| n * 10 + (d - b'0') as u16);
        let reason = match line.get(3) {
            None => &[][..],
            Some(b' ') => &line[4..],
            Some(_) => return Err(wrong("no space following status code", &line)),
        };
        if reason.iter().any(|b| is_control(*b)) {
            return Err(wrong("control character in status reason phrase", &line));
        }
        if !(200..=999).contains(&number) {
            return Err(wrong("status code is not that of a final response", &line));
        }
        let mut head = Head {
            status: number,
            reason: reason.to_vec(),
            bytes: Vec::new(),
            spans: Vec::new(),
            content_length: None,
        };
        head.bytes.reserve(192);
        head.spans.reserve(list.len());
        for item in list.iter() {
            let Ok(pair) = item.cast::<PyTuple>() else {
                return Err(PyTypeError::new_err(format!("each header must be a 2-tuple, not {}", type_name(&item))));
            };
            if pair.len() != 2 {
                let text = format!("each header must be a 2-tuple, got length {}", pair.len());
                return Err(PyValueError::new_err(text));
            }
            let (name, value) = (pair.get_borrowed_item(0)?, pair.get_borrowed_item(1)?);
            head.add(&name, &value)?;
        }
        Ok(head)
    }

    fn add(&mut self, name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let n = latin1(name)?;
        if n.is_empty() {
            return Err(PyValueError::new_err("header name is empty"));
        }
        if let Some(bad) = n.iter().find(|b| !is_token(**b)) {
            let what = match bad {
                b' ' => "space character in header name",
                b if is_control(*b) || *b == b'\t' => "control character in header name",
                _ => "character not allowed in header name",
            };
            return Err(wrong(what, &n));
        }
        let v = latin1(value)?;
        if v.iter().any(|b| is_control(*b)) {
            let split = v.iter().any(|b| matches!(b, b'\r' | b'\n'));
            let what = if split { "carriage return/line feed character" } else { "control character" };
            return Err(wrong(&format!("{what} in header value"), &v));
        }
        if is_hop_by_hop(&n) {
            return Err(wrong("header of the connection, which belongs to the server", &n));
        }
        if n.len() == 14 && n.eq_ignore_ascii_case(b"content-length") {
            let text = || PyValueError::new_err(format!("invalid Content-Length header value: '{}'", v.escape_ascii()));
            let length = parse_length(&v).ok_or_else(text)?;
            if self.content_length.is_some_and(|c| c != length) {
                return Err(PyValueError::new_err("Content-Length is given twice with different values"));
            }
            self.content_length = Some(length);
        }
        self.push(&n, &v);
        Ok(())
    }

    fn push(&mut self, name: &[u8], value: &[u8]) {
        self.spans.push((name.len() as u32, value.len() as u32));
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
    }

    /// Declares the length of the body, if the application has not and the status may have a body.
    pub fn declare_length(&mut self, length: u64) {
        if self.content_length.is_none() && !matches!(self.status, 204 | 304) {
            self.content_length = Some(length);
            self.push(b"Content-Length", length.to_string().as_bytes());
        }
    }

    /// Appends a RESPONSE frame with `data` (at most `MAX_DATA` bytes).
    pub fn encode(&self, out: &mut Vec<u8>, data: &[u8], bits: u8) -> PyResult<()> {
        let mut at = 0;
        let fields = self.spans.iter().map(|(n, v)| {
            let name = &self.bytes[at..at + *n as usize];
            at += *n as usize;
            let value = &self.bytes[at..at + *v as usize];
            at += *v as usize;
            (name, value)
        });
        encode::response(out, self.status, &self.reason, fields, data, bits)
            .map_err(|e| PyValueError::new_err(e.to_string()))
    }
}

/// The bytes of a str in Latin-1; raises TypeError for other objects, UnicodeEncodeError for what does not fit.
fn latin1<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<Cow<'a, [u8]>> {
    let Ok(s) = value.cast::<PyString>() else {
        return Err(PyTypeError::new_err(format!("must be str, not {}", type_name(value))));
    };
    if let Ok(text) = s.to_str()
        && text.is_ascii()
    {
        return Ok(Cow::Borrowed(text.as_bytes()));
    }
    let bytes = s.call_method1("encode", ("latin-1",))?;
    Ok(Cow::Owned(bytes.cast::<PyBytes>()?.as_bytes().to_vec()))
}

/// A ValueError that shows the value as Python would show the bytes.
fn wrong(what: &str, value: &[u8]) -> PyErr {
    PyValueError::new_err(format!("{what}: b'{}'", value.escape_ascii()))
}

/// The name of an object's type, for messages.
pub fn type_name(o: &Bound<'_, PyAny>) -> String {
    o.get_type().name().map_or_else(|_| "object".into(), |n| n.to_string_lossy().into_owned())
}
