//! Which Python a daemon process group runs, and whether workers can run in it.
//!
//! The server's parent asks at configuration time (`configtest` and start), the launcher before it starts anything. An
//! interpreter is run once, with a program that only prints facts about it; nothing of the application is imported. The
//! bootstrap of a worker checks the same facts again, since an interpreter can be replaced under a running server.

use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The interpreter of groups without `python-home`. Never looked up on the server's PATH, which differs between a shell,
/// a service manager and cron.
pub const DEFAULT: &str = "/usr/bin/python3";

/// The oldest version that loads the worker's extension.
pub const MINIMUM: (u32, u32) = (3, 10);

/// How long an interpreter may take to print the facts about itself.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Variables of the server's environment that the interpreter is run with; without LD_LIBRARY_PATH one whose libpython
/// lies in an unusual place would not start here, though its workers would.
const KEPT: [&str; 4] = ["PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH"];

/// More output than this is not read: the program prints less than 1 KiB.
const OUTPUT_LIMIT: usize = 64 * 1024;

/// Python 2 cannot parse `-I`, so this need not be Python 2; it must work in every Python 3. `-S` keeps `.pth` files of a
/// virtual environment, which may hold code, from running as the server's parent.
const PROGRAM: &str = r#"
import os, sys, sysconfig
def libc():
    try:
        return os.confstr('CS_GNU_LIBC_VERSION') or ''
    except (AttributeError, ValueError, OSError):
        pass
    return 'musl' if 'musl' in (sysconfig.get_config_var('SOABI') or sys.platform) else ''
facts = [
    ('implementation', sys.implementation.name),
    ('version', '%d.%d.%d' % sys.version_info[:3]),
    ('abiflags', getattr(sys, 'abiflags', '')),
    ('free_threaded', int(bool(sysconfig.get_config_var('Py_GIL_DISABLED')))),
    ('bits', sys.maxsize.bit_length() + 1),
    ('soabi', sysconfig.get_config_var('SOABI') or ''),
    ('libc', libc()),
]
sys.stdout.write(''.join('%s=%s\n' % fact for fact in facts) + 'end\n')
sys.stdout.flush()
"#;

/// What an interpreter says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// As it was asked for: inside a virtual environment, symbolic links kept.
    pub path: PathBuf,
    /// `sys.implementation.name`: `cpython`, `pypy`, …
    pub implementation: String,
    pub version: (u32, u32, u32),
    /// `sys.abiflags`: `t` free-threaded, `d` debug build.
    pub abi_flags: String,
    pub free_threaded: bool,
    /// Width of a pointer.
    pub bits: u32,
    /// `SOABI`, such as `cpython-311-x86_64-linux-gnu`; may be empty.
    pub soabi: String,
    /// `glibc 2.36`, `musl`; empty when it could not be told.
    pub libc: String,
}

impl std::fmt::Display for Interpreter {
    /// One phrase for logs: `cpython 3.11.2 (cpython-311-x86_64-linux-gnu, 64 bit, glibc 2.36)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor, micro) = self.version;
        write!(f, "{} {major}.{minor}.{micro}{} (", self.implementation, self.abi_flags)?;
        for part in [&self.soabi, &self.libc] {
            if !part.is_empty() {
                write!(f, "{part}, ")?;
            }
        }
        write!(f, "{} bit)", self.bits)
    }
}

