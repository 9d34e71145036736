//! The request body of a buffered group: announced, admitted, read whole before a worker hears of the request.

use crate::brigade::{Brigade, Piece};
use crate::request::Request;
use mod_wsgi_core::spool::{Held, Store, reopened};
use mod_wsgi_wire::limits::MAX_INLINE_BODY;
use std::io;
use std::os::fd::OwnedFd;

/// Bytes asked of the input filters at a time.
const PIECE: usize = 64 * 1024;
/// The unit of writing to a file.
const PAGE: usize = 4096;
/// More unread body than this is not worth reading for the sake of keep-alive.
pub const WORTH_READING: u64 = 64 * 1024;

/// What the head says of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    Length(u64),
    Chunked,
}

/// The body, whole.
pub enum Received<'s> {
    Nothing,
    Inline(Vec<u8>),
    /// Open for reading only, its length, and what holds its bytes.
    File(OwnedFd, u64, #[allow(dead_code, reason = "held until the request ends")] Held<'s>),
    /// Still with the client: the application reads it while it comes.
    Streamed(Announced),
}

impl Received<'_> {
    pub fn len(&self) -> u64 {
        match self {
            Received::Nothing => 0,
            Received::Inline(b) => b.len() as u64,
            Received::File(_, n, _) => *n,
            Received::Streamed(_) => 0,
        }
    }
}

/// Looks at Transfer-Encoding and Content-Length and applies LimitRequestBody; `Err` is the status to answer.
pub fn announced(r: &Request<'_>) -> Result<Option<Announced>, u16> {
    if r.has_no_body_of_its_own() {
        return Ok(None);
    }
    let headers = r.headers_in();
    if let Some(coding) = headers.get(c"Transfer-Encoding") {
        return if coding.eq_ignore_ascii_case(b"chunked") { Ok(Some(Announced::Chunked)) } else { Err(501) };
    }
    let Some(text) = headers.get(c"Content-Length") else { return Ok(None) };
    let digits = !text.is_empty() && text.len() < 20 && text.iter().all(u8::is_ascii_digit);
    let length = std::str::from_utf8(text).ok().filter(|_| digits).and_then(|t| t.parse::<u64>().ok());
    let Some(length) = length else { return Err(400) };
    if r.body_limit().is_some_and(|limit| length > limit) {
        if length > WORTH_READING {
            r.close_after();
        }
        return Err(413);
    }
    Ok((length > 0).then_some(Announced::Length(length)))
}

/// Reads the body. The outer error is the status to answer (0: the client has gone), the inner one says that it could
/// not be stored.
pub fn read<'s>(r: &Request<'_>, announced: Announced, store: Store<'s>) -> Result<io::Result<Received<'s>>, u16> {
    let mut brigade = Brigade::new(*r);
    let mut memory = Vec::new();
    if let Announced::Length(n) = announced {
        memory.reserve_exact(if n <= MAX_INLINE_BODY as u64 { n as usize } else { 0 });
    }
    let mut file = None;
    if let Announced::Length(n) = announced
        && n > MAX_INLINE_BODY as u64
    {
        // Where it has no room is known before any of it is read, or asked for.
        match Held::new(store, n) {
            Ok(held) => file = Some(held),
            Err(e) => {
                r.close_after();
                return Ok(Err(e));
            }
        }
    }
    // Filters give a few kilobytes at a time: the file is written in larger pieces, of whole pages.
    let mut stored = 0u64;
    loop {
        let done = brigade.read(PIECE, true, |bytes| {
            memory.extend_from_slice(bytes);
            if memory.len() <= MAX_INLINE_BODY {
                return Ok(());
            }
            let held = match &mut file {
                Some(held) => held,
                None => file.insert(Held::new(store, memory.len() as u64)?),
            };
            let pages = memory.len() & !(PAGE - 1);
            held.write_at(&memory[..pages], stored)?;
            stored += pages as u64;
            memory.drain(..pages);
            Ok(())
        });
        match done {
            Err(e) => {
                if e.0 == 413 {
                    r.close_after();
                }
                return Err(e.0);
            }
            Ok(Err(e)) => {
                r.close_after();
                return Ok(Err(e));
            }
            Ok(Ok(Piece::Some | Piece::Nothing)) => {}
            Ok(Ok(Piece::End)) => break,
        }
    }
    // Filters may have changed the length (inflation): what has come counts. httpd reports a body cut short by itself.
    Ok(match file {
        Some(mut held) => held.write_at(&memory, stored).and_then(|()| {
            let fd = reopened(held.file())?;
            Ok(Received::File(fd, stored + memory.len() as u64, held))
        }),
        None => Ok(Received::Inline(memory)),
    })
}
