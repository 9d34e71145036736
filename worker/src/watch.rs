//! Deadlines of requests. The clock of a request runs from its claim to END, without the time in which its client was
//! waited for. The control thread looks at all clocks: what has run too long is given up (its client gets 504, stacks and
//! request line are logged, the supervisor replaces this worker), and it never needs the interpreter for that. With
//! `interrupt-timeout` the thread `wsgi-watch`, which may wait for the GIL, first raises `mod_wsgi.RequestTimeout` in the
//! serving thread.
//!
//! The exception must never hit another request. It is set with the GIL held, while the thread's entry here says that
//! it is inside the application and the row still has the request's generation; and the serving thread takes its entry
//! away, together with an exception that has not been raised yet, in one hold of the GIL, before it sends END.

use crate::conn::Conn;
use crate::shared::{Shared, lock};
use crate::sys;
use mod_wsgi_scoreboard::{Lease, Phase};
use mod_wsgi_wire::control::{FromWorker, StuckReason};
use mod_wsgi_wire::frame::{AbortReason, Level};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The longest time between two looks at all clocks.
const TICK: Duration = Duration::from_secs(1);
/// Stacks are written at most once in this time, however many requests are stuck.
const STACKS: Duration = Duration::from_secs(10);

static EXCEPTION: PyOnceLock<Py<PyType>> = PyOnceLock::new();

thread_local! {
    /// Number of this serving thread.
    static THREAD: Cell<Option<u16>> = const { Cell::new(None) };
}

/// All clocks of this process.
pub struct Watch {
    epoch: Instant,
    threads: Box<[Thread]>,
    /// Milliseconds of the shortest limit in use; `u64::MAX` = none.
    shortest: AtomicU64,
    /// A request waits to be interrupted.
    wanted: Mutex<bool>,
    wake: Condvar,
    /// Microseconds since `epoch` at which the wait for the GIL began; 0 = it is not waited for.
    probing: AtomicU64,
    deadlocked: AtomicBool,
    stacks_at: Mutex<Option<Instant>>,
    /// Requests given up whose threads have not come back.
    lost: AtomicUsize,
}

#[derive(Default)]
struct Thread {
    request: Mutex<Option<Request>>,
    /// Microseconds since `epoch` since which its client has been waited for; 0 = it is not.
    blocked_since: AtomicU64,
    /// Microseconds in which the client of this request was waited for.
    blocked: AtomicU64,
    /// Given up: counted in `lost`.
    lost: AtomicBool,
}

/// A request whose END has not been sent.
struct Request {
    conn: Arc<Conn>,
    lease: Lease,
    /// Python's number of the thread.
    ident: u64,
    since: Instant,
    /// What it may take; zero = any time.
    limit: Duration,
    stage: Stage,
    loading: bool,
    /// The application's code is running: an exception may be raised.
    inside: bool,
    interrupted: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Running,
    /// To be interrupted, or interrupted; given up then.
    Interrupting(Instant),
    GivenUp,
}

impl Watch {
    pub fn new(threads: u16, request_timeout: f64) -> Watch {
        let watch = Watch {
            epoch: Instant::now(),
            threads: (0..threads).map(|_| Thread::default()).collect(),
            shortest: AtomicU64::new(u64::MAX),
            wanted: Mutex::new(false),
            wake: Condvar::new(),
            probing: AtomicU64::new(0),
            deadlocked: AtomicBool::new(false),
            stacks_at: Mutex::new(None),
            lost: AtomicUsize::new(0),
        };
        watch.note_limit(span(request_timeout));
        watch
    }

    fn note_limit(&self, limit: Duration) {
        let ms = (limit.as_millis() as u64).max(1);
        if !limit.is_zero() && ms < self.shortest.load(Relaxed) {
            self.shortest.store(ms, Relaxed);
        }
    }

    fn now(&self) -> u64 {
        (self.epoch.elapsed().as_micros() as u64).max(1)
    }

    /// Requests given up that still occupy their threads.
    pub fn lost(&self) -> usize {
        self.lost.load(Relaxed)
    }
}

fn span(seconds: f64) -> Duration {
    Duration::from_secs_f64(if seconds.is_finite() { seconds.clamp(0.0, 1e9) } else { 0.0 })
}

/// A request under way, from its claim to the end of its thread's work on it.
pub struct Clock<'a> {
    shared: &'a Shared,
    thread: u16,
    conn: &'a Arc<Conn>,
    lease: Lease,
    limit: Duration,
    ident: u64,
}

/// Says which serving thread this is.
pub fn set_thread(number: u16) {
    THREAD.set(Some(number));
}

