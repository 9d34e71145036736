//! How many workers a pool needs: more when requests wait and every thread is busy, fewer (`processes=MIN..MAX` only) when
//! fewer would have been enough for a while. Growing takes a moment of crowding, shrinking half a minute without, so
//! that a wave of requests does not start and end processes with each crest.

use crate::context::Context;
use crate::memory;
use crate::pool::Pool;
use crate::recycle::Vitals;
use crate::worker::State;
use mod_wsgi_wire::frame::Level;
use std::time::{Duration, Instant};

/// So long requests must have waited, at each look, before a worker is added.
const CROWDED: Duration = Duration::from_millis(100);
/// Between two looks at a pool that may have to start or grow.
const LOOK: Duration = Duration::from_millis(50);
/// Between two looks at one that may only shrink or go to sleep.
const QUIET_LOOK: Duration = Duration::from_secs(1);
/// So long fewer workers must have been enough before one is taken away.
const SPARE: Duration = Duration::from_secs(30);
/// Fewer are enough when they would have been busy to this part at the busiest moment.
const FULL: f64 = 0.7;
/// Memory a further worker is reckoned to need, beside that of the largest one there is.
const RESERVE: f64 = 1.3;

/// When a pool's load is looked at.
#[derive(Debug, Clone)]
pub struct Looks {
    next: Instant,
}

impl Looks {
    pub fn new(now: Instant) -> Looks {
        Looks { next: now }
    }

    /// Whether it is time; with it, when it will be next. `may_need_more`: requests may wait for workers that are not
    /// there yet, which nobody tells.
    pub fn due(&mut self, may_need_more: bool, now: Instant) -> (bool, Instant) {
        let time = if may_need_more { LOOK } else { QUIET_LOOK };
        // What was put off for long while nothing could be needed comes soon when something can.
        self.next = self.next.min(now + time);
        let due = now >= self.next;
        if due {
            self.next = now + time;
        }
        (due, self.next)
    }
}

/// What has been seen of a pool's load.
#[derive(Debug, Clone)]
pub struct Demand {
    crowded_since: Option<Instant>,
    /// Most requests at once since then.
    most: usize,
    since: Instant,
}

impl Demand {
    pub fn new(now: Instant) -> Demand {
        Demand { crowded_since: None, most: 0, since: now }
    }

    /// So many requests are in the workers now.
    pub fn look(&mut self, busy: usize) {
        self.most = self.most.max(busy);
    }

    /// Whether requests have been waiting for long enough.
    pub fn crowded(&mut self, now_crowded: bool, now: Instant) -> bool {
        if !now_crowded {
            self.crowded_since = None;
            return false;
        }
        now >= *self.crowded_since.get_or_insert(now) + CROWDED
    }

    /// Whether one worker fewer than `target` would have been enough for a while.
    pub fn spare(&mut self, target: u16, threads: u16, now: Instant) -> bool {
        if now < self.since + SPARE {
            return false;
        }
        let enough = self.most as f64 <= FULL * f64::from(target - 1) * f64::from(threads);
        // The next window.
        *self = Demand { crowded_since: self.crowded_since, most: 0, since: now };
        enough
    }
}

impl Pool {
    /// Requests wait, and no ready worker has an idle thread.
    pub(crate) fn is_crowded(&self) -> bool {
        let threads = self.table.shape().threads as usize;
        let mut waiting = false;
        for w in self.workers.values().filter(|w| w.state == State::Ready) {
            let (sent, running) = self.table.count_rows(w.slot);
            if running < threads {
                return false;
            }
            waiting |= sent > 0;
        }
        waiting
    }

    /// Requests in the ready workers, running and waiting.
    pub(crate) fn busy(&self) -> usize {
        let ready = self.workers.values().filter(|w| w.state == State::Ready);
        ready.map(|w| self.table.count_rows(w.slot)).map(|(sent, running)| sent + running).sum()
    }

    /// Whether there is room in memory for one worker more.
    pub(crate) fn memory_allows(&mut self, cx: &mut Context) -> bool {
        let largest = self.workers.values().filter_map(|w| Vitals::of(w.process.pid)).map(|v| v.rss).max().unwrap_or(0);
        let Some(left) = memory::left() else { return true };
        let need = (largest as f64 * RESERVE) as u64;
        if left >= need {
            self.short_of_memory = false;
            return true;
        }
        if !std::mem::replace(&mut self.short_of_memory, true) {
            let text = format!(
                "MWR0317: {} gets no further worker beyond {}: {} MiB of memory are left, {} MiB are reckoned for one",
                self.name(),
                self.target,
                left >> 20,
                need >> 20
            );
            cx.log.event(Level::Warn, &text);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_quick_while_workers_may_be_needed_and_rare_otherwise() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut l = Looks::new(start);
        assert_eq!(l.due(false, at(0)), (true, at(1000)));
        assert_eq!(l.due(false, at(300)), (false, at(1000)), "woken for something else");
        assert_eq!(l.due(true, at(400)), (false, at(450)), "a look that was put off comes soon");
        for ms in (450..1000).step_by(50) {
            assert_eq!(l.due(true, at(ms)), (true, at(ms + 50)));
        }
        assert_eq!(l.due(true, at(1020)), (true, at(1070)), "one that came late is not made up for");
        assert_eq!(l.due(false, at(1070)), (true, at(2070)));
    }

    #[test]
    fn requests_that_wait_get_a_worker_within_three_looks() {
        let start = Instant::now();
        let (mut looks, mut demand) = (Looks::new(start), Demand::new(start));
        let (mut now, mut seen) = (start, 0);
        let after = loop {
            let (due, next) = looks.due(true, now);
            seen += usize::from(due);
            if due && demand.crowded(true, now) {
                break now - start;
            }
            assert!(seen < 100 && next > now);
            now = next;
        };
        assert_eq!((after, seen), (CROWDED, 3));
    }

    #[test]
    fn growing_takes_a_moment_and_shrinking_long() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut d = Demand::new(start);
        assert!(!d.crowded(true, at(0)) && !d.crowded(true, at(50)) && d.crowded(true, at(100)));
        assert!(!d.crowded(false, at(150)) && !d.crowded(true, at(200)) && !d.crowded(true, at(250)));
        d.look(9);
        assert!(!d.spare(3, 5, at(29_000)), "not yet");
        assert!(!d.spare(3, 5, at(30_000)), "nine at once are more than 70 % of ten");
        d.look(7);
        assert!(!d.spare(3, 5, at(59_000)) && d.spare(3, 5, at(60_000)), "the peak before is forgotten");
    }
}
