//! Status and headers as `start_response` takes them: checked by PEP 3333 and HTTP, kept as bytes. What is wrong raises
//! in the application, nothing is repaired.

use mod_wsgi_wire::encode;
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

/// Connection-level fields: they belong to the server alone (RFC 9110, 7.6.1).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Head {
    /// Checks the arguments of `start_response`.
    pub fn parse(status: &Bound<'_, PyAny>, headers: &Bound<'_, PyAny>) -> PyResult<Head> {
        let Ok(status) = status.cast::<PyString>() else {
            return Err(PyTypeError::new_err(format!("status must be a str, not {}", type_name(status))));
        };
        let Ok(list) = headers.cast::<PyList>() else {
            return Err(PyTypeError::new_err(format!("headers must be a list, not {}", type_name(headers))));
        };
        let line = latin1(status)?;
        let bad =
            || PyValueError::new_err("status must be three digits, a space and a reason without control characters");
        let digits = line.first_chunk::<3>().filter(|d| d.iter().all(u8::is_ascii_digit)).ok_or_else(bad)?;
        let number = digits.iter().fold(0, |n, d| n * 10 + (d - b'0') as u16);
        let reason = match line.get(3) {
            None => &[][..],
            Some(b' ') => &line[4..],
            Some(_) => return Err(bad()),
        };
        if reason.iter().any(|b| is_control(*b)) {
            return Err(bad());
        }
        if !(200..=999).contains(&number) {
            return Err(PyValueError::new_err(format!("status {number} is not one that an application may give")));
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
            let pair = item.cast::<PyTuple>().ok().filter(|t| t.len() == 2);
            let Some(pair) = pair else {
                return Err(PyTypeError::new_err(format!("headers must be 2-tuples, not {}", type_name(&item))));
            };
            let (name, value) = (pair.get_borrowed_item(0)?, pair.get_borrowed_item(1)?);
            match (name.cast::<PyString>(), value.cast::<PyString>()) {
                (Ok(name), Ok(value)) => head.add(&name, &value)?,
                (Err(_), _) => {
                    return Err(PyTypeError::new_err(format!("header name must be a str, not {}", type_name(&name))));
                }
                (_, Err(_)) => {
                    return Err(PyTypeError::new_err(format!("header value must be a str, not {}", type_name(&value))));
                }
            }
        }
        Ok(head)
    }

    fn add(&mut self, name: &Bound<'_, PyString>, value: &Bound<'_, PyString>) -> PyResult<()> {
        let n = latin1(name)?;
        if n.is_empty() || !n.iter().all(|b| is_token(*b)) {
            return Err(PyValueError::new_err(format!("header name {} is not a token", name.repr()?)));
        }
        let v = latin1(value)?;
        if v.iter().any(|b| is_control(*b)) {
            let text = format!("value of header {} has a control character", name.repr()?);
            return Err(PyValueError::new_err(text));
        }
        // Only names of a length found in the table are compared: the common ones cost one comparison of lengths.
        if HOP_BY_HOP.iter().any(|h| h.len() == n.len() && h.as_bytes().eq_ignore_ascii_case(&n)) {
            let text = format!("hop-by-hop header {} belongs to the server", name.repr()?);
            return Err(PyValueError::new_err(text));
        }
        if n.len() == 14 && n.eq_ignore_ascii_case(b"content-length") {
            let text = || PyValueError::new_err("Content-Length is not a number, or given twice with different values");
            let digits = v.trim_ascii();
            if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                return Err(text());
            }
            let length = std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).ok_or_else(text)?;
            if self.content_length.is_some_and(|c| c != length) {
                return Err(text());
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

    /// Declares the length of the body, if the application has not.
    pub fn declare_length(&mut self, length: u64) {
        if self.content_length.is_none() {
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

/// The bytes of a str in Latin-1; raises UnicodeEncodeError for what does not fit.
fn latin1<'a>(s: &'a Bound<'_, PyString>) -> PyResult<Cow<'a, [u8]>> {
    if let Ok(text) = s.to_str()
        && text.is_ascii()
    {
        return Ok(Cow::Borrowed(text.as_bytes()));
    }
    let bytes = s.call_method1("encode", ("latin-1",))?;
    Ok(Cow::Owned(bytes.cast::<PyBytes>()?.as_bytes().to_vec()))
}

/// Control characters of a field value or reason phrase; a tab is white space.
fn is_control(b: u8) -> bool {
    b < 0x20 && b != b'\t' || b == 0x7f
}

/// RFC 9110 tchar.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// The name of an object's type, for messages.
pub fn type_name(o: &Bound<'_, PyAny>) -> String {
    o.get_type().name().map_or_else(|_| "object".into(), |n| n.to_string_lossy().into_owned())
}
