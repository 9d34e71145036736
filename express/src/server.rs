//! The web server that is run: which one, and what the launcher must know of it to start it, tell it something and end it.

use crate::apache::{self, Apache};
use crate::error::Error;
use crate::nginx::{self, Nginx};
use crate::options::{OPTIONS, Values};
use mod_wsgi_core::interpreter::is_executable;
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The servers that express can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Apache,
    Nginx,
}

/// How the launcher deals with one kind of server.
#[derive(Debug)]
pub struct Manner {
    pub name: &'static str,
    /// The generated configuration and the script of `--setup-only`, in the server root.
    pub configuration: &'static str,
    pub control: &'static str,
    pub pid_file: &'static str,
    /// What the names of its processes begin with.
    pub processes: &'static [&'static str],
    /// New code without losing requests.
    pub reload: Signal,
    /// New log files, so that they can be rotated.
    pub reopen: Signal,
    /// Ends once the requests that run have been answered.
    pub drain: Signal,
    /// Whether it bounds that by itself.
    pub bounds_drain: bool,
    /// Ends at once.
    pub stop: Signal,
    /// Users that distributions run it as, in the order they are looked for.
    pub users: &'static [&'static str],
    /// Our module for it, beside this program: as `make install` names it, and as cargo does.
    modules: [&'static str; 2],
}

const APACHE: Manner = Manner {
    name: "Apache",
    configuration: "httpd.conf",
    control: "apachectl",
    pid_file: "httpd.pid",
    processes: &["apache2", "httpd"],
    reload: Signal::SIGUSR1,
    reopen: Signal::SIGUSR1,
    drain: Signal::SIGWINCH,
    bounds_drain: true,
    stop: Signal::SIGTERM,
    users: &["www-data", "apache", "http", "wwwrun", "httpd"],
    modules: ["mod_wsgi_rs.so", "libmod_wsgi_rs.so"],
};

const NGINX: Manner = Manner {
    name: "nginx",
    configuration: "nginx.conf",
    control: "nginxctl",
    pid_file: "nginx.pid",
    processes: &["nginx"],
    reload: Signal::SIGHUP,
    reopen: Signal::SIGUSR1,
    drain: Signal::SIGQUIT,
    bounds_drain: false,
    stop: Signal::SIGTERM,
    users: &["www-data", "nginx", "http", "wwwrun", "apache"],
    modules: ["ngx_http_wsgi_rs_module.so", "libngx_http_wsgi_rs_module.so"],
};

impl Kind {
    pub const ALL: [Kind; 2] = [Kind::Apache, Kind::Nginx];

    pub fn manner(self) -> &'static Manner {
        match self {
            Kind::Apache => &APACHE,
            Kind::Nginx => &NGINX,
        }
    }
    /// As `--server` takes it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Apache => "apache",
            Kind::Nginx => "nginx",
        }
    }
}

/// A server that was found, with our module for it.
#[derive(Debug, Clone)]
pub struct Server {
    pub program: PathBuf,
    /// For people, without the server's name.
    pub version: String,
    pub module: PathBuf,
    pub own: Own,
}

/// What is known of one kind alone.
#[derive(Debug, Clone)]
pub enum Own {
    Apache(Apache),
    Nginx(Nginx),
}

impl Server {
    pub fn kind(&self) -> Kind {
        match self.own {
            Own::Apache(_) => Kind::Apache,
            Own::Nginx(_) => Kind::Nginx,
        }
    }

    pub fn manner(&self) -> &'static Manner {
        self.kind().manner()
    }

    /// Arguments that name the configuration in a server root.
    pub fn arguments(&self, root: &Path) -> Vec<OsString> {
        let configuration = root.join(self.manner().configuration).into_os_string();
        match self.own {
            Own::Apache(_) => vec!["-f".into(), configuration],
            // Before it has read the name of its error log nginx would write to the one it was built with.
            Own::Nginx(_) => {
                let prefix = root.as_os_str().to_owned();
                vec!["-p".into(), prefix, "-c".into(), configuration, "-e".into(), "stderr".into()]
            }
        }
    }

    /// Further ones that keep it in the foreground.
    pub fn foreground(&self) -> &'static [&'static str] {
        match self.own {
            Own::Apache(_) => &["-DFOREGROUND"],
            Own::Nginx(_) => &["-g", "daemon off;"],
        }
    }

    /// Has the server judge its configuration; what it says against it. nginx listens while it does so: not for a server
    /// that is about to be started.
    pub fn ask(&self, root: &Path) -> Result<Option<String>, Error> {
        let output = Command::new(&self.program)
            .arg("-t")
            .args(self.arguments(root))
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io(format!("cannot run '{}'", self.program.display())))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        Ok((!output.status.success()).then_some(said))
    }

    /// What to do about what the server has said against its configuration, where that is known.
    pub fn remedy(&self, said: &str) -> Option<String> {
        (self.kind() == Kind::Nginx && nginx::is_mismatch(said)).then(|| nginx::rebuild(&self.version))
    }
}

