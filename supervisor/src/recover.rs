//! What a crashed supervisor leaves: its tables live on with new workers in spare slots, its workers go on serving until
//! new ones are ready, then drain. They are never adopted: there is no control connection to them and no exit status
//! but the one the keeper reaps.

use crate::context::Context;
use crate::held::{PoolRecord, ProcessId, WorkerRecord};
use crate::pool::{Error, Pool};
use crate::sys;
use crate::timer::seconds;
use crate::worker::{ORPHAN_TIMEOUT, record_key, socket_name};
use mod_wsgi_scoreboard::{Shape, SlotState, Table};
use mod_wsgi_wire::frame::Level;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Between two looks at processes that are not our children.
const LOOK: Duration = Duration::from_millis(100);

/// A worker of a former supervisor.
pub struct Foreign {
    pub process: ProcessId,
    pub generation: u32,
    pidfd: Option<OwnedFd>,
    /// Draining, killed then.
    kill_at: Option<Instant>,
    drain_until: Option<Instant>,
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
        Some(Foreign { process, generation, pidfd, kill_at: None, drain_until: None })
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
        if self.drain_until.is_some() { "draining" } else { "ready" }
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
        let ended: Vec<u16> = self.foreign.iter().filter(|(_, f)| f.has_ended()).map(|(s, _)| *s).collect();
        for slot in ended {
            self.foreign_ended(slot, "an unknown status", now, cx);
        }
        let graceful = seconds(self.group.graceful_timeout);
        let last = seconds(ORPHAN_TIMEOUT) + self.longest_end();
        for (slot, f) in &mut self.foreign {
            if f.drain_until.is_none() && may_go {
                f.drain_until = Some(now + graceful);
                f.kill_at = Some(now + last);
                self.table.set_slot(*slot, f.generation, SlotState::Draining);
            }
            if f.drain_until.is_some() {
                let left = self.table.drain_rows(*slot);
                *next = (*next).min(now + Duration::from_millis(20));
                // It has lost its control connection and ends by itself; there is nothing to wait for when idle.
                if (left == 0 && self.ending.is_some()) || f.kill_at.is_some_and(|k| now >= k) {
                    f.kill();
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
    fn kill(&self) {
        if let Some(fd) = &self.pidfd {
            let _ = sys::pidfd_kill(fd.as_fd());
        } else if self.process.is_alive() {
            let pid = nix::unistd::Pid::from_raw(self.process.pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}
