//! Settings of servers and places, how they are merged, and how a group's options become what the supervisor gets.

use crate::interpreter;
use crate::options::{GroupOptions, defaults};
use crate::pool::Limits;
use mod_wsgi_wire::control::{Deadlines, Group};
use nix::unistd::{Gid, Uid, User, getgrouplist};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;
use std::time::Duration;

/// How a group name is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    Global,
    Literal(String),
    Server,
    Host,
    Resource,
    /// A variable of the request (SetEnv, mod_rewrite), then of the server's environment.
    Env(String),
}

impl Selector {
    /// Reads a name or one of the `%{…}` words.
    pub fn parse(text: &str) -> Result<Selector, String> {
        Ok(match text {
            "%{GLOBAL}" | "" => Selector::Global,
            "%{SERVER}" => Selector::Server,
            "%{HOST}" => Selector::Host,
            "%{RESOURCE}" => Selector::Resource,
            t => match t.strip_prefix("%{ENV:").and_then(|r| r.strip_suffix('}')) {
                Some(v) if !v.is_empty() => Selector::Env(v.to_owned()),
                _ if t.starts_with("%{") => {
                    return Err(format!(
                        "'{t}' is not known: %{{GLOBAL}}, %{{SERVER}}, %{{HOST}}, %{{RESOURCE}} and %{{ENV:variable}} are"
                    ));
                }
                _ => Selector::Literal(t.to_owned()),
            },
        })
    }

    /// The name, where configuration alone decides it; empty for %{GLOBAL}.
    pub fn literal(&self) -> Option<&str> {
        match self {
            Selector::Global => Some(""),
            Selector::Literal(n) => Some(n),
            _ => None,
        }
    }
}

/// Settings of a place (`<Directory>`, `<Location>`, server).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirConfig {
    pub process_group: Option<Selector>,
    pub application_group: Option<Selector>,
    pub callable_object: Option<String>,
    pub pass_authorization: Option<bool>,
    pub script_reloading: Option<bool>,
    pub error_override: Option<bool>,
    /// Off: the application reads the body while the client sends it.
    pub request_buffering: Option<bool>,
    /// WSGIRequestTimeout as REQUEST carries it: milliseconds, `u32::MAX` = never.
    pub request_timeout: Option<u32>,
}

impl DirConfig {
    /// `inner` stands within `self`.
    pub fn merged(&self, inner: &DirConfig) -> DirConfig {
        // Both sides without `..`: a new field cannot be forgotten.
        let DirConfig {
            process_group,
            application_group,
            callable_object,
            pass_authorization,
            script_reloading,
            error_override,
            request_buffering,
            request_timeout,
        } = inner;
        DirConfig {
            process_group: process_group.clone().or_else(|| self.process_group.clone()),
            application_group: application_group.clone().or_else(|| self.application_group.clone()),
            callable_object: callable_object.clone().or_else(|| self.callable_object.clone()),
            pass_authorization: pass_authorization.or(self.pass_authorization),
            script_reloading: script_reloading.or(self.script_reloading),
            error_override: error_override.or(self.error_override),
            request_buffering: request_buffering.or(self.request_buffering),
            request_timeout: request_timeout.or(self.request_timeout),
        }
    }
}

/// The left side of an alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    Prefix(String),
    /// Handle of the server's compiled expression.
    Regex(usize),
}

/// WSGIScriptAlias or WSGIScriptAliasMatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    pub pattern: Pattern,
    /// The left side as written.
    pub from: String,
    pub script: String,
    /// The right side was a regular file when the configuration was read: what follows in the URL is path info, and the
    /// server need not look for the file along the path.
    pub is_file: bool,
    /// Options of the alias; they win over the place's settings.
    pub dir: DirConfig,
}

impl Alias {
    pub fn new(pattern: Pattern, from: String, script: String) -> Alias {
        let is_file = matches!(pattern, Pattern::Prefix(_)) && Path::new(&script).is_file();
        Alias { pattern, from, script, is_file, dir: DirConfig::default() }
    }

    /// The script, when the alias leads to exactly one file.
    pub fn single_script(&self) -> Option<&str> {
        match self.pattern {
            _ if self.script.ends_with('/') => None,
            Pattern::Prefix(_) => Some(&self.script),
            Pattern::Regex(_) => (!self.script.contains('$')).then_some(&self.script),
        }
    }
}

