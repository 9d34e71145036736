//! What a crashed supervisor leaves: its tables live on with new workers in spare slots, its workers go on serving until
//! new ones are ready, then drain. They are never adopted: they are the keeper's children by now, which tells how they
//! end. Their control connections have been held by the keeper, so that they have not noticed anything: they can be told
//! to drain, their log records arrive, and what they were doing can be read.

use crate::channel::Channel;
use crate::context::Context;
use crate::held::{PoolRecord, ProcessId, WorkerRecord};
use crate::life::under_way;
use crate::pool::{Ending, Error, Pool};
use crate::sys;
use crate::timer::seconds;
use crate::worker::{Output, read_outputs, record_key, socket_name};
use mod_wsgi_scoreboard::{Entry, Journal, Shape, SlotState, Table};
use mod_wsgi_wire::control::{FromWorker, ToWorker};
use mod_wsgi_wire::frame::Level;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Between two looks at processes that are not our children.
const LOOK: Duration = Duration::from_millis(100);

/// How long the keeper's word about an end is waited for.
const KEEPER_TIME: Duration = Duration::from_millis(500);

/// What the keeper has held of a worker.
pub struct Left {
    /// Its stdout and stderr.
    pub outputs: [Option<Output>; 2],
    pub control: Option<OwnedFd>,
    pub journal: Option<OwnedFd>,
}

/// A worker of a former supervisor.
pub struct Foreign {
    pub process: ProcessId,
    pub generation: u32,
    pidfd: Option<OwnedFd>,
    control: Option<Channel>,
    journal: Option<Journal>,
    /// stdout and stderr, as long as anyone holds their other ends.
    pub outputs: [Option<Output>; 2],
    /// Lines of its standard error that somebody has asked for.
    pub captured: Option<Vec<String>>,
    phase: Phase,
    /// Why it is ended, for the log and its subscribers.
    reason: &'static str,
    /// Its end has been seen; the keeper tells how.
    ended: Option<Instant>,
}

/// Where it is on its way out.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Serving,
    /// Finishes its requests, at most until then.
    Draining(Instant),
    /// Has been told to end; killed then.
    Ending(Instant),
    /// Has been killed.
    Killed,
}

impl Foreign {
    /// Looks at a recorded process; `None`: it has ended.
    fn find(record: &WorkerRecord, left: &mut Left, threads: u16) -> Option<Foreign> {
        let pidfd = sys::pidfd_open(record.process.pid).ok()?;
        // The pidfd first: if the number had been given to another process before, the start time tells.
        if !record.process.is_alive() {
            return None;
        }
        let control = left.control.take();
        let control = control.and_then(|fd| Channel::without_descriptors(UnixStream::from(fd)).ok());
        let journal = left.journal.take().and_then(|fd| Journal::open(fd, threads).ok());
        Some(Foreign {
            process: record.process,
            generation: record.generation,
            pidfd,
            control,
            journal,
            outputs: std::mem::take(&mut left.outputs),
            captured: None,
            phase: Phase::Serving,
            reason: "graceful_signal",
            ended: None,
        })
    }

    /// Its control connection, to poll.
    pub fn control(&self) -> Option<&Channel> {
        self.control.as_ref()
    }

    /// Requests under way.
    pub fn entries(&self) -> Vec<Entry> {
        self.journal.as_ref().map_or_else(Vec::new, Journal::entries)
    }

    /// Whether it takes requests.
    pub fn serves(&self) -> bool {
        self.phase == Phase::Serving && self.ended.is_none()
    }

    /// Sends it a message; `false`: it cannot be reached.
    pub fn tell(&mut self, message: &ToWorker) -> bool {
        let Some(control) = &mut self.control else { return false };
        if control.send(message, &[]).is_err() {
            self.deafen();
        }
        self.control.is_some()
    }

    /// Its control connection is of no use any more; the worker shall know, although the keeper holds it too.
    fn deafen(&mut self) {
        if let Some(control) = self.control.take() {
            control.shut();
        }
    }

