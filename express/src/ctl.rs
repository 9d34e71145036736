//! `mod-wsgi-rs ctl`: asks and commands a running supervisor over its control socket.

use crate::error::Error;
use mod_wsgi_wire::control::{Command, FromSupervisor, ToSupervisor, decode, encode};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// Gives a command; with `wait` until every worker it concerns is new, at most so long.
pub fn command(directory: &Path, command: Command, wait: Option<Duration>, json: bool) -> Result<u8, Error> {
    let (pools, text) = order(directory, command)?;
    if json {
        println!("{}", serde_json::json!({ "pools": pools, "text": text }));
    } else {
        print!("{text}");
    }
    let Some(limit) = wait else { return Ok(0) };
    let end = Instant::now() + limit;
    loop {
        let status = ask(directory)?;
        match progress(&status, &pools) {
            Progress::Done => return Ok(0),
            Progress::Refused(why) => {
                return Err(Error::Ctl(format!("not reloaded, the old code goes on: {}", why.trim_end())));
            }
            Progress::Waiting(what) if Instant::now() >= end => {
                return Err(Error::Ctl(format!("not finished within {} s: {what}", limit.as_secs())));
            }
            Progress::Waiting(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

enum Progress {
    Done,
    Waiting(String),
    /// The new version cannot be loaded; its traceback.
    Refused(String),
}

/// Whether the pools have come to the versions that a command gave them.
fn progress(status: &Value, pools: &[(u32, u64)]) -> Progress {
    let all = status["pools"].as_array().map_or(&[][..], Vec::as_slice);
    for (id, epoch) in pools {
        // A pool that has gone has nothing to wait for.
        let Some(p) = all.iter().find(|p| p["id"].as_u64() == Some((*id).into())) else { continue };
        let workers = p["workers"].as_array().map_or(&[][..], Vec::as_slice);
        let ready = workers.iter().filter(|w| w["state"] == "ready");
        let fresh = |w: &&Value| w["epoch"].as_u64().is_some_and(|e| e >= *epoch);
        let (new, old) = (ready.clone().filter(fresh).count() as u64, ready.filter(|w| !fresh(w)).count());
        if old == 0 && new >= p["target"].as_u64().unwrap_or(0) {
            continue;
        }
        if let Some(why) = p["refusal"].as_str().filter(|r| !r.is_empty()) {
            return Progress::Refused(why.to_owned());
        }
        return Progress::Waiting(format!("{} has {new} new and {old} old workers", shown(&p["group"])));
    }
    Progress::Done
}

/// Gives a command; the pools it concerned with their versions, and the answer for people.
pub fn order(directory: &Path, command: Command) -> Result<(Vec<(u32, u64)>, String), Error> {
    match talk(directory, &ToSupervisor::Command { command })? {
        FromSupervisor::Done { pools, text } => Ok((pools, text)),
        other => Err(unexpected(other)),
    }
}

/// The status of the supervisor of a run directory.
pub fn ask(directory: &Path) -> Result<Value, Error> {
    match talk(directory, &ToSupervisor::Status)? {
        FromSupervisor::Status { status } => Ok(status),
        other => Err(unexpected(other)),
    }
}

fn unexpected(answer: FromSupervisor) -> Error {
    match answer {
        FromSupervisor::Refused { text, .. } => Error::Ctl(format!("refused: {text}")),
        _ => Error::Ctl("the supervisor answers something else; is it of another version?".into()),
    }
}

fn talk(directory: &Path, message: &ToSupervisor) -> Result<FromSupervisor, Error> {
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
    let message = encode(message).map_err(|e| Error::Internal(e.to_string()))?;
    stream.write_all(&message).map_err(failed)?;
    let mut buffer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        let answer =
            decode::<FromSupervisor>(&buffer).map_err(|e| Error::Ctl(format!("the supervisor's answer: {e}")))?;
        if let Some((answer, _)) = answer {
            return Ok(answer);
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
        let ready = workers.iter().filter(|w| w["state"] == "ready").count();
        out.push_str(&format!(
            "{}, application group {}: {}, {ready} of {} workers, {} threads each\n",
            group.escape_debug(),
            application.escape_debug(),
            shown(&pool["state"]),
            shown(&pool["target"]),
            shown(&pool["threads"]),
        ));
        if pool["away"] == true {
            out.push_str("  not ready for load balancers, by order\n");
        }
        let counts =
            [("queue_full", "refused (queue full)"), ("queue_timeouts", "waited too long"), ("recalls", "recalled")];
        let counts = counts.iter().filter(|(k, _)| pool[*k].as_u64().is_some_and(|n| n > 0));
        let counts: Vec<String> = counts.map(|(k, what)| format!("{} {what}", shown(&pool[*k]))).collect();
        if !counts.is_empty() {
            out.push_str(&format!("  requests: {}\n", counts.join(", ")));
        }
        if !workers.is_empty() {
            out.push_str("      PID  STATE     AGE       MEMORY  CPU       REQUESTS  RUNNING  WAITING  PYTHON\n");
        }
        for worker in workers {
            let due =
                worker["due"].as_str().map_or(String::new(), |d| format!("  to be replaced: {}", d.escape_debug()));
            out.push_str(&format!(
                "  {:>7}  {:<8}  {:<8}  {:>6}  {:<8}  {:>8}  {:>7}  {:>7}  {}{due}\n",
                shown(&worker["pid"]),
                shown(&worker["state"]),
                span(&worker["age"]),
                worker["rss"].as_u64().map_or("-".into(), |b| format!("{}M", b >> 20)),
                span(&worker["cpu"]),
                shown(&worker["requests"]),
                shown(&worker["running"]),
                shown(&worker["sent"]),
                shown(&worker["python"]),
            ));
            for request in worker["under_way"].as_array().into_iter().flatten() {
                let (line, phase) = (shown(&request["line"]), shown(&request["phase"]));
                out.push_str(&format!("           {} {phase}: {line}\n", span(&request["seconds"])));
            }
        }
        if let Some(why) = pool["refusal"].as_str().filter(|r| !r.is_empty()) {
            let last = why.trim_end().lines().next_back().unwrap_or_default();
            out.push_str(&format!("  the new code cannot be loaded, the old goes on: {}\n", last.escape_debug()));
        }
        if let Some(last) = pool["last_exit"].as_str().filter(|l| !l.is_empty()) {
            out.push_str(&format!("  last end of a worker: {}\n", last.escape_debug()));
        }
    }
    out
}

/// A time for people.
fn span(seconds: &Value) -> String {
    match seconds.as_f64() {
        None => "-".into(),
        Some(s) if s < 10.0 => format!("{s:.1}s"),
        Some(s) if s < 600.0 => format!("{s:.0}s"),
        Some(s) if s < 36_000.0 => format!("{:.0}m", s / 60.0),
        Some(s) if s < 864_000.0 => format!("{:.0}h", s / 3600.0),
        Some(s) => format!("{:.0}d", s / 86_400.0),
    }
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
        let worker = serde_json::json!({
            "pid": 8, "state": "ready", "age": 2.4, "python": "3.11.2", "requests": 5, "running": 1, "sent": 0,
            "rss": 30 << 20, "cpu": 700.0, "under_way": [{"line": "GET /a\u{1b}", "phase": "application", "seconds": 0.25}],
            "due": "restart_interval",
        });
        let pool = serde_json::json!({
            "group": "blog", "application": "", "state": "active", "target": 2, "threads": 5, "workers": [worker],
            "last_exit": "exit code 3", "queue_full": 7, "refusal": "Traceback:\nValueError: x\n",
        });
        let text = describe(&serde_json::json!({"pid": 7, "pools": [pool]}));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..3],
            [
                "supervisor 7",
                "group blog, application group %{GLOBAL}: active, 1 of 2 workers, 5 threads each",
                "  requests: 7 refused (queue full)",
            ]
        );
        let words: Vec<&str> = lines[4].split_whitespace().collect();
        assert_eq!(words[..9], ["8", "ready", "2.4s", "30M", "12m", "5", "1", "0", "3.11.2"]);
        assert!(lines[4].ends_with("to be replaced: restart_interval"));
        assert_eq!(lines[5].trim(), "0.2s application: GET /a\\u{1b}");
        assert_eq!(lines[6], "  the new code cannot be loaded, the old goes on: ValueError: x");
        assert_eq!(lines[7], "  last end of a worker: exit code 3");
    }

    #[test]
    fn a_reload_is_over_when_every_worker_is_new() {
        let status = |workers: Value, refusal: &str| serde_json::json!({"pools": [{"id": 1, "group": "g", "target": 2, "refusal": refusal, "workers": workers}]});
        let w = |epoch: u64, state: &str| serde_json::json!({"epoch": epoch, "state": state});
        let is = |workers: Value, refusal: &str| progress(&status(workers, refusal), &[(1, 5), (9, 1)]);
        let new = serde_json::json!([w(5, "ready"), w(6, "ready"), w(4, "draining")]);
        assert!(matches!(is(new, ""), Progress::Done));
        let mixed = serde_json::json!([w(5, "ready"), w(4, "ready")]);
        assert!(matches!(is(mixed.clone(), ""), Progress::Waiting(_)));
        assert!(matches!(is(mixed, "boom"), Progress::Refused(_)));
        assert!(matches!(is(serde_json::json!([w(5, "starting")]), ""), Progress::Waiting(_)));
    }

    #[test]
    fn says_when_nobody_is_there() {
        let error = ask(&std::env::temp_dir()).unwrap_err();
        assert_eq!(error.code(), "MWR0618");
    }
}
