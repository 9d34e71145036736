//! One worker process as the supervisor sees it: its start through `exec-worker`, its control socket, its output pipes
//! and where it is in its life. The supervisor's thread runs all of it.

use crate::channel::Channel;
use crate::context::Context;
use crate::held::{ProcessId, WORKER, WorkerRecord};
use crate::log::Lines;
use crate::pool::Pool;
use crate::recycle::Lifetime;
use crate::timer::seconds;
use mod_wsgi_scoreboard::Journal;
use mod_wsgi_wire::control::{Preload, ToWorker};
use mod_wsgi_wire::frame::Level;
use mod_wsgi_wire::plan::{ExecPlan, WorkerFds, WorkerPlan};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds without a control connection, which the keeper holds too, after which a worker drains and ends by itself.
pub const ORPHAN_TIMEOUT: f64 = 10.0;
/// Lines of stderr kept to explain a failed start.
const TAIL: usize = 12;
/// Lines of stacks given to whoever asks for them; the log has all.
const CAPTURED: usize = 5000;
/// Bytes read from one pipe in one turn.
const PIPE_TURN: usize = 64 * 1024;

/// Where a worker is in its life. Also written to the table, where it is for the server processes only.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Not ready yet; killed at `until`.
    Starting {
        until: Option<Instant>,
    },
    Ready,
    /// Finishes its requests, at most until then.
    Draining {
        until: Instant,
    },
    /// Told to exit; killed at `kill_at`.
    Exiting {
        kill_at: Instant,
        killed: bool,
    },
}

impl State {
    pub fn name(&self) -> &'static str {
        match self {
            State::Starting { .. } => "starting",
            State::Ready => "ready",
            State::Draining { .. } => "draining",
            State::Exiting { .. } => "exiting",
        }
    }
}

/// What loading a script gave.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Modification time, microseconds since the epoch.
    pub mtime: u64,
    /// The traceback of a failure.
    pub error: Option<String>,
}

/// A pipe from a process, read line by line.
pub struct Output {
    pipe: OwnedFd,
    lines: Lines,
    pub level: Level,
    pub pid: i32,
}

