//! The supervisor's main loop: one thread, poll(2) over everything, signals through a pipe, deadlines. Connections are
//! in `connections`, servers and their processes in `servers`, workers in `pool` and `life`.

use crate::channel::{self, Channel};
use crate::command::StacksWanted;
use crate::connections::Connection;
use crate::context::Context;
use crate::held::{
    CLIENTS, FromKeeper, MASTER, MasterRecord, POOL, PoolRecord, ProcessId, ToKeeper, WORKER, WorkerRecord,
};
use crate::log::Log;
use crate::master::{Client, Master, Numbers};
use crate::pool::{Ending, Pool};
use crate::recover::Left;
use crate::rundir::{self, RunDir};
use crate::worker::{Output, record_key};
use crate::{WORKER_DIR_VARIABLE, sys, timer, watching};
use mod_wsgi_scoreboard::ClientId;
use mod_wsgi_wire::frame::Level;
use nix::poll::{PollFd, PollFlags, poll};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a supervisor without any server waits for the first.
const FIRST_SERVER: Duration = Duration::from_secs(30);
/// How long it waits after somebody has looked whether it is there.
const AFTER_PROBE: Duration = Duration::from_secs(10);
/// After a restart: time for server processes to register again before their rows are released.
const REGISTER_TIME: Duration = Duration::from_secs(5);
/// How long after a repair of counts they are looked at again: requests went on meanwhile.
const REPAIR_AGAIN: Duration = Duration::from_secs(1);
/// How long the keeper may take to hand everything over.
const HANDOVER: Duration = Duration::from_secs(10);

/// Why a supervisor cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the keeper: {0}")]
    Keeper(#[from] channel::Error),
    #[error("the keeper did not hand everything over")]
    Handover,
    #[error(transparent)]
    RunDir(#[from] rundir::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Sys(#[from] nix::Error),
}

/// How a supervisor ends.
pub enum End {
    /// No server is left.
    Done,
    /// The program has been replaced on disk: the keeper shall start the new one.
    Replace,
}

/// See the module.
pub struct Supervisor {
    pub cx: Context,
    pub listener: UnixListener,
    pub connections: BTreeMap<u64, Connection>,
    pub next_connection: u64,
    pub masters: BTreeMap<ProcessId, Master>,
    pub clients: BTreeMap<ClientId, Client>,
    pub numbers: Numbers,
    /// Until then, unknown clients may still register again.
    pub register_until: Instant,
    pub pools: BTreeMap<u32, Pool>,
    pub next_pool: u32,
    /// Accepting failed: not tried again before.
    pub accept_after: Instant,
    /// SIGTERM has come.
    pub terminating: bool,
    /// Stays without servers until then.
    pub linger: Instant,
    /// The new program shall take over.
    pub replace: bool,
    /// Application groups refused of late, so that each is logged once.
    pub refused: BTreeMap<String, Instant>,
    /// Rows of departed clients are to be released.
    pub departed: bool,
    pub stacks_wanted: Vec<StacksWanted>,
    /// When rows and counts of departed clients are looked at.
    repair_at: Option<Instant>,
}

#[derive(Clone, Copy)]
enum Source {
    Signals,
    Keeper,
    Listener,
    Connection(u64),
    Process,
    Control(u32, u16),
    /// A worker of a former supervisor.
    Former(u32, u16),
    FormerOutput(u32, u16),
    Output(u32, u16),
    Watcher(u32),
    Stray,
}

fn add<'a>(set: &mut (Vec<PollFd<'a>>, Vec<Source>), source: Source, fd: BorrowedFd<'a>, write: bool) {
    let out = if write { PollFlags::POLLOUT } else { PollFlags::empty() };
    set.0.push(PollFd::new(fd, PollFlags::POLLIN | out));
    set.1.push(source);
}

