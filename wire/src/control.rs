//! Control messages: server processes, supervisor, workers and `ctl` speak them over Unix stream sockets, off the
//! request path. One message is `length:u32` little-endian and that many bytes of JSON; descriptors named by a message
//! travel with its first byte, in the order given at each variant.

use crate::frame::Level;
use crate::limits;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// A 128-bit secret in hexadecimal; `Debug` never shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// Encodes sixteen random bytes.
    pub fn from_bytes(b: &[u8; 16]) -> Secret {
        Secret(b.iter().map(|x| format!("{x:02x}")).collect())
    }
    /// The sixteen bytes, or `None` for text that is no secret.
    pub fn bytes(&self) -> Option<[u8; 16]> {
        let t = self.0.as_bytes();
        if t.len() != 32 {
            return None;
        }
        let mut out = [0; 16];
        for (i, pair) in t.chunks_exact(2).enumerate() {
            out[i] = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(out)
    }
    /// Constant-time comparison.
    pub fn matches(&self, other: &Secret) -> bool {
        match (self.bytes(), other.bytes()) {
            (Some(a), Some(b)) => crate::decode::token_matches(&a, &b),
            _ => false,
        }
    }
}

/// One daemon process group as configured. Fields that this build does not know are passed over: after an upgrade the
/// server's parent is newer than the supervisor that it tells, until that one has made room for its successor. Everything is resolved (paths absolute, users looked up) by the server's
/// parent before it is sent, so that the supervisor needs no server and no look-ups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Name of WSGIDaemonProcess; empty for the automatic group of applications without WSGIProcessGroup.
    pub name: String,
    /// Worker processes of each application group, 1 or more.
    pub processes: u16,
    /// Serving threads of each worker, 1 or more.
    pub threads: u16,
    /// Requests that may wait beyond the threads, over all workers of an application group.
    pub queue_limit: u32,
    /// `wsgi.multiprocess` (mod_wsgi: whether `processes=` was given at all).
    pub multiprocess: bool,
    /// Numeric user, group and supplementary groups. Only applied when the supervisor runs as root; never uid 0.
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// USER/LOGNAME and HOME of that uid; empty when the uid has no entry.
    pub user_name: String,
    pub user_home: String,
    /// The interpreter's path, as it shall appear in argv[0] (inside the venv, symlinks kept).
    pub python: String,
    /// Directories added like `site.addsitedir` and moved to the front of sys.path.
    pub python_path: Vec<String>,
    /// Working directory, also first on sys.path; empty = inherited from the server.
    pub home: String,
    /// File mode creation mask; `None` = 022.
    pub umask: Option<u32>,
    /// LANG and LC_ALL; empty = inherited.
    pub lang: String,
    pub locale: String,
    /// Shown by ps; empty = unchanged. `%{GROUP}` has been expanded.
    pub display_name: String,
    /// Environment of the workers, complete (inheritance, deny list, env-file and env= already applied).
    pub env: BTreeMap<String, String>,
    /// prctl(PR_SET_NO_NEW_PRIVS).
    pub no_new_privileges: bool,
    /// Seconds a worker may take from its start to READY, and a script to load at its first request; 0 = no limit.
    pub startup_timeout: f64,
    /// Seconds a draining worker may take to finish its requests before it is told to stop.
    pub graceful_timeout: f64,
    /// Seconds from the order to stop to the end of the process.
    pub shutdown_timeout: f64,
    /// Seconds without a request after which workers of an application group other than %{GLOBAL} end.
    pub application_idle: f64,
    /// Application groups other than %{GLOBAL} that may exist at once.
    pub maximum_application_groups: u16,
    /// When workers are replaced. Absent in records of an earlier version: never.
    #[serde(default)]
    pub recycle: Recycle,
    /// Deadlines of requests. Absent in records of an earlier version: none.
    #[serde(default)]
    pub deadlines: Deadlines,
    /// Requests that come with a newer script wait for the workers that have loaded it.
    #[serde(default)]
    pub strict_reloading: bool,
    /// Workers of the %{GLOBAL} pool when there is little to do; `processes` when there is much. 0 = always `processes`.
    #[serde(default)]
    pub minimum_processes: u16,
    /// New code is loaded when a file it came from changes, or one of the others.
    #[serde(default)]
    pub reload_on_changes: bool,
    #[serde(default)]
    pub reload_extra_files: Vec<String>,
}

