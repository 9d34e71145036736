//! What people tell a supervisor: `mod-wsgi-rs ctl` and the launcher's signals. Root and the supervisor's own user only.

use crate::channel::Error;
use crate::pool::Pool;
use crate::supervise::Supervisor;
use crate::worker::State;
use mod_wsgi_wire::control::{Command, FromSupervisor, RefusedReason, ToWorker};
use mod_wsgi_wire::frame::Level;
use std::time::{Duration, Instant};

/// Stacks are complete when no line has come for this time, and are given up after the other.
const QUIET: Duration = Duration::from_millis(150);
const MOST: Duration = Duration::from_secs(3);

/// Somebody who waits for stacks.
pub struct StacksWanted {
    connection: u64,
    workers: Vec<(u32, u16)>,
    /// Lines so far, and when the last came.
    lines: (usize, Instant),
    until: Instant,
}

/// Whether a command for `group` concerns a pool.
fn concerns(p: &Pool, group: &Option<String>) -> bool {
    p.is_current() && p.successor.is_none() && group.as_ref().is_none_or(|g| p.group.name == *g)
}

impl Supervisor {
    /// Carries a command out and answers.
    pub(crate) fn command(&mut self, id: u64, pid: i32, command: Command, now: Instant) -> Result<(), Error> {
        let group = match &command {
            Command::Reload { group }
            | Command::Restart { group }
            | Command::ScaleBy { group, .. }
            | Command::Stacks { group } => group.clone(),
            Command::Scale { group, .. } => Some(group.clone()),
            Command::Readiness { .. } | Command::LogLevel { .. } => None,
        };
        let named = |name: &str| self.masters.values().any(|m| m.config.groups.iter().any(|g| g.name == name));
        if let Some(name) = &group
            && !named(name)
        {
            return self.refuse(id, RefusedReason::Group, &format!("no daemon process group {name:?}"));
        }
        // Descriptive only: a command is short, and its text goes to the log with who gave it.
        self.cx.log.event(Level::Notice, &format!("pid {pid} has ordered: {command:?}"));
        let mut text = String::new();
        match command {
            Command::Reload { .. } => self.each(&group, |p| p.new_epoch("graceful_signal")),
            Command::Restart { .. } => self.each(&group, |p| {
                p.new_epoch("graceful_signal");
                p.drain_all(now);
            }),
            Command::Scale { processes, .. } => {
                let most = self.most(&group);
                if processes > most {
                    let text = format!("at most {most}: twice processes= of the group");
                    return self.refuse(id, RefusedReason::Protocol, &text);
                }
                self.each(&group, |p| p.scale(processes));
            }
            Command::ScaleBy { by, .. } => self.each(&group, |p| {
                let wanted = (i32::from(p.target) + i32::from(by)).clamp(1, i32::from(p.most_processes()));
                p.scale(wanted as u16);
            }),
            Command::Readiness { ready } => {
                let text = self.set_away(!ready);
                return self.answer(id, &FromSupervisor::Done { pools: Vec::new(), text });
            }
            Command::Stacks { .. } => return self.stacks(id, &group, now),
            Command::LogLevel { level } => {
                self.cx.log.set_level(level);
                text = format!("level {level:?} until the next configuration");
            }
        }
        let pools: Vec<&Pool> = self.pools.values().filter(|p| concerns(p, &group)).collect();
        for p in &pools {
            text.push_str(&format!("{}: {} workers wanted\n", p.name(), p.target));
        }
        let pools = pools.iter().map(|p| (p.id, p.epoch)).collect();
        self.answer(id, &FromSupervisor::Done { pools, text })
    }

    fn each(&mut self, group: &Option<String>, act: impl Fn(&mut Pool)) {
        self.pools.values_mut().filter(|p| concerns(p, group)).for_each(act);
    }

    /// Also pools that another is about to follow: until then server processes ask them.
    fn set_away(&mut self, away: bool) -> String {
        for p in self.pools.values_mut() {
            (p.away, p.dirty) = (away, true);
        }
        let said = if away { "not ready for load balancers" } else { "as ready for load balancers as its workers are" };
        format!("{said}\n")
    }

