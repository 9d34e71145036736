//! The user that serves: the caller, or, started as root, another one. Python never runs as uid 0.

use crate::error::Error;
use nix::unistd::{Gid, Group, Uid, User};
use std::ffi::CString;
use std::path::PathBuf;

/// Who the server's processes and Python run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, `gid` included.
    pub groups: Vec<u32>,
    /// Name, or `#uid` of a user without an entry.
    pub name: String,
    /// Home directory; empty without an entry.
    pub home: PathBuf,
    /// Whether the launcher is root and these are others than its own.
    pub switched: bool,
}

impl Account {
    /// The name of its group, if that has one.
    pub fn group_name(&self) -> Result<Option<String>, Error> {
        Ok(Group::from_gid(Gid::from_raw(self.gid))?.map(|g| g.name))
    }

    /// Refuses an account that a server cannot switch to which knows users and groups by name only, as nginx does.
    pub fn must_have_names(&self) -> Result<(), Error> {
        if !self.switched {
            return Ok(());
        }
        let why = "and nginx, started as root, takes users and groups by their names only";
        if self.name.starts_with('#') {
            return Err(Error::Account(format!("user {} has no entry, {why}; choose another --user", self.name)));
        }
        match self.group_name()? {
            Some(_) => Ok(()),
            None => Err(Error::Account(format!("group {} has no entry, {why}; choose another --group", self.gid))),
        }
    }
}

/// Decides who serves. `user` and `group` are names or numbers (`1001` or `#1001`); `usual`: users that distributions run
/// the server as, in the order they are looked for.
pub fn choose(user: Option<&str>, group: Option<&str>, usual: &[&str]) -> Result<Account, Error> {
    let root = Uid::effective().is_root();
    let entry = match user {
        Some(text) => find_user(text)?,
        None if !root => User::from_uid(Uid::effective())?.ok_or(Uid::effective().as_raw()),
        None => Ok(default_user(usual)?),
    };
    let (uid, primary, name, home) = match entry {
        Ok(u) => (u.uid.as_raw(), Some(u.gid.as_raw()), u.name, u.dir),
        Err(uid) => (uid, None, format!("#{uid}"), PathBuf::new()),
    };
    let gid = match (group, primary) {
        (Some(text), _) => find_group(text)?,
        (None, Some(gid)) => gid,
        (None, None) if root => {
            return Err(Error::Account(format!("user {name} has no entry and so no primary group; add --group")));
        }
        (None, None) => Gid::effective().as_raw(),
    };
    if uid == 0 {
        return Err(Error::Account(format!(
            "user {name} is uid 0, and Python does not run as that; choose another --user"
        )));
    }
    if !root {
        let own = uid == Uid::effective().as_raw() && (group.is_none() || gid == Gid::effective().as_raw());
        if !own {
            return Err(Error::Account(format!(
                "only root can serve as user {name}, group {gid}; leave out --user and --group"
            )));
        }
    }
    let groups =
        if root { groups_of(&name, gid) } else { nix::unistd::getgroups()?.iter().map(|g| g.as_raw()).collect() };
    Ok(Account { uid, gid, groups, name, home, switched: root })
}

fn default_user(usual: &[&str]) -> Result<User, Error> {
    for name in usual {
        if let Some(user) = User::from_name(name)? {
            return Ok(user);
        }
    }
    Err(Error::Account(format!(
        "started as root, and none of the users {} exists; name the user to serve as with --user",
        usual.join(", ")
    )))
}

/// An entry, or the bare number of a user without one.
fn find_user(text: &str) -> Result<Result<User, u32>, Error> {
    if let Some(user) = User::from_name(text)? {
        return Ok(Ok(user));
    }
    match text.trim_start_matches('#').parse::<u32>() {
        Ok(uid) => Ok(User::from_uid(Uid::from_raw(uid))?.ok_or(uid)),
        Err(_) => Err(Error::Account(format!("there is no user '{text}'; --user takes a name or a number"))),
    }
}

fn find_group(text: &str) -> Result<u32, Error> {
    if let Some(group) = Group::from_name(text)? {
        return Ok(group.gid.as_raw());
    }
    text.trim_start_matches('#')
        .parse()
        .map_err(|_| Error::Account(format!("there is no group '{text}'; --group takes a name or a number")))
}

/// Supplementary groups as a login would get them; of a user without an entry only its group.
fn groups_of(name: &str, gid: u32) -> Vec<u32> {
    let listed = CString::new(name).ok().and_then(|n| nix::unistd::getgrouplist(&n, Gid::from_raw(gid)).ok());
    match listed {
        Some(groups) => groups.iter().map(|g| g.as_raw()).collect(),
        None => vec![gid],
    }
}
