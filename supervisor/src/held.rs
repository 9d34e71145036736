//! What keeper and supervisor say to each other, and what the keeper holds for a supervisor that crashes. The keeper
//! understands only the envelope: it stores a record and its descriptors under a key and gives them to the next
//! supervisor, which may be of a newer build. Records a supervisor does not understand are dropped by it.

use mod_wsgi_wire::control::{Config, Group, Preload, Secret};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Supervisor to keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ToKeeper {
    /// Store a record, in place of one with the same key. `fds` descriptors come with the message.
    Hold { key: String, record: String, fds: usize },
    /// Forget a record.
    Forget { key: String },
    /// The current error log comes with this message.
    Log,
    /// It exits to make room for the program that an upgrade has put in its place: no failure.
    Replace,
}

/// Keeper to supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum FromKeeper {
    /// First message; the control socket's listener comes with it. `restarted`: a supervisor ran before.
    Start { run_directory: PathBuf, executable: PathBuf, server_uid: u32, server_gid: u32, restarted: bool },
    /// A record of the former supervisor, with `fds` descriptors.
    Held { key: String, record: String, fds: usize },
    /// All records have been given.
    Begin,
    /// An orphaned process has ended.
    Reaped { pid: i32, how: String },
}

/// Identity of a process while this system runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Start time in clock ticks since boot; 0 when /proc did not tell.
    pub start: u64,
}

impl ProcessId {
    /// The process that has `pid` now.
    pub fn of(pid: i32) -> ProcessId {
        ProcessId { pid, start: start_time(pid).unwrap_or(0) }
    }

    /// Whether this very process still runs (a zombie does not).
    pub fn is_alive(self) -> bool {
        start_time(self.pid).is_some_and(|s| s == self.start)
    }
}

/// The parent of a running process.
pub fn parent_of(pid: i32) -> Option<i32> {
    stat_field(pid, 0)?.parse().ok()
}

/// Start time of a running process, from field 22 of its stat file; `None` for one that has ended.
fn start_time(pid: i32) -> Option<u64> {
    stat_field(pid, 18)?.parse().ok()
}

/// A field of a running process's stat file, counted from the one behind its state.
fn stat_field(pid: i32, n: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in field 2 may contain anything, also parentheses and blanks.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(n).map(str::to_owned)
}

/// Key prefix of [`MasterRecord`]s: the keeper looks at these descriptors (a pidfd) to see whether a master lives.
pub const MASTER: &str = "master:";
/// Key prefix of [`PoolRecord`]s. Descriptor: the table.
pub const POOL: &str = "pool:";
/// Key prefix of [`WorkerRecord`]s. Descriptors: read ends of its stdout and stderr, the supervisor's end of its control
/// connection, its journal.
pub const WORKER: &str = "worker:";
/// Key of the next client number.
pub const CLIENTS: &str = "clients";

/// A registered server.
#[derive(Debug, Serialize, Deserialize)]
pub struct MasterRecord {
    pub process: ProcessId,
    /// The process it is now, where that is another.
    #[serde(default)]
    pub watched: Option<ProcessId>,
    /// Number of the current configuration; each Configure raises it.
    pub generation: u64,
    pub config: Config,
    /// Secrets of earlier configurations whose server processes may still run.
    pub former: Vec<(u64, Secret)>,
}

/// One application group of one daemon process group with its table.
#[derive(Debug, Serialize, Deserialize)]
pub struct PoolRecord {
    pub id: u32,
    pub master: ProcessId,
    pub group: Group,
    pub application: String,
    pub preload: Vec<Preload>,
    pub token: Secret,
    /// Shape of the table: slots, threads, rows.
    pub shape: (u16, u16, u16),
    /// Name of the directory of sockets.
    pub directory: String,
    /// Workers that should be ready.
    pub target: u16,
    /// The target people have set.
    #[serde(default)]
    pub scaled: Option<u16>,
    /// Not ready for load balancers, by order.
    #[serde(default)]
    pub away: bool,
    /// Scripts and callables that workers have loaded.
    pub loaded: Vec<(String, String)>,
    /// Another table has taken over.
    pub retired: bool,
}

/// One worker process.
#[derive(Debug, Serialize, Deserialize)]
pub struct WorkerRecord {
    pub pool: u32,
    pub slot: u16,
    pub generation: u32,
    pub process: ProcessId,
}

/// `signal 9 (SIGKILL)` or `exit code 3`.
pub fn describe(code: Option<i32>, signal: Option<i32>) -> String {
    match (code, signal) {
        (Some(c), _) => format!("exit code {c}"),
        (None, Some(s)) => match nix::sys::signal::Signal::try_from(s) {
            Ok(name) => format!("signal {s} ({name})"),
            Err(_) => format!("signal {s}"),
        },
        (None, None) => "an unknown status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let me = ProcessId::of(std::process::id() as i32);
        assert!(me.start > 0 && me.is_alive());
        assert!(!ProcessId { start: me.start + 1, ..me }.is_alive());
    }

    #[test]
    fn ends_are_described_for_people() {
        assert_eq!(describe(Some(3), None), "exit code 3");
        assert_eq!(describe(None, Some(9)), "signal 9 (SIGKILL)");
    }
}
