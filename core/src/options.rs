//! The options of WSGIDaemonProcess (httpd) and wsgi_daemon_process (nginx): one table makes parsing, checks and docs.

use mod_wsgi_wire::control::Recycle;
use std::collections::BTreeMap;

/// Options of a daemon process group as written, before users, paths and defaults are resolved.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupOptions {
    pub name: String,
    pub processes: Option<u16>,
    /// The first number of `processes=MIN..MAX`.
    pub minimum_processes: Option<u16>,
    pub threads: Option<u16>,
    pub user: Option<String>,
    pub group: Option<String>,
    pub supplementary_groups: Option<Vec<String>>,
    pub umask: Option<u32>,
    pub home: Option<String>,
    pub lang: Option<String>,
    pub locale: Option<String>,
    pub python_home: Option<String>,
    pub python: Option<String>,
    pub python_path: Vec<String>,
    pub display_name: Option<String>,
    pub env: BTreeMap<String, String>,
    pub env_file: Vec<String>,
    pub clean_environment: bool,
    pub request_buffering: Option<bool>,
    pub queue_limit: Option<u32>,
    pub queue_timeout: Option<f64>,
    pub startup_timeout: Option<f64>,
    pub graceful_timeout: Option<f64>,
    pub shutdown_timeout: Option<f64>,
    pub application_idle: Option<f64>,
    pub maximum_application_groups: Option<u16>,
    pub no_new_privileges: Option<bool>,
    pub pass_files: Option<bool>,
    /// When workers are replaced.
    pub recycle: Recycle,
    pub strict_reloading: bool,
    pub reload_on_changes: bool,
    /// Absolute.
    pub reload_extra_files: Vec<String>,
    pub request_timeout: Option<f64>,
    pub interrupt_timeout: Option<f64>,
    pub deadlock_timeout: Option<f64>,
    pub eviction_timeout: Option<f64>,
    pub connect_timeout: Option<f64>,
    pub socket_timeout: Option<f64>,
    pub response_socket_timeout: Option<f64>,
    /// mod_wsgi options that were given and have no effect in this version.
    pub without_effect: Vec<&'static str>,
}

/// Defaults of options, where one number fits all servers.
pub mod defaults {
    pub const THREADS: u16 = 15;
    pub const PROCESSES: u16 = 1;
    pub const QUEUE_LIMIT: u32 = 100;
    pub const QUEUE_TIMEOUT: f64 = 45.0;
    pub const STARTUP_TIMEOUT: f64 = 15.0;
    pub const GRACEFUL_TIMEOUT: f64 = 15.0;
    pub const SHUTDOWN_TIMEOUT: f64 = 5.0;
    pub const REQUEST_TIMEOUT: f64 = 0.0;
    pub const INTERRUPT_TIMEOUT: f64 = 0.0;
    pub const DEADLOCK_TIMEOUT: f64 = 300.0;
    pub const EVICTION_TIMEOUT: f64 = 0.0;
    pub const CONNECT_TIMEOUT: f64 = 15.0;
    pub const APPLICATION_IDLE: f64 = 600.0;
    pub const MAXIMUM_APPLICATION_GROUPS: u16 = 32;
}

/// One option: everything that is said about it anywhere.
pub struct OptionSpec {
    pub name: &'static str,
    /// What a value looks like.
    pub value: &'static str,
    pub default: &'static str,
    pub express: Express,
    pub help: &'static str,
    set: fn(&mut GroupOptions, &str) -> Result<(), String>,
}

/// How the launcher has an option of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Express {
    /// Not passed on: the launcher has none, or one of its own in `express/src/options.rs`.
    No,
    /// `--NAME`, with the same default.
    Same,
    /// `--NAME`, with this default.
    Value(&'static str),
}

