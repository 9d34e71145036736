//! Decoders. They look at bytes already received, never block, never allocate by a peer's word, and report the offset
//! of what was wrong, not its content (it may be a secret, and it is hostile text).

use crate::encode::{REQUEST_FIXED, RESPONSE_FIXED, RowRef};
use crate::frame::{AbortReason, Header, Kind, Level, flags};
use crate::{VERSION, keys, limits};
use std::time::Duration;

/// Why bytes are not a frame. After any of these the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unknown frame kind at byte {at}")]
    Kind { at: usize },
    #[error("flags that do not fit the frame at byte {at}")]
    Flags { at: usize },
    #[error("frame of {len} bytes is over the limit of its kind")]
    TooLong { len: usize },
    #[error("payload ends early at byte {at}")]
    Truncated { at: usize },
    #[error("bytes left over at byte {at}")]
    Trailing { at: usize },
    #[error("invalid value at byte {at}")]
    Value { at: usize },
    #[error("protocol version {got}, this side speaks {want}", want = VERSION)]
    Version { got: u16 },
    #[error("unexpected frame {kind:?}")]
    Unexpected { kind: Kind },
}

/// Parses the header at the start of `buf`. `Ok(None)`: fewer than [`limits::HEADER`] bytes are there.
pub fn header(buf: &[u8]) -> Result<Option<Header>, Error> {
    if buf.len() < limits::HEADER {
        return Ok(None);
    }
    let len = u32::from_le_bytes([buf[0], buf[1], buf[2], buf[3]]) as usize;
    let kind = Kind::from_u8(buf[4]).ok_or(Error::Kind { at: 4 })?;
    if !Header::flags_valid(kind, buf[5]) {
        return Err(Error::Flags { at: 5 });
    }
    if buf[6] != 0 || buf[7] != 0 {
        return Err(Error::Value { at: 6 });
    }
    if len > kind.max_payload() {
        return Err(Error::TooLong { len });
    }
    Ok(Some(Header { kind, flags: buf[5], len }))
}

/// A whole frame: its header, its payload and how many bytes it takes.
pub type Whole<'a> = (Header, &'a [u8], usize);

/// The first whole frame of `buf`. `Ok(None)`: more is needed.
pub fn frame(buf: &[u8]) -> Result<Option<Whole<'_>>, Error> {
    let Some(h) = header(buf)? else { return Ok(None) };
    let total = limits::HEADER + h.len;
    if buf.len() < total {
        return Ok(None);
    }
    Ok(Some((h, &buf[limits::HEADER..total], total)))
}

/// A cursor over one payload.
struct Cursor<'a> {
    buf: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(n).filter(|e| *e <= self.buf.len()).ok_or(Error::Truncated { at: self.at })?;
        let s = &self.buf[self.at..end];
        self.at = end;
        Ok(s)
    }
    fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }
    fn u16(&mut self) -> Result<u16, Error> {
        let b = self.take(2)?;
        Ok(u16::from_le_bytes([b[0], b[1]]))
    }
    fn u32(&mut self) -> Result<u32, Error> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
    fn u64(&mut self) -> Result<u64, Error> {
        let b = self.take(8)?;
        Ok(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }
    fn done(&self) -> Result<(), Error> {
        if self.at == self.buf.len() { Ok(()) } else { Err(Error::Trailing { at: self.at }) }
    }
}

/// HELLO as a worker receives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerHello {
    pub client: u32,
    /// Compare with [`token_matches`], never with `==`.
    pub token: [u8; 16],
}

/// Decodes a server's HELLO.
pub fn hello_server(p: &[u8]) -> Result<ServerHello, Error> {
    let mut c = Cursor { buf: p, at: 0 };
    let got = c.u16()?;
    if got != VERSION {
        return Err(Error::Version { got });
    }
    c.u16()?;
    let client = c.u32()?;
    let mut token = [0; 16];
    token.copy_from_slice(c.take(16)?);
    c.done()?;
    Ok(ServerHello { client, token })
}

