//! One application group of one daemon process group of one server: its table, its workers, and what is to be done next
//! ([`Pool::step`]). What happens to single workers is in `life`, what a former supervisor left is in `recover`.

use crate::backoff::Backoff;
use crate::context::Context;
use crate::demand::{Demand, Looks};
use crate::held::{POOL, PoolRecord, ProcessId};
use crate::recover::Foreign;
use crate::rundir::SocketDir;
use crate::timer::seconds;
use crate::watching::Watching;
use crate::worker::{State, Worker};
use crate::{rundir, sys};
use mod_wsgi_scoreboard::{ClientId, PoolState, Shape, SlotState, Table};
use mod_wsgi_wire::control::{Group, Preload, Secret};
use mod_wsgi_wire::frame::Level;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Between two sweeps over rows that are being closed.
const SWEEP: Duration = Duration::from_millis(20);
/// Between two looks at everything else.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// This long without a failure, and failures are forgotten.
const SETTLED: Duration = Duration::from_secs(10);
/// Rows of a dead worker that nobody recalls for this long will never be.
const BURIAL: Duration = Duration::from_secs(60);
/// A start that takes longer waits for something rather than for a processor: it does not hold up other groups' starts.
const BUSY_START: Duration = Duration::from_secs(5);
/// How long rows of a pool that ends are waited for.
const LAST_ROWS: Duration = Duration::from_secs(5);

/// Why a pool cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Table(#[from] mod_wsgi_scoreboard::Error),
    #[error(transparent)]
    RunDir(#[from] rundir::Error),
    #[error("random numbers: {0}")]
    Random(#[from] nix::Error),
}

/// How a pool ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ending {
    /// Requests may finish first, within the graceful timeout.
    Graceful,
    /// The server itself ends: nothing is waited for beyond the shutdown timeout.
    Stop,
}

/// See the module.
pub struct Pool {
    pub id: u32,
    pub master: ProcessId,
    pub group: Rc<Group>,
    /// Application group key; empty = %{GLOBAL}.
    pub application: String,
    pub preload: Vec<Preload>,
    pub table: Table,
    pub table_fd: OwnedFd,
    pub token: Secret,
    pub sockets: SocketDir,
    /// Version of settings and code; raised by every reason to replace all workers.
    pub epoch: u64,
    /// Workers that should be ready; 0 = idle until a request comes.
    pub target: u16,
    /// The target people have set; load does not change it.
    pub scaled: Option<u16>,
    /// Load balancers shall send nothing here: people have said so. The same for all pools of a server.
    pub away: bool,
    pub workers: BTreeMap<u16, Worker>,
    /// Slots of dead workers whose rows are being released.
    pub burying: BTreeMap<u16, Instant>,
    /// Workers of a former supervisor.
    pub foreign: BTreeMap<u16, Foreign>,
    pub backoff: Backoff,
    /// Recent unexpected deaths of ready workers.
    pub deaths: Vec<Instant>,
    /// Starts fail at present, and nobody is ready.
    pub failing: bool,
    /// The present epoch cannot load what the ready workers serve: no start until something changes.
    pub blocked: bool,
    /// The traceback that blocks it.
    pub refusal: String,
    /// Scripts that workers have loaded, with their callables.
    pub scripts: BTreeSet<(String, String)>,
    /// Last reported modification time of touched scripts.
    pub touched: BTreeMap<String, u64>,
    /// Why the present epoch began, in mod_wsgi's words for subscribers of `process_stopping`.
    pub roll_reason: &'static str,
    /// The pool of another shape that takes over when it has a ready worker.
    pub successor: Option<u32>,
    /// The newest configuration lacks this group; it goes when the server processes of older generations have gone,
    /// at the latest then. The number is the last generation that had it.
    pub vanished: Option<(u64, Instant)>,
    /// Its table is retired; workers drain when no request is left, at the latest then.
    pub retired: Option<Instant>,
    pub ending: Option<Ending>,
    /// Somebody else has written into the table what only the supervisor may; another one takes over.
    pub damaged: bool,
    ended_since: Option<Instant>,
    published: Option<PoolState>,
    activity: (u64, Instant),
    looks: Looks,
    next_sweep: Instant,
    pub last_exit: String,
    pub demand: Demand,
    pub watching: Watching,
    /// It has been said that memory allows no further worker.
    pub short_of_memory: bool,
    /// It has been said that there are too many scripts.
    pub full_of_scripts: bool,
    /// Workers started so far.
    pub starts: u64,
    /// The record held by the keeper is out of date.
    pub dirty: bool,
}

