//! `mod-wsgi-rs ctl status`: asks a running supervisor over its control socket.

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
        let mut out = String::new();
        write_value(&mut out, &value, 0);
        print!("{out}");
    }
    Ok(0)
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

/// Indented `key: value` lines; lists of objects get a dash each.
fn write_value(out: &mut String, value: &Value, depth: usize) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                if inner.is_object() || inner.as_array().is_some_and(|a| !a.is_empty()) {
                    out.push_str(&format!("{pad}{key}:\n"));
                    write_value(out, inner, depth + 1);
                } else {
                    out.push_str(&format!("{pad}{key}: {}\n", scalar(inner)));
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                if item.is_object() {
                    let mut text = String::new();
                    write_value(&mut text, item, depth + 1);
                    out.push_str(&format!("{pad}- {}", text.trim_start()));
                } else {
                    out.push_str(&format!("{pad}- {}\n", scalar(item)));
                }
            }
        }
        _ => out.push_str(&format!("{pad}{}\n", scalar(value))),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.escape_debug().to_string(),
        Value::Array(_) => "-".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_for_people() {
        let value = serde_json::json!({"groups": [{"name": "blog", "slots": [{"pid": 7}]}], "none": []});
        let mut out = String::new();
        write_value(&mut out, &value, 0);
        assert_eq!(out, "groups:\n  - name: blog\n    slots:\n      - pid: 7\nnone: -\n");
    }

    #[test]
    fn says_when_nobody_is_there() {
        let error = ask(&std::env::temp_dir()).unwrap_err();
        assert_eq!(error.code(), "MWR0618");
    }
}