/// What REPLY and ADOPT begin with, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfRow<'a> {
    pub row: u16,
    pub row_generation: u32,
    /// Frames of the row's answer; nobody has looked at them.
    pub frames: &'a [u8],
}

/// Decodes the payload of REPLY or ADOPT.
pub fn of_row(p: &[u8]) -> Result<OfRow<'_>, Error> {
    let mut c = Cursor { buf: p, at: 0 };
    let row = c.u16()?;
    if c.u16()? != 0 {
        return Err(Error::Value { at: 2 });
    }
    let row_generation = c.u32()?;
    Ok(OfRow { row, row_generation, frames: &p[c.at..] })
}

/// Whether two tokens are equal, in time that does not depend on where they differ.
pub fn token_matches(a: &[u8; 16], b: &[u8; 16]) -> bool {
    let mut diff = 0u8;
    for (x, y) in a.iter().zip(b) {
        diff |= x ^ y;
    }
    std::hint::black_box(diff) == 0
}

/// HELLO as a server process receives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerHello {
    pub slot: u16,
    pub slot_generation: u32,
}

/// Decodes a worker's HELLO.
pub fn hello_worker(p: &[u8]) -> Result<WorkerHello, Error> {
    let mut c = Cursor { buf: p, at: 0 };
    let got = c.u16()?;
    if got != VERSION {
        return Err(Error::Version { got });
    }
    let slot = c.u16()?;
    let slot_generation = c.u32()?;
    c.done()?;
    Ok(WorkerHello { slot, slot_generation })
}

/// A decoded REQUEST; borrows from the receive buffer.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub row: RowRef,
    /// Microseconds since the epoch, 0 = do not compare.
    pub script_mtime: u64,
    /// Bytes of the body for inline and descriptor bodies.
    pub body_len: u64,
    /// The body comes as a descriptor.
    pub body_fd: bool,
    /// BODY frames follow.
    pub body_stream: bool,
    /// The response must not come as a FILE.
    pub no_file: bool,
    /// The answer comes in REPLY frames.
    pub lane: bool,
    /// Milliseconds the application may take; 0 = what the group says, `u32::MAX` = any time.
    pub timeout: u32,
    /// Inline body.
    pub body: &'a [u8],
    environ: &'a [u8],
    noted: [Option<&'a [u8]>; NOTED.len()],
}

/// The key of an environ entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// Index into [`keys::NAMES`], never 0.
    Known(u8),
    Named(&'a [u8]),
}

/// Keys that a worker asks for by name, in each request: their values are noted while all entries are checked.
const NOTED: [u8; 7] = [
    keys::REQUEST_METHOD,
    keys::REQUEST_URI,
    keys::SCRIPT_NAME,
    keys::PATH_INFO,
    keys::SCRIPT_FILENAME,
    keys::MW_CALLABLE_OBJECT,
    keys::MW_HANDLER_SCRIPT,
];

/// Where [`NOTED`] has `id`.
#[inline]
fn note(id: u8) -> Option<usize> {
    const PLACES: [u8; 256] = {
        let mut places = [u8::MAX; 256];
        let mut i = 0;
        while i < NOTED.len() {
            places[NOTED[i] as usize] = i as u8;
            i += 1;
        }
        places
    };
    match PLACES[id as usize] {
        u8::MAX => None,
        place => Some(place as usize),
    }
}