    fn most(&self, group: &Option<String>) -> u16 {
        let pools = self.pools.values().filter(|p| concerns(p, group));
        pools.map(Pool::most_processes).min().unwrap_or(u16::MAX)
    }

    fn stacks(&mut self, connection: u64, group: &Option<String>, now: Instant) -> Result<(), Error> {
        let mut workers = Vec::new();
        for p in self.pools.values_mut().filter(|p| concerns(p, group)) {
            for w in p.workers.values_mut().filter(|w| matches!(w.state, State::Ready | State::Draining { .. })) {
                w.captured = Some(Vec::new());
                w.send(&ToWorker::Stacks);
                workers.push((p.id, w.slot));
            }
            for (slot, f) in &mut p.foreign {
                if f.tell(&ToWorker::Stacks) {
                    f.captured = Some(Vec::new());
                    workers.push((p.id, *slot));
                }
            }
        }
        self.stacks_wanted.push(StacksWanted { connection, workers, lines: (0, now), until: now + MOST });
        Ok(())
    }

    /// Answers who waits for stacks.
    pub(crate) fn step_stacks(&mut self, now: Instant, next: &mut Instant) {
        let mut done = Vec::new();
        for (i, wanted) in self.stacks_wanted.iter_mut().enumerate() {
            let captured = |(p, s): &(u32, u16)| {
                let pool = self.pools.get(p)?;
                match pool.workers.get(s) {
                    Some(w) => w.captured.as_ref(),
                    None => pool.foreign.get(s)?.captured.as_ref(),
                }
            };
            let all: Vec<usize> = wanted.workers.iter().filter_map(captured).map(Vec::len).collect();
            let lines = all.iter().sum();
            if lines != wanted.lines.0 {
                wanted.lines = (lines, now);
            }
            let quiet = !all.contains(&0) && now >= wanted.lines.1 + QUIET;
            if quiet || now >= wanted.until {
                done.push(i);
            } else {
                *next = (*next).min(now + QUIET / 3);
            }
        }
        for i in done.into_iter().rev() {
            let wanted = self.stacks_wanted.remove(i);
            let mut text = String::new();
            for (pool, slot) in wanted.workers {
                let Some(p) = self.pools.get_mut(&pool) else { continue };
                let name = p.name();
                let (pid, entries, lines) = if let Some(w) = p.workers.get_mut(&slot) {
                    (w.process.pid, w.journal.entries(), w.captured.take())
                } else if let Some(f) = p.foreign.get_mut(&slot) {
                    (f.process.pid, f.entries(), f.captured.take())
                } else {
                    continue;
                };
                text.push_str(&format!("worker {pid} of {name}\n"));
                for e in entries {
                    let line = String::from_utf8_lossy(&e.line).into_owned();
                    text.push_str(&format!("  request {line:?}: {}\n", e.phase.name()));
                }
                for line in lines.unwrap_or_default() {
                    text.push_str(&format!(
                        "  {}\n",
                        line.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'")
                    ));
                }
            }
            // Whoever asked may have gone meanwhile; the log has the stacks.
            let _ = self.answer(wanted.connection, &FromSupervisor::Done { pools: Vec::new(), text });
        }
    }
}

impl Pool {
    /// The most workers it may be scaled to: enough slots must be left for a roll.
    pub fn most_processes(&self) -> u16 {
        self.table.shape().slots.saturating_sub(4).max(1)
    }

    /// So many workers from now on; 0 = as configured.
    pub fn scale(&mut self, processes: u16) {
        self.scaled = (processes > 0).then_some(processes);
        self.target = if processes > 0 { processes } else { self.configured_target() };
        self.dirty = true;
    }

    /// A restart of the server ends what people have ordered.
    pub fn end_scale(&mut self) {
        if self.scaled.take().is_some() && self.target > 0 {
            self.target = self.configured_target();
            self.dirty = true;
        }
    }
}
