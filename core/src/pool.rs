//! One application group as a server process sees it: the table, the token, the sockets' directory, idle connections,
//! and the choice of a worker (dispatch policy, DESIGN 6).

use crate::conn::Conn;
use crate::error::RequestError;
use crate::passed::Trust;
use mod_wsgi_scoreboard::layout::header;
use mod_wsgi_scoreboard::{ClientId, Lease, PoolState, Shape, SlotState, Table};
use mod_wsgi_wire::encode;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a request needs to know of its daemon process group.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Longest wait for a thread of a worker; `None` = for ever.
    pub queue_timeout: Option<Duration>,
    /// Longest wait for a first ready worker.
    pub startup_timeout: Duration,
    pub maximum_application_groups: u16,
    /// Bodies are read whole before a worker hears of the request, unless the place says otherwise.
    pub request_buffering: bool,
    /// Longest time in which connections to workers may fail.
    pub connect_timeout: Duration,
    /// Longest time in which nothing moves between the server and the worker that runs the request; `None` = as long as
    /// the server waits for clients.
    pub socket_timeout: Option<Duration>,
    /// Longest time in which a client takes nothing of a response under way; `None` likewise.
    pub response_socket_timeout: Option<Duration>,
    /// Workers may pass files instead of their bytes (`pass-files`): those that run as the server's own user, unless told.
    /// Another user's could pass what neither can be read nor closed without waiting for that user (see [`crate::passed`]).
    pub files: bool,
}

pub(crate) fn socket_path(dir: BorrowedFd<'_>, slot: u16, slot_generation: u32) -> String {
    format!("/proc/self/fd/{}/{slot}.{slot_generation}", dir.as_raw_fd())
}

/// What has become of a request that was sent a while ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The worker has claimed it, or has gone: its connection tells more.
    Claimed,
    /// It waits where it is.
    Waits,
    /// It was taken back: nothing has run, it may be sent elsewhere. Its connection must be closed.
    Recalled,
    /// The same, because it has waited as long as queue-timeout allows.
    TimedOut(Duration),
}

/// A worker that has left a request unclaimed while others were idle is passed over for this long.
const PASS_OVER: Duration = Duration::from_secs(1);

/// A mapped application group.
pub struct Pool {
    pub group: String,
    /// Key of the application group; empty = %{GLOBAL}.
    pub application: String,
    pub table: Table,
    pub limits: Limits,
    token: [u8; 16],
    /// Whether its workers may pass descriptors.
    pub trust: Trust,
    dir: OwnedFd,
    slots: Box<[SlotCache]>,
    /// Requests of this process that wait for a first ready worker.
    pub waiting: AtomicUsize,
    hint: AtomicU32,
    epoch: Instant,
}

/// What this process keeps per slot.
#[derive(Default)]
struct SlotCache {
    /// Idle connections, last used on top: few sockets stay warm. The lock is held for a push or a pop only.
    idle: Mutex<Vec<Conn>>,
    /// Milliseconds since `Pool::epoch` until which the slot is passed over.
    passed_over: AtomicU64,
}

impl Pool {
    /// Takes over what the supervisor has sent.
    pub fn new(group: &str, application: &str, table: Table, limits: Limits, token: [u8; 16], dir: OwnedFd) -> Pool {
        let n = table.shape().slots as usize;
        let trust = Trust::new(limits.files);
        Pool {
            group: group.to_owned(),
            application: application.to_owned(),
            table,
            limits,
            token,
            trust,
            dir,
            slots: (0..n).map(|_| SlotCache::default()).collect(),
            waiting: AtomicUsize::new(0),
            hint: AtomicU32::new(0),
            epoch: Instant::now(),
        }
    }

    pub fn shape(&self) -> Shape {
        self.table.shape()
    }