impl Output {
    /// Takes over the read end of a pipe and makes it nonblocking.
    pub fn new(pipe: OwnedFd, level: Level, pid: i32) -> std::io::Result<Output> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Output { pipe, lines: Lines::default(), level, pid })
    }

    /// Reads what is there and gives each line to `each`. `false`: every writer has gone.
    pub fn read(&mut self, mut each: impl FnMut(&[u8])) -> bool {
        let mut buf = [0; 4096];
        for _ in 0..PIPE_TURN / buf.len() {
            match nix::unistd::read(&self.pipe, &mut buf) {
                Ok(0) => {
                    self.lines.end(each);
                    return false;
                }
                Ok(n) => self.lines.push(&buf[..n], &mut each),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// A worker process that this supervisor has started.
pub struct Worker {
    pub slot: u16,
    pub generation: u32,
    /// Version of the pool it was started for; an older one than the pool's is to be replaced.
    pub epoch: u64,
    pub process: ProcessId,
    pub child: Child,
    /// `None`: it has closed its end.
    pub control: Option<Channel>,
    /// When its control connection ended.
    pub deaf_since: Option<Instant>,
    /// stdout and stderr, as long as anyone holds their other ends.
    pub outputs: [Option<Output>; 2],
    pub state: State,
    pub started: Instant,
    /// When it is to be replaced.
    pub life: Lifetime,
    pub ready: Option<Instant>,
    /// What the interpreter said about itself.
    pub python: String,
    /// Why the supervisor ends it, for the log and for `process_stopping` subscribers.
    pub reason: String,
    /// It failed rather than being asked to leave.
    pub failed: Option<String>,
    /// It takes the place of a worker that has died, with code that could not be loaded before: the same traceback is
    /// not logged again.
    pub quiet: bool,
    /// Scripts it was told to load before it is ready.
    pub load_set: Vec<Preload>,
    pub loaded: BTreeMap<(String, String), Loaded>,
    pub tail: VecDeque<String>,
    /// What its threads are doing.
    pub journal: Journal,
    /// Rows with their generations whose requests it has given up.
    pub stuck: Vec<(u16, u32)>,
    /// Lines of its standard error that somebody has asked for.
    pub captured: Option<Vec<String>>,
    pub shutdown_timeout: Duration,
    pub graceful_timeout: Duration,
}

/// Name of a worker's socket in its table's directory.
pub fn socket_name(slot: u16, generation: u32) -> String {
    format!("{slot}.{generation}")
}

/// Key under which the keeper holds a worker's record.
pub fn record_key(pool: u32, slot: u16) -> String {
    format!("{WORKER}{pool}:{slot}")
}

impl Worker {
    /// Starts a worker in `slot`, whose generation has begun. The process is known to the keeper before it does
    /// anything: it waits for its plan.
    pub fn spawn(pool: &Pool, slot: u16, generation: u32, cx: &mut Context, now: Instant) -> std::io::Result<Worker> {
        let group = &pool.group;
        let listener = pool.sockets.bind(&socket_name(slot, generation), cx.server_uid, cx.server_gid)?;
        let (journal, journal_fd) = Journal::create(group.threads).map_err(std::io::Error::other)?;
        let (control, theirs) = UnixStream::pair()?;
        let control = Channel::without_descriptors(control)?;
        let (out_read, out_write) = std::io::pipe()?;
        let (err_read, err_write) = std::io::pipe()?;
        let mut out = Output::new(out_read.into(), Level::Info, 0)?;
        let mut err = Output::new(err_read.into(), Level::Warn, 0)?;
        // The running program, not what an upgrade may have put in its place: the plan has the form this build knows.
        let mut command = Command::new("/proc/self/exe");
        command.arg0(&cx.executable).arg("exec-worker").env_clear().current_dir("/");
        command.envs(cx.descriptors.map(|n| (crate::DESCRIPTORS_VARIABLE, n.to_string())));
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(err_write.try_clone()?);
        let child = command.spawn()?;
        drop(command);
        // Nothing below fails: a process that is not in the books would never be reaped.
        let process = ProcessId::of(child.id() as i32);
        (out.pid, err.pid) = (process.pid, process.pid);
        let record = WorkerRecord { pool: pool.id, slot, generation, process };
        // With the control connection: the worker shall not notice that its supervisor has changed.
        let held = [out.as_fd(), err.as_fd(), control.as_fd(), journal_fd.as_fd()];
        cx.hold(&record_key(pool.id, slot), &record, &held);
        let load_set = pool.load_set();
        let life = Lifetime::draw(&group.recycle);
        let plan = ExecPlan {
            group: (**group).clone(),
            worker_dir: cx.worker_dir.to_string_lossy().into_owned(),
            worker: WorkerPlan {
                group: group.name.clone(),
                application: pool.application.clone(),
                slot,
                slot_generation: generation,
                slots: pool.table.shape().slots,
                rows: pool.table.shape().rows,
                threads: pool.table.shape().threads,
                processes: group.processes,
                multiprocess: group.multiprocess,
                token: pool.token.clone(),
                preload: load_set.clone(),
                python_path: group.python_path.clone(),
                home: group.home.clone(),
                display_name: group.display_name.clone(),
                startup_timeout: group.startup_timeout,
                shutdown_timeout: group.shutdown_timeout,
                graceful_timeout: group.graceful_timeout,
                orphan_timeout: ORPHAN_TIMEOUT,
                strict_reloading: group.strict_reloading,
                reload_on_changes: group.reload_on_changes,
                request_timeout: group.deadlines.request,
                interrupt_timeout: group.deadlines.interrupt,
                deadlock_timeout: group.deadlines.deadlock,
                maximum_requests: life.requests,
                health_check_path: group.recycle.health_check_path.clone(),
                fds: WorkerFds::default(),
            },
        };
        let mut worker = Worker {
            slot,
            generation,
            epoch: pool.epoch,
            process,
            child,
            control: Some(control),
            deaf_since: None,
            outputs: [Some(out), Some(err)],
            state: State::Starting {
                until: (group.startup_timeout > 0.0).then(|| now + seconds(group.startup_timeout)),
            },
            started: now,
            life,
            ready: None,
            python: String::new(),
            reason: String::new(),
            failed: None,
            quiet: pool.blocked,
            load_set,
            loaded: BTreeMap::new(),
            tail: VecDeque::new(),
            journal,
            stuck: Vec::new(),
            captured: None,
            shutdown_timeout: seconds(group.shutdown_timeout),
            graceful_timeout: seconds(group.graceful_timeout),
        };
        let out_and_err = (out_write.as_fd(), err_write.as_fd());
        let fds = [pool.table_fd.as_fd(), listener.as_fd(), out_and_err.0, out_and_err.1, journal_fd.as_fd()];
        let sent = worker.control.as_mut().map(|c| c.send(&plan, &fds));
        if let Some(Err(e)) = sent {
            worker.kill();
            worker.failed = Some(format!("its plan cannot be sent: {e}"));
        }
        Ok(worker)
    }

    /// Sends a message; a worker that cannot be reached is noticed by [`Worker::control`] being gone.
    pub fn send(&mut self, message: &ToWorker) {
        if let Some(c) = &mut self.control
            && c.send(message, &[]).is_err()
        {
            self.control = None;
        }
    }

    /// SIGKILL. The process is ours and not reaped yet, so its number is its own.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// SIGTERM, for a process that does not listen on its control socket (yet).
    pub fn terminate(&mut self) {
        let _ = kill(Pid::from_raw(self.process.pid), Signal::SIGTERM);
    }

    /// Tells it to run its exit sequence within `timeout`; killed one second after that.
    pub fn exit(&mut self, timeout: Duration, now: Instant) {
        let starting = matches!(self.state, State::Starting { .. });
        self.send(&ToWorker::Exit { timeout: timeout.as_secs_f64(), reason: self.reason.clone() });
        if starting || self.control.is_none() {
            self.terminate();
        }
        self.state = State::Exiting { kill_at: now + timeout + Duration::from_secs(1), killed: false };
    }

    /// Reads both pipes into the log. While it starts, lines are written whatever the log level, and remembered.
    pub fn read_outputs(&mut self, cx: &mut Context) {
        let starting = matches!(self.state, State::Starting { .. });
        let tail = &mut self.tail;
        let each = |line: &[u8]| {
            if starting {
                keep_line(tail, line);
            }
        };
        read_outputs(&mut self.outputs, &mut self.captured, cx, starting, each);
    }

    /// Keeps a line that may explain a failed start.
    pub fn remember(&mut self, line: &[u8]) {
        keep_line(&mut self.tail, line);
    }

    /// Errors of its load set: script, callable, traceback.
    pub fn load_errors(&self) -> impl Iterator<Item = (&(String, String), &str)> {
        self.loaded.iter().filter_map(|(k, l)| Some((k, l.error.as_deref()?)))
    }
}

fn keep_line(tail: &mut VecDeque<String>, line: &[u8]) {
    if tail.len() == TAIL {
        tail.pop_front();
    }
    tail.push_back(String::from_utf8_lossy(line).into_owned());
}

/// Reads a worker's stdout and stderr into the log, lines of stderr also to whoever has asked for them and to `each`;
/// `always`: these whatever the log level.
pub fn read_outputs(
    outputs: &mut [Option<Output>; 2],
    captured: &mut Option<Vec<String>>,
    cx: &mut Context,
    always: bool,
    mut each: impl FnMut(&[u8]),
) {
    for (i, place) in outputs.iter_mut().enumerate() {
        let Some(mut output) = place.take() else { continue };
        let (level, pid) = (output.level, output.pid as u32);
        let open = output.read(|line| {
            cx.log.line(level, pid, line, always && i == 1);
            if i == 1 {
                if let Some(lines) = captured.as_mut().filter(|l| l.len() < CAPTURED) {
                    lines.push(String::from_utf8_lossy(line).into_owned());
                }
                each(line);
            }
        });
        if open {
            *place = Some(output);
        }
    }
}
