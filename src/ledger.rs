//! How many bytes of temporary files all processes of this server hold, in a mapping that they share: made in the
//! parent at each (re)start, inherited by the children. Each process counts in a cell of its own, so that the bytes of
//! one that was killed are found and given back.
#![allow(unsafe_code)]

use mod_wsgi_core::spool::Account;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Pid, test_kill_process};
use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

/// Processes with a cell of their own; beyond them processes share the last cell, whose bytes are not given back when
/// one of them is killed.
const CELLS: usize = 4096;

/// The pid of a cell that is being freed; no process has it.
const BURIED: u32 = u32::MAX;

/// Zeroed memory is a valid free cell.
struct Cell {
    /// 0 = free.
    pid: AtomicU32,
    bytes: AtomicU64,
}

impl Cell {
    /// Frees the cell of `pid`, which counts in it no more. Of several processes that try, one does it: another would
    /// wipe what the next owner has counted meanwhile.
    fn free(&self, pid: u32) {
        if self.pid.compare_exchange(pid, BURIED, AcqRel, Relaxed).is_ok() {
            self.bytes.store(0, Relaxed);
            // Last: from here on another process may count in it.
            self.pid.store(0, Release);
        }
    }
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
            let free = |c: &Cell| c.pid.compare_exchange(0, pid, Acquire, Relaxed).is_ok();
            let own = &self.cells[..CELLS - 1];
            // Left by a dead process whose number this one has got: nobody would ever find it dead again.
            for c in own.iter().filter(|c| c.pid.load(Relaxed) == pid) {
                c.free(pid);
            }
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
            if pid == 0 || pid == BURIED {
                continue;
            }
            let gone = Pid::from_raw(pid as i32).is_some_and(|p| test_kill_process(p) == Err(Errno::SRCH));
            if gone {
                c.free(pid);
            }
        }
    }
}

impl Account for Ledger {
    fn reserve(&self, bytes: u64) -> bool {
        if bytes > self.limit {
            // Not to be added even for a moment: such a sum could pass the largest number, and begin again at zero.
            return false;
        }
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
    fn a_huge_length_beside_others_is_refused() {
        let ledger = Ledger::new(100).unwrap();
        // What another thread has added and not taken back yet.
        ledger.mine().bytes.store(1 << 63, Relaxed);
        assert!(!ledger.reserve(1 << 63));
        assert_eq!(ledger.total(), 1 << 63);
    }

    #[test]
    fn a_pid_that_comes_again_does_not_keep_the_bytes_of_the_dead() {
        let ledger = Ledger::new(100).unwrap();
        ledger.cells[7].pid.store(std::process::id(), Relaxed);
        ledger.cells[7].bytes.store(90, Relaxed);
        assert!(ledger.reserve(50));
        assert_eq!(ledger.total(), 50);
    }

    #[test]
    fn a_cell_is_freed_by_one_of_many() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let ledger = Ledger::new(u64::MAX).unwrap();
        let cell = &ledger.cells[0];
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    while !stop.load(Relaxed) {
                        ledger.bury();
                    }
                });
            }
            let own = std::process::id();
            let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
            let mut wiped = 0;
            while std::time::Instant::now() < until {
                // The next owner takes the cell as soon as it is free, and counts.
                while cell.pid.compare_exchange(0, own, Acquire, Relaxed).is_err() {
                    std::hint::spin_loop();
                }
                cell.bytes.fetch_add(5, Relaxed);
                std::thread::yield_now();
                wiped += u32::from(cell.bytes.load(Relaxed) != 5);
                cell.bytes.store(9, Relaxed);
                cell.pid.store(dead, Release);
            }
            stop.store(true, Relaxed);
            assert_eq!(wiped, 0);
        });
    }

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
