//! The only unsafe code of the worker: descriptors given by number, the argv area, a page that a fork wipes, `_exit`,
//! exceptions for other threads. Every function is safe to call from any thread; where one needs the interpreter, it
//! takes the proof that it is attached.
#![allow(unsafe_code)]

use pyo3::prelude::*;
use pyo3::types::PyType;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Takes a descriptor that was handed to this process by number: named in the plan, or just received or made by a
/// system call whose safe wrapper returns a bare number. `None` when it is negative or not open.
pub fn own(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl(F_GETFD) takes any number and only reads the descriptor table.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the descriptor is open (checked above). Each number comes here once: from the plan, whose descriptors
    // exist for this process only, or straight from the kernel.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs `f` with a descriptor that the application owns; `None` when it is not open.
pub fn with_fd<R>(fd: RawFd, f: impl FnOnce(BorrowedFd<'_>) -> R) -> Option<R> {
    // SAFETY: fcntl(F_GETFD) takes any number and only reads the descriptor table.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is not -1. It was open a moment ago; should the application close it meanwhile in another thread, the
    // calls made with it fail or look at another file, which `f` checks like any other.
    Some(f(unsafe { BorrowedFd::borrow_raw(fd) }))
}

/// What one `recvmsg` gave.
pub struct Received {
    /// Bytes read; 0 = end of stream.
    pub len: usize,
    /// The descriptor that came along, if exactly one did.
    pub fd: Option<OwnedFd>,
    /// More than one descriptor came along; all have been closed.
    pub excess: bool,
}

/// Room for the control message of a few descriptors, aligned as `cmsghdr` wants it.
#[repr(align(8))]
struct ControlBuffer([u8; 64]);

/// Receives without blocking: bytes into `buf`, descriptors close-on-exec.
pub fn receive(fd: RawFd, buf: &mut [u8]) -> io::Result<Received> {
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut control = ControlBuffer([0; 64]);
    // SAFETY: msghdr is plain data; all zero is a valid value of every field.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    let len = loop {
        // SAFETY: `message` points to buffers that live across the call, with their true lengths.
        let n = unsafe { libc::recvmsg(fd, &mut message, flags) };
        if n >= 0 {
            break n as usize;
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    };
    let mut got = Received { len, fd: None, excess: message.msg_flags & libc::MSG_CTRUNC != 0 };
    if message.msg_controllen == 0 {
        return Ok(got);
    }
    // SAFETY: the kernel has filled `message`; the macro stays inside msg_control.
    let mut cmsg = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !cmsg.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers that lie whole inside the control buffer, or null.
        let header = unsafe { &*cmsg };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only computes.
            let bytes = header.cmsg_len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
            for i in 0..bytes / 4 {
                // SAFETY: cmsg_len says that the data holds this many descriptors; they may be unaligned.
                let raw = unsafe { libc::CMSG_DATA(cmsg).cast::<RawFd>().add(i).read_unaligned() };
                // SAFETY: the kernel has just made this descriptor for us.
                let received = unsafe { OwnedFd::from_raw_fd(raw) };
                got.excess |= got.fd.is_some();
                got.fd = Some(received);
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        cmsg = unsafe { libc::CMSG_NXTHDR(&message, cmsg) };
    }
    if got.excess {
        got.fd = None;
    }
    Ok(got)
}

/// Closes a descriptor by number, whoever owns it. Only for the child of a fork, where the owners (copies of the
/// parent's objects) are never dropped.
pub fn close_in_child(fd: RawFd) {
    // SAFETY: close takes any number; the child never uses or drops the owning object again.
    unsafe { libc::close(fd) };
}

/// Ends the process at once: no atexit functions, no destructors, no flush.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit is async-signal-safe and does not return.
    unsafe { libc::_exit(code) }
}

/// Overwrites the area of argv, whose bounds come from `/proc/self/stat`, with `name`, cut to fit.
pub fn set_command_line(name: &[u8]) -> io::Result<()> {
    let stat = std::fs::read("/proc/self/stat")?;
    // The second field, in parentheses, may hold anything; fields 48 and 49 are arg_start and arg_end.
    let rest = stat.iter().rposition(|b| *b == b')').map_or(&stat[..], |i| &stat[i + 1..]);
    let field = |n: usize| -> Option<usize> {
        let word = rest.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty()).nth(n - 3)?;
        std::str::from_utf8(word).ok()?.parse().ok()
    };
    let (Some(start), Some(end)) = (field(48), field(49)) else { return Err(io::ErrorKind::InvalidData.into()) };
    if start == 0 || end <= start || end - start > 1 << 20 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let len = end - start;
    let used = name.len().min(len - 1);
    // SAFETY: the kernel names [start, end) as the argument strings on this process's stack: writable, mapped for the
    // life of the process. CPython copied argv when it started and never looks there again.
    unsafe {
        std::ptr::copy_nonoverlapping(name.as_ptr(), start as *mut u8, used);
        std::ptr::write_bytes((start + used) as *mut u8, 0, len - used);
    }
    Ok(())
}

static FORK_PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());
static PARENT: AtomicU32 = AtomicU32::new(0);

/// Prepares [`forked`]: a page that the kernel zeroes in the child of every fork, also a raw one in C code
/// (MADV_WIPEONFORK, Linux 4.14). Where that is refused the process id is compared instead.
pub fn watch_forks() {
    PARENT.store(std::process::id(), Relaxed);
    let bytes = 4096;
    // SAFETY: a new private anonymous mapping at an address the kernel chooses.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return;
    }
    // SAFETY: the page was mapped above and belongs to nobody else.
    if unsafe { libc::madvise(page, bytes, libc::MADV_WIPEONFORK) } != 0 {
        // SAFETY: as above; nothing points into it.
        unsafe { libc::munmap(page, bytes) };
        return;
    }
    let word = page.cast::<AtomicU64>();
    // SAFETY: the page is mapped, zeroed, aligned, and never unmapped from here on.
    unsafe { &*word }.store(1, Relaxed);
    FORK_PAGE.store(word, Relaxed);
}

/// Whether this process is a child forked by the application from the worker.
#[inline]
pub fn forked() -> bool {
    let word = FORK_PAGE.load(Relaxed);
    if word.is_null() {
        return PARENT.load(Relaxed) != std::process::id();
    }
    // SAFETY: set once by `watch_forks` to a page that stays mapped, in forked children too.
    unsafe { &*word }.load(Relaxed) == 0
}

/// Sets an exception that the thread with Python's number `ident` raises at its next bytecode; `None` takes it back.
pub fn set_async_exception(_py: Python<'_>, ident: u64, exception: Option<&Bound<'_, PyType>>) {
    // A borrowed reference: the interpreter takes one of its own.
    let object = exception.map_or(std::ptr::null_mut(), |e| e.as_ptr());
    // SAFETY: the GIL is held, `_py` says so; the object
    // is a live exception class or NULL; a number that belongs to no thread is ignored.
    unsafe { pyo3::ffi::PyThreadState_SetAsyncExc(ident as std::ffi::c_ulong as _, object) };
}

/// Number of the signal on which faulthandler writes the stacks of all threads; `main.py` registers it.
pub fn stacks_signal() -> i32 {
    libc::SIGRTMIN() + 5
}

/// Sends this process that signal.
pub fn signal_stacks() {
    // SAFETY: getpid and kill take and give plain numbers; faulthandler's handler is registered before anything serves.
    unsafe { libc::kill(libc::getpid(), stacks_signal()) };
}
