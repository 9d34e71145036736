//! Encoders. Each appends whole frames to a byte buffer; nothing here does I/O. Lengths are checked where the caller's
//! data could exceed a limit, so that an encoder never makes a frame its own decoder would refuse.

use crate::frame::{AbortReason, Kind, Level, flags};
use crate::{VERSION, limits};
use std::time::Duration;

/// A value is longer than the wire allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} of {len} bytes or items is over the limit of {limit}")]
pub struct TooLong {
    /// What was too long, for the log.
    pub what: &'static str,
    /// How long it was.
    pub len: usize,
    /// What is allowed, from [`limits`].
    pub limit: usize,
}

fn check(what: &'static str, len: usize, limit: usize) -> Result<(), TooLong> {
    if len > limit { Err(TooLong { what, len, limit }) } else { Ok(()) }
}

fn header(out: &mut Vec<u8>, kind: Kind, flags: u8, len: usize) {
    debug_assert!(len <= kind.max_payload());
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&[kind as u8, flags, 0, 0]);
}

/// HELLO of a server process: proves that it may send here.
pub fn hello_server(out: &mut Vec<u8>, token: &[u8; 16], client: u32) {
    header(out, Kind::Hello, 0, 24);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&client.to_le_bytes());
    out.extend_from_slice(token);
}

/// HELLO of a worker: says which incarnation of which slot answers here.
pub fn hello_worker(out: &mut Vec<u8>, slot: u16, slot_generation: u32) {
    header(out, Kind::Hello, 0, 8);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&slot.to_le_bytes());
    out.extend_from_slice(&slot_generation.to_le_bytes());
}

/// How the request body travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Follows the environ inside REQUEST, this many bytes.
    Inline(usize),
    /// One descriptor of a regular file accompanies the first byte of the frame; the body is its first `n` bytes.
    Descriptor(u64),
    /// BODY frames follow; the length is what CONTENT_LENGTH says, if anything.
    Stream,
}

/// Coordinates of the row a request has been sent for; the worker claims exactly this word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowRef {
    pub slot_generation: u32,
    pub row: u16,
    pub row_generation: u32,
    pub client: u32,
}

/// Builds one REQUEST in place: entries are appended straight from server structures, without an intermediate map.
pub struct RequestBuilder<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    entries: usize,
    bits: u8,
    too_long: Option<TooLong>,
}

/// Offset of the fields that [`patch_row`] rewrites, from the start of the frame.
const ROW_AT: usize = limits::HEADER;
/// Bytes of the fixed part of a REQUEST payload.
pub(crate) const REQUEST_FIXED: usize = 40;

impl<'a> RequestBuilder<'a> {
    /// Begins a REQUEST at the end of `out`. `script_mtime` is the script's modification time in microseconds since
    /// the epoch as the server saw it, 0 when the worker shall not compare it.
    pub fn new(out: &'a mut Vec<u8>, script_mtime: u64) -> Self {
        let start = out.len();
        out.resize(start + limits::HEADER + REQUEST_FIXED, 0);
        out[start + 24..start + 32].copy_from_slice(&script_mtime.to_le_bytes());
        RequestBuilder { out, start, entries: 0, bits: 0, too_long: None }
    }

    /// What the application may take, milliseconds; 0 = what the group says, `u32::MAX` = any time.
    pub fn timeout(&mut self, milliseconds: u32) {
        let at = self.start + limits::HEADER + 36;
        self.out[at..at + 4].copy_from_slice(&milliseconds.to_le_bytes());
    }

    /// The response's bytes are wanted, whatever they come from: no FILE.
    pub fn no_file(&mut self) {
        self.bits |= flags::NO_FILE;
    }

    /// Adds an entry whose key has an id in [`crate::keys`].
    pub fn known(&mut self, id: u8, value: &[u8]) {
        debug_assert!(id != 0 && (id as usize) < crate::keys::NAMES.len());
        self.out.push(id);
        self.value(value);
    }

    /// The same with a value in several pieces (saves the caller a temporary).
    pub fn known_parts(&mut self, id: u8, pieces: &[&[u8]]) {
        let at = self.out.len();
        self.known(id, pieces.first().copied().unwrap_or_default());
        let rest = pieces.get(1..).unwrap_or_default();
        let len = pieces.iter().map(|p| p.len()).sum();
        if let Err(e) = check("environ value", len, limits::MAX_ENVIRON) {
            self.too_long.get_or_insert(e);
            return;
        }
        self.out[at + 1..at + 5].copy_from_slice(&(len as u32).to_le_bytes());
        rest.iter().for_each(|p| self.out.extend_from_slice(p));
    }

