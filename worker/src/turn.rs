//! Who waits for requests. Ordinarily every idle serving thread waits in the epoll set, and an arrival wakes one of them,
//! also while another thread is busy with a request that takes microseconds: a wake-up that costs the sender and this
//! process about as much as the request. So in a *brisk* phase, when requests are many and none is slow, one thread owns
//! the turn: it waits and serves alone, arrivals meanwhile lie in their sockets and wake nobody. The others stand by; one
//! of them looks once a tick, and the first request that does not end within a tick ends the phase for all.
//! Everything here runs without the interpreter.

use crate::shared::lock;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the thread that stands by looks: the longest that a blocking request delays the others, once.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without any request after which the phase ends.
const IDLE_TICKS: u32 = 20;
/// A request that takes longer is slow; it ends a phase.
const SLOW: Duration = Duration::from_millis(1);
/// After a slow request no phase begins for so long. Short: on a busy machine a quick request that was preempted looks
/// slow, and a phase that began wrongly costs the others one tick.
const CALM: Duration = Duration::from_millis(20);
/// Requests must take less than this on the average of a window: what waits a little each time (a database) gains more
/// from several threads than from fewer wake-ups.
const QUICK: Duration = Duration::from_micros(150);
/// Requests within a window that make a phase worth while.
const MANY: u64 = 30;
/// The window.
const WINDOW: Duration = Duration::from_millis(10);

/// The turn of one process.
pub struct Turn {
    epoch: Instant,
    brisk: AtomicBool,
    owner: AtomicU16,
    /// Requests ended.
    ended: AtomicU64,
    /// Microseconds since `epoch` of the last slow request; 0 = none.
    slow_at: AtomicU64,
    /// Held by the thread that ticks, while it does.
    ticking: Mutex<bool>,
    /// The same for those who only ask.
    ticks: AtomicBool,
    over: Condvar,
}

/// A thread's own count towards a phase.
pub struct Window {
    since: Instant,
    /// Requests of all threads ended before it.
    ended: u64,
    /// This thread's own in it, and the time they took.
    own: u32,
    busy: Duration,
}

impl Turn {
    pub fn new() -> Turn {
        Turn {
            epoch: Instant::now(),
            brisk: AtomicBool::new(false),
            owner: AtomicU16::new(0),
            ended: AtomicU64::new(0),
            slow_at: AtomicU64::new(0),
            ticking: Mutex::new(false),
            ticks: AtomicBool::new(false),
            over: Condvar::new(),
        }
    }

    /// Whether thread `me` owns the turn of a brisk phase.
    pub fn is_owner(&self, me: u16) -> bool {
        self.brisk.load(Relaxed) && self.owner.load(Relaxed) == me
    }

    /// Whether answers may wait to be sent: a thread ticks, and sends them with its next tick.
    pub fn may_hold(&self) -> bool {
        self.brisk.load(SeqCst) && self.ticks.load(SeqCst)
    }

    /// Returns when thread `me` may wait for requests. `inside` tells how many are inside the application; `tick` sends
    /// what waits to be sent.
    pub fn await_turn(&self, me: u16, inside: impl Fn() -> usize, tick: impl Fn()) {
        while self.brisk.load(Relaxed) && self.owner.load(Relaxed) != me {
            let mut ticking = lock(&self.ticking);
            if *ticking {
                // Another thread ticks; the end of the phase wakes this one.
                let waited = self.over.wait_timeout(ticking, Duration::from_millis(100));
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            *ticking = true;
            self.ticks.store(true, SeqCst);
            let mut idle = 0;
            while self.brisk.load(Relaxed) {
                let before = self.ended.load(Relaxed);
                ticking = self.over.wait_timeout(ticking, TICK).unwrap_or_else(PoisonError::into_inner).0;
                tick();
                if self.ended.load(Relaxed) != before {
                    idle = 0;
                } else if inside() > 0 {
                    self.slow_at.store(self.now(), Relaxed);
                    break;
                } else {
                    idle += 1;
                    if idle >= IDLE_TICKS {
                        break;
                    }
                }
            }
            *ticking = false;
            self.ticks.store(false, SeqCst);
            self.brisk.store(false, SeqCst);
            self.over.notify_all();
            // Whoever held something back before it could see this; what comes later is not held back.
            tick();
        }
    }

    /// Starts the thread that ticks where there is one serving thread and so none that stands by: only for the answers that
    /// wait to be sent. `tick` as in [`Turn::await_turn`].
    pub fn tick_for_one(
        &'static self,
        inside: impl Fn() -> usize + Send + 'static,
        tick: impl Fn() + Send + 'static,
    ) -> std::io::Result<()> {
        let run = move || {
            loop {
                let begun = self.over.wait_while(lock(&self.ticking), |_| !self.brisk.load(SeqCst));
                drop(begun.unwrap_or_else(PoisonError::into_inner));
                // No serving thread has this number.
                self.await_turn(u16::MAX, &inside, &tick);
            }
        };
        std::thread::Builder::new().name("wsgi-ticks".into()).stack_size(256 * 1024).spawn(run).map(drop)
    }

    fn now(&self) -> u64 {
        (self.epoch.elapsed().as_micros() as u64).max(1)
    }

    /// Thread `me` has ended a request that took `span`; `alone`: no other is inside the application.
    pub fn ended(&self, me: u16, window: &mut Window, span: Duration, alone: bool) {
        let ended = self.ended.fetch_add(1, Relaxed) + 1;
        if span >= SLOW {
            // A window that a pause fell into says nothing.
            *window = Window::new();
            window.ended = ended;
            self.slow_at.store(self.now(), Relaxed);
            if self.brisk.swap(false, Relaxed) {
                self.over.notify_all();
            }
            return;
        }
        window.own += 1;
        window.busy += span;
        let now = Instant::now();
        let elapsed = now.duration_since(window.since);
        if elapsed < WINDOW {
            return;
        }
        let many = (ended - window.ended) as u128 * WINDOW.as_micros() >= MANY as u128 * elapsed.as_micros();
        let quick = window.busy < QUICK * window.own;
        *window = Window { since: now, ended, own: 0, busy: Duration::ZERO };
        let slow_at = self.slow_at.load(Relaxed);
        let calm = slow_at == 0 || self.now().saturating_sub(slow_at) > CALM.as_micros() as u64;
        if many && quick && calm && alone {
            if !self.brisk.load(Relaxed) {
                self.owner.store(me, Relaxed);
                self.brisk.store(true, SeqCst);
                // Whoever waits for a phase to begin looks under the lock.
                drop(lock(&self.ticking));
                self.over.notify_all();
            }
        } else if self.is_owner(me) {
            self.brisk.store(false, Relaxed);
            self.over.notify_all();
        }
    }
}

impl Window {
    pub fn new() -> Window {
        Window { since: Instant::now(), ended: 0, own: 0, busy: Duration::ZERO }
    }
}
