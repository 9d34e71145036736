//! Words of the binary that only the launcher itself uses: they change what the process is, then become another program.
//! Run as a fresh, single-threaded process, so that nothing happens between fork and exec of a bigger one.

use crate::account::Account;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Runs one of these words; `None`: it is none of them.
///
/// - `run-as UID GID GROUPS PROGRAM ARGS…`: becomes that user, then that program.
/// - `access UID GID GROUPS [NEED PATH]…`: becomes that user and says what it cannot reach.
/// - `tied PARENT PROGRAM ARGS…`: becomes the program, which gets SIGTERM when the launcher (process PARENT) dies.
pub fn dispatch(args: &[OsString]) -> Option<u8> {
    let word = args.first()?.to_str()?;
    let result = match word {
        "run-as" => become_user(args.get(1..4)?).map(|()| become_program(&args[4..])),
        "access" => become_user(args.get(1..4)?).map(|()| crate::access::answer(&args[4..])),
        "tied" => tie(args.get(1)?).map(|()| become_program(&args[2..])),
        _ => return None,
    };
    Some(result.unwrap_or_else(|e| {
        eprintln!("mod-wsgi-rs: MWR0619: {word}: {e}");
        70
    }))
}

/// Arguments of `run-as` and `access` for an account.
pub fn account_arguments(account: &Account) -> [String; 3] {
    let groups: Vec<String> = account.groups.iter().map(u32::to_string).collect();
    [account.uid.to_string(), account.gid.to_string(), groups.join(",")]
}

fn become_user(args: &[OsString]) -> Result<(), String> {
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("'{text}' is no number"));
    let text = |i: usize| args[i].to_str().ok_or("arguments are not text".to_string());
    let (uid, gid) = (number(text(0)?)?, number(text(1)?)?);
    let groups = text(2)?
        .split(',')
        .filter(|g| !g.is_empty())
        .map(|g| number(g).map(Gid::from_raw))
        .collect::<Result<Vec<_>, _>>()?;
    if Uid::effective().is_root() {
        setgroups(&groups).map_err(|e| format!("setgroups: {e}"))?;
        setgid(Gid::from_raw(gid)).map_err(|e| format!("setgid: {e}"))?;
        setuid(Uid::from_raw(uid)).map_err(|e| format!("setuid: {e}"))?;
    }
    if Uid::effective().is_root() || Uid::current().as_raw() != uid {
        return Err(format!("cannot become uid {uid}"));
    }
    Ok(())
}

fn tie(parent: &OsStr) -> Result<(), String> {
    set_pdeathsig(Signal::SIGTERM).map_err(|e| format!("prctl: {e}"))?;
    // The launcher may have died before the line above.
    match nix::unistd::getppid().to_string() == parent.to_string_lossy() {
        true => Ok(()),
        false => Err("the launcher has gone".into()),
    }
}

fn become_program(args: &[OsString]) -> u8 {
    let Some((program, rest)) = args.split_first() else { return 70 };
    let error = Command::new(program).args(rest).exec();
    eprintln!("mod-wsgi-rs: MWR0616: cannot run '{}': {error}", program.to_string_lossy());
    126
}
