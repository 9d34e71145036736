//! Finds the Apache to run: its binary, the directory of its modules, and which modules must be loaded.

use crate::access::find_on_path;
use crate::error::Error;
use mod_wsgi_core::interpreter::is_executable;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names of the binary, by preference.
const NAMES: [&str; 3] = ["apache2", "httpd", "httpd2"];

/// Where it lies when it is not on the PATH of ordinary users.
const DIRECTORIES: [&str; 5] =
    ["/usr/sbin", "/usr/local/sbin", "/usr/local/apache2/bin", "/usr/local/bin", "/opt/apache2/bin"];

/// Where distributions put the modules.
const MODULE_DIRECTORIES: [&str; 8] = [
    "/usr/lib/apache2/modules",
    "/usr/lib64/httpd/modules",
    "/usr/lib/httpd/modules",
    "/usr/lib64/apache2",
    "/usr/lib/apache2",
    "/usr/local/apache2/modules",
    "/usr/libexec/apache2",
    "/usr/libexec/httpd",
];

/// Processing models, by preference.
const MPMS: [&str; 3] = ["event", "worker", "prefork"];

/// Modules the generated configuration uses; `name` in `LoadModule name_module mod_name.so`.
const NEEDED: [&str; 7] = ["unixd", "authz_core", "log_config", "mime", "dir", "alias", "env"];

/// An Apache that can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apache {
    pub httpd: PathBuf,
    /// `event`, `worker` or `prefork`.
    pub mpm: &'static str,
    /// Modules to load: name without `_module`, and file. Built-in ones are not among them.
    pub load: Vec<(String, PathBuf)>,
    /// A table of media types, when there is one.
    pub mime_types: Option<PathBuf>,
}

/// The command that installs Apache on this distribution.
pub fn install_command() -> &'static str {
    install_for(&std::fs::read_to_string("/etc/os-release").unwrap_or_default()).0
}

/// The command that installs Python on this distribution.
pub fn install_python() -> &'static str {
    install_for(&std::fs::read_to_string("/etc/os-release").unwrap_or_default()).1
}

fn install_for(os_release: &str) -> (&'static str, &'static str) {
    let ids: Vec<&str> = os_release
        .lines()
        .filter_map(|l| l.strip_prefix("ID=").or(l.strip_prefix("ID_LIKE=")))
        .flat_map(|v| v.trim_matches(['"', '\'']).split_whitespace())
        .collect();
    let is = |names: &[&str]| ids.iter().any(|id| names.contains(id));
    if is(&["debian", "ubuntu"]) {
        ("apt-get install apache2-bin", "apt-get install python3")
    } else if is(&["fedora", "rhel", "centos"]) {
        ("dnf install httpd", "dnf install python3")
    } else if is(&["suse", "opensuse"]) {
        ("zypper install apache2", "zypper install python3")
    } else if is(&["arch"]) {
        ("pacman -S apache", "pacman -S python")
    } else {
        ("apt-get install apache2-bin (Debian, Ubuntu) or dnf install httpd (Fedora, RHEL)", "your package manager")
    }
}

