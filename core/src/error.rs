//! Everything that can keep a request from being answered by its application: who is at fault, the HTTP status, the
//! level and the code of the log line. Mapped here once, for every server.

use crate::sparse::Sparse;
use mod_wsgi_wire::frame::{AbortReason, Level};
use std::time::Instant;

/// Why a request fails. Display gives the log line without its code.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("target WSGI script not found or unable to stat: {0}")]
    NoScript(String),
    #[error("attempt to invoke directory as WSGI application: {0}")]
    ScriptIsDirectory(String),
    #[error("target WSGI script is not a regular file: {0}")]
    ScriptIsNoFile(String),
    #[error("process group '{0}' is not configured: add WSGIDaemonProcess {0} or change WSGIProcessGroup")]
    UnknownGroup(String),
    #[error(
        "process group '{group}' has reached maximum-application-groups={limit}: set WSGIApplicationGroup %{{GLOBAL}} \
         where applications may share a process, or raise the option"
    )]
    ApplicationGroups { group: String, limit: u16 },
    #[error("no worker of process group '{0}' can be started at present")]
    GroupFailed(String),
    #[error("process group '{group}': no worker became ready within {seconds} s")]
    NotReady { group: String, seconds: u64 },
    #[error("process group '{0}': queue is full (queue-limit)")]
    QueueFull(String),
    #[error("process group '{group}': request waited {seconds} s for a thread (queue-timeout)")]
    QueueTimeout { group: String, seconds: u64 },
    #[error("process group '{group}': worker {pid} died or closed the connection while it ran the request")]
    WorkerDied { group: String, pid: u32 },
    #[error(
        "process group '{group}': nothing has moved between worker {pid} and the server for {seconds} s (socket-timeout)"
    )]
    Silent { group: String, pid: u32, seconds: f64 },
    #[error("process group '{group}': worker {pid} broke the protocol: {error}")]
    WorkerProtocol { group: String, pid: u32, error: String },
    #[error("process group '{group}': request could not be delivered after {tries} tries: {error}")]
    Undeliverable { group: String, tries: u32, error: String },
    #[error("supervisor cannot be reached: {0}")]
    Supervisor(String),
    #[error("supervisor refused the request: {0}")]
    Refused(String),
    #[error("response of the application: {0}")]
    BadResponse(#[from] crate::response::ResponseError),
    #[error("{0}; the connection was aborted")]
    Shortfall(crate::response::Shortfall),
    #[error("application failed ({0:?})")]
    Aborted(AbortReason),
    #[error("client has gone")]
    ClientGone,
    #[error("request does not fit the wire: {0}")]
    TooLong(#[from] mod_wsgi_wire::encode::TooLong),
    #[error("request body cannot be read: status {0}")]
    Body(u16),
    #[error("request body cannot be stored: {0}")]
    Spool(std::io::Error),
}

/// How a failed request is answered and logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// HTTP status; 0 when there is nobody to answer.
    pub status: u16,
    pub level: Level,
    /// Code of docs/errors.md; empty when another process has logged the cause.
    pub code: &'static str,
    /// Send Retry-After with this many seconds.
    pub retry_after: Option<u32>,
}

/// Code of [`RequestError::Supervisor`]. Without a supervisor every request fails so: see [`Sparse`].
const UNREACHABLE: &str = "MWR0210";
static UNREACHABLE_LINE: Sparse = Sparse::new();

impl Verdict {
    /// The line of the error log, with its code, for an error that reads `text`. `None`: nothing is to be written.
    pub fn line(&self, text: &str) -> Option<String> {
        let held_back = match self.code {
            "" => return None,
            UNREACHABLE => UNREACHABLE_LINE.admit(Instant::now())?,
            _ => 0,
        };
        let code = self.code;
        Some(match held_back {
            0 => format!("{code}: {text}"),
            n => format!("{code}: {text}; {n} more requests since the last such line of this process"),
        })
    }
}

impl RequestError {
    /// Status, level and code of this error.
    pub fn verdict(&self) -> Verdict {
        use RequestError::*;
        let v = |status, level, code| Verdict { status, level, code, retry_after: None };
        let later = |code| Verdict { status: 503, level: Level::Error, code, retry_after: Some(5) };
        match self {
            NoScript(_) => v(404, Level::Error, "MWR0221"),
            ScriptIsDirectory(_) => v(403, Level::Error, "MWR0222"),
            ScriptIsNoFile(_) => v(403, Level::Error, "MWR0223"),
            UnknownGroup(_) => v(500, Level::Error, "MWR0201"),
            // The supervisor says it once a minute; each client could make a line here.
            ApplicationGroups { .. } => later(""),
            GroupFailed(_) => later("MWR0203"),
            NotReady { .. } => later("MWR0204"),
            QueueFull(_) => Verdict { retry_after: Some(1), ..later("MWR0205") },
            QueueTimeout { .. } => v(504, Level::Error, "MWR0206"),
            WorkerDied { .. } => v(502, Level::Error, "MWR0207"),
            Silent { .. } => v(504, Level::Error, "MWR0218"),
            WorkerProtocol { .. } => v(502, Level::Error, "MWR0208"),
            Undeliverable { .. } => later("MWR0209"),
            Supervisor(_) => later(UNREACHABLE),
            Refused(_) => v(500, Level::Error, "MWR0211"),
            BadResponse(_) => v(500, Level::Error, "MWR0212"),
            Shortfall(_) => v(500, Level::Error, "MWR0216"),
            // The worker has logged the traceback, tied to this request.
            Aborted(AbortReason::Timeout) => v(504, Level::Info, ""),
            Aborted(_) => v(500, Level::Info, ""),
            ClientGone => v(0, Level::Info, ""),
            // The server has logged what was wrong with it.
            Body(status) => v(*status, Level::Info, ""),
            TooLong(_) => v(431, Level::Error, "MWR0213"),
            Spool(_) => Verdict { retry_after: Some(30), ..later("MWR0214") },
        }
    }
}