impl Pool {
    /// Makes a pool with a new table; no worker is started.
    pub fn create(
        id: u32,
        master: ProcessId,
        group: Rc<Group>,
        application: &str,
        cx: &Context,
    ) -> Result<Pool, Error> {
        let shape = Pool::shape_for(&group);
        let token = Secret::from_bytes(&sys::random()?);
        // The name tells nothing and is never used again: the number alone would repeat after a crash.
        let name: String = sys::random()?[..6].iter().map(|b| format!("{b:02x}")).collect();
        let (table, table_fd) = Table::create(shape)?;
        let sockets = cx.run.make_sockets(&name)?;
        Ok(Pool::assemble(id, master, group, application, table, table_fd, token, sockets))
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn assemble(
        id: u32,
        master: ProcessId,
        group: Rc<Group>,
        application: &str,
        table: Table,
        table_fd: OwnedFd,
        token: Secret,
        sockets: SocketDir,
    ) -> Pool {
        let now = Instant::now();
        Pool {
            id,
            master,
            group,
            application: application.to_owned(),
            preload: Vec::new(),
            table,
            table_fd,
            token,
            sockets,
            epoch: 1,
            target: 0,
            scaled: None,
            away: false,
            workers: BTreeMap::new(),
            burying: BTreeMap::new(),
            foreign: BTreeMap::new(),
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(30)),
            deaths: Vec::new(),
            failing: false,
            blocked: false,
            refusal: String::new(),
            scripts: BTreeSet::new(),
            touched: BTreeMap::new(),
            roll_reason: "graceful_signal",
            successor: None,
            vanished: None,
            retired: None,
            ending: None,
            damaged: false,
            ended_since: None,
            published: None,
            activity: (0, now),
            looks: Looks::new(now),
            next_sweep: now,
            last_exit: String::new(),
            demand: Demand::new(now),
            watching: Watching::new(),
            short_of_memory: false,
            full_of_scripts: false,
            starts: 0,
            dirty: true,
        }
    }

    /// The shape a group's tables have.
    pub fn shape_for(group: &Group) -> Shape {
        Shape::for_group(group.processes, group.threads, group.queue_limit)
    }

    /// How log lines name it.
    pub fn name(&self) -> String {
        let group = if self.group.name.is_empty() { "(automatic)" } else { &self.group.name };
        match self.application.as_str() {
            "" => format!("group {group:?}"),
            a => format!("group {group:?}, application group {a:?}"),
        }
    }

    /// Whether server processes may be given this table.
    pub fn is_current(&self) -> bool {
        self.retired.is_none() && self.ending.is_none()
    }

    /// Ready workers.
    pub fn ready(&self) -> usize {
        self.workers.values().filter(|w| w.state == State::Ready).count()
    }

    /// Starting workers.
    pub fn starting(&self) -> usize {
        self.workers.values().filter(|w| matches!(w.state, State::Starting { .. })).count()
    }

    /// Workers that have begun to start a short while ago.
    pub fn just_starting(&self, now: Instant) -> usize {
        let young = |w: &&Worker| matches!(w.state, State::Starting { .. }) && now < w.started + BUSY_START;
        self.workers.values().filter(young).count()
    }

    /// Workers on their way out.
    fn leaving(&self) -> usize {
        let leaving = |w: &&Worker| matches!(w.state, State::Draining { .. } | State::Exiting { .. });
        self.workers.values().filter(leaving).count()
    }

    /// What a new worker loads before it is ready: the configured preload and what its predecessors served. Scripts
    /// whose file has gone are left out: a roll must not fail for what nobody can serve any more.
    pub fn load_set(&self) -> Vec<Preload> {
        let mut set = self.preload.clone();
        for (script, callable) in &self.scripts {
            let known = set.iter().any(|p| p.script == *script && p.callable == *callable);
            if known || (script.starts_with('/') && !std::path::Path::new(script).exists()) {
                continue;
            }
            set.push(Preload {
                group: self.group.name.clone(),
                application: self.application.clone(),
                script: script.clone(),
                callable: callable.clone(),
            });
        }
        set
    }

