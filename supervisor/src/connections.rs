//! Connections on `ctl.sock`: who may say what, and the answers.

use crate::channel::{Channel, Error};
use crate::held::{CLIENTS, ProcessId, ToKeeper};
use crate::master::{Client, Watched};
use crate::status::status;
use crate::supervise::Supervisor;
use mod_wsgi_scoreboard::ClientId;
use mod_wsgi_wire::control::{FromSupervisor, RefusedReason, Secret, ToSupervisor};
use mod_wsgi_wire::frame::Level;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Connections at once.
const MAX_CONNECTIONS: usize = 8192;
/// Of those, connections of the server's user that stand for nothing (yet): applications may run as that user too.
const MAX_VISITORS: usize = 256;
/// And of one process. A server process has one for each application group it asks about at the moment.
const MAX_VISITORS_OF_ONE: usize = 64;
/// Connections accepted in one turn: what those that are there have to say comes in between.
const ACCEPTS: usize = 32;
/// A connection that registers nothing is closed after this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a connection stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Role {
    /// Has said nothing that lasts.
    Visitor,
    Master(ProcessId),
    Client(ClientId),
    /// Waits for the end of its server's workers.
    Stopping,
}

/// One connection.
pub struct Connection {
    pub channel: Channel,
    pub pid: i32,
    /// Its user may command: root, or the supervisor's own. Workers of the server's user may not.
    privileged: bool,
    pub role: Role,
    since: Instant,
}

impl Connection {
    /// Has connected, and may still send its first message.
    pub fn is_new(&self) -> bool {
        !self.channel.heard && !self.channel.is_closed()
    }
}

