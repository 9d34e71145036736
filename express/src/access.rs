//! Whether the serving user reaches what it needs, and which directory is in the way when it does not (a clone below
//! /root, started as root, is the first thing a new user tries).

use crate::account::Account;
use crate::error::Error;
use nix::unistd::{AccessFlags, access};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// What is needed of the file or directory itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Read,
    /// Read and search a directory.
    List,
    /// Run a file.
    Execute,
    /// Search a directory.
    Pass,
}

impl Need {
    const ALL: [(Need, &'static str); 4] =
        [(Need::Read, "read"), (Need::List, "list"), (Need::Execute, "execute"), (Need::Pass, "pass")];

    fn word(self) -> &'static str {
        Need::ALL.iter().find(|(n, _)| *n == self).map_or("", |(_, word)| word)
    }
    fn flags(self) -> AccessFlags {
        match self {
            Need::Read => AccessFlags::R_OK,
            Need::List => AccessFlags::R_OK | AccessFlags::X_OK,
            Need::Execute | Need::Pass => AccessFlags::X_OK,
        }
    }
    /// For a message: "user X cannot … PATH".
    fn verb(self) -> &'static str {
        match self {
            Need::Read => "read",
            Need::List => "enter and read",
            Need::Execute => "run",
            Need::Pass => "enter",
        }
    }
    /// The mode bits that are missing, as chmod names them.
    fn bits(self) -> &'static str {
        match self {
            Need::Read => "r",
            Need::List => "rx",
            Need::Execute => "rx",
            Need::Pass => "x",
        }
    }
}

/// The first path on the way that refuses this process, and what would be needed of it. Symbolic links are followed step
/// by step, so that the directory a link leads through is found too. `None`: nothing is in the way.
pub fn first_blocked(path: &Path, need: Need) -> Option<(PathBuf, Need)> {
    if access(path, need.flags()).is_ok() {
        return None;
    }
    let mut links = 0;
    let mut pending: Vec<PathBuf> = vec![path.to_path_buf()];
    let mut at = PathBuf::from("/");
    while let Some(rest) = pending.pop() {
        let mut parts = rest.components();
        let Some(part) = parts.next() else { continue };
        pending.push(parts.as_path().to_path_buf());
        match part {
            Component::RootDir | Component::Prefix(_) => at = PathBuf::from("/"),
            Component::CurDir => {}
            Component::ParentDir => {
                at.pop();
            }
            Component::Normal(name) => {
                if access(&at, AccessFlags::X_OK).is_err() {
                    return Some((at, Need::Pass));
                }
                let next = at.join(name);
                match std::fs::read_link(&next) {
                    Ok(target) if links < 40 => {
                        links += 1;
                        pending.push(target);
                    }
                    _ => at = next,
                }
            }
        }
    }
    Some((at, need))
}

/// Checks every path as the serving user.
pub fn check(account: &Account, needs: &[(Need, PathBuf)]) -> Result<(), Error> {
    let blocked = if account.switched { ask_child(account, needs)? } else { ask_self(needs) };
    let Some((index, blocker, need)) = blocked else { return Ok(()) };
    let (wanted, path) = &needs[index];
    let mode = std::fs::metadata(&blocker).map(|m| m.mode() & 0o7777).unwrap_or(0);
    let quoted = shell_quote(&blocker);
    let with_acl = format!("setfacl -m u:{}:{} {quoted}", account.name, need.bits());
    let plain = format!("chmod o+{} {quoted}", need.bits());
    let remedy = match (account.switched, on_path("setfacl")) {
        (true, true) => {
            format!("let it in with: {with_acl} (only this user) or {plain} (everybody), or move the files")
        }
        (true, false) => {
            format!("let it in with: {plain} (that is everybody), or move the files to a place it can reach")
        }
        (false, _) => format!("ask its owner for: {plain}"),
    };
    Err(Error::Unreadable {
        user: account.name.clone(),
        what: wanted.verb(),
        path: path.clone(),
        blocker,
        mode,
        remedy,
    })
}

fn ask_self(needs: &[(Need, PathBuf)]) -> Option<(usize, PathBuf, Need)> {
    needs.iter().enumerate().find_map(|(i, (need, path))| first_blocked(path, *need).map(|(b, n)| (i, b, n)))
}

/// Asks a child of the launcher that has become the serving user; mode bits alone would miss access lists.
fn ask_child(account: &Account, needs: &[(Need, PathBuf)]) -> Result<Option<(usize, PathBuf, Need)>, Error> {
    let mut command = Command::new(std::env::current_exe().map_err(Error::io("own path"))?);
    command.arg("access").args(crate::helper::account_arguments(account));
    for (need, path) in needs {
        command.arg(need.word()).arg(path);
    }
    let output = command.stdin(Stdio::null()).output().map_err(Error::io("cannot check what the user can reach"))?;
    if !output.status.success() {
        return Err(Error::Internal(format!("access check: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let value: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|e| Error::Internal(format!("access check: {e}")))?;
    let Some(index) = value["index"].as_u64() else { return Ok(None) };
    let need = Need::ALL.iter().find(|(_, word)| value["need"] == *word).map_or(Need::Read, |(need, _)| *need);
    Ok(Some((index as usize, PathBuf::from(value["blocker"].as_str().unwrap_or_default()), need)))
}

/// The child's side: `args` are pairs of a need and a path; prints one JSON object.
pub fn answer(args: &[std::ffi::OsString]) -> u8 {
    let mut needs = Vec::new();
    for pair in args.chunks_exact(2) {
        let Some((need, _)) = Need::ALL.iter().find(|(_, word)| pair[0].to_str() == Some(word)) else { return 70 };
        needs.push((*need, PathBuf::from(&pair[1])));
    }
    let answer = match ask_self(&needs) {
        Some((index, blocker, need)) => {
            serde_json::json!({"index": index, "blocker": blocker.to_string_lossy(), "need": need.word()})
        }
        None => serde_json::json!({}),
    };
    println!("{answer}");
    0
}

/// Whether a program is on the PATH.
pub fn on_path(program: &str) -> bool {
    find_on_path(program).is_some()
}

/// The first executable file of that name on the PATH.
pub fn find_on_path(program: &str) -> Option<PathBuf> {
    all_on_path(program).into_iter().next()
}

/// All executable files of that name on the PATH, in its order.
pub fn all_on_path(program: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(program))
        .filter(|file| mod_wsgi_core::interpreter::is_executable(file))
        .collect()
}

/// A path as one word of a shell command.
pub fn shell_quote(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named_itself() {
        let path = Path::new("/nonexistent-mwr/x");
        assert_eq!(first_blocked(path, Need::Read), Some((PathBuf::from("/nonexistent-mwr"), Need::Pass)));
        assert_eq!(first_blocked(Path::new("/"), Need::List), None);
    }

    #[test]
    fn quotes_for_the_shell() {
        assert_eq!(shell_quote(Path::new("/root")), "/root");
        assert_eq!(shell_quote(Path::new("/a b/it's")), "'/a b/it'\\''s'");
    }
}