/// Where the rest of `uri` begins when it lies below `prefix`: runs of slashes count as one, and a prefix without a
/// final slash ends at a path segment (as Alias of httpd does).
pub fn match_prefix(uri: &[u8], prefix: &str) -> Option<usize> {
    let (u, p) = (uri, prefix.as_bytes());
    let (mut i, mut j) = (0, 0);
    while j < p.len() {
        if p[j] == b'/' {
            if u.get(i) != Some(&b'/') {
                return None;
            }
            while u.get(i) == Some(&b'/') {
                i += 1;
            }
            while p.get(j) == Some(&b'/') {
                j += 1;
            }
        } else {
            if u.get(i) != Some(&p[j]) {
                return None;
            }
            i += 1;
            j += 1;
        }
    }
    if p.last() != Some(&b'/') && i < u.len() && u[i] != b'/' {
        return None;
    }
    Some(i)
}

/// Settings of a server or virtual host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerConfig {
    pub aliases: Vec<Alias>,
    pub groups: Vec<GroupOptions>,
    pub socket_prefix: Option<String>,
    /// Where temporary files lie, and how many bytes they may hold in all.
    pub spool_directory: Option<String>,
    pub spool_limit: Option<u64>,
    pub restrict_embedded: Option<bool>,
    pub python_home: Option<String>,
    pub python_path: Vec<String>,
    pub reload_all: Option<bool>,
    pub supervisor: Option<String>,
    /// Directives that were given and do nothing.
    pub without_effect: Vec<&'static str>,
}

impl ServerConfig {
    /// A virtual host within `self`: its own aliases come first, then the main server's.
    pub fn merged(&self, host: &ServerConfig) -> ServerConfig {
        let ServerConfig {
            aliases,
            groups,
            socket_prefix,
            spool_directory,
            spool_limit,
            restrict_embedded,
            python_home,
            python_path,
            reload_all,
            supervisor,
            without_effect,
        } = host;
        ServerConfig {
            aliases: aliases.iter().chain(&self.aliases).cloned().collect(),
            groups: groups.clone(),
            spool_directory: spool_directory.clone().or_else(|| self.spool_directory.clone()),
            spool_limit: spool_limit.or(self.spool_limit),
            socket_prefix: socket_prefix.clone().or_else(|| self.socket_prefix.clone()),
            restrict_embedded: restrict_embedded.or(self.restrict_embedded),
            python_home: python_home.clone().or_else(|| self.python_home.clone()),
            python_path: if python_path.is_empty() { self.python_path.clone() } else { python_path.clone() },
            reload_all: reload_all.or(self.reload_all),
            supervisor: supervisor.clone().or_else(|| self.supervisor.clone()),
            without_effect: without_effect.clone(),
        }
    }
}

/// What the server knows and a group's options leave open.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The server was started as root: workers may have another user.
    pub root: bool,
    /// Who serves requests.
    pub server_uid: u32,
    pub server_gid: u32,
    pub python_home: Option<String>,
    /// Requests the server can hold at once (MaxRequestWorkers).
    pub request_threads: u32,
    /// The environment the server was started with.
    pub environ: BTreeMap<String, String>,
}

/// Why a group cannot run as configured.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("WSGIDaemonProcess {group}: user '{user}' does not exist")]
    User { group: String, user: String },
    #[error("WSGIDaemonProcess {group}: group '{name}' does not exist")]
    Group { group: String, name: String },
    #[error(
        "WSGIDaemonProcess {group}: workers would run as root; set user= to another user (or User of the server, when the \
         option is absent)"
    )]
    Root { group: String },
    #[error("WSGIDaemonProcess {group}: {source}")]
    Interpreter { group: String, source: interpreter::Error },
    #[error("WSGIDaemonProcess {group}: env-file '{file}': {reason}")]
    EnvFile { group: String, file: String, reason: String },
    #[error("WSGIDaemonProcess {group}: home '{home}' is not a directory")]
    Home { group: String, home: String },
    #[error("WSGIDaemonProcess {group}: {reason}")]
    Lookup { group: String, reason: String },
}

impl GroupError {
    /// The code of this message in docs/errors.md.
    pub fn code(&self) -> &'static str {
        match self {
            GroupError::Interpreter { source, .. } => source.code(),
            _ => "MWR0102",
        }
    }
}

