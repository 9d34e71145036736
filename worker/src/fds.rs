//! Our descriptors: kept above 1023 where the limit allows (the application's `select` needs the low numbers),
//! close-on-exec, and noted so that the child of a fork can close them. No interpreter needed.

use crate::shared::lock;
use crate::sys;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

/// Numbers noted, one bit each. Pages of the table that are never used cost nothing.
static NOTED: OnceLock<Vec<AtomicU64>> = OnceLock::new();
/// Whether the limit allows numbers above 1023.
static HIGH: AtomicBool = AtomicBool::new(false);

const FIRST: i32 = 1024;
/// Numbers of ours are below this, whatever the limit.
const MOST: u64 = 65_536;

/// Sees what the limit of open files allows. Called once, before any other function here.
pub fn prepare() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        HIGH.store(hard.min(MOST).max(soft) >= FIRST as u64 + 64, Relaxed);
    }
    NOTED.get_or_init(|| (0..MOST / 64).map(|_| AtomicU64::new(0)).collect());
}

fn note(fd: RawFd, present: bool) {
    let Some(word) = NOTED.get().and_then(|n| n.get(fd as usize / 64)) else { return };
    let bit = 1 << (fd as usize % 64);
    if present {
        word.fetch_or(bit, Relaxed);
    } else {
        word.fetch_and(!bit, Relaxed);
    }
}

/// Runs `f` with the soft limit of open files raised to the hard one. At all other times the soft limit is what the
/// server was started with: subprocesses inherit it, and programs that close every possible descriptor before an exec, or
/// use select(2), rely on a small one. Descriptors above it stay valid.
fn with_raised_limit<R>(f: impl FnOnce() -> R) -> R {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = lock(&ONE_AT_A_TIME);
    let raised = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard.min(MOST) => {
            setrlimit(Resource::RLIMIT_NOFILE, hard.min(MOST), hard).ok().map(|()| (soft, hard))
        }
        _ => None,
    };
    let result = f();
    if let Some((soft, hard)) = raised {
        // The application may have set another limit meanwhile: only ours is taken back.
        if getrlimit(Resource::RLIMIT_NOFILE) == Ok((hard.min(MOST), hard)) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
        }
    }
    result
}

/// Moves a descriptor above 1023, sets close-on-exec and notes it as ours. Used bare only for what is never closed.
pub fn place(fd: OwnedFd) -> nix::Result<OwnedFd> {
    let fd = if HIGH.load(Relaxed) && fd.as_raw_fd() < FIRST {
        let moved = with_raised_limit(|| fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST)))?;
        sys::own(moved).ok_or(nix::Error::EBADF)?
    } else {
        fcntl(&fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        fd
    };
    note(fd.as_raw_fd(), true);
    Ok(fd)
}

/// A descriptor of ours that may be closed.
#[derive(Debug)]
pub struct Fd(Option<OwnedFd>, RawFd);

impl Fd {
    /// Takes a descriptor.
    pub fn new(fd: OwnedFd) -> nix::Result<Fd> {
        let fd = place(fd)?;
        let raw = fd.as_raw_fd();
        Ok(Fd(Some(fd), raw))
    }

    /// Takes a descriptor named in the plan.
    pub fn inherited(fd: RawFd) -> nix::Result<Fd> {
        Fd::new(sys::own(fd).ok_or(nix::Error::EBADF)?)
    }

    /// The number, valid while `self` lives.
    #[inline]
    pub fn raw(&self) -> RawFd {
        self.1
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        if sys::forked() {
            // The child has closed every number of ours already; it may be the application's by now.
            std::mem::forget(self.0.take());
        } else {
            note(self.1, false);
        }
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match &self.0 {
            Some(fd) => fd.as_fd(),
            None => unreachable!("taken only when dropped"),
        }
    }
}

/// In the child of a fork: closes every descriptor of ours.
pub fn close_all_in_child() {
    let Some(noted) = NOTED.get() else { return };
    for (i, word) in noted.iter().enumerate() {
        let mut bits = word.swap(0, Relaxed);
        while bits != 0 {
            let bit = bits.trailing_zeros() as usize;
            sys::close_in_child((i * 64 + bit) as RawFd);
            bits &= bits - 1;
        }
    }
}
