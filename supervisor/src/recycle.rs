//! When a worker is replaced although nothing has changed: requests, age, idleness, processor time, memory. Each reason
//! works alone. A worker that is due is only marked here; [`Pool::step`] starts its successor first and staggers.

use crate::context::Context;
use crate::pool::Pool;
use crate::sys;
use crate::timer::seconds;
use crate::worker::{State, Worker};
use mod_wsgi_scoreboard::RowState;
use mod_wsgi_wire::control::Recycle;
use mod_wsgi_wire::frame::Level;
use std::time::{Duration, Instant};

/// Between two looks at a worker's processor time, memory and activity.
const LOOK: Duration = Duration::from_secs(1);
/// The same for options below ten seconds.
const QUICK_LOOK: Duration = Duration::from_millis(100);

/// What a heartbeat may be late, beside deadlock-timeout.
const BEATS: Duration = Duration::from_secs(3);

/// One worker's own limits, jitter included, and what has been seen of it.
#[derive(Debug, Clone, Default)]
pub struct Lifetime {
    /// Requests it may serve; 0 = any number.
    pub requests: u64,
    /// How long it may live; `None` = for ever.
    age: Option<Duration>,
    /// Requests seen at the last look that found it busy, and when that was.
    active: Option<(u64, Instant)>,
    next_look: Option<Instant>,
    /// Why it is to be replaced, in mod_wsgi's words for subscribers of `process_stopping`.
    pub due: Option<&'static str>,
    /// The last heartbeat seen, and when.
    beat: Option<(u64, Instant)>,
    /// What it has given up was the load of a script.
    pub slow_start: bool,
}

/// A random number from 0 to `most`.
fn jitter(most: u64) -> u64 {
    let random = sys::random().map_or(0, |b: [u8; 16]| u64::from_le_bytes(*b.first_chunk().unwrap_or(&[0; 8])));
    // `most` is at most 2^53: no overflow, and the bias of the remainder does not matter here.
    random % (most + 1)
}

