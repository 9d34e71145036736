//! Descriptors that workers pass to a server process. They are hostile until [`Passed::check`] has let them through, and
//! hostile to the end when it has not: on FUSE even `fstat`, `fstatfs` and `close` wait for as long as the owner of the
//! file system likes, and so does the end of a process that has it; `close` of a socket may linger.
//!
//! So only workers of the server's own user may pass any, who could do as much to the server's processes by a signal. The
//! connections of others are read without room for descriptors: the kernel drops what comes, which calls no `close`; and
//! they are asked for bytes ([`Trust`]). What trusted ones pass is looked at without asking a file system that is not
//! known to answer by itself. What is refused and may not be closed stays open, and its pool is trusted no more.

use crate::conn::ConnError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, OFlags, Statx, StatxFlags, fcntl_get_seals, fcntl_getfl, fstatfs, statx};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether descriptors of a pool's workers are taken; shared by the pool and what came from it.
#[derive(Debug, Clone)]
pub struct Trust(Arc<AtomicBool>);

impl Trust {
    pub fn new(trusted: bool) -> Trust {
        Trust(Arc::new(AtomicBool::new(trusted)))
    }

    /// No descriptor is taken: there never was trust, or a worker has passed something that may not even be closed.
    pub fn is_lost(&self) -> bool {
        !self.0.load(Relaxed)
    }

    fn lose(&self) {
        self.0.store(false, Relaxed);
    }
}

/// A descriptor as it came.
#[derive(Debug)]
pub struct Passed {
    /// `None`: handed on by [`Passed::check`].
    fd: Option<OwnedFd>,
    trust: Trust,
}

impl Passed {
    /// Takes charge of a descriptor that has just been received.
    pub fn new(fd: OwnedFd, trust: &Trust) -> Passed {
        Passed { fd: Some(fd), trust: trust.clone() }
    }

    /// Lets through what a FILE may pass: a regular file, open for reading, not O_PATH, not on FUSE or a network file system,
    /// and long enough. Never blocks.
    pub fn check(mut self, offset: u64, len: u64) -> Result<OwnedFd, ConnError> {
        let Some(fd) = &self.fd else { return Err(ConnError::Descriptor("gone")) };
        let flags = fcntl_getfl(fd).map_err(ConnError::Lost)?;
        if flags.contains(OFlags::PATH) || flags & OFlags::RWMODE == OFlags::WRONLY {
            return Err(ConnError::Descriptor("not open for reading"));
        }
        let st = look(fd.as_fd()).map_err(ConnError::Lost)?;
        if FileType::from_raw_mode(st.stx_mode.into()) != FileType::RegularFile {
            return Err(ConnError::Descriptor("not a regular file"));
        }
        if !answers(fd.as_fd(), &st) {
            return Err(ConnError::Descriptor("on a file system that may block, or that the server does not see"));
        }
        if offset.checked_add(len).is_none_or(|end| end > st.stx_size) {
            return Err(ConnError::Descriptor("shorter than announced"));
        }
        self.fd.take().ok_or(ConnError::Descriptor("gone"))
    }
}

impl Passed {
    /// Lets through what ADOPT may pass: a stream socket of this machine. Never blocks.
    pub fn socket(mut self) -> Result<OwnedFd, ConnError> {
        let Some(fd) = &self.fd else { return Err(ConnError::Descriptor("gone")) };
        // Other files are not asked: the kernel knows what is no socket.
        let domain = sockopt::socket_domain(fd).map_err(|_| ConnError::Descriptor("not a socket"))?;
        let kind = sockopt::socket_type(fd).map_err(ConnError::Lost)?;
        if domain != AddressFamily::UNIX || kind != SocketType::STREAM {
            return Err(ConnError::Descriptor("not a stream socket of this machine"));
        }
        self.fd.take().ok_or(ConnError::Descriptor("gone"))
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take()
            && !closes(fd.as_fd())
        {
            let _ = fd.into_raw_fd();
            self.trust.lose();
        }
    }
}

/// What the kernel itself knows of a file, without asking the file system.
fn look(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    statx(fd, "", flags, StatxFlags::TYPE | StatxFlags::SIZE | StatxFlags::MNT_ID)
}