/// Decodes a REQUEST. All entries are checked here, so that [`Request::entries`] cannot fail.
pub fn request(h: Header, p: &[u8]) -> Result<Request<'_>, Error> {
    let mut c = Cursor { buf: p, at: 0 };
    let slot_generation = c.u32()?;
    let row = c.u16()?;
    let entries = c.u16()?;
    let row_generation = c.u32()?;
    let client = c.u32()?;
    let script_mtime = c.u64()?;
    let body_len = c.u64()?;
    let environ_len = c.u32()? as usize;
    let timeout = c.u32()?;
    debug_assert_eq!(c.at, REQUEST_FIXED);
    if environ_len > limits::MAX_ENVIRON || entries as usize > limits::MAX_ENTRIES {
        return Err(Error::Value { at: 32 });
    }
    let environ = c.take(environ_len)?;
    let body = &p[c.at..];
    let has = |flag| h.flags & flag != 0;
    let (body_fd, body_stream) = (has(flags::BODY_FD), has(flags::BODY_STREAM));
    let (no_file, lane) = (has(flags::NO_FILE), has(flags::LANE));
    if body_fd || body_stream {
        c.done()?;
    } else if body.len() as u64 != body_len || body.len() > limits::MAX_INLINE_BODY {
        return Err(Error::Value { at: 24 });
    }
    let mut e = Cursor { buf: environ, at: 0 };
    let mut noted = [None; NOTED.len()];
    for _ in 0..entries {
        if let (Key::Known(id), value) = entry(&mut e).map_err(|e| shift(e, REQUEST_FIXED))?
            && let Some(place) = note(id)
        {
            noted[place] = Some(value);
        }
    }
    e.done().map_err(|e| shift(e, REQUEST_FIXED))?;
    let row = RowRef { slot_generation, row, row_generation, client };
    Ok(Request { row, script_mtime, body_len, body_fd, body_stream, no_file, lane, timeout, body, environ, noted })
}

fn shift(e: Error, by: usize) -> Error {
    match e {
        Error::Truncated { at } => Error::Truncated { at: at + by },
        Error::Trailing { at } => Error::Trailing { at: at + by },
        Error::Value { at } => Error::Value { at: at + by },
        other => other,
    }
}

fn entry<'a>(c: &mut Cursor<'a>) -> Result<(Key<'a>, &'a [u8]), Error> {
    let at = c.at;
    let id = c.u8()?;
    let key = if id == 0 {
        let n = c.u16()? as usize;
        if n > limits::MAX_KEY {
            return Err(Error::Value { at });
        }
        Key::Named(c.take(n)?)
    } else if (id as usize) < keys::NAMES.len() {
        Key::Known(id)
    } else {
        return Err(Error::Value { at });
    };
    let n = c.u32()? as usize;
    Ok((key, c.take(n)?))
}

/// The entries of an environ, or of a part of one that [`request`] has checked.
pub fn entries<'a>(environ: &'a [u8]) -> impl Iterator<Item = (Key<'a>, &'a [u8])> + use<'a> {
    let mut c = Cursor { buf: environ, at: 0 };
    std::iter::from_fn(move || if c.at < c.buf.len() { entry(&mut c).ok() } else { None })
}

impl<'a> Request<'a> {
    /// The environ entries in the order they were sent; a later entry of the same key wins.
    pub fn entries(&self) -> impl Iterator<Item = (Key<'a>, &'a [u8])> + use<'a> {
        self.entries_from(0)
    }

    /// The entries after the first `at` bytes, which must be whole entries.
    pub fn entries_from(&self, at: usize) -> impl Iterator<Item = (Key<'a>, &'a [u8])> + use<'a> {
        entries(self.environ.get(at..).unwrap_or_default())
    }

    /// All entries as they came. Requests whose environs begin with the same bytes, up to the end of an entry, begin with
    /// the same entries.
    pub fn environ(&self) -> &'a [u8] {
        self.environ
    }

    /// The first entries, as many as have keys of [`keys::CONSTANT`], as they came: the next request is likely to begin
    /// with the same bytes.
    pub fn beginning(&self) -> &'a [u8] {
        let constant = self.entries().map_while(|(key, value)| match key {
            Key::Known(id) if keys::CONSTANT.contains(&id) => Some(size_of::<u8>() + size_of::<u32>() + value.len()),
            _ => None,
        });
        &self.environ[..constant.sum()]
    }

    /// The last value of the known key `id`.
    pub fn get(&self, id: u8) -> Option<&'a [u8]> {
        if let Some(place) = note(id) {
            return self.noted[place];
        }
        self.entries().filter(|(k, _)| *k == Key::Known(id)).map(|(_, v)| v).last()
    }
}

