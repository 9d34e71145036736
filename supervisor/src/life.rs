//! The life of a pool's workers: start, messages, ready, drain, death.

use crate::channel;
use crate::context::Context;
use crate::held::describe;
use crate::pool::{Ending, Pool};
use crate::recover::Foreign;
use crate::timer::seconds;
use crate::worker::{Loaded, State, Worker, record_key, socket_name};
use mod_wsgi_scoreboard::{Entry, SlotState};
use mod_wsgi_wire::control::{FromWorker, StuckReason, ToWorker};
use mod_wsgi_wire::frame::Level;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A worker whose control connection has ended is taken for dead for this long.
const DEAF: Duration = Duration::from_secs(1);
/// Unexpected deaths within [`DEATH_TIME`] that are answered at once, besides one for each process; after more of them
/// there is a wait. A loop of crashes must not keep a processor busy, a few crashes must not stop a site.
const FREE_DEATHS: usize = 8;
const DEATH_TIME: Duration = Duration::from_secs(20);
/// Behind the status of a worker that the kernel has killed.
pub const OUT_OF_MEMORY: &str = ", for want of memory (oom_kill has risen)";
/// Scripts that are kept of a worker, and of a pool, and bytes of their names.
const MAX_SCRIPTS: usize = 2000;
const MAX_NAMES: usize = 256 * 1024;
/// Bytes of the traceback of a script that cannot be loaded, and of an interpreter's version.
const MAX_ERROR: usize = 64 * 1024;
const MAX_VERSION: usize = 100;
/// Requests under way that the line about a death names.
const SHOWN: usize = 5;

impl Pool {
    /// Starts a worker in a free slot. `false`: it cannot be done now.
    pub(crate) fn start(&mut self, now: Instant, cx: &mut Context) -> bool {
        let Some(slot) = self.free_slot() else { return false };
        let generation = self.table.begin_slot(slot);
        match Worker::spawn(self, slot, generation, cx, now) {
            Ok(worker) => {
                self.table.set_pid(slot, worker.process.pid as u32);
                self.workers.insert(slot, worker);
                self.starts += 1;
                true
            }
            Err(e) => {
                self.table.set_slot(slot, generation, SlotState::Empty);
                self.sockets.remove(&socket_name(slot, generation));
                self.start_failed(now, cx, &format!("a worker of {} cannot be started: {e}", self.name()));
                false
            }
        }
    }

    fn start_failed(&mut self, now: Instant, cx: &mut Context, what: &str) {
        let wait = self.backoff.fail(now);
        self.failing = self.ready() == 0 && self.foreign.is_empty();
        let text = format!("MWR0305: {what}; trying again in {:.0} s", wait.as_secs_f64());
        cx.log.event(Level::Error, &text);
        self.last_exit = what.to_owned();
    }

