//! The options of `mod-wsgi-rs express`: one table. Parsing, `--help` and docs/express.md come from it; a new option is a
//! new row here and its use in [`crate::plan`]. Names, meanings and defaults are those of mod_wsgi-express.

use crate::server;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser, ValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use mod_wsgi_core::options::{self as daemon, Express};
use std::sync::LazyLock;

/// What an option's value is.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// No value: given or not.
    Flag,
    /// Any text.
    Text,
    /// A file or directory; relative ones start at the directory express is called in.
    Path,
    /// A whole number from the first to the second, both included.
    Number(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An option of WSGIDaemonProcess, passed on; what it may be is said here.
    Daemon(&'static str),
}

/// Part of the help and of docs/express.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Listening,
    Capacity,
    Life,
    Application,
    Python,
    Static,
    Limits,
    User,
    Files,
    Server,
}

impl Section {
    const ALL: [Section; 10] = [
        Section::Application,
        Section::Python,
        Section::Listening,
        Section::Capacity,
        Section::Life,
        Section::Static,
        Section::Limits,
        Section::User,
        Section::Files,
        Section::Server,
    ];

    fn title(self) -> &'static str {
        match self {
            Section::Listening => "Listening",
            Section::Capacity => "Capacity",
            Section::Life => "Life of the Python processes",
            Section::Application => "Application",
            Section::Python => "Python",
            Section::Static => "Static files",
            Section::Limits => "Request limits",
            Section::User => "User",
            Section::Files => "Files and logs",
            Section::Server => "Server",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Opt {
    /// Long name without the dashes.
    pub name: &'static str,
    pub kind: Kind,
    /// Names of its values; more than one value: all must be given.
    pub values: &'static [&'static str],
    pub repeatable: bool,
    /// What holds when it is not given, as text for people; numbers and choices are parsed from it.
    pub default: &'static str,
    /// Unit of a number; empty = a count.
    pub unit: &'static str,
    pub section: Section,
    /// The one server it has a meaning for, and why it has none for others.
    pub only: Option<(server::Kind, &'static str)>,
    pub help: &'static str,
}

const LEVELS: &[&str] = &[
    "emerg", "alert", "crit", "error", "warn", "notice", "info", "debug", "trace1", "trace2", "trace3", "trace4",
    "trace5", "trace6", "trace7", "trace8",
];

const fn opt(name: &'static str, kind: Kind, values: &'static [&'static str], section: Section) -> Opt {
    Opt { name, kind, values, repeatable: false, default: "", unit: "", section, only: None, help: "" }
}

impl Opt {
    const fn default(mut self, default: &'static str) -> Opt {
        self.default = default;
        self
    }
    const fn unit(mut self, unit: &'static str) -> Opt {
        self.unit = unit;
        self
    }
    const fn repeatable(mut self) -> Opt {
        self.repeatable = true;
        self
    }
    const fn only(mut self, server: server::Kind, why: &'static str) -> Opt {
        self.only = Some((server, why));
        self
    }
    const fn help(mut self, help: &'static str) -> Opt {
        self.help = help;
        self
    }
}

/// The table, and behind it what comes from that of WSGIDaemonProcess.
pub static OPTIONS: LazyLock<Vec<Opt>> = LazyLock::new(|| OWN.iter().copied().chain(passed_on()).collect());

/// The options of WSGIDaemonProcess that are options here too.
fn passed_on() -> impl Iterator<Item = Opt> {
    daemon::TABLE.iter().filter_map(|o| {
        let default = match o.express {
            Express::No => return None,
            Express::Same => o.default,
            Express::Value(v) => v,
        };
        let row = opt(o.name, Kind::Daemon(o.value), &["VALUE"], Section::Life).default(default).help(o.help);
        Some(if o.repeatable() { row.repeatable() } else { row })
    })
}

const OWN: &[Opt] = &[
    opt("callable-object", Kind::Text, &["NAME"], Section::Application)
        .default("application")
        .help("Name of the WSGI callable in the script or module."),
    opt("mount-point", Kind::Text, &["URL-PATH"], Section::Application)
        .default("/")
        .help("URL path below which the application answers; it becomes SCRIPT_NAME."),
    opt("working-directory", Kind::Path, &["DIRECTORY"], Section::Application)
        .default("the current directory")
        .help("Working directory of the Python processes; also the first entry of sys.path."),
    opt("setenv", Kind::Text, &["KEY", "VALUE"], Section::Application).repeatable().help(
        "Adds a variable to the WSGI environ of every request (not to os.environ: for that, set it in the environment \
         express is started from).",
    ),
    opt("python", Kind::Path, &["PATH"], Section::Python)
        .default("bin/python of $VIRTUAL_ENV, else python3 on PATH")
        .help("Interpreter that runs the application, or the root of a virtual environment or installation."),
    opt("python-path", Kind::Path, &["DIRECTORY"], Section::Python)
        .repeatable()
        .help("Directory put at the front of sys.path; its .pth files are read."),
    opt("host", Kind::Text, &["ADDRESS"], Section::Listening)
        .default("all addresses")
        .help("Address or host name to listen on."),
    opt("port", Kind::Number(1, 65535), &["NUMBER"], Section::Listening).default("8000").help("Port to listen on."),
    opt("stop-delay", Kind::Number(0, 3600), &["NUMBER"], Section::Listening).default("0").unit("seconds").help(
        "After SIGTERM, goes on serving for so long before it stops listening: a load balancer needs a moment to learn that \
         this server is going. Readiness is 503 meanwhile. A second SIGTERM ends the delay.",
    ),
    opt("readiness", Kind::Flag, &[], Section::Listening).default("off").help(
        "Answers /-/mod-wsgi-rs/ready with 200 when the application is loaded and its queue has room, else with 503, for load \
         balancers. The application is not asked, and the request is not counted.",
    ),
    opt("processes", Kind::Number(1, 500), &["NUMBER"], Section::Capacity)
        .default("1")
        .help("Python processes. When it is given, even as 1, wsgi.multiprocess is true."),
    opt("threads", Kind::Number(1, 4096), &["NUMBER"], Section::Capacity)
        .default("5")
        .help("Threads of each Python process, each serving one request at a time."),
    opt("container-limits", Kind::Flag, &[], Section::Capacity).default("off").help(
        "Fits the Python processes to the limits of the container (its control group): without --processes as many as it \
         has processors, 1 to 4, and as its memory holds at 1.3 times what the application needs once loaded; without \
         --max-rss each may grow to its part of nine tenths of the memory. Says what it has chosen.",
    ),
    opt("reload-on-changes", Kind::Flag, &[], Section::Life).default("off").help(
        "For development: new code is loaded when a file it came from changes. The error log goes to the terminal, as with \
         --log-to-terminal.",
    ),
    opt("reload-extra-file", Kind::Path, &["PATH"], Section::Life).repeatable().help(
        "With --reload-on-changes: a further file to watch, for example a template or settings file; of a directory, the \
         files that come, go or are replaced in it.",
    ),
    opt("document-root", Kind::Path, &["DIRECTORY"], Section::Static).default("none").help(
        "Directory of static files. A URL that names a file in it is answered by the web server, anything else goes to \
         the application.",
    ),
    opt("url-alias", Kind::Path, &["URL-PATH", "PATH"], Section::Static)
        .repeatable()
        .help("Serves a directory or file at a URL path, before the application."),
    opt("limit-request-body", Kind::Number(0, i64::MAX as u64), &["NUMBER"], Section::Limits)
        .default("10485760")
        .unit("bytes")
        .help("Largest request body; a larger one is answered with 413. 0 = no limit."),
    opt("user", Kind::Text, &["NAME"], Section::User)
        .default("the distribution's server user when started as root, else the caller")
        .help("User that the server's processes and Python run as; only root can choose another than its own, never uid 0."),
    opt("group", Kind::Text, &["NAME"], Section::User)
        .default("the user's primary group")
        .help("Group that the server's processes and Python run as."),
    opt("server-root", Kind::Path, &["DIRECTORY"], Section::Files)
        .default("mod-wsgi-rs-HOST:PORT:UID in $TMPDIR or /tmp")
        .help(
            "Private directory for the generated configuration, logs and sockets. The default one is removed at the end; \
             in one that is named here, the logs stay.",
        ),
    opt("access-log", Kind::Flag, &[], Section::Files).default("off").help("Writes an access log."),
    opt("access-log-format", Kind::Text, &["FORMAT"], Section::Files).default("combined").help(
        "Format of the access log: combined, common, json (one object a line, with request id, queue time and application \
         time), or a format in the words of the web server. Turns the access log on.",
    ),
    opt("log-to-terminal", Kind::Flag, &[], Section::Files)
        .default("off")
        .help("Writes the error log to standard error and the access log to standard output instead of files."),
    opt("log-level", Kind::Choice(LEVELS), &["LEVEL"], Section::Files)
        .default("warn")
        .help("Least level that the web server writes to the error log; nginx has debug for trace1 to trace8. Messages of this module and its workers: info at least."),
    opt("setup-only", Kind::Flag, &[], Section::Server)
        .default("off")
        .help("Writes configuration and start script, says how to start, and ends."),
    opt("systemd-unit", Kind::Flag, &[], Section::Server)
        .default("off")
        .help("Prints a hardened systemd unit that runs this command line, and ends."),
    opt("httpd-executable", Kind::Path, &["FILE"], Section::Server)
        .default("apache2 or httpd on PATH or in the usual places")
        .only(server::Kind::Apache, "it names the program of Apache; nginx is named by --nginx-executable")
        .help("Apache to run."),
    opt("nginx-executable", Kind::Path, &["FILE"], Section::Server)
        .default("nginx on PATH or in the usual places")
        .only(server::Kind::Nginx, "it names the program of nginx; Apache is named by --httpd-executable")
        .help("nginx to run."),
    opt("modules-directory", Kind::Path, &["DIRECTORY"], Section::Server)
        .default("that of the distribution")
        .only(server::Kind::Apache, "the parts of nginx that express needs are built into nginx")
        .help("Directory of Apache's own modules."),
    opt("include-file", Kind::Path, &["FILE"], Section::Server)
        .repeatable()
        .help(
            "Further configuration in the words of the web server, read at the end of the generated one; nginx reads it in \
             its server block.",
        ),
    opt("server", Kind::Choice(&["auto", "apache", "nginx"]), &["NAME"], Section::Server)
        .default("auto")
        .help("Web server to run. auto takes Apache if it is installed, else nginx, and says which."),
];

/// The option of that name.
fn row(name: &str) -> &'static Opt {
    OPTIONS.iter().find(|o| o.name == name).unwrap_or_else(|| panic!("no option --{name} in the table"))
}

/// Its help with range, unit and default.
fn full_help(o: &Opt) -> String {
    let mut text = o.help.to_string();
    if o.repeatable {
        text.push_str(" May be given more than once.");
    }
    if !o.default.is_empty() {
        text.push_str(&format!(" [default: {}{}]", o.default, unit(o)));
    }
    if let Kind::Number(low, high) = o.kind {
        text.push_str(&match high {
            h if h == i64::MAX as u64 => format!(" [{low} or more{}]", unit(o)),
            h => format!(" [{low} to {h}{}]", unit(o)),
        });
    }
    if let Kind::Daemon(value) = o.kind {
        text.push_str(&format!(" [{value}]"));
    }
    if let Some((server, _)) = o.only {
        text.push_str(&format!(" [{} only]", server.manner().name));
    }
    text
}

/// Breaks a text into lines of at most `width` characters.
fn wrap(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > 0 {
            let fits = column + 1 + length <= width;
            out.push(if fits { ' ' } else { '\n' });
            column = if fits { column + 1 } else { 0 };
        }
        out.push_str(word);
        column += length;
    }
    out
}

fn unit(o: &Opt) -> String {
    if o.unit.is_empty() { String::new() } else { format!(" {}", o.unit) }
}

/// The command line of `express`, built from the table.
pub fn command(name: &'static str) -> Command {
    let mut command = Command::new(name)
        .about("Serve a WSGI application through a private Apache or nginx")
        .after_help("Each option can also be given by a variable: --url-alias by MOD_WSGI_RS_URL_ALIAS.")
        .arg(
            Arg::new("application")
                .value_name("APPLICATION")
                .num_args(0..)
                .help("A WSGI script file, or package.module:callable"),
        );
    for section in Section::ALL {
        for o in OPTIONS.iter().filter(|o| o.section == section) {
            let parser: ValueParser = match o.kind {
                Kind::Flag => ValueParser::bool(),
                Kind::Text | Kind::Path => ValueParser::string(),
                Kind::Number(low, high) => RangedU64ValueParser::<u64>::new().range(low..=high).into(),
                Kind::Choice(words) => PossibleValuesParser::new(words).into(),
                Kind::Daemon(_) => {
                    let spec = daemon::TABLE.iter().find(|d| d.name == o.name);
                    ValueParser::new(move |text: &str| match spec.map(|s| s.check(text)) {
                        Some(Err(why)) => Err(why),
                        _ => Ok(text.to_owned()),
                    })
                }
            };
            let mut arg = Arg::new(o.name).long(o.name).help(wrap(&full_help(o), 76)).help_heading(section.title());
            arg = match o.kind {
                Kind::Flag => arg.action(ArgAction::SetTrue),
                _ => arg
                    .action(if o.repeatable { ArgAction::Append } else { ArgAction::Set })
                    .value_names(o.values)
                    .num_args(o.values.len())
                    .allow_hyphen_values(o.values.len() > 1)
                    .value_parser(parser),
            };
            command = command.arg(arg);
        }
    }
    command
}

/// The parsed command line, read by the names of the table. Asking for a name that is not in it, or as another kind, is a
/// fault of the program and panics; a test asks for all of them.
pub struct Values<'a>(pub &'a ArgMatches);

