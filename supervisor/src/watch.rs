//! The process `watch` of a group with reload-on-changes: it runs as the group's user, is told which files to watch and
//! says when one has changed. Events of the operating system (crate notify) tell it at once; files on file systems that
//! send none are looked at twice a second. One thread decides; notify's and the one that reads the socket feed it.
//!
//! Directories are watched rather than files: editors save by putting another file in the place of the old one.

use crate::channel::{self, receive_exact};
use crate::{exec, sys};
use mod_wsgi_wire::control::{self, Change, FromWatcher, ToWatcher};
use nix::errno::Errno;
use nix::sys::statfs::statfs;
use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// After an event that ends a change (closed, renamed, touched): others of the same save come within this time.
const SETTLE: Duration = Duration::from_millis(15);
/// After one that begins a change (created, written to): the file is being written, its end is usually told.
const WRITING: Duration = Duration::from_millis(250);
/// Nothing is held back for longer than this.
const MOST: Duration = Duration::from_secs(1);
/// Between two looks at files whose changes nobody tells.
const POLL: Duration = Duration::from_millis(500);
/// Between two looks at all: directories may have been replaced, symbolic links turned.
const SWEEP: Duration = Duration::from_secs(5);

/// Why it cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the supervisor does not say what to watch: {0}")]
    Plan(#[from] channel::Error),
    #[error("the supervisor's first message is another one")]
    Order,
    #[error(transparent)]
    User(#[from] exec::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Sys(#[from] Errno),
}

enum Input {
    Event(notify::Result<Event>),
    Order(ToWatcher),
    /// The supervisor has gone, or does not want it any more.
    End,
}

/// Runs until the supervisor closes its end.
pub fn run() -> Result<(), Error> {
    sys::close_others(&[]);
    sys::reset_signals(true);
    nix::unistd::setsid()?;
    let control = UnixStream::from(sys::take_stdin()?);
    let (ToWatcher::Begin { group }, _) = receive_exact(control.as_fd())? else { return Err(Error::Order) };
    // Best effort, as for workers.
    let _ = exec::raise_oom_score();
    exec::take_user(&group)?;
    nix::unistd::chdir("/")?;
    nix::sys::prctl::set_no_new_privs()?;
    let (sender, input) = channel();
    let reader = control.try_clone()?;
    let orders = sender.clone();
    std::thread::Builder::new().name("orders".into()).spawn(move || read_orders(&reader, &orders))?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut watcher = Watcher::new(release, sender);
    watcher.serve(&input, control)
}

fn read_orders(control: &UnixStream, to: &Sender<Input>) {
    while let Ok((order, _)) = receive_exact(control.as_fd()) {
        if to.send(Input::Order(order)).is_err() {
            return;
        }
    }
    // Without a receiver the process is ending anyway.
    let _ = to.send(Input::End);
}

/// By what one version of a file is told from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// Modification time, seconds and nanoseconds.
    mtime: (i64, i64),
    size: u64,
    inode: u64,
}

impl Mark {
    fn of(path: &Path) -> Option<Mark> {
        let m = std::fs::metadata(path).ok()?;
        Some(Mark { mtime: (m.mtime(), m.mtime_nsec()), size: m.size(), inode: m.ino() })
    }

    /// Microseconds since the epoch.
    fn micros(&self) -> u64 {
        u64::try_from(self.mtime.0.saturating_mul(1_000_000).saturating_add(self.mtime.1 / 1000)).unwrap_or(0)
    }
}

/// A directory that holds watched files.
struct Directory {
    /// Which one it was when events were asked for; `None`: they were not, or it was not there.
    watched: Option<(u64, u64)>,
    /// Events cannot be had: this is never tried again.
    silent: bool,
}