    /// Takes over settings of the same shape. `roll`: replace the workers even if nothing has changed.
    pub fn configure(&mut self, group: Rc<Group>, preload: Vec<Preload>, roll: bool) {
        let changed = *self.group != *group || self.preload != preload;
        for old in self.preload.iter().filter(|p| !preload.contains(p)) {
            self.scripts.remove(&(old.script.clone(), old.callable.clone()));
        }
        (self.group, self.preload, self.vanished, self.successor) = (group, preload, None, None);
        self.full_of_scripts = false;
        if changed || roll {
            self.new_epoch("graceful_signal");
        }
        self.dirty = true;
    }

    /// Every worker is to be replaced.
    pub fn new_epoch(&mut self, reason: &'static str) {
        self.epoch += 1;
        self.roll_reason = reason;
        self.blocked = false;
        self.backoff.reset();
        self.deaths.clear();
    }

    /// A request waits: workers shall run.
    pub fn wake(&mut self, now: Instant) {
        if self.target == 0 && self.is_current() {
            self.target = self.scaled.unwrap_or(self.configured_target());
            self.activity.1 = now;
            self.dirty = true;
        }
    }

    /// Workers to begin with.
    pub fn configured_target(&self) -> u16 {
        match (self.application.is_empty(), self.group.minimum_processes) {
            (false, _) => 1,
            (true, 0) => self.group.processes,
            (true, least) => least,
        }
    }

    /// Every worker drains at once.
    pub fn drain_all(&mut self, now: Instant) {
        let ready: Vec<u16> = self.workers.values().filter(|w| w.state == State::Ready).map(|w| w.slot).collect();
        for slot in ready {
            self.drain(slot, now, self.roll_reason);
        }
    }

    /// Server processes are told to ask for another table; workers go when no request is left.
    pub fn retire(&mut self, now: Instant) {
        if self.retired.is_none() {
            self.retired = Some(now + seconds(self.group.graceful_timeout));
            self.dirty = true;
        }
    }

    /// Workers drain or stop, and the pool goes.
    pub fn end(&mut self, how: Ending, now: Instant) {
        if self.ending == Some(how) || self.ending == Some(Ending::Stop) {
            return;
        }
        self.ending = Some(how);
        self.ended_since = Some(now);
        self.target = 0;
        self.dirty = true;
    }

    /// Whether nothing is left of it.
    pub fn is_gone(&self, now: Instant) -> bool {
        let quiet = self.ended_since.is_some_and(|s| now >= s + LAST_ROWS) || self.ending == Some(Ending::Stop);
        self.ending.is_some()
            && self.workers.is_empty()
            && self.foreign.is_empty()
            && (self.burying.is_empty() || quiet)
    }