    /// Adds an entry with its key spelt out.
    pub fn named(&mut self, key: &[u8], value: &[u8]) {
        self.named_with(key.len(), value, |out| out.extend_from_slice(key));
    }

    /// Adds an entry whose key of `len` bytes is written by `write` (saves the caller a temporary).
    pub fn named_with(&mut self, len: usize, value: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        if let Err(e) = check("environ key", len, limits::MAX_KEY) {
            self.too_long.get_or_insert(e);
            return;
        }
        self.out.push(0);
        self.out.extend_from_slice(&(len as u16).to_le_bytes());
        let before = self.out.len();
        write(self.out);
        debug_assert_eq!(self.out.len() - before, len);
        self.value(value);
    }

    fn value(&mut self, value: &[u8]) {
        self.entries += 1;
        if let Err(e) = check("environ value", value.len(), limits::MAX_ENVIRON) {
            self.too_long.get_or_insert(e);
            self.out.extend_from_slice(&0u32.to_le_bytes());
            return;
        }
        self.out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.out.extend_from_slice(value);
    }

    /// Ends the environ and completes the frame; an inline body must be appended by the caller afterwards, exactly as
    /// many bytes as declared here.
    pub fn finish(self, body: Body) -> Result<(), TooLong> {
        if let Some(e) = self.too_long {
            return Err(e);
        }
        let environ = self.out.len() - self.start - limits::HEADER - REQUEST_FIXED;
        check("environ", environ, limits::MAX_ENVIRON)?;
        check("environ entries", self.entries, limits::MAX_ENTRIES)?;
        let (bits, inline, body_len) = match body {
            Body::Inline(n) => {
                check("inline body", n, limits::MAX_INLINE_BODY)?;
                (0, n, n as u64)
            }
            Body::Descriptor(n) => (flags::BODY_FD, 0, n),
            Body::Stream => (flags::BODY_STREAM, 0, 0),
        };
        let s = self.start;
        let len = REQUEST_FIXED + environ + inline;
        self.out[s..s + 4].copy_from_slice(&(len as u32).to_le_bytes());
        self.out[s + 4] = Kind::Request as u8;
        self.out[s + 5] = bits | self.bits;
        let p = s + limits::HEADER;
        self.out[p + 6..p + 8].copy_from_slice(&(self.entries as u16).to_le_bytes());
        self.out[p + 24..p + 32].copy_from_slice(&body_len.to_le_bytes());
        self.out[p + 32..p + 36].copy_from_slice(&(environ as u32).to_le_bytes());
        Ok(())
    }
}

/// Writes row coordinates into a REQUEST that begins at `start` of `frame`: the row is taken after the request has been
/// built, and a recalled request is sent again under another row.
pub fn patch_row(frame: &mut [u8], start: usize, row: &RowRef) {
    let p = start + ROW_AT;
    frame[p..p + 4].copy_from_slice(&row.slot_generation.to_le_bytes());
    frame[p + 4..p + 6].copy_from_slice(&row.row.to_le_bytes());
    frame[p + 8..p + 12].copy_from_slice(&row.row_generation.to_le_bytes());
    frame[p + 12..p + 16].copy_from_slice(&row.client.to_le_bytes());
}

/// Asks, in a REQUEST that begins at `start` of `frame`, for bytes where the worker would pass a file
/// ([`RequestBuilder::no_file`]).
pub fn bytes_only(frame: &mut [u8], start: usize) {
    frame[start + 5] |= flags::NO_FILE;
}

/// Makes the REQUEST that begins at `start` of `frame` one for a lane, or for a connection of its own.
pub fn for_lane(frame: &mut [u8], start: usize, lane: bool) {
    if lane {
        frame[start + 5] |= flags::LANE;
    } else {
        frame[start + 5] &= !flags::LANE;
    }
}

/// REPLY: whole frames of a row's answer in any number of pieces, at most [`limits::MAX_REPLY`] bytes in all.
pub fn reply(out: &mut Vec<u8>, row: u16, row_generation: u32, pieces: &[&[u8]]) {
    let len: usize = pieces.iter().map(|p| p.len()).sum();
    header(out, Kind::Reply, 0, limits::COORDINATES + len);
    coordinates(out, row, row_generation);
    pieces.iter().for_each(|p| out.extend_from_slice(p));
}

/// ADOPT: the rest of a row's answer comes on the connection whose descriptor is attached to this frame's first byte.
pub fn adopt(out: &mut Vec<u8>, row: u16, row_generation: u32) {
    header(out, Kind::Adopt, 0, limits::COORDINATES);
    coordinates(out, row, row_generation);
}

