//! The table that server processes, supervisor and workers share: one per application group and shape, in a sealed
//! memfd. It says which worker processes (slots) there are and which request (row) is where.
//!
//! Content is never trusted: any process that maps the table may write anything at any time. Readers read a word once,
//! check its range and use the copy; a wrong value may cost its own group a time-out, nothing else.
#![deny(unsafe_code)]

pub mod journal;
pub mod layout;
pub mod map;
pub mod row;
pub mod table;

pub use journal::{Entry, Journal, Phase};
pub use map::Error;
pub use row::{ClientId, RowState, RowWord, Word};
pub use table::{Lease, PoolState, Shape, SlotState, Table};
