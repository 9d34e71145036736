//! What one request-serving process has: its link to the supervisor, pools, idle connections, requests that wait, and the
//! two timers that look after them. nginx calls from one thread; only the fetching of tables has a thread of its own,
//! because asking the supervisor waits.
#![allow(unsafe_code)]

use crate::conn::{self, OpenError, Wire};
use crate::guard::callback;
use crate::lane::Lane;
use crate::log;
use crate::peer::Exchange;
use crate::sys;
use mod_wsgi_core::error::{RequestError, Verdict};
use mod_wsgi_core::link::Link;
use mod_wsgi_core::pool::{Limits, Look, Pool};
use mod_wsgi_core::runtime::{Runtime, is_watched};
use mod_wsgi_scoreboard::Lease;
use mod_wsgi_wire::frame::{AbortReason, Level};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// After this long without an answer a row is looked at (DESIGN 6).
const AGE: sys::ngx_msec_t = 20;
/// How often requests that wait for a row or a first ready worker look again.
const PARK: sys::ngx_msec_t = 5;

/// One generation of nginx's configuration at run time.
pub struct Generation {
    pub runtime: Runtime,
    pub run_dir: String,
    /// How long the end of the workers is awaited, seconds.
    pub patience: f64,
    /// Somebody may ask whether this process is ready: it fetches its tables at once.
    pub readiness: bool,
}

/// Why a request fails: what the client gets and what the log says.
#[derive(Debug, Clone)]
pub struct Failure {
    pub verdict: Verdict,
    pub text: String,
    /// The case of wsgi_cache_use_stale, or 0.
    pub case: u32,
}

impl From<&RequestError> for Failure {
    fn from(e: &RequestError) -> Failure {
        let case = match e {
            RequestError::NotReady { .. }
            | RequestError::QueueTimeout { .. }
            | RequestError::Aborted(AbortReason::Timeout) => sys::NGX_HTTP_UPSTREAM_FT_TIMEOUT,
            RequestError::BadResponse(_)
            | RequestError::WorkerProtocol { .. }
            | RequestError::Aborted(AbortReason::Protocol) => sys::NGX_HTTP_UPSTREAM_FT_INVALID_HEADER,
            // The application has raised: its status is the case.
            RequestError::Aborted(_) | RequestError::TooLong(_) | RequestError::ClientGone => 0,
            _ => sys::NGX_HTTP_UPSTREAM_FT_ERROR,
        };
        Failure { verdict: e.verdict(), text: e.to_string(), case }
    }
}

/// An application group with this process's idle connections to its workers.
pub struct Group {
    pub pool: Arc<Pool>,
    /// By slot, last used on top: few sockets stay warm.
    idle: RefCell<Vec<Vec<*mut Wire>>>,
    /// By slot: what small requests share.
    lanes: RefCell<Vec<Option<Rc<Lane>>>>,
    /// For `$upstream_addr` and nginx's messages.
    pub name: Box<(String, sys::ngx_str_t)>,
}

