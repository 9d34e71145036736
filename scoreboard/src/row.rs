//! The word of a row, `generation:32 | state:8 | client:24`, and every transition it may make. The functions are generic
//! over the atomic so that the model test races exactly this code.

use std::sync::atomic::{AtomicU64, Ordering};

/// Number of a server process, given at its registration; never 0, 24 bits.
pub type ClientId = u32;

/// Largest client number.
pub const MAX_CLIENT: ClientId = (1 << 24) - 1;

/// State of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RowState {
    /// May be taken by any server process.
    Free = 0,
    /// A client has taken it and sends, or has sent, a request.
    Sent = 1,
    /// The worker has claimed the request: it may have started.
    Running = 2,
    /// Drained: cannot be taken until the slot is used again.
    Closed = 3,
}

/// A row's word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowWord {
    /// Raised at each return to FREE: an old holder can never act on the next tenant.
    pub generation: u32,
    pub state: RowState,
    /// Who holds it; 0 for FREE and CLOSED.
    pub client: ClientId,
}

impl RowWord {
    /// Takes a word apart; a state that does not exist counts as CLOSED (nobody will touch it).
    pub fn unpack(w: u64) -> RowWord {
        let state = match (w >> 24) as u8 {
            0 => RowState::Free,
            1 => RowState::Sent,
            2 => RowState::Running,
            _ => RowState::Closed,
        };
        RowWord { generation: (w >> 32) as u32, state, client: (w as u32) & MAX_CLIENT }
    }

    /// Puts a word together.
    pub fn pack(self) -> u64 {
        (self.generation as u64) << 32 | (self.state as u64) << 24 | (self.client & MAX_CLIENT) as u64
    }

    fn with(self, state: RowState, client: ClientId) -> RowWord {
        RowWord { state, client, ..self }
    }

    fn released(self, state: RowState) -> RowWord {
        RowWord { generation: self.generation.wrapping_add(1), state, client: 0 }
    }
}

/// The atomic operations a row needs. All are sequentially consistent: draining relies on the order of a slot's state
/// and its rows, and the cost is not measurable beside a system call.
pub trait Word {
    fn load(&self) -> u64;
    fn swap_if(&self, from: u64, to: u64) -> bool;
}

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::SeqCst)
    }
    fn swap_if(&self, from: u64, to: u64) -> bool {
        self.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// The word as it is now.
pub fn read(w: &impl Word) -> RowWord {
    RowWord::unpack(w.load())
}

/// FREE → SENT by a server process. Gives the word the request must carry.
pub fn take(w: &impl Word, client: ClientId) -> Option<RowWord> {
    let now = w.load();
    let word = RowWord::unpack(now);
    if word.state != RowState::Free {
        return None;
    }
    let sent = word.with(RowState::Sent, client);
    w.swap_if(now, sent.pack()).then_some(sent)
}

/// SENT → RUNNING by the worker, with the word its REQUEST carried. `false`: recalled, the frame is dropped.
pub fn claim(w: &impl Word, sent: RowWord) -> bool {
    sent.state == RowState::Sent && w.swap_if(sent.pack(), sent.with(RowState::Running, sent.client).pack())
}

/// RUNNING → FREE (next generation) by the worker, at DONE.
pub fn finish(w: &impl Word, sent: RowWord) -> bool {
    let running = sent.with(RowState::Running, sent.client);
    w.swap_if(running.pack(), running.released(RowState::Free).pack())
}

/// SENT → FREE (next generation) by the client that sent it. `true` proves that nothing of the request has started and
/// that nothing will: it may be sent elsewhere, whatever its method.
pub fn recall(w: &impl Word, sent: RowWord) -> bool {
    sent.state == RowState::Sent && w.swap_if(sent.pack(), sent.released(RowState::Free).pack())
}

/// FREE → CLOSED by the supervisor.
pub fn close(w: &impl Word) -> bool {
    let now = w.load();
    let word = RowWord::unpack(now);
    word.state == RowState::Free && w.swap_if(now, word.with(RowState::Closed, 0).pack())
}

/// FREE → CLOSED by whoever has just freed the row of `sent` and then found its slot draining. Only that freed row is
/// closed: who comes late, after the slot has been given to a new worker, finds another generation and does nothing.
pub fn close_freed(w: &impl Word, sent: RowWord) -> bool {
    let freed = sent.released(RowState::Free);
    w.swap_if(freed.pack(), freed.with(RowState::Closed, 0).pack())
}

/// SENT → FREE (next generation) by the supervisor, for a client that has gone (`gone` decides).
pub fn release_departed(w: &impl Word, gone: impl Fn(ClientId) -> bool) -> bool {
    let now = w.load();
    let word = RowWord::unpack(now);
    word.state == RowState::Sent && gone(word.client) && w.swap_if(now, word.released(RowState::Free).pack())
}

/// RUNNING → FREE (next generation), once the worker is dead: by the client with the word it sent.
pub fn release_dead(w: &impl Word, sent: RowWord) -> bool {
    finish(w, sent)
}

/// Any state but SENT → CLOSED (next generation) by the supervisor, once the worker is dead. SENT rows belong to
/// their client, who recalls them; after this nobody can take a row of the dead worker.
pub fn bury(w: &impl Word) -> bool {
    let now = w.load();
    let word = RowWord::unpack(now);
    match word.state {
        RowState::Closed => true,
        RowState::Sent => false,
        RowState::Free | RowState::Running => w.swap_if(now, word.released(RowState::Closed).pack()),
    }
}

/// CLOSED → FREE (next generation) by the supervisor, when the slot is given to a new worker.
pub fn reopen(w: &impl Word) -> bool {
    let now = w.load();
    let word = RowWord::unpack(now);
    word.state == RowState::Closed && w.swap_if(now, word.released(RowState::Free).pack())
}
