//! The table as its users see it: slots, rows, pool state. Which process may call what is said at each method.

use crate::layout::{self, header, slot};
use crate::map::{self, Error, Words};
use crate::row::{self, ClientId, RowState, RowWord};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// Size of a table; fixed for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Worker processes that may exist at once (current, starting, draining).
    pub slots: u16,
    /// Serving threads of a worker.
    pub threads: u16,
    /// Requests that may be in a worker, running or waiting.
    pub rows: u16,
}

impl Shape {
    /// The shape for `processes` workers of `threads` threads with `queue_limit` waiting requests over all of them.
    /// Spare slots let old and new workers overlap, and a former supervisor's workers drain.
    pub fn for_group(processes: u16, threads: u16, queue_limit: u32) -> Shape {
        let processes = processes.clamp(1, (layout::MAX_SLOTS - 4) / 2);
        let share = queue_limit.div_ceil(processes as u32).min(layout::MAX_ROWS as u32) as u16;
        let threads = threads.clamp(1, layout::MAX_ROWS);
        let rows = threads.saturating_add(share).min(layout::MAX_ROWS);
        Shape { slots: processes * 2 + 4, threads, rows }
    }

    fn row_words(self) -> usize {
        (self.rows as usize).next_multiple_of(layout::LINE_WORDS)
    }

    /// Bytes of a table of this shape.
    pub fn bytes(self) -> Result<u64, Error> {
        let (slots, rows) = (self.slots, self.rows);
        if slots == 0 || slots > layout::MAX_SLOTS || rows == 0 || rows > layout::MAX_ROWS || self.threads == 0 {
            return Err(Error::Shape { slots, rows });
        }
        let words = layout::HEADER_WORDS + slots as usize * (layout::SLOT_WORDS + self.row_words());
        Ok((words * 8) as u64)
    }
}

/// State of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotState {
    /// No worker. All rows are CLOSED.
    Empty = 0,
    /// A worker is starting; rows are CLOSED until it is ready.
    Starting = 1,
    /// Requests may be sent.
    Ready = 2,
    /// No new request; ends when all rows are CLOSED.
    Draining = 3,
    /// The process is dead; rows are being released.
    Dead = 4,
}

/// What a request without a ready worker may expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PoolState {
    /// Workers are there or being started: wait.
    Active = 0,
    /// No worker runs; the first request sets the wanted mark, and one is started.
    Idle = 1,
    /// Workers cannot be started at present (back-off): 503 at once.
    Failed = 2,
    /// Another table has taken over: ask the supervisor for it.
    Retired = 3,
}

/// A row taken for one request: everything its holder needs to send, recall and recognise it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub slot: u16,
    pub slot_generation: u32,
    pub row: u16,
    pub word: RowWord,
}

/// A mapped table.
pub struct Table {
    words: Words,
    shape: Shape,
}

impl Table {
    /// Makes a table (supervisor). All slots are EMPTY with generation 0, all rows CLOSED.
    pub fn create(shape: Shape) -> Result<(Table, OwnedFd), Error> {
        let fd = map::create(shape.bytes()?)?;
        let table = Table { words: Words::map(&fd, shape.bytes()?)?, shape };
        for s in 0..shape.slots {
            for r in 0..shape.rows {
                table.row(s, r).store(RowWord { generation: 0, state: RowState::Closed, client: 0 }.pack(), SeqCst);
            }
        }
        let word = shape.slots as u64 | (shape.threads as u64) << 16 | (shape.rows as u64) << 32;
        table.words.word(header::SHAPE).store(word, SeqCst);
        table.words.word(header::MAGIC).store(layout::MAGIC, SeqCst);
        Ok((table, fd))
    }

    /// Whether what is never written again is as [`Table::create`] left it.
    pub fn is_intact(&self) -> bool {
        let s = self.shape;
        let word = s.slots as u64 | (s.threads as u64) << 16 | (s.rows as u64) << 32;
        self.words.word(header::MAGIC).load(SeqCst) == layout::MAGIC
            && self.words.word(header::SHAPE).load(SeqCst) == word
    }