impl Group {
    fn new(pool: Arc<Pool>) -> Group {
        let slots = pool.shape().slots as usize;
        let text = format!("wsgi:{}", pool.label());
        let s = sys::ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() };
        Group {
            pool,
            idle: RefCell::new(vec![Vec::new(); slots]),
            lanes: RefCell::new(vec![None; slots]),
            name: Box::new((text, s)),
        }
    }

    /// An idle connection to that incarnation of the slot.
    pub fn take_idle(&self, slot: u16, generation: u32) -> Option<*mut Wire> {
        loop {
            let wire = self.idle.borrow_mut().get_mut(slot as usize)?.pop()?;
            if conn::leads_to(wire, generation) {
                return Some(wire);
            }
            conn::close(wire);
        }
    }

    /// The lane to that incarnation of a slot.
    pub fn lane(self: &Rc<Self>, lease: &Lease, client: u32, log: *mut sys::ngx_log_t) -> Result<Rc<Lane>, OpenError> {
        let place = lease.slot as usize;
        let old = self.lanes.borrow_mut().get_mut(place).and_then(Option::take);
        let lane = match old {
            Some(lane) if lane.takes(lease.slot_generation) => lane,
            old => {
                if let Some(old) = old {
                    old.leave();
                }
                Lane::open(self, lease, client, log)?
            }
        };
        if let Some(entry) = self.lanes.borrow_mut().get_mut(place) {
            *entry = Some(lane.clone());
        }
        Ok(lane)
    }

    /// Forgets a lane that has been closed.
    pub fn forget_lane(&self, lane: &Lane) {
        let mut lanes = self.lanes.borrow_mut();
        if let Some(entry) = lanes.get_mut(lane.slot as usize)
            && entry.as_ref().is_some_and(|l| std::ptr::eq(&**l, lane))
        {
            *entry = None;
        }
    }

    /// Keeps a connection on which DONE has been read; one too many is closed.
    pub fn put_idle(&self, slot: u16, wire: *mut Wire) {
        let most = self.pool.shape().rows as usize;
        let full = match self.idle.borrow_mut().get_mut(slot as usize) {
            Some(stack) if stack.len() < most => {
                stack.push(wire);
                false
            }
            _ => true,
        };
        if full {
            conn::close(wire);
        }
    }

    /// Takes a connection out that turned out to be closed.
    pub fn forget(&self, wire: *mut Wire) {
        for stack in self.idle.borrow_mut().iter_mut() {
            stack.retain(|w| *w != wire);
        }
    }

    /// Closes the idle connections to a slot: one was found closed, so the worker has probably closed more.
    pub fn forget_slot(&self, slot: u16) {
        let gone = self.idle.borrow_mut().get_mut(slot as usize).map(std::mem::take).unwrap_or_default();
        gone.into_iter().for_each(conn::close);
    }

    fn close_all(&self) {
        let all: Vec<*mut Wire> = self.idle.borrow_mut().iter_mut().flat_map(std::mem::take).collect();
        all.into_iter().for_each(conn::close);
        let lanes: Vec<Rc<Lane>> = self.lanes.borrow_mut().iter_mut().filter_map(Option::take).collect();
        lanes.iter().for_each(|l| l.leave());
    }
}

/// A place in the list of requests under way; stale once the request has left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    index: u32,
    generation: u32,
}

#[derive(Default)]
struct Tickets {
    all: Vec<(u32, *mut Exchange)>,
    free: Vec<u32>,
}

/// A timer of this process that never keeps nginx from ending.
struct Timer {
    event: Box<sys::ngx_event_t>,
    /// nginx's debug messages print the descriptor of the connection that an event's data points to.
    _owner: Box<sys::ngx_connection_t>,
}

impl Timer {
    fn new(handler: unsafe extern "C" fn(*mut sys::ngx_event_t)) -> Timer {
        // SAFETY: nginx's records of numbers and pointers; nginx itself begins them with zeroes.
        let (mut owner, mut event) = unsafe {
            (Box::new(std::mem::zeroed::<sys::ngx_connection_t>()), Box::new(std::mem::zeroed::<sys::ngx_event_t>()))
        };
        owner.fd = -1;
        event.data = (&raw mut *owner).cast();
        event.handler = Some(handler);
        event.log = log::of_process();
        event.set_cancelable(1);
        Timer { event, _owner: owner }
    }

    fn start(&mut self, ms: sys::ngx_msec_t) {
        if self.event.timer_set() == 0 {
            // SAFETY: a live event that belongs to this process.
            unsafe { sys::mwr_add_timer(&raw mut *self.event, ms) };
        }
    }

    fn stop(&mut self) {
        // SAFETY: as above.
        unsafe { sys::mwr_del_timer(&raw mut *self.event) };
    }
}

/// A table that is to be asked for.
struct Job {
    group: String,
    application: String,
    limits: Limits,
}

type Answers = Arc<Mutex<Vec<(String, String, Result<(), Failure>)>>>;

