//! The program `mod-wsgi-rs`. For people: `express`, `ctl`, `version`. For the server module and itself: the keeper, the
//! supervisor and the start of workers (library mod-wsgi-supervisor), and the launcher's own helpers.
#![forbid(unsafe_code)]

mod access;
mod account;
mod apache;
mod application;
mod check_nginx;
mod container;
mod ctl;
mod error;
mod helper;
mod import_check;
mod limits;
mod listen;
mod nginx;
mod notify;
mod options;
mod plan;
mod process;
mod render;
mod root;
mod server;
mod sources;
mod spool;
mod unit;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use error::Error;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(status) = mod_wsgi_supervisor::internal(&args).or_else(|| helper::dispatch(&args)) {
        return ExitCode::from(status);
    }
    let result = match cli().try_get_matches() {
        Ok(matches) => run(&matches),
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Standard output may be a closed pipe (`--help | head`).
            let _ = e.print();
            Ok(0)
        }
        Err(e) => Err(Error::Usage(e.to_string().trim_start_matches("error: ").trim_end().to_string())),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            // Standard error may have been closed; the status still tells.
            let _ = writeln!(std::io::stderr(), "mod-wsgi-rs: {}: {e}", e.code());
            ExitCode::from(e.exit_status())
        }
    }
}

fn cli() -> Command {
    Command::new("mod-wsgi-rs")
        .about("WSGI hosting inside Apache httpd and nginx")
        .version(VERSION)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(options::command("express").visible_alias("start-server"))
        .subcommand(options::command("setup-server").about("The same as express --setup-only"))
        .subcommand(container::command())
        .subcommand(ctl_cli())
        .subcommand(check_nginx::command())
        .subcommand(Command::new("version").about("Print the version"))
}

/// `ctl` and its words.
fn ctl_cli() -> Command {
    let directory = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("DIRECTORY").value_parser(clap::value_parser!(PathBuf)).help(help)
    };
    let word = |name: &'static str, about: &'static str| {
        Command::new(name)
            .about(about)
            .arg(directory("run-directory", "Run directory of the module (below WSGISocketPrefix)"))
            .arg(directory("server-root", "Server root of express; also taken from MOD_WSGI_RS_SERVER_ROOT"))
            .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
            .group(ArgGroup::new("where").args(["run-directory", "server-root"]))
    };
    let group =
        || Arg::new("group").value_name("GROUP").help("Daemon process group; all if not given, '' the automatic one");
    let timeout = || {
        Arg::new("timeout")
            .long("timeout")
            .value_name("SECONDS")
            .default_value("60")
            .value_parser(clap::value_parser!(u64).range(0..=86_400))
            .help("Wait at most so long until all workers are new; 0 = do not wait")
    };
    let levels = ["crit", "error", "warn", "notice", "info", "debug"];
    Command::new("ctl")
        .about("Talk to a running supervisor")
        .subcommand_required(true)
        .subcommand(word("status", "Show groups, workers and requests under way"))
        .subcommand(word("live", "End with 0 if the supervisor answers; for liveness probes and health checks"))
        .subcommand(
            word("reload", "Load new code: new workers first, old ones finish their requests")
                .arg(group())
                .arg(timeout()),
        )
        .subcommand(
            word("restart", "End every worker at once (requests may finish) and start new ones")
                .arg(group())
                .arg(timeout()),
        )
        .subcommand(
            word("scale", "Run so many workers until the next restart of the server; 0 = as configured")
                .arg(Arg::new("group").value_name("GROUP").required(true).help("Daemon process group"))
                .arg(
                    Arg::new("processes")
                        .value_name("NUMBER")
                        .required(true)
                        .value_parser(clap::value_parser!(u16))
                        .help("Workers of each application group"),
                ),
        )
        .subcommand(
            word("readiness", "Whether load balancers may be told to send requests here").arg(
                Arg::new("state").value_name("STATE").required(true).value_parser(["on", "off"]).help(
                    "off: readiness is 503 until 'on' or the end of the server; requests are served all the same",
                ),
            ),
        )
        .subcommand(word("stacks", "Print the Python stacks of all threads, also to the error log").arg(group()))
        .subcommand(
            word("log-level", "Least level of the workers' and the supervisor's lines, until the next restart").arg(
                Arg::new("level").value_name("LEVEL").required(true).value_parser(levels).help("Level as of LogLevel"),
            ),
        )
}