    /// Maps a received table. The shape comes with the message that carried the descriptor, not from the content.
    pub fn open(fd: impl AsFd, shape: Shape) -> Result<Table, Error> {
        let table = Table { words: Words::map(fd, shape.bytes()?)?, shape };
        if table.words.word(header::MAGIC).load(SeqCst) != layout::MAGIC {
            return Err(Error::Magic);
        }
        Ok(table)
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    fn slot_word(&self, s: u16, field: usize) -> &AtomicU64 {
        self.words.word(layout::HEADER_WORDS + s as usize * layout::SLOT_WORDS + field)
    }

    /// The word of row `r` of slot `s`.
    pub fn row(&self, s: u16, r: u16) -> &AtomicU64 {
        debug_assert!(s < self.shape.slots && r < self.shape.rows);
        let rows = layout::HEADER_WORDS + self.shape.slots as usize * layout::SLOT_WORDS;
        self.words.word(rows + s as usize * self.shape.row_words() + r as usize)
    }

    // --- slots -----------------------------------------------------------------------------------------------

    /// Generation and state of slot `s`. Anyone.
    pub fn slot(&self, s: u16) -> (u32, SlotState) {
        let w = self.slot_word(s, slot::STATE).load(SeqCst);
        let state = match (w >> 24) as u8 {
            0 => SlotState::Empty,
            1 => SlotState::Starting,
            2 => SlotState::Ready,
            3 => SlotState::Draining,
            _ => SlotState::Dead,
        };
        ((w >> 32) as u32, state)
    }

    /// Sets state and generation of slot `s`. Supervisor only.
    pub fn set_slot(&self, s: u16, generation: u32, state: SlotState) {
        self.slot_word(s, slot::STATE).store((generation as u64) << 32 | (state as u64) << 24, SeqCst);
    }

    /// Gives an EMPTY slot to a new worker: STARTING with the next generation, counters zeroed. Supervisor only.
    /// Rows stay CLOSED until [`Table::open_rows`].
    pub fn begin_slot(&self, s: u16) -> u32 {
        let generation = self.slot(s).0.wrapping_add(1).max(1);
        for f in 1..layout::SLOT_WORDS {
            self.slot_word(s, f).store(0, SeqCst);
        }
        self.set_slot(s, generation, SlotState::Starting);
        generation
    }

    /// The worker is ready: rows CLOSED → FREE, then the slot READY. Supervisor only.
    pub fn open_rows(&self, s: u16, generation: u32) {
        self.slot_word(s, slot::IN_USE).store(0, SeqCst);
        self.slot_word(s, slot::RUNNING).store(0, SeqCst);
        for r in 0..self.shape.rows {
            row::reopen(self.row(s, r));
        }
        self.set_slot(s, generation, SlotState::Ready);
    }

    /// One sweep of draining: FREE rows are CLOSED. The slot must be DRAINING already (a worker that frees a row looks
    /// at that). Gives the number of rows not yet CLOSED. Supervisor only; repeat until 0.
    pub fn drain_rows(&self, s: u16) -> usize {
        (0..self.shape.rows)
            .filter(|r| !(row::close(self.row(s, *r)) || self.row_at(s, *r).state == RowState::Closed))
            .count()
    }

    /// One sweep over the rows of a DEAD slot: FREE and RUNNING → CLOSED, SENT of departed clients too. Gives the
    /// number of rows whose living client has not recalled them yet. Supervisor only; repeat until 0, then EMPTY.
    pub fn bury_rows(&self, s: u16, gone: impl Fn(ClientId) -> bool) -> usize {
        (0..self.shape.rows)
            .filter(|r| {
                row::release_departed(self.row(s, *r), &gone);
                !row::bury(self.row(s, *r))
            })
            .count()
    }

    /// SENT rows of departed clients → FREE. Supervisor only. Gives how many.
    pub fn release_departed(&self, s: u16, gone: impl Fn(ClientId) -> bool) -> usize {
        let n = (0..self.shape.rows).filter(|r| row::release_departed(self.row(s, *r), &gone)).count();
        for _ in 0..n {
            self.drop_in_use(s);
        }
        n
    }

    /// A row's word. Anyone.
    pub fn row_at(&self, s: u16, r: u16) -> RowWord {
        row::read(self.row(s, r))
    }

    /// Counts rows by state: (SENT, RUNNING). Anyone; a snapshot that may be torn.
    pub fn count_rows(&self, s: u16) -> (usize, usize) {
        let mut n = (0, 0);
        for r in 0..self.shape.rows {
            match self.row_at(s, r).state {
                RowState::Sent => n.0 += 1,
                RowState::Running => n.1 += 1,
                _ => {}
            }
        }
        n
    }

    /// Repairs the hints of a slot from its rows, for processes killed between a transition and its count. Supervisor
    /// only. `true`: something was repaired; requests go on meanwhile, so look again a little later until it is `false`.
    pub fn repair_hints(&self, s: u16) -> bool {
        let (in_use, running) = (self.slot_word(s, slot::IN_USE), self.slot_word(s, slot::RUNNING));
        let before = (in_use.load(SeqCst), running.load(SeqCst));
        let (sent, run) = self.count_rows(s);
        let rows = ((sent + run) as u64, run as u64);
        // A count that a request has changed since is left alone.
        let fix = |hint: &AtomicU64, seen: u64, right: u64| {
            seen != right && hint.compare_exchange(seen, right, SeqCst, SeqCst).is_ok()
        };
        let first = fix(in_use, before.0, rows.0);
        fix(running, before.1, rows.1) || first
    }

    fn drop_in_use(&self, s: u16) {
        let _ = self.slot_word(s, slot::IN_USE).fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
    }

    /// Rows in use of slot `s`, clamped to its rows. Hint.
    pub fn in_use(&self, s: u16) -> usize {
        (self.slot_word(s, slot::IN_USE).load(Relaxed) as usize).min(self.shape.rows as usize)
    }

    /// Requests inside the application of slot `s`, clamped. Hint.
    pub fn running(&self, s: u16) -> usize {
        (self.slot_word(s, slot::RUNNING).load(Relaxed) as usize).min(self.shape.rows as usize)
    }

    // --- server processes ------------------------------------------------------------------------------------

    /// FREE → SENT in slot `s`, trying row `hint` first. `None`: no free row, or the slot is not READY.
    pub fn take(&self, s: u16, hint: u16, client: ClientId) -> Option<Lease> {
        let (slot_generation, state) = self.slot(s);
        if state != SlotState::Ready {
            return None;
        }
        let rows = self.shape.rows;
        let first = if hint < rows { hint } else { 0 };
        for i in 0..rows {
            let r = if first + i < rows { first + i } else { first + i - rows };
            if let Some(word) = row::take(self.row(s, r), client) {
                self.slot_word(s, slot::IN_USE).fetch_add(1, Relaxed);
                let lease = Lease { slot: s, slot_generation, row: r, word };
                // The slot may have been drained and given to another worker since it was looked at: that one would never
                // claim this. From here on it cannot: a draining slot waits for its rows.
                if self.slot(s).0 != slot_generation {
                    self.recall(&lease);
                    return None;
                }
                return Some(lease);
            }
        }
        None
    }

    /// SENT → FREE by the client that took it. `true` proves that nothing of the request ran or will run; the caller
    /// must close the connection it was sent on.
    pub fn recall(&self, l: &Lease) -> bool {
        let ok = row::recall(self.row(l.slot, l.row), l.word);
        if ok {
            self.drop_in_use(l.slot);
            self.close_if_draining(l);
        }
        ok
    }

    /// Whether the request of `l` has been claimed by the worker and is still under way.
    pub fn is_running(&self, l: &Lease) -> bool {
        let now = self.row_at(l.slot, l.row);
        now.generation == l.word.generation && now.state == RowState::Running
    }

    /// Whether the request of `l` still waits in the worker's socket.
    pub fn is_sent(&self, l: &Lease) -> bool {
        self.row_at(l.slot, l.row) == l.word
    }

    /// Counts an event in the header. `what` is one of [`layout::header`]'s counters.
    pub fn count(&self, what: usize) {
        self.words.word(what).fetch_add(1, Relaxed);
    }

    /// A counter of the header.
    pub fn counter(&self, what: usize) -> u64 {
        self.words.word(what).load(Relaxed)
    }

    /// A request waits for a worker (server processes set it; the supervisor takes it).
    pub fn set_wanted(&self) {
        self.words.word(header::WANTED).store(1, SeqCst);
    }

    /// Takes the wanted mark. Supervisor only.
    pub fn take_wanted(&self) -> bool {
        self.words.word(header::WANTED).swap(0, SeqCst) != 0
    }

    /// Notes how many scripts no ready worker could load. Supervisor only.
    pub fn set_unloaded(&self, scripts: u64) {
        self.words.word(header::UNLOADED).store(scripts, Relaxed);
    }

    /// Notes whether load balancers shall send nothing here. Supervisor only.
    pub fn set_away(&self, away: bool) {
        self.words.word(header::AWAY).store(away.into(), Relaxed);
    }

    /// State of the pool.
    pub fn pool(&self) -> PoolState {
        match self.words.word(header::POOL).load(SeqCst) as u8 {
            0 => PoolState::Active,
            1 => PoolState::Idle,
            2 => PoolState::Failed,
            _ => PoolState::Retired,
        }
    }

    /// Sets the state of the pool. Supervisor only.
    pub fn set_pool(&self, state: PoolState) {
        self.words.word(header::POOL).store(state as u64, SeqCst);
    }

    // --- workers ---------------------------------------------------------------------------------------------

    /// SENT → RUNNING by the worker of slot `s`, for a REQUEST that named this slot generation and word.
    pub fn claim(&self, l: &Lease) -> bool {
        if l.slot >= self.shape.slots || l.row >= self.shape.rows || self.slot(l.slot).0 != l.slot_generation {
            return false;
        }
        let ok = row::claim(self.row(l.slot, l.row), l.word);
        if ok {
            self.slot_word(l.slot, slot::RUNNING).fetch_add(1, Relaxed);
        }
        ok
    }

    /// RUNNING → FREE by the worker, at DONE; CLOSED at once while draining.
    pub fn finish(&self, l: &Lease) -> bool {
        let ok = row::finish(self.row(l.slot, l.row), l.word);
        if ok {
            let _ = self.slot_word(l.slot, slot::RUNNING).fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
            self.drop_in_use(l.slot);
            self.slot_word(l.slot, slot::REQUESTS).fetch_add(1, Relaxed);
            self.close_if_draining(l);
        }
        ok
    }

    fn close_if_draining(&self, l: &Lease) {
        // Order matters: the row was freed before the state is read, the supervisor sets the state before it sweeps.
        if self.slot(l.slot).1 == SlotState::Draining {
            row::close_freed(self.row(l.slot, l.row), l.word);
        }
    }

    /// Sets the displayed process id of slot `s`. Supervisor.
    pub fn set_pid(&self, s: u16, pid: u32) {
        self.slot_word(s, slot::PID).store(pid as u64, Relaxed);
    }

    /// The displayed process id of slot `s`.
    pub fn pid(&self, s: u16) -> u32 {
        self.slot_word(s, slot::PID).load(Relaxed) as u32
    }

    /// Requests finished by the present worker of slot `s`.
    pub fn requests(&self, s: u16) -> u64 {
        self.slot_word(s, slot::REQUESTS).load(Relaxed)
    }

    /// A request of slot `s` that is about to finish does not count. Worker.
    pub fn set_aside(&self, s: u16) {
        self.slot_word(s, slot::ASIDE).fetch_add(1, Relaxed);
    }

    /// Requests of the present worker of slot `s` that do not count.
    pub fn aside(&self, s: u16) -> u64 {
        self.slot_word(s, slot::ASIDE).load(Relaxed)
    }

    /// One beat of the worker's control thread.
    pub fn beat(&self, s: u16) {
        self.slot_word(s, slot::HEARTBEAT).fetch_add(1, Relaxed);
    }

    /// Heartbeats so far.
    pub fn heartbeat(&self, s: u16) -> u64 {
        self.slot_word(s, slot::HEARTBEAT).load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> (Table, OwnedFd) {
        let (t, fd) = Table::create(Shape::for_group(1, 2, 2)).unwrap();
        let g = t.begin_slot(0);
        t.open_rows(0, g);
        (t, fd)
    }

    #[test]
    fn shape_has_spare_slots_and_the_queue_share() {
        assert_eq!(Shape::for_group(2, 15, 100), Shape { slots: 8, threads: 15, rows: 65 });
        assert_eq!(Shape::for_group(1, 5, 0).rows, 5);
        assert!(Shape { slots: 0, threads: 1, rows: 1 }.bytes().is_err());
    }

    #[test]
    fn a_request_runs_once_and_the_row_is_free_again() {
        let (t, fd) = table();
        let other = Table::open(&fd, t.shape()).unwrap();
        let l = t.take(0, 0, 7).unwrap();
        assert!(t.is_sent(&l) && !t.is_running(&l));
        assert!(other.claim(&l) && !other.claim(&l));
        assert!(!t.recall(&l), "a running request is never recalled");
        assert_eq!((t.in_use(0), t.running(0)), (1, 1));
        assert!(other.finish(&l) && !other.finish(&l));
        assert_eq!((t.in_use(0), t.running(0), t.requests(0)), (0, 0, 1));
        assert!(t.take(0, 0, 7).unwrap().word.generation > l.word.generation);
    }

    #[test]
    fn full_means_none_and_recall_makes_room() {
        let (t, _fd) = table();
        let leases: Vec<_> = (0..4).map(|i| t.take(0, i, 9).unwrap()).collect();
        assert!(t.take(0, 0, 9).is_none());
        assert!(t.recall(&leases[2]) && !t.claim(&leases[2]));
        assert_eq!(t.take(0, 0, 9).unwrap().row, 2);
    }

    #[test]
    fn draining_closes_rows_as_they_become_free() {
        let (t, _fd) = table();
        let l = t.take(0, 0, 9).unwrap();
        assert!(t.claim(&l));
        t.set_slot(0, l.slot_generation, SlotState::Draining);
        assert_eq!(t.drain_rows(0), 1);
        assert!(t.finish(&l));
        assert_eq!(t.drain_rows(0), 0);
        assert!(t.take(0, 0, 9).is_none());
    }

    #[test]
    fn rows_of_the_dead_are_buried_but_sent_ones_wait_for_their_client() {
        let (t, _fd) = table();
        let (a, b) = (t.take(0, 0, 9).unwrap(), t.take(0, 1, 10).unwrap());
        assert!(t.claim(&a));
        t.set_slot(0, a.slot_generation, SlotState::Dead);
        assert_eq!(t.bury_rows(0, |_| false), 1);
        assert!(!t.is_running(&a));
        assert_eq!(t.bury_rows(0, |c| c == 10), 0);
        assert!(!t.recall(&b), "released by the supervisor for a departed client");
    }

    #[test]
    fn an_unsealed_or_wrong_sized_table_is_refused() {
        let shape = Shape::for_group(1, 1, 1);
        let file = tempfile_of(shape.bytes().unwrap());
        assert!(matches!(Table::open(&file, shape), Err(Error::NotSealed | Error::Sys(_))));
        let (_t, fd) = Table::create(shape).unwrap();
        let other = Shape { rows: 4000, ..shape };
        assert!(matches!(Table::open(&fd, other), Err(Error::Size { .. })));
        assert!(std::fs::File::from(fd).set_len(0).is_err(), "sealed against truncation");
    }

    fn tempfile_of(n: u64) -> std::fs::File {
        use nix::sys::memfd::*;
        let fd = memfd_create(c"t", MFdFlags::MFD_CLOEXEC).unwrap();
        let f = std::fs::File::from(fd);
        f.set_len(n).unwrap();
        f
    }
}
