//! From the command line to settings in which nothing is open any more: paths absolute, users looked up, programs found.
//! Nothing is written and nothing is started here, so a refusal leaves nothing behind.

use crate::access::{self, Need, find_on_path};
use crate::account::{self, Account};
use crate::application::{self, Application};
use crate::error::Error;
use crate::limits::{self, Fit, Limits};
use crate::options::Values;
use crate::server::{self, Kind, Server};
use mod_wsgi_core::interpreter::{self, Interpreter, RunAs};
use std::path::{Path, PathBuf};

/// What serves at a URL path before the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlAlias {
    pub url: String,
    pub path: PathBuf,
    pub is_directory: bool,
}

/// Everything the configuration is written from.
#[derive(Debug, Clone)]
pub struct Plan {
    pub application: Application,
    pub interpreter: Interpreter,
    pub server: Server,
    pub account: Account,
    pub host: Option<String>,
    pub port: u16,
    /// `None`: not given, one process and wsgi.multiprocess false.
    pub processes: Option<u64>,
    pub threads: u64,
    /// Processes and their memory follow from the limits of the container.
    pub container_limits: bool,
    /// Further options of WSGIDaemonProcess.
    pub daemon: Vec<(&'static str, String)>,
    pub mount_point: String,
    pub working_directory: PathBuf,
    pub python_path: Vec<PathBuf>,
    pub server_root: PathBuf,
    /// Whether the caller has named the server root.
    pub server_root_named: bool,
    pub document_root: Option<PathBuf>,
    /// Longest URL path first, so that the most specific one wins.
    pub url_aliases: Vec<UrlAlias>,
    pub limit_request_body: u64,
    /// The access log's format, where there is one.
    pub access_log: Option<LogFormat>,
    /// Health checks of load balancers are answered.
    pub readiness: bool,
    pub log_to_terminal: bool,
    /// Code that changes is loaded anew.
    pub reload_on_changes: bool,
    pub log_level: String,
    pub setenv: Vec<(String, String)>,
    pub include_files: Vec<PathBuf>,
    pub setup_only: bool,
    pub systemd_unit: bool,
    /// Seconds between SIGTERM and the end of listening.
    pub stop_delay: u64,
}

/// What a line of the access log looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogFormat {
    Combined,
    Common,
    Json,
    /// In the words of the web server.
    Own(String),
}

fn log_format(values: &Values) -> Result<Option<LogFormat>, Error> {
    let text = values.text("access-log-format");
    if text.is_none() && !values.flag("access-log") {
        return Ok(None);
    }
    Ok(Some(match text.as_deref() {
        None | Some("combined") => LogFormat::Combined,
        Some("common") => LogFormat::Common,
        Some("json") => LogFormat::Json,
        Some(own) if own.contains(['%', '$']) && !own.contains(char::is_control) => LogFormat::Own(own.to_owned()),
        Some(other) => {
            let why = "must be combined, common, json, or a format of the web server's in one line".to_owned();
            return Err(Error::Value { option: "--access-log-format", value: other.to_owned(), why });
        }
    }))
}