/// The numbers a request needs of a group; `files` is for the caller, who knows users.
pub fn limits(o: &GroupOptions) -> Limits {
    let span = |v: Option<f64>, default: f64| Duration::from_secs_f64(v.unwrap_or(default));
    let given = |v: Option<f64>| v.filter(|s| *s > 0.0).map(Duration::from_secs_f64);
    let queue = span(o.queue_timeout, defaults::QUEUE_TIMEOUT);
    let startup = span(o.startup_timeout, defaults::STARTUP_TIMEOUT);
    Limits {
        queue_timeout: (!queue.is_zero()).then_some(queue),
        startup_timeout: if startup.is_zero() { Duration::from_secs(3600) } else { startup },
        maximum_application_groups: o.maximum_application_groups.unwrap_or(defaults::MAXIMUM_APPLICATION_GROUPS),
        request_buffering: o.request_buffering.unwrap_or(true),
        connect_timeout: span(o.connect_timeout, defaults::CONNECT_TIMEOUT),
        socket_timeout: given(o.socket_timeout),
        response_socket_timeout: given(o.response_socket_timeout).or(given(o.socket_timeout)),
        files: true,
    }
}

fn lookup_user(group: &str, name: &str) -> Result<(u32, Option<User>), GroupError> {
    let failed = |e: nix::Error| GroupError::Lookup { group: group.to_owned(), reason: format!("user '{name}': {e}") };
    let missing = || GroupError::User { group: group.to_owned(), user: name.to_owned() };
    if let Some(n) = name.strip_prefix('#') {
        let uid: u32 = n.parse().map_err(|_| missing())?;
        return Ok((uid, User::from_uid(Uid::from_raw(uid)).map_err(failed)?));
    }
    let user = User::from_name(name).map_err(failed)?.ok_or_else(missing)?;
    Ok((user.uid.as_raw(), Some(user)))
}

fn lookup_group(group: &str, name: &str) -> Result<u32, GroupError> {
    let missing = || GroupError::Group { group: group.to_owned(), name: name.to_owned() };
    if let Some(n) = name.strip_prefix('#') {
        return n.parse().map_err(|_| missing());
    }
    match nix::unistd::Group::from_name(name) {
        Ok(found) => found.map(|g| g.gid.as_raw()).ok_or_else(missing),
        Err(e) => Err(GroupError::Lookup { group: group.to_owned(), reason: format!("group '{name}': {e}") }),
    }
}