impl Lifetime {
    /// The limits of a new worker.
    pub fn draw(r: &Recycle) -> Lifetime {
        let requests = match r.maximum_requests {
            0 => 0,
            n => n.saturating_add(jitter(r.maximum_requests_jitter)),
        };
        let more = Duration::from_millis(jitter(seconds(r.restart_interval_jitter).as_millis() as u64));
        let age = (r.restart_interval > 0.0).then(|| seconds(r.restart_interval) + more);
        Lifetime { requests, age, ..Lifetime::default() }
    }
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vitals {
    /// Processor time, user and system.
    pub cpu: Duration,
    /// Resident memory, bytes.
    pub rss: u64,
}

impl Vitals {
    /// Looks at a process; `None`: it has ended.
    pub fn of(pid: i32) -> Option<Vitals> {
        Vitals::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Vitals> {
        // The command in field 2 may contain anything, also parentheses and blanks.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().collect();
        // Fields 14 and 15 in ticks, 24 in pages; field 3 is the first here.
        let field = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
        let (ticks, pages) = (field(14)?.saturating_add(field(15)?), field(24)?);
        let per_second = sys::ticks_per_second();
        let cpu = Duration::from_millis(ticks.saturating_mul(1000) / per_second);
        Some(Vitals { cpu, rss: pages.saturating_mul(sys::page_size()) })
    }
}

impl Pool {
    /// Marks the workers that are due; `next` becomes the time of the next look.
    pub(crate) fn step_recycle(&mut self, now: Instant, cx: &mut Context, next: &mut Instant) {
        let r = &self.group.recycle;
        let sampled = r.cpu_time_limit > 0.0 || r.max_rss > 0 || r.inactivity_timeout > 0.0;
        if !sampled && r.restart_interval == 0.0 || !self.is_current() {
            return;
        }
        let short = |s: f64| s > 0.0 && s < 10.0;
        let look = if short(r.inactivity_timeout) || short(r.cpu_time_limit) { QUICK_LOOK } else { LOOK };
        let mut due = Vec::new();
        for w in self.workers.values_mut().filter(|w| w.state == State::Ready && w.life.due.is_none()) {
            if let Some(age) = w.life.age {
                let end = w.started + age;
                if now >= end {
                    due.push((w.slot, "restart_interval", format!("it is {:.0} s old", age.as_secs_f64())));
                    continue;
                }
                *next = (*next).min(end);
            }
            if !sampled {
                continue;
            }
            let at = w.life.next_look.unwrap_or(now);
            if now < at {
                *next = (*next).min(at);
                continue;
            }
            w.life.next_look = Some(now + look);
            *next = (*next).min(now + look);
            if let Some(vitals) = Vitals::of(w.process.pid) {
                if r.cpu_time_limit > 0.0 && vitals.cpu >= seconds(r.cpu_time_limit) {
                    let used = vitals.cpu.as_secs_f64();
                    due.push((w.slot, "cpu_time_limit", format!("it has used {used:.1} s of processor time")));
                    continue;
                }
                if r.max_rss > 0 && vitals.rss >= r.max_rss {
                    let text = format!("it has {} MiB of resident memory", vitals.rss >> 20);
                    due.push((w.slot, "memory_limit", text));
                    continue;
                }
            }
            if r.inactivity_timeout > 0.0 {
                let (sent, running) = self.table.count_rows(w.slot);
                let requests = self.table.requests(w.slot).wrapping_sub(self.table.aside(w.slot));
                let seen = w.life.active.map_or(0, |(n, _)| n);
                if requests != seen || (sent, running) != (0, 0) && w.life.active.is_some() {
                    w.life.active = Some((requests, now));
                } else if let Some((_, since)) = w.life.active
                    && now >= since + seconds(r.inactivity_timeout)
                {
                    let text = format!("it has had no request for {:.0} s", now.duration_since(since).as_secs_f64());
                    due.push((w.slot, "inactivity_timeout", text));
                }
            }
        }
        for (slot, reason, text) in due {
            self.make_due(slot, reason, &text, cx);
        }
    }

    /// One of the workers with a stuck request is marked, unless such a replacement of this group is under way already:
    /// a database that does not answer must not make all workers of a group start anew at once.
    pub(crate) fn step_stuck(&mut self, cx: &mut Context) {
        let table = &self.table;
        for w in self.workers.values_mut().filter(|w| !w.stuck.is_empty()) {
            // The application may have come back after all.
            w.stuck.retain(|(row, generation)| {
                let now = (*row < table.shape().rows).then(|| table.row_at(w.slot, *row));
                now.is_some_and(|now| now.generation == *generation && now.state == RowState::Running)
            });
        }
        let key = (self.master, self.group.name.clone());
        if !self.is_current() || cx.stuck.contains(&key) {
            return;
        }
        let next =
            self.workers.values().find(|w| w.state == State::Ready && !w.stuck.is_empty() && w.life.due.is_none());
        if let Some((slot, n, slow)) = next.map(|w| (w.slot, w.stuck.len(), w.life.slow_start)) {
            cx.stuck.insert(key);
            let reason = if slow { "startup_timeout" } else { "request_timeout" };
            self.make_due(slot, reason, &format!("{n} of its requests are stuck"), cx);
        }
    }

    /// Whether a worker is being replaced for stuck requests.
    pub(crate) fn replaces_stuck(&self) -> bool {
        self.workers.values().any(|w| matches!(w.life.due, Some("request_timeout" | "startup_timeout")))
    }

    /// A worker whose interpreter does not go on: nothing in it can end, so nothing is waited for.
    pub(crate) fn deadlocked(&mut self, slot: u16, now: Instant, cx: &mut Context) {
        self.make_due(slot, "deadlock_timeout", "its interpreter is deadlocked", cx);
        if self.workers.get(&slot).is_some_and(|w| matches!(w.state, State::Ready | State::Draining { .. })) {
            self.exit(slot, now, "deadlock_timeout");
        }
    }