/// Deadlines of requests and of the interpreter, seconds; 0 = none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Deadlines {
    /// From a request's claim to the end of its response, without time spent on its client.
    pub request: f64,
    /// What a request that was interrupted at that deadline may still take; 0 = it is not interrupted.
    pub interrupt: f64,
    /// How long the GIL may not be had.
    pub deadlock: f64,
    /// What a worker may take that has been asked to make way; 0 = the graceful timeout.
    pub eviction: f64,
}

/// When workers of a group are replaced although nothing has changed, and how. 0 = never.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recycle {
    /// Requests a worker serves, and at most how many more of them.
    pub maximum_requests: u64,
    pub maximum_requests_jitter: u64,
    /// Requests for these paths count neither as requests nor as activity.
    pub health_check_path: Vec<String>,
    /// Seconds a worker lives, and at most how many more of them.
    pub restart_interval: f64,
    pub restart_interval_jitter: f64,
    /// Seconds without a request, after the first.
    pub inactivity_timeout: f64,
    /// Seconds of processor time.
    pub cpu_time_limit: f64,
    /// Bytes of resident memory.
    pub max_rss: u64,
    /// RLIMIT_DATA and RLIMIT_AS, bytes: they replace nothing, allocations fail.
    pub memory_limit: u64,
    pub virtual_memory_limit: u64,
    /// Workers more than wanted while some are replaced; 0 = the old one ends first.
    pub surge: u16,
}

impl Default for Recycle {
    fn default() -> Recycle {
        Recycle {
            maximum_requests: 0,
            maximum_requests_jitter: 0,
            health_check_path: Vec::new(),
            restart_interval: 0.0,
            restart_interval_jitter: 0.0,
            inactivity_timeout: 0.0,
            cpu_time_limit: 0.0,
            max_rss: 0,
            memory_limit: 0,
            virtual_memory_limit: 0,
            surge: 1,
        }
    }
}

/// A script that is loaded before a worker is ready.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Preload {
    pub group: String,
    /// Key of the application group; empty = %{GLOBAL}.
    pub application: String,
    /// Absolute path of the script, or `package.module` for a module (no slash).
    pub script: String,
    /// Name of the callable.
    pub callable: String,
}

/// What a server's parent sends at each (re)start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Known to the processes of this generation of the server only.
    pub secret: Secret,
    /// Uid and gid the server's request-serving processes run as: owner of the sockets.
    pub server_uid: u32,
    pub server_gid: u32,
    /// Roll every group even when its settings have not changed (httpd's restart means new code).
    pub roll_all: bool,
    pub groups: Vec<Group>,
    pub preload: Vec<Preload>,
    /// Least level written to the error log for output that belongs to no request.
    pub log_level: Level,
}

/// Messages to the supervisor over `ctl.sock`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ToSupervisor {
    /// The server's parent: serve this configuration. Descriptors: [error log]. Answer: `Accepted`.
    /// The connection then stays open for as long as that configuration is current. `moves`: the sender may end and go on
    /// as a fork of itself that keeps the connection (nginx becoming a daemon); the parent of the first process that
    /// registers is it.
    Configure {
        build: String,
        config: Box<Config>,
        #[serde(default)]
        moves: bool,
    },
    /// The parent's pool of this generation is going away; a `Configure` will follow on a new connection.
    Reloading,
    /// The error log has been opened anew (log rotation). Descriptors: [error log]. Answer: `Accepted`.
    Reopened,
    /// The parent ends: drain, stop, end. Answer: `Stopped` (or end of file) when every worker has gone.
    Stop,
    /// A request-serving process of the server. `client`: the number it had with a former supervisor.
    /// Answer: `Registered`. The connection stays open until the process ends.
    Register { secret: Secret, client: Option<u32> },
    /// The table of an application group (a connection of its own, closed after the answer).
    /// Answer: `Table` or `Refused`.
    Table { secret: Secret, group: String, application: String },
    /// For people: `mod-wsgi-rs ctl status`. Answer: `Status`.
    Status,
    /// For people: what `mod-wsgi-rs ctl` and the launcher's signals ask for. Answer: `Done` or `Refused`.
    Command { command: Command },
}

/// What people may tell a supervisor. `group`: a daemon process group, empty = the automatic one; `None` = all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Command {
    /// New workers with new code, one batch at a time, old ones drained.
    Reload { group: Option<String> },
    /// Every worker ends now, requests that run may finish; new ones start.
    Restart { group: Option<String> },
    /// So many workers, whatever the load; 0 = as configured.
    Scale { group: String, processes: u16 },
    /// So many more or fewer.
    ScaleBy { group: Option<String>, by: i16 },
    /// `false`: the server is not ready for load balancers, whatever its workers are, until told otherwise or its end.
    Readiness { ready: bool },
    /// The Python stacks of all threads, to the error log and in the answer.
    Stacks { group: Option<String> },
    /// Least level of the supervisor's own and of the workers' lines, until the next configuration.
    LogLevel { level: Level },
}

