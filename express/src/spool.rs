//! The directory of nginx's temporary files: request bodies and answers for slow clients. Like Apache's they lie in
//! /var/tmp and not in the server root, which often is memory; its name cannot be foretold, so nobody can take it first.

use crate::error::Error;
use crate::root::ServerRoot;
use mod_wsgi_core::spool::DIRECTORY;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What the names begin with.
const PREFIX: &str = "mod-wsgi-rs-";

/// Remembers the name in the server root, for the start after an end that could not remove it.
const NOTE: &str = "spool.path";

/// Name of the one in a server root.
const INSIDE: &str = "spool";

/// The directory; dropping it removes what lies outside of the server root.
#[derive(Debug)]
pub struct Spool {
    pub path: PathBuf,
    /// Outside of the server root. The lock tells systemd-tmpfiles, which removes what is old, to leave it alone.
    lock: Option<Flock<File>>,
}

impl Spool {
    /// In the server root itself: for a configuration that stays after this process.
    pub fn inside(root: &ServerRoot, mode: u32) -> Result<Spool, Error> {
        Ok(Spool { path: root.directory(INSIDE, mode)?, lock: None })
    }

    /// Makes one, and removes what a killed express has left with the same server root. The second value: why it had to be
    /// made in the server root.
    pub fn make(root: &ServerRoot, mode: u32) -> Result<(Spool, Option<String>), Error> {
        remove_former(root);
        match Spool::outside(root, mode) {
            Ok(spool) => Ok((spool, None)),
            Err(e) => Ok((Spool::inside(root, mode)?, Some(e.to_string()))),
        }
    }

    fn outside(root: &ServerRoot, mode: u32) -> Result<Spool, Error> {
        let mut bytes = [0u8; 12];
        File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).map_err(Error::io("random numbers"))?;
        let random: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let path = Path::new(DIRECTORY).join(format!("{PREFIX}{random}"));
        let what = || format!("cannot make '{}'", path.display());
        root.write(NOTE, 0o600, &path.to_string_lossy())?;
        DirBuilder::new().mode(mode).create(&path).map_err(Error::io(what()))?;
        // From here on it is removed whatever happens.
        let mut spool = Spool { path: path.clone(), lock: None };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(Error::io(what()))?;
        let directory = File::open(&path).map_err(Error::io(what()))?;
        spool.lock = Flock::lock(directory, FlockArg::LockSharedNonblock).ok();
        Ok(spool)
    }

    fn is_outside(&self) -> bool {
        self.path.starts_with(DIRECTORY) && named_as_ours(&self.path)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if self.is_outside()
            && let Err(e) = fs::remove_dir_all(&self.path)
        {
            eprintln!("mod-wsgi-rs: MWR0620: spool directory '{}' could not be removed: {e}", self.path.display());
        }
    }
}

fn named_as_ours(path: &Path) -> bool {
    path.parent() == Some(Path::new(DIRECTORY))
        && path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(PREFIX))
}

/// Removes the directory that the server root remembers, if it is one of ours.
fn remove_former(root: &ServerRoot) {
    let Ok(text) = fs::read_to_string(root.path.join(NOTE)) else { return };
    let path = PathBuf::from(text);
    let own = |m: &fs::Metadata| m.is_dir() && m.uid() == nix::unistd::Uid::effective().as_raw();
    if named_as_ours(&path) && fs::symlink_metadata(&path).is_ok_and(|m| own(&m)) {
        // It is in nobody's way; the next start tries again.
        let _ = fs::remove_dir_all(&path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_private_and_removed_also_after_a_kill() {
        let base = std::env::temp_dir().join(format!("mwr-spool-{}", std::process::id()));
        let root = ServerRoot::open(&base, true, 0o700).unwrap();
        let (first, why) = Spool::make(&root, 0o711).unwrap();
        assert_eq!(why, None);
        assert_eq!(fs::metadata(&first.path).unwrap().mode() & 0o7777, 0o711);
        // As after a kill: nothing was dropped.
        let left = first.path.clone();
        std::mem::forget(first);
        let (second, _) = Spool::make(&root, 0o700).unwrap();
        assert!(!left.exists() && second.path != left);
        let path = second.path.clone();
        drop(second);
        assert!(!path.exists());
        drop(root);
    }

    #[test]
    fn removes_only_what_it_has_made() {
        let base = std::env::temp_dir().join(format!("mwr-spool-other-{}", std::process::id()));
        let precious = base.join("precious");
        let root = ServerRoot::open(&base, true, 0o700).unwrap();
        fs::create_dir(&precious).unwrap();
        root.write(NOTE, 0o600, precious.to_str().unwrap()).unwrap();
        remove_former(&root);
        assert!(precious.exists());
        assert!(!named_as_ours(Path::new("/var/tmp/mod-wsgi-rs-x/../../etc")));
        drop(root);
    }
}
