//! docs/directives.md and docs/options.md are generated from the tables that the servers' configurations are read with.
//! `MWR_WRITE_DOCS=1 cargo test -p mod-wsgi-core` (which `make docs` runs) writes them; else they are compared.

use mod_wsgi_core::directives::{self, Context, Directive, Effect};
use mod_wsgi_core::options::{self, Express, defaults};
use std::fmt::Write;

fn check(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    if std::env::var_os("MWR_WRITE_DOCS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == text, "docs/{name} differs from the table: run `make docs`");
}

fn context(c: Context) -> &'static str {
    match c {
        Context::Server => "server config",
        Context::Host => "server config, virtual host",
        Context::Directory => "server config, virtual host, directory",
        Context::File => "server config, virtual host, directory, .htaccess (AllowOverride FileInfo)",
        Context::Auth => "server config, virtual host, directory, .htaccess (AllowOverride AuthConfig)",
    }
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

fn row(out: &mut String, d: &Directive) {
    writeln!(out, "| `{}` | {} | {} |", cell(d.name), context(d.context), cell(d.help)).unwrap();
}

fn directives_page() -> String {
    let of = |e: Effect| directives::TABLE.iter().filter(move |d| d.effect == e);
    let mut out = "# Directives\n\n\
        <!-- Generated from the table in core/src/directives.rs by `make docs`. -->\n\n\
        Names and meanings are mod_wsgi's; `WSGISupervisor`, `WSGIReloadOnRestart` and `WSGIRequestTimeout` are new. The options of \
        `WSGIDaemonProcess` are in [options.md](options.md).\n\n\
        A directive of the server config holds for all virtual hosts. One that a directory may have is looked up from the \
        inside out: `.htaccess`, directory, virtual host, server.\n"
        .to_owned();
    for d in of(Effect::Full) {
        let default = if d.default.is_empty() { "none".to_owned() } else { format!("`{}`", d.default) };
        write!(
            out,
            "\n## {0}\n\n{1}\n\n- Syntax: `{0} {2}`\n- Default: {3}\n- Context: {4}\n",
            d.name,
            d.help,
            d.syntax,
            default,
            context(d.context)
        )
        .unwrap();
    }
    out += "\n## Accepted, without a meaning here\n\n\
        These load silently, so that a configuration of mod_wsgi needs no change: what they govern does not exist here, or is \
        always so.\n\n| directive | context | why |\n|---|---|---|\n";
    of(Effect::Embedded).for_each(|d| row(&mut out, d));
    out += "\n## Accepted, without effect in this version\n\n\
        These load, and each is named in a warning (MWR0104) at start.\n\n| directive | context | remark |\n|---|---|---|\n";
    of(Effect::None).for_each(|d| row(&mut out, d));
    out
}

fn options_page() -> String {
    let mut out = "# Options of WSGIDaemonProcess\n\n\
        <!-- Generated from the tables in core/src/options.rs by `make docs`. -->\n\n\
        ```\nWSGIDaemonProcess name [option=value …]\n```\n\n\
        A value with blanks stands in quotes, either all of it (`\"display-name=my blog\"`) or behind the equals sign. \
        Applications without `WSGIProcessGroup` run in an automatic group, whose options are the defaults, but with as many \
        processes as there are processors, at most 4.\n\n\
        The column express says what `mod-wsgi-rs express` writes: where it is not empty there is `--OPTION` with that default; \
        express has options of its own for what is left empty. wsgi_daemon_process of nginx takes the same \
        options but those that its own directives decide.\n\n\
        | option | nginx | value | default | express | meaning |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for o in options::TABLE {
        let (value, default, help) = (cell(o.value), cell(o.default), cell(o.help));
        let express = match o.express {
            Express::No => "",
            Express::Same => o.default,
            Express::Value(v) => v,
        };
        let nginx = o.instead_on_nginx().map_or("same".to_owned(), |i| format!("refused: {i}"));
        writeln!(out, "| `{}` | {nginx} | {value} | {default} | {} | {help} |", o.name, cell(express)).unwrap();
    }
    out += "\n## Accepted, without effect in this version\n\n\
        These options of mod_wsgi load, and are named in a warning (MWR0105) at start:\n\n";
    for name in options::WITHOUT_EFFECT {
        writeln!(out, "- `{name}`").unwrap();
    }
    out
}

#[test]
fn the_document_of_directives_is_that_of_the_table() {
    check("directives.md", &directives_page());
}

#[test]
fn the_document_of_options_is_that_of_the_table() {
    check("options.md", &options_page());
}

/// What the table says about a default is what the code uses.
#[test]
fn documented_defaults_are_the_constants() {
    let says = |name: &str, value: f64| {
        let text = options::TABLE.iter().find(|o| o.name == name).unwrap().default;
        let number = text.split(|c: char| !c.is_ascii_digit()).next().unwrap();
        assert_eq!(number, value.to_string(), "{name}: '{text}'");
    };
    says("processes", defaults::PROCESSES.into());
    says("threads", defaults::THREADS.into());
    says("queue-limit", defaults::QUEUE_LIMIT.into());
    says("queue-timeout", defaults::QUEUE_TIMEOUT);
    says("startup-timeout", defaults::STARTUP_TIMEOUT);
    says("graceful-timeout", defaults::GRACEFUL_TIMEOUT);
    says("shutdown-timeout", defaults::SHUTDOWN_TIMEOUT);
    says("request-timeout", defaults::REQUEST_TIMEOUT);
    says("interrupt-timeout", defaults::INTERRUPT_TIMEOUT);
    says("deadlock-timeout", defaults::DEADLOCK_TIMEOUT);
    says("eviction-timeout", defaults::EVICTION_TIMEOUT);
    says("connect-timeout", defaults::CONNECT_TIMEOUT);
    says("application-idle", defaults::APPLICATION_IDLE);
    says("maximum-application-groups", defaults::MAXIMUM_APPLICATION_GROUPS.into());
}

fn nginx_page() -> String {
    use mod_wsgi_core::directives::nginx::{NGINX, Place, Section};
    let mut out = "# Directives of the nginx module\n\n\
        <!-- Generated from the table in core/src/directives/nginx.rs by `make docs`. -->\n\n\
        How to use them: [nginx.md](nginx.md). Options of `wsgi_daemon_process` are those of [options.md](options.md); \
        `no-new-privileges` is on unless told. A word with braces needs quotes in nginx: `wsgi_process_group \"%{GLOBAL}\"`.\n\
        Names, defaults and meaning are those of `uwsgi_…` where nginx has the like. What concerns connections over a \
        network has no counterpart (`uwsgi_bind`, `uwsgi_socket_keepalive`, `uwsgi_ssl_…`), nor have the modifiers of the \
        uwsgi protocol.\n"
        .to_owned();
    for section in Section::ALL {
        let (title, introduction) = section.title();
        write!(out, "\n## {title}\n\n{introduction}\n").unwrap();
        for d in NGINX.iter().filter(|d| d.section() == section) {
            let place = match d.place {
                Place::Http => "http",
                Place::Server => "http, server",
                Place::Location => "http, server, location",
                Place::Content => "location, if in location",
            };
            let default = if d.default.is_empty() { "none".to_owned() } else { format!("`{}`", d.default) };
            write!(
                out,
                "\n### {0}\n\n{1}\n\n- Syntax: `{0} {2};`\n- Default: {default}\n- Context: {place}\n",
                d.name, d.help, d.syntax
            )
            .unwrap();
        }
    }
    out
}

#[test]
fn nginx_directives_are_documented() {
    check("nginx-directives.md", &nginx_page());
}
