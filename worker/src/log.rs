//! Text that applications write: cut into lines, made harmless, and sent to the server's error log. Inside a request a
//! line travels as a LOG frame on the request's connection, else over the control socket. Nothing here blocks.

use crate::call;
use crate::shared;
use crate::sys;
use mod_wsgi_wire::frame::Level;
use mod_wsgi_wire::limits;
use std::cell::RefCell;

/// The streams a thread may have an unfinished line on.
const STREAMS: usize = 3;

thread_local! {
    /// Unfinished lines of this thread, by stream.
    static PARTIAL: RefCell<[String; STREAMS]> = const { RefCell::new([String::new(), String::new(), String::new()]) };
}

/// One of the text streams an application sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout = 0,
    Stderr = 1,
    Errors = 2,
}

impl Stream {
    /// The stream with this number; anything else is `wsgi.errors`.
    pub fn from_u8(n: u8) -> Stream {
        match n {
            0 => Stream::Stdout,
            1 => Stream::Stderr,
            _ => Stream::Errors,
        }
    }

    fn level(self) -> Level {
        match self {
            Stream::Stdout => Level::Info,
            Stream::Stderr | Stream::Errors => Level::Warn,
        }
    }
}

/// Takes what an application wrote to a stream; whole lines are sent, the rest is kept for the thread.
pub fn write(stream: Stream, text: &str) {
    if sys::forked() {
        // A child of the application: its own standard error, which the supervisor reads too.
        own_stderr(text);
        return;
    }
    let mut lines = Vec::new();
    PARTIAL.with_borrow_mut(|partial| {
        let held = &mut partial[stream as usize];
        let mut rest = text;
        while let Some((line, after)) = rest.split_once('\n') {
            if held.is_empty() {
                lines.push(line.to_string());
            } else {
                held.push_str(line);
                lines.push(std::mem::take(held));
            }
            rest = after;
        }
        held.push_str(rest);
        if held.len() >= limits::MAX_LOG {
            lines.push(std::mem::take(held));
        }
    });
    for line in lines {
        record(stream.level(), &line);
    }
}

/// Straight to the descriptor: a lock of the parent's may be held for ever in the child of a fork.
fn own_stderr(text: &str) {
    let mut rest = text.as_bytes();
    while let Ok(n) = nix::unistd::write(std::io::stderr(), rest)
        && n < rest.len()
    {
        rest = &rest[n..];
    }
}

/// Sends what is left of a stream's last line.
pub fn flush(stream: Stream) {
    let line = PARTIAL.with_borrow_mut(|p| std::mem::take(&mut p[stream as usize]));
    if !line.is_empty() && !sys::forked() {
        record(stream.level(), &line);
    }
}

/// Sends the unfinished lines of this thread; at the end of a request.
#[inline]
pub fn flush_all() {
    if PARTIAL.with_borrow(|p| p.iter().all(String::is_empty)) {
        return;
    }
    for stream in [Stream::Stdout, Stream::Stderr, Stream::Errors] {
        flush(stream);
    }
}

/// Sends one record, as one line, in pieces of at most 8 KiB.
pub fn record(level: Level, text: &str) {
    let mut rest = text.trim_end_matches(['\r', '\n']);
    if rest.trim().is_empty() {
        return;
    }
    if sys::forked() {
        own_stderr(&format!("{rest}\n"));
        return;
    }
    let conn = call::current_conn();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(fitting(rest));
        rest = more;
        let sent = conn.as_ref().is_some_and(|c| c.log(level, line.as_bytes()));
        if !sent && let Some(shared) = shared::get() {
            shared.log(level, line);
        }
    }
}

/// Bytes of `text` that fit one record, at a character's end. Control characters are escaped by whoever writes the log
/// (httpd, the supervisor), once.
fn fitting(text: &str) -> usize {
    if text.len() <= limits::MAX_LOG {
        return text.len();
    }
    (0..=limits::MAX_LOG).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(text.len())
}