/// The kind of server that the command line asks for; `None`: any. An option of one server decides where `--server` does
/// not; beside another one it is refused.
pub fn wanted(values: &Values<'_>) -> Result<Option<Kind>, Error> {
    let word = values.text_or_default("server");
    let named = Kind::ALL.into_iter().find(|k| k.word() == word);
    let mut decided: Option<(Kind, &'static str)> = None;
    for o in OPTIONS.iter().filter(|o| values.is_given(o.name)) {
        let Some((kind, why)) = o.only else { continue };
        let other = match (named, decided) {
            (Some(n), _) if n != kind => format!("--server {}", n.word()),
            (None, Some((d, by))) if d != kind => format!("--{by}"),
            _ => {
                decided = Some((kind, o.name));
                continue;
            }
        };
        return Err(Error::OtherServer { option: o.name, server: kind.manner().name, why, other });
    }
    Ok(named.or(decided.map(|(kind, _)| kind)))
}

/// Finds the server to run, Apache before nginx where either will do.
pub fn find(
    values: &Values<'_>,
    wanted: Option<Kind>,
    modules: Option<&Path>,
    static_files: bool,
) -> Result<Server, Error> {
    let named = |option: &str| values.text(option).map(PathBuf::from);
    let of_kind = |kind: Kind| -> Result<Server, Error> {
        match kind {
            Kind::Apache => {
                let apache = apache::find(named("httpd-executable").as_deref(), modules, static_files)?;
                let (program, version) = (apache.httpd.clone(), apache.version.clone());
                Ok(Server { program, version, module: own_module(kind)?, own: Own::Apache(apache) })
            }
            Kind::Nginx => {
                let nginx = nginx::find(named("nginx-executable").as_deref())?;
                let (program, version) = (nginx.program.clone(), nginx.version.clone());
                Ok(Server { program, version, module: own_module(kind)?, own: Own::Nginx(nginx) })
            }
        }
    };
    let Some(kind) = wanted else {
        let absent = |e: &Error| matches!(e, Error::NoServer { .. } | Error::NoModule { .. });
        return match of_kind(Kind::Apache) {
            Err(e) if absent(&e) => match of_kind(Kind::Nginx) {
                Err(other) if absent(&other) => Err(Error::NoServers { apache: Box::new(e), nginx: Box::new(other) }),
                found => found,
            },
            found => found,
        };
    };
    of_kind(kind)
}

/// Our module for that server, beside this program (links to it resolved).
pub fn own_module(kind: Kind) -> Result<PathBuf, Error> {
    let program = std::env::current_exe().and_then(|p| p.canonicalize()).map_err(Error::io("own path"))?;
    let candidates = kind.manner().modules.map(|name| program.with_file_name(name));
    let searched = candidates.iter().map(|c| c.display().to_string()).collect::<Vec<_>>().join(", ");
    let remedy = match kind {
        Kind::Apache => "",
        Kind::Nginx => nginx::BUILD,
    };
    let (server, module) = (kind.manner().name, kind.manner().modules[0]);
    candidates.into_iter().find(|c| c.is_file()).ok_or(Error::NoModule { server, module, searched, remedy })
}

/// A program by its names: the one the caller has named, else the first on the PATH or in the usual places.
pub fn program(kind: Kind, named: Option<&Path>, names: &[&str], places: &[&str]) -> Result<PathBuf, Error> {
    match named {
        Some(path) if is_executable(path) => Ok(path.to_path_buf()),
        Some(path) => Err(unusable(kind, path, "it is not an executable file".into())),
        None => names
            .iter()
            .find_map(|name| crate::access::find_on_path(name))
            .or_else(|| {
                let mut all = places.iter().flat_map(|d| names.iter().map(move |n| Path::new(d).join(n)));
                all.find(|file| is_executable(file))
            })
            .ok_or_else(|| Error::NoServer { server: kind.manner().name, install: install_command(kind) }),
    }
}

/// What a server prints for one of its questions, on both of its streams. Its exit status is not looked at: Apache's `-V`
/// also wants the distribution's configuration, which need not be there.
pub fn ask(kind: Kind, program: &Path, question: &str) -> Result<String, Error> {
    let output = Command::new(program)
        .arg(question)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| unusable(kind, program, format!("it cannot be run: {e}")))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// A program that is not what it should be.
pub fn unusable(kind: Kind, path: &Path, why: String) -> Error {
    let wanted = match kind {
        Kind::Apache => "Apache 2.4",
        Kind::Nginx => "nginx 1.22 or later",
    };
    Error::ServerUnusable { path: path.into(), wanted, why }
}

/// The command that installs a server on this distribution.
pub fn install_command(kind: Kind) -> &'static str {
    let here = install_for(&os_release());
    match kind {
        Kind::Apache => here.apache,
        Kind::Nginx => here.nginx,
    }
}

