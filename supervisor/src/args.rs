//! Command lines of the internal subcommands. Parsed by hand: only our own processes give them.

use std::ffi::OsString;
use std::path::PathBuf;

/// Flags of `start-keeper` and `keeper`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartKeeper {
    /// Where lock, control socket and the workers' sockets lie; absolute.
    pub run_directory: PathBuf,
    /// Uid and gid of the server's request-serving processes: owner of the control socket.
    pub server_uid: u32,
    pub server_gid: u32,
}

/// An internal subcommand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Internal {
    StartKeeper(StartKeeper),
    Keeper(StartKeeper),
    Supervise,
    ExecWorker,
    Watch,
}

/// What a command line is wrong about.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0} is not known")]
    Unknown(String),
    #[error("{0} needs a value")]
    NoValue(&'static str),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{flag} is not a number: {value:?}")]
    Number { flag: &'static str, value: String },
    #[error("--run-directory is not absolute: {0:?}")]
    Relative(PathBuf),
}

/// Recognises an internal subcommand in the arguments after the program's name; `None` for people's subcommands.
pub fn parse(args: &[OsString]) -> Option<Result<Internal, Error>> {
    let (first, rest) = args.split_first()?;
    Some(match first.to_str()? {
        "start-keeper" => flags(rest).map(Internal::StartKeeper),
        "keeper" => flags(rest).map(Internal::Keeper),
        "supervise" => none(rest).map(|()| Internal::Supervise),
        "exec-worker" => none(rest).map(|()| Internal::ExecWorker),
        "watch" => none(rest).map(|()| Internal::Watch),
        _ => return None,
    })
}

/// The flags of a command line, for starting a keeper with them.
pub fn render(args: &StartKeeper) -> Vec<OsString> {
    vec![
        "--run-directory".into(),
        args.run_directory.clone().into(),
        "--server-uid".into(),
        args.server_uid.to_string().into(),
        "--server-gid".into(),
        args.server_gid.to_string().into(),
    ]
}

fn none(rest: &[OsString]) -> Result<(), Error> {
    match rest.first() {
        None => Ok(()),
        Some(a) => Err(Error::Unknown(a.to_string_lossy().into_owned())),
    }
}

fn flags(rest: &[OsString]) -> Result<StartKeeper, Error> {
    let (mut dir, mut uid, mut gid) = (None, None, None);
    let mut it = rest.iter();
    while let Some(flag) = it.next() {
        let mut value = |name| it.next().ok_or(Error::NoValue(name));
        match flag.to_str() {
            Some("--run-directory") => dir = Some(PathBuf::from(value("--run-directory")?)),
            Some("--server-uid") => uid = Some(number("--server-uid", value("--server-uid")?)?),
            Some("--server-gid") => gid = Some(number("--server-gid", value("--server-gid")?)?),
            _ => return Err(Error::Unknown(flag.to_string_lossy().into_owned())),
        }
    }
    let run_directory = dir.ok_or(Error::Missing("--run-directory"))?;
    if !run_directory.is_absolute() {
        return Err(Error::Relative(run_directory));
    }
    let server_uid = uid.ok_or(Error::Missing("--server-uid"))?;
    Ok(StartKeeper { run_directory, server_uid, server_gid: gid.ok_or(Error::Missing("--server-gid"))? })
}

fn number(flag: &'static str, value: &OsString) -> Result<u32, Error> {
    let text = value.to_string_lossy();
    text.parse().map_err(|_| Error::Number { flag, value: text.into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(args: &[&str]) -> Vec<OsString> {
        args.iter().map(OsString::from).collect()
    }

    #[test]
    fn people_subcommands_are_left_alone() {
        assert_eq!(parse(&os(&[])), None);
        assert_eq!(parse(&os(&["express", "app.wsgi"])), None);
        assert_eq!(parse(&os(&["--version"])), None);
    }

    #[test]
    fn flags_survive_a_round_trip() {
        let want = StartKeeper { run_directory: "/run/x y".into(), server_uid: 33, server_gid: 34 };
        let mut args = os(&["keeper"]);
        args.extend(render(&want));
        assert_eq!(parse(&args), Some(Ok(Internal::Keeper(want))));
        assert_eq!(parse(&os(&["supervise"])), Some(Ok(Internal::Supervise)));
    }

    #[test]
    fn wrong_flags_are_named() {
        let err = |a: &[&str]| parse(&os(a)).unwrap().unwrap_err();
        assert_eq!(err(&["supervise", "-x"]), Error::Unknown("-x".into()));
        assert_eq!(err(&["keeper", "--server-uid"]), Error::NoValue("--server-uid"));
        assert_eq!(err(&["keeper", "--server-uid", "1"]), Error::Missing("--run-directory"));
        assert_eq!(err(&["keeper", "--run-directory", "x"]), Error::Relative("x".into()));
        let number = Error::Number { flag: "--server-gid", value: "www".into() };
        assert_eq!(err(&["keeper", "--server-gid", "www"]), number);
    }
}
