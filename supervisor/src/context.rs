//! What every part of the supervisor needs: the log, the keeper, the run directory and a few facts.

use crate::channel::{self, Channel};
use crate::held::{ProcessId, ToKeeper};
use crate::log::Log;
use crate::memory;
use crate::rundir::RunDir;
use crate::worker::Output;
use mod_wsgi_wire::frame::Level;
use serde::Serialize;
use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::Child;

/// Pipes kept open for descendants of dead workers.
const MAX_STRAYS: usize = 64;

/// Shared by all pools of a supervisor.
pub struct Context {
    pub log: Log,
    /// `None`: the keeper was killed; everything goes on without it.
    pub keeper: Option<Channel>,
    pub run: RunDir,
    /// Where this program lies on disk.
    pub executable: PathBuf,
    /// Directory of the worker files.
    pub worker_dir: PathBuf,
    pub server_uid: u32,
    pub server_gid: u32,
    /// Workers that may start at once over all pools.
    pub max_starting: usize,
    /// Workers that have begun to start a short while ago.
    pub starting: usize,
    /// Groups in which a worker with stuck requests is being replaced.
    pub stuck: BTreeSet<(ProcessId, String)>,
    /// Soft limit of open files that workers get.
    pub descriptors: Option<u64>,
    /// Processes killed for want of memory, when last looked at.
    pub oom_kills: Option<u64>,
    /// Output of processes that outlive their worker: subprocesses that inherited its stdout or stderr.
    pub strays: Vec<Output>,
    /// Watchers that were told to end.
    pub ended: Vec<Child>,
}

impl Context {
    /// Gives the keeper a record to hold for the next supervisor.
    pub fn hold<T: Serialize>(&mut self, key: &str, record: &T, fds: &[BorrowedFd<'_>]) {
        match serde_json::to_string(record) {
            Ok(record) => self.tell(&ToKeeper::Hold { key: key.to_owned(), record, fds: fds.len() }, fds),
            Err(e) => self.log.event(Level::Error, &format!("MWR0303: record {key:?} cannot be written: {e}")),
        }
    }

    /// Lets the keeper forget a record.
    pub fn forget(&mut self, key: &str) {
        self.tell(&ToKeeper::Forget { key: key.to_owned() }, &[]);
    }

    /// Sends the keeper a message.
    pub fn tell(&mut self, message: &ToKeeper, fds: &[BorrowedFd<'_>]) {
        if let Some(k) = &mut self.keeper
            && let Err(e) = k.send(message, fds)
        {
            match e {
                channel::Error::Message(e) => {
                    self.log.event(Level::Error, &format!("MWR0303: a record cannot be given to the keeper: {e}"));
                }
                e => self.keeper_gone(&e.to_string()),
            }
        }
    }

    /// The keeper cannot be reached any more.
    pub fn keeper_gone(&mut self, why: &str) {
        if self.keeper.take().is_some() {
            let text = format!("MWR0304: the keeper has gone ({why}); the next restart of the server starts a new one");
            self.log.event(Level::Warn, &text);
        }
    }

    /// Whether processes have been killed for want of memory since it was last asked.
    pub fn out_of_memory(&mut self) -> bool {
        let now = memory::oom_kills();
        let before = std::mem::replace(&mut self.oom_kills, now);
        matches!((before, now), (Some(before), Some(now)) if now > before)
    }

    /// Keeps the output of a dead worker's descendants readable.
    pub fn keep_output(&mut self, output: Output) {
        if self.strays.len() == MAX_STRAYS {
            self.strays.remove(0);
        }
        self.strays.push(output);
    }
}
