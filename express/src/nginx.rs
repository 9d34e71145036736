//! Finds the nginx to run, and what it was built with.

use crate::error::Error;
use crate::server::{self, Kind};
use std::path::{Path, PathBuf};

/// Where it lies when it is not on the PATH of ordinary users.
const DIRECTORIES: [&str; 5] =
    ["/usr/sbin", "/usr/local/sbin", "/usr/local/nginx/sbin", "/usr/local/bin", "/opt/nginx/sbin"];

/// The oldest release the module is built for.
const OLDEST: (u32, u32) = (1, 22);

/// What to do when there is no module for it.
pub const BUILD: &str = "; it is built where nginx's headers are: install nginx-dev (Debian, Ubuntu), or name a configured \
     source tree by NGINX_SOURCE_DIR and NGINX_BUILD_DIR, then run make build";

/// Parts of nginx that have a directory for temporary files of their own, unless nginx was built without them.
const UPSTREAMS: [&str; 4] = ["proxy", "fastcgi", "uwsgi", "scgi"];

/// An nginx that can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nginx {
    pub program: PathBuf,
    pub version: String,
    /// Its own table of media types, when there is one.
    pub mime_types: Option<PathBuf>,
    /// Which of [`UPSTREAMS`] it has.
    pub upstreams: Vec<&'static str>,
}

/// Finds an nginx, or the one named.
pub fn find(named: Option<&Path>) -> Result<Nginx, Error> {
    let program = server::program(Kind::Nginx, named, &["nginx"], &DIRECTORIES)?;
    let said = server::ask(Kind::Nginx, &program, "-V")?;
    let Some(version) = version(&said) else {
        return Err(server::unusable(Kind::Nginx, &program, "it does not answer -V as nginx does".into()));
    };
    let mut numbers = version.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST {
        return Err(server::unusable(Kind::Nginx, &program, format!("it is {version}")));
    }
    let mime_types = [argument(&said, "--conf-path=").and_then(|p| Some(Path::new(p).parent()?.join("mime.types")))]
        .into_iter()
        .flatten()
        .chain([PathBuf::from("/etc/nginx/mime.types")])
        .find(|file| file.is_file());
    let upstreams = UPSTREAMS.into_iter().filter(|u| !said.contains(&format!("--without-http_{u}_module"))).collect();
    Ok(Nginx { version: version.to_owned(), program, mime_types, upstreams })
}

fn version(said: &str) -> Option<&str> {
    said.lines().find_map(|l| l.trim().strip_prefix("nginx version: nginx/"))?.split_whitespace().next()
}

/// The value of one of the arguments nginx was configured with.
fn argument<'s>(said: &'s str, name: &str) -> Option<&'s str> {
    let rest = &said[said.find(name)? + name.len()..];
    rest.split([' ', '\n']).next()
}

/// Whether nginx has said that our module was built for another one.
pub fn is_mismatch(said: &str) -> bool {
    said.contains("is not binary compatible") || (said.contains("version ") && said.contains(" instead of "))
}

/// The remedy.
pub fn rebuild(version: &str) -> String {
    format!(
        "the module was built for another nginx than this one ({version}); build it for this one: install the nginx-dev of \
         the same version, or name its configured source tree by NGINX_SOURCE_DIR and NGINX_BUILD_DIR, then run make build; \
         or name the nginx it was built for with --nginx-executable"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "nginx version: nginx/1.22.1 (Debian)\nbuilt with OpenSSL 3\nconfigure arguments: --with-cc-opt='-g -O2' \
                        --conf-path=/etc/nginx/nginx.conf --without-http_scgi_module\n";

    #[test]
    fn reads_what_nginx_says_of_itself() {
        assert_eq!(version(SAID), Some("1.22.1"));
        assert_eq!(argument(SAID, "--conf-path="), Some("/etc/nginx/nginx.conf"));
        assert_eq!(argument(SAID, "--pid-path="), None);
        assert_eq!(version("Server version: Apache/2.4.1"), None);
    }

    #[test]
    fn what_is_no_nginx_is_refused() {
        assert_eq!(find(Some(Path::new("/nonexistent/nginx"))).unwrap_err().code(), "MWR0605");
        assert_eq!(find(Some(Path::new("/bin/true"))).unwrap_err().code(), "MWR0605");
    }

    #[test]
    fn knows_a_module_of_another_nginx() {
        let said = "nginx: [emerg] module \"/m.so\" version 1022001 instead of 1026003 in /n.conf:2";
        assert!(is_mismatch(said) && is_mismatch("module \"/m.so\" is not binary compatible in /n.conf:2"));
        assert!(!is_mismatch("unknown directive \"x\" in /n.conf:3"));
    }
}