/// Why an interpreter cannot run workers. All of these are faults of the configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "python home '{}' has no executable bin/python, bin/python3 or bin/python3.N; name the root of a virtual \
         environment or of an installation", home.display()
    )]
    Home { home: PathBuf },
    #[error("python interpreter '{}' does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("python interpreter '{}' cannot be run: {source}", path.display())]
    Run { path: PathBuf, source: std::io::Error },
    #[error("python interpreter '{}' did not answer within {} seconds", path.display(), DEADLINE.as_secs())]
    Deadline { path: PathBuf },
    #[error("python interpreter '{}' failed ({status}): {output}", path.display())]
    Failed { path: PathBuf, status: ExitStatus, output: String },
    #[error("'{}' does not answer like a python interpreter", path.display())]
    NotPython { path: PathBuf },
    #[error("'{}' is {found}; workers need CPython {}.{} or later", path.display(), MINIMUM.0, MINIMUM.1)]
    Implementation { path: PathBuf, found: String },
    #[error("'{}' is Python {found}; workers need CPython {}.{} or later", path.display(), MINIMUM.0, MINIMUM.1)]
    Version { path: PathBuf, found: String },
    #[error(
        "'{}' is a free-threaded build of Python {found}; workers need the ordinary build, with the GIL",
        path.display()
    )]
    FreeThreaded { path: PathBuf, found: String },
    #[error("'{}' is a {found} bit interpreter; this build of mod-wsgi-rs needs one of {} bit", path.display(), usize::BITS)]
    WordSize { path: PathBuf, found: u32 },
    #[error("'{}' uses the C library {found}; this build of mod-wsgi-rs needs an interpreter built for {needed}", path.display())]
    Libc { path: PathBuf, found: String, needed: &'static str },
}

impl Error {
    /// The code of this message in docs/errors.md.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Home { .. } | Error::Missing { .. } => "MWR0450",
            Error::Run { .. } | Error::Failed { .. } | Error::NotPython { .. } => "MWR0451",
            Error::Deadline { .. } => "MWR0452",
            Error::Implementation { .. } => "MWR0453",
            Error::Version { .. } => "MWR0454",
            Error::FreeThreaded { .. } => "MWR0455",
            Error::WordSize { .. } => "MWR0456",
            Error::Libc { .. } => "MWR0457",
        }
    }
}

/// User and group an interpreter is run as; only root can ask for others than its own. Supplementary groups are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

/// The interpreter of a `python-home`: `bin/python`, else `bin/python3`, else the `bin/python3.N` with the highest N; of
/// no home [`DEFAULT`]. The path is not resolved: a virtual environment is found through the link in it.
pub fn resolve(home: Option<&Path>) -> Result<PathBuf, Error> {
    let Some(home) = home else {
        let path = PathBuf::from(DEFAULT);
        return if is_executable(&path) { Ok(path) } else { Err(Error::Missing { path }) };
    };
    let bin = home.join("bin");
    for name in ["python", "python3"] {
        let path = bin.join(name);
        if is_executable(&path) {
            return Ok(path);
        }
    }
    let entries = std::fs::read_dir(&bin).map_err(|_| Error::Home { home: home.into() })?;
    let minor = |name: &str| name.strip_prefix("python3.").and_then(|n| n.parse::<u32>().ok());
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str().and_then(minor))
        .filter(|n| is_executable(&bin.join(format!("python3.{n}"))))
        .max()
        .map(|n| bin.join(format!("python3.{n}")))
        .ok_or_else(|| Error::Home { home: home.into() })
}

/// Whether `path` is a file that somebody may execute.
pub fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Runs the interpreter once and says whether workers can run in it. Blocks for at most [`DEADLINE`].
pub fn check(path: &Path, run_as: Option<RunAs>) -> Result<Interpreter, Error> {
    let found = probe(path, run_as)?;
    judge(&found)?;
    Ok(found)
}

