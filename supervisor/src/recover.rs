//! What a crashed supervisor leaves: its tables live on with new workers in spare slots, its workers go on serving until
//! new ones are ready, then drain. They are never adopted: there is no control connection to them and no exit status
//! but the one the keeper reaps.

use crate::context::Context;
use crate::held::{PoolRecord, ProcessId, WorkerRecord};
use crate::pool::{Ending, Error, Pool};
use crate::sys;
use crate::timer::seconds;
use crate::worker::{record_key, socket_name};
use mod_wsgi_scoreboard::{Shape, SlotState, Table};
use mod_wsgi_wire::frame::Level;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Between two looks at processes that are not our children.
const LOOK: Duration = Duration::from_millis(100);

/// How long the keeper's word about an end is waited for.
const KEEPER_TIME: Duration = Duration::from_millis(500);

/// A worker of a former supervisor.
pub struct Foreign {
    pub process: ProcessId,
    pub generation: u32,
    pidfd: Option<OwnedFd>,
    phase: Phase,
    /// Its end has been seen; the keeper tells how.
    ended: Option<Instant>,
}

/// Where it is on its way out.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Serving,
    /// Finishes its requests, at most until then.
    Draining(Instant),
    /// Has got SIGTERM; killed then.
    Ending(Instant),
}

impl Foreign {
    /// Looks at a recorded process; `None`: it has ended.
    fn find(record: &WorkerRecord) -> Option<Foreign> {
        let pidfd = sys::pidfd_open(record.process.pid).ok()?;
        // The pidfd first: if the number had been given to another process before, the start time tells.
        if !record.process.is_alive() {
            return None;
        }
        let (process, generation) = (record.process, record.generation);
        Some(Foreign { process, generation, pidfd, phase: Phase::Serving, ended: None })
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
            Phase::Ending(_) => "exiting",
        }
    }
}

impl Pool {
    /// Puts a pool of a former supervisor together again. Its slots without a living process are buried.
    pub fn recover(
        record: PoolRecord,
        table_fd: OwnedFd,
        workers: &[WorkerRecord],
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
        pool.target = record.target;
        pool.scripts = record.loaded.into_iter().collect();
        let recorded: BTreeMap<u16, &WorkerRecord> = workers.iter().map(|w| (w.slot, w)).collect();
        for slot in 0..slots {
            let (generation, state) = pool.table.slot(slot);
            match recorded.get(&slot).and_then(|r| Foreign::find(r)) {
                Some(foreign) => {
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
        let shutdown = seconds(self.group.shutdown_timeout) + Duration::from_secs(1);
        for (slot, f) in self.foreign.iter_mut().filter(|(_, f)| f.ended.is_none()) {
            if f.phase == Phase::Serving && may_go {
                f.phase = Phase::Draining(now + graceful);
                self.table.set_slot(*slot, f.generation, SlotState::Draining);
            }
            if f.phase != Phase::Serving {
                let left = self.table.drain_rows(*slot);
                *next = (*next).min(now + Duration::from_millis(20));
                match f.phase {
                    // There is no control connection any more: the signal starts its exit sequence.
                    Phase::Draining(until) if left == 0 || now >= until || self.ending == Some(Ending::Stop) => {
                        f.signal(Signal::SIGTERM);
                        f.phase = Phase::Ending(now + shutdown);
                    }
                    Phase::Ending(until) if now >= until => f.signal(Signal::SIGKILL),
                    _ => {}
                }
            }
        }
    }

    /// A worker of a former supervisor has ended.
    pub(crate) fn foreign_ended(&mut self, slot: u16, how: &str, now: Instant, cx: &mut Context) {
        let Some(f) = self.foreign.remove(&slot) else { return };
        self.table.set_slot(slot, f.generation, SlotState::Dead);
        self.sockets.remove(&socket_name(slot, f.generation));
        self.burying.insert(slot, now);
        cx.forget(&record_key(self.id, slot));
        let text =
            format!("worker {} of {}, left by a former supervisor, has ended: {how}", f.process.pid, self.name());
        cx.log.event(Level::Info, &text);
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