fn run_ctl(matches: &ArgMatches) -> Result<u8, Error> {
    use mod_wsgi_wire::control::Command as Order;
    use mod_wsgi_wire::frame::Level;
    let Some((word, m)) = matches.subcommand() else { return Err(Error::Internal("ctl without a word".into())) };
    let directory = run_directory(m)?;
    let json = m.get_flag("json");
    let group = || m.get_one::<String>("group").cloned();
    let wait = || m.get_one::<u64>("timeout").copied().filter(|t| *t > 0).map(std::time::Duration::from_secs);
    match word {
        "status" => ctl::status(&directory, json),
        "live" => ctl::live(&directory),
        "reload" => ctl::command(&directory, Order::Reload { group: group() }, wait(), json),
        "restart" => ctl::command(&directory, Order::Restart { group: group() }, wait(), json),
        "scale" => {
            let processes = m.get_one::<u16>("processes").copied().unwrap_or_default();
            ctl::command(&directory, Order::Scale { group: group().unwrap_or_default(), processes }, None, json)
        }
        "readiness" => {
            let ready = m.get_one::<String>("state").is_some_and(|s| s == "on");
            ctl::command(&directory, Order::Readiness { ready }, None, json)
        }
        "stacks" => ctl::command(&directory, Order::Stacks { group: group() }, None, json),
        "log-level" => {
            let level = match m.get_one::<String>("level").map(String::as_str) {
                Some("crit") => Level::Crit,
                Some("error") => Level::Error,
                Some("warn") => Level::Warn,
                Some("notice") => Level::Notice,
                Some("info") => Level::Info,
                _ => Level::Debug,
            };
            ctl::command(&directory, Order::LogLevel { level }, None, json)
        }
        other => Err(Error::Internal(format!("ctl {other}"))),
    }
}

fn run(matches: &ArgMatches) -> Result<u8, Error> {
    match matches.subcommand() {
        Some(("express", m)) => express(m, false),
        Some(("setup-server", m)) => express(m, true),
        Some(("container", m)) => container::run(m),
        Some(("ctl", m)) => run_ctl(m),
        Some(("check-nginx", m)) => check_nginx::run(m),
        Some(("version", _)) => {
            println!("mod-wsgi-rs {VERSION}");
            Ok(0)
        }
        _ => Err(Error::Internal("no subcommand".into())),
    }
}

/// The run directory that `ctl` is told, or that of the server root in the environment.
fn run_directory(matches: &ArgMatches) -> Result<PathBuf, Error> {
    if let Some(directory) = matches.get_one::<PathBuf>("run-directory") {
        return Ok(directory.clone());
    }
    let named = matches.get_one::<PathBuf>("server-root").cloned();
    let variable = || std::env::var_os(sources::variable("server-root")).filter(|v| !v.is_empty()).map(PathBuf::from);
    let root = named.or_else(variable).ok_or_else(|| {
        Error::Usage("name the server with --run-directory or --server-root (or MOD_WSGI_RS_SERVER_ROOT)".into())
    })?;
    ctl::run_directory_of(&root)
}

fn express(matches: &ArgMatches, setup_only: bool) -> Result<u8, Error> {
    let matches = sources::with_environment(matches)?;
    let mut plan = plan::Plan::resolve(&options::Values(&matches))?;
    plan.setup_only |= setup_only;
    process::serve(plan)
}