struct Watcher {
    /// `None`: no events at all.
    events: Option<RecommendedWatcher>,
    /// Why, for whoever is told.
    no_events: Option<String>,
    release: String,
    /// The files, as they were named, with the version that was last seen.
    files: BTreeMap<PathBuf, Option<Mark>>,
    /// Under which names events speak of them.
    named: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    directories: BTreeMap<PathBuf, Directory>,
    /// Files that are looked at.
    polled: BTreeSet<PathBuf>,
    /// What has been told of and is not settled yet, by the names of events; when it will be; since when.
    pending: BTreeMap<PathBuf, Instant>,
    since: Option<Instant>,
    /// Why some files are looked at; whether it has been said.
    silence: Option<String>,
    said: bool,
}

impl Watcher {
    fn new(release: String, sender: Sender<Input>) -> Watcher {
        // Nobody receives any more when the process is ending.
        let handler = move |event| drop(sender.send(Input::Event(event)));
        let (events, no_events) = match notify::recommended_watcher(handler) {
            Ok(w) => (Some(w), None),
            Err(e) => (None, Some(format!("file events cannot be had: {}", reason(&e)))),
        };
        Watcher {
            events,
            no_events,
            release,
            files: BTreeMap::new(),
            named: BTreeMap::new(),
            directories: BTreeMap::new(),
            polled: BTreeSet::new(),
            pending: BTreeMap::new(),
            since: None,
            silence: None,
            said: false,
        }
    }

