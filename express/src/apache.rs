//! Finds the Apache to run: its binary, the directory of its modules, and which modules must be loaded.

use crate::error::Error;
use crate::server::{self, Kind};
use std::path::{Path, PathBuf};

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
    pub version: String,
    /// `event`, `worker` or `prefork`.
    pub mpm: &'static str,
    /// Modules to load: name without `_module`, and file. Built-in ones are not among them.
    pub load: Vec<(String, PathBuf)>,
    /// A table of media types, when there is one.
    pub mime_types: Option<PathBuf>,
}

/// Finds an Apache, or the one named, with everything the configuration needs.
pub fn find(named: Option<&Path>, modules: Option<&Path>, with_rewrite: bool) -> Result<Apache, Error> {
    let httpd = server::program(Kind::Apache, named, &NAMES, &DIRECTORIES)?;
    let ask = |question: &str| server::ask(Kind::Apache, &httpd, question);
    let said = ask("-v")?;
    let version = said.lines().find_map(|l| l.trim().strip_prefix("Server version:")).map(str::trim);
    let Some(number) = version.and_then(|v| v.strip_prefix("Apache/")).filter(|n| n.starts_with("2.4")) else {
        let why = version.map_or("it does not answer -v as Apache does".to_string(), |v| format!("it is {v}"));
        return Err(server::unusable(Kind::Apache, &httpd, why));
    };
    let built_in = ask("-l")?;
    let root = server_root(&ask("-V")?);
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
        install: server::install_command(Kind::Apache),
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
    let version = number.split_whitespace().next().unwrap_or(number).to_owned();
    Ok(Apache { version, mpm, load, mime_types, httpd })
}

fn server_root(compiled_with: &str) -> Option<PathBuf> {
    let line = compiled_with.lines().find_map(|l| l.trim().strip_prefix("-D HTTPD_ROOT="))?;
    Some(PathBuf::from(line.trim_matches('"')))
}

#[cfg(test)]
mod tests {
    use super::*;

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