/// Runs until no server is left.
pub fn run() -> Result<End, Error> {
    sys::close_others(&[]);
    sys::reset_signals(true);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let keeper = UnixStream::from(sys::take_stdin()?);
    match nix::unistd::setsid() {
        Ok(_) | Err(nix::Error::EPERM) => {}
        Err(e) => return Err(e.into()),
    }
    let descriptors = crate::raise_descriptor_limit();
    let (mut signals, write) = UnixStream::pair()?;
    signals.set_nonblocking(true)?;
    for s in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        signal_hook::low_level::pipe::register(s, write.try_clone()?)?;
    }
    let term = Arc::new(AtomicBool::new(false));
    for s in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::flag::register(s, term.clone())?;
    }
    let mut s = Supervisor::take_over(Channel::new(keeper)?)?;
    s.cx.descriptors = descriptors;
    s.read_keeper(Instant::now());
    loop {
        let now = Instant::now();
        if term.load(Ordering::Relaxed) && !s.terminating {
            s.terminating = true;
            s.stop_all(now);
        }
        let next = s.turn(now);
        if let Some(end) = s.is_over(now) {
            return Ok(end);
        }
        let events = s.wait(&signals, next);
        let now = Instant::now();
        for source in events {
            s.dispatch(source, &mut signals, now);
        }
    }
}

