//! Configurations, and the coming and going of servers and their processes.

use crate::connections::Role;
use crate::held::{MasterRecord, ProcessId, parent_of};
use crate::master::{FORMER_TIME, Leaving, Master, RELOAD_TIME, Watched};
use crate::pool::{Ending, Pool};
use crate::supervise::Supervisor;
use crate::timer::seconds;
use mod_wsgi_wire::control::{Config, FromSupervisor, Group, Preload, RefusedReason, Secret};
use mod_wsgi_wire::frame::Level;
use nix::unistd::Uid;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

impl Supervisor {
    /// A server's parent has sent its configuration over connection `id`.
    pub(crate) fn configure(
        &mut self,
        id: u64,
        pid: i32,
        config: Config,
        build: &str,
        moves: bool,
        now: Instant,
    ) -> Result<(), String> {
        self.check(&config)?;
        let watched = Watched::new(pid);
        let known = self.masters.values().find(|m| m.watched.process == watched.process);
        let process = known.map_or(watched.process, |m| m.id);
        self.cx.log.set_level(config.log_level);
        (self.cx.server_uid, self.cx.server_gid) = (config.server_uid, config.server_gid);
        let config = Rc::new(config);
        match self.masters.get_mut(&process) {
            Some(m) => {
                m.configure(config.clone(), now);
                m.connection = Some(id);
                m.moves = moves;
            }
            None => {
                let (connection, expected, leaving) = (Some(id), None, None);
                let (former, waiting) = (Vec::new(), Vec::new());
                let config = config.clone();
                let (id, generation) = (process, 1);
                let m =
                    Master { id, watched, moves, connection, generation, config, former, expected, leaving, waiting };
                self.masters.insert(process, m);
            }
        }
        self.hold_master(process);
        if let Some(c) = self.connections.get_mut(&id) {
            c.role = Role::Master(process);
        }
        self.apply(process, &config, now);
        let (groups, text) = (config.groups.len(), format!("{build:?}"));
        let text = format!("server {pid} (build {text}) has configured {groups} daemon process groups");
        self.cx.log.event(Level::Info, &text);
        self.replace = self.is_replaced();
        Ok(())
    }

    fn check(&self, config: &Config) -> Result<(), String> {
        if config.secret.bytes().is_none() {
            return Err("its secret is not 128 bits".to_owned());
        }
        let own = Uid::effective();
        if !own.is_root() && config.server_uid != own.as_raw() {
            let (want, own) = (config.server_uid, own.as_raw());
            return Err(format!(
                "the server's processes run as uid {want}, the supervisor as uid {own} and not as root"
            ));
        }
        for g in &config.groups {
            if g.processes == 0 || g.threads == 0 {
                return Err(format!("group {:?} has no processes or no threads", g.name));
            }
            if g.uid == 0 {
                return Err(format!("group {:?} would run as root; set user= to another user", g.name));
            }
        }
        Ok(())
    }

    /// The program on disk is another than the running one: an upgrade. The keeper starts the new one, which takes
    /// over the tables.
    fn is_replaced(&self) -> bool {
        let id = |p: &std::path::Path| std::fs::metadata(p).ok().map(|m| (m.dev(), m.ino()));
        let (Some(disk), Some(own)) = (id(&self.cx.executable), id(std::path::Path::new("/proc/self/exe"))) else {
            return false;
        };
        self.cx.keeper.is_some() && disk != own
    }

    fn hold_master(&mut self, process: ProcessId) {
        let Some(m) = self.masters.get(&process) else { return };
        let (key, record) = (Master::key(process), m.record());
        let fds: Vec<_> = m.watched.pidfd().into_iter().collect();
        self.cx.hold(&key, &record, &fds);
    }