    /// Does what is due and gives the time of the next thing to do. `gone` says which clients have gone.
    pub fn step(&mut self, now: Instant, cx: &mut Context, gone: &dyn Fn(ClientId) -> bool) -> Instant {
        let mut next = now + HOUSEKEEPING;
        self.check_table(now, cx);
        self.step_workers(now, cx, &mut next);
        self.step_foreign(now, cx, &mut next);
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            self.burying.retain(|slot, _| {
                let left = self.table.bury_rows(*slot, gone);
                if left == 0 {
                    self.table.set_slot(*slot, self.table.slot(*slot).0, SlotState::Empty);
                }
                left > 0
            });
        }
        if !self.burying.is_empty() {
            next = next.min(self.next_sweep);
        }
        if let Some(until) = self.retired
            && self.ending.is_none()
        {
            next = next.min(now + SWEEP);
            let busy = (0..self.table.shape().slots).any(|s| self.table.count_rows(s) != (0, 0));
            if !busy || now >= until {
                self.end(Ending::Graceful, now);
            }
        }
        self.step_recycle(now, cx, &mut next);
        self.step_stuck(cx);
        self.step_beats(now, cx, &mut next);
        self.step_demand(now, cx, &mut next);
        self.step_watching(now, cx, &mut next);
        self.step_size(now, cx);
        if let Some(until) = self.backoff.until(now) {
            next = next.min(until);
        }
        // Only time without a failure counts: a worker that is ready, of whatever age, says nothing about new ones.
        if self.starting() == 0 && self.backoff.has_settled(now, SETTLED) {
            self.backoff.reset();
        }
        self.publish();
        if self.dirty {
            self.dirty = false;
            let record = self.record();
            cx.hold(&self.record_key(), &record, &[self.table_fd.as_fd()]);
        }
        next
    }

    fn step_workers(&mut self, now: Instant, cx: &mut Context, next: &mut Instant) {
        let slots: Vec<u16> = self.workers.keys().copied().collect();
        for slot in slots {
            self.replace_deaf(slot, now, cx, next);
            let Some(w) = self.workers.get_mut(&slot) else { continue };
            match w.state {
                State::Starting { until: Some(until) } => {
                    if now >= until && w.failed.is_none() {
                        w.failed = Some(format!("it was not ready within {} s", self.group.startup_timeout));
                        w.kill();
                    }
                    *next = (*next).min(until.max(now + SWEEP));
                }
                State::Draining { until } => {
                    let left = self.table.drain_rows(slot);
                    // Requests that were given up are not waited for.
                    if left <= w.stuck.len() || now >= until {
                        w.exit(w.shutdown_timeout, now);
                    }
                    *next = (*next).min(now + SWEEP);
                }
                State::Exiting { kill_at, ref mut killed } => {
                    if self.table.slot(slot).1 == SlotState::Draining {
                        self.table.drain_rows(slot);
                    }
                    if now >= kill_at && !*killed {
                        *killed = true;
                        let pid = w.process.pid;
                        w.kill();
                        let text =
                            format!("MWR0309: worker {pid} of {} did not end in time and was killed", self.name());
                        cx.log.event(Level::Warn, &text);
                    } else if !*killed {
                        *next = (*next).min(kill_at);
                    }
                }
                State::Starting { until: None } | State::Ready => {}
            }
        }
    }

    /// What only the supervisor writes must be as it was written: an application that has overwritten its group's table
    /// loses its workers, and the group goes on with another table.
    fn check_table(&mut self, now: Instant, cx: &mut Context) {
        if self.damaged || !self.is_current() {
            return;
        }
        let slot = |w: &Worker| match w.state {
            State::Starting { .. } => SlotState::Starting,
            State::Ready => SlotState::Ready,
            State::Draining { .. } | State::Exiting { .. } => SlotState::Draining,
        };
        let right = self.table.is_intact()
            && self.published.is_none_or(|p| p == self.table.pool())
            && self.workers.values().all(|w| self.table.slot(w.slot) == (w.generation, slot(w)))
            && self.burying.values().all(|since| now < *since + BURIAL);
        if right {
            return;
        }
        self.damaged = true;
        let text = format!(
            "MWR0319: the table that {} shares with the server was overwritten, by a defect or an attack; its workers are \
             killed and it gets another one",
            self.name()
        );
        cx.log.event(Level::Error, &text);
        self.workers.values_mut().for_each(Worker::kill);
    }

    /// Wakes, grows and puts to sleep.
    fn step_demand(&mut self, now: Instant, cx: &mut Context, next: &mut Instant) {
        if !self.is_current() {
            return;
        }
        let may_idle = !self.application.is_empty() && self.group.application_idle > 0.0;
        let follows = self.target > 0 && self.scaled.is_none();
        let may_grow = follows && self.target < self.group.processes;
        let may_shrink = follows && self.group.minimum_processes > 0 && self.target > self.configured_target();
        if self.target > 0 && !may_grow && !may_shrink && !may_idle {
            return;
        }
        let (due, look) = self.looks.due(self.target == 0 || may_grow, now);
        *next = (*next).min(look);
        if !due {
            return;
        }
        if self.table.take_wanted() {
            self.wake(now);
        }
        if self.target == 0 {
            return;
        }
        self.demand.look(self.busy());
        if may_grow && self.starting() == 0 && self.demand.crowded(self.is_crowded(), now) && self.memory_allows(cx) {
            self.target += 1;
            self.demand = Demand::new(now);
            self.dirty = true;
        } else if may_shrink && self.demand.spare(self.target, self.table.shape().threads, now) {
            self.target -= 1;
            self.demand = Demand::new(now);
            self.dirty = true;
        }
        let slots = 0..self.table.shape().slots;
        let requests = slots.clone().fold(0u64, |n, s| n.wrapping_add(self.table.requests(s)));
        if requests != self.activity.0 || slots.clone().any(|s| self.table.count_rows(s) != (0, 0)) {
            self.activity = (requests, now);
        } else if may_idle && now >= self.activity.1 + seconds(self.group.application_idle) {
            // The state first: whoever finds no row after this sets the wanted mark.
            self.target = 0;
            self.dirty = true;
            self.publish();
        }
    }

    /// Starts workers that lack, drains those too many or out of date.
    fn step_size(&mut self, now: Instant, cx: &mut Context) {
        if let Some(how) = self.ending {
            self.end_workers(how, now);
            return;
        }
        let target = self.target as usize;
        let surge = self.group.recycle.surge as usize;
        if self.retired.is_some() {
            return;
        }
        while self.backoff.until(now).is_none() {
            let current = |w: &&Worker| matches!(w.state, State::Starting { .. } | State::Ready);
            // Without a surge a successor waits until its predecessor has gone: two may not fit into memory.
            let leaving = if self.group.recycle.surge == 0 { self.leaving() } else { 0 };
            let total = self.workers.values().filter(current).count() + leaving;
            let fresh = self.workers.values().filter(current).filter(|w| w.is_fresh(self.epoch)).count();
            // What cannot be loaded is not tried beside workers that serve, only in the place of one that has died.
            let surge = if total > fresh && !self.blocked { surge } else { 0 };
            let may_start = cx.starting < cx.max_starting;
            if fresh >= target || total >= target + surge || !may_start || !self.start(now, cx) {
                break;
            }
            cx.starting += 1;
        }
        while self.ready() > target {
            self.drain_oldest(now, target == 0);
        }
        if surge == 0 && self.ready() == target && !self.blocked && self.backoff.until(now).is_none() {
            // The old one ends first, and only one at a time: its place is taken before the next one goes.
            let stale = self.workers.values().any(|w| w.state == State::Ready && !w.is_fresh(self.epoch));
            if stale && self.leaving() == 0 {
                self.drain_oldest(now, false);
            }
        }
    }

    /// Drains the ready worker that has most reason to go.
    fn drain_oldest(&mut self, now: Instant, idle: bool) {
        let ready = self.workers.values().filter(|w| w.state == State::Ready);
        let oldest = ready.min_by_key(|w| (w.is_fresh(self.epoch), w.epoch, w.started));
        let Some((slot, due)) = oldest.map(|w| (w.slot, w.life.due)) else { return };
        let reason = if idle { "inactivity_timeout" } else { due.unwrap_or(self.roll_reason) };
        self.drain(slot, now, reason);
    }

    fn publish(&mut self) {
        let state = if self.retired.is_some() || self.ending.is_some() {
            PoolState::Retired
        } else if self.target == 0 {
            PoolState::Idle
        } else if self.failing {
            PoolState::Failed
        } else {
            PoolState::Active
        };
        // What a damaged table says is not believed to have stayed.
        if self.published != Some(state) || self.damaged {
            self.published = Some(state);
            self.table.set_pool(state);
        }
        self.table.set_unloaded(self.unloaded());
        self.table.set_away(self.away);
    }

    /// Scripts that a ready worker could not load, and no other has.
    fn unloaded(&self) -> u64 {
        let ready = || self.workers.values().filter(|w| w.state == State::Ready);
        let failed: BTreeSet<_> = ready().flat_map(Worker::load_errors).map(|(key, _)| key).collect();
        let loaded = |key| ready().any(|w| w.loaded.get(key).is_some_and(|l| l.error.is_none()));
        failed.into_iter().filter(|key| !loaded(key)).count() as u64
    }

    /// State as published, for people.
    pub fn state_name(&self) -> &'static str {
        match self.published {
            Some(PoolState::Active) | None => "active",
            Some(PoolState::Idle) => "idle",
            Some(PoolState::Failed) => "failed",
            Some(PoolState::Retired) => "retired",
        }
    }

    /// A slot nobody uses. The supervisor's own books decide, not the table, which workers can write.
    pub(crate) fn free_slot(&self) -> Option<u16> {
        (0..self.table.shape().slots)
            .find(|s| !self.workers.contains_key(s) && !self.burying.contains_key(s) && !self.foreign.contains_key(s))
    }

    pub(crate) fn record_key(&self) -> String {
        format!("{POOL}{}", self.id)
    }

    fn record(&self) -> PoolRecord {
        let shape = self.table.shape();
        PoolRecord {
            id: self.id,
            master: self.master,
            group: (*self.group).clone(),
            application: self.application.clone(),
            preload: self.preload.clone(),
            token: self.token.clone(),
            shape: (shape.slots, shape.threads, shape.rows),
            directory: self.sockets.name.clone(),
            target: self.target,
            scaled: self.scaled,
            away: self.away,
            loaded: self.scripts.iter().cloned().collect(),
            retired: !self.is_current(),
        }
    }
}
