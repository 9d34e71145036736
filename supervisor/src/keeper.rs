//! `start-keeper` and `keeper`. The keeper holds the lock of the run directory, the control socket and what a crashed
//! supervisor leaves behind; it starts the supervisor, again with back-off when that dies, and ends when it exits 0.
//! It knows no configuration. One thread each.

use crate::args::{StartKeeper, render};
use crate::backoff::Backoff;
use crate::channel::{self, Channel};
use crate::held::{FromKeeper, MASTER, ToKeeper, describe};
use crate::log::Log;
use crate::rundir::{self, RunDir};
use crate::{sys, timer};
use mod_wsgi_wire::frame::Level;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long `start-keeper` waits for a keeper.
const START_TIME: Duration = Duration::from_secs(5);
/// Longest pause before a supervisor is started again: well below the 10 s after which workers without one end.
const MAX_BACKOFF: Duration = Duration::from_secs(3);
/// A supervisor that lived this long is restarted without delay beyond the first.
const SETTLED: Duration = Duration::from_secs(10);
/// Restarts without any living master after which the keeper gives up.
const HOPELESS: u32 = 5;
/// Ends of orphans remembered for the next supervisor.
const MAX_REAPED: usize = 1024;

/// Why a keeper cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    RunDir(#[from] rundir::Error),
    #[error("cannot start {program:?}: {source}")]
    Spawn { program: PathBuf, source: std::io::Error },
    #[error("the keeper did not open ctl.sock in {path:?} within {seconds} s")]
    Late { path: PathBuf, seconds: u64 },
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Sys(#[from] nix::Error),
}

/// Path of this program, also after the file has been replaced by an upgrade.
pub fn executable() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    match path.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
        Some(p) => Ok(p.into()),
        None => Ok(path),
    }
}

/// Makes sure that a keeper runs and that its control socket accepts. `Ok(false)`: the keeper said why it cannot.
pub fn start(args: &StartKeeper) -> Result<bool, Error> {
    let dir = RunDir::prepare(&args.run_directory)?;
    let deadline = Instant::now() + START_TIME;
    let mut child = None;
    loop {
        if dir.connect().is_ok() && dir.try_lock()?.is_none() {
            return Ok(true);
        }
        // Free lock: nobody runs, or only a supervisor whose keeper was killed. Taken: one is starting or ending.
        if child.is_none() && dir.try_lock()?.is_some() {
            let program = executable()?;
            let mut command = Command::new(&program);
            // No process group of its own here: the keeper calls setsid, which fails in a group leader.
            command.arg("keeper").args(render(args)).stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
            child = Some(command.spawn().map_err(|source| Error::Spawn { program, source })?);
        }
        if let Some(c) = &mut child
            && let Some(status) = c.try_wait()?
        {
            if !status.success() {
                return Ok(false);
            }
            child = None;
        }
        if Instant::now() >= deadline {
            return Err(Error::Late { path: args.run_directory.clone(), seconds: START_TIME.as_secs() });
        }
        timer::wait(Duration::from_millis(10));
    }
}

struct Held {
    record: String,
    fds: Vec<OwnedFd>,
}

struct Running {
    pid: Pid,
    since: Instant,
    /// `None`: it has closed its end or spoken nonsense; its exit follows.
    channel: Option<Channel>,
    /// It exits to be replaced by a newer program.
    replace: bool,
}

struct Keeper {
    dir: RunDir,
    args: StartKeeper,
    program: PathBuf,
    listener: UnixListener,
    log: Log,
    held: BTreeMap<String, Held>,
    reaped: VecDeque<(i32, String)>,
    supervisor: Option<Running>,
    started_before: bool,
    backoff: Backoff,
    ending: bool,
    /// Soft limit of open files that workers shall have.
    descriptors: Option<u64>,
}

