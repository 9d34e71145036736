//! The run directory: `lock`, `ctl.sock` and `w/<table>/<slot>.<generation>`. Everything is reached through a descriptor
//! of the directory, so that paths longer than a socket address work.

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Name of the control socket in the run directory.
pub const CTL: &str = "ctl.sock";
/// Its name while a keeper that ends looks whether somebody has connected meanwhile.
const HIDDEN: &str = ".ctl.ending";
/// Requests that may wait in a listening socket.
const BACKLOG: i32 = 4096;

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {path:?}: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("run directory {path:?} belongs to uid {owner}, not to uid {uid}; remove it or name another")]
    Owner { path: PathBuf, owner: u32, uid: u32 },
    #[error("run directory {path:?} may be written by others (mode {mode:03o}); set it to 0711")]
    Mode { path: PathBuf, mode: u32 },
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

fn sys(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |e| Error::Io { what, path, source: e.into() }
}

/// An open run directory.
pub struct RunDir {
    path: PathBuf,
    fd: OwnedFd,
}

impl RunDir {
    /// Makes the directory (0711) when it is missing, and refuses one of somebody else.
    pub fn prepare(path: &Path) -> Result<RunDir, Error> {
        match std::fs::DirBuilder::new().mode(0o711).create(path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(io("cannot make the run directory", path)(e)),
        }
        let dir = RunDir::open(path)?;
        match mkdirat(&dir.fd, "w", Mode::from_bits_truncate(0o711)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(dir),
            Err(e) => Err(sys("cannot make the directory of sockets below", path)(e)),
        }
    }

    /// Opens and checks an existing run directory.
    pub fn open(path: &Path) -> Result<RunDir, Error> {
        let what = "cannot open the run directory";
        let meta = std::fs::symlink_metadata(path).map_err(io(what, path))?;
        let uid = Uid::effective().as_raw();
        if meta.uid() != uid {
            return Err(Error::Owner { path: path.to_owned(), owner: meta.uid(), uid });
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(sys(what, path))?;
        let stat = fstat(&fd).map_err(sys(what, path))?;
        if stat.st_uid != uid {
            return Err(Error::Owner { path: path.to_owned(), owner: stat.st_uid, uid });
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(Error::Mode { path: path.to_owned(), mode: stat.st_mode & 0o777 });
        }
        // Server processes of another user pass through it to the sockets.
        if stat.st_mode & 0o777 != 0o711 {
            fchmod(&fd, Mode::from_bits_truncate(0o711)).map_err(sys("cannot set the mode of", path))?;
        }
        Ok(RunDir { path: path.to_owned(), fd })
    }

    /// The path it was opened by, for messages and for child processes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its path still leads to it: whoever looks for the control socket comes here.
    pub fn is_in_place(&self) -> bool {
        let own = fstat(&self.fd).map(|s| (s.st_dev, s.st_ino));
        own.is_ok_and(|own| std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == own))
    }