    /// Name for messages: the group, and the application group where it is not %{GLOBAL}.
    pub fn label(&self) -> String {
        match (self.group.as_str(), self.application.as_str()) {
            ("", "") => "%{GLOBAL}".to_owned(),
            (g, "") => g.to_owned(),
            (g, a) => format!("{g}|{a}"),
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    /// Whether any slot is READY.
    pub fn any_ready(&self) -> bool {
        (0..self.shape().slots).any(|s| self.table.slot(s).1 == SlotState::Ready)
    }

    /// Takes a row of the ready worker with the fewest rows in use, lowest slot on a tie; `avoid` and slots passed over
    /// come last. `None`: no free row anywhere.
    pub fn take(&self, client: ClientId, avoid: Option<u16>) -> Option<Lease> {
        let shape = self.shape();
        // Starting points spread over the rows, so that threads do not race for the same word.
        let hint = (self.hint.fetch_add(1, Relaxed) % shape.rows as u32) as u16;
        let ready = |s: &u16| self.table.slot(*s).1 == SlotState::Ready;
        let mut now = None;
        let mut best: Option<(usize, u16)> = None;
        for s in (0..shape.slots).filter(ready) {
            let mut cost = self.table.in_use(s);
            let until = self.slots[s as usize].passed_over.load(Relaxed);
            if avoid == Some(s) || (until != 0 && until > *now.get_or_insert_with(|| self.now())) {
                cost += 1 << 20;
            }
            if best.is_none_or(|(c, _)| cost < c) {
                best = Some((cost, s));
            }
        }
        let (_, first) = best?;
        let others = (0..shape.slots).filter(|s| *s != first).filter(ready);
        std::iter::once(first).chain(others).find_map(|s| self.table.take(s, hint, client))
    }

    /// One try for a row, `waited` after the request came. `Ok(None)`: no worker is ready yet, look again a little later.
    /// QueueFull may pass in a moment: a worker frees a row just after its last frame.
    pub fn admit(&self, client: ClientId, avoid: Option<u16>, waited: Duration) -> Result<Option<Lease>, RequestError> {
        if let Some(lease) = self.take(client, avoid) {
            return Ok(Some(lease));
        }
        if self.any_ready() {
            return Err(RequestError::QueueFull(self.label()));
        }
        match self.table.pool() {
            PoolState::Failed => return Err(RequestError::GroupFailed(self.label())),
            // Set again each time: an idle pool may have looked just before the last worker ended.
            _ => self.table.set_wanted(),
        }
        let limit = self.start_limit();
        if waited >= limit {
            return Err(RequestError::NotReady { group: self.label(), seconds: limit.as_secs() });
        }
        Ok(None)
    }

    /// How long a request waits for a first ready worker.
    fn start_limit(&self) -> Duration {
        self.limits.queue_timeout.map_or(self.limits.startup_timeout, |q| q.min(self.limits.startup_timeout))
    }

    /// Whether [`Pool::admit`] would only say that no worker is ready yet.
    pub fn must_wait(&self, waited: Duration) -> bool {
        self.table.pool() == PoolState::Active && !self.any_ready() && waited < self.start_limit()
    }

    /// Whether another ready worker than `slot` has an idle thread.
    pub fn idle_elsewhere(&self, slot: u16) -> bool {
        let shape = self.shape();
        (0..shape.slots).any(|s| {
            s != slot
                && self.table.slot(s).1 == SlotState::Ready
                && self.table.in_use(s) < shape.threads as usize
                && self.slots[s as usize].passed_over.load(Relaxed) <= self.now()
        })
    }

    /// Looks at a request that was sent and has not been answered, `waited` after it came: one that has not been claimed
    /// is taken back when another worker could run it, when its own does not look well, or when its time is over.
    pub fn look(&self, lease: &Lease, waited: Duration) -> Look {
        if !self.table.is_sent(lease) {
            return Look::Claimed;
        }
        let (generation, state) = self.table.slot(lease.slot);
        let unwell = generation != lease.slot_generation || state != SlotState::Ready;
        if unwell || self.idle_elsewhere(lease.slot) {
            if !self.table.recall(lease) {
                return Look::Claimed;
            }
            // A worker whose threads are all busy is well; one with a free thread that does not take its requests is not.
            if unwell || self.table.running(lease.slot) < self.shape().threads as usize {
                self.pass_over(lease.slot);
            }
            return Look::Recalled;
        }
        match self.limits.queue_timeout {
            Some(limit) if waited >= limit => {
                if !self.table.recall(lease) {
                    return Look::Claimed;
                }
                self.table.count(header::QUEUE_TIMEOUTS);
                Look::TimedOut(limit)
            }
            _ => Look::Waits,
        }
    }

    /// Marks a worker that does not take its requests.
    pub fn pass_over(&self, slot: u16) {
        self.slots[slot as usize].passed_over.store(self.now() + PASS_OVER.as_millis() as u64, Relaxed);
    }

    /// Whether a request could get a row now, or of a worker that is still to come: asked before a body is read.
    pub fn check_room(&self) -> Result<(), RequestError> {
        let mut any = false;
        for s in (0..self.shape().slots).filter(|s| self.table.slot(*s).1 == SlotState::Ready) {
            any = true;
            if self.table.in_use(s) < self.shape().rows as usize {
                return Ok(());
            }
        }
        if any {
            self.table.count(header::QUEUE_FULL);
            return Err(RequestError::QueueFull(self.label()));
        }
        match self.table.pool() {
            PoolState::Failed => Err(RequestError::GroupFailed(self.label())),
            _ => Ok(()),
        }
    }

    /// Why a load balancer should send no requests yet; `None` = it may. The queue counts as long as it has room.
    pub fn unready(&self) -> Option<&'static str> {
        if self.table.counter(header::AWAY) > 0 {
            return Some("it has been told so");
        }
        match self.table.pool() {
            PoolState::Failed => return Some("its workers cannot start"),
            // Its first request starts one.
            PoolState::Idle => return None,
            PoolState::Active | PoolState::Retired => {}
        }
        let mut ready = (0..self.shape().slots).filter(|s| self.table.slot(*s).1 == SlotState::Ready).peekable();
        if ready.peek().is_none() {
            return Some("no worker is ready");
        }
        if self.table.counter(header::UNLOADED) > 0 {
            return Some("an application cannot be loaded");
        }
        let full = ready.all(|s| self.table.in_use(s) >= self.shape().rows as usize);
        full.then_some("its queue is full")
    }

    /// Whether requests of this pool must ask the supervisor for another table.
    pub fn retired(&self) -> bool {
        self.table.pool() == PoolState::Retired
    }

    /// An idle connection to that incarnation of the slot.
    pub fn take_conn(&self, slot: u16, slot_generation: u32) -> Option<Conn> {
        let mut idle = self.slots[slot as usize].idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let conn = idle.pop()?;
            if conn.slot_generation == slot_generation {
                return Some(conn);
            }
        }
    }