/// Runs the keeper until its supervisor exits 0 or SIGTERM. `Ok(false)`: another keeper holds the lock.
pub fn run(args: StartKeeper) -> Result<bool, Error> {
    sys::close_others(&[]);
    drop(sys::take_stdin()?);
    sys::reset_signals(true);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    match nix::unistd::setsid() {
        // A group leader, started by hand: then it has a group of its own at least.
        Ok(_) | Err(nix::Error::EPERM) => {}
        Err(e) => return Err(e.into()),
    }
    let descriptors = crate::raise_descriptor_limit();
    nix::sys::prctl::set_child_subreaper(true)?;
    let dir = RunDir::prepare(&args.run_directory)?;
    let Some(_lock) = dir.try_lock()? else { return Ok(false) };
    dir.remove_stale_sockets();
    let (signals, write) = UnixStream::pair()?;
    signals.set_nonblocking(true)?;
    for s in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        signal_hook::low_level::pipe::register(s, write.try_clone()?)?;
    }
    let term = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for s in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::flag::register(s, term.clone())?;
    }
    let listener = dir.bind_ctl(args.server_uid, args.server_gid)?;
    let mut keeper = Keeper {
        program: executable()?,
        log: Log::new(Level::Notice),
        backoff: Backoff::new(Duration::from_millis(100), MAX_BACKOFF),
        held: BTreeMap::new(),
        reaped: VecDeque::new(),
        supervisor: None,
        started_before: false,
        ending: false,
        descriptors,
        dir,
        args,
        listener,
    };
    loop {
        let now = Instant::now();
        if keeper.supervisor.is_none() && keeper.backoff.until(now).is_none() {
            keeper.start_supervisor(now);
        }
        keeper.wait_for_events(&signals);
        while let Ok(n @ 1..) = std::io::Read::read(&mut &signals, &mut [0; 64]) {
            let _ = n;
        }
        if term.load(std::sync::atomic::Ordering::Relaxed) && !keeper.ending {
            keeper.ending = true;
            match &keeper.supervisor {
                Some(s) => drop(kill(s.pid, Signal::SIGTERM)),
                None => {
                    keeper.dir.remove_ctl();
                    break;
                }
            }
        }
        if keeper.reap() {
            break;
        }
        keeper.read_supervisor();
    }
    Ok(true)
}

impl Keeper {
    fn start_supervisor(&mut self, now: Instant) {
        let result = self.try_start(now);
        if let Err(e) = result {
            let wait = self.backoff.fail(now);
            let text =
                format!("MWR0303: the supervisor cannot be started: {e}; trying again in {:.1} s", wait.as_secs_f64());
            self.log.event(Level::Error, &text);
        }
    }

