//! Where things lie in the table. Everything is a naturally aligned 64-bit word; offsets are in words.
//!
//! ```text
//! header   1 page   magic, version, shape, pool state
//! slots    16 words (two cache lines) each: state word, in-use, running, counters, worker's own fields
//! rows     per slot `rows` words, padded to a cache line
//! ```

/// First word of a table.
pub const MAGIC: u64 = 0x3130_5352_5753_4757; // "WGSWRS01"
/// Words of the header (4 KiB).
pub const HEADER_WORDS: usize = 512;
/// Words of a slot: two cache lines.
pub const SLOT_WORDS: usize = 16;
/// Words of a cache line.
pub const LINE_WORDS: usize = 8;
/// Most slots of a table.
pub const MAX_SLOTS: u16 = 1024;
/// Most rows of a slot.
pub const MAX_ROWS: u16 = 8192;

/// Header words.
pub mod header {
    pub const MAGIC: usize = 0;
    /// slots:16 | threads:16 | rows:16 | 0:16
    pub const SHAPE: usize = 1;
    /// [`crate::PoolState`] in the low byte, detail above.
    pub const POOL: usize = 8;
    /// Times a request found no free row.
    pub const QUEUE_FULL: usize = 16;
    /// Times a request was recalled.
    pub const RECALLS: usize = 17;
    /// Times a request waited past its queue time-out.
    pub const QUEUE_TIMEOUTS: usize = 18;
    /// Set to 1 by a server process that waits for a worker: an idle pool shall start one.
    pub const WANTED: usize = 24;
    /// Scripts that no ready worker could load. Supervisor's; for readiness, decides nothing else.
    pub const UNLOADED: usize = 25;
    /// 1: the server is not ready for load balancers, by order. Supervisor's; for readiness, decides nothing else.
    pub const AWAY: usize = 26;
}

/// Words of a slot.
pub mod slot {
    /// generation:32 | state:8 | 0:24
    pub const STATE: usize = 0;
    /// Rows SENT or RUNNING. A hint: decides preference only.
    pub const IN_USE: usize = 1;
    /// Rows RUNNING. A hint.
    pub const RUNNING: usize = 2;
    /// Process id, for display.
    pub const PID: usize = 3;
    /// Requests finished.
    pub const REQUESTS: usize = 8;
    /// Raised by the worker's control thread, which never waits for the GIL.
    pub const HEARTBEAT: usize = 9;
    /// Requests whose application raised.
    pub const ERRORS: usize = 10;
    /// Requests among [`REQUESTS`] that do not count: health checks.
    pub const ASIDE: usize = 11;
}
