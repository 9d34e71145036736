//! Connections of the server's processes to the supervisor (`ctl.sock`): the parent's, which carries the configuration,
//! and one of each request-serving process, which stands for its life. Blocking, bounded, off the request path.

use crate::error::RequestError;
use crate::pool::{Limits, Pool};
use mod_wsgi_scoreboard::{Shape, Table};
use mod_wsgi_wire::control::{self, FromSupervisor, RefusedReason, Secret, ToSupervisor};
use mod_wsgi_wire::limits::MAX_CONTROL_FDS;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Why the supervisor cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("{0}")]
    Io(#[from] Errno),
    #[error("{0}")]
    Message(#[from] control::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("connection closed by the supervisor")]
    Closed,
    #[error("unexpected answer")]
    Unexpected,
}

/// A control connection with blocking calls under a deadline.
pub struct ControlStream {
    fd: OwnedFd,
    buf: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl ControlStream {
    /// Connects to `ctl.sock` in the run directory behind `dir`.
    pub fn connect(dir: BorrowedFd<'_>) -> Result<ControlStream, LinkError> {
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&fd, Timeout::Send, Some(Duration::from_secs(1)))?;
        connect(&fd, &SocketAddrUnix::new(format!("/proc/self/fd/{}/ctl.sock", dir.as_raw_fd()))?)?;
        Ok(ControlStream { fd, buf: Vec::new(), fds: Vec::new() })
    }

    /// The descriptor (closed by a forked child that must not hold it).
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Continues on a descriptor from [`ControlStream::into_fd`].
    pub fn from_fd(fd: OwnedFd) -> ControlStream {
        ControlStream { fd, buf: Vec::new(), fds: Vec::new() }
    }

    /// Sends one message with its descriptors.
    pub fn send(&mut self, message: &ToSupervisor, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let bytes = control::encode(message)?;
        let mut sent = 0;
        while sent < bytes.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_CONTROL_FDS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if sent == 0 && !fds.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(fds));
            }
            match sendmsg(&self.fd, &[IoSlice::new(&bytes[sent..])], &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// The next message and its descriptors; `None` as limit waits for ever.
    pub fn receive(&mut self, limit: Option<Duration>) -> Result<(FromSupervisor, Vec<OwnedFd>), LinkError> {
        let deadline = limit.map(|l| Instant::now() + l);
        loop {
            if let Some((message, used)) = control::decode(&self.buf)? {
                self.buf.drain(..used);
                return Ok((message, std::mem::take(&mut self.fds)));
            }
            let left = match deadline {
                None => None,
                Some(d) => match d.checked_duration_since(Instant::now()) {
                    Some(left) if !left.is_zero() => Some(left),
                    _ => return Err(LinkError::Timeout(limit.unwrap_or_default())),
                },
            };
            set_socket_timeout(&self.fd, Timeout::Recv, left)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_CONTROL_FDS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut chunk = [0u8; 4096];
            match recvmsg(&self.fd, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(m) => {
                    for a in ancillary.drain() {
                        if let RecvAncillaryMessage::ScmRights(fds) = a {
                            self.fds.extend(fds);
                        }
                    }
                    if m.bytes == 0 {
                        return Err(LinkError::Closed);
                    }
                    self.buf.extend_from_slice(&chunk[..m.bytes]);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Starts a small thread of ours in a server's process: the signals there belong to the server's own threads.
pub fn spawn_quiet(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let old = nix::sys::signal::SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let spawned = std::thread::Builder::new().name(name.to_owned()).stack_size(128 * 1024).spawn(run);
    old.thread_set_mask()?;
    spawned.map(drop)
}

/// A request-serving process's link. Made after the fork, before the first request.
pub struct Link {
    dir: OwnedFd,
    secret: Secret,
    client: AtomicU32,
    pools: RwLock<Vec<Arc<Pool>>>,
    /// One table is fetched at a time: many threads ask for the same one at once.
    fetching: Mutex<()>,
}

impl Link {
    /// Registers this process, and keeps it registered from a small thread of its own for as long as it lives. The
    /// first registration is awaited up to a second; without a supervisor requests get 503 until there is one.
    pub fn start(dir: OwnedFd, secret: Secret) -> std::io::Result<Arc<Link>> {
        let link = Arc::new(Link {
            dir,
            secret,
            client: AtomicU32::new(0),
            pools: RwLock::new(Vec::new()),
            fetching: Mutex::new(()),
        });
        let first = link.register(Duration::from_secs(1)).ok();
        let own = link.clone();
        spawn_quiet("wsgi-link", move || own.stay_registered(first))?;
        Ok(link)
    }

    fn register(&self, limit: Duration) -> Result<ControlStream, LinkError> {
        let mut stream = ControlStream::connect(self.dir.as_fd())?;
        let had = self.client.load(SeqCst);
        stream.send(&ToSupervisor::Register { secret: self.secret.clone(), client: (had != 0).then_some(had) }, &[])?;
        match stream.receive(Some(limit))?.0 {
            FromSupervisor::Registered { client } => {
                self.client.store(client, SeqCst);
                Ok(stream)
            }
            _ => Err(LinkError::Unexpected),
        }
    }

    fn stay_registered(&self, mut stream: Option<ControlStream>) {
        let mut pause = Duration::from_millis(50);
        loop {
            if let Some(mut s) = stream.take() {
                pause = Duration::from_millis(50);
                // Nothing is expected: this returns when the supervisor has gone.
                while s.receive(None).is_ok() {}
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(2));
            stream = self.register(Duration::from_secs(5)).ok();
        }
    }

    /// This process's number; 0 while it has none.
    pub fn client(&self) -> u32 {
        self.client.load(SeqCst)
    }

    fn find(&self, group: &str, application: &str) -> Option<Arc<Pool>> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.iter().find(|p| p.group == group && p.application == application).cloned()
    }

    /// The pool of an application group, if it has been fetched and is still in force. Never waits.
    pub fn known(&self, group: &str, application: &str) -> Option<Arc<Pool>> {
        self.find(group, application).filter(|p| !p.retired())
    }

    /// The pool of an application group, fetched from the supervisor at its first use and when the table was retired.
    pub fn pool(&self, group: &str, application: &str, limits: &Limits) -> Result<Arc<Pool>, RequestError> {
        if let Some(pool) = self.known(group, application) {
            return Ok(pool);
        }
        let _one = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = self.known(group, application) {
            return Ok(pool);
        }
        let pool = Arc::new(self.fetch(group, application, limits)?);
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|p| !(p.group == group && p.application == application));
        pools.push(pool.clone());
        Ok(pool)
    }

    fn fetch(&self, group: &str, application: &str, limits: &Limits) -> Result<Pool, RequestError> {
        let unreachable = |e: LinkError| RequestError::Supervisor(e.to_string());
        let ask = ToSupervisor::Table {
            secret: self.secret.clone(),
            group: group.to_owned(),
            application: application.to_owned(),
        };
        let once = || {
            let mut stream = ControlStream::connect(self.dir.as_fd())?;
            stream.send(&ask, &[])?;
            stream.receive(Some(Duration::from_secs(5)))
        };
        // A supervisor that is being replaced closes its connections; the keeper has the next one up in a moment.
        let started = Instant::now();
        let (answer, mut fds) = loop {
            match once() {
                Ok(answer) => break answer,
                Err(LinkError::Closed | LinkError::Io(_)) if started.elapsed() < Duration::from_secs(2) => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(e) => return Err(unreachable(e)),
            }
        };
        match answer {
            FromSupervisor::Table { token, slots, threads, rows } if fds.len() == 2 => {
                let (dir, memory) = (fds.pop(), fds.pop());
                let (Some(dir), Some(memory), Some(token)) = (dir, memory, token.bytes()) else {
                    return Err(unreachable(LinkError::Unexpected));
                };
                let table = Table::open(&memory, Shape { slots, threads, rows })
                    .map_err(|e| RequestError::Supervisor(e.to_string()))?;
                Ok(Pool::new(group, application, table, limits.clone(), token, dir))
            }
            FromSupervisor::Refused { reason: RefusedReason::Group, .. } => {
                Err(RequestError::UnknownGroup(group.to_owned()))
            }
            FromSupervisor::Refused { reason: RefusedReason::ApplicationGroups, .. } => {
                Err(RequestError::ApplicationGroups {
                    group: group.to_owned(),
                    limit: limits.maximum_application_groups,
                })
            }
            FromSupervisor::Refused { text, .. } => Err(RequestError::Refused(text)),
            _ => Err(unreachable(LinkError::Unexpected)),
        }
    }
}
