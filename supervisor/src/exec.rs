//! `exec-worker`: a single-threaded stage between supervisor and interpreter. It sets up descriptors, limits, user and
//! environment with plain system calls, in the order that matters, and becomes the group's Python.

use crate::channel::{self, receive_exact};
use crate::sys;
use mod_wsgi_wire::control::Group;
use mod_wsgi_wire::plan::{ExecPlan, PLAN_VARIABLE, PROGRAM};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Why no interpreter could be started. Printed to the worker's stderr, from where it reaches the error log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the plan does not arrive: {0}")]
    Plan(#[from] channel::Error),
    #[error("the plan came with {0} descriptors instead of 5")]
    Descriptors(usize),
    #[error("cannot write the plan: {0}")]
    Write(#[from] serde_json::Error),
    #[error("cannot open {path:?}: {source}")]
    Open { path: PathBuf, source: nix::Error },
    #[error("a worker never runs as root (uid 0); set user= of the group {0:?}")]
    Root(String),
    #[error("cannot become uid {uid}, gid {gid}: {source}")]
    User { uid: u32, gid: u32, source: nix::Error },
    #[error("uid {uid} was given up, but could be taken back")]
    Regained { uid: u32 },
    #[error(
        "the group {group:?} wants uid {uid}, gid {gid}, but the server runs as uid {own_uid}, gid {own_gid} and is not root"
    )]
    NotRoot { group: String, uid: u32, gid: u32, own_uid: u32, own_gid: u32 },
    #[error("cannot enter the directory {path:?}: {source}")]
    Directory { path: String, source: nix::Error },
    #[error("{what} contains a NUL byte")]
    Nul { what: &'static str },
    #[error("cannot execute {path}: {source}")]
    Execute { path: String, source: std::io::Error },
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Sys(#[from] nix::Error),
}

/// Runs the stage; comes back only with an error.
pub fn run() -> Result<Infallible, Error> {
    sys::close_others(&[]);
    sys::reset_signals(false);
    umask(Mode::from_bits_truncate(0o022));
    // A session of its own: an application that signals its process group reaches nobody of ours.
    nix::unistd::setsid()?;
    let control = sys::take_stdin()?;
    let (plan, fds) = receive_exact::<ExecPlan>(control.as_fd())?;
    let count = fds.len();
    let [table, listener, out, err, journal] = <[OwnedFd; 5]>::try_from(fds).map_err(|_| Error::Descriptors(count))?;
    nix::unistd::dup2_stdout(&out)?;
    nix::unistd::dup2_stderr(&err)?;
    drop((out, err));
    let ExecPlan { group, worker_dir, mut worker } = plan;

    // The files of the worker are opened with the rights of the server: they may lie where the user cannot read.
    let dir = Path::new(&worker_dir);
    let directory = open_at(dir, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let bootstrap = open_at(&dir.join("bootstrap.py"), OFlag::O_RDONLY)?;

    // Less urgent than the server, and the first to go when memory is short. Both are best effort: containers may
    // forbid them, and nothing depends on them.
    let _ = raise_oom_score();
    limit_memory(&group)?;
    if let Some(mask) = group.umask {
        umask(Mode::from_bits_truncate(mask & 0o777));
    }
    take_user(&group)?;
    let home = if group.home.is_empty() { "/" } else { &group.home };
    nix::unistd::chdir(home).map_err(|source| Error::Directory { path: home.to_owned(), source })?;
    if group.no_new_privileges {
        nix::sys::prctl::set_no_new_privs()?;
    }

    worker.fds.control = keep_across_exec(&control)?;
    worker.fds.table = keep_across_exec(&table)?;
    worker.fds.journal = keep_across_exec(&journal)?;
    worker.fds.listener = keep_across_exec(&listener)?;
    worker.fds.worker_dir = keep_across_exec(&directory)?;
    let mut file = File::from(memfd_create(c"mod-wsgi-rs-plan", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(&worker)?)?;
    let fds = format!("{},{}", keep_across_exec(&file)?, keep_across_exec(&bootstrap)?);
    execute(&group, &fds)
}

fn open_at(path: &Path, flags: OFlag) -> Result<OwnedFd, Error> {
    open(path, flags | OFlag::O_CLOEXEC, Mode::empty()).map_err(|source| Error::Open { path: path.to_owned(), source })
}

/// Adds 200 to the score, so that a worker is killed before the server is.
pub(crate) fn raise_oom_score() -> std::io::Result<()> {
    let path = "/proc/self/oom_score_adj";
    let now: i32 = std::fs::read_to_string(path)?.trim().parse().unwrap_or(0);
    std::fs::write(path, (now + 200).min(1000).to_string())
}

/// memory-limit and virtual-memory-limit. Root may raise a limit again, so soft and hard are both set.
fn limit_memory(group: &Group) -> Result<(), Error> {
    let (data, space) = (group.recycle.memory_limit, group.recycle.virtual_memory_limit);
    for (resource, limit) in [(Resource::RLIMIT_DATA, data), (Resource::RLIMIT_AS, space)] {
        if limit > 0 {
            setrlimit(resource, limit, limit)?;
        }
    }
    Ok(())
}

/// The soft limit of open files that the server was started with: what select(2) and programs of the application count
/// on. The worker raises it for moments, to move its own descriptors out of the way.
fn restore_descriptor_limit() {
    let wanted = std::env::var(crate::DESCRIPTORS_VARIABLE).ok().and_then(|v| v.parse().ok());
    if let (Some(soft), Ok((_, hard))) = (wanted, getrlimit(Resource::RLIMIT_NOFILE)) {
        // A refusal leaves the higher limit of the supervisor.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(soft), hard);
    }
}

/// Groups, gid, uid, in this order; then a check that root cannot come back.
pub(crate) fn take_user(group: &Group) -> Result<(), Error> {
    let (uid, gid) = (Uid::from_raw(group.uid), Gid::from_raw(group.gid));
    if uid.is_root() {
        return Err(Error::Root(group.name.clone()));
    }
    let (own_uid, own_gid) = (Uid::effective(), Gid::effective());
    if !own_uid.is_root() {
        if (uid, gid) == (own_uid, own_gid) {
            return Ok(());
        }
        let (own_uid, own_gid) = (own_uid.as_raw(), own_gid.as_raw());
        return Err(Error::NotRoot { group: group.name.clone(), uid: group.uid, gid: group.gid, own_uid, own_gid });
    }
    let groups: Vec<Gid> = group.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    let user = |source| Error::User { uid: group.uid, gid: group.gid, source };
    nix::unistd::setgroups(&groups).map_err(user)?;
    nix::unistd::setgid(gid).map_err(user)?;
    nix::unistd::setuid(uid).map_err(user)?;
    if nix::unistd::setuid(Uid::from_raw(0)).is_ok() || Uid::current() != uid || Uid::effective() != uid {
        return Err(Error::Regained { uid: 0 });
    }
    Ok(())
}

/// Clears close-on-exec; gives the number.
fn keep_across_exec(fd: &impl AsFd) -> Result<i32, Error> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(fd.as_fd().as_raw_fd())
}

fn execute(group: &Group, fds: &str) -> Result<Infallible, Error> {
    let text = |what, s: &str| CString::new(s).map_err(|_| Error::Nul { what });
    // The name the interpreter is called by decides which virtual environment it finds.
    let path = text("the interpreter's path", &group.python)?;
    let args = [path.clone(), c"-c".to_owned(), text("the program", PROGRAM)?];
    let mut env = vec![text("the environment", &format!("{PLAN_VARIABLE}={fds}"))?];
    for (key, value) in group.env.iter().filter(|(k, _)| k.as_str() != PLAN_VARIABLE) {
        env.push(text("the environment", &format!("{key}={value}"))?);
    }
    restore_descriptor_limit();
    // Rust ignores SIGPIPE at its start, and ignoring is inherited.
    sys::reset_signals(false);
    let source = match nix::unistd::execve(&path, &args, &env) {
        Ok(never) => match never {},
        Err(e) => e.into(),
    };
    Err(Error::Execute { path: group.python.clone(), source })
}