    /// Drops the idle connections to a slot: one was found closed, so the worker has probably closed more.
    pub fn forget_idle(&self, slot: u16) {
        let gone = std::mem::take(&mut *self.slots[slot as usize].idle.lock().unwrap_or_else(PoisonError::into_inner));
        drop(gone);
    }

    /// Opens a connection.
    pub fn open_conn(&self, lease: &Lease, client: ClientId) -> Result<Conn, crate::conn::ConnError> {
        Conn::open(self.dir(), lease.slot, lease.slot_generation, &self.token, client, &self.trust)
    }

    /// Where a slot's worker listens. Through /proc because the directory's own path may be longer than sun_path holds.
    pub fn socket_path(&self, lease: &Lease) -> String {
        socket_path(self.dir(), lease.slot, lease.slot_generation)
    }

    /// HELLO of this server process, the first frame on every connection.
    pub fn hello(&self, client: ClientId) -> Vec<u8> {
        let mut hello = Vec::with_capacity(32);
        encode::hello_server(&mut hello, &self.token, client);
        hello
    }

    fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Gives back a connection whose DONE has been read.
    pub fn put_conn(&self, slot: u16, conn: Conn) {
        let mut idle = self.slots[slot as usize].idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.first().is_some_and(|c| c.slot_generation != conn.slot_generation) {
            idle.clear();
        }
        if idle.len() < self.shape().rows as usize {
            idle.push(conn);
        }
    }
}
