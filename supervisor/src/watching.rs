//! The supervisor's side of reload-on-changes: starts the process `watch` of a pool, tells it which files the workers'
//! code came from, and begins a new epoch when one has changed.

use crate::backoff::Backoff;
use crate::channel::{self, Channel};
use crate::context::Context;
use crate::pool::Pool;
use crate::worker::Output;
use mod_wsgi_wire::control::{Change, FromWatcher, Group, ToWatcher};
use mod_wsgi_wire::frame::Level;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Most files watched for one pool.
const MAX_FILES: usize = 20_000;
/// Files in one message.
const CHUNK: usize = 500;
/// Longest path.
const MAX_PATH: usize = 4096;

/// What is watched for a pool, and who does it.
pub struct Watching {
    process: Option<Process>,
    /// What workers have reported, those included that could not load their code, with the versions that were loaded or
    /// seen last.
    files: BTreeMap<String, u64>,
    backoff: Backoff,
    /// It has been said that it is on.
    announced: bool,
    /// It has been said that there are too many files.
    full: bool,
}

struct Process {
    child: Child,
    control: Channel,
    /// What it was started for.
    group: Rc<Group>,
}

impl Watching {
    pub fn new() -> Watching {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        Watching { process: None, files: BTreeMap::new(), backoff, announced: false, full: false }
    }

    /// Its connection, for poll(2); whether something waits to be sent.
    pub fn connection(&self) -> Option<(BorrowedFd<'_>, bool)> {
        self.process.as_ref().map(|p| (p.control.as_fd(), p.control.pending() > 0))
    }
}

impl Pool {
    /// Starts and ends the watcher.
    pub(crate) fn step_watching(&mut self, now: Instant, cx: &mut Context, next: &mut Instant) {
        let wanted = self.group.reload_on_changes && self.is_current() && self.target > 0;
        let fits = |p: &Process| wanted && *p.group == *self.group;
        if let Some(process) = self.watching.process.take_if(|p| !fits(p)) {
            end(process, cx);
        }
        if !wanted || self.watching.process.is_some() {
            return;
        }
        if let Some(until) = self.watching.backoff.until(now) {
            *next = (*next).min(until);
            return;
        }
        if !std::mem::replace(&mut self.watching.announced, true) {
            let text = format!("{} loads new code when files change (reload-on-changes, for development)", self.name());
            cx.log.event(Level::Notice, &text);
        }
        match self.start_watching(cx) {
            Ok(process) => self.watching.process = Some(process),
            Err(e) => self.watching_failed(now, cx, &format!("it cannot be started: {e}")),
        }
    }