impl Plan {
    /// Resolves the command line. Blocks while interpreter and server are asked what they are.
    pub fn resolve(values: &Values<'_>) -> Result<Plan, Error> {
        let wanted = server::wanted(values)?;
        refuse_control_characters(values)?;
        let application = application::choose(&values.applications(), values.text("callable-object").as_deref())?;
        let here = std::env::current_dir().map_err(Error::io("the current directory"))?;
        let directory = |option: &'static str| -> Result<Option<PathBuf>, Error> {
            values.text(option).map(|text| existing(option, &text, Some(true))).transpose()
        };
        let working_directory = directory("working-directory")?.unwrap_or(here);
        let document_root = directory("document-root")?;
        let python_path = values
            .texts("python-path")
            .iter()
            .map(|p| existing("python-path", p, Some(true)))
            .collect::<Result<_, _>>()?;
        let include_files = values
            .texts("include-file")
            .iter()
            .map(|p| existing("include-file", p, Some(false)))
            .collect::<Result<_, _>>()?;
        let host = values.text("host").map(|h| h.trim_matches(['[', ']']).to_string());
        let port = u16::try_from(values.number("port")).map_err(|e| Error::Internal(format!("port: {e}")))?;
        let modules = directory("modules-directory")?;
        let server = server::find(values, wanted, modules.as_deref(), document_root.is_some())?;
        let users = server.manner().users;
        let account = account::choose(values.text("user").as_deref(), values.text("group").as_deref(), users)?;
        if server.kind() == Kind::Nginx {
            account.must_have_names()?;
        }
        let interpreter = find_interpreter(values.text("python").as_deref(), &account)?;
        let server_root_named = values.text("server-root").is_some();
        let server_root = match values.text("server-root") {
            Some(text) => std::path::absolute(&text).map_err(Error::io(format!("server root '{text}'")))?,
            None => default_server_root(host.as_deref(), port),
        };
        let reload_on_changes = values.flag("reload-on-changes");
        let mut daemon = values.daemon();
        if reload_on_changes {
            daemon.push(("reload-on-changes", "on".to_owned()));
        }
        for file in values.texts("reload-extra-file") {
            if !reload_on_changes {
                let why = "needs --reload-on-changes".to_owned();
                return Err(Error::Value { option: "--reload-extra-file", value: file, why });
            }
            let path = existing("reload-extra-file", &file, None)?;
            let path = path.to_str().ok_or_else(|| Error::Value {
                option: "--reload-extra-file",
                value: file.clone(),
                why: "must be UTF-8".to_owned(),
            })?;
            daemon.push(("reload-extra-file", path.to_owned()));
        }
        let plan = Plan {
            mount_point: url_path("--mount-point", &values.text_or_default("mount-point"))?,
            url_aliases: url_aliases(&values.pairs("url-alias"))?,
            setenv: variables(values.pairs("setenv"))?,
            processes: values.given_number("processes"),
            threads: values.number("threads"),
            container_limits: values.flag("container-limits"),
            daemon,
            limit_request_body: values.number("limit-request-body"),
            access_log: log_format(values)?,
            readiness: values.flag("readiness"),
            log_to_terminal: values.flag("log-to-terminal") || reload_on_changes,
            reload_on_changes,
            log_level: values.text_or_default("log-level"),
            setup_only: values.flag("setup-only"),
            systemd_unit: values.flag("systemd-unit"),
            stop_delay: values.number("stop-delay"),
            application,
            interpreter,
            server,
            account,
            host,
            port,
            working_directory,
            python_path,
            server_root,
            server_root_named,
            document_root,
            include_files,
        };
        plan.check_access()?;
        Ok(plan)
    }

    /// Whether the serving user reaches everything it must.
    fn check_access(&self) -> Result<(), Error> {
        let mut needs = Vec::new();
        if let Application::Script { path, .. } = &self.application {
            needs.push((Need::Read, path.clone()));
        }
        needs.push((Need::Pass, self.working_directory.clone()));
        needs.push((Need::Execute, self.interpreter.path.clone()));
        needs.extend(self.python_path.iter().map(|p| (Need::List, p.clone())));
        needs.extend(self.document_root.iter().map(|p| (Need::List, p.clone())));
        needs.extend(
            self.url_aliases.iter().map(|a| (if a.is_directory { Need::Pass } else { Need::Read }, a.path.clone())),
        );
        if let Some(parent) = self.server_root.parent() {
            needs.push((Need::Pass, parent.to_path_buf()));
        }
        access::check(&self.account, &needs)
    }

    /// Settles what `--container-limits` leaves open. `memory`: of one process with the application loaded.
    pub fn fit(&mut self, memory: Option<u64>) -> Option<Fit> {
        if !self.container_limits {
            return None;
        }
        let mut fit = limits::fit(Limits::here(), memory, self.processes);
        self.processes = Some(fit.processes);
        if self.daemon.iter().any(|(name, _)| *name == "max-rss") {
            fit.max_rss = None;
        }
        self.daemon.extend(fit.max_rss.iter().map(|m| ("max-rss", m.clone())));
        Some(fit)
    }

    /// Where one finds the application with a browser.
    pub fn url(&self) -> String {
        let host = match self.host.as_deref() {
            None | Some("0.0.0.0" | "::") => "localhost",
            Some(host) => host,
        };
        format!("http://{}{}", crate::listen::display(Some(host), self.port), self.mount_point)
    }
}