impl Supervisor {
    /// Accepts what has connected.
    pub(crate) fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS {
            if self.connections.len() >= MAX_CONNECTIONS {
                self.accept_after = now + Duration::from_secs(1);
                return;
            }
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    // Out of descriptors, most likely.
                    self.accept_after = now + Duration::from_secs(1);
                    self.cx.log.event(Level::Error, &format!("MWR0312: ctl.sock: cannot accept: {e}"));
                    return;
                }
            };
            match self.admit(socket, now) {
                Ok(Some(c)) => {
                    if !c.privileged {
                        self.make_room_for(c.pid);
                    }
                    let id = self.next_connection;
                    self.next_connection += 1;
                    self.connections.insert(id, c);
                }
                Ok(None) => {}
                Err(e) => self.cx.log.event(Level::Error, &format!("MWR0312: ctl.sock: {e}")),
            }
        }
    }

    /// Closes the oldest visitors where there are too many: whoever has something to say has said it by then, so that
    /// nobody can keep server processes from registering by opening connections.
    fn make_room_for(&mut self, pid: i32) {
        let visitors = |all: &BTreeMap<u64, Connection>, pid: Option<i32>| -> Vec<u64> {
            let fits = |c: &Connection| c.role == Role::Visitor && !c.privileged && pid.is_none_or(|p| c.pid == p);
            all.iter().filter(|(_, c)| fits(c)).map(|(id, _)| *id).collect()
        };
        for (limit, of) in [(MAX_VISITORS_OF_ONE, Some(pid)), (MAX_VISITORS, None)] {
            let there = visitors(&self.connections, of);
            for id in there.iter().take((there.len() + 1).saturating_sub(limit)) {
                self.connections.remove(id);
            }
        }
    }

    fn admit(&mut self, socket: UnixStream, now: Instant) -> std::io::Result<Option<Connection>> {
        let peer = getsockopt(&socket, PeerCredentials)?;
        let own = Uid::effective().as_raw();
        let privileged = peer.uid() == 0 || peer.uid() == own;
        if !privileged && peer.uid() != self.cx.server_uid {
            let text = format!("MWR0312: ctl.sock: uid {} (pid {}) is refused", peer.uid(), peer.pid());
            self.cx.log.event(Level::Warn, &text);
            return Ok(None);
        }
        // Only the server's parent has something to pass: its error log.
        let channel = if privileged { Channel::new(socket)? } else { Channel::without_descriptors(socket)? };
        Ok(Some(Connection { channel, pid: peer.pid(), privileged, role: Role::Visitor, since: now }))
    }

    /// Closes visitors that say nothing.
    pub(crate) fn check_connections(&mut self, now: Instant, next: &mut Instant) {
        self.connections.retain(|_, c| {
            let end = c.since + PATIENCE;
            let keep = c.role != Role::Visitor || now < end;
            if c.role == Role::Visitor && keep {
                *next = (*next).min(end);
            }
            keep
        });
    }

    /// Reads a connection and answers.
    pub(crate) fn read_connection(&mut self, id: u64, now: Instant) {
        let Some(c) = self.connections.get_mut(&id) else { return };
        let mut result = c.channel.flush().and_then(|()| c.channel.fill());
        while result.is_ok() {
            let Some(c) = self.connections.get_mut(&id) else { return };
            match c.channel.message::<ToSupervisor>() {
                Ok(Some(message)) => result = self.message(id, message, now),
                Ok(None) => return,
                Err(e) => result = Err(e),
            }
        }
        let Some(c) = self.connections.remove(&id) else { return };
        match result {
            Err(Error::Closed) | Ok(()) => {
                if !c.channel.heard {
                    self.probed(now);
                }
            }
            Err(e) => {
                let text = format!("MWR0312: ctl.sock: pid {} sent what is not understood: {e}", c.pid);
                self.cx.log.event(Level::Warn, &text);
            }
        }
        self.connection_closed(id, c.role, now);
    }

    pub(crate) fn answer(&mut self, id: u64, message: &FromSupervisor) -> Result<(), Error> {
        match self.connections.get_mut(&id) {
            Some(c) => c.channel.send(message, &[]),
            None => Ok(()),
        }
    }

    pub(crate) fn refuse(&mut self, id: u64, reason: RefusedReason, text: &str) -> Result<(), Error> {
        self.answer(id, &FromSupervisor::Refused { reason, text: text.to_owned() })
    }

    fn message(&mut self, id: u64, message: ToSupervisor, now: Instant) -> Result<(), Error> {
        let Some(c) = self.connections.get_mut(&id) else { return Ok(()) };
        let (pid, privileged) = (c.pid, c.privileged);
        let commands = matches!(
            message,
            ToSupervisor::Configure { .. }
                | ToSupervisor::Reloading
                | ToSupervisor::Reopened
                | ToSupervisor::Stop
                | ToSupervisor::Command { .. }
        );
        if commands && !privileged {
            let text =
                format!("MWR0312: ctl.sock: pid {pid} may not command, its user is not that of the server's parent");
            self.cx.log.event(Level::Warn, &text);
            return self.refuse(id, RefusedReason::Protocol, "only the server's parent may do this");
        }
        match message {
            ToSupervisor::Configure { build, config, moves } => {
                self.take_log(id);
                if self.terminating {
                    return self.refuse(id, RefusedReason::Internal, "the supervisor is being ended");
                }
                match self.configure(id, pid, *config, &build, moves, now) {
                    Ok(()) => self.answer(id, &FromSupervisor::Accepted),
                    Err(text) => {
                        self.cx.log.event(Level::Error, &format!("MWR0313: the configuration is refused: {text}"));
                        self.refuse(id, RefusedReason::Internal, &text)
                    }
                }
            }
            ToSupervisor::Reloading => {
                self.reloading(pid, now);
                Ok(())
            }
            ToSupervisor::Reopened => {
                self.take_log(id);
                self.answer(id, &FromSupervisor::Accepted)
            }
            ToSupervisor::Stop => {
                if self.stop(id, pid, now) {
                    return Ok(());
                }
                self.answer(id, &FromSupervisor::Stopped)
            }
            ToSupervisor::Register { secret, client } => self.register(id, pid, &secret, client),
            ToSupervisor::Table { secret, group, application } => self.table(id, &secret, &group, &application, now),
            ToSupervisor::Command { command } => self.command(id, pid, command, now),
            ToSupervisor::Status => {
                let status = status(self, now);
                self.answer(id, &FromSupervisor::Status { status })
            }
        }
    }

    /// From now on lines go to the log whose descriptor has come with the message.
    fn take_log(&mut self, id: u64) {
        let Some(log) = self.connections.get_mut(&id).and_then(|c| c.channel.take_fd()) else { return };
        self.cx.tell(&ToKeeper::Log, &[log.as_fd()]);
        if let Err(e) = nix::unistd::dup2_stderr(&log) {
            self.cx.log.event(Level::Error, &format!("MWR0312: the error log cannot be used: {e}"));
        }
    }

    fn wrong_secret(&mut self, id: u64, what: &str) -> Result<(), Error> {
        let pid = self.connections.get(&id).map_or(0, |c| c.pid);
        let text = format!("MWR0314: ctl.sock: {what} of pid {pid} is refused: its secret is of no registered server");
        self.cx.log.event(Level::Warn, &text);
        self.refuse(id, RefusedReason::Secret, "the secret is of no registered server")
    }

    fn register(&mut self, id: u64, pid: i32, secret: &Secret, client: Option<ClientId>) -> Result<(), Error> {
        let Some((master, generation)) = self.find_secret(secret) else {
            return self.wrong_secret(id, "the registration");
        };
        if matches!(self.connections.get(&id), Some(c) if c.role != Role::Visitor) {
            return self.refuse(id, RefusedReason::Protocol, "registered already");
        }
        let again = client.filter(|n| self.numbers.was_given(*n) && !self.clients.contains_key(n));
        let number = match again {
            Some(n) => n,
            None => {
                let (n, tell) = self.numbers.give(|n| self.clients.contains_key(&n));
                if tell {
                    let promised = self.numbers.promised;
                    self.cx.hold(CLIENTS, &promised, &[]);
                }
                n
            }
        };
        let watched = Watched::new(pid);
        self.clients.insert(number, Client { watched, connection: id, master, generation });
        if let Some(c) = self.connections.get_mut(&id) {
            c.role = Role::Client(number);
        }
        self.settle(master, pid);
        self.answer(id, &FromSupervisor::Registered { client: number })
    }

    fn table(&mut self, id: u64, secret: &Secret, group: &str, app: &str, now: Instant) -> Result<(), Error> {
        let Some((master, _)) = self.find_secret(secret) else {
            return self.wrong_secret(id, "the request for a table");
        };
        let pool = match self.find_pool(master, group, app, now) {
            Ok(pool) => pool,
            Err((reason, text)) => return self.refuse(id, reason, &text),
        };
        let (Some(pool), Some(c)) = (self.pools.get(&pool), self.connections.get_mut(&id)) else { return Ok(()) };
        let shape = pool.table.shape();
        let (slots, threads, rows) = (shape.slots, shape.threads, shape.rows);
        let answer = FromSupervisor::Table { token: pool.token.clone(), slots, threads, rows };
        c.channel.send(&answer, &[pool.table_fd.as_fd(), pool.sockets.at.as_fd()])
    }

    fn connection_closed(&mut self, id: u64, role: Role, now: Instant) {
        match role {
            Role::Visitor => {}
            Role::Master(process) => self.master_disconnected(process, id, now),
            Role::Client(n) => {
                if self.clients.get(&n).is_some_and(|c| c.connection == id) {
                    self.clients.remove(&n);
                    self.departed = true;
                }
            }
            Role::Stopping => self.masters.values_mut().for_each(|m| m.waiting.retain(|w| *w != id)),
        }
    }
}