/// This process.
pub struct Process {
    generation: Rc<Generation>,
    link: Arc<Link>,
    groups: RefCell<Vec<Rc<Group>>>,
    tickets: RefCell<Tickets>,
    /// Requests in the order they were sent, with the time at which they are looked at.
    sent: RefCell<VecDeque<(sys::ngx_msec_t, Ticket)>>,
    /// Requests that wait for a row, first come first.
    parked: RefCell<VecDeque<Ticket>>,
    sent_timer: RefCell<Timer>,
    park_timer: RefCell<Timer>,
    asked: RefCell<Vec<(String, String)>>,
    jobs: Sender<Job>,
    answers: Answers,
    bell: OwnedFd,
    bell_connection: Cell<*mut sys::ngx_connection_t>,
    pid: u32,
    frames: RefCell<Vec<Vec<u8>>>,
    /// Connections without sockets, for requests that ride on lanes.
    spares: RefCell<Vec<*mut Wire>>,
    /// A socket that nothing is connected to: what nginx sees of connections without one.
    quiet: OwnedFd,
}

struct Local(Cell<*const Process>);
// SAFETY: nginx calls modules from one thread only; no other thread of this module touches it.
unsafe impl Sync for Local {}
static PROCESS: Local = Local(Cell::new(std::ptr::null()));

/// This process, once it has begun to serve.
pub fn current() -> Option<&'static Process> {
    // SAFETY: null, or the process made by `begin`, which is never freed while nginx may call.
    unsafe { PROCESS.0.get().as_ref() }
}

/// Most connections without sockets that are kept: each is one of nginx's records.
const SPARES: usize = 64;
/// Largest frame kept for the next request.
const KEPT: usize = 16 * 1024;

