//! The processes behind a web server: `keeper` (a page of code that outlives crashes), `supervisor` (starts, rolls,
//! drains and replaces workers) and `exec-worker` (becomes a group's Python). The binary `mod-wsgi-rs` calls
//! [`internal`] before it looks at people's subcommands; nothing here runs in the web server's processes.
//!
//! Each of these processes has one thread: poll(2), signals through a pipe, deadlines. (A group with reload-on-changes,
//! which is for development, has one process more, `watch`; it has threads.) Exit codes are 0, 1 and 70 only:
//! httpd and nginx read meanings into others.
#![deny(unsafe_code)]

pub mod args;
mod backoff;
pub mod channel;
mod command;
mod connections;
mod context;
mod demand;
mod exec;
mod held;
mod keeper;
mod life;
mod log;
mod master;
mod memory;
mod pool;
mod recover;
mod recycle;
mod rundir;
mod servers;
mod status;
mod supervise;
mod sys;
mod timer;
mod watch;
mod watching;
mod worker;

pub use args::StartKeeper;

use mod_wsgi_wire::frame::Level;
use std::ffi::OsString;

/// Done, or a keeper runs already.
pub const EXIT_OK: u8 = 0;
/// Impossible; one line on stderr says why.
pub const EXIT_FAILURE: u8 = 1;
/// A mistake of ours.
pub const EXIT_INTERNAL: u8 = 70;

/// Environment variable that names the directory of the worker files, for tests and unusual installations.
pub const WORKER_DIR_VARIABLE: &str = "MOD_WSGI_RS_WORKER_DIR";

/// Runs the internal subcommand that `args` (without the program's name) names and gives its exit code; `None`: it is
/// none of ours.
pub fn internal(args: &[OsString]) -> Option<u8> {
    Some(match args::parse(args)? {
        Ok(args::Internal::StartKeeper(a)) => start_keeper(a),
        Ok(args::Internal::Keeper(a)) => keeper_main(a),
        Ok(args::Internal::Supervise) => supervise_main(),
        Ok(args::Internal::ExecWorker) => exec_worker_main(),
        Ok(args::Internal::Watch) => watch_main(),
        Err(e) => {
            say(&format!("mod-wsgi-rs: internal command: {e}"));
            EXIT_INTERNAL
        }
    })
}

/// Makes sure that a keeper runs in the run directory and that its control socket accepts connections; starts one when
/// its lock is free. Waits at most 5 s. To be run by the server's parent in a process group of its own.
pub fn start_keeper(args: StartKeeper) -> u8 {
    guarded(|| {
        sys::reset_signals(true);
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        match keeper::start(&args) {
            Ok(true) => EXIT_OK,
            Ok(false) => EXIT_FAILURE,
            Err(e) => failure(&e.to_string()),
        }
    })
}

/// The keeper; returns when the supervisor has exited 0, or at once with 0 when another keeper holds the lock.
pub fn keeper_main(args: StartKeeper) -> u8 {
    guarded(|| match keeper::run(args) {
        Ok(_) => EXIT_OK,
        Err(e) => failure(&e.to_string()),
    })
}

/// The supervisor; its standard input is the keeper's socket.
pub fn supervise_main() -> u8 {
    guarded(|| match supervise::run() {
        Ok(supervise::End::Done) => EXIT_OK,
        Ok(supervise::End::Replace) => EXIT_INTERNAL,
        Err(e) => failure(&e.to_string()),
    })
}

/// The stage between supervisor and interpreter; its standard input is the worker's control socket. Returns only when
/// the interpreter cannot be executed.
pub fn exec_worker_main() -> u8 {
    guarded(|| match exec::run() {
        Ok(never) => match never {},
        Err(e) => {
            say(&e.to_string());
            EXIT_FAILURE
        }
    })
}

/// The process that watches a group's files; its standard input is the supervisor's socket. Returns when that closes.
pub fn watch_main() -> u8 {
    guarded(|| match watch::run() {
        Ok(()) => EXIT_OK,
        Err(e) => {
            say(&e.to_string());
            EXIT_FAILURE
        }
    })
}

fn failure(text: &str) -> u8 {
    log::Log::new(Level::Error).event(Level::Error, &format!("MWR0303: {text}"));
    EXIT_FAILURE
}

fn say(text: &str) {
    use std::io::Write;
    let mut line = String::new();
    log::escape(&mut line, text.as_bytes());
    line.push('\n');
    // Nobody can be told when this fails.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A panic becomes exit code 70; its message has gone to stderr.
fn guarded(run: impl FnOnce() -> u8) -> u8 {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or(EXIT_INTERNAL)
}

/// Environment variable in which keeper and supervisor hand on the soft RLIMIT_NOFILE that the server was started with.
const DESCRIPTORS_VARIABLE: &str = "MOD_WSGI_RS_NOFILE";

/// RLIMIT_NOFILE: soft = hard. What the server had at this moment differs between boot and reload. Gives the soft limit
/// that workers shall have.
fn raise_descriptor_limit() -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let handed_on = std::env::var(DESCRIPTORS_VARIABLE).ok().and_then(|v| v.parse().ok());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft < hard {
        // A refusal leaves the soft limit, which is what there was.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    Some(handed_on.unwrap_or(soft))
}
