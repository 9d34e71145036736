//! Servers that have registered, and their request-serving processes.

use crate::held::{MASTER, MasterRecord, ProcessId};
use crate::sys;
use mod_wsgi_scoreboard::ClientId;
use mod_wsgi_wire::control::{Config, Secret};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// After its connection has ended without a new configuration, a server that lives is taken for gone then, unless
/// processes of it are registered.
pub const RELOAD_TIME: Duration = Duration::from_secs(60);
/// A secret of a former configuration stays valid this long for processes that have not registered yet.
pub const FORMER_TIME: Duration = Duration::from_secs(60);

/// Identity of a process and a descriptor that tells its end.
pub struct Watched {
    pub process: ProcessId,
    pidfd: Option<OwnedFd>,
    ended: bool,
}

impl Watched {
    /// Watches the process that has `pid` now. 0 is a process of another pid namespace: its connection tells.
    pub fn new(pid: i32) -> Watched {
        if pid <= 0 {
            return Watched { process: ProcessId { pid, start: 0 }, pidfd: None, ended: false };
        }
        match sys::pidfd_open(pid) {
            Ok(pidfd) => Watched { process: ProcessId::of(pid), pidfd, ended: false },
            Err(_) => Watched { process: ProcessId { pid, start: 0 }, pidfd: None, ended: true },
        }
    }

    /// Watches a recorded process; the descriptor is that of the record.
    pub fn recovered(process: ProcessId, pidfd: Option<OwnedFd>) -> Watched {
        Watched { process, pidfd, ended: false }
    }

    /// The descriptor to poll, until the end has been seen.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().filter(|_| !self.ended).map(|f| f.as_fd())
    }

    /// The descriptor for the keeper.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(|f| f.as_fd())
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        if !self.ended {
            self.ended = match &self.pidfd {
                Some(fd) => {
                    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
                }
                None => self.process.pid > 0 && !self.process.is_alive(),
            };
        }
        self.ended
    }
}

/// Why a server is leaving.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Leaving {
    /// It has told us to stop.
    Stop,
    /// Its process has ended; registered processes of it may go on until then.
    Gone { until: Instant },
}

/// A server's parent process.
pub struct Master {
    /// What it is known by: the process that sent its first configuration.
    pub id: ProcessId,
    /// The process it is now.
    pub watched: Watched,
    /// It may go on as a fork of `watched`, whose end then means nothing while the connection is open.
    pub moves: bool,
    /// Number of its connection.
    pub connection: Option<u64>,
    pub generation: u64,
    pub config: Rc<Config>,
    /// Secrets of former configurations with the time they were replaced.
    pub former: Vec<(u64, Secret, Instant)>,
    /// Its connection has ended or it has said that it reloads: a configuration is expected until then.
    pub expected: Option<Instant>,
    pub leaving: Option<Leaving>,
    /// Connections that wait for the end of its workers.
    pub waiting: Vec<u64>,
}

impl Master {
    /// Whether its process has ended for good.
    pub fn has_ended(&mut self) -> bool {
        self.watched.has_ended() && !(self.moves && self.connection.is_some())
    }

    /// The generation a secret belongs to.
    pub fn generation_of(&self, secret: &Secret) -> Option<u64> {
        if self.config.secret.matches(secret) {
            return Some(self.generation);
        }
        self.former.iter().find(|(_, s, _)| s.matches(secret)).map(|(g, ..)| *g)
    }

    /// Takes over a configuration; the former secret stays valid for a while.
    pub fn configure(&mut self, config: Rc<Config>, now: Instant) {
        if !self.config.secret.matches(&config.secret) {
            self.former.push((self.generation, self.config.secret.clone(), now));
        }
        self.generation += 1;
        self.config = config;
        (self.expected, self.leaving) = (None, None);
    }

    /// Key of its record.
    pub fn key(process: ProcessId) -> String {
        format!("{MASTER}{}:{}", process.pid, process.start)
    }

    /// What the keeper holds of it.
    pub fn record(&self) -> MasterRecord {
        let former = self.former.iter().map(|(g, s, _)| (*g, s.clone())).collect();
        let (process, watched) = (self.id, Some(self.watched.process));
        MasterRecord { process, watched, generation: self.generation, config: (*self.config).clone(), former }
    }
}

/// A request-serving process of a server.
pub struct Client {
    pub watched: Watched,
    pub connection: u64,
    pub master: ProcessId,
    pub generation: u64,
}

/// Hands out client numbers: never 0, at most 24 bits, not one in use.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Numbers {
    next: ClientId,
    /// The keeper has been told that numbers below this may be in use.
    pub promised: ClientId,
    /// The largest one.
    most: ClientId,
    /// Numbers promised to the keeper at once.
    block: ClientId,
}

impl Numbers {
    /// Starts with `next`, which nobody has.
    pub fn new(next: ClientId) -> Numbers {
        Numbers::within(next, mod_wsgi_scoreboard::row::MAX_CLIENT, 64)
    }

    fn within(next: ClientId, most: ClientId, block: ClientId) -> Numbers {
        Numbers { next, promised: next, most, block }
    }

    /// Whether a process may have this number from a former supervisor.
    pub fn was_given(&self, n: ClientId) -> bool {
        n != 0 && n < self.next
    }

    /// A number that `used` does not know. `true`: the keeper has to learn [`Numbers::promised`].
    pub fn give(&mut self, used: impl Fn(ClientId) -> bool) -> (ClientId, bool) {
        let mut tell = false;
        loop {
            if self.next == 0 || self.next > self.most {
                (self.next, self.promised) = (1, 1);
            }
            let n = self.next;
            self.next += 1;
            if self.next > self.promised {
                self.promised = n + self.block;
                // also when this number is passed over
                tell = true;
            }
            if !used(n) {
                return (n, tell);
            }
        }
    }
}

#[cfg(test)]
#[path = "master/registration.rs"]
mod registration;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_never_given_twice_while_in_use() {
        let mut n = Numbers::new(1);
        assert_eq!(n.give(|_| false), (1, true));
        assert_eq!(n.give(|_| false), (2, false));
        assert_eq!(n.give(|x| x == 3).0, 4);
        assert!(n.was_given(4) && !n.was_given(5) && !n.was_given(0));
        let mut late = Numbers::new(mod_wsgi_scoreboard::row::MAX_CLIENT);
        assert_eq!(late.give(|_| false).0, mod_wsgi_scoreboard::row::MAX_CLIENT);
        // The block that begins with number 1 is new to the keeper, whoever has that number.
        assert_eq!(late.give(|x| x == 1), (2, true));
    }

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let mut w = Watched::new(child.id() as i32);
        assert!(!w.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(w.has_ended() && w.fd().is_none());
    }
}
