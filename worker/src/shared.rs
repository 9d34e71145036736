//! What all threads of the worker share: plan, table, epoll set, connections, the order to exit. Made once by the main
//! thread before any other thread starts; lives as long as the process. No interpreter needed.

use crate::conn::{Conn, Link};
use crate::fds::{self, Fd};
use crate::lane;
use crate::serve::Work;
use crate::sys;
use crate::turn::Turn;
use crate::watch::Watch;
use mod_wsgi_scoreboard::{Journal, Shape, Table};
use mod_wsgi_wire::control::{self, FromWorker};
use mod_wsgi_wire::decode::Request;
use mod_wsgi_wire::frame::Level;
use mod_wsgi_wire::keys;
use mod_wsgi_wire::plan::WorkerPlan;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU32, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Epoll data of the listening socket; connections have `generation:32 | index:32` with generations from 1.
pub const LISTENER: u64 = 0;
/// Epoll data of the descriptor that wakes a thread for requests that are queued.
pub const BELL: u64 = u64::MAX;
/// Most bytes of control messages that wait to be sent; records beyond it are dropped and counted.
const MAX_QUEUE: usize = 1 << 20;

static SHARED: OnceLock<Shared> = OnceLock::new();

/// The worker's state.
pub struct Shared {
    pub plan: WorkerPlan,
    pub token: [u8; 16],
    pub table: Table,
    pub journal: Journal,
    pub watch: Watch,
    pub reload: Reload,
    epoll: Epoll,
    /// Events that one thread has fetched for itself and others.
    fetched: Mutex<VecDeque<Event>>,
    /// Requests that came on lanes, read by one thread for itself and others.
    queued: Mutex<VecDeque<Work>>,
    /// Lanes that are open.
    lanes: Mutex<Vec<Arc<Conn>>>,
    /// Wakes a thread that waits in the epoll set: each write is an event, and nobody reads it.
    bell: Fd,
    /// Threads that wait in the epoll set.
    waiting: AtomicUsize,
    pub listener: Fd,
    pub control: Fd,
    conns: Mutex<Slab>,
    queue: Mutex<Queue>,
    /// Wakes the control thread (write end, read end).
    pub wake_control: (Fd, Fd),
    /// Wakes the main thread (write end, read end); also Python's signal wake-up descriptor.
    pub wake_main: (Fd, Fd),
    /// Requests inside the application.
    inside: AtomicUsize,
    exit: Mutex<Option<Exit>>,
    exiting: AtomicBool,
    /// Bad greetings and frames since the last log line about them.
    hostile: Mutex<(Option<Instant>, u32)>,
    /// Some subscriber wants events of requests.
    pub events: AtomicBool,
    next_generation: AtomicU32,
    /// Requests that may still be served before the worker says that it is spent; negative afterwards.
    left: AtomicI64,
    /// Who waits for requests.
    pub turn: Turn,
}

/// Something has happened to the listener or to a connection.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// [`LISTENER`], or the connection's key.
    pub key: u64,
    /// The peer has ended its side.
    pub hung_up: bool,
}

/// Most events fetched with one system call.
const BATCH: usize = 32;

/// What requests that wait for new code wait for.
#[derive(Default)]
pub struct Reload {
    /// This worker leaves; and how often it was told to stay because the new code cannot be loaded.
    state: Mutex<(bool, u64)>,
    changed: Condvar,
}

impl Reload {
    /// This worker gets no more requests: others have the new code.
    pub fn leave(&self) {
        lock(&self.state).0 = true;
        self.changed.notify_all();
    }

    /// The new code cannot be loaded.
    pub fn stay(&self) {
        lock(&self.state).1 += 1;
        self.changed.notify_all();
    }

    /// How often it was told to stay.
    pub fn stays(&self) -> u64 {
        lock(&self.state).1
    }

    /// Waits until this worker leaves (`true`), is told to stay again after `stays` times, or until then.
    pub fn wait(&self, stays: u64, time: Duration) -> bool {
        let state = self.changed.wait_timeout_while(lock(&self.state), time, |s| !s.0 && s.1 == stays);
        state.unwrap_or_else(PoisonError::into_inner).0.0
    }
}

/// The order to end.
#[derive(Debug, Clone)]
pub struct Exit {
    pub reason: String,
    /// The control thread ends the process hard at this time.
    pub deadline: Instant,
}

#[derive(Default)]
struct Slab {
    entries: Vec<(u32, Option<Arc<Conn>>)>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u32,
    /// The control thread holds a message that is not sent yet.
    in_flight: bool,
    /// The supervisor's end has gone: nothing can be sent any more.
    closed: bool,
}