    fn start_watching(&self, cx: &mut Context) -> Result<Process, channel::Error> {
        let io = |e: std::io::Error| nix::Error::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
        let (control, theirs) = UnixStream::pair().map_err(io)?;
        let (err_read, err_write) = std::io::pipe().map_err(io)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0(&cx.executable).arg("watch").env_clear().current_dir("/");
        command.stdin(std::os::fd::OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(err_write);
        let mut control = Channel::without_descriptors(control).map_err(io)?;
        let child = command.spawn().map_err(io)?;
        // From here on it ends by itself should anything fail: it reads the end of its socket, and is reaped as one that
        // has ended.
        if let Ok(output) = Output::new(err_read.into(), Level::Warn, child.id() as i32) {
            cx.keep_output(output);
        }
        let extra = self.group.reload_extra_files.iter().map(|f| (f.clone(), 0));
        let files: Vec<_> = self.watching.files.clone().into_iter().chain(extra).collect();
        // It needs to know whose user to be, not what may be secret.
        let group = Box::new(Group { env: BTreeMap::new(), ..(*self.group).clone() });
        let mut sent = control.send(&ToWatcher::Begin { group }, &[]);
        for chunk in files.chunks(CHUNK) {
            sent = sent.and_then(|()| control.send(&ToWatcher::Watch { files: chunk.to_vec() }, &[]));
        }
        let process = Process { child, control, group: self.group.clone() };
        match sent {
            Ok(()) => Ok(process),
            Err(e) => {
                end(process, cx);
                Err(e)
            }
        }
    }

    fn watching_failed(&mut self, now: Instant, cx: &mut Context, what: &str) {
        let wait = self.watching.backoff.fail(now).as_secs_f64();
        let text =
            format!("MWR0320: changes of the files of {} are not seen: {what}; again in {wait:.0} s", self.name());
        cx.log.event(Level::Error, &text);
    }

    /// Takes the files a worker's code came from.
    pub(crate) fn watch_files(&mut self, files: Vec<(String, u64)>, cx: &mut Context) {
        if !self.group.reload_on_changes {
            return;
        }
        let mut new = Vec::new();
        for (file, loaded) in files {
            let fits = file.starts_with('/') && file.len() <= MAX_PATH && !file.contains('\0');
            if !fits || self.watching.files.contains_key(&file) {
                continue;
            }
            if self.watching.files.len() == MAX_FILES {
                if !std::mem::replace(&mut self.watching.full, true) {
                    let text =
                        format!("MWR0321: {} has more than {MAX_FILES} files; the others are not watched", self.name());
                    cx.log.event(Level::Warn, &text);
                }
                break;
            }
            self.watching.files.insert(file.clone(), loaded);
            new.push((file, loaded));
        }
        let Some(process) = &mut self.watching.process else { return };
        for chunk in new.chunks(CHUNK) {
            // One that cannot be reached ends, and the next one is told all.
            let _ = process.control.send(&ToWatcher::Watch { files: chunk.to_vec() }, &[]);
        }
    }

    /// Reads what the watcher says.
    pub(crate) fn read_watcher(&mut self, now: Instant, cx: &mut Context) {
        let Some(process) = &mut self.watching.process else { return };
        let mut messages = Vec::new();
        let mut result = process.control.flush().and_then(|()| process.control.fill());
        while result.is_ok() {
            match process.control.message::<FromWatcher>() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(e) => result = Err(e),
            }
        }
        for message in messages {
            match message {
                FromWatcher::Changed { changes } => self.files_changed(&changes, cx),
                FromWatcher::Polls { why } => {
                    let text = format!("MWR0322: {}: {why}; such files are looked at every 0.5 s instead", self.name());
                    cx.log.event(Level::Warn, &text);
                }
            }
        }
        if let Err(e) = result
            && let Some(process) = self.watching.process.take()
        {
            let how = if let channel::Error::Closed = e { "it has ended".to_owned() } else { e.to_string() };
            end(process, cx);
            self.watching_failed(now, cx, &how);
        }
    }

    /// A new epoch, unless it is for these very versions that the present one began.
    fn files_changed(&mut self, changes: &[Change], cx: &mut Context) {
        for c in changes {
            self.watching.files.entry(c.path.clone()).and_modify(|seen| *seen = c.mtime);
        }
        let failed = self.workers.values().any(|w| w.epoch == self.epoch && w.load_errors().next().is_some());
        let failed = failed || self.blocked;
        let news = |c: &&Change| (c.watched || failed) && self.touched.get(&c.path) != Some(&c.mtime);
        let news: Vec<&Change> = changes.iter().filter(news).collect();
        let Some(first) = news.first() else { return };
        let more = if news.len() > 1 { format!(" and {} more", news.len() - 1) } else { String::new() };
        cx.log.event(Level::Info, &format!("{} reloads: {:?} has changed{more}", self.name(), first.path));
        self.new_epoch("script_reload");
        // A request that comes with the same version of a script says nothing new.
        let scripts = self.scripts.iter().map(|(s, _)| s).chain(self.preload.iter().map(|p| &p.script));
        let scripts: BTreeSet<&String> = scripts.collect();
        self.touched.extend(news.iter().filter(|c| scripts.contains(&c.path)).map(|c| (c.path.clone(), c.mtime)));
    }
}

/// Lets a watcher end; it is reaped when it has.
fn end(process: Process, cx: &mut Context) {
    let Process { mut child, .. } = process;
    // It may wait for a file system that does not answer: then it ends when that does, and nobody waits for it.
    let _ = child.kill();
    cx.ended.push(child);
}

/// Reaps watchers that have ended.
pub fn reap(cx: &mut Context) {
    cx.ended.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}
