//! Bytes on their way, in memory up to a limit and then in an unlinked temporary file: bodies of requests before a worker
//! gets them, and of responses whose client reads slower than the worker writes.

use rustix::fs::{Mode, OFlags, open, statvfs};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Where temporary files lie unless configured: below /var, since /tmp and the run-time directory may be memory.
pub const DIRECTORY: &str = "/var/tmp";

/// An unlinked temporary file in `dir`, also where the file system cannot make one without a name.
pub fn temporary(dir: &str) -> io::Result<File> {
    let (base, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    match open(dir, base | OFlags::TMPFILE, mode) {
        Ok(fd) => return Ok(File::from(fd)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let mut random = [0u8; 8];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let path = format!("{dir}/.mod-wsgi-rs-{:016x}", u64::from_ne_bytes(random));
    let file = File::from(open(&*path, base | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode)?);
    std::fs::remove_file(path)?;
    Ok(file)
}

/// The same file, open for reading only, with an offset of its own: what is passed to others.
pub fn reopened(file: impl AsFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// What temporary files in `dir` may hold in all unless configured: a tenth of the file system, at most 4 GiB.
pub fn default_limit(dir: &str) -> u64 {
    const MOST: u64 = 4 << 30;
    statvfs(dir).map_or(MOST, |fs| (fs.f_blocks.saturating_mul(fs.f_frsize) / 10).min(MOST))
}

/// Counts the bytes of temporary files of all processes of a server against one limit.
pub trait Account {
    /// Takes `bytes` out of what is left; `false`: there is not so much.
    fn reserve(&self, bytes: u64) -> bool;
    /// Gives back.
    fn release(&self, bytes: u64);
    /// The limit, bytes.
    fn limit(&self) -> u64;
}

/// Where temporary files lie and how much they may hold.
#[derive(Clone, Copy)]
pub struct Store<'s> {
    pub directory: &'s str,
    pub account: &'s dyn Account,
}

/// Bytes are reserved in steps of this size, since an account is shared by many processes.
const STEP: u64 = 1 << 20;

/// A temporary file whose bytes are reserved for as long as this value lives.
pub struct Held<'s> {
    store: Store<'s>,
    file: File,
    reserved: u64,
}

impl<'s> Held<'s> {
    /// An empty file with room for `expected` bytes.
    pub fn new(store: Store<'s>, expected: u64) -> io::Result<Held<'s>> {
        let reserved = expected.max(1).div_ceil(STEP).saturating_mul(STEP);
        if !store.account.reserve(reserved) {
            return Err(full(store));
        }
        match temporary(store.directory) {
            Ok(file) => Ok(Held { store, file, reserved }),
            Err(e) => {
                store.account.release(reserved);
                Err(e)
            }
        }
    }

    /// Writes all of `bytes` at `offset`. After an error nothing of the file before `offset` has changed.
    pub fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.reserved {
            let more = (end - self.reserved).div_ceil(STEP).saturating_mul(STEP);
            if !self.store.account.reserve(more) {
                return Err(full(self.store));
            }
            self.reserved += more;
        }
        self.file.write_all_at(bytes, offset)
    }

    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.store.account.release(self.reserved);
    }
}

fn full(store: Store<'_>) -> io::Error {
    let text = format!("temporary files of the server hold all of the {} bytes allowed to them", store.account.limit());
    io::Error::new(io::ErrorKind::StorageFull, text)
}

/// A queue of bytes: written at its end, read from its start.
pub struct Spool<'s> {
    store: Store<'s>,
    memory: Vec<u8>,
    file: Option<Held<'s>>,
    /// Bytes of the stream that have been read.
    read: u64,
    /// Bytes of the stream that have been written.
    written: u64,
    in_memory: usize,
}

