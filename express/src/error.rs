//! What can go wrong in the launcher, with its code in docs/errors.md and the exit status of the process.

use std::path::PathBuf;

/// Why the launcher ends without serving.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// clap's text already says what is allowed.
    #[error("{0}")]
    Usage(String),
    #[error(
        "no application given; name a script (mod-wsgi-rs express app.wsgi) or a module and its callable \
         (mod-wsgi-rs express package.module:callable)"
    )]
    NoApplication,
    #[error("application '{name}' not found: {why}")]
    ApplicationMissing { name: String, why: String },
    #[error("application '{name}' is ambiguous: {why}")]
    ApplicationAmbiguous { name: String, why: String },
    #[error("{server} is not installed (not on PATH or in the usual places); install it with: {install}")]
    NoServer { server: &'static str, install: &'static str },
    #[error("no web server can be run. {apache}. {nginx}")]
    NoServers { apache: Box<Error>, nginx: Box<Error> },
    #[error("'{}' is no {wanted}: {why}", path.display())]
    ServerUnusable { path: PathBuf, wanted: &'static str, why: String },
    #[error("Apache's module {module} is neither built into '{}' nor in {searched}; install it with: {install}", httpd.display())]
    ApacheModule { module: String, httpd: PathBuf, searched: String, install: &'static str },
    #[error("the {server} module {module} is not beside this program; looked for: {searched}{remedy}")]
    NoModule { server: &'static str, module: &'static str, searched: String, remedy: &'static str },
    #[error(transparent)]
    Interpreter(#[from] mod_wsgi_core::interpreter::Error),
    #[error("no python3 on PATH; install it with: {install}, or name an interpreter with --python")]
    NoPython { install: &'static str },
    #[error("the application cannot be loaded\n{output}")]
    Import { output: String },
    #[error("server root '{}' is refused: {why}", path.display())]
    ServerRoot { path: PathBuf, why: String },
    #[error("cannot listen on {address}: {why}")]
    Listen { address: String, why: String },
    #[error("user {user} cannot {what} '{}': '{}' (mode {mode:04o}) does not let it in; {remedy}", path.display(), blocker.display())]
    Unreadable { user: String, what: &'static str, path: PathBuf, blocker: PathBuf, mode: u32, remedy: String },
    #[error("{0}")]
    Account(String),
    #[error("--{option} is an option of {server} alone and does not go with {other}: {why}")]
    OtherServer { option: &'static str, server: &'static str, why: &'static str, other: String },
    #[error("{0}")]
    ServerFailed(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("the value of {option} {why}: '{value}'")]
    Value { option: &'static str, value: String, why: String },
    #[error("{0}")]
    Ctl(String),
    #[error("hook '{}' {why}", path.display())]
    Hook { path: PathBuf, why: String },
    #[error("'{}'{} {why}", path.display(), if *line > 0 { format!(", line {line},") } else { String::new() })]
    Settings { path: PathBuf, line: usize, why: String },
    #[error("internal error: {0}; please report this")]
    Internal(String),
}

impl Error {
    /// An I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { what: what.into(), source }
    }

    /// The code of this message in docs/errors.md.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Usage(_) => "MWR0600",
            Error::NoApplication => "MWR0601",
            Error::ApplicationMissing { .. } => "MWR0602",
            Error::ApplicationAmbiguous { .. } => "MWR0603",
            Error::NoServer { .. } | Error::NoServers { .. } => "MWR0604",
            Error::ServerUnusable { .. } => "MWR0605",
            Error::ApacheModule { .. } => "MWR0606",
            Error::NoModule { .. } => "MWR0607",
            Error::Interpreter(e) => e.code(),
            Error::NoPython { .. } => "MWR0608",
            Error::Import { .. } => "MWR0609",
            Error::ServerRoot { .. } => "MWR0610",
            Error::Listen { .. } => "MWR0611",
            Error::Unreadable { .. } => "MWR0612",
            Error::Account(_) => "MWR0613",
            Error::ServerFailed(_) => "MWR0615",
            Error::Io { .. } => "MWR0616",
            Error::Value { .. } => "MWR0617",
            Error::Ctl(_) => "MWR0618",
            Error::Internal(_) => "MWR0619",
            Error::Hook { .. } => "MWR0640",
            Error::Settings { .. } => "MWR0641",
            Error::OtherServer { .. } => "MWR0643",
        }
    }

    /// Exit status: 2 when the command line itself is at fault, 70 for our own faults, else 1.
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::Usage(_)
            | Error::NoApplication
            | Error::OtherServer { .. }
            | Error::Value { .. }
            | Error::Account(_)
            | Error::Settings { .. } => 2,
            Error::Internal(_) => 70,
            _ => 1,
        }
    }
}

impl From<nix::Error> for Error {
    fn from(e: nix::Error) -> Error {
        Error::Io { what: "system call failed".into(), source: e.into() }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_code_is_documented() {
        let docs = include_str!("../../docs/errors.md");
        for n in (600..=613).chain(615..=619).chain(640..=644) {
            assert!(docs.contains(&format!("| MWR0{n} |")), "MWR0{n} is missing in docs/errors.md");
        }
    }
}