    /// Begins its exit sequence, which may take `time`; killed a second later.
    fn exit(&mut self, time: Duration, reason: &'static str, now: Instant) {
        self.reason = reason;
        if !self.tell(&ToWorker::Exit { timeout: time.as_secs_f64(), reason: reason.to_owned() }) {
            self.signal(Signal::SIGTERM);
        }
        self.phase = Phase::Ending(now + time + Duration::from_secs(1));
    }

    fn has_ended(&self) -> bool {
        match &self.pidfd {
            Some(fd) => {
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
            }
            None => !self.process.is_alive(),
        }
    }

    /// State for people.
    pub fn state_name(&self) -> &'static str {
        match self.phase {
            Phase::Serving => "ready",
            Phase::Draining(_) => "draining",
            Phase::Ending(_) | Phase::Killed => "exiting",
        }
    }
}

impl Pool {
    /// Puts a pool of a former supervisor together again. Its slots without a living process are buried.
    pub fn recover(
        record: PoolRecord,
        table_fd: OwnedFd,
        workers: &mut [(WorkerRecord, Left)],
        cx: &mut Context,
        now: Instant,
    ) -> Result<Pool, Error> {
        let (slots, threads, rows) = record.shape;
        let table = Table::open(&table_fd, Shape { slots, threads, rows })?;
        let sockets = cx.run.open_sockets(&record.directory)?;
        let (group, master) = (Rc::new(record.group), record.master);
        let mut pool =
            Pool::assemble(record.id, master, group, &record.application, table, table_fd, record.token, sockets);
        pool.preload = record.preload;
        (pool.target, pool.scaled, pool.away) = (record.target, record.scaled, record.away);
        pool.scripts = record.loaded.into_iter().collect();
        let mut recorded: BTreeMap<u16, _> = workers.iter_mut().map(|w| (w.0.slot, w)).collect();
        for slot in 0..slots {
            let (generation, state) = pool.table.slot(slot);
            match recorded.remove(&slot).and_then(|(record, left)| Foreign::find(record, left, threads)) {
                Some(mut foreign) => {
                    match state {
                        // It would become ready by the word of its supervisor only.
                        SlotState::Starting => {
                            foreign.signal(Signal::SIGTERM);
                            foreign.phase = Phase::Ending(now + seconds(pool.group.shutdown_timeout));
                        }
                        SlotState::Draining => {
                            foreign.phase = Phase::Draining(now + seconds(pool.group.graceful_timeout));
                        }
                        _ => {}
                    }
                    pool.foreign.insert(slot, foreign);
                }
                None if state == SlotState::Empty => {}
                None => {
                    pool.table.set_slot(slot, generation, SlotState::Dead);
                    pool.sockets.remove(&socket_name(slot, generation));
                    pool.burying.insert(slot, now);
                    cx.forget(&record_key(pool.id, slot));
                }
            }
        }
        if record.retired {
            pool.retire(now);
        }
        Ok(pool)
    }