/// The command that installs Python on this distribution.
pub fn install_python() -> &'static str {
    install_for(&os_release()).python
}

fn os_release() -> String {
    // Without the file nothing is known of the distribution, and all commands are named.
    std::fs::read_to_string("/etc/os-release").unwrap_or_default()
}

struct Install {
    apache: &'static str,
    nginx: &'static str,
    python: &'static str,
}

fn install_for(os_release: &str) -> Install {
    let ids: Vec<&str> = os_release
        .lines()
        .filter_map(|l| l.strip_prefix("ID=").or(l.strip_prefix("ID_LIKE=")))
        .flat_map(|v| v.trim_matches(['"', '\'']).split_whitespace())
        .collect();
    let is = |names: &[&str]| ids.iter().any(|id| names.contains(id));
    let install = |apache, nginx, python| Install { apache, nginx, python };
    if is(&["debian", "ubuntu"]) {
        install("apt-get install apache2-bin", "apt-get install nginx", "apt-get install python3")
    } else if is(&["fedora", "rhel", "centos"]) {
        install("dnf install httpd", "dnf install nginx", "dnf install python3")
    } else if is(&["suse", "opensuse"]) {
        install("zypper install apache2", "zypper install nginx", "zypper install python3")
    } else if is(&["arch"]) {
        install("pacman -S apache", "pacman -S nginx", "pacman -S python")
    } else {
        install(
            "apt-get install apache2-bin (Debian, Ubuntu) or dnf install httpd (Fedora, RHEL)",
            "apt-get install nginx (Debian, Ubuntu) or dnf install nginx (Fedora, RHEL)",
            "your package manager",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::command;

    fn kind(line: &str) -> Result<Option<Kind>, String> {
        let matches = command("express").try_get_matches_from(line.split(' ')).unwrap();
        wanted(&Values(&matches)).map_err(|e| {
            assert_eq!((e.code(), e.exit_status()), ("MWR0643", 2));
            e.to_string()
        })
    }

    #[test]
    fn names_the_install_command_of_the_distribution() {
        assert_eq!(install_for("ID=debian\n").apache, "apt-get install apache2-bin");
        assert_eq!(install_for("ID=debian\n").nginx, "apt-get install nginx");
        assert_eq!(install_for("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n").apache, "dnf install httpd");
        assert!(install_for("").nginx.contains("apt-get install nginx"));
    }

    #[test]
    fn options_of_one_server_decide_or_are_refused() {
        assert_eq!(kind("express a.wsgi"), Ok(None));
        assert_eq!(kind("express a.wsgi --server nginx --port 81"), Ok(Some(Kind::Nginx)));
        assert_eq!(kind("express a.wsgi --modules-directory /m"), Ok(Some(Kind::Apache)));
        assert_eq!(kind("express a.wsgi --nginx-executable /n"), Ok(Some(Kind::Nginx)));
        let text = kind("express a.wsgi --server nginx --modules-directory /m").unwrap_err();
        assert!(
            text.contains("--modules-directory") && text.contains("Apache") && text.contains("--server nginx"),
            "{text}"
        );
        let text = kind("express a.wsgi --nginx-executable /n --httpd-executable /h").unwrap_err();
        assert!(text.contains("--nginx-executable") && text.contains("--httpd-executable"), "{text}");
    }
}