impl Values<'_> {
    pub fn applications(&self) -> Vec<String> {
        self.0.get_many::<String>("application").into_iter().flatten().cloned().collect()
    }
    pub fn flag(&self, name: &str) -> bool {
        self.0.get_flag(name)
    }
    /// Whether it stands on the command line (or in what counts as one).
    pub fn is_given(&self, name: &str) -> bool {
        self.0.value_source(name) == Some(ValueSource::CommandLine)
    }
    /// Text, path or choice; `None`: not given.
    pub fn text(&self, name: &str) -> Option<String> {
        self.0.get_one::<String>(name).cloned()
    }
    /// Text or choice, else its default.
    pub fn text_or_default(&self, name: &str) -> String {
        self.text(name).unwrap_or_else(|| row(name).default.to_string())
    }
    /// A number; `None`: not given.
    pub fn given_number(&self, name: &str) -> Option<u64> {
        self.0.get_one::<u64>(name).copied()
    }
    /// A number, else its default.
    pub fn number(&self, name: &str) -> u64 {
        let parsed = || row(name).default.parse().unwrap_or_else(|_| panic!("--{name} has no number as default"));
        self.given_number(name).unwrap_or_else(parsed)
    }
    pub fn texts(&self, name: &str) -> Vec<String> {
        self.0.get_many::<String>(name).into_iter().flatten().cloned().collect()
    }
    /// What WSGIDaemonProcess gets: what was given, and defaults that are not its own.
    pub fn daemon(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        for spec in daemon::TABLE.iter().filter(|s| s.express != Express::No) {
            let given = self.texts(spec.name);
            match spec.express {
                Express::Value(default) if given.is_empty() => out.push((spec.name, default.to_owned())),
                _ => out.extend(given.into_iter().map(|value| (spec.name, value))),
            }
        }
        out
    }
    /// Each occurrence of an option with two values.
    pub fn pairs(&self, name: &str) -> Vec<(String, String)> {
        self.texts(name).chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }
}