    fn serve(&mut self, input: &Receiver<Input>, mut control: UnixStream) -> Result<(), Error> {
        let mut next_look = Instant::now() + POLL;
        let mut next_sweep = Instant::now() + SWEEP;
        let mut changes = Vec::new();
        loop {
            let now = Instant::now();
            if self.due().is_some_and(|due| now >= due) {
                changes.extend(self.settled());
            }
            if now >= next_sweep {
                self.sweep(&mut changes);
                next_sweep = Instant::now() + SWEEP;
            } else if now >= next_look && !self.polled.is_empty() {
                for path in self.polled.clone() {
                    changes.extend(self.look(&path));
                }
                // A slow file system is not kept busy with questions.
                next_look = Instant::now() + POLL.max(now.elapsed() * 10);
            }
            if !changes.is_empty() {
                send(&mut control, &FromWatcher::Changed { changes: std::mem::take(&mut changes) })?;
            }
            if let Some(why) = self.silence.as_ref().filter(|_| !self.said) {
                self.said = true;
                send(&mut control, &FromWatcher::Polls { why: why.clone() })?;
            }
            let look = if self.polled.is_empty() { next_sweep } else { next_look };
            let wake = self.due().map_or(next_sweep, |due| due.min(next_sweep)).min(look);
            match input.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(Input::Event(event)) => {
                    let now = Instant::now();
                    let clear = event.is_ok_and(|e| self.event(&e, now));
                    if !clear {
                        next_sweep = next_sweep.min(now + WRITING);
                    }
                }
                Ok(Input::Order(ToWatcher::Watch { files })) => {
                    changes.extend(files.iter().filter_map(|(path, loaded)| self.add(Path::new(path), *loaded)));
                }
                Ok(Input::Order(ToWatcher::Begin { .. })) => return Err(Error::Order),
                Ok(Input::End) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Watches a file besides the others. `loaded`: the modification time of the version that somebody has, 0 if that is
    /// not known; it may have changed since.
    fn add(&mut self, path: &Path, loaded: u64) -> Option<Change> {
        if !path.is_absolute() || self.files.contains_key(path) {
            return None;
        }
        // Events first, so that no version is missed in between.
        self.place(path);
        let mark = Mark::of(path);
        self.files.insert(path.to_owned(), mark);
        mark.filter(|m| loaded != 0 && m.micros() != loaded).and_then(|m| change(path, m, true))
    }

    /// Asks for events of all directories in which a file can change: its own and, for a symbolic link, the target's;
    /// what is a directory itself has entries that come and go.
    fn place(&mut self, path: &Path) {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
        let parent = parent.canonicalize().unwrap_or_else(|_| parent.to_owned());
        let mut names = vec![parent.join(name)];
        names.extend(path.canonicalize().ok().filter(|target| *target != names[0]));
        let mut events = true;
        for name in names {
            let itself = name.is_dir().then(|| name.clone());
            for directory in name.parent().map(Path::to_owned).into_iter().chain(itself) {
                events &= self.watch(&directory);
            }
            self.named.entry(name).or_default().insert(path.to_owned());
        }
        if !events {
            self.polled.insert(path.to_owned());
        }
    }

    /// Asks for events of a directory. `false`: there are none, or it is not there (yet).
    fn watch(&mut self, directory: &Path) -> bool {
        let now = std::fs::metadata(directory).ok().filter(|m| m.is_dir()).map(|m| (m.dev(), m.ino()));
        let known = self.directories.get(directory);
        if let Some(d) = known
            && (d.silent || d.watched == now)
        {
            return !d.silent && now.is_some();
        }
        if let (Some(Directory { watched: Some(_), .. }), Some(events)) = (known, &mut self.events) {
            // Another directory is in its place. notify may have noticed already that the watched one has gone.
            let _ = events.unwatch(directory);
        }
        let result = match (now, &mut self.events) {
            (None, _) => Ok(false),
            (Some(_), None) => Err(self.no_events.clone().unwrap_or_default()),
            (Some(_), Some(events)) => match silent(directory, &self.release) {
                Some(why) => Err(format!("there are no events of changes in {directory:?}: {why}")),
                None => match events.watch(directory, RecursiveMode::NonRecursive) {
                    Ok(()) => Ok(true),
                    Err(e) if matches!(e.kind, notify::ErrorKind::PathNotFound) => Ok(false),
                    Err(e) => Err(format!("events of changes in {directory:?} cannot be had: {}", reason(&e))),
                },
            },
        };
        let events = matches!(result, Ok(true));
        let watched = if events { now } else { None };
        self.directories.insert(directory.to_owned(), Directory { watched, silent: result.is_err() });
        if let Err(why) = result {
            self.silence.get_or_insert(why);
        }
        events
    }

    /// Notes what an event tells of. `false`: everything should be looked at.
    fn event(&mut self, event: &Event, now: Instant) -> bool {
        if event.need_rescan() {
            return false;
        }
        let wait = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Remove(_) => SETTLE,
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => return true,
            EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Metadata(_)) => SETTLE,
            EventKind::Create(_) | EventKind::Modify(_) => WRITING,
            EventKind::Access(_) | EventKind::Any | EventKind::Other => return true,
        };
        let mut clear = true;
        for path in &event.paths {
            let parent = path.parent().filter(|p| self.named.contains_key(*p));
            let source = || path.extension().is_some_and(|e| e == "py");
            if self.named.contains_key(path) || source() {
                self.pending.insert(path.clone(), now + wait);
                self.since.get_or_insert(now);
            }
            if let Some(directory) = parent {
                self.pending.insert(directory.to_owned(), now + wait);
                self.since.get_or_insert(now);
            }
            let replaced = matches!(event.kind, EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)));
            clear &= !(replaced && self.directories.contains_key(path));
        }
        clear
    }

    /// When what is pending will have settled.
    fn due(&self) -> Option<Instant> {
        let last = self.pending.values().max()?;
        Some(self.since.map_or(*last, |since| (*last).min(since + MOST)))
    }

    /// What has changed of that which was pending.
    fn settled(&mut self) -> Vec<Change> {
        self.since = None;
        let mut changes = Vec::new();
        for name in std::mem::take(&mut self.pending).into_keys() {
            match self.named.get(&name).cloned() {
                Some(files) => changes.extend(files.iter().filter_map(|f| self.look(f))),
                None => changes.extend(Mark::of(&name).and_then(|mark| change(&name, mark, false))),
            }
        }
        changes
    }

    /// Compares a file with how it was. One that has gone is waited for: it may come back as it was, or another.
    fn look(&mut self, path: &Path) -> Option<Change> {
        let now = Mark::of(path)?;
        let before = self.files.get_mut(path)?;
        if before.replace(now) == Some(now) {
            return None;
        }
        change(path, now, true)
    }

    /// Looks at everything; asks for events of directories that are new in their place.
    fn sweep(&mut self, changes: &mut Vec<Change>) {
        let directories: Vec<PathBuf> = self.directories.keys().cloned().collect();
        for directory in directories {
            // What is not there leaves its files as they are, until it comes.
            self.watch(&directory);
        }
        let all: Vec<PathBuf> = self.files.keys().cloned().collect();
        for path in &all {
            let changed = self.look(path);
            if changed.is_some() || self.polled.contains(path) {
                self.polled.remove(path);
                self.place(path);
            }
            changes.extend(changed);
        }
    }
}