    fn try_start(&mut self, now: Instant) -> Result<(), Error> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(&self.program);
        command.arg("supervise").stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).current_dir("/");
        command.envs(self.descriptors.map(|n| (crate::DESCRIPTORS_VARIABLE, n.to_string())));
        let program = self.program.clone();
        let child = command.spawn().map_err(|source| Error::Spawn { program, source })?;
        let pid = Pid::from_raw(child.id() as i32);
        // `child` is dropped without waiting: the keeper reaps every process by number.
        drop(command);
        let mut channel = Channel::new(ours)?;
        let told = self.tell_everything(&mut channel);
        self.started_before = true;
        self.supervisor = Some(Running { pid, since: now, channel: Some(channel), replace: false });
        if let Err(e) = told {
            let text = format!("MWR0303: the supervisor does not take what it needs: {e}");
            self.log.event(Level::Error, &text);
            let _ = kill(pid, Signal::SIGKILL);
        }
        Ok(())
    }

    fn tell_everything(&mut self, channel: &mut Channel) -> Result<(), channel::Error> {
        let start = FromKeeper::Start {
            run_directory: self.dir.path().to_owned(),
            executable: self.program.clone(),
            server_uid: self.args.server_uid,
            server_gid: self.args.server_gid,
            restarted: self.started_before,
        };
        channel.send(&start, &[self.listener.as_fd()])?;
        for (key, held) in &self.held {
            let fds: Vec<_> = held.fds.iter().map(|f| f.as_fd()).collect();
            let (key, record) = (key.clone(), held.record.clone());
            channel.send(&FromKeeper::Held { key, record, fds: fds.len() }, &fds)?;
        }
        channel.send(&FromKeeper::Begin, &[])?;
        for (pid, how) in self.reaped.drain(..) {
            channel.send(&FromKeeper::Reaped { pid, how }, &[])?;
        }
        Ok(())
    }

    fn wait_for_events(&self, signals: &UnixStream) {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(c) = self.supervisor.as_ref().and_then(|s| s.channel.as_ref()) {
            let out = if c.pending() > 0 { PollFlags::POLLOUT } else { PollFlags::empty() };
            fds.push(PollFd::new(c.as_fd(), PollFlags::POLLIN | out));
        }
        let timeout = match (&self.supervisor, self.backoff.until(Instant::now())) {
            (None, Some(until)) => timer::poll_timeout(until),
            (None, None) => PollTimeout::ZERO,
            _ => PollTimeout::NONE,
        };
        // An interrupted wait is an event like any other.
        let _ = poll(&mut fds, timeout);
    }

    fn read_supervisor(&mut self) {
        let Some(running) = &mut self.supervisor else { return };
        let Some(channel) = &mut running.channel else { return };
        let result = channel.flush().and_then(|()| channel.fill());
        let mut failed = result.err();
        while failed.is_none() {
            let message = match channel.message::<ToKeeper>() {
                Ok(Some(m)) => m,
                Ok(None) => return,
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            };
            match message {
                ToKeeper::Hold { key, record, fds } => {
                    let fds: Vec<_> = (0..fds).map_while(|_| channel.take_fd()).collect();
                    self.held.insert(key, Held { record, fds });
                }
                ToKeeper::Replace => running.replace = true,
                ToKeeper::Forget { key } => drop(self.held.remove(&key)),
                ToKeeper::Log => {
                    if let Some(fd) = channel.take_fd() {
                        let _ = nix::unistd::dup2_stderr(fd);
                    }
                }
            }
        }
        running.channel = None;
        if !matches!(failed, None | Some(channel::Error::Closed)) {
            // It cannot be told apart from one that has gone mad: the next one starts from the records.
            let pid = running.pid;
            self.log.event(Level::Error, "MWR0303: the supervisor does not speak our language; it is replaced");
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Reaps all that has ended; `true`: the keeper ends too.
    fn reap(&mut self) -> bool {
        loop {
            let (pid, how, success) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, describe(Some(code), None), code == 0),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, describe(None, Some(signal as i32)), false),
                Ok(WaitStatus::StillAlive) | Err(_) => return false,
                Ok(_) => continue,
            };
            if self.supervisor.as_ref().is_some_and(|s| s.pid == pid) {
                // Its last words first: records it has sent must not be lost.
                self.read_supervisor();
                if self.supervisor_ended(&how, success) {
                    return true;
                }
            } else {
                self.orphan_ended(pid.as_raw(), how);
            }
        }
    }

    fn orphan_ended(&mut self, pid: i32, how: String) {
        if let Some(c) = self.supervisor.as_mut().and_then(|s| s.channel.as_mut()) {
            // A failure shows as the end of the connection.
            let _ = c.send(&FromKeeper::Reaped { pid, how }, &[]);
            return;
        }
        if self.reaped.len() == MAX_REAPED {
            self.reaped.pop_front();
        }
        self.reaped.push_back((pid, how));
    }

    fn supervisor_ended(&mut self, how: &str, success: bool) -> bool {
        let last = self.supervisor.take();
        if self.ending {
            self.dir.remove_ctl();
            return true;
        }
        let now = Instant::now();
        if success {
            return self.finish();
        }
        if last.as_ref().is_some_and(|s| now.duration_since(s.since) >= SETTLED) {
            self.backoff.reset();
        }
        if last.is_some_and(|s| s.replace) && self.backoff.failures() == 0 {
            self.log.event(Level::Notice, "the program has been replaced: the new one takes over");
            return false;
        }
        let wait = self.backoff.fail(now);
        if self.backoff.failures() > HOPELESS && !self.a_master_lives() {
            self.log.event(Level::Error, "MWR0303: the supervisor keeps failing and no server is left; giving up");
            self.dir.remove_ctl();
            return true;
        }
        let seconds = wait.as_secs_f64();
        let text = format!("MWR0301: the supervisor ended with {how}; a new one starts in {seconds:.1} s");
        self.log.event(Level::Error, &text);
        false
    }

    /// The supervisor has nothing left to do. The socket's name goes first, then the backlog is looked at: whoever has
    /// connected before is served by a new supervisor, nobody can come after, so nobody is missed.
    fn finish(&mut self) -> bool {
        self.held.clear();
        if let Err(e) = self.dir.hide_ctl() {
            self.log.event(Level::Error, &format!("MWR0303: {e}"));
            return true;
        }
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..)) {
            self.dir.remove_ctl();
            return true;
        }
        self.started_before = false;
        self.backoff.reset();
        if let Err(e) = self.dir.show_ctl() {
            self.log.event(Level::Error, &format!("MWR0303: {e}"));
            return true;
        }
        false
    }

    fn a_master_lives(&self) -> bool {
        self.held.iter().filter(|(k, _)| k.starts_with(MASTER)).any(|(_, h)| match h.fds.first() {
            Some(pidfd) => {
                let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
            }
            None => true,
        })
    }
}
