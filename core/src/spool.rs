//! Bytes on their way, in memory up to a limit and then in an unlinked temporary file: bodies of requests before a worker
//! gets them, and of responses whose client reads slower than the worker writes.

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
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
pub fn reopened(file: &File) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A queue of bytes: written at its end, read from its start.
pub struct Spool {
    memory: Vec<u8>,
    file: Option<File>,
    /// Bytes of the stream that have been read.
    read: u64,
    /// Bytes of the stream that have been written.
    written: u64,
    in_memory: usize,
}

impl Spool {
    /// A queue that keeps up to `in_memory` bytes in memory.
    pub fn new(in_memory: usize) -> Spool {
        Spool { memory: Vec::new(), file: None, read: 0, written: 0, in_memory }
    }

    /// Unread bytes.
    pub fn len(&self) -> u64 {
        self.written - self.read
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All bytes ever written.
    pub fn total(&self) -> u64 {
        self.written
    }

    /// Appends. Once a file is in use everything goes there, so that order is kept by offsets.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            if self.memory.len() + bytes.len() <= self.in_memory {
                self.memory.extend_from_slice(bytes);
                self.written += bytes.len() as u64;
                return Ok(());
            }
            self.spill()?;
        }
        if let Some(f) = &self.file {
            f.write_all_at(bytes, self.written)?;
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Moves what is in memory to a file. Offsets in the file are offsets of the stream.
    fn spill(&mut self) -> io::Result<()> {
        let f = temporary(DIRECTORY)?;
        f.write_all_at(&self.memory, self.written - self.memory.len() as u64)?;
        self.memory = Vec::new();
        self.file = Some(f);
        Ok(())
    }

    /// Takes up to `buf.len()` bytes from the start.
    pub fn take(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = (self.len().min(buf.len() as u64)) as usize;
        match &self.file {
            Some(f) => f.read_exact_at(&mut buf[..n], self.read)?,
            None => {
                buf[..n].copy_from_slice(&self.memory[..n]);
                self.memory.drain(..n);
            }
        }
        self.read += n as u64;
        Ok(n)
    }

    /// The unread rest as one file: descriptor, offset, length. Small rests are better taken by [`Spool::take`].
    pub fn rest_as_file(&mut self) -> io::Result<(OwnedFd, u64, u64)> {
        if self.file.is_none() {
            self.spill()?;
        }
        match &self.file {
            Some(f) => Ok((reopened(f)?, self.read, self.len())),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// All bytes, when they are in memory and none has been taken.
    pub fn in_memory(&self) -> Option<&[u8]> {
        (self.file.is_none() && self.read == 0).then_some(&self.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What goes in comes out, in order, whatever the pieces and however much is in memory.
        #[test]
        fn order_is_kept(pieces in proptest::collection::vec((any::<u8>(), 1usize..50, 0usize..60), 1..20)) {
            let mut s = Spool::new(100);
            let (mut want, mut got) = (Vec::new(), Vec::new());
            for (byte, n, take) in pieces {
                s.push(&vec![byte; n]).unwrap();
                want.extend(vec![byte; n]);
                let mut buf = vec![0; take];
                let k = s.take(&mut buf).unwrap();
                got.extend_from_slice(&buf[..k]);
            }
            let (fd, offset, len) = s.rest_as_file().unwrap();
            let mut rest = vec![0; len as usize];
            File::from(fd).read_exact_at(&mut rest, offset).unwrap();
            got.extend(rest);
            prop_assert_eq!(got, want);
        }
    }
}