/// Runs the interpreter once and returns what it says of itself, acceptable or not.
pub fn probe(path: &Path, run_as: Option<RunAs>) -> Result<Interpreter, Error> {
    if !path.exists() {
        return Err(Error::Missing { path: path.into() });
    }
    let run = |source| Error::Run { path: path.into(), source };
    let (ours, theirs) = UnixStream::pair().map_err(run)?;
    let (errors, their_errors) = UnixStream::pair().map_err(run)?;
    let mut command = Command::new(path);
    command.args(["-I", "-S", "-c", PROGRAM]).current_dir("/").env_clear().stdin(Stdio::null());
    command.envs(KEPT.iter().filter_map(|k| Some((k, std::env::var_os(k)?))));
    command.stdout(OwnedFd::from(theirs)).stderr(OwnedFd::from(their_errors));
    if let Some(RunAs { uid, gid }) = run_as {
        command.uid(uid).gid(gid);
    }
    let mut child = command.spawn().map_err(run)?;
    // Closes our copies of the child's ends, so that end of file is seen.
    drop(command);
    let deadline = Instant::now() + DEADLINE;
    let outcome = read_facts(ours, deadline).and_then(|text| Ok((text, wait(&mut child, deadline)?)));
    let (text, status) = match outcome {
        Ok(both) => both,
        Err(source) => {
            // Ends what is still running; it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            let timed_out = matches!(source.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
            return Err(if timed_out { Error::Deadline { path: path.into() } } else { run(source) });
        }
    };
    if !status.success() {
        let output = read_rest(errors);
        if output.contains("Unknown option: -I") {
            return Err(Error::Version { path: path.into(), found: "2".into() });
        }
        return Err(Error::Failed { path: path.into(), status, output });
    }
    parse(path, &text).ok_or_else(|| Error::NotPython { path: path.into() })
}

/// Whether workers of this build can run in the interpreter.
pub fn judge(found: &Interpreter) -> Result<(), Error> {
    let path = found.path.clone();
    let (major, minor, micro) = found.version;
    let version = format!("{major}.{minor}.{micro}");
    if found.implementation != "cpython" {
        return Err(Error::Implementation { path, found: format!("{} {version}", found.implementation) });
    }
    if (major, minor) < MINIMUM {
        return Err(Error::Version { path, found: version });
    }
    if found.free_threaded || found.abi_flags.contains('t') {
        return Err(Error::FreeThreaded { path, found: version });
    }
    if found.bits != usize::BITS {
        return Err(Error::WordSize { path, found: found.bits });
    }
    let needed = if cfg!(target_env = "musl") { "musl" } else { "glibc" };
    if !found.libc.starts_with(needed) {
        let found = if found.libc.is_empty() { "(unknown)".into() } else { found.libc.clone() };
        return Err(Error::Libc { path, found, needed });
    }
    Ok(())
}