/// A decoded RESPONSE; borrows from the receive buffer. Content is checked for form only; `core` judges it.
#[derive(Debug, Clone, Copy)]
pub struct Response<'a> {
    pub status: u16,
    pub reason: &'a [u8],
    pub data: &'a [u8],
    /// How long the application has had the request; zero where the worker does not say.
    pub ran: Duration,
    count: u16,
    headers: &'a [u8],
}

/// Decodes a RESPONSE.
pub fn response(p: &[u8]) -> Result<Response<'_>, Error> {
    response_head(p, p.len())?.map(|(r, _)| r).ok_or(Error::Truncated { at: p.len().min(RESPONSE_FIXED) })
}

/// Decodes the head of a RESPONSE of `total` bytes of payload, of which the first are `p`, and says how many of them it
/// takes: data follows, the part that is there as [`Response::data`]. `Ok(None)`: the head is not there whole.
pub fn response_head(p: &[u8], total: usize) -> Result<Option<(Response<'_>, usize)>, Error> {
    if p.len() < RESPONSE_FIXED {
        return if total < RESPONSE_FIXED { Err(Error::Truncated { at: p.len() }) } else { Ok(None) };
    }
    let mut c = Cursor { buf: p, at: 0 };
    let status = c.u16()?;
    let count = c.u16()?;
    let reason_len = c.u16()? as usize;
    let ran = match c.u16()? {
        ms if ms < 0x8000 => Duration::from_millis(ms.into()),
        s => Duration::from_secs((s & 0x7fff).into()),
    };
    let head_len = c.u32()? as usize;
    debug_assert_eq!(c.at, RESPONSE_FIXED);
    if count as usize > limits::MAX_RESPONSE_HEADERS || reason_len > limits::MAX_REASON {
        return Err(Error::Value { at: 2 });
    }
    if head_len > limits::MAX_RESPONSE_HEAD - RESPONSE_FIXED {
        return Err(Error::Value { at: 8 });
    }
    let end = RESPONSE_FIXED + head_len;
    if end > total {
        return Err(Error::Truncated { at: RESPONSE_FIXED });
    }
    if total - end > limits::MAX_DATA {
        return Err(Error::Value { at: end });
    }
    if end > p.len() {
        return Ok(None);
    }
    let head = c.take(head_len)?;
    let data = &p[end..p.len().min(total)];
    let mut h = Cursor { buf: head, at: 0 };
    let reason = h.take(reason_len).map_err(|e| shift(e, RESPONSE_FIXED))?;
    let headers = &head[reason_len..];
    let mut h = Cursor { buf: headers, at: 0 };
    for _ in 0..count {
        field(&mut h).map_err(|e| shift(e, RESPONSE_FIXED + reason_len))?;
    }
    h.done().map_err(|e| shift(e, RESPONSE_FIXED + reason_len))?;
    Ok(Some((Response { status, reason, data, ran, count, headers }, end)))
}

fn field<'a>(c: &mut Cursor<'a>) -> Result<(&'a [u8], &'a [u8]), Error> {
    let n = c.u16()? as usize;
    let v = c.u32()? as usize;
    Ok((c.take(n)?, c.take(v)?))
}

impl<'a> Response<'a> {
    /// Header fields in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut c = Cursor { buf: self.headers, at: 0 };
        let mut left = self.count;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            field(&mut c).ok()
        })
    }
}

/// Decodes FILE: offset and length.
pub fn file(p: &[u8]) -> Result<(u64, u64), Error> {
    let mut c = Cursor { buf: p, at: 0 };
    let (offset, len) = (c.u64()?, c.u64()?);
    c.done()?;
    if offset.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
        return Err(Error::Value { at: 0 });
    }
    Ok((offset, len))
}

/// Decodes LOG: level and text.
pub fn log(p: &[u8]) -> Result<(Level, &[u8]), Error> {
    let (level, text) = p.split_first().ok_or(Error::Truncated { at: 0 })?;
    Ok((Level::from_u8(*level), text))
}

/// Decodes ABORT.
pub fn abort(p: &[u8]) -> Result<AbortReason, Error> {
    match p {
        [n] => AbortReason::from_u8(*n).ok_or(Error::Value { at: 0 }),
        _ => Err(Error::Truncated { at: 0 }),
    }
}
