//! What one generation of a server's configuration means at run time: the run directory, the groups requests may use,
//! the connection to the supervisor. Made in the server's parent, inherited by its request-serving processes.

use crate::config::{self, Alias, DirConfig, GroupError, ServerConfig, Surroundings};
use crate::interpreter;
use crate::link::{ControlStream, Link, LinkError};
use crate::options::GroupOptions;
use crate::pool::Limits;
use mod_wsgi_wire::control::{Config, FromSupervisor, Group, Preload, Secret, ToSupervisor};
use mod_wsgi_wire::frame::Level;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A group as requests see it.
pub struct GroupEntry {
    /// `None`: the group cannot run as configured (said at the restart); its requests get 503.
    pub limits: Option<Limits>,
    /// ServerName of the virtual host that declares it; `None` = usable from everywhere.
    pub host: Option<Vec<u8>>,
}

/// One generation.
pub struct Runtime {
    pub groups: HashMap<String, GroupEntry>,
    dir: OwnedFd,
    secret: Secret,
    /// The parent's connection; children close their copy.
    master: Mutex<Option<ControlStream>>,
    /// The child's link, made in child_init.
    link: OnceLock<Arc<Link>>,
    parent: AtomicU32,
    /// This process's id; 0 until child_init.
    process: AtomicU32,
}

/// One server or virtual host, as far as groups are concerned.
pub struct Site<'a> {
    /// The settings are this server's own, not shared with one before it.
    pub own: bool,
    pub settings: &'a ServerConfig,
    pub defaults: Option<&'a DirConfig>,
    /// ServerName, for virtual hosts.
    pub virtual_name: Option<Vec<u8>>,
}

/// A group declaration with where it was made.
pub struct Declared {
    pub options: GroupOptions,
    pub host: Option<Vec<u8>>,
}