/// Reads until the last line of the facts, end of file, the limit or the deadline. What an interpreter leaves running in
/// the background may keep the other end open, so end of file is not waited for.
fn read_facts(mut from: UnixStream, deadline: Instant) -> std::io::Result<String> {
    let mut out = Vec::new();
    let mut chunk = [0; 4096];
    while out.len() < OUTPUT_LIMIT && !out.ends_with(b"\nend\n") {
        let left = deadline.checked_duration_since(Instant::now()).ok_or(ErrorKind::TimedOut)?;
        from.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => out.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// What has been written so far, on one line, for a message.
fn read_rest(mut from: UnixStream) -> String {
    let mut out = vec![0; 400];
    let n = match from.set_nonblocking(true) {
        Ok(()) => from.read(&mut out).unwrap_or(0),
        Err(_) => 0,
    };
    let text = String::from_utf8_lossy(&out[..n]);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    if lines.is_empty() { "it wrote no message".into() } else { lines.join("; ") }
}

/// Waits for the end of the child; there is no wait with a deadline in the standard library, so it is polled.
fn wait(child: &mut Child, deadline: Instant) -> std::io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The facts that [`PROGRAM`] prints; `None` for anything else.
fn parse(path: &Path, text: &str) -> Option<Interpreter> {
    // Something in front may be the work of a wrapper script.
    let start = text.find("implementation=")?;
    let body = text[start..].strip_suffix("end\n")?;
    let value = |name: &str| body.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
    let mut numbers = value("version")?.split('.').map(|n| n.parse::<u32>().ok());
    let version = (numbers.next()??, numbers.next()??, numbers.next()??);
    Some(Interpreter {
        path: path.into(),
        implementation: value("implementation")?.into(),
        version,
        abi_flags: value("abiflags")?.into(),
        free_threaded: value("free_threaded")? == "1",
        bits: value("bits")?.parse().ok()?,
        soabi: value("soabi")?.into(),
        libc: value("libc")?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::{Mutex, MutexGuard};

    /// A script cannot be executed while a concurrent test has forked a child that still holds it open for writing.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// A directory of this test, removed at its end.
    struct Scratch(PathBuf, #[allow(dead_code)] MutexGuard<'static, ()>);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
            let dir = std::env::temp_dir().join(format!("mwr-interpreter-{}-{name}", std::process::id()));
            fs::create_dir_all(dir.join("bin")).unwrap();
            Scratch(dir, guard)
        }
        fn script(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join("bin").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn good() -> Interpreter {
        Interpreter {
            path: "/opt/p/bin/python".into(),
            implementation: "cpython".into(),
            version: (3, 12, 1),
            abi_flags: String::new(),
            free_threaded: false,
            bits: usize::BITS,
            soabi: "cpython-312-x86_64-linux-gnu".into(),
            libc: if cfg!(target_env = "musl") { "musl".into() } else { "glibc 2.36".into() },
        }
    }

    #[test]
    fn resolves_in_order() {
        let s = Scratch::new("order");
        assert!(matches!(resolve(Some(&s.0)), Err(Error::Home { .. })));
        s.script("python3.9", "");
        s.script("python3.12", "");
        s.script("python3.12-config", "");
        fs::write(s.0.join("bin/python3.14"), "not executable").unwrap();
        assert!(resolve(Some(&s.0)).unwrap().ends_with("bin/python3.12"));
        s.script("python3", "");
        assert!(resolve(Some(&s.0)).unwrap().ends_with("bin/python3"));
        s.script("python", "");
        assert!(resolve(Some(&s.0)).unwrap().ends_with("bin/python"));
        assert!(matches!(resolve(Some(Path::new("/nonexistent"))), Err(Error::Home { .. })));
    }

    #[test]
    fn judges() {
        judge(&good()).unwrap();
        let refused = |change: fn(&mut Interpreter)| {
            let mut i = good();
            change(&mut i);
            let e = judge(&i).unwrap_err();
            assert!(e.to_string().contains("/opt/p/bin/python"), "{e}");
            e.code()
        };
        assert_eq!(refused(|i| i.implementation = "pypy".into()), "MWR0453");
        assert_eq!(refused(|i| i.version = (3, 9, 18)), "MWR0454");
        assert_eq!(refused(|i| i.free_threaded = true), "MWR0455");
        assert_eq!(refused(|i| i.abi_flags = "t".into()), "MWR0455");
        assert_eq!(refused(|i| i.bits = usize::BITS / 2), "MWR0456");
        assert_eq!(refused(|i| i.libc = "bionic".into()), "MWR0457");
        assert_eq!(refused(|i| i.libc = String::new()), "MWR0457");
    }

    #[test]
    fn names_what_is_no_interpreter() {
        let s = Scratch::new("bad");
        let code = |p: &Path| check(p, None).unwrap_err().code();
        assert_eq!(code(Path::new("/nonexistent/python")), "MWR0450");
        assert_eq!(code(&s.script("silent", "#!/bin/sh\nexit 0\n")), "MWR0451");
        let failing = s.script("failing", "#!/bin/sh\necho 'no such library' >&2; exit 127\n");
        let e = check(&failing, None).unwrap_err();
        assert!(e.to_string().contains("no such library"), "{e}");
        let two = s.script("two", "#!/bin/sh\necho 'Unknown option: -I' >&2; exit 2\n");
        assert_eq!(code(&two), "MWR0454");
    }

    #[test]
    fn a_background_child_of_a_wrapper_does_not_hold_it_up() {
        if !Path::new(DEFAULT).exists() {
            return;
        }
        let s = Scratch::new("wrapper");
        let path = s.script("python", &format!("#!/bin/sh\nsleep 11 &\nexec {DEFAULT} \"$@\"\n"));
        let started = Instant::now();
        let found = probe(&path, None).unwrap();
        assert!(started.elapsed() < DEADLINE);
        assert_eq!(found.path, path);
        assert_eq!(found.bits, usize::BITS);
        assert!(found.to_string().starts_with("cpython 3."), "{found}");
    }
}
