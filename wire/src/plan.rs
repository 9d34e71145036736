//! How a worker is started: the plan travels from the supervisor to the `exec-worker` stage, and the part the Python
//! side needs from there to the bootstrap.

use crate::control::{Group, Preload, Secret};
use serde::{Deserialize, Serialize};

/// Supervisor to `exec-worker`, as one control-encoded message over its standard input, which is the worker's control
/// socket. Descriptors with it, in this order: table memfd, listening socket, stdout pipe, stderr
/// pipe, journal memfd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecPlan {
    pub group: Group,
    /// Directory with `bootstrap.py`, `_worker.abi3.so` and the package `mod_wsgi_rs`; opened before privileges drop.
    pub worker_dir: String,
    pub worker: WorkerPlan,
}

/// What the Python side gets, as JSON in the file whose descriptor is named by the environment variable
/// `MOD_WSGI_RS_PLAN` (removed from the environment before any code of the application runs).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerPlan {
    /// Daemon process group; empty = the automatic group.
    pub group: String,
    /// Application group key; empty = %{GLOBAL}.
    pub application: String,
    pub slot: u16,
    pub slot_generation: u32,
    pub slots: u16,
    pub rows: u16,
    pub threads: u16,
    pub processes: u16,
    pub multiprocess: bool,
    /// Clients must show this.
    pub token: Secret,
    pub preload: Vec<Preload>,
    pub python_path: Vec<String>,
    pub home: String,
    pub display_name: String,
    pub startup_timeout: f64,
    pub shutdown_timeout: f64,
    /// Time that requests have to end where no supervisor is left to bound it.
    #[serde(default)]
    pub graceful_timeout: f64,
    /// Seconds without a control connection after which the worker drains and ends.
    pub orphan_timeout: f64,
    /// [`crate::control::Deadlines`].
    #[serde(default)]
    pub request_timeout: f64,
    #[serde(default)]
    pub interrupt_timeout: f64,
    #[serde(default)]
    pub deadlock_timeout: f64,
    /// Requests that come with a newer script wait for the workers that have loaded it.
    #[serde(default)]
    pub strict_reloading: bool,
    /// Reports which files its code came from ([`crate::control::FromWorker::Files`]).
    #[serde(default)]
    pub reload_on_changes: bool,
    /// Requests after which it reports [`crate::control::FromWorker::Spent`]; 0 = never.
    #[serde(default)]
    pub maximum_requests: u64,
    /// Requests for these paths do not count.
    #[serde(default)]
    pub health_check_path: Vec<String>,
    /// Descriptor numbers; filled in by `exec-worker`.
    pub fds: WorkerFds,
}

/// Descriptors a worker inherits, besides 0 to 2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerFds {
    pub control: i32,
    pub table: i32,
    pub listener: i32,
    /// Memfd in which it notes what its threads do.
    pub journal: i32,
    /// Directory of the worker files (O_PATH|O_DIRECTORY).
    pub worker_dir: i32,
}

/// Environment variable that tells the Python side its two first descriptors: `<plan>,<bootstrap source>`.
pub const PLAN_VARIABLE: &str = "MOD_WSGI_RS_PLAN";

/// The program of a worker, given to the interpreter with `-c`: so `__main__` has neither `__file__` nor `__spec__`, and
/// a child that multiprocessing spawns does not run a second worker. The bootstrap then finds `plan_fd` and
/// `bootstrap_fd` among its globals.
pub const PROGRAM: &str = "import os; p, b = map(int, os.environ.pop('MOD_WSGI_RS_PLAN').split(',')); \
exec(compile(os.pread(b, 1 << 20, 0), '<mod-wsgi-rs bootstrap>', 'exec'), \
{'__name__': '_mod_wsgi_rs_bootstrap', 'plan_fd': p, 'bootstrap_fd': b})";
