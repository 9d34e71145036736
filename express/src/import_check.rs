//! Loads the application once, as the user that will serve it, before anything is started: an import error is then shown
//! with its traceback instead of a server that answers 500.

use crate::account::Account;
use crate::application::Application;
use crate::error::Error;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The program that loads; it ends with [`LOADED`].
const PROGRAM: &str = include_str!("import_check.py");

const LOADED: i32 = 87;

/// An application that takes longer than this to import is not refused, only no longer waited for.
const DEADLINE: Duration = Duration::from_secs(60);

/// At most this much of the output is shown, from its end.
const SHOWN: u64 = 64 * 1024;

/// How a check ends that found no fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Loaded {
        /// Bytes of memory the process had then, where the system says it: its proportional share.
        memory: Option<u64>,
    },
    /// It did not end within [`DEADLINE`] and was given up.
    TooSlow,
    /// `stop` said so.
    Stopped,
}

/// Runs the check. `stop` is asked every few milliseconds whether to give up.
pub fn run(
    application: &Application,
    python: &Path,
    home: &Path,
    python_path: &[PathBuf],
    account: &Account,
    mut stop: impl FnMut() -> bool,
) -> Result<Outcome, Error> {
    let (script, module) = match application {
        Application::Script { path, .. } => (path.to_str(), None),
        Application::Module { module, .. } => (None, Some(module)),
    };
    let plan = serde_json::json!({
        "script": script, "module": module, "callable": application.callable(), "home": home, "python_path": python_path,
    });
    let mut command = if account.switched {
        let mut c = Command::new(std::env::current_exe().map_err(Error::io("own path"))?);
        c.arg("run-as").args(crate::helper::account_arguments(account)).arg(python);
        c.env("HOME", &account.home).env("USER", &account.name).env("LOGNAME", &account.name);
        c
    } else {
        Command::new(python)
    };
    // A file in memory takes the output: a pipe could be kept open by what the application starts in the background.
    let mut output = File::from(memfd_create("import-check", MFdFlags::MFD_CLOEXEC)?);
    let duplicate = || output.try_clone().map_err(Error::io("cannot check the application"));
    command
        .args(["-c", PROGRAM])
        .current_dir(home)
        .env("MOD_WSGI_RS_CHECK", plan.to_string())
        .env("PYTHONUNBUFFERED", "1")
        .stdin(Stdio::null())
        .stdout(duplicate()?)
        .stderr(duplicate()?);
    for denied in ["PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "__PYVENV_LAUNCHER__"] {
        command.env_remove(denied);
    }
    let mut child = command.spawn().map_err(Error::io(format!("cannot run '{}'", python.display())))?;
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        // Asked first: Ctrl-C reaches the child as well, and its KeyboardInterrupt is no news.
        let stopped = stop();
        if stopped || Instant::now() > deadline {
            // It may end by itself in between.
            let _ = child.kill();
            let _ = child.wait();
            return Ok(if stopped { Outcome::Stopped } else { Outcome::TooSlow });
        }
        if let Some(status) = child.try_wait().map_err(Error::io("cannot wait for the check"))? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut text = String::new();
    let length = output.stream_position().unwrap_or(0);
    let read = output.seek(std::io::SeekFrom::Start(length.saturating_sub(SHOWN))).and_then(|_| {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes)?;
        text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(())
    });
    read.map_err(Error::io("cannot read the output of the check"))?;
    if status.code() == Some(LOADED) {
        let said = text.rsplit("mod-wsgi-rs-check: ").next().filter(|rest| rest.len() < text.len());
        let kilobytes = said.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        return Ok(Outcome::Loaded { memory: kilobytes.map(|k| k * 1024) });
    }
    if status.code() != Some(1) || text.trim().is_empty() {
        text.push_str(&format!("the interpreter ended with {status} while the application was being loaded\n"));
    }
    Err(Error::Import { output: text.trim_end().to_string() })
}