/// Every declared group and the automatic one. Names are unique over the whole server.
pub fn declared(sites: &[Site<'_>]) -> Result<Vec<Declared>, String> {
    let mut all: Vec<Declared> = Vec::new();
    for site in sites.iter().filter(|s| s.own) {
        for o in &site.settings.groups {
            if all.iter().any(|d| d.options.name == o.name) {
                return Err(format!(
                    "WSGIDaemonProcess {}: the name is used twice; choose another for one of them",
                    o.name
                ));
            }
            all.push(Declared { options: o.clone(), host: site.virtual_name.clone() });
        }
    }
    if let Some(main) = sites.first() {
        all.push(Declared { options: config::automatic_group(main.settings), host: None });
    }
    Ok(all)
}

/// Interpreters that have been run, by path and user: each is run once, however many groups share it.
#[derive(Default)]
pub struct Interpreters(HashMap<(String, u32), Option<interpreter::Interpreter>>);

impl Interpreters {
    /// Runs the interpreter of a group, unless that has been done. As the group's user, never as root: whoever can
    /// write to a virtual environment decides what its interpreter does.
    pub fn check(&mut self, group: &Group, root: bool) -> Result<(), GroupError> {
        let key = (group.python.clone(), group.uid);
        if self.0.contains_key(&key) {
            // A second group with a bad one is not told again.
            return Ok(());
        }
        let user = root.then_some(interpreter::RunAs { uid: group.uid, gid: group.gid });
        match interpreter::check(Path::new(&group.python), user) {
            Ok(found) => {
                self.0.insert(key, Some(found));
                Ok(())
            }
            Err(source) => {
                self.0.insert(key, None);
                Err(GroupError::Interpreter { group: group.name.clone(), source })
            }
        }
    }

    /// What was found, each interpreter once.
    pub fn found(&self) -> impl Iterator<Item = &interpreter::Interpreter> {
        self.0.values().flatten()
    }
}

/// The groups of a configuration that comes into force, for requests and for the supervisor.
#[derive(Default)]
pub struct Groups {
    pub entries: HashMap<String, GroupEntry>,
    pub wanted: Vec<Group>,
    /// Longest shutdown-timeout, seconds.
    pub longest: f64,
}

impl Groups {
    /// What is declared, as it can run. `used`: whether requests can choose that group at all; `warn` gets what an
    /// administrator is to hear, in httpd's words.
    pub fn of(
        declared: Vec<Declared>,
        around: &Surroundings,
        used: impl Fn(&GroupOptions) -> bool,
        mut warn: impl FnMut(&str),
    ) -> Groups {
        let mut all = Groups::default();
        for Declared { options: o, host } in declared {
            if !o.without_effect.is_empty() {
                let list = o.without_effect.join(", ");
                warn(&format!("MWR0105: WSGIDaemonProcess {}: without effect in this version: {list}", o.name));
            }
            let limits = match config::resolve(&o, around) {
                Ok(group) => {
                    all.longest = all.longest.max(group.shutdown_timeout);
                    let files = o.pass_files.unwrap_or(group.uid == around.server_uid);
                    all.wanted.push(group);
                    Some(Limits { files, ..config::limits(&o) })
                }
                Err(e) => {
                    if used(&o) {
                        warn(&format!("MWR0106: group answers 503: {e}"));
                    }
                    None
                }
            };
            all.entries.insert(o.name, GroupEntry { limits, host });
        }
        all
    }
}

/// Whether the automatic group can be chosen at all, and therefore must be able to run.
pub fn needs_automatic(sites: &[Site<'_>]) -> bool {
    sites.iter().any(|s| {
        let outer = s.defaults.cloned().unwrap_or_default();
        s.settings.restrict_embedded != Some(true)
            && s.settings
                .aliases
                .iter()
                .any(|a| outer.merged(&a.dir).process_group.as_ref().is_none_or(|g| g.literal() == Some("")))
    })
}

fn preload_of(alias: &Alias, outer: &DirConfig) -> Option<Preload> {
    let d = outer.merged(&alias.dir);
    let script = alias.single_script()?;
    let callable = d.callable_object.as_deref().unwrap_or("application");
    if callable.starts_with("%{") {
        return None;
    }
    Some(Preload {
        group: d.process_group.as_ref().map_or(Some(""), |g| g.literal())?.to_owned(),
        application: d.application_group.as_ref()?.literal()?.to_owned(),
        script: script.to_owned(),
        callable: callable.to_owned(),
    })
}

/// Scripts whose groups configuration alone decides: workers load them before they are ready.
pub fn preloads(sites: &[Site<'_>]) -> Vec<Preload> {
    let mut all: Vec<Preload> = Vec::new();
    for site in sites {
        let outer = site.defaults.cloned().unwrap_or_default();
        all.extend(site.settings.aliases.iter().filter_map(|a| preload_of(a, &outer)));
    }
    all.sort();
    all.dedup();
    all
}

/// The environment the server was started with.
pub fn environ() -> BTreeMap<String, String> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// What can go wrong when the supervisor is started or told.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("MWR0110: supervisor program mod-wsgi-rs was not found; looked at {0}; name it with WSGISupervisor")]
    Program(String),
    #[error("MWR0111: supervisor '{program}' cannot be run: {source}")]
    Run { program: PathBuf, source: std::io::Error },
    #[error("MWR0112: supervisor could not be started in '{0}'; the lines above say why")]
    Failed(String),
    #[error("MWR0113: supervisor in '{dir}' cannot be told the configuration: {source}")]
    Tell { dir: String, source: LinkError },
    #[error("MWR0114: run directory '{dir}': {source}")]
    Directory { dir: String, source: std::io::Error },
    #[error("MWR0115: supervisor in '{dir}' cannot be told of the new error log: {source}")]
    Log { dir: String, source: LinkError },
}

/// The program beside the module, or where `make install` puts it.
pub fn find_program(configured: Option<&str>, module: Option<&Path>) -> Result<PathBuf, StartError> {
    let beside = module.and_then(|m| m.canonicalize().ok()).and_then(|m| Some(m.parent()?.join("mod-wsgi-rs")));
    let mut candidates: Vec<PathBuf> = match configured {
        Some(p) => vec![p.into()],
        None => beside
            .into_iter()
            .chain(["/usr/local/lib/mod-wsgi-rs/mod-wsgi-rs".into(), "/usr/lib/mod-wsgi-rs/mod-wsgi-rs".into()])
            .collect(),
    };
    match candidates.iter().position(|p| interpreter::is_executable(p)) {
        Some(i) => Ok(candidates.swap_remove(i)),
        None => {
            Err(StartError::Program(candidates.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")))
        }
    }
}

/// What the supervisor is to serve.
pub struct Wanted {
    /// User and group of the processes that serve requests.
    pub server: (u32, u32),
    /// Replace the workers of every group, also of those whose settings have not changed.
    pub roll_all: bool,
    pub groups: Vec<Group>,
    pub preload: Vec<Preload>,
    /// Least level the supervisor writes.
    pub log_level: Level,
    /// This process ends and goes on as a fork of itself.
    pub moves: bool,
}

/// Whether a group counts for readiness: every declared one, and the automatic group once this process has used it, since
/// asking for it starts it.
pub fn is_watched(link: &Link, group: &str) -> bool {
    !group.is_empty() || link.known(group, "").is_some()
}

impl Runtime {
    /// Starts the keeper if none runs, and opens the run directory. `uid` and `gid`: who serves requests.
    pub fn start(
        program: &Path,
        run_dir: &str,
        uid: u32,
        gid: u32,
        groups: HashMap<String, GroupEntry>,
    ) -> Result<Runtime, StartError> {
        let status = Command::new(program)
            .args(["start-keeper", "--run-directory", run_dir, "--server-uid", &uid.to_string(), "--server-gid"])
            .arg(gid.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .status()
            .map_err(|source| StartError::Run { program: program.to_owned(), source })?;
        if !status.success() {
            return Err(StartError::Failed(run_dir.to_owned()));
        }
        let failed = |source| StartError::Directory { dir: run_dir.to_owned(), source };
        let dir = File::open(run_dir).map_err(failed)?;
        let mut bytes = [0u8; 16];
        File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).map_err(failed)?;
        Ok(Runtime {
            groups,
            dir: dir.into(),
            secret: Secret::from_bytes(&bytes),
            master: Mutex::new(None),
            link: OnceLock::new(),
            parent: AtomicU32::new(std::process::id()),
            process: AtomicU32::new(0),
        })
    }

    /// Sends the configuration with the current error log. Bounded: httpd serves nobody meanwhile.
    pub fn tell(&self, run_dir: &str, wanted: Wanted, error_log: BorrowedFd<'_>) -> Result<(), StartError> {
        let failed = |source| StartError::Tell { dir: run_dir.to_owned(), source };
        let Wanted { server: (server_uid, server_gid), roll_all, groups, preload, log_level, moves } = wanted;
        let config =
            Config { secret: self.secret.clone(), server_uid, server_gid, roll_all, groups, preload, log_level };
        let mut stream = ControlStream::connect(self.dir.as_fd()).map_err(failed)?;
        let message =
            ToSupervisor::Configure { build: env!("CARGO_PKG_VERSION").to_owned(), config: Box::new(config), moves };
        stream.send(&message, &[error_log]).map_err(failed)?;
        match stream.receive(Some(Duration::from_secs(2))).map_err(failed)?.0 {
            FromSupervisor::Accepted => {}
            FromSupervisor::Refused { .. } => return Err(failed(LinkError::Unexpected)),
            _ => return Err(failed(LinkError::Unexpected)),
        }
        *self.master.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        Ok(())
    }

    /// In the server's parent: the error log has been opened anew. Bounded: nothing else is done meanwhile.
    pub fn reopened(&self, run_dir: &str, error_log: BorrowedFd<'_>) -> Result<(), StartError> {
        let told = || -> Result<(), LinkError> {
            // A connection of its own: the parent's may lead to a supervisor that has gone.
            let mut stream = ControlStream::connect(self.dir.as_fd())?;
            stream.send(&ToSupervisor::Reopened, &[error_log])?;
            match stream.receive(Some(Duration::from_secs(2)))?.0 {
                FromSupervisor::Accepted => Ok(()),
                _ => Err(LinkError::Unexpected),
            }
        };
        told().map_err(|source| StartError::Log { dir: run_dir.to_owned(), source })
    }

    /// In a child that serves no requests: gives up the parent's connection, its copy of it only.
    pub fn leave_master(&self) {
        self.master.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The server's parent is this process now: it has gone on as a fork of the one that started the supervisor.
    pub fn adopt(&self) {
        self.parent.store(std::process::id(), Relaxed);
    }

    /// In a child, after it has dropped its privileges: gives up the parent's connection and registers.
    pub fn begin_child(&self) -> std::io::Result<()> {
        self.process.store(std::process::id(), Relaxed);
        if std::process::id() != self.parent.load(Relaxed) {
            self.leave_master();
        }
        let link = Link::start(self.dir.try_clone()?, self.secret.clone())?;
        // child_init runs once a process.
        let _ = self.link.set(link);
        Ok(())
    }

    /// Why a load balancer should send nothing here yet; `None` = it may. Asks the supervisor for tables that this process
    /// has not used yet, and waits for them: not for event loops.
    pub fn unready(&self) -> Option<String> {
        let Some(link) = self.link() else { return Some("this process is not registered".to_owned()) };
        let mut watched = self.groups.iter().filter(|(name, _)| is_watched(link, name));
        watched.find_map(|(name, entry)| {
            let Some(limits) = &entry.limits else { return Some(format!("group '{name}' cannot run as configured")) };
            match link.pool(name, "", limits) {
                Ok(pool) => pool.unready().map(|why| format!("{}: {why}", pool.label())),
                Err(e) => Some(e.to_string()),
            }
        })
    }

    /// Id of this process (a system call each time, if asked of the system).
    pub fn process_id(&self) -> u32 {
        self.process.load(Relaxed)
    }

    /// The child's link; `None` where child_init has failed.
    pub fn link(&self) -> Option<&Link> {
        self.link.get().map(Arc::as_ref)
    }

    /// The same, for keeps.
    pub fn shared_link(&self) -> Option<Arc<Link>> {
        self.link.get().cloned()
    }

    /// The configuration goes away. `exiting`: the server ends; waits, bounded, until the workers have gone, so that a
    /// service manager that kills what is left finds nothing.
    pub fn end(&self, exiting: bool, limit: Duration) {
        if std::process::id() != self.parent.load(Relaxed) {
            return;
        }
        let Some(mut stream) = self.master.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if !exiting {
            // The supervisor also watches this process: a message that is lost only makes it wait longer.
            let _ = stream.send(&ToSupervisor::Reloading, &[]);
            return;
        }
        let deadline = Instant::now() + limit;
        loop {
            let told = stream.send(&ToSupervisor::Stop, &[]).map_err(drop);
            let left = deadline.saturating_duration_since(Instant::now());
            match told.and_then(|()| stream.receive(Some(left)).map_err(drop)) {
                Ok((FromSupervisor::Stopped, _)) => return,
                _ if Instant::now() >= deadline => return,
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(20));
            // The supervisor this connection led to has gone. If there is a new one, it must be told; if nobody
            // listens, all has ended.
            match ControlStream::connect(self.dir.as_fd()) {
                Ok(again) => stream = again,
                Err(_) => return,
            }
        }
    }
}
