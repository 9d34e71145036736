//! Lines of the error log that every request would write for as long as one cause lasts: one a second is written, and it
//! tells how many were not. Kept by each process of the server for itself.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Least time between two lines.
const PAUSE: Duration = Duration::from_secs(1);

/// One such line.
#[derive(Debug)]
pub struct Sparse(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When it was written last.
    last: Option<Instant>,
    held_back: u64,
}

impl Sparse {
    pub const fn new() -> Sparse {
        Sparse(Mutex::new(State { last: None, held_back: 0 }))
    }

    /// Whether the line is written now: how many have been held back since it last was, or `None`.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            state.held_back += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

impl Default for Sparse {
    fn default() -> Sparse {
        Sparse::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_second_with_the_number_of_the_others() {
        let (sparse, start) = (Sparse::new(), Instant::now());
        let at = |ms| sparse.admit(start + Duration::from_millis(ms));
        assert_eq!([at(0), at(1), at(999)], [Some(0), None, None]);
        assert_eq!([at(1000), at(1999), at(2000), at(9000)], [Some(2), None, Some(1), Some(0)]);
    }
}
