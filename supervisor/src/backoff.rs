//! How long to wait before something that keeps failing is tried again.

use std::time::{Duration, Instant};

/// Doubling back-off between two bounds.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
    next: Option<Instant>,
}

impl Backoff {
    /// The first failure waits `first`, each further one twice as long, at most `most`.
    pub fn new(first: Duration, most: Duration) -> Backoff {
        Backoff { first, most, failures: 0, next: None }
    }

    /// Counts a failure; gives the time to wait.
    pub fn fail(&mut self, now: Instant) -> Duration {
        let wait = self.first.saturating_mul(1u32 << self.failures.min(16)).min(self.most);
        self.failures = self.failures.saturating_add(1);
        self.next = Some(now + wait);
        wait
    }

    /// Forgets all failures.
    pub fn reset(&mut self) {
        self.failures = 0;
        self.next = None;
    }

    /// When it may be tried again; `None`: now.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.next.filter(|n| *n > now)
    }

    /// Whether nothing has failed for `time` since it could be tried again.
    pub fn has_settled(&self, now: Instant, time: Duration) -> bool {
        self.next.is_some_and(|n| now >= n + time)
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_bound_and_forgets() {
        let now = Instant::now();
        let mut b = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        assert!(b.until(now).is_none());
        let waits: Vec<u64> = (0..7).map(|_| b.fail(now).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(b.until(now), Some(now + Duration::from_secs(30)));
        assert!(b.until(now + Duration::from_secs(30)).is_none());
        let ten = Duration::from_secs(10);
        assert!(
            !b.has_settled(now + Duration::from_secs(39), ten) && b.has_settled(now + Duration::from_secs(40), ten)
        );
        b.reset();
        assert!(!b.has_settled(now + Duration::from_secs(100), ten));
        assert_eq!((b.failures(), b.fail(now).as_secs()), (0, 1));
        for _ in 0..100 {
            b.fail(now);
        }
        assert_eq!(b.fail(now).as_secs(), 30);
    }
}
