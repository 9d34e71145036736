//! Control messages with descriptors over a nonblocking Unix stream socket. Used by keeper and supervisor from their
//! one thread; `exec-worker` reads its single message with [`receive_exact`], which takes no byte beyond it.

use crate::sys;
use mod_wsgi_wire::{control, limits};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Why a channel cannot be used any longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the other end has closed the connection")]
    Closed,
    #[error("control connection: {0}")]
    Sys(#[from] Errno),
    #[error(transparent)]
    Message(#[from] control::Error),
    #[error("more descriptors than the messages name")]
    Descriptors,
    #[error("more than {0} bytes wait to be read by the other end")]
    Backlog(usize),
}

/// Bytes that may wait for a peer that does not read.
const MAX_BACKLOG: usize = 16 * 1024 * 1024;

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// One end of a control connection.
pub struct Channel {
    socket: UnixStream,
    input: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    output: VecDeque<Outgoing>,
    closed: bool,
    /// The other end may pass descriptors.
    takes_fds: bool,
    /// Whether any byte has ever come.
    pub heard: bool,
}

impl Channel {
    /// Takes over a connected socket, whose other end is trusted with passing descriptors, and makes it nonblocking.
    pub fn new(socket: UnixStream) -> std::io::Result<Channel> {
        socket.set_nonblocking(true)?;
        let (input, fds, output) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Ok(Channel { socket, input, fds, output, closed: false, takes_fds: true, heard: false })
    }

    /// The same for another end that has nothing to pass: what it passes all the same is dropped by the kernel. Received, it
    /// could not even be closed safely: `close` waits for the owner of a FUSE file system, and for a socket that lingers.
    pub fn without_descriptors(socket: UnixStream) -> std::io::Result<Channel> {
        Ok(Channel { takes_fds: false, ..Channel::new(socket)? })
    }

    /// Reads what is there. `Err(Closed)` only once every whole message before the end has been given by [`message`].
    ///
    /// [`message`]: Channel::message
    pub fn fill(&mut self) -> Result<(), Error> {
        let mut buf = [0; 8192];
        // Bounded, so that one busy peer cannot keep the thread.
        for _ in 0..64 {
            let mut fds = Vec::new();
            let got = if self.takes_fds {
                sys::receive(self.socket.as_fd(), &mut buf, &mut fds)
            } else {
                recv(self.socket.as_raw_fd(), &mut buf, MsgFlags::empty())
            };
            match got {
                Ok(0) => {
                    self.closed = true;
                    break;
                }
                Ok(n) => {
                    self.heard = true;
                    self.input.extend_from_slice(&buf[..n]);
                    self.fds.extend(fds);
                    if self.fds.len() > 8 * limits::MAX_CONTROL_FDS {
                        return Err(Error::Descriptors);
                    }
                    // The messages that name them have come too, and take them before more is read.
                    if self.fds.len() > 2 * limits::MAX_CONTROL_FDS {
                        break;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => {
                    self.closed = true;
                    break;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// The next whole message, if one has come. `Err(Closed)`: none is left and none will come.
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        match control::decode(&self.input)? {
            Some((message, used)) => {
                self.input.drain(..used);
                if self.input.is_empty() {
                    self.input = Vec::new();
                }
                Ok(Some(message))
            }
            None if self.closed => Err(Error::Closed),
            None => Ok(None),
        }
    }

    /// The next received descriptor, in the order sent.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }

    /// Ends the connection for both sides, whoever else holds a descriptor of it.
    pub fn shut(&self) {
        // One that has ended already needs no end.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Whether the other end has closed or reset the connection.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Sends a message, `fds` with its first byte; what does not fit now is kept for [`Channel::flush`].
    pub fn send<T: Serialize>(&mut self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = control::encode(message)?;
        if self.pending() + bytes.len() > MAX_BACKLOG {
            return Err(Error::Backlog(MAX_BACKLOG));
        }
        let sent = if self.output.is_empty() { send_some(self.socket.as_fd(), &bytes, fds)? } else { 0 };
        if sent < bytes.len() {
            // Descriptors travel with the first byte: once that is out, they are too.
            let rest = if sent > 0 { &[][..] } else { fds };
            let fds = rest.iter().map(|f| f.try_clone_to_owned()).collect::<Result<_, _>>();
            let fds = fds.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
            self.output.push_back(Outgoing { bytes, sent, fds });
        }
        Ok(())
    }

    /// Sends what waits. To be called when the socket is writable.
    pub fn flush(&mut self) -> Result<(), Error> {
        while let Some(o) = self.output.front_mut() {
            let fds: Vec<_> = o.fds.iter().map(|f| f.as_fd()).collect();
            let n = send_some(self.socket.as_fd(), &o.bytes[o.sent..], &fds)?;
            if n == 0 {
                break;
            }
            o.fds.clear();
            o.sent += n;
            if o.sent == o.bytes.len() {
                self.output.pop_front();
            }
        }
        Ok(())
    }

    /// Bytes that wait to be sent.
    pub fn pending(&self) -> usize {
        self.output.iter().map(|o| o.bytes.len() - o.sent).sum()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One `sendmsg`; 0 when the socket is full.
fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Error> {
    let raw: Vec<RawFd> = fds.iter().map(|f| f.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(n) => return Ok(n),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(0),
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(Error::Closed),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Reads exactly one message and its descriptors from a blocking socket, not a byte more.
pub fn receive_exact<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<(T, Vec<OwnedFd>), Error> {
    let mut fds = Vec::new();
    let mut buf = vec![0; 4];
    read_exact(socket, &mut buf, &mut fds)?;
    let len = u32::from_le_bytes([buf[0], buf[1], buf[2], buf[3]]) as usize;
    if len > limits::MAX_CONTROL {
        return Err(control::Error::TooLong { len }.into());
    }
    buf.resize(4 + len, 0);
    read_exact(socket, &mut buf[4..], &mut fds)?;
    match control::decode(&buf)? {
        Some((message, _)) => Ok((message, fds)),
        None => Err(Error::Closed),
    }
}

fn read_exact(socket: BorrowedFd<'_>, mut buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<(), Error> {
    while !buf.is_empty() {
        match sys::receive(socket, buf, fds) {
            Ok(0) => return Err(Error::Closed),
            Ok(n) => buf = &mut buf[n..],
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mod_wsgi_wire::control::{FromSupervisor, ToSupervisor};
    use std::io::Read;

    fn pair() -> (Channel, Channel) {
        let (a, b) = UnixStream::pair().unwrap();
        (Channel::new(a).unwrap(), Channel::new(b).unwrap())
    }

    #[test]
    fn messages_keep_their_order_and_their_descriptors() {
        let (mut a, mut b) = pair();
        let (mut r1, w1) = std::io::pipe().unwrap();
        let (mut r2, w2) = std::io::pipe().unwrap();
        a.send(&FromSupervisor::Accepted, &[]).unwrap();
        a.send(&FromSupervisor::Registered { client: 7 }, &[w1.as_fd()]).unwrap();
        a.send(&FromSupervisor::Stopped, &[w2.as_fd()]).unwrap();
        drop((a, w1, w2));
        b.fill().unwrap();
        b.fill().unwrap();
        b.fill().unwrap();
        assert!(matches!(b.message().unwrap(), Some(FromSupervisor::Accepted)));
        assert!(matches!(b.message().unwrap(), Some(FromSupervisor::Registered { client: 7 })));
        assert!(matches!(b.message().unwrap(), Some(FromSupervisor::Stopped)));
        assert!(matches!(b.message::<FromSupervisor>(), Err(Error::Closed)));
        for r in [&mut r1, &mut r2] {
            std::io::Write::write_all(&mut std::fs::File::from(b.take_fd().unwrap()), b"x").unwrap();
            let mut got = String::new();
            r.read_to_string(&mut got).unwrap();
            assert_eq!(got, "x");
        }
        assert!(b.take_fd().is_none());
    }

    #[test]
    fn descriptors_of_an_end_that_has_none_to_pass_never_arrive() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Channel::new(a).unwrap(), Channel::without_descriptors(b).unwrap());
        let (mut r, w) = std::io::pipe().unwrap();
        a.send(&ToSupervisor::Status, &[w.as_fd()]).unwrap();
        a.send(&ToSupervisor::Reloading, &[]).unwrap();
        drop(w);
        b.fill().unwrap();
        assert!(matches!(b.message().unwrap(), Some(ToSupervisor::Status)));
        assert!(matches!(b.message().unwrap(), Some(ToSupervisor::Reloading)));
        assert!(b.take_fd().is_none());
        // nobody holds the other end of the pipe any more
        assert_eq!(r.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_large_message_is_kept_until_the_peer_reads() {
        let (mut a, mut b) = pair();
        let text = "x".repeat(1 << 20);
        let (_r, w) = std::io::pipe().unwrap();
        a.send(&ToSupervisor::Reloading, &[]).unwrap();
        let reason = mod_wsgi_wire::control::RefusedReason::Internal;
        a.send(&FromSupervisor::Refused { reason, text: text.clone() }, &[w.as_fd()]).unwrap();
        assert!(a.pending() > 0);
        assert!({
            b.fill().unwrap();
            matches!(b.message().unwrap(), Some(ToSupervisor::Reloading))
        });
        let got = loop {
            a.flush().unwrap();
            b.fill().unwrap();
            if let Some(m) = b.message::<FromSupervisor>().unwrap() {
                break m;
            }
        };
        assert!(matches!(got, FromSupervisor::Refused { text: t, .. } if t == text));
        assert!(b.take_fd().is_some() && b.take_fd().is_none());
    }

    #[test]
    fn exact_reading_leaves_the_next_message() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut a = Channel::new(a).unwrap();
        a.send(&ToSupervisor::Status, &[]).unwrap();
        a.send(&ToSupervisor::Reloading, &[]).unwrap();
        assert!(matches!(receive_exact(b.as_fd()).unwrap(), (ToSupervisor::Status, f) if f.is_empty()));
        assert!(matches!(receive_exact(b.as_fd()).unwrap(), (ToSupervisor::Reloading, _)));
    }

    #[test]
    fn an_oversized_length_is_an_error_before_allocation() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut b = Channel::new(b).unwrap();
        std::io::Write::write_all(&mut a, &u32::MAX.to_le_bytes()).unwrap();
        b.fill().unwrap();
        assert!(matches!(b.message::<ToSupervisor>(), Err(Error::Message(_))));
    }
}
