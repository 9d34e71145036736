//! The only unsafe code of this crate: system calls that std and nix do not offer in a safe form, and descriptor numbers
//! that become owned descriptors.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Resets every signal disposition to the default and empties the mask. `ignore_pipe`: SIGPIPE stays ignored, for
/// processes of ours that write to pipes and sockets whose reader may go.
pub fn reset_signals(ignore_pipe: bool) {
    for n in 1..=64 {
        if n == libc::SIGPIPE && ignore_pipe {
            continue;
        }
        // SAFETY: SIG_DFL is a valid disposition; SIGKILL, SIGSTOP and the numbers glibc keeps are refused with EINVAL.
        unsafe { libc::signal(n, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Closes every descriptor from 3 on that is not in `keep`. Only at the start of a process, before any descriptor is
/// owned by a Rust value other than those in `keep`.
pub fn close_others(keep: &[RawFd]) {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|f| *f > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for k in keep.iter().copied().chain([RawFd::MAX]) {
        if k > first {
            close_range(first as u32, if k == RawFd::MAX { u32::MAX } else { k as u32 - 1 });
        }
        first = k.saturating_add(1);
    }
}

fn close_range(first: u32, last: u32) {
    // SAFETY: the system call takes plain numbers; nothing in this process owns the descriptors (contract above).
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    // Kernels before 5.9: close what /proc lists.
    let Ok(dir) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<u32> = dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|f| (first..=last).contains(f)) {
        // SAFETY: as above; the directory's own descriptor is closed already, EBADF for it is harmless.
        unsafe { libc::close(fd as RawFd) };
    }
}

/// Takes ownership of descriptor 0 as a duplicate at 3 or above (close-on-exec), and puts /dev/null in its place.
pub fn take_stdin() -> std::io::Result<OwnedFd> {
    // SAFETY: descriptor 0 is open for the whole life of the process (the standard library opens /dev/null otherwise).
    let stdin = unsafe { BorrowedFd::borrow_raw(0) };
    let fd = stdin.try_clone_to_owned()?;
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(fd)
}

/// Descriptor 2, borrowed.
pub fn stderr() -> BorrowedFd<'static> {
    // SAFETY: descriptor 2 is open for the whole life of the process (the standard library opens /dev/null otherwise);
    // it is only ever replaced by dup2, never closed.
    unsafe { BorrowedFd::borrow_raw(2) }
}

/// One `recvmsg` into `buf`, descriptors appended to `fds`, all close-on-exec. At most `limits::MAX_CONTROL_FDS`
/// descriptors; more are a protocol error (`EMSGSIZE`), those received are closed. Gives 0 at the end of file.
pub fn receive(fd: BorrowedFd<'_>, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> nix::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; 8]);
    let mut iov = [IoSliceMut::new(buf)];
    let got = recvmsg::<UnixAddr>(fd.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let truncated = got.flags.contains(MsgFlags::MSG_CTRUNC);
    if let Ok(messages) = got.cmsgs() {
        for m in messages {
            if let ControlMessageOwned::ScmRights(raw) = m {
                // SAFETY: the kernel has just made these descriptors for this process; nobody else owns them.
                fds.extend(raw.into_iter().map(|f| unsafe { OwnedFd::from_raw_fd(f) }));
            }
        }
    }
    if truncated {
        return Err(Errno::EMSGSIZE);
    }
    Ok(got.bytes)
}

/// A descriptor of process `pid` that becomes readable when it ends; `Ok(None)` on kernels before 5.3.
pub fn pidfd_open(pid: i32) -> nix::Result<Option<OwnedFd>> {
    // SAFETY: plain numbers; the result is a new descriptor that nobody else owns. pidfds are close-on-exec.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match Errno::result(fd) {
        // SAFETY: see above.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })),
        Err(Errno::ENOSYS) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sends a signal to the very process a pidfd stands for.
pub fn pidfd_signal(fd: BorrowedFd<'_>, signal: Signal) -> nix::Result<()> {
    // SAFETY: plain numbers and a null siginfo, which means as kill(2).
    let r = unsafe {
        let none = std::ptr::null::<libc::siginfo_t>();
        libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal as i32, none, 0)
    };
    Errno::result(r).map(drop)
}

/// Sixteen random bytes of the kernel.
pub fn random() -> nix::Result<[u8; 16]> {
    let mut out = [0u8; 16];
    // SAFETY: the buffer is valid for its length; up to 256 bytes are never given partially.
    let n = unsafe { libc::getrandom(out.as_mut_ptr().cast(), out.len(), 0) };
    if Errno::result(n)? as usize != out.len() {
        return Err(Errno::EIO);
    }
    Ok(out)
}

/// Local time of `seconds` since the epoch: year, month (0–11), day, weekday (0 = Sunday), hour, minute, second.
pub fn local_time(seconds: i64) -> (i32, usize, i32, usize, i32, i32, i32) {
    // SAFETY: tm is plain data; localtime_r fills it and reads only its argument and the time zone, which this
    // single-threaded process does not change.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        let t = seconds as libc::time_t;
        libc::localtime_r(&t, &mut tm);
        tm
    };
    let (month, weekday) = (tm.tm_mon.clamp(0, 11) as usize, tm.tm_wday.clamp(0, 6) as usize);
    (tm.tm_year + 1900, month, tm.tm_mday, weekday, tm.tm_hour, tm.tm_min, tm.tm_sec)
}

/// Clock ticks of /proc a second.
pub fn ticks_per_second() -> u64 {
    // SAFETY: sysconf only reads a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100).max(1)
}

/// Bytes of a page.
pub fn page_size() -> u64 {
    // SAFETY: sysconf only reads a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096).max(1)
}