/// Resolves users, paths, interpreter and environment of a group. The interpreter is found here and run by the caller
/// ([`interpreter::check`]).
pub fn resolve(o: &GroupOptions, s: &Surroundings) -> Result<Group, GroupError> {
    let name = o.name.clone();
    let (uid, user) = match (&o.user, s.root) {
        (Some(u), true) => lookup_user(&name, u)?,
        (Some(u), false) => {
            // As mod_wsgi: without root the option cannot be applied; the user must at least exist.
            lookup_user(&name, u)?;
            (s.server_uid, User::from_uid(Uid::from_raw(s.server_uid)).ok().flatten())
        }
        (None, _) => (s.server_uid, User::from_uid(Uid::from_raw(s.server_uid)).ok().flatten()),
    };
    let gid = match (&o.group, s.root) {
        (Some(g), true) => lookup_group(&name, g)?,
        (Some(g), false) => {
            lookup_group(&name, g)?;
            s.server_gid
        }
        (None, true) if o.user.is_some() => user.as_ref().map_or(s.server_gid, |u| u.gid.as_raw()),
        (None, _) => s.server_gid,
    };
    if uid == 0 {
        return Err(GroupError::Root { group: name });
    }
    let groups = if !s.root {
        Vec::new()
    } else if let Some(list) = &o.supplementary_groups {
        list.iter().map(|g| lookup_group(&name, g)).collect::<Result<_, _>>()?
    } else if let Some(u) = &user {
        let failed = |reason: String| GroupError::Lookup { group: name.clone(), reason };
        let c = CString::new(u.name.as_str()).map_err(|e| failed(e.to_string()))?;
        let list = getgrouplist(&c, Gid::from_raw(gid)).map_err(|e| failed(format!("groups of '{}': {e}", u.name)))?;
        list.into_iter().map(Gid::as_raw).collect()
    } else {
        vec![gid]
    };
    let home = match &o.home {
        Some(h) if Path::new(h).is_dir() => h.clone(),
        Some(h) => return Err(GroupError::Home { group: name, home: h.clone() }),
        None => String::new(),
    };
    let python = match &o.python {
        Some(p) if interpreter::is_executable(Path::new(p)) => p.clone(),
        Some(p) => {
            let source = interpreter::Error::Missing { path: p.into() };
            return Err(GroupError::Interpreter { group: name, source });
        }
        None => {
            let dir = o.python_home.as_ref().or(s.python_home.as_ref()).map(Path::new);
            let found = interpreter::resolve(dir);
            let found = found.map_err(|source| GroupError::Interpreter { group: name.clone(), source })?;
            found.to_string_lossy().into_owned()
        }
    };
    let processes = o.processes.unwrap_or(defaults::PROCESSES);
    let threads = o.threads.unwrap_or(defaults::THREADS);
    let queue_limit = o.queue_limit.unwrap_or(defaults::QUEUE_LIMIT.min(s.request_threads / 2).max(1));
    let (user_name, user_home) = match &user {
        Some(u) => (u.name.clone(), u.dir.to_string_lossy().into_owned()),
        None => (String::new(), String::new()),
    };
    Ok(Group {
        processes,
        threads,
        queue_limit,
        multiprocess: o.processes.is_some(),
        uid,
        gid,
        groups,
        python,
        python_path: o.python_path.clone(),
        home,
        umask: o.umask,
        lang: o.lang.clone().unwrap_or_default(),
        locale: o.locale.clone().unwrap_or_default(),
        display_name: match o.display_name.as_deref() {
            Some("%{GROUP}") => format!("(wsgi:{name})"),
            Some(text) => text.to_owned(),
            None => String::new(),
        },
        env: environment(o, s, &user_name, &user_home)?,
        user_name,
        user_home,
        no_new_privileges: o.no_new_privileges.unwrap_or(false),
        startup_timeout: o.startup_timeout.unwrap_or(defaults::STARTUP_TIMEOUT),
        graceful_timeout: o.graceful_timeout.unwrap_or(defaults::GRACEFUL_TIMEOUT),
        shutdown_timeout: o.shutdown_timeout.unwrap_or(defaults::SHUTDOWN_TIMEOUT),
        application_idle: o.application_idle.unwrap_or(defaults::APPLICATION_IDLE),
        maximum_application_groups: limits(o).maximum_application_groups,
        recycle: o.recycle.clone(),
        minimum_processes: o.minimum_processes.unwrap_or(0),
        strict_reloading: o.strict_reloading,
        reload_on_changes: o.reload_on_changes,
        reload_extra_files: o.reload_extra_files.clone(),
        deadlines: Deadlines {
            request: o.request_timeout.unwrap_or(defaults::REQUEST_TIMEOUT),
            interrupt: o.interrupt_timeout.unwrap_or(defaults::INTERRUPT_TIMEOUT),
            deadlock: o.deadlock_timeout.unwrap_or(defaults::DEADLOCK_TIMEOUT),
            eviction: o.eviction_timeout.unwrap_or(defaults::EVICTION_TIMEOUT),
        },
        name,
    })
}

/// The automatic group of applications without WSGIProcessGroup: as many processes as processors, at most four.
pub fn automatic_group(server: &ServerConfig) -> GroupOptions {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    GroupOptions {
        processes: Some(cpus.clamp(1, 4) as u16),
        python_path: server.python_path.clone(),
        ..GroupOptions::default()
    }
}

/// Variables of the server's environment that workers never get: they speak of the server's own process, or would turn
/// the interpreter into another one.
const DENIED: &[&str] = &[
    "CREDENTIALS_DIRECTORY",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "MAINPID",
    "MANAGERPID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NGINX",
    "NOTIFY_SOCKET",
    "OLDPWD",
    "PWD",
    "PYTHONHOME",
    "PYTHONINSPECT",
    "PYTHONSTARTUP",
    "SHLVL",
    "SYSTEMD_EXEC_PID",
    "_",
    "__PYVENV_LAUNCHER__",
];

/// Prefixes of such variables.
const DENIED_PREFIXES: &[&str] = &["APACHE_", "LISTEN_", "MOD_WSGI_", "WATCHDOG_"];

fn denied(name: &str) -> bool {
    DENIED.contains(&name) || DENIED_PREFIXES.iter().any(|p| name.starts_with(p))
}

