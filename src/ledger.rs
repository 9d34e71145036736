//! How many bytes of temporary files all processes of this server hold, in a mapping that they share: made in the
//! parent at each (re)start, inherited by the children. Each process counts in a cell of its own, so that the bytes of
//! one that was killed are found and given back.
#![allow(unsafe_code)]

use mod_wsgi_core::spool::Account;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Pid, test_kill_process};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Processes with a cell of their own; beyond them processes share the last cell, whose bytes are not given back when
/// one of them is killed.
const CELLS: usize = 4096;

/// Zeroed memory is a valid free cell.
struct Cell {
    /// 0 = free.
    pid: AtomicU32,
    bytes: AtomicU64,
}

/// The bytes of all processes of one generation of the server.
pub struct Ledger {
    cells: &'static [Cell; CELLS],
    limit: u64,
    mine: OnceLock<usize>,
}

impl Ledger {
    /// A new ledger; up to `limit` bytes may be held at once. Runs in the parent.
    pub fn new(limit: u64) -> std::io::Result<Ledger> {
        // SAFETY: a fresh mapping of the size of the array, zeroed, never unmapped before this value is dropped; all
        // its fields are atomics, for which zero is valid and which other processes may change.
        let cells = unsafe {
            let len = size_of::<[Cell; CELLS]>();
            let p = mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)?;
            &*p.cast::<[Cell; CELLS]>()
        };
        Ok(Ledger { cells, limit, mine: OnceLock::new() })
    }

    /// Takes a cell for this process, in child_init or at the first use.
    fn mine(&self) -> &Cell {
        let index = *self.mine.get_or_init(|| {
            let pid = std::process::id();
            let free = |c: &Cell| c.pid.compare_exchange(0, pid, Relaxed, Relaxed).is_ok();
            let own = &self.cells[..CELLS - 1];
            own.iter()
                .position(free)
                .or_else(|| {
                    self.bury();
                    own.iter().position(free)
                })
                .unwrap_or(CELLS - 1)
        });
        &self.cells[index]
    }

    fn total(&self) -> u64 {
        self.cells.iter().fold(0, |sum, c| sum.saturating_add(c.bytes.load(Relaxed)))
    }

    /// Frees the cells of processes that have gone.
    fn bury(&self) {
        for c in &self.cells[..CELLS - 1] {
            let pid = c.pid.load(Relaxed);
            let gone = Pid::from_raw(pid as i32).is_some_and(|p| test_kill_process(p) == Err(Errno::SRCH));
            if gone {
                c.bytes.store(0, Relaxed);
                // Last: from here on another process may count in it.
                let _ = c.pid.compare_exchange(pid, 0, Relaxed, Relaxed);
            }
        }
    }
}

impl Account for Ledger {
    fn reserve(&self, bytes: u64) -> bool {
        let cell = self.mine();
        // Counted first: of two that come at once, both may be refused, but the limit holds.
        cell.bytes.fetch_add(bytes, Relaxed);
        if self.total() <= self.limit {
            return true;
        }
        self.bury();
        if self.total() <= self.limit {
            return true;
        }
        cell.bytes.fetch_sub(bytes, Relaxed);
        false
    }

    fn release(&self, bytes: u64) {
        self.mine().bytes.fetch_sub(bytes, Relaxed);
    }

    fn limit(&self) -> u64 {
        self.limit
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; nobody refers to it beyond this value. Other processes have their own
        // view of it.
        let _ = unsafe { munmap(std::ptr::from_ref(self.cells).cast_mut().cast(), size_of::<[Cell; CELLS]>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_for_all_and_a_dead_process_gives_back() {
        let ledger = Ledger::new(100).unwrap();
        assert!(ledger.reserve(60));
        assert!(!ledger.reserve(41));
        assert!(ledger.reserve(40));
        ledger.release(60);
        // A process that has ended while it held bytes.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        ledger.cells[7].pid.store(pid, Relaxed);
        ledger.cells[7].bytes.store(50, Relaxed);
        child.wait().unwrap();
        assert!(ledger.reserve(60), "the dead one's bytes are free");
        assert_eq!(ledger.cells[7].pid.load(Relaxed), 0);
        assert_eq!(ledger.total(), 100);
        // One that lives keeps its bytes.
        ledger.cells[8].pid.store(1, Relaxed);
        ledger.cells[8].bytes.store(50, Relaxed);
        assert!(!ledger.reserve(1));
    }
}