/// Begins to serve requests of a generation, once in the life of a process.
pub fn begin(generation: Rc<Generation>) -> std::io::Result<()> {
    generation.runtime.begin_child()?;
    let link = generation.runtime.shared_link().ok_or_else(|| std::io::Error::other("no link"))?;
    let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK)?;
    let quiet = conn::unconnected()?;
    let (jobs, orders) = channel::<Job>();
    let answers: Answers = Arc::default();
    let (own_link, own_answers, own_bell) = (link.clone(), answers.clone(), bell.try_clone()?);
    mod_wsgi_core::link::spawn_quiet("wsgi-tables", move || {
        for job in orders {
            let answer =
                own_link.pool(&job.group, &job.application, &job.limits).map(drop).map_err(|e| Failure::from(&e));
            own_answers.lock().unwrap_or_else(PoisonError::into_inner).push((job.group, job.application, answer));
            // A full counter wakes the reader as well.
            let _ = rustix::io::write(&own_bell, &1u64.to_ne_bytes());
        }
    })?;
    let process = Box::new(Process {
        generation,
        link,
        groups: RefCell::default(),
        tickets: RefCell::default(),
        sent: RefCell::default(),
        parked: RefCell::default(),
        sent_timer: RefCell::new(Timer::new(on_sent_timer)),
        park_timer: RefCell::new(Timer::new(on_park_timer)),
        asked: RefCell::default(),
        jobs,
        answers,
        bell,
        bell_connection: Cell::new(std::ptr::null_mut()),
        pid: std::process::id(),
        frames: RefCell::default(),
        spares: RefCell::default(),
        quiet,
    });
    process.watch_bell();
    let process: &'static Process = Box::leak(process);
    PROCESS.0.set(process);
    crate::conn::keep_spare();
    if process.generation.readiness {
        for name in process.watched() {
            // What fails is asked for again when somebody wants to know.
            let _ = process.group(name, "");
        }
    }
    Ok(())
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The limits of a group of the configuration.
    pub fn limits(&self, group: &str) -> Result<&Limits, RequestError> {
        let entry = self.generation.runtime.groups.get(group);
        let entry = entry.ok_or_else(|| RequestError::UnknownGroup(group.to_owned()))?;
        entry.limits.as_ref().ok_or_else(|| RequestError::GroupFailed(group.to_owned()))
    }

    /// This process's number at the supervisor; 0 while it has none.
    pub fn client(&self) -> u32 {
        self.link.client()
    }

    /// The pool of an application group. `Ok(None)`: it has been asked for; look again a little later.
    pub fn group(&self, group: &str, application: &str) -> Result<Option<Rc<Group>>, RequestError> {
        let same = |g: &Rc<Group>| g.pool.group == group && g.pool.application == application;
        let found = self.groups.borrow().iter().find(|g| same(g)).cloned();
        if let Some(found) = found {
            if !found.pool.retired() {
                return Ok(Some(found));
            }
            found.close_all();
            self.groups.borrow_mut().retain(|g| !same(g));
        }
        let limits = self.limits(group)?;
        if let Some(pool) = self.link.known(group, application) {
            let new = Rc::new(Group::new(pool));
            self.groups.borrow_mut().push(new.clone());
            return Ok(Some(new));
        }
        let key = (group.to_owned(), application.to_owned());
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&key) {
            let job = Job { group: key.0.clone(), application: key.1.clone(), limits: limits.clone() };
            if self.jobs.send(job).is_err() {
                return Err(RequestError::Supervisor("the thread that asks for tables has ended".to_owned()));
            }
            asked.push(key);
        }
        Ok(None)
    }

    /// The groups that readiness is about.
    fn watched(&self) -> impl Iterator<Item = &String> {
        self.generation.runtime.groups.keys().filter(|name| is_watched(&self.link, name))
    }

    /// Why a load balancer should send nothing here yet; `None` = it may. A table that is not here is asked for.
    pub fn unready(&self) -> Option<String> {
        self.watched().find_map(|name| match self.group(name, "") {
            Ok(Some(g)) => g.pool.unready().map(|why| format!("{}: {why}", g.pool.label())),
            Ok(None) => Some(format!("group '{name}' is not known here yet")),
            Err(e) => Some(e.to_string()),
        })
    }

    /// A buffer for a frame, and back.
    pub fn take_frame(&self) -> Vec<u8> {
        self.frames.borrow_mut().pop().unwrap_or_default()
    }

    pub fn give_frame(&self, mut frame: Vec<u8>) {
        if frame.capacity() <= KEPT && self.frames.borrow().len() < 64 {
            frame.clear();
            self.frames.borrow_mut().push(frame);
        }
    }

    /// A socket that never fails, and never has anything.
    pub fn quiet(&self) -> i32 {
        self.quiet.as_raw_fd()
    }

    /// A connection without a socket, and back.
    pub fn take_socketless(&self) -> Option<*mut Wire> {
        self.spares.borrow_mut().pop()
    }

    pub fn keep_socketless(&self, wire: *mut Wire) {
        let mut spares = self.spares.borrow_mut();
        if spares.len() < SPARES {
            spares.push(wire);
        } else {
            drop(spares);
            conn::dispose(wire);
        }
    }

    // --- requests under way -------------------------------------------------------------------------------------

    fn ticket(&self, x: *mut Exchange) -> Ticket {
        let mut t = self.tickets.borrow_mut();
        let index = t.free.pop().unwrap_or_else(|| {
            t.all.push((0, std::ptr::null_mut()));
            t.all.len() as u32 - 1
        });
        let entry = &mut t.all[index as usize];
        entry.1 = x;
        Ticket { index, generation: entry.0 }
    }

    fn holder(&self, ticket: Ticket) -> Option<*mut Exchange> {
        let t = self.tickets.borrow();
        let (generation, x) = *t.all.get(ticket.index as usize)?;
        (generation == ticket.generation && !x.is_null()).then_some(x)
    }

    /// The request has left: its ticket is good for nothing any more.
    pub fn drop_ticket(&self, ticket: Ticket) {
        let mut t = self.tickets.borrow_mut();
        if let Some(entry) = t.all.get_mut(ticket.index as usize)
            && entry.0 == ticket.generation
        {
            entry.0 = entry.0.wrapping_add(1);
            entry.1 = std::ptr::null_mut();
            t.free.push(ticket.index);
        }
    }

    /// Watches over a request that has been sent.
    pub fn watch_sent(&self, x: *mut Exchange) -> Ticket {
        let ticket = self.ticket(x);
        let mut sent = self.sent.borrow_mut();
        if sent.is_empty() {
            self.sent_timer.borrow_mut().start(AGE);
        }
        // SAFETY: reads nginx's clock.
        sent.push_back((unsafe { sys::mwr_now() } + AGE, ticket));
        ticket
    }

    /// Lets a request wait until it may be tried again.
    pub fn park(&self, x: *mut Exchange) -> Ticket {
        let ticket = self.ticket(x);
        self.parked.borrow_mut().push_back(ticket);
        self.park_timer.borrow_mut().start(PARK);
        ticket
    }

    fn look_at_sent(&self) {
        // SAFETY: reads nginx's clock.
        let now = unsafe { sys::mwr_now() };
        loop {
            let Some((due, ticket)) = self.sent.borrow().front().copied() else { return };
            if due > now {
                self.sent_timer.borrow_mut().start(due - now);
                return;
            }
            self.sent.borrow_mut().pop_front();
            let Some(x) = self.holder(ticket) else { continue };
            // Waking it may end the request and with it the ticket.
            match crate::peer::look(x) {
                Look::Waits => self.sent.borrow_mut().push_back((now + AGE, ticket)),
                Look::Claimed => {}
                Look::Recalled | Look::TimedOut(_) => crate::peer::wake(x),
            }
        }
    }

    fn look_at_parked(&self) {
        // Each is tried once; who must wait on comes back by itself, behind the others of this round.
        let round = std::mem::take(&mut *self.parked.borrow_mut());
        for ticket in round {
            match self.holder(ticket) {
                Some(x) if crate::peer::must_wait(x) => self.parked.borrow_mut().push_back(ticket),
                Some(x) => crate::peer::wake(x),
                None => {}
            }
        }
        if !self.parked.borrow().is_empty() {
            self.park_timer.borrow_mut().start(PARK);
        }
    }

    // --- answers of the thread ----------------------------------------------------------------------------------

    fn watch_bell(&self) {
        let failed = || log::process(Level::Crit, "MWR0230: the module's own descriptor cannot be watched");
        let Ok(copy) = self.bell.try_clone() else { return failed() };
        // SAFETY: nginx gives a connection record for a descriptor, or null; the copy belongs to the record from then on.
        unsafe {
            let Some(c) = sys::ngx_get_connection(copy.as_raw_fd(), log::of_process()).as_mut() else {
                return failed();
            };
            let _ = copy.into_raw_fd();
            (*c.read).handler = Some(on_bell);
            (*c.read).log = log::of_process();
            (*c.write).log = log::of_process();
            // Not one of those whose being open at the end nginx complains about.
            (*c.read).set_channel(1);
            if sys::mwr_add_read(c.read) != 0 {
                failed();
            }
            self.bell_connection.set(c);
        }
    }

    fn take_answers(&self) {
        let mut count = [0u8; 8];
        // Only wakes; what there is to do is in the list.
        let _ = rustix::io::read(&self.bell, &mut count);
        let answers = std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner));
        for (group, application, answer) in answers {
            self.asked.borrow_mut().retain(|k| !(k.0 == group && k.1 == application));
            if let Err(failure) = answer {
                let waiting: Vec<Ticket> = self.parked.borrow().iter().copied().collect();
                for ticket in waiting {
                    if let Some(x) = self.holder(ticket) {
                        crate::peer::fail_for(x, &group, &application, &failure);
                    }
                }
            }
        }
        self.look_at_parked();
    }

    /// Closes what is open: the process ends.
    pub fn end(&self) {
        self.groups.borrow().iter().for_each(|g| g.close_all());
        std::mem::take(&mut *self.spares.borrow_mut()).into_iter().for_each(conn::dispose);
        self.sent_timer.borrow_mut().stop();
        self.park_timer.borrow_mut().stop();
        let c = self.bell_connection.replace(std::ptr::null_mut());
        if !c.is_null() {
            // SAFETY: a record that nginx gave us and that is given back once, with its descriptor.
            unsafe { sys::ngx_close_connection(c) };
        }
    }
}

unsafe extern "C" fn on_sent_timer(_: *mut sys::ngx_event_t) {
    callback("the timer of sent requests", (), || {
        if let Some(p) = current() {
            p.look_at_sent();
        }
    });
}

unsafe extern "C" fn on_park_timer(_: *mut sys::ngx_event_t) {
    callback("the timer of waiting requests", (), || {
        if let Some(p) = current() {
            p.look_at_parked();
        }
    });
}

unsafe extern "C" fn on_bell(_: *mut sys::ngx_event_t) {
    callback("the arrival of a table", (), || {
        if let Some(p) = current() {
            p.take_answers();
        }
    });
}