    /// A worker that does not even beat any more (stopped, or stuck in the kernel) for longer than deadlock-timeout is
    /// replaced like one whose interpreter is deadlocked: its own watch cannot say so. Time in which this machine sleeps
    /// does not count.
    pub(crate) fn step_beats(&mut self, now: Instant, cx: &mut Context, next: &mut Instant) {
        let limit = self.group.deadlines.deadlock;
        if limit <= 0.0 {
            return;
        }
        // Beats come once a second.
        let limit = seconds(limit) + BEATS;
        let mut silent = Vec::new();
        for w in self.workers.values_mut().filter(|w| w.state == State::Ready) {
            let beat = self.table.heartbeat(w.slot);
            let since = match w.life.beat {
                Some((seen, since)) if seen == beat => since,
                _ => {
                    w.life.beat = Some((beat, now));
                    now
                }
            };
            if now >= since + limit {
                silent.push((w.slot, w.process.pid));
            } else {
                *next = (*next).min(since + limit);
            }
        }
        for (slot, pid) in silent {
            let seconds = limit.as_secs_f64();
            let text = format!(
                "MWR0318: worker {pid} of {} has given no sign of life for {seconds:.0} s (deadlock-timeout): it is \
                 replaced, the requests in it are lost",
                self.name()
            );
            cx.log.event(Level::Error, &text);
            self.deadlocked(slot, now, cx);
        }
    }

    /// A worker is to be replaced.
    pub(crate) fn make_due(&mut self, slot: u16, reason: &'static str, text: &str, cx: &mut Context) {
        let name = self.name();
        let Some(w) = self.workers.get_mut(&slot) else { return };
        if w.state != State::Ready || w.life.due.is_some() {
            return;
        }
        w.life.due = Some(reason);
        cx.log.event(Level::Info, &format!("worker {} of {name} is replaced: {text}", w.process.pid));
    }

    /// It has served the requests it may serve.
    pub(crate) fn spent(&mut self, slot: u16, cx: &mut Context) {
        let requests = self.workers.get(&slot).map_or(0, |w| w.life.requests);
        if requests > 0 {
            self.make_due(slot, "maximum_requests", &format!("it has served {requests} requests"), cx);
        }
    }
}

impl Worker {
    /// Whether it is of the pool's present version and not to be replaced.
    pub fn is_fresh(&self, epoch: u64) -> bool {
        self.epoch == epoch && self.life.due.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vital_signs_are_read_whatever_the_command_is_called() {
        let stat = "12 (a) b) R 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 5 0 100 4096 25 1 1";
        let v = Vitals::parse(stat).unwrap();
        assert_eq!(v.rss, 25 * sys::page_size());
        assert_eq!(v.cpu, Duration::from_millis(200 * 1000 / sys::ticks_per_second()));
        assert!(Vitals::parse("12 (a) R 1").is_none());
        let me = Vitals::of(std::process::id() as i32).unwrap();
        assert!(me.rss > 100_000 && me.rss < 1 << 34);
    }

    #[test]
    fn jitter_spreads_and_is_bounded() {
        let r = Recycle {
            maximum_requests: 100,
            maximum_requests_jitter: 20,
            restart_interval: 10.0,
            restart_interval_jitter: 5.0,
            ..Recycle::default()
        };
        let drawn: Vec<Lifetime> = (0..200).map(|_| Lifetime::draw(&r)).collect();
        assert!(drawn.iter().all(|l| (100..=120).contains(&l.requests)));
        assert!(drawn.iter().any(|l| l.requests != drawn[0].requests));
        let ages: Vec<Duration> = drawn.iter().map(|l| l.age.unwrap()).collect();
        assert!(ages.iter().all(|a| (10..=15).contains(&a.as_secs())) && ages.iter().any(|a| *a != ages[0]));
        assert_eq!(Lifetime::draw(&Recycle { maximum_requests: 7, ..Recycle::default() }).requests, 7);
        assert!(Lifetime::draw(&Recycle::default()).age.is_none());
    }
}
