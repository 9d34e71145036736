//! What each thread of one worker is doing, in a sealed memfd that worker and supervisor share: the line of the request
//! under way, since when, and its phase. It outlives the worker, so that its end can be explained. Nothing is decided by
//! it, and nothing in it is trusted: lengths are bounded and text is made harmless by whoever shows it.

use crate::map::{self, Error, Words};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Bytes of a request line that are kept.
pub const LINE: usize = 256;
/// Words of an entry: phase and length, start, row, reserved, line.
const ENTRY: usize = 4 + LINE / 8;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// None is under way.
    Idle = 0,
    /// Its script is being loaded.
    Loading = 1,
    /// Inside the application.
    Application = 2,
    /// The client, or the server for it, is waited for: more of the request body, or room for the response.
    Client = 3,
}

impl Phase {
    fn from_u8(n: u8) -> Phase {
        match n {
            1 => Phase::Loading,
            2 => Phase::Application,
            3 => Phase::Client,
            _ => Phase::Idle,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Idle => "idle",
            Phase::Loading => "loading",
            Phase::Application => "application",
            Phase::Client => "client",
        }
    }
}

/// A request that was under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub phase: Phase,
    /// Microseconds since the epoch.
    pub started: u64,
    pub row: u16,
    pub row_generation: u32,
    /// Method and target, cut to [`LINE`] bytes.
    pub line: Vec<u8>,
}

/// The mapped journal of one worker.
pub struct Journal {
    words: Words,
    threads: u16,
}

impl Journal {
    fn bytes(threads: u16) -> u64 {
        (threads.max(1) as usize * ENTRY * 8) as u64
    }

    /// Makes one (supervisor).
    pub fn create(threads: u16) -> Result<(Journal, OwnedFd), Error> {
        let fd = map::create(Journal::bytes(threads))?;
        Ok((Journal { words: Words::map(&fd, Journal::bytes(threads))?, threads }, fd))
    }

    /// Maps one that was received (worker).
    pub fn open(fd: impl AsFd, threads: u16) -> Result<Journal, Error> {
        Ok(Journal { words: Words::map(fd, Journal::bytes(threads))?, threads })
    }

    fn word(&self, thread: u16, field: usize) -> &std::sync::atomic::AtomicU64 {
        debug_assert!(thread < self.threads);
        self.words.word(thread as usize * ENTRY + field)
    }

    /// Thread `thread` begins a request. Worker only.
    pub fn begin(&self, thread: u16, started: u64, row: u16, row_generation: u32, method: &[u8], target: &[u8]) {
        let mut line = [0u8; LINE];
        let mut len = 0;
        for part in [method, b" ", target] {
            let n = part.len().min(LINE - len);
            line[len..len + n].copy_from_slice(&part[..n]);
            len += n;
        }
        for (i, chunk) in line[..len.next_multiple_of(8)].chunks_exact(8).enumerate() {
            let word = u64::from_le_bytes(*chunk.first_chunk().unwrap_or(&[0; 8]));
            self.word(thread, 4 + i).store(word, Relaxed);
        }
        self.word(thread, 1).store(started, Relaxed);
        self.word(thread, 2).store((row_generation as u64) << 32 | row as u64, Relaxed);
        self.word(thread, 0).store((len as u64) << 8 | Phase::Application as u64, Release);
    }

    /// Changes the phase of the request under way. Worker only.
    pub fn phase(&self, thread: u16, phase: Phase) {
        let word = self.word(thread, 0);
        word.store(word.load(Relaxed) & !0xff | phase as u64, Release);
    }

    /// The request under way in `thread`. Anyone; torn while the worker writes.
    pub fn entry(&self, thread: u16) -> Option<Entry> {
        let word = self.word(thread, 0).load(Acquire);
        let phase = Phase::from_u8(word as u8);
        if phase == Phase::Idle {
            return None;
        }
        let len = ((word >> 8) as usize & 0xffff).min(LINE);
        let mut line = Vec::with_capacity(LINE);
        for i in 0..len.div_ceil(8) {
            line.extend_from_slice(&self.word(thread, 4 + i).load(Relaxed).to_le_bytes());
        }
        line.truncate(len);
        let at = self.word(thread, 2).load(Relaxed);
        let started = self.word(thread, 1).load(Relaxed);
        Some(Entry { phase, started, row: at as u16, row_generation: (at >> 32) as u32, line })
    }

    /// All requests under way.
    pub fn entries(&self) -> Vec<Entry> {
        (0..self.threads).filter_map(|t| self.entry(t)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_worker_writes_the_supervisor_reads() {
        let (mine, fd) = Journal::create(2).unwrap();
        let theirs = Journal::open(&fd, 2).unwrap();
        assert!(mine.entries().is_empty());
        theirs.begin(1, 7, 3, 9, b"GET", b"/a?b");
        theirs.phase(1, Phase::Client);
        let entry = Entry { phase: Phase::Client, started: 7, row: 3, row_generation: 9, line: b"GET /a?b".to_vec() };
        assert_eq!(mine.entries(), [entry]);
        theirs.begin(1, 8, 3, 10, b"GET", &[b'x'; 1000]);
        assert_eq!(mine.entry(1).unwrap().line.len(), LINE);
        theirs.phase(1, Phase::Idle);
        assert!(mine.entry(1).is_none());
    }

    #[test]
    fn garbage_is_bounded_and_the_size_is_checked() {
        let (journal, fd) = Journal::create(1).unwrap();
        for i in 0..ENTRY {
            journal.word(0, i).store(u64::MAX, Relaxed);
        }
        assert!(journal.entry(0).is_none(), "no such phase");
        journal.word(0, 0).store(u64::MAX << 8 | 2, Relaxed);
        assert_eq!(journal.entry(0).unwrap().line, vec![0xff; LINE]);
        assert!(Journal::open(&fd, 2).is_err());
    }
}