impl<'a> Clock<'a> {
    /// The request has been claimed. `ident`: Python's number of this thread.
    pub fn start(
        shared: &'a Shared,
        (thread, ident): (u16, u64),
        conn: &'a Arc<Conn>,
        lease: Lease,
        timeout: Option<Duration>,
        (method, target): (&[u8], &[u8]),
    ) -> Clock<'a> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        shared.journal.begin(thread, started, lease.row, lease.word.generation, method, target);
        let limit = timeout.unwrap_or(span(shared.plan.request_timeout));
        let clock = Clock { shared, thread, conn, lease, limit, ident };
        if !limit.is_zero() {
            shared.watch.note_limit(limit);
            clock.set(limit, false);
        }
        clock
    }

    fn set(&self, limit: Duration, loading: bool) {
        let t = self.own();
        t.blocked.store(0, Relaxed);
        *lock(&t.request) = Some(Request {
            conn: self.conn.clone(),
            lease: self.lease,
            ident: self.ident,
            since: Instant::now(),
            limit,
            stage: Stage::Running,
            loading,
            inside: false,
            interrupted: false,
        });
    }

    fn own(&self) -> &'a Thread {
        &self.shared.watch.threads[self.thread as usize]
    }

    /// Loads its script, which has a limit of its own; the request's clock starts anew afterwards. `None`: that took
    /// too long, the request has been given up.
    pub fn load<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        let limit = span(self.shared.plan.startup_timeout);
        self.shared.journal.phase(self.thread, Phase::Loading);
        if !limit.is_zero() {
            self.shared.watch.note_limit(limit);
            self.set(limit, true);
        }
        let result = f();
        self.shared.journal.phase(self.thread, Phase::Application);
        let request = lock(&self.own().request).take();
        if request.is_some_and(|r| r.stage == Stage::GivenUp) {
            return None;
        }
        if !self.limit.is_zero() {
            self.set(self.limit, false);
        }
        Some(result)
    }

    /// The application is about to be called: it may be interrupted.
    pub fn enter(&self, _py: Python<'_>) {
        if let Some(r) = lock(&self.own().request).as_mut() {
            r.inside = true;
        }
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        if sys::forked() {
            return;
        }
        let t = self.own();
        let left = lock(&t.request).take();
        drop(left);
        if t.lost.swap(false, Relaxed) {
            self.shared.watch.lost.fetch_sub(1, Relaxed);
        }
        self.shared.journal.phase(self.thread, Phase::Idle);
    }
}

/// The request of this thread is about to be answered whole: from now on it has no deadline. An exception that has been
/// set and not been raised is taken back. With the GIL held, before the frame that has END.
pub fn over(py: Python<'_>) {
    let (Some(number), Some(shared)) = (THREAD.get(), crate::shared::get()) else { return };
    let Some(t) = shared.watch.threads.get(number as usize) else { return };
    let request = lock(&t.request).take();
    if let Some(r) = request
        && r.interrupted
    {
        // Also one that has been raised already: nothing is pending then.
        sys::set_async_exception(py, r.ident, None);
    }
}

/// Runs a wait for the client, which does not count.
pub fn blocked<R>(wait: impl FnOnce() -> R) -> R {
    let (Some(number), Some(shared)) = (THREAD.get(), crate::shared::get()) else { return wait() };
    let Some(t) = shared.watch.threads.get(number as usize) else { return wait() };
    let since = shared.watch.now();
    t.blocked_since.store(since, Relaxed);
    let in_request = shared.journal.entry(number).is_some();
    if in_request {
        shared.journal.phase(number, Phase::Client);
    }
    let result = wait();
    if in_request {
        shared.journal.phase(number, Phase::Application);
    }
    t.blocked_since.store(0, Relaxed);
    t.blocked.fetch_add(shared.watch.now().saturating_sub(since), Relaxed);
    result
}

/// A request that is given up.
struct Stuck {
    thread: u16,
    lease: Lease,
    seconds: f64,
    reason: StuckReason,
}

impl Shared {
    /// Looks at all clocks (control thread); gives the time of the next look.
    pub fn check_clocks(&self, now: Instant) -> Instant {
        let shortest = Duration::from_millis(self.watch.shortest.load(Relaxed));
        let mut next = now + TICK.min(shortest);
        let mut given_up = Vec::new();
        let mut interrupt = false;
        for (thread, t) in self.watch.threads.iter().enumerate() {
            let mut request = lock(&t.request);
            let Some(r) = request.as_mut() else { continue };
            match r.stage {
                Stage::GivenUp => continue,
                Stage::Running => {
                    let since = t.blocked_since.load(Relaxed);
                    let waiting = if since > 0 { self.watch.now().saturating_sub(since) } else { 0 };
                    let blocked = Duration::from_micros(t.blocked.load(Relaxed).saturating_add(waiting));
                    let used = now.saturating_duration_since(r.since).saturating_sub(blocked);
                    if used < r.limit {
                        next = next.min(now + (r.limit - used));
                        continue;
                    }
                    let grace = span(self.plan.interrupt_timeout);
                    if !r.loading && !grace.is_zero() {
                        r.stage = Stage::Interrupting(now + grace);
                        next = next.min(now + grace);
                        interrupt = true;
                        continue;
                    }
                }
                Stage::Interrupting(until) if now < until => {
                    interrupt |= !r.interrupted;
                    next = next.min(until);
                    continue;
                }
                Stage::Interrupting(_) => {}
            }
            // With the entry locked: END cannot have been sent, nor be sent meanwhile.
            if !r.conn.give_up(AbortReason::Timeout) {
                next = next.min(now + Duration::from_millis(50));
                continue;
            }
            r.stage = Stage::GivenUp;
            t.lost.store(true, Relaxed);
            self.watch.lost.fetch_add(1, Relaxed);
            let reason = if r.loading { StuckReason::Startup } else { StuckReason::Request };
            let seconds = now.saturating_duration_since(r.since).as_secs_f64();
            given_up.push(Stuck { thread: thread as u16, lease: r.lease, seconds, reason });
        }
        if interrupt {
            *lock(&self.watch.wanted) = true;
            self.watch.wake.notify_one();
        }
        let any = !given_up.is_empty();
        for stuck in given_up {
            self.report_stuck(&stuck);
        }
        if any {
            self.write_stacks(now);
        }
        self.check_gil(now);
        next
    }