    /// Drains, buries and, at the last, kills workers of a former supervisor.
    pub(crate) fn step_foreign(&mut self, now: Instant, cx: &mut Context, next: &mut Instant) {
        if self.foreign.is_empty() {
            return;
        }
        *next = (*next).min(now + LOOK);
        let replaced = self.ready() >= (self.target as usize).max(1);
        let may_go = replaced || self.ending.is_some() || self.target == 0;
        let mut untold = Vec::new();
        for (slot, f) in &mut self.foreign {
            if f.ended.is_none() && f.has_ended() {
                f.ended = Some(now);
                self.table.set_slot(*slot, f.generation, SlotState::Dead);
            }
            if f.ended.is_some_and(|e| cx.keeper.is_none() || now >= e + KEEPER_TIME) {
                untold.push(*slot);
            }
        }
        for slot in untold {
            self.foreign_ended(slot, "an unknown status", now, cx);
        }
        let graceful = seconds(self.group.graceful_timeout);
        let shutdown = seconds(self.group.shutdown_timeout);
        let reason = if self.ending.is_some() { "shutdown_signal" } else { "graceful_signal" };
        let name = self.name();
        for (slot, f) in self.foreign.iter_mut().filter(|(_, f)| f.ended.is_none()) {
            if f.phase == Phase::Serving && may_go {
                f.phase = Phase::Draining(now + graceful);
                f.tell(&ToWorker::Drain);
                self.table.set_slot(*slot, f.generation, SlotState::Draining);
            }
            if f.phase != Phase::Serving {
                let left = self.table.drain_rows(*slot);
                *next = (*next).min(now + Duration::from_millis(20));
                match f.phase {
                    Phase::Draining(until) if left == 0 || now >= until || self.ending == Some(Ending::Stop) => {
                        f.exit(shutdown, reason, now);
                    }
                    Phase::Ending(until) if now >= until => {
                        f.phase = Phase::Killed;
                        f.signal(Signal::SIGKILL);
                        let pid = f.process.pid;
                        let text = format!(
                            "MWR0309: worker {pid} of {name}, left by a former supervisor, did not end in time and was \
                             killed"
                        );
                        cx.log.event(Level::Warn, &text);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Reads what a worker of a former supervisor has written.
    pub(crate) fn read_foreign_outputs(&mut self, slot: u16, cx: &mut Context) {
        let Some(f) = self.foreign.get_mut(&slot) else { return };
        read_outputs(&mut f.outputs, &mut f.captured, cx, false, |_| {});
    }

    /// Reads the control socket of a worker of a former supervisor. Reasons to replace it are none: it is being replaced.
    pub(crate) fn read_foreign(&mut self, slot: u16, now: Instant, cx: &mut Context) {
        let shutdown = seconds(self.group.shutdown_timeout);
        let Some(f) = self.foreign.get_mut(&slot) else { return };
        let pid = f.process.pid as u32;
        let Some(control) = &mut f.control else { return };
        let mut result = control.flush().and_then(|()| control.fill());
        let mut deadlocked = false;
        while result.is_ok() {
            match control.message::<FromWorker>() {
                Ok(Some(FromWorker::Log { level, text })) => cx.log.line(level, pid, text.as_bytes(), false),
                Ok(Some(FromWorker::Deadlocked)) => deadlocked = true,
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(e) => result = Err(e),
            }
        }
        if result.is_err() {
            f.deafen();
        }
        if deadlocked && !matches!(f.phase, Phase::Ending(_) | Phase::Killed) {
            self.table.set_slot(slot, f.generation, SlotState::Draining);
            f.exit(shutdown, "deadlock_timeout", now);
        }
    }

    /// A worker of a former supervisor has ended.
    pub(crate) fn foreign_ended(&mut self, slot: u16, how: &str, now: Instant, cx: &mut Context) {
        // What it said before it died.
        self.read_foreign(slot, now, cx);
        self.read_foreign_outputs(slot, cx);
        let Some(mut f) = self.foreign.remove(&slot) else { return };
        for output in f.outputs.iter_mut().filter_map(Option::take) {
            cx.keep_output(output);
        }
        self.table.set_slot(slot, f.generation, SlotState::Dead);
        self.sockets.remove(&socket_name(slot, f.generation));
        self.burying.insert(slot, now);
        cx.forget(&record_key(self.id, slot));
        let (pid, name, mut how) = (f.process.pid, self.name(), how.to_owned());
        if how.starts_with("signal 9") && cx.out_of_memory() {
            how.push_str(crate::life::OUT_OF_MEMORY);
        }
        if f.phase == Phase::Serving {
            let doing = under_way(&f.entries());
            let text = format!(
                "MWR0306: worker {pid} of {name}, left by a former supervisor, ended unexpectedly with {how}{doing}"
            );
            cx.log.event(Level::Error, &text);
            self.last_exit = format!("{how}{doing}");
        } else {
            let text = format!("worker {pid} of {name}, left by a former supervisor, has ended ({}): {how}", f.reason);
            cx.log.event(Level::Info, &text);
            self.last_exit = format!("{}: {how}", f.reason);
        }
    }
}

impl Foreign {
    fn signal(&self, signal: Signal) {
        // It may have ended a moment ago.
        let _ = match &self.pidfd {
            Some(fd) => sys::pidfd_signal(fd.as_fd(), signal),
            None if self.process.is_alive() => kill(Pid::from_raw(self.process.pid), signal),
            None => Ok(()),
        };
    }
}
