//! `mod-wsgi-rs container`: express as the first process of a container. It reads the files of `.mod-wsgi-rs` in the
//! working directory (`env`, `server_args`, the hooks `start` and `deploy`), runs express as its child with what containers
//! want preset, passes signals on, and waits for every process that is left to it.

use crate::error::Error;
use crate::options;
use crate::sources::{self, Source};
use clap::{Arg, ArgAction, ArgMatches, Command as Cli};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory of hooks and settings, below the working directory.
const DIRECTORY: &str = ".mod-wsgi-rs";

/// What containers want unless something else is said.
const PRESETS: [&str; 2] = ["--log-to-terminal", "--container-limits"];

/// The largest settings file that is read.
const LARGEST: u64 = 1 << 20;

/// The command line.
pub fn command() -> Cli {
    options::command("container").about("The same as the first process of a container; see docs/docker.md").arg(
        Arg::new("deploy")
            .long("deploy")
            .action(ArgAction::SetTrue)
            .help("Run the hook deploy (.mod-wsgi-rs/deploy) instead of serving, and end with its status"),
    )
}

/// Runs it; the exit status.
pub fn run(matches: &ArgMatches) -> Result<u8, Error> {
    let directory = Path::new(DIRECTORY);
    let environment = environment(directory)?;
    // Before anything is started, so that signals are kept for it.
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD]).map_err(Error::io("signals"))?;
    let line = Source::parsed(matches);
    let file = arguments(directory)?;
    let variables = Source::variables(environment.iter().map(|(n, v)| (n.clone(), v.clone())))?;
    let presets = Source::words(&PRESETS.map(OsString::from), "")?;
    if matches.get_flag("deploy") {
        let path = hook(directory, "deploy")?
            .ok_or_else(|| Error::Hook { path: directory.join("deploy"), why: "does not exist".into() })?;
        return supervise(Command::new(path).envs(&environment), &mut signals).map(End::status);
    }
    if let Some(path) = hook(directory, "start")? {
        match supervise(Command::new(&path).envs(&environment), &mut signals)? {
            End { status: 0, .. } => {}
            // Whoever ended the container has his wish.
            End { told: true, .. } => return Ok(0),
            End { status, .. } => return Err(Error::Hook { path, why: format!("ended with status {status}") }),
        }
    }
    let own = std::env::current_exe().map_err(Error::io("own path"))?;
    let mut express = Command::new(own);
    express.arg("express").args(sources::merge(&[line, file, variables, presets])).envs(&environment);
    supervise(&mut express, &mut signals).map(End::status)
}

/// How a child ended.
#[derive(Debug, Clone, Copy)]
struct End {
    /// Its exit status, 128 and the number of the signal that ended it.
    status: u8,
    /// Whether it was told to end.
    told: bool,
}

impl End {
    fn status(self) -> u8 {
        self.status
    }
}

/// Runs a child to its end. Signals go to it; whatever else ends is waited for too, since processes whose parent has gone
/// are left to the first process.
fn supervise(command: &mut Command, signals: &mut Signals) -> Result<End, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.spawn().map_err(Error::io(format!("cannot run '{program}'")))?;
    let pid = Pid::from_raw(child.id() as i32);
    let mut told = false;
    loop {
        if let Some(status) = reap(pid)? {
            return Ok(End { status, told });
        }
        for signal in signals.wait() {
            if signal == SIGCHLD {
                continue;
            }
            told |= matches!(signal, SIGTERM | SIGINT | SIGQUIT);
            // ESRCH: it has ended, which the next look says.
            let _ = kill(pid, Signal::try_from(signal)?);
        }
    }
}

/// Waits for everything that has ended; the status of `child` if it is among them.
fn reap(child: Pid) -> Result<Option<u8>, Error> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => found = Some(status as u8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => found = Some(128 + signal as i32 as u8),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(found),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// A hook, if it is there.
fn hook(directory: &Path, name: &str) -> Result<Option<PathBuf>, Error> {
    let path = directory.join(name);
    match std::fs::metadata(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("cannot look at '{}'", path.display()))(e)),
        Ok(_) if !mod_wsgi_core::interpreter::is_executable(&path) => {
            Err(Error::Hook { path, why: "is not executable; make it so with chmod +x before it is copied".into() })
        }
        Ok(_) => Ok(Some(std::path::absolute(&path).map_err(Error::io("the current directory"))?)),
    }
}

/// A file of settings, if it is there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let what = || format!("cannot read '{}'", path.display());
    let length = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io(what()))?.len(),
    };
    if length > LARGEST {
        return Err(Error::Settings { path: path.into(), line: 0, why: "is larger than 1 MiB".into() });
    }
    std::fs::read(path).map(Some).map_err(Error::io(what()))
}

/// `server_args`: options and application as on a command line, over as many lines as one likes.
fn arguments(directory: &Path) -> Result<Source, Error> {
    let path = directory.join("server_args");
    let Some(bytes) = read(&path)? else { return Ok(Source::default()) };
    let text = String::from_utf8(bytes).ok();
    let words = text.as_deref().and_then(shlex::split).ok_or_else(|| Error::Settings {
        path: path.clone(),
        line: 0,
        why: "must be words of UTF-8 text, with its quotes closed".into(),
    })?;
    let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    Source::words(&words, &format!("{}: ", path.display()))
}

/// The environment: that of the container, and for what it does not set the file `env`.
fn environment(directory: &Path) -> Result<BTreeMap<OsString, OsString>, Error> {
    let path = directory.join("env");
    let mut all = match read(&path)? {
        Some(bytes) => assignments(&bytes).map_err(|(line, why)| Error::Settings { path, line, why: why.into() })?,
        None => BTreeMap::new(),
    };
    all.extend(std::env::vars_os());
    Ok(all)
}

/// Lines `NAME=value`, as files of `docker run --env-file`: no quotes, no substitution; `#` begins a comment line.
fn assignments(bytes: &[u8]) -> Result<BTreeMap<OsString, OsString>, (usize, &'static str)> {
    let mut found = BTreeMap::new();
    for (at, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let line = line.trim_ascii_end();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let Some(equals) = line.iter().position(|b| *b == b'=') else { return Err((at + 1, "must be NAME=value")) };
        let (name, value) = (&line[..equals], &line[equals + 1..]);
        let sound = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        if name.is_empty() || !name.iter().all(sound) || value.contains(&0) {
            return Err((at + 1, "must be NAME=value, the name of letters, digits and _"));
        }
        found.insert(OsStr::from_bytes(name).into(), OsString::from_vec(value.into()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_variables() {
        let found = assignments(b"# a comment\n\nA=1\nB= x \"y\" \r\nC=\n").unwrap();
        let shown: Vec<(&str, &str)> = found.iter().map(|(n, v)| (n.to_str().unwrap(), v.to_str().unwrap())).collect();
        assert_eq!(shown, [("A", "1"), ("B", " x \"y\""), ("C", "")]);
        assert_eq!(assignments(b"A=1\nexport B=2\n").unwrap_err().0, 2);
        assert_eq!(assignments(b"nothing\n").unwrap_err().0, 1);
    }

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
    }
}