impl Supervisor {
    /// Receives the listener and what a former supervisor left.
    fn take_over(mut keeper: Channel) -> Result<Supervisor, Error> {
        let now = Instant::now();
        let deadline = now + HANDOVER;
        let mut start = None;
        let mut held: Vec<(String, String, Vec<OwnedFd>)> = Vec::new();
        'handover: loop {
            keeper.fill()?;
            while let Some(message) = keeper.message::<FromKeeper>()? {
                match message {
                    FromKeeper::Start { run_directory, executable, server_uid, server_gid, restarted } => {
                        let listener = keeper.take_fd().ok_or(Error::Handover)?;
                        start = Some((run_directory, executable, server_uid, server_gid, restarted, listener));
                    }
                    FromKeeper::Held { key, record, fds } => {
                        let fds = (0..fds).map_while(|_| keeper.take_fd()).collect();
                        held.push((key, record, fds));
                    }
                    FromKeeper::Begin => break 'handover,
                    FromKeeper::Reaped { .. } => {}
                }
            }
            let mut fds = [PollFd::new(keeper.as_fd(), PollFlags::POLLIN)];
            if Instant::now() >= deadline || poll(&mut fds, timer::poll_timeout(deadline)) == Ok(0) {
                return Err(Error::Handover);
            }
        }
        let Some((run_directory, executable, server_uid, server_gid, restarted, listener)) = start else {
            return Err(Error::Handover);
        };
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let worker_dir = match std::env::var_os(WORKER_DIR_VARIABLE) {
            Some(dir) => PathBuf::from(dir),
            None => executable.with_file_name("worker"),
        };
        let cx = Context {
            log: Log::new(Level::Notice),
            keeper: Some(keeper),
            run: RunDir::open(&run_directory)?,
            executable,
            worker_dir,
            server_uid,
            server_gid,
            max_starting: std::thread::available_parallelism().map_or(1, |n| n.get()),
            starting: 0,
            stuck: BTreeSet::new(),
            descriptors: None,
            oom_kills: crate::memory::oom_kills(),
            strays: Vec::new(),
            ended: Vec::new(),
        };
        let mut s = Supervisor {
            cx,
            listener,
            connections: BTreeMap::new(),
            next_connection: 0,
            masters: BTreeMap::new(),
            clients: BTreeMap::new(),
            numbers: Numbers::new(1),
            register_until: if restarted { now + REGISTER_TIME } else { now },
            pools: BTreeMap::new(),
            next_pool: 1,
            accept_after: now,
            terminating: false,
            linger: now + FIRST_SERVER,
            replace: false,
            refused: BTreeMap::new(),
            departed: restarted,
            stacks_wanted: Vec::new(),
            repair_at: None,
        };
        s.recover(held, now);
        Ok(s)
    }

    /// Puts servers and pools of a former supervisor together again. What cannot be used is forgotten, with a line.
    fn recover(&mut self, held: Vec<(String, String, Vec<OwnedFd>)>, now: Instant) {
        let mut workers: Vec<(WorkerRecord, Left)> = Vec::new();
        let mut pools = Vec::new();
        for (key, record, fds) in held {
            let mut fds = fds.into_iter();
            let result = if key.starts_with(MASTER) {
                serde_json::from_str::<MasterRecord>(&record).map(|r| self.recover_master(r, fds.next(), now))
            } else if key.starts_with(POOL) {
                serde_json::from_str::<PoolRecord>(&record).map(|r| pools.push((r, fds.next())))
            } else if key.starts_with(WORKER) {
                serde_json::from_str::<WorkerRecord>(&record).map(|r| {
                    let mut output = |level| Output::new(fds.next()?, level, r.process.pid).ok();
                    let outputs = [output(Level::Info), output(Level::Warn)];
                    workers.push((r, Left { outputs, control: fds.next(), journal: fds.next() }));
                })
            } else if key == CLIENTS {
                serde_json::from_str::<ClientId>(&record).map(|n| self.numbers = Numbers::new(n))
            } else {
                self.cx.forget(&key);
                continue;
            };
            if let Err(e) = result {
                let text = format!("MWR0311: the record {key:?} of the former supervisor is not understood: {e}");
                self.cx.log.event(Level::Error, &text);
                self.cx.forget(&key);
            }
        }
        let mut lost = Vec::new();
        for (record, fd) in pools {
            let (id, name) = (record.id, record.group.name.clone());
            let mut own: Vec<_> = workers.extract_if(.., |(w, _)| w.pool == id).collect();
            let keys: Vec<String> = own.iter().map(|(w, _)| record_key(w.pool, w.slot)).collect();
            self.next_pool = self.next_pool.max(id + 1);
            let pool = match fd {
                Some(fd) if self.masters.contains_key(&record.master) => {
                    Pool::recover(record, fd, &mut own, &mut self.cx, now).map_err(|e| e.to_string())
                }
                Some(_) => Err("its server is not known".to_owned()),
                None => Err("its table is missing".to_owned()),
            };
            match pool {
                Ok(pool) => drop(self.pools.insert(id, pool)),
                Err(e) => {
                    let text =
                        format!("MWR0311: the table of group {name:?} cannot be taken over: {e}; a new one is made");
                    self.cx.log.event(Level::Error, &text);
                    self.cx.forget(&format!("{POOL}{id}"));
                    keys.iter().for_each(|key| self.cx.forget(key));
                }
            }
            lost.extend(own);
        }
        lost.extend(workers);
        // Of those that have ended, and of those that nobody knows any more and that end by themselves.
        for output in lost.into_iter().flat_map(|(_, left)| left.outputs).flatten() {
            self.cx.keep_output(output);
        }
        if !self.pools.is_empty() {
            let text = format!("a new supervisor has taken over {} groups of workers", self.pools.len());
            self.cx.log.event(Level::Notice, &text);
        }
    }

    /// Everything that depends on time or on what has happened; gives the time of the next thing to do.
    fn turn(&mut self, now: Instant) -> Instant {
        let mut next = now + Duration::from_secs(60);
        self.check_connections(now, &mut next);
        self.check_servers(now, &mut next);
        self.step_stacks(now, &mut next);
        if self.accept_after > now {
            next = next.min(self.accept_after);
        }
        if self.register_until > now {
            next = next.min(self.register_until);
        }
        if self.departed && self.register_until <= now {
            self.departed = false;
            self.repair_at = Some(now);
        }
        if let Some(at) = self.repair_at {
            if at <= now {
                self.repair_at = self.release_departed(now).then(|| now + REPAIR_AGAIN);
            }
            next = self.repair_at.map_or(next, |at| next.min(at));
        }
        self.cx.starting = self.pools.values().map(|p| p.just_starting(now)).sum();
        let replacing = self.pools.values().filter(|p| p.replaces_stuck());
        self.cx.stuck = replacing.map(|p| (p.master, p.group.name.clone())).collect();
        let (clients, register_until) = (&self.clients, self.register_until);
        let gone = |n: ClientId| now >= register_until && !clients.contains_key(&n);
        for pool in self.pools.values_mut() {
            next = next.min(pool.step(now, &mut self.cx, &gone));
        }
        self.hand_over_tables(now);
        self.replace_damaged(now);
        let ended: Vec<u32> = self.pools.iter().filter(|(_, p)| p.is_gone(now)).map(|(id, _)| *id).collect();
        for id in ended {
            if let Some(pool) = self.pools.remove(&id) {
                self.cx.forget(&pool.record_key());
                self.cx.run.remove_sockets(&pool.sockets.name);
            }
            // What waits for it is looked at again at once.
            next = now;
        }
        next
    }

    /// SENT rows of clients that have gone become free, and counts they left wrong become right. `true`: look again.
    fn release_departed(&mut self, now: Instant) -> bool {
        let (clients, register_until) = (&self.clients, self.register_until);
        let gone = |n: ClientId| now >= register_until && !clients.contains_key(&n);
        let mut again = false;
        for pool in self.pools.values() {
            for slot in 0..pool.table.shape().slots {
                again |= pool.table.release_departed(slot, gone) > 0;
                again |= pool.table.repair_hints(slot);
            }
        }
        again
    }

    fn is_over(&mut self, now: Instant) -> Option<End> {
        let quiet = self.connections.values().all(|c| c.channel.pending() == 0);
        let told = self.cx.keeper.as_ref().is_none_or(|k| k.pending() == 0);
        if self.replace && quiet && told {
            self.cx.tell(&ToKeeper::Replace, &[]);
            return Some(End::Replace);
        }
        if !self.masters.is_empty() || !self.pools.is_empty() || !quiet {
            return None;
        }
        if self.terminating {
            return Some(End::Done);
        }
        let fresh = self.connections.values().any(Connection::is_new);
        (now >= self.linger && !fresh).then_some(End::Done)
    }

    /// Waits for events or until `next`.
    fn wait(&self, signals: &UnixStream, next: Instant) -> Vec<Source> {
        let next = if self.masters.is_empty() { next.min(self.linger.max(Instant::now())) } else { next };
        let mut set: (Vec<PollFd<'_>>, Vec<Source>) = (Vec::new(), Vec::new());
        add(&mut set, Source::Signals, signals.as_fd(), false);
        if self.accept_after <= Instant::now() {
            add(&mut set, Source::Listener, self.listener.as_fd(), false);
        }
        if let Some(k) = &self.cx.keeper {
            add(&mut set, Source::Keeper, k.as_fd(), k.pending() > 0);
        }
        for (id, c) in &self.connections {
            add(&mut set, Source::Connection(*id), c.channel.as_fd(), c.channel.pending() > 0);
        }
        let masters = self.masters.values().map(|m| &m.watched);
        for watched in masters.chain(self.clients.values().map(|c| &c.watched)) {
            if let Some(fd) = watched.fd() {
                add(&mut set, Source::Process, fd, false);
            }
        }
        for (id, pool) in &self.pools {
            if let Some((fd, write)) = pool.watching.connection() {
                add(&mut set, Source::Watcher(*id), fd, write);
            }
            for (slot, w) in &pool.workers {
                if let Some(c) = &w.control {
                    add(&mut set, Source::Control(*id, *slot), c.as_fd(), c.pending() > 0);
                }
                for output in w.outputs.iter().flatten() {
                    add(&mut set, Source::Output(*id, *slot), output.as_fd(), false);
                }
            }
        }
        for (id, pool) in &self.pools {
            for (slot, f) in &pool.foreign {
                if let Some(c) = f.control() {
                    add(&mut set, Source::Former(*id, *slot), c.as_fd(), c.pending() > 0);
                }
                for output in f.outputs.iter().flatten() {
                    add(&mut set, Source::FormerOutput(*id, *slot), output.as_fd(), false);
                }
            }
        }
        for stray in &self.cx.strays {
            add(&mut set, Source::Stray, stray.as_fd(), false);
        }
        let (mut fds, sources) = set;
        if !matches!(poll(&mut fds, timer::poll_timeout(next)), Ok(1..)) {
            return Vec::new();
        }
        let ready = fds.iter().map(|f| f.revents().is_some_and(|r| !r.is_empty()));
        sources.into_iter().zip(ready).filter(|(_, r)| *r).map(|(s, _)| s).collect()
    }

    fn dispatch(&mut self, source: Source, signals: &mut UnixStream, now: Instant) {
        match source {
            Source::Signals => {
                while matches!(signals.read(&mut [0; 64]), Ok(1..)) {}
                for pool in self.pools.values_mut() {
                    pool.reap(now, &mut self.cx);
                }
                watching::reap(&mut self.cx);
            }
            Source::Keeper => self.read_keeper(now),
            Source::Listener => self.accept(now),
            Source::Connection(id) => self.read_connection(id, now),
            // Seen by `check_servers` in the next turn.
            Source::Process => {}
            Source::Control(pool, slot) => {
                if let Some(p) = self.pools.get_mut(&pool) {
                    p.read_control(slot, now, &mut self.cx);
                }
            }
            Source::Former(pool, slot) => {
                if let Some(p) = self.pools.get_mut(&pool) {
                    p.read_foreign(slot, now, &mut self.cx);
                }
            }
            Source::FormerOutput(pool, slot) => {
                if let Some(p) = self.pools.get_mut(&pool) {
                    p.read_foreign_outputs(slot, &mut self.cx);
                }
            }
            Source::Watcher(pool) => {
                if let Some(p) = self.pools.get_mut(&pool) {
                    p.read_watcher(now, &mut self.cx);
                }
            }
            Source::Output(pool, slot) => {
                if let Some(w) = self.pools.get_mut(&pool).and_then(|p| p.workers.get_mut(&slot)) {
                    w.read_outputs(&mut self.cx);
                }
            }
            Source::Stray => {
                let log = &mut self.cx.log;
                self.cx.strays.retain_mut(|o| {
                    let (level, pid) = (o.level, o.pid as u32);
                    o.read(|line| log.line(level, pid, line, false))
                });
            }
        }
    }

    fn read_keeper(&mut self, now: Instant) {
        let Some(mut keeper) = self.cx.keeper.take() else { return };
        let mut result = keeper.flush().and_then(|()| keeper.fill());
        while result.is_ok() {
            match keeper.message::<FromKeeper>() {
                Ok(Some(FromKeeper::Reaped { pid, how })) => {
                    let find = |p: &Pool| p.foreign.iter().find(|(_, f)| f.process.pid == pid).map(|(s, _)| *s);
                    let pool = self.pools.values_mut().find_map(|p| find(p).map(|slot| (p, slot)));
                    if let Some((pool, slot)) = pool {
                        pool.foreign_ended(slot, &how, now, &mut self.cx);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(e) => result = Err(e),
            }
        }
        self.cx.keeper = Some(keeper);
        if let Err(e) = result {
            self.cx.keeper_gone(&e.to_string());
        }
    }

    /// Every server is told to go, as if it had asked.
    fn stop_all(&mut self, now: Instant) {
        for master in self.masters.values_mut() {
            master.leaving = Some(crate::master::Leaving::Stop);
        }
        for pool in self.pools.values_mut() {
            pool.end(Ending::Stop, now);
        }
    }

    /// Somebody has looked whether a supervisor is there: a configuration may follow.
    pub fn probed(&mut self, now: Instant) {
        self.linger = self.linger.max(now + AFTER_PROBE);
    }
}