    fn report_stuck(&self, s: &Stuck) {
        let line = self.journal.entry(s.thread).map(|e| String::from_utf8_lossy(&e.line).into_owned());
        let line = line.unwrap_or_default();
        let text = match s.reason {
            StuckReason::Request => format!(
                "MWR0436: the request {line:?} has run for {:.1} s (request-timeout): its client gets 504, this worker is \
                 replaced; {} requests are inside the application",
                s.seconds,
                self.inside()
            ),
            StuckReason::Startup => format!(
                "MWR0439: the script of the request {line:?} has been loading for {:.1} s (startup-timeout): its client \
                 gets 504, this worker is replaced",
                s.seconds
            ),
        };
        self.log(Level::Error, text);
        let (row, row_generation) = (s.lease.row, s.lease.word.generation);
        self.tell(&FromWorker::Stuck { reason: s.reason, row, row_generation });
    }

    /// The stacks of all threads, by a signal whose handler needs no GIL.
    fn write_stacks(&self, now: Instant) {
        let mut last = lock(&self.watch.stacks_at);
        if last.is_none_or(|t| now.saturating_duration_since(t) >= STACKS) {
            *last = Some(now);
            sys::signal_stacks();
        }
    }

    fn check_gil(&self, now: Instant) {
        let limit = span(self.plan.deadlock_timeout);
        let since = self.watch.probing.load(SeqCst);
        if limit.is_zero() || since == 0 || self.watch.deadlocked.load(Relaxed) {
            return;
        }
        let waited = Duration::from_micros(self.watch.now().saturating_sub(since));
        if waited < limit {
            return;
        }
        self.watch.deadlocked.store(true, Relaxed);
        let seconds = waited.as_secs_f64();
        let text = format!(
            "MWR0438: the GIL could not be had for {seconds:.1} s (deadlock-timeout): this worker is replaced; {} requests \
             in it are lost",
            self.inside()
        );
        self.log(Level::Error, text);
        self.write_stacks(now);
        self.tell(&FromWorker::Deadlocked);
    }
}

/// Starts the thread that interrupts requests and sees whether the GIL can be had, where one of them is wanted.
pub fn spawn(shared: &'static Shared, exception: Py<PyType>, py: Python<'_>) -> std::io::Result<()> {
    let deadlock = span(shared.plan.deadlock_timeout);
    if EXCEPTION.set(py, exception).is_err() || (deadlock.is_zero() && span(shared.plan.interrupt_timeout).is_zero()) {
        return Ok(());
    }
    let pause = if deadlock.is_zero() { Duration::from_secs(3600) } else { TICK.min(deadlock / 4) };
    let run = move || {
        loop {
            let wanted = lock(&shared.watch.wanted);
            let woken = shared.watch.wake.wait_timeout_while(wanted, pause, |w| !*w);
            let mut wanted = woken.unwrap_or_else(PoisonError::into_inner).0;
            *wanted = false;
            drop(wanted);
            if sys::forked() {
                return;
            }
            shared.watch.probing.store(shared.watch.now(), SeqCst);
            Python::attach(|py| {
                shared.watch.probing.store(0, SeqCst);
                interrupt(shared, py);
            });
        }
    };
    std::thread::Builder::new().name("wsgi-watch".into()).stack_size(256 * 1024).spawn(run).map(drop)
}

/// Raises the exception where it is due. The GIL is held throughout, so no thread can leave the application meanwhile.
fn interrupt(shared: &Shared, py: Python<'_>) {
    let Some(exception) = EXCEPTION.get(py) else { return };
    for (thread, t) in shared.watch.threads.iter().enumerate() {
        let mut request = lock(&t.request);
        let Some(r) = request.as_mut() else { continue };
        let due = matches!(r.stage, Stage::Interrupting(_)) && r.inside && !r.interrupted;
        if !due || !shared.table.is_running(&r.lease) {
            continue;
        }
        r.interrupted = true;
        sys::set_async_exception(py, r.ident, Some(exception.bind(py)));
        let seconds = r.since.elapsed().as_secs_f64();
        drop(request);
        let line = shared.journal.entry(thread as u16).map(|e| String::from_utf8_lossy(&e.line).into_owned());
        let line = line.unwrap_or_default();
        let text = format!("MWR0437: the request {line:?} has run for {seconds:.1} s (request-timeout): interrupted");
        shared.log(Level::Warn, text);
    }
}