fn coordinates(out: &mut Vec<u8>, row: u16, row_generation: u32) {
    out.extend_from_slice(&row.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&row_generation.to_le_bytes());
}

/// Appends one RESPONSE. `bits` may carry END and DONE. `data` is the first or only piece of the body, at most
/// [`limits::MAX_DATA`] bytes.
pub fn response<'h>(
    out: &mut Vec<u8>,
    status: u16,
    reason: &[u8],
    headers: impl ExactSizeIterator<Item = (&'h [u8], &'h [u8])>,
    data: &[u8],
    bits: u8,
) -> Result<(), TooLong> {
    check("reason phrase", reason.len(), limits::MAX_REASON)?;
    check("response headers", headers.len(), limits::MAX_RESPONSE_HEADERS)?;
    check("response data", data.len(), limits::MAX_DATA)?;
    let start = out.len();
    let count = headers.len() as u16;
    out.resize(start + limits::HEADER, 0);
    out.extend_from_slice(&status.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&(reason.len() as u16).to_le_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
    let head = out.len();
    out.extend_from_slice(reason);
    for (name, value) in headers {
        if name.len() > u16::MAX as usize || value.len() > limits::MAX_RESPONSE_HEAD {
            out.truncate(start);
            let len = name.len().max(value.len());
            return Err(TooLong { what: "response header", len, limit: limits::MAX_RESPONSE_HEAD });
        }
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(value);
    }
    let head_len = out.len() - head;
    if let Err(e) = check("response head", head_len, limits::MAX_RESPONSE_HEAD - RESPONSE_FIXED) {
        out.truncate(start);
        return Err(e);
    }
    out[head - 4..head].copy_from_slice(&(head_len as u32).to_le_bytes());
    out.extend_from_slice(data);
    let len = out.len() - start - limits::HEADER;
    out[start..start + 4].copy_from_slice(&(len as u32).to_le_bytes());
    out[start + 4] = Kind::Response as u8;
    out[start + 5] = bits;
    Ok(())
}

/// Writes into the RESPONSE that begins at `start` of `frame` how long the application has had the request.
pub fn patch_ran(frame: &mut [u8], start: usize, ran: Duration) {
    let at = start + limits::HEADER + 6;
    frame[at..at + 2].copy_from_slice(&ran_code(ran).to_le_bytes());
}

/// A time in 16 bits: below 2^15 milliseconds, above it seconds; what is longer counts as the longest.
fn ran_code(ran: Duration) -> u16 {
    match u16::try_from(ran.as_millis()) {
        Ok(ms) if ms < 0x8000 => ms,
        _ => 0x8000 | ran.as_secs().min(0x7fff) as u16,
    }
}

/// Bytes of the fixed part of a RESPONSE payload.
pub(crate) const RESPONSE_FIXED: usize = 12;

/// Header of a DATA frame of `len` bytes (at most [`limits::MAX_DATA`]); the bytes follow from wherever they lie.
pub fn data_header(len: usize, bits: u8) -> [u8; limits::HEADER] {
    debug_assert!(len <= limits::MAX_DATA);
    let n = (len as u32).to_le_bytes();
    [n[0], n[1], n[2], n[3], Kind::Data as u8, bits, 0, 0]
}

/// Header of a BODY frame of `len` bytes (at most [`limits::MAX_DATA`]).
pub fn body_header(len: usize) -> [u8; limits::HEADER] {
    debug_assert!(len <= limits::MAX_DATA);
    let n = (len as u32).to_le_bytes();
    [n[0], n[1], n[2], n[3], Kind::Body as u8, 0, 0, 0]
}

/// FILE: the descriptor attached to this frame's first byte, `len` bytes from `offset`.
pub fn file(out: &mut Vec<u8>, offset: u64, len: u64, bits: u8) {
    header(out, Kind::File, bits, 16);
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
}

/// LOG: `text` is cut to [`limits::MAX_LOG`] bytes.
pub fn log(out: &mut Vec<u8>, level: Level, text: &[u8]) {
    let text = &text[..text.len().min(limits::MAX_LOG)];
    header(out, Kind::Log, 0, text.len() + 1);
    out.push(level as u8);
    out.extend_from_slice(text);
}

/// A frame without payload: BODY_END, CONTINUE, END, DONE.
pub fn empty(out: &mut Vec<u8>, kind: Kind, bits: u8) {
    debug_assert_eq!(kind.max_payload(), 0);
    header(out, kind, bits, 0);
}

/// ABORT with its reason.
pub fn abort(out: &mut Vec<u8>, reason: AbortReason, bits: u8) {
    header(out, Kind::Abort, bits, 1);
    out.push(reason as u8);
}
