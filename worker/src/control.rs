//! The control thread: the supervisor's orders, the heartbeat, log records, the deadline of an exit. It never attaches
//! to the interpreter, so that "the GIL is held" and "the process is dead" can be told apart from outside.

use crate::shared::Shared;
use crate::sys;
use mod_wsgi_wire::control::{self, ToWorker};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const BEAT: Duration = Duration::from_secs(1);

/// The supervisor's end of the control socket.
enum Link {
    Open,
    /// Gone since then.
    Lost(Instant),
}

struct Control {
    shared: &'static Shared,
    link: Link,
    next_beat: Instant,
    input: Vec<u8>,
    /// A message under way and how much of it has been sent.
    output: Option<(Vec<u8>, usize)>,
}

/// Starts the thread.
pub fn spawn(shared: &'static Shared) -> std::io::Result<()> {
    let run = move || {
        let mut control =
            Control { shared, link: Link::Open, next_beat: Instant::now(), input: Vec::new(), output: None };
        loop {
            control.turn();
        }
    };
    std::thread::Builder::new().name("wsgi-control".into()).stack_size(256 * 1024).spawn(run).map(drop)
}

impl Control {
    fn turn(&mut self) {
        let now = Instant::now();
        if now >= self.next_beat {
            self.next_beat = now + BEAT;
            self.shared.table.beat(self.shared.plan.slot);
            self.shared.sweep(now);
            // Also after an accept that failed for want of descriptors.
            self.shared.rearm_listener();
        }
        let mut wake = self.next_beat.min(self.shared.check_clocks(now));
        if let Some(exit) = self.shared.exit() {
            if now >= exit.deadline {
                sys::exit_now(1);
            }
            wake = wake.min(exit.deadline);
        } else if let Link::Lost(since) = self.link {
            let span = |s: f64| Duration::from_secs_f64(if s.is_finite() { s.clamp(0.0, 1e6) } else { 0.0 });
            let orphan = span(self.shared.plan.orphan_timeout);
            let graceful = span(self.shared.plan.graceful_timeout);
            if now.duration_since(since) >= orphan {
                self.shared.send_back();
                if self.shared.inside() == 0 || now.duration_since(since) >= orphan + graceful {
                    let time = self.shared.plan.shutdown_timeout.clamp(0.1, 1e6);
                    self.shared.request_exit("shutdown_signal", Duration::from_secs_f64(time));
                }
            }
        }
        self.flush();
        self.wait(wake.saturating_duration_since(now));
    }

    fn wait(&mut self, time: Duration) {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, self.output.is_some());
        let timeout = PollTimeout::try_from(time.as_millis() as i32 + 1).unwrap_or(PollTimeout::ZERO);
        let mut fds = vec![PollFd::new(self.shared.wake_control.1.as_fd(), PollFlags::POLLIN)];
        if matches!(self.link, Link::Open) {
            fds.push(PollFd::new(self.shared.control.as_fd(), flags));
        }
        // An error (EINTR) leaves no event set, and the next turn looks again.
        let _ = poll(&mut fds, timeout);
        if fds[0].any().unwrap_or(false) {
            let mut drop = [0; 64];
            let _ = nix::unistd::read(&self.shared.wake_control.1, &mut drop);
        }
        if fds.get(1).and_then(|f| f.revents()).is_some_and(|r| r.intersects(!PollFlags::POLLOUT)) {
            self.receive();
        }
    }

    fn receive(&mut self) {
        let mut buf = [0; 4096];
        match recv(self.shared.control.raw(), &mut buf, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return self.lost(),
            Ok(n) => self.input.extend_from_slice(&buf[..n]),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return,
            Err(_) => return self.lost(),
        }
        loop {
            match control::decode::<ToWorker>(&self.input) {
                Ok(None) => return,
                Ok(Some((message, used))) => {
                    self.input.drain(..used);
                    match message {
                        // The table decides what may still run; only those who wait for new code must know.
                        ToWorker::Drain => self.shared.reload.leave(),
                        ToWorker::Stay => self.shared.reload.stay(),
                        ToWorker::Stacks => sys::signal_stacks(),
                        ToWorker::Exit { timeout, reason } => {
                            let time = if timeout.is_finite() { timeout.clamp(0.0, 1e6) } else { 5.0 };
                            self.shared.request_exit(&reason, Duration::from_secs_f64(time));
                        }
                    }
                }
                Err(e) => {
                    eprintln!("MWR0428: control message from the supervisor is not understood: {e}");
                    return self.lost();
                }
            }
        }
    }

    fn flush(&mut self) {
        if !matches!(self.link, Link::Open) {
            return;
        }
        loop {
            if self.output.is_none() {
                self.output = self.shared.next_message().map(|m| (m, 0));
            }
            let Some((message, sent)) = &mut self.output else {
                self.shared.sent_all();
                return;
            };
            match send(self.shared.control.raw(), &message[*sent..], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => {
                    *sent += n;
                    if *sent == message.len() {
                        self.output = None;
                    }
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return,
                Err(_) => return self.lost(),
            }
        }
    }

    fn lost(&mut self) {
        if matches!(self.link, Link::Open) {
            self.link = Link::Lost(Instant::now());
            self.output = None;
            self.shared.close_queue();
        }
    }
}