/// Messages of the supervisor over `ctl.sock`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum FromSupervisor {
    Accepted,
    Stopped,
    Registered {
        client: u32,
    },
    /// Descriptors: [table memfd, directory of the workers' sockets (O_PATH)].
    /// A slot's socket is `<slot>.<slot generation>` in that directory.
    Table {
        token: Secret,
        slots: u16,
        threads: u16,
        rows: u16,
    },
    Refused {
        reason: RefusedReason,
        text: String,
    },
    Status {
        status: serde_json::Value,
    },
    /// `pools`: numbers and versions of the pools it concerned; `text`: for people.
    Done {
        pools: Vec<(u32, u64)>,
        text: String,
    },
}

/// Why there is no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedReason {
    /// The secret is of no registered server.
    Secret,
    /// No such daemon process group in that server's configuration.
    Group,
    /// maximum-application-groups is reached.
    ApplicationGroups,
    /// The message does not fit.
    Protocol,
    /// The supervisor could not make it (no memory, no descriptors); logged.
    Internal,
}

/// Supervisor to worker over the control socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ToWorker {
    /// No new request will be claimed once the rows are CLOSED; the worker goes on until told to exit.
    Drain,
    /// Run the exit sequence and end within `timeout` seconds. `reason` is that of `process_stopping` subscribers.
    Exit { timeout: f64, reason: String },
    /// The stacks of all threads are wanted on its standard error.
    Stacks,
    /// The new version of its code cannot be loaded: requests that wait for it are served by the old one.
    Stay,
}

/// What has taken too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StuckReason {
    /// The application: request-timeout.
    Request,
    /// The load of a script at its first request: startup-timeout.
    Startup,
}

/// Worker to supervisor over the control socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum FromWorker {
    /// The load set has been loaded (or has failed with the traceback logged, see `Loaded`): requests may come.
    Ready { python: String },
    /// A script has been loaded, at start or at its first request. `error`: it failed, this is the traceback.
    Loaded { script: String, callable: String, mtime: u64, error: Option<String> },
    /// A request's script has another modification time than the loaded one: the group should roll.
    Touched { script: String, mtime: u64 },
    /// It has served as many requests as its plan allows.
    Spent,
    /// A request has taken too long and has been given up; its thread may never come back.
    Stuck { reason: StuckReason, row: u16, row_generation: u32 },
    /// The GIL cannot be had.
    Deadlocked,
    /// It has been asked (SIGUSR1) to make way for another.
    Evict,
    /// Files its code came from, or that the application has named, as far as they have not been told yet; with the
    /// modification time of what was loaded, microseconds since the epoch, 0 where that is not known.
    Files { files: Vec<(String, u64)> },
    /// A log record that belongs to no request.
    Log { level: Level, text: String },
}

/// Supervisor to the process that watches the files of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ToWatcher {
    /// The group whose user it is to be; the first message, and the only one of its kind.
    Begin { group: Box<Group> },
    /// Absolute paths to watch besides those it has got before, as in [`FromWorker::Files`].
    Watch { files: Vec<(String, u64)> },
}

/// What it says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum FromWatcher {
    /// These files are there in another version than when they were last looked at.
    Changed { changes: Vec<Change> },
    /// Some files are looked at from time to time, since the system tells nothing of their changes.
    Polls { why: String },
}

/// A file that has changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub path: String,
    /// Modification time, microseconds since the epoch.
    pub mtime: u64,
    /// It is one of those to watch; otherwise a source file beside them, which code that cannot be loaded may have missed.
    pub watched: bool,
}

/// A message that cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("control message of {len} bytes is over the limit of {limit}", limit = limits::MAX_CONTROL)]
    TooLong { len: usize },
    #[error("control message is not understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// Encodes one message with its length.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, message)?;
    let len = out.len() - 4;
    if len > limits::MAX_CONTROL {
        return Err(Error::TooLong { len });
    }
    out[..4].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(out)
}

/// The first whole message of `buf` and how many bytes it takes; `Ok(None)`: more is needed.
pub fn decode<T: DeserializeOwned>(buf: &[u8]) -> Result<Option<(T, usize)>, Error> {
    let Some(n) = buf.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_le_bytes(*n) as usize;
    if len > limits::MAX_CONTROL {
        return Err(Error::TooLong { len });
    }
    let Some(body) = buf.get(4..4 + len) else { return Ok(None) };
    Ok(Some((serde_json::from_slice(body)?, 4 + len)))
}