fn change(path: &Path, mark: Mark, watched: bool) -> Option<Change> {
    // Names came as text; a new file may have another.
    Some(Change { path: path.to_str()?.to_owned(), mtime: mark.micros(), watched })
}

fn send(control: &mut UnixStream, message: &FromWatcher) -> Result<(), Error> {
    let bytes = control::encode(message).map_err(channel::Error::from)?;
    Ok(control.write_all(&bytes)?)
}

/// An error of notify without its paths.
fn reason(e: &notify::Error) -> String {
    match &e.kind {
        notify::ErrorKind::MaxFilesWatch => "the limit of watches is reached (fs.inotify.max_user_watches)".to_owned(),
        notify::ErrorKind::Io(e) if e.raw_os_error() == Some(libc::EMFILE) => {
            "the limit of watchers is reached (fs.inotify.max_user_instances)".to_owned()
        }
        notify::ErrorKind::Io(e) => e.to_string(),
        _ => e.to_string(),
    }
}

/// Why the system tells nothing of changes in a directory.
fn silent(directory: &Path, release: &str) -> Option<String> {
    // Where that cannot be asked, asking for events will say why.
    let kind = statfs(directory).ok()?.filesystem_type().0;
    silence(u32::try_from(kind & 0xffff_ffff).unwrap_or(0), release)
}

