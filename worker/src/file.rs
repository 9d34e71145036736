//! `wsgi.file_wrapper`: whether a file may be passed to the server as a descriptor, and a descriptor of our own for it
//! (a shared one would share its position with the application's).

use crate::conn::{Conn, Gone};
use crate::sys;
use mod_wsgi_wire::{encode, limits};
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::fstatfs;
use pyo3::prelude::*;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// File systems whose reads may block for ever in the server (FUSE, NFS, CIFS, SMB2, 9P, Ceph, AFS, Coda, Lustre: what
/// core/src/passed.rs refuses), or whose sizes say nothing of the content (proc, sysfs).
const READ_HERE: [i64; 11] = [
    0x6573_5546,
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
    0x7375_7245,
    0x0bd0_0bd0,
    0x9fa0,
    0x6265_6572,
];

/// A file to be passed.
pub struct Passed {
    pub fd: OwnedFd,
    pub offset: u64,
    /// From there to the end.
    pub len: u64,
}

/// The file of a FileWrapper, if the server may read it itself: a regular file open for reading, neither O_PATH nor on
/// FUSE, NFS or CIFS, with bytes left. Anything else is read here, block by block.
pub fn passable(wrapper: &Bound<'_, PyAny>) -> Option<Passed> {
    let filelike = wrapper.getattr("filelike").ok()?;
    if translates(&filelike) {
        return None;
    }
    let number: i32 = filelike.call_method0("fileno").ok()?.extract().ok()?;
    let offset: u64 = filelike.call_method0("tell").ok()?.extract().ok()?;
    // With the GIL held: no other thread can close the descriptor, and another file get its number, before it is opened.
    sys::with_fd(number, |fd| check(fd, number, offset))?
}

/// gzip, bz2 and lzma give the descriptor of the compressed file as their own: what their `read()` returns is something
/// else. They, and whatever is made like them, are binary files of `io` without being one of its three over a descriptor.
fn translates(filelike: &Bound<'_, PyAny>) -> bool {
    let is = |name: &str| {
        let class = filelike.py().import("io").and_then(|io| io.getattr(name));
        class.and_then(|class| filelike.is_instance(&class)).unwrap_or(false)
    };
    is("BufferedIOBase") && !is("BufferedReader") && !is("BufferedRandom")
}

fn check(fd: BorrowedFd<'_>, number: i32, offset: u64) -> Option<Passed> {
    let stat = fstat(fd).ok()?;
    let size = u64::try_from(stat.st_size).ok()?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG || size <= offset {
        return None;
    }
    let mode = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).ok()?);
    if mode.contains(OFlag::O_PATH) || mode & OFlag::O_ACCMODE == OFlag::O_WRONLY {
        return None;
    }
    if READ_HERE.contains(&(fstatfs(fd).ok()?.filesystem_type().0 as i64)) {
        return None;
    }
    let path = format!("/proc/self/fd/{number}");
    let fd = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty()).ok()?;
    Some(Passed { fd, offset, len: size - offset })
}

impl Passed {
    /// Sends the bytes instead of the descriptor. `Ok(false)`: the file has become shorter. Never with the GIL held.
    pub fn send_bytes(&self, conn: &Arc<Conn>, len: u64) -> Result<bool, Gone> {
        let Ok(file) = self.fd.try_clone().map(File::from) else { return Ok(false) };
        if len == 0 {
            conn.send_blocking(&encode::data_header(0, mod_wsgi_wire::frame::flags::END), &[])?;
        }
        let mut buf = vec![0; limits::MAX_DATA];
        let mut sent = 0;
        while sent < len {
            let n = (len - sent).min(buf.len() as u64) as usize;
            if file.read_exact_at(&mut buf[..n], self.offset + sent).is_err() {
                return Ok(false);
            }
            sent += n as u64;
            let bits = if sent == len { mod_wsgi_wire::frame::flags::END } else { 0 };
            conn.send_blocking(&encode::data_header(n, bits), &buf[..n])?;
        }
        Ok(true)
    }
}
