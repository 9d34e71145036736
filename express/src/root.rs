//! The private server root: created or taken over safely, locked while express runs, removed afterwards.
//!
//! Its default place is predictable and lies in a directory everybody can write to, so what is already there is used
//! only when it is a real directory of the caller that nobody else can write to.

use crate::error::Error;
use crate::server::Kind;
use nix::fcntl::{Flock, FlockArg};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Marks a directory as a server root, and is locked by the express that uses it.
const LOCK: &str = "express.lock";

/// Files that stay in a server root the caller has named.
const LOGS: [&str; 2] = ["error_log", "access_log"];

/// An open server root. Dropping it removes what express has put there, unless it is told to [`ServerRoot::keep`] it.
#[derive(Debug)]
pub struct ServerRoot {
    pub path: PathBuf,
    lock: Option<Flock<File>>,
    after: After,
}

/// What happens to the directory at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// It is removed with everything in it.
    Remove,
    /// Everything but the logs is removed.
    KeepLogs,
    /// Everything generated is removed; the directory was there before and stays.
    Clear,
    /// Everything stays.
    Keep,
}

impl ServerRoot {
    /// Creates or takes over `path`. `named`: the caller has chosen it. `mode`: 0700, or 0711 when others serve.
    pub fn open(path: &Path, named: bool, mode: u32) -> Result<ServerRoot, Error> {
        let refuse = |why: String| Error::ServerRoot { path: path.into(), why };
        let created = match DirBuilder::new().mode(mode).create(path) {
            Ok(()) => {
                // The umask may have taken bits away.
                let set = fs::set_permissions(path, fs::Permissions::from_mode(mode));
                set.map_err(|e| refuse(format!("its mode cannot be set: {e}")))?;
                true
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                judge_existing(path).map_err(refuse)?;
                false
            }
            Err(e) => return Err(refuse(format!("it cannot be created: {e}"))),
        };
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path.join(LOCK))
            .map_err(|e| refuse(format!("it cannot be written: {e}")))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| refuse("another mod-wsgi-rs express is using it".into()))?;
        for manner in Kind::ALL.map(Kind::manner) {
            if let Some(pid) = running_server(&path.join(manner.pid_file), manner.processes) {
                return Err(refuse(format!("the {} started from it is still running (process {pid})", manner.name)));
            }
        }
        let after = if created || !named { After::Remove } else { After::Clear };
        Ok(ServerRoot { path: path.into(), lock: Some(lock), after })
    }

    /// Serving has begun: the logs of a named root are worth keeping from here on.
    pub fn keep_logs(&mut self, named: bool) {
        if named {
            self.after = After::KeepLogs;
        }
    }

    /// Leaves everything in place (`--setup-only`).
    pub fn keep(&mut self) {
        self.after = After::Keep;
    }

    /// The lock goes to whatever is started from here later.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    /// Writes a file anew. Contents may hold secrets, so `mode` is there from the first byte on.
    pub fn write(&self, name: &str, mode: u32, text: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        let what = || format!("cannot write '{}'", path.display());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(what())(e)),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).map_err(Error::io(what()))?;
        file.write_all(text.as_bytes()).map_err(Error::io(what()))?;
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(Error::io(what()))?;
        Ok(path)
    }

    /// Makes a directory in it, or leaves the one that is there.
    pub fn directory(&self, name: &str, mode: u32) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        let what = || format!("cannot make '{}'", path.display());
        match DirBuilder::new().mode(mode).create(&path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(Error::io(what())(e)),
            _ => {}
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(Error::io(what()))?;
        Ok(path)
    }
}

impl Drop for ServerRoot {
    fn drop(&mut self) {
        let result = match self.after {
            After::Keep => Ok(()),
            After::Remove => fs::remove_dir_all(&self.path),
            After::KeepLogs => clear(&self.path, &LOGS),
            After::Clear => clear(&self.path, &[]),
        };
        if let Err(e) = result
            && e.kind() != ErrorKind::NotFound
        {
            eprintln!("mod-wsgi-rs: MWR0620: server root '{}' could not be removed: {e}", self.path.display());
        }
    }
}

/// Removes everything in the directory except the named files.
fn clear(dir: &Path, keep: &[&str]) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if keep.iter().any(|k| OsStr::new(k) == entry.file_name()) {
            continue;
        }
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}

/// Whether a directory that is already there may be used; else why not.
fn judge_existing(path: &Path) -> Result<(), String> {
    let meta = fs::symlink_metadata(path).map_err(|e| e.to_string())?;
    if meta.file_type().is_symlink() {
        return Err("it is a symbolic link".into());
    }
    if !meta.is_dir() {
        return Err("it exists and is no directory".into());
    }
    if meta.uid() != nix::unistd::Uid::effective().as_raw() {
        return Err(format!("it belongs to somebody else (uid {})", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(format!("others can write to it (mode {:04o})", meta.mode() & 0o7777));
    }
    let names = fs::read_dir(path).map_err(|e| e.to_string())?.flatten().map(|entry| entry.file_name());
    let foreign = names.filter(|name| !LOGS.iter().any(|log| OsStr::new(log) == name)).count();
    if foreign > 0 && !path.join(LOCK).exists() {
        return Err("it is neither empty nor a server root of mod-wsgi-rs; files in it could be overwritten".into());
    }
    Ok(())
}

/// The process of a pid file, when it is a running server: one whose name begins with one of these.
fn running_server(pid_file: &Path, names: &[&str]) -> Option<u32> {
    let pid: u32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    names.iter().any(|known| name.trim().starts_with(known)).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mwr-root-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn is_private_locked_and_removed() {
        let path = scratch("life");
        let root = ServerRoot::open(&path, true, 0o700).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        let file = root.write("httpd.conf", 0o600, "x").unwrap();
        assert_eq!(fs::metadata(file).unwrap().mode() & 0o7777, 0o600);
        let second = ServerRoot::open(&path, true, 0o700).unwrap_err();
        assert!(second.to_string().contains("another mod-wsgi-rs express"), "{second}");
        drop(root);
        assert!(!path.exists());
    }

    #[test]
    fn keeps_the_logs_of_a_named_one() {
        let path = scratch("logs");
        let mut root = ServerRoot::open(&path, true, 0o700).unwrap();
        root.keep_logs(true);
        root.write("error_log", 0o600, "x").unwrap();
        root.write("httpd.conf", 0o600, "x").unwrap();
        drop(root);
        let left: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["error_log"]);
        // The next run takes it over: logs alone are not foreign files.
        drop(ServerRoot::open(&path, true, 0o700).unwrap());
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn refuses_what_is_not_its_own() {
        let path = scratch("refuse");
        let why = |path: &Path| ServerRoot::open(path, true, 0o700).unwrap_err().to_string();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("precious"), "x").unwrap();
        assert!(why(&path).contains("neither empty"));
        fs::remove_file(path.join("precious")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(why(&path).contains("others can write"));
        let link = scratch("link");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(why(&link).contains("symbolic link"));
        fs::remove_file(&link).unwrap();
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(why(&path).contains("no directory"));
        fs::remove_file(&path).unwrap();
    }
}