/// docs/express-options.md.
#[cfg(test)]
fn document() -> String {
    let mut out = String::from(
        "# Options of `mod-wsgi-rs express`\n\n<!-- Generated from the table in express/src/options.rs by `make docs`. -->\n\n\
         ```\nmod-wsgi-rs express [OPTIONS] APPLICATION\n```\n\n`APPLICATION` is a WSGI script file, or `package.module:callable`. \
         How the pieces fit together is in [express.md](express.md).\n\nEach option can also be given by a variable of the \
         environment: `--url-alias` by `MOD_WSGI_RS_URL_ALIAS`, see [express.md](express.md#variables).\n",
    );
    for section in Section::ALL {
        out.push_str(&format!("\n## {}\n", section.title()));
        for o in OPTIONS.iter().filter(|o| o.section == section) {
            let values: String = o.values.iter().map(|v| format!(" {v}")).collect();
            out.push_str(&format!("\n### `--{}{values}`\n\n{}\n\n", o.name, o.help));
            match o.kind {
                Kind::Number(low, high) if high == i64::MAX as u64 => {
                    out.push_str(&format!("- Values: {low} or more{}\n", unit(o)))
                }
                Kind::Number(low, high) => out.push_str(&format!("- Values: {low} to {high}{}\n", unit(o))),
                Kind::Choice(words) => out.push_str(&format!("- Values: {}\n", words.join(", "))),
                Kind::Daemon(value) => out.push_str(&format!("- Values: {value}\n")),
                Kind::Flag | Kind::Text | Kind::Path => {}
            }
            if !o.default.is_empty() {
                out.push_str(&format!("- Default: {}{}\n", o.default, unit(o)));
            }
            if o.repeatable {
                out.push_str("- May be given more than once\n");
            }
            if let Some((server, why)) = o.only {
                out.push_str(&format!("- Server: {} only; {why}\n", server.manner().name));
            }
        }
    }
    // No blank line before the next heading twice, none at the end.
    while out.contains("\n\n\n") {
        out = out.replace("\n\n\n", "\n\n");
    }
    format!("{}\n", out.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_makes_a_sound_command() {
        command("express").debug_assert();
        for o in OPTIONS.iter() {
            assert!(!o.help.is_empty() && o.help.ends_with(['.', ')']), "--{}: help", o.name);
            assert_eq!(matches!(o.kind, Kind::Flag), o.values.is_empty(), "--{}: values", o.name);
            match o.kind {
                Kind::Number(low, high) => {
                    let default: u64 = o.default.parse().unwrap();
                    assert!((low..=high).contains(&default), "--{}: default", o.name);
                }
                Kind::Choice(words) => assert!(words.contains(&o.default), "--{}: default", o.name),
                Kind::Flag | Kind::Text | Kind::Path | Kind::Daemon(_) => {}
            }
        }
    }

    #[test]
    fn values_are_read_by_name() {
        let line = "express a.wsgi --port 81 --setenv A -b --setenv C d --access-log --log-level info";
        let m = command("express").try_get_matches_from(line.split(' ')).unwrap();
        let v = Values(&m);
        assert_eq!(v.applications(), ["a.wsgi"]);
        assert_eq!((v.number("port"), v.number("threads"), v.given_number("processes")), (81, 5, None));
        assert_eq!(v.pairs("setenv"), [("A".into(), "-b".into()), ("C".into(), "d".into())]);
        assert!(v.flag("access-log") && !v.flag("setup-only"));
        assert_eq!((v.text_or_default("log-level").as_str(), v.text_or_default("server").as_str()), ("info", "auto"));
        assert_eq!(v.text("host"), None);
    }

    #[test]
    fn options_of_the_daemon_process_are_checked_and_passed_on() {
        let line = "express a.wsgi --maximum-requests 500 --health-check-path /a --health-check-path /b";
        let m = command("express").try_get_matches_from(line.split(' ')).unwrap();
        let given = Values(&m).daemon();
        let has = |name, value: &str| given.contains(&(name, value.to_owned()));
        assert!(has("maximum-requests", "500") && has("health-check-path", "/a") && has("health-check-path", "/b"));
        let wrong = command("express").try_get_matches_from(["express", "a.wsgi", "--max-rss", "5"]).unwrap_err();
        assert!(wrong.to_string().contains("from 1M to 1024G"), "{wrong}");
    }

    #[test]
    fn help_is_wrapped() {
        assert_eq!(wrap("aa bb cc d", 5), "aa bb\ncc d");
        assert_eq!(wrap("longer than wide", 4), "longer\nthan\nwide");
    }

    #[test]
    fn refusals_say_what_is_allowed() {
        let refused = |line: &str| command("express").try_get_matches_from(line.split(' ')).unwrap_err().to_string();
        let text = refused("express a.wsgi --port 70000");
        assert!(text.contains("70000") && text.contains("1..=65535"), "{text}");
        let text = refused("express a.wsgi --log-level loud");
        assert!(text.contains("trace8") && text.contains("warn"), "{text}");
    }

    /// `MWR_WRITE_DOCS=1 cargo test -p mod-wsgi-express` (which `make docs` runs) writes the file instead.
    #[test]
    fn the_document_is_that_of_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/express-options.md");
        if std::env::var_os("MWR_WRITE_DOCS").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let text = std::fs::read_to_string(path).unwrap_or_default();
        assert!(text == document(), "docs/express-options.md differs from the table: run `make docs`");
    }
}