/// The same for the number of a file system as of statfs(2) and the release of the kernel.
fn silence(kind: u32, release: &str) -> Option<String> {
    // The first generation of WSL has no Linux kernel; in the second one Linux's own file systems are as usual, and
    // those of Windows are 9p.
    if release.trim_end().ends_with("-Microsoft") {
        return Some("this is WSL 1".to_owned());
    }
    let name = match kind {
        0x0102_1997 => "9p, which WSL and virtual machines have for the files of their host",
        0x6969 => "NFS",
        0xff53_4d42 | 0x517b | 0xfe53_4d42 => "SMB",
        0x6573_5546 => "FUSE or virtiofs",
        0x00c3_6400 => "Ceph",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x7461_636f => "OCFS2",
        0x0116_1970 => "GFS2",
        0x0bd0_0bd0 => "Lustre",
        0x786f_4256 => "a shared folder of VirtualBox",
        0xbacb_acbc => "a shared folder of VMware",
        0x7c7c_6673 => "a shared folder of Parallels",
        _ => return None,
    };
    Some(format!("its file system is {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_whose_changes_nobody_tells() {
        let linux = "6.1.0-18-amd64\n";
        assert_eq!(silence(0xef53, linux), None, "ext4");
        assert_eq!(silence(0x0102_1994, linux), None, "tmpfs");
        assert_eq!(silence(0x794c_7630, linux), None, "overlay");
        assert!(silence(0x6969, linux).unwrap().contains("NFS"));
        assert!(silence(0xfe53_4d42, linux).unwrap().contains("SMB"));
        assert!(silence(0xef53, "4.4.0-19041-Microsoft\n").unwrap().contains("WSL 1"));
        let second = "5.15.90.1-microsoft-standard-WSL2\n";
        assert_eq!(silence(0xef53, second), None);
        assert!(silence(0x0102_1997, second).unwrap().contains("9p"));
    }

    /// A watcher of its own thread, and a directory.
    struct Bench {
        directory: PathBuf,
        sender: Sender<Input>,
        theirs: UnixStream,
        thread: Option<std::thread::JoinHandle<Result<(), Error>>>,
    }

    impl Bench {
        fn new(name: &str) -> Bench {
            let directory = std::env::temp_dir().join(format!("mwr-watch-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&directory);
            std::fs::create_dir_all(directory.join("package")).unwrap();
            let directory = directory.canonicalize().unwrap();
            let (sender, input) = channel();
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut watcher = Watcher::new(String::new(), sender.clone());
            let thread = Some(std::thread::spawn(move || watcher.serve(&input, ours)));
            Bench { directory, sender, theirs, thread }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.join(name)
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.path(name), text).unwrap();
        }

        fn watch(&self, names: &[&str]) {
            let files = names.iter().map(|n| (self.path(n).to_str().unwrap().to_owned(), 0)).collect();
            self.sender.send(Input::Order(ToWatcher::Watch { files })).unwrap();
        }

        /// The next files that have changed, and whether they are those to watch.
        fn changed(&mut self) -> Vec<(String, bool)> {
            let (message, _) = receive_exact::<FromWatcher>(self.theirs.as_fd()).expect("a message within 20 s");
            let FromWatcher::Changed { changes } = message else { panic!("{message:?}") };
            let name =
                |c: &Change| Path::new(&c.path).strip_prefix(&self.directory).unwrap().to_str().unwrap().to_owned();
            changes.iter().map(|c| (name(c), c.watched)).collect()
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = self.sender.send(Input::End);
            let result = self.thread.take().map(std::thread::JoinHandle::join);
            let _ = std::fs::remove_dir_all(&self.directory);
            assert!(std::thread::panicking() || matches!(result, Some(Ok(Ok(())))));
        }
    }

    /// The order to watch is carried out by the other thread: changed until it is seen.
    fn until_seen(bench: &mut Bench, name: &str) {
        bench.theirs.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        for n in 0.. {
            assert!(n < 400, "{name} is not watched");
            bench.write(name, &format!("seen {n}"));
            if let Ok((FromWatcher::Changed { changes }, _)) = receive_exact(bench.theirs.as_fd()) {
                assert!(changes.iter().all(|c| c.path.ends_with(name)));
                break;
            }
        }
        // A change before the last one may be told of together with it, or after it.
        while receive_exact::<FromWatcher>(bench.theirs.as_fd()).is_ok() {}
        bench.theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }

    #[test]
    fn every_way_to_save_is_seen_and_each_once() {
        let mut b = Bench::new("save");
        for name in ["a.py", "b.py", "package/c.py"] {
            b.write(name, "before");
        }
        std::os::unix::fs::symlink(b.path("b.py"), b.path("package/link.py")).unwrap();
        b.watch(&["a.py", "package/c.py", "package/link.py", "package/later.txt"]);
        until_seen(&mut b, "a.py");
        b.write("a.py", "truncated and written");
        assert_eq!(b.changed(), [("a.py".into(), true)]);
        b.write("a.py.new", "another file in its place");
        std::fs::rename(b.path("a.py.new"), b.path("a.py")).unwrap();
        assert_eq!(b.changed(), [("a.py".into(), true)]);
        std::fs::remove_file(b.path("package/c.py")).unwrap();
        b.write("package/c.py", "deleted and made anew");
        assert_eq!(b.changed(), [("package/c.py".into(), true)]);
        b.write("b.py", "the target of a link");
        let changed = b.changed();
        assert!(changed.contains(&("package/link.py".into(), true)), "{changed:?}");
        b.write("package/later.txt", "was not there");
        assert_eq!(b.changed(), [("package/later.txt".into(), true)]);
        // Moved away and back: the same file. A source file beside the watched ones is told of as such.
        std::fs::rename(b.path("a.py"), b.path("a.bak")).unwrap();
        std::fs::rename(b.path("a.bak"), b.path("a.py")).unwrap();
        b.write("package/new.py", "nobody has named it");
        assert_eq!(b.changed(), [("package/new.py".into(), false)]);
    }

    #[test]
    fn a_file_that_is_being_written_is_waited_for() {
        let mut w = Watcher::new(String::new(), channel().0);
        let file = std::env::temp_dir().join(format!("mwr-watch-being-written-{}.py", std::process::id()));
        w.add(&file, 0);
        let file = w.named.keys().next().unwrap().clone();
        let mut tell = |kind: EventKind, at: Instant| {
            assert!(w.event(&Event::new(kind).add_path(file.clone()), at));
            w.due()
        };
        let start = Instant::now();
        let after = |ms: u64| start + Duration::from_millis(ms);
        let written = EventKind::Modify(ModifyKind::Data(notify::event::DataChange::Any));
        assert_eq!(tell(EventKind::Access(AccessKind::Open(AccessMode::Any)), start), None);
        assert_eq!(tell(written, start), Some(start + WRITING));
        assert_eq!(tell(written, after(200)), Some(after(200) + WRITING), "not before a pause");
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        assert_eq!(tell(closed, after(210)), Some(after(210) + SETTLE), "or its end");
        assert_eq!(tell(written, after(990)), Some(start + MOST), "nor for ever");
    }

    #[test]
    fn a_directory_that_is_replaced_is_watched_again() {
        let mut b = Bench::new("replaced");
        b.write("a.py", "before");
        b.write("package/c.py", "before");
        b.watch(&["a.py", "package/c.py"]);
        until_seen(&mut b, "a.py");
        std::fs::rename(b.path("package"), b.path("old")).unwrap();
        std::fs::create_dir(b.path("package")).unwrap();
        b.write("package/c.py", "in a new directory");
        assert!(b.changed().contains(&("package/c.py".into(), true)));
        // By an event: sooner than the next look at everything.
        let began = Instant::now();
        b.write("package/c.py", "once more");
        assert!(b.changed().contains(&("package/c.py".into(), true)));
        assert!(began.elapsed() < SWEEP / 2, "{:?}", began.elapsed());
    }

    #[test]
    fn files_without_events_are_looked_at() {
        let mut b = Bench::new("polled");
        std::fs::create_dir(b.path("absent")).unwrap();
        std::fs::remove_dir(b.path("absent")).unwrap();
        b.write("a.py", "before");
        b.watch(&["a.py", "absent/deep/d.py"]);
        until_seen(&mut b, "a.py");
        let began = Instant::now();
        std::fs::create_dir_all(b.path("absent/deep")).unwrap();
        b.write("absent/deep/d.py", "nobody tells of this");
        assert_eq!(b.changed(), [("absent/deep/d.py".into(), true)]);
        assert!(began.elapsed() < SWEEP / 2, "{:?}", began.elapsed());
    }

    #[test]
    fn a_version_other_than_the_loaded_one_is_news() {
        let mut w = Watcher::new(String::new(), channel().0);
        let file = std::env::temp_dir().join(format!("mwr-watch-loaded-{}.py", std::process::id()));
        std::fs::write(&file, "now").unwrap();
        let mtime = Mark::of(&file).unwrap().micros();
        let news = |w: &mut Watcher, loaded| w.add(&file, loaded).map(|c| (c.mtime, c.watched));
        assert_eq!(news(&mut w, mtime - 1), Some((mtime, true)), "saved while it was being loaded");
        assert_eq!(news(&mut w, mtime - 1), None, "that was said");
        assert_eq!(news(&mut Watcher::new(String::new(), channel().0), mtime), None);
        assert_eq!(news(&mut Watcher::new(String::new(), channel().0), 0), None, "nobody knows");
        std::fs::remove_file(&file).unwrap();
    }
}
