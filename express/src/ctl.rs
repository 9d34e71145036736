//! `mod-wsgi-rs ctl status` and `ctl live`: ask a running supervisor over its control socket.

use crate::error::Error;
use mod_wsgi_wire::control::{FromSupervisor, ToSupervisor, decode, encode};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a supervisor may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Prints the status of the supervisor of a run directory.
pub fn status(directory: &Path, json: bool) -> Result<u8, Error> {
    let value = ask(directory)?;
    if json {
        println!("{value}");
    } else {
        print!("{}", describe(&value));
    }
    Ok(0)
}

/// Whether the supervisor of a run directory answers: the liveness of a container. It asks nothing of the server, whose
/// threads may all be busy, and is no request.
pub fn live(directory: &Path) -> Result<u8, Error> {
    ask(directory).map(|_| 0)
}

/// The run directory of an express server root: where its control socket is.
pub fn run_directory_of(server_root: &Path) -> Result<PathBuf, Error> {
    let entries = std::fs::read_dir(server_root)
        .map_err(Error::io(format!("cannot read server root '{}'", server_root.display())))?;
    let mut found = entries.flatten().map(|e| e.path()).filter(|p| p.join("ctl.sock").exists());
    found.next().ok_or_else(|| Error::Ctl(format!("no supervisor runs in server root '{}'", server_root.display())))
}

fn ask(directory: &Path) -> Result<Value, Error> {
    let failed = |e: std::io::Error| {
        Error::Ctl(format!("no answer from a supervisor in '{}': {e}; is the server running?", directory.display()))
    };
    // Through the descriptor, since the path of a socket has at most 107 bytes.
    let opened: File = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_PATH | nix::libc::O_DIRECTORY)
        .open(directory)
        .map_err(failed)?;
    let mut stream = UnixStream::connect(format!("/proc/self/fd/{}/ctl.sock", opened.as_raw_fd())).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let message = encode(&ToSupervisor::Status).map_err(|e| Error::Internal(e.to_string()))?;
    stream.write_all(&message).map_err(failed)?;
    let mut buffer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        let answer =
            decode::<FromSupervisor>(&buffer).map_err(|e| Error::Ctl(format!("the supervisor's answer: {e}")))?;
        match answer {
            Some((FromSupervisor::Status { status }, _)) => return Ok(status),
            Some((FromSupervisor::Refused { text, .. }, _)) => return Err(Error::Ctl(format!("refused: {text}"))),
            Some(_) => {
                return Err(Error::Ctl("the supervisor answers something else; is it of another version?".into()));
            }
            None => {}
        }
        match stream.read(&mut chunk).map_err(failed)? {
            0 => return Err(failed(std::io::ErrorKind::UnexpectedEof.into())),
            n => buffer.extend_from_slice(&chunk[..n]),
        }
    }
}

/// The status for people: one line a pool of workers, one a worker.
fn describe(status: &Value) -> String {
    let mut out = format!("supervisor {}\n", shown(&status["pid"]));
    for pool in status["pools"].as_array().into_iter().flatten() {
        let group = match pool["group"].as_str() {
            None | Some("") => "(automatic group)".into(),
            Some(name) => format!("group {name}"),
        };
        let application = pool["application"].as_str().filter(|a| !a.is_empty()).unwrap_or("%{GLOBAL}");
        let workers = pool["workers"].as_array().map_or(&[][..], Vec::as_slice);
        out.push_str(&format!(
            "{}, application group {}: {}, {} of {} workers, {} threads each\n",
            group.escape_debug(),
            application.escape_debug(),
            shown(&pool["state"]),
            workers.len(),
            shown(&pool["target"]),
            shown(&pool["threads"]),
        ));
        for worker in workers {
            out.push_str(&format!(
                "  worker {}: {}, {} s old, Python {}, {} requests, {} running, {} waiting\n",
                shown(&worker["pid"]),
                shown(&worker["state"]),
                worker["age"].as_f64().map_or("-".into(), |age| format!("{age:.0}")),
                shown(&worker["python"]),
                shown(&worker["requests"]),
                shown(&worker["running"]),
                shown(&worker["sent"]),
            ));
        }
        if let Some(last) = pool["last_exit"].as_str().filter(|l| !l.is_empty()) {
            out.push_str(&format!("  last end of a worker: {}\n", last.escape_debug()));
        }
    }
    out
}

/// A number or text; control characters escaped, since names come from configuration and workers.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.escape_debug().to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_for_people() {
        let worker = serde_json::json!({"pid": 8, "state": "ready", "age": 2.4, "python": "3.11.2", "requests": 5, "running": 1, "sent": 0});
        let pool = serde_json::json!({
            "group": "blog", "application": "", "state": "active", "target": 1, "threads": 5, "workers": [worker], "last_exit": "",
        });
        let text = describe(&serde_json::json!({"pid": 7, "pools": [pool]}));
        assert_eq!(
            text,
            "supervisor 7\ngroup blog, application group %{GLOBAL}: active, 1 of 1 workers, 5 threads each\n  \
             worker 8: ready, 2 s old, Python 3.11.2, 5 requests, 1 running, 0 waiting\n"
        );
    }

    #[test]
    fn says_when_nobody_is_there() {
        let error = ask(&std::env::temp_dir()).unwrap_err();
        assert_eq!(error.code(), "MWR0618");
    }
}