impl OptionSpec {
    /// What decides in its place on nginx, where it is refused.
    pub fn instead_on_nginx(&self) -> Option<&'static str> {
        match self.name {
            "socket-timeout" => Some("wsgi_read_timeout, wsgi_send_timeout and client_body_timeout"),
            "response-socket-timeout" => Some("send_timeout"),
            _ => None,
        }
    }

    /// Whether it may be given more than once.
    pub fn repeatable(&self) -> bool {
        matches!(self.name, "env" | "env-file" | "health-check-path" | "python-path" | "reload-extra-file")
    }

    /// Whether `value` may be given; the error says what may.
    pub fn check(&self, value: &str) -> Result<(), String> {
        (self.set)(&mut GroupOptions::default(), value)
    }
}

fn whole(v: &str, min: u32, max: u32) -> Result<u32, String> {
    match v.parse::<u32>() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(format!("must be a whole number from {min} to {max}")),
    }
}

fn seconds(v: &str) -> Result<f64, String> {
    match v.parse::<f64>() {
        Ok(n) if n.is_finite() && (0.0..=31_536_000.0).contains(&n) => Ok(n),
        _ => Err("must be a number of seconds from 0 to 31536000".to_owned()),
    }
}

/// Seconds of which 0 means never; a tenth at least, so that no slip of the pen makes workers come and go all the time.
fn interval(v: &str) -> Result<f64, String> {
    match seconds(v)? {
        n if n == 0.0 || n >= 0.1 => Ok(n),
        _ => Err("must be 0, or at least 0.1 seconds".to_owned()),
    }
}

/// Seconds as REQUEST carries them: milliseconds, `u32::MAX` for 0 = never.
pub(crate) fn request_timeout(v: &str) -> Result<u32, String> {
    match seconds(v)? {
        0.0 => Ok(u32::MAX),
        n if n <= 86_400.0 => Ok(((n * 1000.0) as u32).max(1)),
        _ => Err("must be a number of seconds from 0 to 86400".to_owned()),
    }
}

/// `N`, or `MIN..MAX`.
fn processes(v: &str) -> Result<(Option<u16>, u16), String> {
    let number = |v: &str| whole(v, 1, 500).map(|n| n as u16);
    match v.split_once("..") {
        None => Ok((None, number(v)?)),
        Some((least, most)) => match (number(least), number(most)) {
            (Ok(least), Ok(most)) if least <= most => Ok((Some(least), most)),
            _ => Err("must be MIN..MAX with whole numbers from 1 to 500, the first not above the second".to_owned()),
        },
    }
}

fn count(v: &str) -> Result<u64, String> {
    v.parse::<u64>().ok().filter(|n| *n <= 1 << 53).ok_or_else(|| "must be a whole number from 0 to 2^53".to_owned())
}

/// Bytes, with K, M or G for their multiples of 1024; 0 or at least 1 MiB.
pub(crate) fn bytes(v: &str) -> Result<u64, String> {
    let wrong = || "must be bytes, or a number with K, M or G; 0 or from 1M to 1024G".to_owned();
    let (digits, shift) = match v.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&v[..at], 10),
        Some((at, 'm' | 'M')) => (&v[..at], 20),
        Some((at, 'g' | 'G')) => (&v[..at], 30),
        _ => (v, 0),
    };
    let n = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(wrong)?;
    if n == 0 || (1 << 20..=1 << 40).contains(&n) { Ok(n) } else { Err(wrong()) }
}

fn url_path(v: &str) -> Result<String, String> {
    if v.starts_with('/') { text(v) } else { Err("must be a decoded URL path that begins with a slash".to_owned()) }
}

fn switch(v: &str) -> Result<bool, String> {
    match v.to_ascii_lowercase().as_str() {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("must be On or Off".to_owned()),
    }
}

fn text(v: &str) -> Result<String, String> {
    if v.is_empty() || v.contains('\0') { Err("must not be empty".to_owned()) } else { Ok(v.to_owned()) }
}

fn absolute(v: &str) -> Result<String, String> {
    if v.starts_with('/') { text(v) } else { Err("must be an absolute path".to_owned()) }
}