    pub(crate) fn recover_master(&mut self, r: MasterRecord, pidfd: Option<OwnedFd>, now: Instant) {
        let watched = Watched::recovered(r.watched.unwrap_or(r.process), pidfd);
        let former = r.former.into_iter().map(|(g, s)| (g, s, now)).collect();
        self.cx.log.set_level(r.config.log_level);
        (self.cx.server_uid, self.cx.server_gid) = (r.config.server_uid, r.config.server_gid);
        let m = Master {
            id: r.process,
            watched,
            moves: false,
            connection: None,
            generation: r.generation,
            config: Rc::new(r.config),
            former,
            expected: None,
            leaving: None,
            waiting: Vec::new(),
        };
        self.masters.insert(r.process, m);
    }

    /// Brings the pools of a server in line with its configuration.
    fn apply(&mut self, master: ProcessId, config: &Config, now: Instant) {
        let generation = self.masters.get(&master).map_or(0, |m| m.generation);
        let ids: Vec<u32> =
            self.pools.iter().filter(|(_, p)| p.master == master && p.is_current()).map(|(i, _)| *i).collect();
        let mut done: Vec<(String, String)> = Vec::new();
        // The newest pool of a key first: one that waits to take over comes before the one it replaces.
        for id in ids.into_iter().rev() {
            let Some(pool) = self.pools.get_mut(&id) else { continue };
            let key = (pool.group.name.clone(), pool.application.clone());
            let Some(group) = config.groups.iter().find(|g| g.name == key.0) else {
                let until = now + seconds(pool.group.graceful_timeout);
                pool.vanished.get_or_insert((generation.saturating_sub(1), until));
                continue;
            };
            if done.contains(&key) {
                continue;
            }
            self.apply_group(id, group, config, now);
            done.push(key);
        }
        for group in &config.groups {
            let preload = preload_of(config, group, "");
            let key = (group.name.clone(), String::new());
            if preload.is_empty() || done.contains(&key) {
                continue;
            }
            match self.create_pool(master, Rc::new(group.clone()), "", preload) {
                Ok(id) => {
                    if let Some(p) = self.pools.get_mut(&id) {
                        p.wake(now);
                    }
                }
                Err(e) => {
                    self.cx.log.event(Level::Error, &format!("MWR0315: group {:?} cannot be set up: {e}", group.name))
                }
            }
        }
    }