    /// Reads a worker's control socket.
    pub(crate) fn read_control(&mut self, slot: u16, now: Instant, cx: &mut Context) {
        let Some(channel) = self.workers.get_mut(&slot).and_then(|w| w.control.as_mut()) else { return };
        let mut messages = Vec::new();
        let mut result = channel.flush().and_then(|()| channel.fill());
        while result.is_ok() {
            match channel.message::<FromWorker>() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(e) => result = Err(e),
            }
        }
        // The connection stays in its place meanwhile: a message may be answered.
        for message in messages {
            self.message(slot, message, now, cx);
        }
        if let Err(e) = result {
            if let Some(w) = self.workers.get_mut(&slot) {
                w.control = None;
            }
            self.control_lost(slot, e, now, cx);
        }
    }

    /// The end of a control connection usually is that of the process, whose status comes within a moment: only if it
    /// does not, [`Pool::replace_deaf`] acts.
    fn control_lost(&mut self, slot: u16, e: channel::Error, now: Instant, cx: &mut Context) {
        let name = self.name();
        let Some(w) = self.workers.get_mut(&slot) else { return };
        if let channel::Error::Closed = e {
            w.deaf_since = Some(now);
            return;
        }
        let text = format!("MWR0310: worker {} of {name}: {e}; killed", w.process.pid);
        cx.log.event(Level::Error, &text);
        w.failed = Some(e.to_string());
        w.kill();
        // It may wait in the kernel, for a file system that does not answer, and die much later.
        w.deaf_since = Some(now);
    }

    /// A worker that lives without control connection, or although it was killed, cannot be told to drain: it is replaced.
    pub(crate) fn replace_deaf(&mut self, slot: u16, now: Instant, cx: &mut Context, next: &mut Instant) {
        let name = self.name();
        let Some(w) = self.workers.get_mut(&slot) else { return };
        let Some(since) = w.deaf_since else { return };
        if now < since + DEAF {
            *next = (*next).min(since + DEAF);
            return;
        }
        w.deaf_since = None;
        let text = format!("MWR0310: worker {} of {name} has closed its control connection; replaced", w.process.pid);
        match w.state {
            State::Ready => {
                cx.log.event(Level::Error, &text);
                self.drain(slot, now, "signal_pipe_error");
            }
            State::Starting { .. } => {
                w.failed = Some("it closed its control connection".to_owned());
                w.kill();
            }
            State::Draining { .. } | State::Exiting { .. } => {}
        }
    }

    fn message(&mut self, slot: u16, message: FromWorker, now: Instant, cx: &mut Context) {
        let Some(w) = self.workers.get_mut(&slot) else { return };
        let pid = w.process.pid as u32;
        match message {
            FromWorker::Log { level, text } => {
                let starting = matches!(w.state, State::Starting { .. });
                if !(starting && w.quiet) {
                    cx.log.line(level, pid, text.as_bytes(), starting);
                }
                if starting {
                    w.remember(text.as_bytes());
                }
            }
            FromWorker::Loaded { script, callable, mtime, mut error } => {
                let key = (script, callable);
                let known = w.loaded.contains_key(&key) || self.scripts.contains(&key);
                let room = || has_room(w.loaded.keys(), &key) && has_room(self.scripts.iter(), &key);
                // Once there is no room it is not looked for again: it is the application that asks for it.
                if !known && (self.full_of_scripts || !room()) {
                    self.too_many_scripts(cx);
                    return;
                }
                error.iter_mut().for_each(|e| shorten(e, MAX_ERROR));
                let ok = error.is_none();
                w.loaded.insert(key.clone(), Loaded { mtime, error });
                if ok {
                    self.dirty |= self.scripts.insert(key);
                }
            }
            FromWorker::Ready { mut python } => {
                shorten(&mut python, MAX_VERSION);
                w.python = python;
                self.worker_ready(slot, now, cx);
            }
            FromWorker::Stuck { reason, row, row_generation } => {
                if !w.stuck.contains(&(row, row_generation)) && w.stuck.len() < self.table.shape().rows as usize {
                    w.stuck.push((row, row_generation));
                    w.life.slow_start |= reason == StuckReason::Startup;
                }
            }
            FromWorker::Deadlocked => self.deadlocked(slot, now, cx),
            FromWorker::Evict => self.make_due(slot, "eviction_signal", "it was asked to make way", cx),
            FromWorker::Spent => self.spent(slot, cx),
            FromWorker::Files { files } => self.watch_files(files, cx),
            FromWorker::Touched { script, mtime } => self.touched(slot, script, mtime, cx),
        }
    }

    /// Names of scripts come from the application's process, are kept, and go to the keeper in one message.
    fn too_many_scripts(&mut self, cx: &mut Context) {
        if !std::mem::replace(&mut self.full_of_scripts, true) {
            let text = format!(
                "MWR0323: {} has more scripts than are kept track of ({MAX_SCRIPTS}, {} KiB of names); further ones are loaded by each \
                 worker at their first request, and changes of them are not noticed",
                self.name(),
                MAX_NAMES >> 10
            );
            cx.log.event(Level::Warn, &text);
        }
    }

    fn touched(&mut self, slot: u16, script: String, mtime: u64, cx: &mut Context) {
        let named = self.scripts.iter().any(|(s, _)| *s == script)
            || self.workers.values().any(|w| w.loaded.keys().any(|(s, _)| *s == script));
        if !self.is_current() || !named {
            return;
        }
        if self.touched.get(&script) == Some(&mtime) {
            if self.blocked
                && let Some(w) = self.workers.get_mut(&slot)
            {
                w.send(&ToWorker::Stay);
            }
            return;
        }
        let has_it = |w: &Worker| w.loaded.iter().any(|((s, _), l)| *s == script && l.mtime == mtime);
        let known = self.workers.values().any(|w| w.epoch == self.epoch && has_it(w));
        if !known {
            cx.log.event(Level::Info, &format!("{} reloads: {script:?} has changed", self.name()));
            self.new_epoch("script_reload");
        }
        self.touched.insert(script, mtime);
    }

    fn worker_ready(&mut self, slot: u16, now: Instant, cx: &mut Context) {
        let name = self.name();
        let Some(w) = self.workers.get(&slot) else { return };
        if !matches!(w.state, State::Starting { .. }) || w.failed.is_some() {
            return;
        }
        let errors: Vec<_> = w.load_errors().map(|(k, e)| (k.clone(), e.to_owned())).collect();
        let (pid, took) = (w.process.pid, now.duration_since(w.started).as_secs_f64());
        let served = |key| {
            let ok = |o: &Worker| o.loaded.get(key).is_some_and(|l| l.error.is_none());
            // What a former supervisor left serves what was loaded under it.
            let left = || self.foreign.values().any(Foreign::serves) && self.scripts.contains(key);
            self.workers.values().any(|o| o.slot != slot && o.state == State::Ready && ok(o)) || left()
        };
        if let Some(((script, _), error)) = errors.iter().find(|(key, _)| served(key)) {
            if self.workers.get(&slot).is_some_and(|w| w.epoch != self.epoch) {
                // The code has changed again meanwhile: that this version fails says nothing of the next.
                self.exit(slot, now, "script_reload");
                return;
            }
            let text =
                format!("MWR0308: {name} is not reloaded, {script:?} cannot be loaded; the old code goes on: {error}");
            if !(self.blocked && self.refusal == *error) {
                cx.log.event(Level::Error, &text);
            }
            self.blocked = true;
            self.refusal = error.clone();
            // A request that meets the same version need not have it tried again.
            let failed = self.workers.get(&slot).into_iter().flat_map(|w| &w.loaded).filter(|(_, l)| l.error.is_some());
            self.touched.extend(failed.map(|((script, _), l)| (script.clone(), l.mtime)));
            self.exit(slot, now, "script_reload");
            for w in self.workers.values_mut().filter(|w| w.state == State::Ready) {
                w.send(&ToWorker::Stay);
            }
            for f in self.foreign.values_mut() {
                f.tell(&ToWorker::Stay);
            }
            if self.ready() < self.target as usize {
                // It was to take a dead worker's place: tried again, since the code may have been mended meanwhile.
                let wait = self.backoff.fail(now).as_secs_f64();
                let ready = self.ready();
                let text = format!("{name} has {ready} of {} workers; one is tried again in {wait:.0} s", self.target);
                cx.log.event(Level::Info, &text);
            }
            return;
        }
        let remembered: Vec<String> = match self.workers.get_mut(&slot) {
            Some(w) if w.quiet => w.tail.iter().cloned().collect(),
            _ => Vec::new(),
        };
        remembered.iter().for_each(|line| cx.log.line(Level::Warn, pid as u32, line.as_bytes(), true));
        if let Some(w) = self.workers.get_mut(&slot) {
            w.state = State::Ready;
            w.quiet = false;
            w.ready = Some(now);
            w.tail.clear();
            self.table.open_rows(slot, w.generation);
            (self.failing, self.blocked) = (false, false);
            let text = format!("worker {pid} of {name} is ready after {took:.2} s (Python {})", w.python);
            cx.log.event(Level::Info, &text);
        }
    }

    /// No new request; the worker goes when its rows are closed.
    pub(crate) fn drain(&mut self, slot: u16, now: Instant, reason: &str) {
        let Some(w) = self.workers.get_mut(&slot) else { return };
        w.reason = reason.to_owned();
        w.send(&ToWorker::Drain);
        let evicted = reason == "eviction_signal" && self.group.deadlines.eviction > 0.0;
        let time = if evicted { seconds(self.group.deadlines.eviction) } else { w.graceful_timeout };
        w.state = State::Draining { until: now + time };
        self.table.set_slot(slot, w.generation, SlotState::Draining);
        if self.table.drain_rows(slot) == 0 {
            w.exit(w.shutdown_timeout, now);
        }
    }

    /// The worker is told to end without waiting for its requests.
    pub(crate) fn exit(&mut self, slot: u16, now: Instant, reason: &str) {
        let Some(w) = self.workers.get_mut(&slot) else { return };
        w.reason = reason.to_owned();
        self.table.set_slot(slot, w.generation, SlotState::Draining);
        self.table.drain_rows(slot);
        w.exit(w.shutdown_timeout, now);
    }

    /// Drains or stops all workers of a pool that ends.
    pub(crate) fn end_workers(&mut self, how: Ending, now: Instant) {
        let slots: Vec<u16> = self.workers.keys().copied().collect();
        for slot in slots {
            let Some(state) = self.workers.get(&slot).map(|w| w.state.clone()) else { continue };
            match (state, how) {
                (State::Starting { .. }, _) => self.exit(slot, now, "shutdown_signal"),
                (State::Ready, Ending::Graceful) => self.drain(slot, now, "shutdown_signal"),
                (State::Ready | State::Draining { .. }, Ending::Stop) => self.exit(slot, now, "shutdown_signal"),
                (State::Draining { .. }, Ending::Graceful) | (State::Exiting { .. }, _) => {}
            }
        }
    }

    /// Reaps workers that have ended.
    pub(crate) fn reap(&mut self, now: Instant, cx: &mut Context) {
        let slots: Vec<u16> = self.workers.keys().copied().collect();
        for slot in slots {
            let status = self.workers.get_mut(&slot).and_then(|w| w.child.try_wait().ok().flatten());
            if let Some(status) = status {
                self.table.set_slot(slot, self.workers[&slot].generation, SlotState::Dead);
                // What it said before it died: a load error, its last lines.
                self.read_control(slot, now, cx);
                self.ended(slot, status, now, cx);
            }
        }
    }

    fn ended(&mut self, slot: u16, status: ExitStatus, now: Instant, cx: &mut Context) {
        let Some(mut w) = self.workers.remove(&slot) else { return };
        self.table.set_slot(slot, w.generation, SlotState::Dead);
        w.read_outputs(cx);
        for output in w.outputs.iter_mut().filter_map(Option::take) {
            cx.keep_output(output);
        }
        self.sockets.remove(&socket_name(slot, w.generation));
        self.burying.insert(slot, now);
        cx.forget(&record_key(self.id, slot));
        let (pid, mut how) = (w.process.pid, describe(status.code(), status.signal()));
        if status.signal() == Some(9) && cx.out_of_memory() {
            how.push_str(OUT_OF_MEMORY);
        }
        let name = self.name();
        match w.state {
            State::Starting { .. } => {
                let mut what = format!("worker {pid} of {name} could not start: ");
                match &w.failed {
                    Some(why) => what.push_str(why),
                    None => what.push_str(&format!("it ended with {how}")),
                }
                let errors = w.load_errors().map(|((s, _), e)| format!("{s:?} cannot be loaded: {}", last_line(e)));
                let said: Vec<String> = w.tail.iter().cloned().chain(errors).collect();
                if !said.is_empty() {
                    what.push_str(&format!("; it said: {}", said.join(" | ")));
                }
                self.start_failed(now, cx, &what);
            }
            State::Ready => {
                let lived = w.ready.map_or(Duration::ZERO, |r| now.duration_since(r));
                self.deaths.retain(|t| now.duration_since(*t) < DEATH_TIME);
                self.deaths.push(now);
                let mut again = "a new one starts".to_owned();
                if self.deaths.len() > FREE_DEATHS + self.group.processes as usize {
                    let wait = self.backoff.fail(now);
                    self.failing = self.ready() == 0;
                    again = format!("a new one starts in {:.0} s", wait.as_secs_f64());
                }
                let (requests, doing) = (self.table.requests(slot), under_way(&w.journal.entries()));
                let text = format!(
                    "MWR0306: worker {pid} of {name} ended unexpectedly with {how} after {:.1} s and {requests} \
                     requests{doing}; {again}",
                    lived.as_secs_f64()
                );
                cx.log.event(Level::Error, &text);
                self.last_exit = format!("{how}{doing}");
            }
            State::Draining { .. } | State::Exiting { .. } => {
                let text = format!("worker {pid} of {name} has ended ({}): {how}", w.reason);
                cx.log.event(Level::Info, &text);
                self.last_exit = format!("{}: {how}", w.reason);
            }
        }
    }
}

/// Whether a script may become one of those.
fn has_room<'a>(names: impl ExactSizeIterator<Item = &'a (String, String)>, new: &(String, String)) -> bool {
    let size = |(script, callable): &(String, String)| script.len() + callable.len();
    names.len() < MAX_SCRIPTS && names.map(size).sum::<usize>() + size(new) <= MAX_NAMES
}

/// Cuts a text that another process has sent.
fn shorten(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

/// The line of a traceback that names the exception.
fn last_line(text: &str) -> &str {
    text.trim_end().lines().next_back().unwrap_or("")
}

/// What the threads of a worker were doing, for the log.
pub fn under_way(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let one = |e: &Entry| {
        let seconds = now.saturating_sub(e.started) as f64 / 1e6;
        format!("{:?} ({}, {seconds:.1} s)", String::from_utf8_lossy(&e.line), e.phase.name())
    };
    let shown: Vec<String> = entries.iter().take(SHOWN).map(one).collect();
    let more = entries.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("; under way: {}{more}", shown.join(", "))
}