impl<'s> Spool<'s> {
    /// A queue that keeps up to `in_memory` bytes in memory.
    pub fn new(store: Store<'s>, in_memory: usize) -> Spool<'s> {
        Spool { store, memory: Vec::new(), file: None, read: 0, written: 0, in_memory }
    }

    /// Unread bytes.
    pub fn len(&self) -> u64 {
        self.written - self.read
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends all of `bytes`, or nothing with an error. Once a file is in use everything goes there, so that order is
    /// kept by offsets.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() && self.memory.len() + bytes.len() <= self.in_memory {
            self.memory.extend_from_slice(bytes);
        } else {
            let at = self.written;
            self.spill()?.write_at(bytes, at)?;
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// The file, with what was in memory. Offsets in the file are offsets of the stream.
    fn spill(&mut self) -> io::Result<&mut Held<'s>> {
        let held = match self.file.take() {
            Some(held) => held,
            None => {
                let mut held = Held::new(self.store, 0)?;
                held.write_at(&self.memory, self.written - self.memory.len() as u64)?;
                self.memory = Vec::new();
                held
            }
        };
        Ok(self.file.insert(held))
    }

    /// Takes up to `buf.len()` bytes from the start.
    pub fn take(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = (self.len().min(buf.len() as u64)) as usize;
        match &self.file {
            Some(f) => f.file.read_exact_at(&mut buf[..n], self.read)?,
            None => {
                buf[..n].copy_from_slice(&self.memory[..n]);
                self.memory.drain(..n);
            }
        }
        self.read += n as u64;
        Ok(n)
    }

    /// Makes the unread rest one file: descriptor, offset, length, and what holds its bytes, to be kept until they have
    /// been sent. Small rests are better taken by [`Spool::take`]. After an error the queue is as it was.
    pub fn rest_as_file(&mut self) -> io::Result<(OwnedFd, u64, u64, Held<'s>)> {
        let fd = reopened(self.spill()?.file())?;
        let (at, len) = (self.read, self.len());
        self.read = self.written;
        match self.file.take() {
            Some(held) => {
                self.read = 0;
                self.written = 0;
                Ok((fd, at, len, held))
            }
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    struct Purse {
        left: Cell<u64>,
    }

    impl Account for Purse {
        fn reserve(&self, bytes: u64) -> bool {
            let ok = bytes <= self.left.get();
            if ok {
                self.left.set(self.left.get() - bytes);
            }
            ok
        }
        fn release(&self, bytes: u64) {
            self.left.set(self.left.get() + bytes);
        }
        fn limit(&self) -> u64 {
            u64::MAX
        }
    }

    #[test]
    fn what_does_not_fit_leaves_the_queue_as_it_was() {
        let purse = Purse { left: Cell::new(2 * STEP) };
        let mut s = Spool::new(Store { directory: DIRECTORY, account: &purse }, 10);
        s.push(b"0123456789").unwrap();
        s.push(&vec![b'x'; STEP as usize]).unwrap();
        assert!(s.push(&vec![b'y'; STEP as usize]).is_err());
        s.push(b"z").unwrap();
        let mut buf = vec![0; 2 * STEP as usize];
        let n = s.take(&mut buf).unwrap();
        assert_eq!((n, &buf[..10], buf[n - 1]), (STEP as usize + 11, &b"0123456789"[..], b'z'));
        drop(s);
        assert_eq!(purse.left.get(), 2 * STEP);
        purse.left.set(0);
        let mut s = Spool::new(Store { directory: DIRECTORY, account: &purse }, 10);
        s.push(b"0123456789").unwrap();
        assert!(s.rest_as_file().is_err());
        assert_eq!(s.take(&mut buf).unwrap(), 10);
    }

    proptest! {
        /// What goes in comes out, in order, whatever the pieces and however much is in memory.
        #[test]
        fn order_is_kept(pieces in proptest::collection::vec((any::<u8>(), 1usize..50, 0usize..60), 1..20)) {
            let purse = Purse { left: Cell::new(u64::MAX) };
            let mut s = Spool::new(Store { directory: DIRECTORY, account: &purse }, 100);
            let (mut want, mut got) = (Vec::new(), Vec::new());
            for (byte, n, take) in pieces {
                s.push(&vec![byte; n]).unwrap();
                want.extend(vec![byte; n]);
                let mut buf = vec![0; take];
                let k = s.take(&mut buf).unwrap();
                got.extend_from_slice(&buf[..k]);
            }
            let (fd, offset, len, _held) = s.rest_as_file().unwrap();
            let mut rest = vec![0; len as usize];
            File::from(fd).read_exact_at(&mut rest, offset).unwrap();
            got.extend(rest);
            prop_assert_eq!(got, want);
        }
    }
}