    /// Tries to take the lock of the directory; `None`: a keeper holds it.
    pub fn try_lock(&self) -> Result<Option<Flock<File>>, Error> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let file = openat(&self.fd, "lock", flags, mode).map_err(sys("cannot open the lock of", &self.path))?;
        match Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(sys("cannot lock", &self.path)(e)),
        }
    }

    /// Connects to the control socket.
    pub fn connect(&self) -> std::io::Result<UnixStream> {
        UnixStream::connect(in_directory(self.fd.as_fd(), CTL))
    }

    /// Binds the control socket, replacing a stale one. Only under the lock.
    pub fn bind_ctl(&self, uid: u32, gid: u32) -> Result<UnixListener, Error> {
        self.remove_ctl();
        bind(self.fd.as_fd(), CTL, uid, gid).map_err(io("cannot bind ctl.sock in", &self.path))
    }

    /// Removes the control socket, also a hidden one.
    pub fn remove_ctl(&self) {
        let _ = unlinkat(&self.fd, CTL, UnlinkatFlags::NoRemoveDir);
        let _ = unlinkat(&self.fd, HIDDEN, UnlinkatFlags::NoRemoveDir);
    }

    /// Takes the control socket's name away, so that nobody can connect any more.
    pub fn hide_ctl(&self) -> Result<(), Error> {
        renameat(&self.fd, CTL, &self.fd, HIDDEN).map_err(sys("cannot rename ctl.sock in", &self.path))
    }

    /// Gives a hidden control socket its name back.
    pub fn show_ctl(&self) -> Result<(), Error> {
        renameat(&self.fd, HIDDEN, &self.fd, CTL).map_err(sys("cannot rename ctl.sock in", &self.path))
    }

    /// Makes `w/<name>` for the sockets of one table, owned by the server's user, mode 0700, and locks it for the life
    /// of the answer, so that a later keeper can tell it from one left behind.
    pub fn make_sockets(&self, name: &str) -> Result<SocketDir, Error> {
        let path = format!("w/{name}");
        let what = "cannot make a directory of sockets in";
        // Connecting needs the right to search only. The directory stays the supervisor's own: whoever could rename in it
        // could make the supervisor act on a file of his choice.
        mkdirat(&self.fd, path.as_str(), Mode::from_bits_truncate(0o711)).map_err(sys(what, &self.path))?;
        self.open_sockets(name)
    }

    /// Opens a directory made by [`RunDir::make_sockets`] of a former supervisor.
    pub fn open_sockets(&self, name: &str) -> Result<SocketDir, Error> {
        let path = format!("w/{name}");
        let what = "cannot open a directory of sockets in";
        let base = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let at = openat(&self.fd, path.as_str(), base | OFlag::O_PATH, Mode::empty());
        let at = at.map_err(sys(what, &self.path))?;
        let readable = openat(&self.fd, path.as_str(), base | OFlag::O_RDONLY, Mode::empty());
        let lock = Flock::lock(File::from(readable.map_err(sys(what, &self.path))?), FlockArg::LockSharedNonblock);
        let lock = lock.map_err(|(_, e)| sys(what, &self.path)(e))?;
        Ok(SocketDir { name: name.to_owned(), at, _lock: lock })
    }

    /// Removes the sockets of one table.
    pub fn remove_sockets(&self, name: &str) {
        let _ = std::fs::remove_dir_all(in_directory(self.fd.as_fd(), &format!("w/{name}")));
    }

    /// Removes directories of sockets that no living supervisor holds. Only under the lock, by a new keeper.
    pub fn remove_stale_sockets(&self) {
        let Ok(entries) = std::fs::read_dir(in_directory(self.fd.as_fd(), "w")) else { return };
        for entry in entries.flatten() {
            let Ok(file) = File::open(entry.path()) else { continue };
            if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// The directory of one table's sockets.
pub struct SocketDir {
    pub name: String,
    /// O_PATH descriptor, as server processes get it.
    pub at: OwnedFd,
    _lock: Flock<File>,
}

impl SocketDir {
    /// Binds a worker's listening socket: 0600, of the server's user.
    pub fn bind(&self, name: &str, uid: u32, gid: u32) -> std::io::Result<UnixListener> {
        self.remove(name);
        bind(self.at.as_fd(), name, uid, gid)
    }

    /// Removes a worker's socket.
    pub fn remove(&self, name: &str) {
        let _ = unlinkat(&self.at, name, UnlinkatFlags::NoRemoveDir);
    }
}

fn in_directory(dir: BorrowedFd<'_>, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()).into()
}

fn bind(dir: BorrowedFd<'_>, name: &str, uid: u32, gid: u32) -> std::io::Result<UnixListener> {
    // Connecting needs the right to write: only the owner has it from the first moment on.
    let umask = nix::sys::stat::umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(in_directory(dir, name));
    nix::sys::stat::umask(umask);
    let listener = listener?;
    let backlog = nix::sys::socket::Backlog::new(BACKLOG)?;
    nix::sys::socket::listen(&listener, backlog)?;
    if uid != Uid::effective().as_raw() {
        let (u, g) = (Uid::from_raw(uid), Gid::from_raw(gid));
        fchownat(dir, name, Some(u), Some(g), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Temp(PathBuf);
    impl Temp {
        fn new(name: &str) -> Temp {
            let long = "d".repeat(120);
            let dir = std::env::temp_dir().join(format!("mwr-rundir-{name}-{}", std::process::id())).join(long);
            std::fs::create_dir_all(&dir).unwrap();
            Temp(dir)
        }
    }
    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
        }
    }

    #[test]
    fn sockets_work_below_a_path_longer_than_an_address() {
        let temp = Temp::new("long");
        let (uid, gid) = (Uid::effective().as_raw(), Gid::effective().as_raw());
        let dir = RunDir::prepare(&temp.0.join("run")).unwrap();
        let listener = dir.bind_ctl(uid, gid).unwrap();
        dir.connect().unwrap();
        listener.accept().unwrap();
        let again = RunDir::prepare(dir.path()).unwrap();
        let lock = dir.try_lock().unwrap();
        assert!(lock.is_some() && again.try_lock().unwrap().is_none());
        let other = temp.0.join("other");
        std::fs::rename(dir.path(), &other).unwrap();
        assert!(!dir.is_in_place());
        std::fs::create_dir(dir.path()).unwrap();
        assert!(!dir.is_in_place(), "another one is there");
        std::fs::remove_dir(dir.path()).unwrap();
        std::fs::rename(&other, dir.path()).unwrap();
        assert!(dir.is_in_place());
        let sockets = dir.make_sockets("abc").unwrap();
        let worker = sockets.bind("0.1", uid, gid).unwrap();
        let meta = std::fs::metadata(dir.path().join("w/abc/0.1")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        drop(worker);
        dir.remove_stale_sockets();
        assert!(dir.path().join("w/abc").exists(), "still held");
        drop(sockets);
        dir.remove_stale_sockets();
        assert!(!dir.path().join("w/abc").exists());
    }

    #[test]
    fn a_directory_others_may_write_to_is_refused() {
        let temp = Temp::new("mode");
        let path = temp.0.join("run");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(matches!(RunDir::prepare(&path), Err(Error::Mode { mode: 0o777, .. })));
        assert!(matches!(RunDir::prepare(&temp.0.join("no/run")), Err(Error::Io { .. })));
    }
}
