//! Lines in the server's error log, in its format, on descriptor 2. The supervisor replaces that descriptor at each
//! configuration, so that log rotation keeps working. One record is one line: control characters are escaped as httpd
//! does it. A log pipe that is full never holds the thread for long: lines are dropped and counted.

use crate::sys;
use mod_wsgi_wire::frame::Level;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest text of one line, bytes before the prefix; httpd's own limit.
const MAX_TEXT: usize = 8 * 1024;
/// A pipe that polls writable takes this many bytes at once (PIPE_BUF).
const PIECE: usize = 4096;
/// How long the first line waits for a full pipe, milliseconds. Lines after it do not wait until one got through.
const PATIENCE: u16 = 100;

/// Writes log lines of this process and of the workers.
pub struct Log {
    level: Level,
    pid: u32,
    dropped: u64,
}

impl Log {
    /// A log that writes everything up to `level`.
    pub fn new(level: Level) -> Log {
        Log { level, pid: std::process::id(), dropped: 0 }
    }

    /// Sets the least severe level that is written.
    pub fn set_level(&mut self, level: Level) {
        self.level = level;
    }

    /// An event of this process. Warnings and above begin with their code.
    pub fn event(&mut self, level: Level, text: &str) {
        if level <= self.level {
            self.write(level, self.pid, text.as_bytes());
        }
    }

    /// A line of process `pid`, filtered by level unless `always`.
    pub fn line(&mut self, level: Level, pid: u32, text: &[u8], always: bool) {
        if always || level <= self.level {
            self.write(level, pid, text);
        }
    }

    fn write(&mut self, level: Level, pid: u32, text: &[u8]) {
        if self.dropped > 0 {
            let note = format!("MWR0302: {} lines were lost because the error log did not take them", self.dropped);
            let line = format_line(SystemTime::now(), Level::Warn, self.pid, note.as_bytes());
            if !put(line.as_bytes(), 0) {
                self.dropped += 1;
                return;
            }
            self.dropped = 0;
        }
        if !put(format_line(SystemTime::now(), level, pid, text).as_bytes(), PATIENCE) {
            self.dropped += 1;
        }
    }
}

/// Writes all of `bytes` to descriptor 2, waiting at most `patience` ms for room before each piece.
fn put(bytes: &[u8], patience: u16) -> bool {
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut fds = [PollFd::new(sys::stderr(), PollFlags::POLLOUT)];
        match poll(&mut fds, PollTimeout::from(patience)) {
            Ok(0) => return false,
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return false,
        }
        match nix::unistd::write(sys::stderr(), &rest[..rest.len().min(PIECE)]) {
            Ok(n) => rest = &rest[n..],
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    true
}

/// `[Mon Nov 23 07:01:24.123456 2026] [wsgi:warn] [pid 12] text` and a newline.
pub fn format_line(time: SystemTime, level: Level, pid: u32, text: &[u8]) -> String {
    const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (year, month, day, weekday, h, m, s) = sys::local_time(since.as_secs() as i64);
    let name = level_name(level);
    let mut out = String::with_capacity(text.len() + 80);
    let (wd, mon, us) = (DAYS[weekday], MONTHS[month], since.subsec_micros());
    let _ = write!(out, "[{wd} {mon} {day:02} {h:02}:{m:02}:{s:02}.{us:06} {year}] [wsgi:{name}] [pid {pid}] ");
    escape(&mut out, text);
    out.push('\n');
    out
}

/// Name of a level as httpd writes it.
pub fn level_name(level: Level) -> &'static str {
    match level {
        Level::Crit => "crit",
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Notice => "notice",
        Level::Info => "info",
        Level::Debug => "debug",
    }
}

/// Appends `text` with control characters, backslashes and bytes that are no UTF-8 escaped. Longer text keeps its
/// beginning and its end: the end of a traceback says what was wrong.
pub fn escape(out: &mut String, text: &[u8]) {
    if text.len() <= MAX_TEXT {
        return escape_all(out, text);
    }
    escape_all(out, &text[..MAX_TEXT / 4]);
    let _ = write!(out, " [{} bytes left out] ", text.len() - MAX_TEXT);
    escape_all(out, &text[text.len() - MAX_TEXT / 4 * 3..]);
}

fn escape_all(out: &mut String, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\\' => out.push_str("\\\\"),
                // Separators that some viewers take for line ends.
                '\u{2028}' | '\u{2029}' => out.extend(c.escape_unicode()),
                c if c.is_control() && (c as u32) < 0x100 => {
                    let _ = write!(out, "\\x{:02x}", c as u32);
                }
                c => out.push(c),
            }
        }
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
}

/// Cuts a byte stream into lines; a line without an end is given in pieces of at most `MAX_TEXT` bytes.
#[derive(Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Adds `bytes` and gives every whole line to `each`, without its end. Empty lines are left out.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        let mut bytes = bytes;
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.rest.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            self.end(&mut each);
        }
        self.rest.extend_from_slice(bytes);
        if self.rest.len() >= MAX_TEXT {
            self.end(each);
        }
    }

    /// Gives what has come without a line end.
    pub fn end(&mut self, mut each: impl FnMut(&[u8])) {
        let line = std::mem::take(&mut self.rest);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if !line.is_empty() {
            each(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn escaped(text: &[u8]) -> String {
        let mut out = String::new();
        escape(&mut out, text);
        out
    }

    #[test]
    fn a_record_is_one_line_whatever_it_contains() {
        assert_eq!(escaped(b"a\nb\r\tc\\d \"q\""), "a\\nb\\r\\tc\\\\d \"q\"");
        assert_eq!(escaped(b"\x1b[31m\x00\x7f"), "\\x1b[31m\\x00\\x7f");
        assert_eq!(escaped("grün \u{85}\u{2028}".as_bytes()), "grün \\x85\\u{2028}");
        assert_eq!(escaped(b"\xff\xfea"), "\\xff\\xfea");
        let long = escaped(&[b"start ".to_vec(), vec![b'x'; 20_000], b" end".to_vec()].concat());
        assert!(long.starts_with("start ") && long.ends_with(" end") && long.len() < 9000);
        assert!(long.contains("bytes left out"));
    }

    #[test]
    fn lines_look_like_those_of_the_server() {
        let line = format_line(UNIX_EPOCH + Duration::from_micros(1_500_000_000_123_456), Level::Warn, 42, b"hello");
        assert!(line.contains(".123456 2017] [wsgi:warn] [pid 42] hello\n"), "{line}");
        assert!(line.starts_with("[Fri Jul 14 ") || line.starts_with("[Thu Jul 13 "), "{line}");
    }

    #[test]
    fn streams_are_cut_into_lines() {
        let mut lines = Lines::default();
        let mut got: Vec<Vec<u8>> = Vec::new();
        for piece in [&b"one\ntw"[..], b"o\r\n\n", b"thr"] {
            lines.push(piece, |l| got.push(l.to_vec()));
        }
        lines.end(|l| got.push(l.to_vec()));
        assert_eq!(got, [&b"one"[..], b"two", b"thr"]);
        got.clear();
        lines.push(&[b'x'; 10_000], |l| got.push(l.to_vec()));
        assert_eq!(got.len(), 1);
    }
}