/// Whether `close` comes back at once.
fn closes(fd: BorrowedFd<'_>) -> bool {
    if fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::PATH)) {
        return true;
    }
    let Ok(st) = look(fd) else { return false };
    match FileType::from_raw_mode(st.stx_mode.into()) {
        FileType::RegularFile => answers(fd, &st),
        // the kernel's own, wherever their names lie
        FileType::Fifo | FileType::Directory => true,
        _ => false,
    }
}

/// Whether a regular file lies on a file system that answers by itself.
fn answers(fd: BorrowedFd<'_>, st: &Statx) -> bool {
    // Memory (memfd, tmpfs): a mount of the kernel's own, or one that other processes may have made for themselves.
    if fcntl_get_seals(fd).is_ok() {
        return true;
    }
    let mut known = MOUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    match Mounts::now(&mut known) {
        Some(mounts) => mount(fd, st).is_some_and(|id| mounts.answers(id, (st.stx_dev_major, st.stx_dev_minor))),
        // A server without /proc, or in a directory of its own (chroot), sees no mounts: it has to ask.
        None => fstatfs(fd).is_ok_and(|fs| !MAGIC.contains(&(fs.f_type as u64 & 0xffff_ffff))),
    }
}

/// The mount a file was opened on.
fn mount(fd: BorrowedFd<'_>, st: &Statx) -> Option<u64> {
    if StatxFlags::from_bits_retain(st.stx_mask).contains(StatxFlags::MNT_ID) {
        return Some(st.stx_mnt_id);
    }
    // Linux before 5.8
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    info.lines().find_map(|l| l.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// File systems that answer when somebody else does, as mountinfo names them; `fuse` with whatever behind a dot.
const NAMES: [&str; 12] =
    ["fuse", "fuseblk", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "coda", "lustre"];
/// The same as fstatfs has them. The worker's list (its file.rs) has to have them all.
const MAGIC: [u64; 9] =
    [0x6573_5546, 0x6969, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400, 0x5346_414f, 0x7375_7245, 0x0bd0_0bd0];

fn name_answers(name: &str) -> bool {
    !NAMES.contains(&name) && !name.starts_with("fuse.")
}

/// The mounts that this process sees: whether they answer by themselves.
struct Mounts {
    file: File,
    by_id: HashMap<u64, bool>,
    by_device: HashMap<(u32, u32), bool>,
}

/// Read by a process that serves requests when the first descriptor comes, again when the kernel says that something was mounted.
static MOUNTS: Mutex<Option<Mounts>> = Mutex::new(None);

impl Mounts {
    /// What is mounted now; `None` where it cannot be seen.
    fn now(known: &mut Option<Mounts>) -> Option<&Mounts> {
        let stale = known.as_ref().is_none_or(|m| {
            let mut fds = [PollFd::new(&m.file, PollFlags::PRI)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) != Ok(0)
        });
        if stale {
            *known = Mounts::read(known.take().map(|m| m.file));
        }
        known.as_ref()
    }

    fn read(file: Option<File>) -> Option<Mounts> {
        let mut file = file.map_or_else(|| File::open("/proc/self/mountinfo"), Ok).ok()?;
        file.rewind().ok()?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).ok()?;
        let (by_id, by_device) = parse(&String::from_utf8_lossy(&text));
        let mounts = Mounts { file, by_id, by_device };
        // Below a directory of its own a process is shown what is mounted there, which need not be all it can open.
        let root = File::open("/").ok()?;
        let st = look(root.as_fd()).ok()?;
        mounts.by_id.contains_key(&mount(root.as_fd(), &st)?).then_some(mounts)
    }

    /// `id` tells while the file is open; what another mount namespace has mounted is known by its device.
    fn answers(&self, id: u64, device: (u32, u32)) -> bool {
        *self.by_id.get(&id).or_else(|| self.by_device.get(&device)).unwrap_or(&false)
    }
}

type Parsed = (HashMap<u64, bool>, HashMap<(u32, u32), bool>);

/// Lines such as `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue` (proc(5)).
fn parse(text: &str) -> Parsed {
    let (mut by_id, mut by_device) = Parsed::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(id), _, Some(device)) = (words.next(), words.next(), words.next()) else { continue };
        let Some(name) = words.skip_while(|w| *w != "-").nth(1) else { continue };
        let (Ok(id), Some((a, b))) = (id.parse(), device.split_once(':')) else { continue };
        let (Ok(a), Ok(b)) = (a.parse(), b.parse()) else { continue };
        by_id.insert(id, name_answers(name));
        by_device.insert((a, b), name_answers(name));
    }
    (by_id, by_device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, Mode, memfd_create, open};
    use std::os::unix::net::UnixStream;

    fn passed(fd: impl Into<OwnedFd>) -> (Passed, Trust) {
        let trust = Trust::new(true);
        (Passed::new(fd.into(), &trust), trust)
    }

    fn file(size: u64) -> File {
        let path = std::env::temp_dir().join(format!("mwr-passed-{}-{size}", std::process::id()));
        std::fs::write(&path, vec![b'x'; size as usize]).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    fn is_open(n: i32) -> bool {
        std::fs::symlink_metadata(format!("/proc/self/fd/{n}")).is_ok()
    }

    #[test]
    fn a_local_file_goes_through_and_nothing_beyond_its_end() {
        assert!(passed(file(10)).0.check(4, 6).is_ok());
        for (offset, len) in [(4, 7), (11, 0), (u64::MAX, 2)] {
            assert!(matches!(
                passed(file(10)).0.check(offset, len),
                Err(ConnError::Descriptor("shorter than announced"))
            ));
        }
    }

    #[test]
    fn only_a_stream_socket_of_this_machine_is_adopted() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert!(passed(a).0.socket().is_ok());
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(passed(reader).0.socket().is_err());
        assert!(passed(file(10)).0.socket().is_err());
        let (p, trust) = passed(std::os::unix::net::UnixDatagram::unbound().unwrap());
        assert!(p.socket().is_err());
        // what may wait when it is closed (SO_LINGER) is kept, and the worker believed nothing any more
        let (p, lost) = passed(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        assert!(p.socket().is_err() && lost.is_lost() && trust.is_lost());
    }

    #[test]
    fn memory_goes_through() {
        let fd = memfd_create("passed", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 5).unwrap();
        let (p, trust) = passed(fd);
        assert!(p.check(0, 5).is_ok() && !trust.is_lost());
    }

    #[test]
    fn what_closes_at_once_is_closed() {
        let (pipe, _write) = std::io::pipe().unwrap();
        let pathlike = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for fd in [OwnedFd::from(pipe), File::open("/").unwrap().into(), file(3).into(), pathlike] {
            let n = fd.as_raw_fd();
            let (p, trust) = passed(fd);
            assert!(p.check(0, 1 << 40).is_err());
            // another thread of the tests may have opened something under that number meanwhile
            assert!(!trust.is_lost(), "{n}");
        }
    }

    #[test]
    fn what_may_not_be_closed_stays_open_and_costs_the_trust() {
        let (mut peer, end) = UnixStream::pair().unwrap();
        let n = end.as_raw_fd();
        let (p, trust) = passed(end);
        assert!(matches!(p.check(0, 0), Err(ConnError::Descriptor("not a regular file"))));
        assert!(trust.is_lost() && is_open(n));
        peer.set_nonblocking(true).unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn mounts_are_told_apart_by_what_is_mounted() {
        let text = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            45 22 0:50 / /mnt/a\\040b rw - fuse.bindfs /x rw\n46 22 0:51 / /n rw master:3 - nfs4 h:/ rw\n\
            47 22 0:52 / /t rw - tmpfs - rw\n48 22 8:1 / /w rw - fuseblk /dev/sda1 rw\nrubbish\n";
        let (by_id, by_device) = parse(text);
        let of = |id| by_id.get(&id).copied();
        assert_eq!(
            [of(22), of(45), of(46), of(47), of(48), of(1)],
            [Some(true), Some(false), Some(false), Some(true), Some(false), None]
        );
        assert_eq!(by_device.get(&(254, 0)), Some(&true));
        assert_eq!(by_device.get(&(8, 1)), Some(&false));
    }
}