    fn apply_group(&mut self, id: u32, group: &Group, config: &Config, now: Instant) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        let preload = preload_of(config, group, &pool.application);
        let (master, application) = (pool.master, pool.application.clone());
        let shape = Pool::shape_for(group);
        if pool.table.shape() == shape {
            pool.configure(Rc::new(group.clone()), preload, config.roll_all);
            if application.is_empty() && !pool.preload.is_empty() {
                pool.wake(now);
            }
            pool.end_scale();
            pool.target = pool.target.min(group.processes);
            // Older pools of this key go on waiting for this one.
            return;
        }
        let (target, scripts) = (pool.target, pool.scripts.clone());
        let back = self.pools.iter().find(|(_, p)| {
            p.master == master
                && p.group.name == group.name
                && p.application == application
                && p.is_current()
                && p.table.shape() == shape
        });
        let new = match back.map(|(id, _)| *id) {
            Some(back) => {
                if let Some(p) = self.pools.get_mut(&back) {
                    p.configure(Rc::new(group.clone()), preload, config.roll_all);
                    p.end_scale();
                }
                back
            }
            None => match self.create_pool(master, Rc::new(group.clone()), &application, preload) {
                Ok(new) => new,
                Err(e) => {
                    let text =
                        format!("MWR0315: group {:?} cannot be set up anew: {e}; the old settings go on", group.name);
                    self.cx.log.event(Level::Error, &text);
                    return;
                }
            },
        };
        for p in self.pools.values_mut() {
            if p.id != new && p.master == master && p.group.name == group.name && p.application == application {
                p.successor = Some(new);
            }
        }
        if let Some(p) = self.pools.get_mut(&new) {
            p.scripts.extend(scripts);
            for old in &p.preload {
                p.scripts.remove(&(old.script.clone(), old.callable.clone()));
            }
            if target > 0 {
                p.wake(now);
                if !application.is_empty() {
                    p.target = target.clamp(1, group.processes);
                }
            }
        }
    }

    /// Old tables are retired once their successor serves; vanished groups once nobody of their time is left.
    pub(crate) fn hand_over_tables(&mut self, now: Instant) {
        let serving = |p: &Pool| p.ready() > 0 || p.target == 0;
        let mut retire = Vec::new();
        for p in self.pools.values().filter(|p| p.is_current()) {
            if let Some(s) = p.successor {
                let ready = self.pools.get(&s).is_none_or(serving);
                if ready || (p.ready() == 0 && p.foreign.is_empty()) {
                    retire.push(p.id);
                }
            }
            if let Some((generation, until)) = p.vanished {
                let used = self.clients.values().any(|c| c.master == p.master && c.generation <= generation);
                if !used || now >= until {
                    retire.push(p.id);
                }
            }
        }
        for id in retire {
            if let Some(p) = self.pools.get_mut(&id) {
                p.retire(now);
            }
        }
    }

    /// Damaged tables are retired, and their groups go on with new ones.
    pub(crate) fn replace_damaged(&mut self, now: Instant) {
        let damaged: Vec<u32> =
            self.pools.iter().filter(|(_, p)| p.damaged && p.is_current()).map(|(id, _)| *id).collect();
        for id in damaged {
            let Some(p) = self.pools.get_mut(&id) else { continue };
            let (master, group, application) = (p.master, p.group.clone(), p.application.clone());
            let (preload, scripts, vanished) = (p.preload.clone(), p.scripts.clone(), p.vanished);
            let (target, scaled) = (p.target, p.scaled);
            // Whatever does this again and again must not keep a processor busy.
            let mut backoff = p.backoff.clone();
            backoff.fail(now);
            p.retire(now);
            p.end(Ending::Stop, now);
            match self.create_pool(master, group, &application, preload) {
                Ok(new) => {
                    if let Some(n) = self.pools.get_mut(&new) {
                        (n.scripts, n.vanished, n.backoff) = (scripts, vanished, backoff);
                        (n.target, n.scaled) = (target, scaled);
                    }
                    for older in self.pools.values_mut().filter(|o| o.successor == Some(id)) {
                        older.successor = Some(new);
                    }
                }
                Err(e) => {
                    let name = self.pools.get(&id).map_or_else(String::new, Pool::name);
                    self.cx.log.event(Level::Error, &format!("MWR0315: {name} cannot be set up anew: {e}"));
                }
            }
        }
    }

    fn create_pool(
        &mut self,
        master: ProcessId,
        group: Rc<Group>,
        app: &str,
        preload: Vec<Preload>,
    ) -> Result<u32, String> {
        let id = self.next_pool;
        let mut pool = Pool::create(id, master, group, app, &self.cx).map_err(|e| e.to_string())?;
        pool.preload = preload;
        pool.away = self.pools.values().any(|p| p.master == master && p.away);
        self.next_pool += 1;
        self.pools.insert(id, pool);
        Ok(id)
    }

    /// A process of a server has registered: a server that has moved is its parent.
    pub(crate) fn settle(&mut self, master: ProcessId, child: i32) {
        let Some(m) = self.masters.get_mut(&master).filter(|m| m.moves) else { return };
        let Some(parent) = parent_of(child).filter(|p| *p > 1) else { return };
        m.moves = false;
        if m.watched.process.pid != parent {
            m.watched = Watched::new(parent);
            let text = format!("server {} goes on as {parent}", master.pid);
            self.cx.log.event(Level::Info, &text);
        }
        self.hold_master(master);
    }

    /// The server and generation a secret belongs to.
    pub(crate) fn find_secret(&self, secret: &Secret) -> Option<(ProcessId, u64)> {
        self.masters.iter().find_map(|(process, m)| Some((*process, m.generation_of(secret)?)))
    }

    /// The pool whose table a server process shall get; made when it is missing.
    pub(crate) fn find_pool(
        &mut self,
        master: ProcessId,
        group: &str,
        app: &str,
        now: Instant,
    ) -> Result<u32, (RefusedReason, String)> {
        let fits = |p: &&Pool| p.master == master && p.group.name == group && p.application == app && p.is_current();
        // Ascending numbers: a pool whose successor is not ready yet comes first.
        if let Some(id) = self.pools.values().find(fits).map(|p| p.id) {
            if let Some(p) = self.pools.get_mut(&id) {
                p.wake(now);
            }
            return Ok(id);
        }
        let Some(m) = self.masters.get(&master).filter(|m| m.leaving != Some(Leaving::Stop)) else {
            return Err((RefusedReason::Internal, "the server is stopping".to_owned()));
        };
        let config = m.config.clone();
        let Some(settings) = config.groups.iter().find(|g| g.name == group) else {
            return Err((RefusedReason::Group, format!("no daemon process group {group:?}")));
        };
        if !app.is_empty() {
            self.make_room(master, settings, app, now)?;
        }
        let preload = preload_of(&config, settings, app);
        match self.create_pool(master, Rc::new(settings.clone()), app, preload) {
            Ok(id) => {
                if let Some(p) = self.pools.get_mut(&id) {
                    p.wake(now);
                }
                Ok(id)
            }
            Err(e) => {
                let text = format!("MWR0315: group {group:?} cannot be set up: {e}");
                self.cx.log.event(Level::Error, &text);
                Err((RefusedReason::Internal, e))
            }
        }
    }

    /// Enforces maximum-application-groups; an idle one makes room.
    fn make_room(
        &mut self,
        master: ProcessId,
        g: &Group,
        app: &str,
        now: Instant,
    ) -> Result<(), (RefusedReason, String)> {
        let counts = |p: &&mut Pool| {
            p.master == master
                && p.group.name == g.name
                && !p.application.is_empty()
                && p.is_current()
                && p.successor.is_none()
        };
        let used = self.pools.values_mut().filter(counts).count();
        let most = g.maximum_application_groups as usize;
        if used < most {
            if used == 0 {
                let text = format!(
                    "application groups of daemon process group {:?} get worker processes of their own; \
                     WSGIApplicationGroup %{{GLOBAL}} lets all applications of the group share its {} processes",
                    g.name, g.processes
                );
                self.cx.log.event(Level::Notice, &text);
            }
            return Ok(());
        }
        let idle = self.pools.values_mut().filter(counts).find(|p| p.target == 0 && p.workers.is_empty());
        if let Some(idle) = idle {
            idle.retire(now);
            return Ok(());
        }
        let text = format!(
            "MWR0316: daemon process group {:?} has {used} application groups, the most that \
             maximum-application-groups={most} of WSGIDaemonProcess allows; {app:?} gets 503; raise the option, or let \
             applications share processes with WSGIApplicationGroup %{{GLOBAL}}",
            g.name
        );
        // One line for each refused group a minute: a retrying client must not fill the log.
        let key = format!("{}\0{app}", g.name);
        self.refused.retain(|_, t| now.duration_since(*t) < Duration::from_secs(60));
        if self.refused.len() < 1000 && self.refused.insert(key, now).is_none() {
            self.cx.log.event(Level::Error, &text);
        }
        Err((RefusedReason::ApplicationGroups, format!("maximum-application-groups={most} is reached")))
    }

    // --- leaving ---------------------------------------------------------------------------------------------

    fn master_of(&mut self, pid: i32) -> Option<&mut Master> {
        self.masters.values_mut().find(|m| m.watched.process.pid == pid)
    }

    /// A configuration will follow on a new connection.
    pub(crate) fn reloading(&mut self, pid: i32, now: Instant) {
        if let Some(m) = self.master_of(pid) {
            m.expected = Some(now + RELOAD_TIME);
        }
    }

    /// The connection of a server's parent has ended; whether the process has is told by its pidfd.
    pub(crate) fn master_disconnected(&mut self, process: ProcessId, id: u64, now: Instant) {
        if let Some(m) = self.masters.get_mut(&process)
            && m.connection == Some(id)
        {
            m.connection = None;
            m.expected.get_or_insert(now + RELOAD_TIME);
        }
    }

    /// A server stops. `false`: there is nothing to wait for.
    pub(crate) fn stop(&mut self, id: u64, pid: i32, now: Instant) -> bool {
        let Some(m) = self.master_of(pid) else { return false };
        m.leaving = Some(Leaving::Stop);
        m.waiting.push(id);
        let process = m.id;
        if let Some(c) = self.connections.get_mut(&id)
            && c.role == Role::Visitor
        {
            c.role = Role::Stopping;
        }
        for p in self.pools.values_mut().filter(|p| p.master == process) {
            p.end(Ending::Stop, now);
        }
        true
    }

    /// Sees who has gone and draws the consequences.
    pub(crate) fn check_servers(&mut self, now: Instant, next: &mut Instant) {
        let gone: Vec<u32> = self.clients.iter_mut().filter_map(|(n, c)| c.watched.has_ended().then_some(*n)).collect();
        for n in gone {
            if let Some(c) = self.clients.remove(&n) {
                self.connections.remove(&c.connection);
                self.departed = true;
            }
        }
        let registered = |p: ProcessId, clients: &std::collections::BTreeMap<u32, crate::master::Client>| {
            clients.values().any(|c| c.master == p)
        };
        let mut finished = Vec::new();
        for (process, m) in &mut self.masters {
            let clients = registered(*process, &self.clients) || now < self.register_until;
            // No configuration will find its way here once the run directory has been removed.
            let overdue = !clients && m.expected.is_some_and(|e| now >= e || !self.cx.run.is_in_place());
            if m.leaving.is_none() && (m.has_ended() || overdue) {
                let most = m.config.groups.iter().map(|g| g.graceful_timeout).fold(0.0, f64::max);
                m.leaving = Some(Leaving::Gone { until: now + seconds(most) });
                let text = format!("server {} has gone", process.pid);
                self.cx.log.event(Level::Notice, &text);
            }
            for t in
                [m.expected, m.leaving.and_then(|l| if let Leaving::Gone { until } = l { Some(until) } else { None })]
            {
                *next = t.filter(|t| *t > now).map_or(*next, |t| t.min(*next));
            }
            if m.watched.fd().is_none() {
                *next = (*next).min(now + Duration::from_secs(1));
            }
            if let Some(Leaving::Gone { until }) = m.leaving
                && (!clients || now >= until)
            {
                for p in self.pools.values_mut().filter(|p| p.master == *process) {
                    p.end(Ending::Graceful, now);
                }
            }
            let idle = !self.pools.values().any(|p| p.master == *process);
            let over = match m.leaving {
                None => false,
                Some(Leaving::Stop) => true,
                Some(Leaving::Gone { until }) => !clients || now >= until,
            };
            if over && idle {
                finished.push(*process);
            }
            let before = m.former.len();
            let generations = |g: u64| self.clients.values().any(|c| c.master == *process && c.generation == g);
            m.former.retain(|(g, _, since)| now < *since + FORMER_TIME || generations(*g));
            if m.former.len() != before {
                // The record is written anew with the next configuration; an extra secret in it is harmless.
                *next = (*next).min(now + FORMER_TIME);
            }
        }
        for process in finished {
            self.master_finished(process, now);
        }
    }

    fn master_finished(&mut self, process: ProcessId, now: Instant) {
        let Some(m) = self.masters.remove(&process) else { return };
        self.cx.forget(&Master::key(process));
        for id in m.waiting {
            if let Some(c) = self.connections.get_mut(&id) {
                // The server may have gone meanwhile.
                let _ = c.channel.send(&FromSupervisor::Stopped, &[]);
            }
        }
        if self.masters.is_empty() {
            self.linger = now;
        }
    }
}

fn preload_of(config: &Config, group: &Group, application: &str) -> Vec<Preload> {
    let fits = |p: &&Preload| p.group == group.name && p.application == application;
    config.preload.iter().filter(fits).cloned().collect()
}