/// Locks, also after a panic elsewhere: every state guarded here is consistent between statements.
pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The state, once `start` has made it.
pub fn get() -> Option<&'static Shared> {
    SHARED.get()
}

fn pipe() -> Result<(Fd, Fd), String> {
    let flags = nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK;
    let (r, w) = nix::unistd::pipe2(flags).map_err(|e| format!("pipe: {e}"))?;
    let take = |fd| Fd::new(fd).map_err(|e| format!("pipe: {e}"));
    Ok((take(w)?, take(r)?))
}

/// A descriptor whose every write is an event.
fn bell(epoll: &Epoll) -> Result<Fd, String> {
    let failed = |e| format!("eventfd: {e}");
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let fd = EventFd::from_value_and_flags(0, flags).map_err(failed)?;
    let fd = Fd::new(fd.into()).map_err(failed)?;
    epoll.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, BELL)).map_err(failed)?;
    Ok(fd)
}

/// What a thread finds to do.
pub enum Found {
    /// A request that another thread, or this one, has read from a lane.
    Work(Work),
    Event(Event),
}

/// Reads the plan and takes over the descriptors it names.
pub fn start(plan_fd: i32) -> Result<&'static Shared, String> {
    fds::prepare();
    sys::watch_forks();
    let plan = std::fs::File::from(sys::own(plan_fd).ok_or("the plan's descriptor is not open")?);
    let size = plan.metadata().map_err(|e| format!("plan: {e}"))?.len().min(16 << 20);
    let mut text = vec![0; size as usize];
    plan.read_exact_at(&mut text, 0).map_err(|e| format!("plan: {e}"))?;
    let plan: WorkerPlan = serde_json::from_slice(&text).map_err(|e| format!("plan: {e}"))?;
    let token = plan.token.bytes().ok_or("plan: the token is no secret")?;
    let take = |what: &str, fd| Fd::inherited(fd).map_err(|e| format!("plan: descriptor {fd} ({what}): {e}"));
    let control = take("control", plan.fds.control)?;
    let listener = take("listener", plan.fds.listener)?;
    let table_fd = take("table", plan.fds.table)?;
    let journal = take("journal", plan.fds.journal)?;
    let journal = Journal::open(&journal, plan.threads).map_err(|e| e.to_string())?;
    let shape = Shape { slots: plan.slots, threads: plan.threads, rows: plan.rows };
    let table = Table::open(&table_fd, shape).map_err(|e| e.to_string())?;
    if plan.slot >= plan.slots {
        return Err(format!("plan: slot {} of {}", plan.slot, plan.slots));
    }
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFL(flags)).map_err(|e| format!("listener: {e}"))?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| format!("epoll: {e}"))?;
    let epoll = Epoll(fds::place(epoll.0).map_err(|e| format!("epoll: {e}"))?);
    let bell = bell(&epoll)?;
    let shared = Shared {
        token,
        table,
        journal,
        reload: Reload::default(),
        watch: Watch::new(plan.threads, plan.request_timeout),
        fetched: Mutex::default(),
        queued: Mutex::default(),
        lanes: Mutex::default(),
        bell,
        epoll,
        waiting: AtomicUsize::new(0),
        listener,
        control,
        conns: Mutex::default(),
        queue: Mutex::default(),
        wake_control: pipe()?,
        wake_main: pipe()?,
        inside: AtomicUsize::new(0),
        exit: Mutex::new(None),
        exiting: AtomicBool::new(false),
        hostile: Mutex::new((None, 0)),
        events: AtomicBool::new(false),
        next_generation: AtomicU32::new(1),
        left: AtomicI64::new(i64::try_from(plan.maximum_requests).unwrap_or(i64::MAX)),
        turn: Turn::new(),
        plan,
    };
    SHARED.set(shared).map_err(|_| "started twice".to_string())?;
    SHARED.get().ok_or_else(|| "not started".into())
}

impl Shared {
    // --- connections -----------------------------------------------------------------------------------------