/// Finds an Apache, or the one named, with everything the configuration needs.
pub fn find(named: Option<&Path>, modules: Option<&Path>, with_rewrite: bool) -> Result<Apache, Error> {
    let httpd = match named {
        Some(path) if is_executable(path) => path.to_path_buf(),
        Some(path) => {
            return Err(Error::ApacheUnusable { path: path.into(), why: "it is not an executable file".into() });
        }
        None => NAMES
            .iter()
            .find_map(|name| find_on_path(name))
            .or_else(|| {
                DIRECTORIES.iter().flat_map(|d| NAMES.map(|n| Path::new(d).join(n))).find(|file| is_executable(file))
            })
            .ok_or(Error::NoApache { install: install_command() })?,
    };
    let version = ask(&httpd, "-v")?;
    if !version.contains("Apache/2.4") {
        let said = version.lines().find_map(|l| l.trim().strip_prefix("Server version:"));
        let why = said.map_or("it does not answer -v as Apache does".to_string(), |v| format!("it is {}", v.trim()));
        return Err(Error::ApacheUnusable { path: httpd, why });
    }
    let built_in = ask(&httpd, "-l")?;
    let root = server_root(&ask(&httpd, "-V")?);
    let places: Vec<PathBuf> = match modules {
        Some(dir) => vec![dir.to_path_buf()],
        None => root
            .iter()
            .map(|r| r.join("modules"))
            .chain(httpd.parent().and_then(Path::parent).map(|prefix| prefix.join("modules")))
            .chain(MODULE_DIRECTORIES.iter().map(PathBuf::from))
            .collect(),
    };
    let is_built_in = |file: &str| built_in.lines().any(|l| l.trim() == file);
    let find_module = |name: &str| places.iter().map(|d| d.join(format!("mod_{name}.so"))).find(|file| file.is_file());
    let missing = |name: &str| Error::ApacheModule {
        module: format!("mod_{name}"),
        httpd: httpd.clone(),
        searched: places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
        install: install_command(),
    };

    let mut load = Vec::new();
    let mpm = match MPMS.iter().find(|m| is_built_in(&format!("{m}.c"))) {
        Some(mpm) => mpm,
        None => {
            let (mpm, file) = MPMS
                .iter()
                .find_map(|m| Some((m, find_module(&format!("mpm_{m}"))?)))
                .ok_or_else(|| missing("mpm_event"))?;
            load.push((format!("mpm_{mpm}"), file));
            mpm
        }
    };
    for name in NEEDED.iter().chain(with_rewrite.then_some(&"rewrite")) {
        if !is_built_in(&format!("mod_{name}.c")) {
            load.push((name.to_string(), find_module(name).ok_or_else(|| missing(name))?));
        }
    }
    let mime_types = [Some(PathBuf::from("/etc/mime.types")), root.map(|r| r.join("conf/mime.types"))]
        .into_iter()
        .flatten()
        .find(|file| file.is_file());
    Ok(Apache { httpd, mpm, load, mime_types })
}

/// What httpd prints for one of its questions. Its exit status is not looked at: `-V` also wants the distribution's
/// configuration, which need not be there.
fn ask(httpd: &Path, question: &str) -> Result<String, Error> {
    let output = Command::new(httpd)
        .arg(question)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::ApacheUnusable { path: httpd.into(), why: format!("it cannot be run: {e}") })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn server_root(compiled_with: &str) -> Option<PathBuf> {
    let line = compiled_with.lines().find_map(|l| l.trim().strip_prefix("-D HTTPD_ROOT="))?;
    Some(PathBuf::from(line.trim_matches('"')))
}

/// `mod_wsgi_rs.so`, or as cargo names it `libmod_wsgi_rs.so`, beside this program (links to it resolved).
pub fn find_own_module() -> Result<PathBuf, Error> {
    let program = std::env::current_exe().and_then(|p| p.canonicalize()).map_err(Error::io("own path"))?;
    let candidates = ["mod_wsgi_rs.so", "libmod_wsgi_rs.so"].map(|name| program.with_file_name(name));
    let searched = candidates.iter().map(|c| c.display().to_string()).collect::<Vec<_>>().join(", ");
    candidates.into_iter().find(|c| c.is_file()).ok_or(Error::NoModule { searched })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_install_command_of_the_distribution() {
        assert_eq!(install_for("ID=debian\n").0, "apt-get install apache2-bin");
        assert_eq!(install_for("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n").0, "dnf install httpd");
        assert!(install_for("").0.contains("apt-get install apache2-bin"));
    }

    #[test]
    fn reads_the_compiled_root() {
        let text = "Server compiled with....\n -D HTTPD_ROOT=\"/etc/apache2\"\n";
        assert_eq!(server_root(text), Some(PathBuf::from("/etc/apache2")));
        assert_eq!(server_root(""), None);
    }

    #[test]
    fn what_is_no_apache_is_refused() {
        let error = find(Some(Path::new("/nonexistent/httpd")), None, false).unwrap_err();
        assert_eq!(error.code(), "MWR0605");
    }
}