/// `--python`, else `$VIRTUAL_ENV`, else python3 on the PATH; run once as the user that will serve.
fn find_interpreter(named: Option<&str>, account: &Account) -> Result<Interpreter, Error> {
    let of_path = |path: &Path| -> Result<PathBuf, Error> {
        // Absolute, but not resolved: a virtual environment is found through the link.
        let path = std::path::absolute(path).map_err(Error::io(format!("'{}'", path.display())))?;
        if path.is_dir() { Ok(interpreter::resolve(Some(&path))?) } else { Ok(path) }
    };
    let venv = std::env::var_os("VIRTUAL_ENV").filter(|v| !v.is_empty());
    let path = match (named, venv) {
        (Some(text), _) if !text.contains('/') && !Path::new(text).exists() => {
            find_on_path(text).ok_or_else(|| interpreter::Error::Missing { path: text.into() })?
        }
        (Some(text), _) => of_path(Path::new(text))?,
        (None, Some(venv)) => of_path(Path::new(&venv))?,
        (None, None) => first_reachable_python(account)?,
    };
    if path.exists() {
        // Before it is run as that user: "permission denied" alone would not say where.
        access::check(account, &[(Need::Execute, path.clone())])?;
    }
    let run_as = account.switched.then_some(RunAs { uid: account.uid, gid: account.gid });
    Ok(interpreter::check(&path, run_as)?)
}

/// The first python3 on the PATH that the serving user can run: root's PATH often begins with what only root can reach.
fn first_reachable_python(account: &Account) -> Result<PathBuf, Error> {
    let candidates = access::all_on_path("python3");
    let mut refusal = None;
    for path in candidates {
        match access::check(account, &[(Need::Execute, path.clone())]) {
            Ok(()) => {
                if let Some(Error::Unreadable { path: skipped, .. }) = refusal {
                    let (name, skipped, path) = (&account.name, skipped.display(), path.display());
                    eprintln!("mod-wsgi-rs: user {name} cannot run {skipped}; using {path} (see --python)");
                }
                return Ok(path);
            }
            Err(e) => {
                refusal.get_or_insert(e);
            }
        }
    }
    Err(refusal.unwrap_or(Error::NoPython { install: server::install_python() }))
}

/// An absolute path, of a directory (`Some(true)`), a file (`Some(false)`) or either, that exists.
fn existing(option: &'static str, text: &str, directory: Option<bool>) -> Result<PathBuf, Error> {
    let refuse = |why: &str| Error::Value { option: option_name(option), value: text.into(), why: why.into() };
    let path = std::path::absolute(text).map_err(|_| refuse("must be a path"))?;
    let meta = match std::fs::metadata(&path) {
        Ok(meta) => meta,
        Err(e) => return Err(refuse(&format!("cannot be used ({e})"))),
    };
    match directory {
        Some(true) if !meta.is_dir() => Err(refuse("must be a directory")),
        Some(false) if meta.is_dir() => Err(refuse("must be a file")),
        _ => Ok(path),
    }
}