fn environment(
    o: &GroupOptions,
    s: &Surroundings,
    user: &str,
    home: &str,
) -> Result<BTreeMap<String, String>, GroupError> {
    let mut env: BTreeMap<String, String> = if o.clean_environment {
        ["PATH", "LANG", "TZ"].iter().filter_map(|k| Some((k.to_string(), s.environ.get(*k)?.clone()))).collect()
    } else {
        s.environ.iter().filter(|(k, _)| !denied(k)).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    if o.clean_environment {
        env.entry("PATH".to_owned()).or_insert_with(|| "/usr/local/bin:/usr/bin:/bin".to_owned());
    }
    if !user.is_empty() {
        for k in ["USER", "LOGNAME"] {
            env.insert(k.to_owned(), user.to_owned());
        }
    }
    if !home.is_empty() {
        env.insert("HOME".to_owned(), home.to_owned());
    }
    for (k, v) in [("LANG", &o.lang), ("LC_ALL", &o.locale)] {
        if let Some(v) = v {
            env.insert(k.to_owned(), v.clone());
        }
    }
    for file in &o.env_file {
        let wrong = |reason: String| GroupError::EnvFile { group: o.name.clone(), file: file.clone(), reason };
        let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
        env.extend(parse_env_file(&text).map_err(wrong)?);
    }
    env.extend(o.env.iter().map(|(k, v)| (k.clone(), v.clone())));
    Ok(env)
}

/// Reads NAME=VALUE lines as systemd's EnvironmentFile does: `#` or `;` begin a comment line, an `export ` before the name
/// is allowed, one pair of quotes around the value is removed.
pub fn parse_env_file(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let pair = line.split_once('=').filter(|(k, _)| crate::options::is_variable_name(k));
        // The line itself may hold a secret: only its number is told.
        let (k, v) = pair.ok_or_else(|| format!("line {} is not NAME=VALUE", i + 1))?;
        let quoted = |q: char| v.len() >= 2 && v.starts_with(q) && v.ends_with(q);
        let v = if quoted('"') || quoted('\'') { &v[1..v.len() - 1] } else { v };
        out.push((k.to_owned(), v.to_owned()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_match_as_alias_does() {
        assert_eq!(match_prefix(b"/app/x", "/app"), Some(4));
        assert_eq!(match_prefix(b"/application", "/app"), None);
        assert_eq!(match_prefix(b"//app///x", "/app/"), Some(8));
        assert_eq!(match_prefix(b"/", "/"), Some(1));
        assert_eq!(match_prefix(b"/app", "/app/"), None);
    }

    #[test]
    fn the_inner_place_wins_field_by_field() {
        let outer =
            DirConfig { process_group: Some(Selector::Global), pass_authorization: Some(true), ..Default::default() };
        let inner = DirConfig { process_group: Some(Selector::Literal("x".into())), ..Default::default() };
        let m = outer.merged(&inner);
        assert_eq!((m.process_group, m.pass_authorization), (Some(Selector::Literal("x".into())), Some(true)));
    }

    fn around(pairs: &[(&str, &str)]) -> Surroundings {
        Surroundings {
            root: false,
            server_uid: 12345,
            server_gid: 12345,
            python_home: None,
            request_threads: 64,
            environ: pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        }
    }

    #[test]
    fn the_environment_is_inherited_less_the_denied() {
        let s =
            around(&[("A", "1"), ("APACHE_RUN_DIR", "x"), ("LISTEN_FDS", "1"), ("PYTHONHOME", "/x"), ("PATH", "/bin")]);
        let o = GroupOptions { env: [("A".into(), "2".into())].into(), ..Default::default() };
        let e = environment(&o, &s, "u", "/h").unwrap();
        let want = [("A", "2"), ("HOME", "/h"), ("LOGNAME", "u"), ("PATH", "/bin"), ("USER", "u")];
        assert_eq!(e.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), want);
        let clean = GroupOptions { clean_environment: true, ..Default::default() };
        assert_eq!(environment(&clean, &s, "", "").unwrap().len(), 1);
    }

    #[test]
    fn env_files() {
        let got = parse_env_file("# c\nA=1\nexport B=\"x y\"\n\nC='q'\nD=a=b\n").unwrap();
        assert_eq!(got[1], ("B".into(), "x y".into()));
        assert_eq!(got[3], ("D".into(), "a=b".into()));
        let e = parse_env_file("A=1\nsecret").unwrap_err();
        assert_eq!(e, "line 2 is not NAME=VALUE");
    }

    #[test]
    fn root_is_refused_and_the_queue_is_capped() {
        let mut s = around(&[]);
        assert_eq!(
            resolve(&GroupOptions { python: Some("/bin/sh".into()), ..Default::default() }, &s).unwrap().queue_limit,
            32
        );
        s.server_uid = 0;
        let e = resolve(&GroupOptions { name: "x".into(), python: Some("/bin/sh".into()), ..Default::default() }, &s);
        assert!(e.unwrap_err().to_string().contains("as root"));
    }
}
