//! `mod-wsgi-rs check-nginx`: whether the nginx module fits an nginx, and what to do where it does not. nginx itself is
//! asked, with a configuration that holds nothing but the module.

use crate::error::Error;
use crate::nginx;
use crate::server::{self, Kind};
use clap::{Arg, ArgMatches, Command};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Stdio;

/// The command line.
pub fn command() -> Command {
    let file = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("FILE").value_parser(clap::value_parser!(PathBuf)).help(help)
    };
    Command::new("check-nginx")
        .about("Tell whether the nginx module fits the nginx that is installed")
        .arg(file("nginx-executable", "The nginx to check with; the first on PATH or in the usual places if not given"))
        .arg(file("module", "The module; the one beside this program if not given"))
}

/// 0: it fits; 1: it does not.
pub fn run(matches: &ArgMatches) -> Result<u8, Error> {
    let named = |name| matches.get_one::<PathBuf>(name).cloned();
    let found = nginx::find(named("nginx-executable").as_deref())?;
    let module = match named("module") {
        Some(module) => module.canonicalize().map_err(Error::io(module.display().to_string()))?,
        None => server::own_module(Kind::Nginx)?,
    };
    let (program, version) = (found.program.display(), &found.version);
    let said = asked(&found, &module)?;
    match said {
        None => {
            println!("{} fits nginx {version} ({program})", module.display());
            Ok(0)
        }
        Some(said) => {
            let remedy =
                if nginx::is_mismatch(&said) { nginx::rebuild(version) } else { "see nginx's lines".to_owned() };
            eprintln!("{} does not fit nginx {version} ({program}): {remedy}\n{}", module.display(), said.trim_end());
            Ok(1)
        }
    }
}

/// What nginx says against the module; `None`: nothing.
fn asked(nginx: &nginx::Nginx, module: &std::path::Path) -> Result<Option<String>, Error> {
    // nginx -t makes the pid file where there is none.
    let text = format!("load_module \"{}\";\npid /dev/null;\nerror_log stderr;\nevents {{ }}\n", module.display());
    let file = memfd_create("nginx.conf", MFdFlags::empty())
        .map_err(|e| Error::io("memory for nginx's configuration")(e.into()))?;
    let mut file = std::fs::File::from(file);
    file.write_all(text.as_bytes()).map_err(Error::io("memory for nginx's configuration"))?;
    let output = std::process::Command::new(&nginx.program)
        .args(["-t", "-p", "/", "-c"])
        .arg(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| server::unusable(Kind::Nginx, &nginx.program, format!("it cannot be run: {e}")))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok((!output.status.success()).then_some(said))
}