/// The option as it is typed.
fn option_name(option: &'static str) -> &'static str {
    match option {
        "working-directory" => "--working-directory",
        "document-root" => "--document-root",
        "python-path" => "--python-path",
        "include-file" => "--include-file",
        "modules-directory" => "--modules-directory",
        "url-alias" => "--url-alias",
        "reload-extra-file" => "--reload-extra-file",
        other => other,
    }
}

fn default_server_root(host: Option<&str>, port: u16) -> PathBuf {
    let base = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|t| t.is_absolute()).unwrap_or("/tmp".into());
    let host = host.unwrap_or("all").replace('/', "_");
    base.join(format!("mod-wsgi-rs-{host}:{port}:{}", nix::unistd::Uid::effective()))
}

/// A URL path without a slash at its end, except `/` itself.
fn url_path(option: &'static str, text: &str) -> Result<String, Error> {
    if !text.starts_with('/') || text.contains("//") || text.contains(['?', '#', '%']) {
        let why = "must be a decoded URL path that starts with '/', without '//', '?', '#' or '%'".into();
        return Err(Error::Value { option, value: text.into(), why });
    }
    let trimmed = text.trim_end_matches('/');
    Ok(if trimmed.is_empty() { "/".into() } else { trimmed.into() })
}

fn url_aliases(pairs: &[(String, String)]) -> Result<Vec<UrlAlias>, Error> {
    let mut aliases = Vec::new();
    for (url, path) in pairs {
        let url = url_path("--url-alias", url)?;
        let path = existing("url-alias", path, None)?;
        // The first one that is given wins.
        if aliases.iter().any(|a: &UrlAlias| a.url == url) {
            continue;
        }
        let is_directory = path.is_dir();
        aliases.push(UrlAlias { url, path, is_directory });
    }
    aliases.sort_by_key(|a| std::cmp::Reverse(a.url.len()));
    Ok(aliases)
}

fn variables(pairs: Vec<(String, String)>) -> Result<Vec<(String, String)>, Error> {
    for (key, value) in &pairs {
        let fits = key.chars().all(|c| c.is_ascii_graphic() && c != '=' && c != '"' && c != '\\');
        if key.is_empty() || !fits {
            let why = "must begin with a variable's name, then its value".into();
            return Err(Error::Value { option: "--setenv", value: format!("{key} {value}"), why });
        }
    }
    Ok(pairs)
}

/// Values become lines of a configuration file, which cannot hold control characters.
fn refuse_control_characters(values: &Values<'_>) -> Result<(), Error> {
    for id in values.0.ids() {
        let Ok(Some(texts)) = values.0.try_get_many::<String>(id.as_str()) else { continue };
        for text in texts {
            if text.chars().any(char::is_control) {
                let value = text.escape_debug().to_string();
                let option =
                    crate::options::OPTIONS.iter().find(|o| o.name == id.as_str()).map_or("APPLICATION", |o| o.name);
                return Err(Error::Value { option, value, why: "must not hold control characters".into() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_paths() {
        assert_eq!(url_path("--mount-point", "/").unwrap(), "/");
        assert_eq!(url_path("--mount-point", "/blog/").unwrap(), "/blog");
        for bad in ["", "blog", "//", "/a//b", "/a%20b", "/a?b"] {
            assert_eq!(url_path("--mount-point", bad).unwrap_err().exit_status(), 2, "{bad}");
        }
    }

    #[test]
    fn the_most_specific_alias_comes_first() {
        let pairs = [("/s".to_string(), "/usr".to_string()), ("/s/t/".to_string(), "/etc/os-release".to_string())];
        let aliases = url_aliases(&pairs).unwrap();
        assert_eq!((aliases[0].url.as_str(), aliases[0].is_directory), ("/s/t", false));
        assert_eq!((aliases[1].url.as_str(), aliases[1].is_directory), ("/s", true));
        assert!(url_aliases(&[("/x".into(), "/nonexistent-mwr".into())]).is_err());
    }

    #[test]
    fn names_of_variables() {
        assert!(variables(vec![("A".into(), "any \"thing\" $".into())]).is_ok());
        assert!(variables(vec![("A=B".into(), "c".into())]).is_err());
        assert!(variables(vec![("".into(), "c".into())]).is_err());
    }
}