    /// Begins to listen: called when the load set has been tried.
    pub fn listen(&self) -> nix::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        self.epoll.add(&self.listener, EpollEvent::new(flags, LISTENER))
    }

    /// Arms the listener again after an accept.
    pub fn rearm_listener(&self) {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        let mut event = EpollEvent::new(flags, LISTENER);
        // Fails only before `listen`.
        let _ = self.epoll.modify(&self.listener, &mut event);
    }

    /// Waits for something to do. `None`: nothing there (when not to `block`) or interrupted. `many`: the caller is the only
    /// one to wait, and takes what there is with one system call; the rest is kept for whoever asks next.
    #[inline]
    pub fn wait(&self, block: bool, many: bool) -> Option<Found> {
        // Before the look at what others have fetched: see `keep`.
        if block {
            self.waiting.fetch_add(1, SeqCst);
        }
        let found = self
            .queued(block as usize)
            .or_else(|| self.fetched().or_else(|| self.fetch(block, many)).map(Found::Event));
        if block {
            self.waiting.fetch_sub(1, SeqCst);
        }
        found
    }

    /// A request that is queued. If there are more, one of those that wait is woken, of which `own` are this one.
    fn queued(&self, own: usize) -> Option<Found> {
        let mut queued = lock(&self.queued);
        let work = queued.pop_front()?;
        let more = !queued.is_empty();
        drop(queued);
        if more {
            self.ring(own);
        }
        Some(Found::Work(work))
    }

    /// Whether a request from a lane waits for a thread.
    pub fn has_queued(&self) -> bool {
        !lock(&self.queued).is_empty()
    }

    /// Queues requests for whoever asks next.
    pub fn queue_up(&self, works: Vec<Work>) {
        if works.is_empty() {
            return;
        }
        lock(&self.queued).extend(works);
        // See `keep`: a thread that has begun to wait may have looked before.
        self.ring(0);
    }

    /// Wakes one of the threads that wait, of which `own` are this one.
    fn ring(&self, own: usize) {
        if self.waiting.load(SeqCst) > own {
            let _ = nix::unistd::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// Notes a connection on which the first request of a lane has come.
    pub fn add_lane(&self, conn: &Arc<Conn>) {
        lock(&self.lanes).push(conn.clone());
    }

    /// Sends the answers that wait on lanes.
    pub fn flush_lanes(&self) {
        // Copied: sending takes other locks.
        let lanes: Vec<Arc<Conn>> = lock(&self.lanes).clone();
        lanes.iter().for_each(|l| lane::flush(l));
    }

    /// Sends what waits on lanes; whether nothing is left.
    pub fn lanes_sent(&self) -> bool {
        self.flush_lanes();
        lock(&self.lanes).iter().all(|l| !l.has_pending())
    }

    fn fetched(&self) -> Option<Event> {
        lock(&self.fetched).pop_front()
    }

    fn fetch(&self, block: bool, many: bool) -> Option<Event> {
        let mut events = [EpollEvent::empty(); BATCH];
        let alone = self.waiting.load(SeqCst) == block as usize;
        let room = if many && alone { BATCH } else { 1 };
        let timeout = if block { EpollTimeout::NONE } else { EpollTimeout::ZERO };
        let n = self.epoll.wait(&mut events[..room], timeout).unwrap_or(0);
        let mut got = events[..n].iter().map(|e| Event {
            key: e.data(),
            hung_up: e.events().intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR),
        });
        let first = got.next();
        if n > 1 {
            self.keep(got, block as usize);
        }
        first
    }

    /// Keeps events for whoever asks next. A thread that has begun to wait meanwhile (there should be `own` at most)
    /// may have looked before: then the events are raised anew, since the thread that fetched them may be busy for long.
    fn keep(&self, events: impl Iterator<Item = Event>, own: usize) {
        lock(&self.fetched).extend(events);
        if self.waiting.load(SeqCst) > own {
            for event in std::mem::take(&mut *lock(&self.fetched)) {
                match self.conn(event.key) {
                    Some(conn) => self.raise(&conn),
                    None if event.key == BELL => self.ring(own),
                    None => self.rearm_listener(),
                }
            }
        }
    }

    /// Adds an accepted connection.
    pub fn add(&self, fd: Fd) -> nix::Result<()> {
        self.enlist(|key| Arc::new(Conn::new(fd, key)))
    }

    /// Gives the connection of a request that came on a lane its socket. Under the lock of what it sends.
    pub fn add_link(&self, conn: &Arc<Conn>, fd: Fd) -> nix::Result<()> {
        self.enlist(|key| {
            conn.set_link(Link { fd, key });
            conn.clone()
        })
    }

    fn enlist(&self, make: impl FnOnce(u64) -> Arc<Conn>) -> nix::Result<()> {
        let generation = self.next_generation.fetch_add(1, Relaxed).max(1);
        let conn = {
            let mut slab = lock(&self.conns);
            let index = match slab.free.pop() {
                Some(i) => i,
                None => {
                    slab.entries.push((0, None));
                    slab.entries.len() as u32 - 1
                }
            };
            let conn = make((generation as u64) << 32 | index as u64);
            slab.entries[index as usize] = (generation, Some(conn.clone()));
            conn
        };
        let Some(link) = conn.link() else { return Err(nix::Error::EBADF) };
        let added = self.epoll.add(&link.fd, EpollEvent::new(conn_flags(), link.key));
        if added.is_err() {
            self.close(&conn);
        }
        added
    }

    /// The connection an event belongs to, unless it has been closed meanwhile.
    #[inline]
    pub fn conn(&self, key: u64) -> Option<Arc<Conn>> {
        let slab = lock(&self.conns);
        let (generation, conn) = slab.entries.get(key as u32 as usize)?;
        if *generation == (key >> 32) as u32 { conn.clone() } else { None }
    }

    /// Gives up a connection: the next event of it is for whoever waits. `settled`: all that has come was looked at.
    #[inline]
    pub fn leave_conn(&self, conn: &Conn, settled: bool) {
        if !conn.leave() || !settled {
            self.raise(conn);
        }
    }

    /// Makes an event for a connection if there is anything to read, and for all that comes later.
    pub fn raise(&self, conn: &Conn) {
        loop {
            let stalled = conn.stalled.load(SeqCst);
            let mut flags = conn_flags();
            flags.set(EpollFlags::EPOLLOUT, stalled);
            self.watch(conn, flags);
            // Two threads may do this at once: the later call must not be the one that knew less.
            if conn.stalled.load(SeqCst) == stalled {
                return;
            }
        }
    }

    fn watch(&self, conn: &Conn, flags: EpollFlags) {
        if let Some(link) = conn.link() {
            // Fails only when the connection has been closed by the sweep; then nobody waits for it.
            let _ = self.epoll.modify(&link.fd, &mut EpollEvent::new(flags, link.key));
        }
    }

    /// No events for a connection until it is left unsettled: the thread that serves it reads on by itself.
    pub fn mute(&self, conn: &Conn) {
        self.watch(conn, EpollFlags::EPOLLET);
    }

    /// Forgets and closes a connection. The peer sees the end at once, even if an object kept by the application still
    /// holds the descriptor.
    pub fn close(&self, conn: &Conn) {
        // What came on a lane and got no connection of its own has nothing to close.
        let Some(link) = conn.link() else { return };
        lock(&self.lanes).retain(|l| !std::ptr::eq(&**l, conn));
        let mut slab = lock(&self.conns);
        let index = link.key as u32;
        if let Some((generation, entry)) = slab.entries.get_mut(index as usize)
            && *generation == (link.key >> 32) as u32
            && entry.take().is_some()
        {
            slab.free.push(index);
        }
        drop(slab);
        let _ = nix::sys::socket::shutdown(link.fd.raw(), nix::sys::socket::Shutdown::Both);
    }

    /// Closes the connections idle for 60 s, the longest idle first, as long as more than twice the threads are open.
    pub fn sweep(&self, now: Instant) {
        let keep = 2 * self.plan.threads as usize;
        let mut idle: Vec<(Instant, Arc<Conn>)> = {
            let slab = lock(&self.conns);
            let open = slab.entries.len() - slab.free.len();
            if open <= keep {
                return;
            }
            slab.entries.iter().filter_map(|(_, c)| c.clone()).filter_map(|c| Some((c.idle_since()?, c))).collect()
        };
        let open = idle.len();
        idle.sort_by_key(|(since, _)| *since);
        for (since, conn) in idle.into_iter().take(open.saturating_sub(keep)) {
            if now.duration_since(since) >= Duration::from_secs(60) {
                self.close(&conn);
            }
        }
    }

    // --- requests --------------------------------------------------------------------------------------------

    /// Counts a request into the application.
    pub fn enter(&self) {
        self.inside.fetch_add(1, Relaxed);
    }

    /// Counts it out.
    pub fn leave(&self) {
        self.inside.fetch_sub(1, Relaxed);
    }

    /// Requests inside the application.
    #[inline]
    pub fn inside(&self) -> usize {
        self.inside.load(Relaxed)
    }

    /// Counts a request that has ended; the last one that may be served is told to the supervisor.
    pub fn served(&self) {
        if self.plan.maximum_requests > 0 && self.left.fetch_sub(1, Relaxed) == 1 {
            self.tell(&FromWorker::Spent);
        }
    }

    /// Whether a request for this path counts neither as a request nor as activity.
    pub fn is_health_check(&self, request: &Request<'_>) -> bool {
        let paths = &self.plan.health_check_path;
        if paths.is_empty() {
            return false;
        }
        let script = request.get(keys::SCRIPT_NAME).unwrap_or_default();
        let info = request.get(keys::PATH_INFO).unwrap_or_default();
        paths.iter().any(|p| p.as_bytes().strip_prefix(script) == Some(info))
    }

    // --- exit ------------------------------------------------------------------------------------------------

    /// Orders the end: new requests are sent back, the main thread runs the exit sequence, the control thread ends the
    /// process after `timeout`. The first order counts; a later one may only shorten the time.
    pub fn request_exit(&self, reason: &str, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        {
            let mut exit = lock(&self.exit);
            match exit.as_mut() {
                Some(e) => e.deadline = e.deadline.min(deadline),
                None => *exit = Some(Exit { reason: reason.into(), deadline }),
            }
        }
        self.send_back();
        self.reload.leave();
        self.wake(&self.wake_main);
        self.wake(&self.wake_control);
    }

    /// From now on requests are not run but sent back.
    pub fn send_back(&self) {
        self.exiting.store(true, Relaxed);
    }

    /// Whether new requests are to be sent back.
    #[inline]
    pub fn exiting(&self) -> bool {
        self.exiting.load(Relaxed)
    }

    /// The order to end, if there is one.
    pub fn exit(&self) -> Option<Exit> {
        lock(&self.exit).clone()
    }

    /// Wakes a thread; a full pipe means that it will wake anyway.
    pub fn wake(&self, pipe: &(Fd, Fd)) {
        if sys::forked() {
            // The number may be the application's by now.
            return;
        }
        let _ = nix::unistd::write(&pipe.0, &[0]);
    }

    // --- control messages ------------------------------------------------------------------------------------

    /// Queues a message to the supervisor. Never blocks.
    pub fn tell(&self, message: &FromWorker) {
        if sys::forked() {
            return;
        }
        let Ok(bytes) = control::encode(message) else { return };
        let mut queue = lock(&self.queue);
        let record = matches!(message, FromWorker::Log { .. });
        if queue.closed || record && queue.bytes + bytes.len() > MAX_QUEUE {
            queue.dropped += record as u32;
            return;
        }
        queue.bytes += bytes.len();
        queue.messages.push_back(bytes);
        drop(queue);
        self.wake(&self.wake_control);
    }

    /// Queues a log record that belongs to no request.
    pub fn log(&self, level: Level, text: impl Into<String>) {
        self.tell(&FromWorker::Log { level, text: text.into() });
    }

    /// The next message to send (control thread); after records had to be dropped, one that says how many.
    pub fn next_message(&self) -> Option<Vec<u8>> {
        let mut queue = lock(&self.queue);
        let message = queue.messages.pop_front();
        queue.in_flight = true;
        if let Some(m) = &message {
            queue.bytes -= m.len();
        } else if queue.dropped > 0 {
            let text = format!("MWR0429: {} log records were dropped, the supervisor does not keep up", queue.dropped);
            queue.dropped = 0;
            return control::encode(&FromWorker::Log { level: Level::Warn, text }).ok();
        }
        message
    }

    /// The control thread has sent what it held.
    pub fn sent_all(&self) {
        lock(&self.queue).in_flight = false;
    }

    /// Whether every message has been sent, or none can be.
    pub fn queue_empty(&self) -> bool {
        let queue = lock(&self.queue);
        queue.closed || queue.messages.is_empty() && !queue.in_flight
    }

    /// Whether the supervisor's end has gone.
    pub fn is_alone(&self) -> bool {
        lock(&self.queue).closed
    }

    /// The supervisor's end has gone.
    pub fn close_queue(&self) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        queue.messages.clear();
        queue.bytes = 0;
    }

    /// Logs a peer's bad greeting or frame, at most one line a second.
    pub fn log_hostile(&self, text: &str) {
        self.log_seldom(&format!("{text}; connection closed"));
    }

    /// Logs what may happen with every request, at most one line a second.
    pub fn log_seldom(&self, text: &str) {
        let mut last = lock(&self.hostile);
        let now = Instant::now();
        if last.0.is_some_and(|t| now.duration_since(t) < Duration::from_secs(1)) {
            last.1 += 1;
            return;
        }
        let more = std::mem::take(&mut last.1);
        last.0 = Some(now);
        drop(last);
        let suffix = if more > 0 { format!(" ({more} more since the last line)") } else { String::new() };
        self.log(Level::Error, format!("{text}{suffix}"));
    }
}

/// Edge-triggered: an arrival is one event, which is raised again without a system call by the next arrival.
fn conn_flags() -> EpollFlags {
    EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET
}
