//! The mapping: the only unsafe code of this crate.
#![allow(unsafe_code)]

use crate::layout;
use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;

/// Why a table cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("shared table: {0}")]
    Io(#[from] std::io::Error),
    #[error("shared table: {0}")]
    Sys(#[from] nix::Error),
    #[error("shared table has no seals against shrinking and growing")]
    NotSealed,
    #[error("shared memory has {got} bytes instead of {want}")]
    Size { got: u64, want: u64 },
    #[error("shared table of {slots} slots and {rows} rows is out of range")]
    Shape { slots: u16, rows: u16 },
    #[error("shared table has another layout")]
    Magic,
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// Makes a sealed memfd of `bytes` zero bytes.
pub fn create(bytes: u64) -> Result<OwnedFd, Error> {
    let fd = memfd_create(c"mod-wsgi-rs-table", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals()))?;
    Ok(file.into())
}

/// Words mapped from a sealed memfd; shared with other processes.
pub struct Words {
    map: MmapRaw,
    len: usize,
}

impl Words {
    /// Checks seals and size of `fd`, then maps it. A table without the seals could be truncated by any holder, and
    /// the reader would die of SIGBUS.
    pub fn map(fd: impl AsFd, want: u64) -> Result<Words, Error> {
        let fd = fd.as_fd();
        let got = SealFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GET_SEALS)?);
        if !got.contains(seals()) {
            return Err(Error::NotSealed);
        }
        let got = nix::sys::stat::fstat(fd)?.st_size as u64;
        if got != want {
            return Err(Error::Size { got, want });
        }
        let len = (want / 8) as usize;
        let map = MmapOptions::new().len(want as usize).map_raw(fd.as_raw_fd())?;
        Ok(Words { map, len })
    }

    /// The word at index `i`.
    ///
    /// # Panics
    /// When `i` is outside the table; indices come from checked shapes, never from the table's content.
    #[inline]
    pub fn word(&self, i: usize) -> &AtomicU64 {
        assert!(i < self.len);
        // SAFETY: the mapping is `len` words long (checked against fstat in `map`), page-aligned, lives as long as
        // `self` and cannot shrink (sealed). Every access by any process goes through atomics of this width.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(i)) }
    }
}

const _: () = assert!(layout::HEADER_WORDS.is_multiple_of(layout::LINE_WORDS));