/// Whether `name` can be an environment variable that people mean.
fn variable(v: &str) -> Result<(String, String), String> {
    match v.split_once('=') {
        Some((k, value)) if is_variable_name(k) => Ok((k.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

pub(crate) fn is_variable_name(k: &str) -> bool {
    let mut c = k.bytes();
    c.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_') && c.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

use Express::{No, Same, Value};

macro_rules! options {
    ($($name:literal $value:literal $default:literal $express:expr, $help:literal $set:expr;)*) => {
        /// Every option, in the order of the documentation.
        pub const TABLE: &[OptionSpec] =
            &[$(OptionSpec { name: $name, value: $value, default: $default, express: $express, help: $help, set: $set }),*];
    };
}

options! {
    "processes" "1..500, or MIN..MAX" "1" No, "Worker processes; MIN..MAX: as many as the load needs, see docs/reliability.md. `wsgi.multiprocess` is True when the option is given, as in mod_wsgi."
        |o, v| { let (least, most) = processes(v)?; (o.minimum_processes, o.processes) = (least, Some(most)); Ok(()) };
    "threads" "1..4096" "15" No, "Serving threads of each worker."
        |o, v| { o.threads = Some(whole(v, 1, 4096)? as u16); Ok(()) };
    "user" "name or #uid" "the server's User" No, "User the workers run as, where the server is started as root. Uid 0 is refused."
        |o, v| { o.user = Some(text(v)?); Ok(()) };
    "group" "name or #gid" "the user's primary group, else the server's Group" No, "Group the workers run as, where the server is started as root."
        |o, v| { o.group = Some(text(v)?); Ok(()) };
    "supplementary-groups" "name,name" "those of the user" No, "Replaces the user's supplementary groups."
        |o, v| { o.supplementary_groups = Some(v.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect()); Ok(()) };
    "umask" "octal, 0000..0777" "0022" No, "File mode creation mask of the workers."
        |o, v| { o.umask = Some(u32::from_str_radix(v, 8).ok().filter(|n| *n <= 0o777).ok_or("must be octal, from 0000 to 0777")?); Ok(()) };
    "home" "directory" "the user's home where the user differs from the server's, else unchanged" No, "Working directory; also first on sys.path when given."
        |o, v| { o.home = Some(absolute(v)?); Ok(()) };
    "lang" "locale name" "inherited" No, "LANG of the workers."
        |o, v| { o.lang = Some(text(v)?); Ok(()) };
    "locale" "locale name" "inherited" No, "LC_ALL of the workers."
        |o, v| { o.locale = Some(text(v)?); Ok(()) };
    "python-home" "directory" "WSGIPythonHome, else /usr" No, "Virtual environment or installation whose interpreter (bin/python, bin/python3, highest bin/python3.N) runs the group."
        |o, v| { o.python_home = Some(absolute(v)?); Ok(()) };
    "python" "file" "found in python-home" No, "The interpreter itself, instead of python-home."
        |o, v| { o.python = Some(absolute(v)?); Ok(()) };
    "python-path" "dir:dir" "empty" No, "Directories put at the front of sys.path; their .pth files are processed."
        |o, v| { o.python_path.extend(v.split(':').filter(|s| !s.is_empty()).map(str::to_owned)); Ok(()) };
    "display-name" "text or %{GROUP}" "the interpreter's command line" No, "Name of the workers in ps and top; %{GROUP} is (wsgi:NAME)."
        |o, v| { o.display_name = Some(text(v)?); Ok(()) };
    "env" "NAME=VALUE" "none" No, "Environment variable of the workers; may be given again for another name."
        |o, v| { let (k, v) = variable(v)?; o.env.insert(k, v); Ok(()) };
    "env-file" "file" "none" No, "File of NAME=VALUE lines, read at each start and restart of the server; # begins a comment line."
        |o, v| { o.env_file.push(absolute(v)?); Ok(()) };
    "environment" "inherit or clean" "inherit" No, "What workers start from: the server's environment less a deny list, or PATH, LANG and TZ only."
        |o, v| { o.clean_environment = match v { "inherit" => false, "clean" => true, _ => return Err("must be inherit or clean".to_owned()) }; Ok(()) };
    "request-buffering" "On or Off" "On" Same, "On: a request body is read whole before a worker hears of the request, so that a slow sender holds no Python thread. Off: the application reads the body while the client sends it, and may answer meanwhile; WSGIRequestBuffering says it for one place."
        |o, v| { o.request_buffering = Some(switch(v)?); Ok(()) };
    "queue-limit" "0..100000" "100, at most half of the server's request threads" Same, "Requests of an application group that may wait for a thread; beyond it 503 with Retry-After."
        |o, v| { o.queue_limit = Some(whole(v, 0, 100_000)?); Ok(()) };
    "listen-backlog" "0..100000" "see queue-limit" No, "mod_wsgi's name of queue-limit."
        |o, v| { o.queue_limit = Some(whole(v, 0, 100_000)?); Ok(()) };
    "queue-timeout" "seconds, 0 = never" "45" Same, "Longest wait of a request for a thread; then 504."
        |o, v| { o.queue_timeout = Some(seconds(v)?); Ok(()) };
    "startup-timeout" "seconds, 0 = never" "15" Same, "Longest time from the start of a worker to its readiness."
        |o, v| { o.startup_timeout = Some(seconds(v)?); Ok(()) };
    "graceful-timeout" "seconds" "15" Same, "Time a replaced worker has to finish its requests."
        |o, v| { o.graceful_timeout = Some(seconds(v)?); Ok(()) };
    "request-timeout" "seconds, 0 = never" "0" Value("60"), "Time from the start of a request in the application to the end of its response, without waits for its client. Then 504, and the worker is replaced once its other requests have ended. Per place: WSGIRequestTimeout."
        |o, v| { request_timeout(v)?; o.request_timeout = Some(seconds(v)?); Ok(()) };
    "interrupt-timeout" "seconds, 0 = no interruption" "0" Same, "At request-timeout mod_wsgi.RequestTimeout is raised in the request first; this is the time it then has to end. Code that waits outside the interpreter is not reached."
        |o, v| { o.interrupt_timeout = Some(seconds(v)?); Ok(()) };
    "deadlock-timeout" "seconds, 0 = never" "300" Value("60"), "A worker whose GIL cannot be had for this long is replaced at once."
        |o, v| { o.deadlock_timeout = Some(interval(v)?); Ok(()) };
    "eviction-timeout" "seconds, 0 = graceful-timeout" "0" Same, "Time a worker has to finish its requests after it has got SIGUSR1; its successor starts first."
        |o, v| { o.eviction_timeout = Some(seconds(v)?); Ok(()) };
    "connect-timeout" "seconds, 0 = one failure is enough" "15" Same, "Longest time in which no connection to a worker can be made; then 503. Waiting for a first ready worker is startup-timeout, for a thread queue-timeout."
        |o, v| { o.connect_timeout = Some(seconds(v)?); Ok(()) };
    "socket-timeout" "seconds, 0 = the server's Timeout" "0" Same, "Longest time in which nothing moves between the server and the worker that runs the request, in either direction: the application sends no head and no block, or does not take the body that is streamed to it. Then 504, or the response breaks off; the application learns it at its next block or read. The same for a client that does not go on with a streamed body: 408. Waits for a client that takes the response slowly do not count."
        |o, v| { o.socket_timeout = Some(seconds(v)?); Ok(()) };
    "response-socket-timeout" "seconds, 0 = socket-timeout" "0" Same, "Longest time in which a client takes nothing of a response that the application has not ended; then the connection is closed. One that takes a byte is never cut. What is left when the application has ended is httpd's to send, by Timeout."
        |o, v| { o.response_socket_timeout = Some(seconds(v)?); Ok(()) };
    "shutdown-timeout" "seconds" "5" Same, "Time a worker has for its exit handlers before it is killed; 3 s without it on nginx, whose service on Debian has 5 s to stop."
        |o, v| { o.shutdown_timeout = Some(seconds(v)?); Ok(()) };
    "application-idle" "seconds, 0 = never" "600" No, "Workers of an application group other than %{GLOBAL} end after this time without a request."
        |o, v| { o.application_idle = Some(seconds(v)?); Ok(()) };
    "maximum-application-groups" "0..1000" "32" No, "Application groups other than %{GLOBAL} that may have workers at once; beyond it 503."
        |o, v| { o.maximum_application_groups = Some(whole(v, 0, 1000)? as u16); Ok(()) };
    "no-new-privileges" "On or Off" "Off" No, "prctl(PR_SET_NO_NEW_PRIVS) for the workers: set-user-ID programs such as sendmail and sudo stop working."
        |o, v| { o.no_new_privileges = Some(switch(v)?); Ok(()) };
    "pass-files" "On or Off" "On where the group runs as the server's own user, else Off" No, "Whether files of `wsgi.file_wrapper` reach the server as files, which it sends by itself and of which it makes ranges, or as bytes; on nginx also whether small requests share a connection to a worker, which is quicker. A group of another user that you do not trust could pass a file of a FUSE file system that does not answer, for which a process of the server waits when it ends: see docs/security.md."
        |o, v| { o.pass_files = Some(switch(v)?); Ok(()) };
    "maximum-requests" "whole number, 0 = never" "0" Same, "Requests after which a worker is replaced."
        |o, v| { o.recycle.maximum_requests = count(v)?; Ok(()) };
    "maximum-requests-jitter" "whole number" "0" Same, "Each worker serves a random number of up to so many requests more, so that not all are due at once."
        |o, v| { o.recycle.maximum_requests_jitter = count(v)?; Ok(()) };
    "health-check-path" "URL path" "none" Same, "Requests for exactly this path (without the query) count neither for maximum-requests nor as activity; may be given again."
        |o, v| { o.recycle.health_check_path.push(url_path(v)?); Ok(()) };
    "restart-interval" "seconds, 0 = never" "0" Same, "Age at which a worker is replaced."
        |o, v| { o.recycle.restart_interval = interval(v)?; Ok(()) };
    "restart-interval-jitter" "seconds" "0" Same, "Each worker lives a random time of up to so much longer."
        |o, v| { o.recycle.restart_interval_jitter = seconds(v)?; Ok(()) };
    "inactivity-timeout" "seconds, 0 = never" "0" Same, "A worker that has served a request is replaced after this time without another."
        |o, v| { o.recycle.inactivity_timeout = interval(v)?; Ok(()) };
    "cpu-time-limit" "seconds, 0 = never" "0" Same, "Processor time, user and system, after which a worker is replaced. No signal reaches the application."
        |o, v| { o.recycle.cpu_time_limit = interval(v)?; Ok(()) };
    "max-rss" "bytes (K, M, G), 0 = never" "0" Same, "Resident memory at which a worker is replaced. In a container: stay well below its limit."
        |o, v| { o.recycle.max_rss = bytes(v)?; Ok(()) };
    "memory-limit" "bytes (K, M, G), 0 = none" "0" Same, "RLIMIT_DATA of the workers: beyond it allocations fail (MemoryError), nothing is replaced; see max-rss."
        |o, v| { o.recycle.memory_limit = bytes(v)?; Ok(()) };
    "virtual-memory-limit" "bytes (K, M, G), 0 = none" "0" Same, "RLIMIT_AS of the workers, likewise."
        |o, v| { o.recycle.virtual_memory_limit = bytes(v)?; Ok(()) };
    "script-reloading" "on or strict" "on" Same, "What a request gets that comes with a changed script (WSGIScriptReloading On): the old code until the new one is ready, or strict: it waits for the new one."
        |o, v| { o.strict_reloading = match v { "on" => false, "strict" => true, _ => return Err("must be on or strict".to_owned()) }; Ok(()) };
    "reload-on-changes" "On or Off" "Off" No, "For development: new code is loaded when a file it came from changes, or one named by reload-extra-file or `mod_wsgi.track_changes(path)`; see docs/reliability.md."
        |o, v| { o.reload_on_changes = switch(v)?; Ok(()) };
    "reload-extra-file" "file or directory" "none" No, "With reload-on-changes: watched too, for example a template or settings file; a directory: files that come, go or are replaced in it. May be given again."
        |o, v| { o.reload_extra_files.push(absolute(v)?); Ok(()) };
    "reload-surge" "0..500" "1" Same, "Workers that may run besides the wanted number while others are replaced. 0 = the old one ends first, and requests wait."
        |o, v| { o.recycle.surge = whole(v, 0, 500)? as u16; Ok(()) };
}

/// Options of mod_wsgi that are accepted, so that an existing configuration loads, but do nothing in this version; each
/// is named in a start-up warning.
pub const WITHOUT_EFFECT: &[&str] = &[
    "chroot",
    "cpu-priority",
    "header-buffer-size",
    "python-eggs",
    "receive-buffer-size",
    "response-buffer-size",
    "response-flush-delay",
    "script-group",
    "script-user",
    "send-buffer-size",
    "server-metrics",
    "socket-user",
    "stack-size",
    "switch-interval",
];

/// Reads `NAME option=value …`. Errors name option, value and what is allowed.
pub fn parse(words: &[String]) -> Result<GroupOptions, String> {
    let Some((name, rest)) = words.split_first() else {
        return Err("WSGIDaemonProcess: name of the process group is missing".to_owned());
    };
    if name.is_empty() || name.contains('=') || name.starts_with('%') || name.bytes().any(|b| b < 0x20) {
        return Err(format!("WSGIDaemonProcess: '{name}' cannot be the name of a process group"));
    }
    let mut options = GroupOptions { name: name.clone(), ..GroupOptions::default() };
    for word in rest {
        let Some((key, value)) = word.split_once('=') else {
            return Err(format!("WSGIDaemonProcess {name}: '{word}' is not option=value"));
        };
        if let Some(spec) = TABLE.iter().find(|s| s.name == key) {
            (spec.set)(&mut options, value)
                .map_err(|e| format!("WSGIDaemonProcess {name}: {key}={} {e}", shown(key, value)))?;
        } else if let Some(known) = WITHOUT_EFFECT.iter().find(|n| **n == key) {
            options.without_effect.push(known);
        } else {
            return Err(format!("WSGIDaemonProcess {name}: unknown option '{key}'{}", suggestion(key)));
        }
    }
    if options.python.is_some() && options.python_home.is_some() {
        return Err(format!("WSGIDaemonProcess {name}: python= and python-home= exclude each other"));
    }
    if !options.reload_extra_files.is_empty() && !options.reload_on_changes {
        return Err(format!("WSGIDaemonProcess {name}: reload-extra-file= needs reload-on-changes=On"));
    }
    Ok(options)
}

/// Refuses, among the words of a wsgi_daemon_process, what directives of nginx decide.
pub fn check_for_nginx(words: &[String]) -> Result<(), String> {
    for (key, _) in words.iter().skip(1).filter_map(|w| w.split_once('=')) {
        if let Some(instead) = TABLE.iter().find(|s| s.name == key).and_then(OptionSpec::instead_on_nginx) {
            return Err(format!(
                "WSGIDaemonProcess {}: '{key}' is no option on nginx, where {instead} decide",
                words[0]
            ));
        }
    }
    Ok(())
}

/// Values of environment variables are secrets.
fn shown(key: &str, value: &str) -> String {
    if key == "env" { "(value not shown)".to_owned() } else { format!("'{value}'") }
}

fn suggestion(key: &str) -> String {
    let near = TABLE.iter().map(|s| (distance(key, s.name), s.name)).min();
    match near {
        Some((d, name)) if d <= 2 => format!("; did you mean '{name}'?"),
        _ => String::new(),
    }
}

fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = if x == y { diagonal } else { 1 + diagonal.min(row[j]).min(row[j + 1]) };
            diagonal = row[j + 1];
            row[j + 1] = cost;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(t: &str) -> Result<GroupOptions, String> {
        parse(&t.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_group_is_read() {
        let o = parse_text("blog processes=2 threads=5 umask=0027 env=A=b=c python-path=/a:/b display-name=%{GROUP}")
            .unwrap();
        assert_eq!((o.name.as_str(), o.processes, o.threads, o.umask), ("blog", Some(2), Some(5), Some(0o027)));
        assert_eq!(o.env["A"], "b=c");
        assert_eq!(o.python_path, ["/a", "/b"]);
    }

    #[test]
    fn errors_name_directive_option_value_and_remedy() {
        let e = parse_text("blog threads=0").unwrap_err();
        assert_eq!(e, "WSGIDaemonProcess blog: threads='0' must be a whole number from 1 to 4096");
        assert!(parse_text("blog thread=5").unwrap_err().contains("did you mean 'threads'?"));
        assert!(parse_text("blog processes").unwrap_err().contains("not option=value"));
        assert!(!parse_text("blog env=SECRET").unwrap_err().contains("SECRET"));
        assert!(parse_text("").is_err() && parse_text("%{GLOBAL}").is_err());
    }

    #[test]
    fn options_of_mod_wsgi_load_and_are_remembered() {
        let o = parse_text("x server-metrics=on stack-size=60").unwrap();
        assert_eq!(o.without_effect, ["server-metrics", "stack-size"]);
    }

    #[test]
    fn what_nginx_decides_is_refused_there() {
        let words = |t: &str| t.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let e = check_for_nginx(&words("x threads=2 socket-timeout=5")).unwrap_err();
        assert!(e.contains("'socket-timeout'") && e.contains("wsgi_read_timeout"));
        assert!(check_for_nginx(&words("x response-socket-timeout=5")).is_err());
        assert!(check_for_nginx(&words("x connect-timeout=5 threads=2")).is_ok());
    }

    #[test]
    fn sizes_and_intervals() {
        let o =
            parse_text("x max-rss=300M memory-limit=1G restart-interval=0.5 health-check-path=/a health-check-path=/b");
        let r = o.unwrap().recycle;
        assert_eq!((r.max_rss, r.memory_limit, r.restart_interval, r.surge), (300 << 20, 1 << 30, 0.5, 1));
        assert_eq!(r.health_check_path, ["/a", "/b"]);
        for bad in ["max-rss=300", "max-rss=1T", "max-rss=-1", "restart-interval=0.01", "maximum-requests=1e3"] {
            assert!(parse_text(&format!("x {bad}")).is_err(), "{bad}");
        }
        assert!(parse_text("x health-check-path=live").is_err());
        let o = parse_text("x processes=2..8").unwrap();
        assert_eq!((o.minimum_processes, o.processes), (Some(2), Some(8)));
        assert!(
            ["8..2", "0..3", "2..", "..", "2..501"].iter().all(|b| parse_text(&format!("x processes={b}")).is_err())
        );
    }

    #[test]
    fn files_are_watched_only_where_changes_reload() {
        let o = parse_text("x reload-on-changes=on reload-extra-file=/a reload-extra-file=/b").unwrap();
        assert!(o.reload_on_changes && o.reload_extra_files == ["/a", "/b"]);
        assert!(parse_text("x reload-extra-file=/a").unwrap_err().contains("needs reload-on-changes"));
        assert!(parse_text("x reload-on-changes=on reload-extra-file=a").is_err());
        assert!(!parse_text("x").unwrap().reload_on_changes);
    }

    #[test]
    fn the_table_has_no_doubles() {
        let mut names: Vec<_> = TABLE.iter().map(|s| s.name).chain(WITHOUT_EFFECT.iter().copied()).collect();
        let n = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), n);
    }
}
