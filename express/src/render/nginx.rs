//! The private nginx's configuration, and its start script.

use super::{Places, TIMEOUT, common, daemon_options, environment, escape, is_plain, text};
use crate::access::shell_quote;
use crate::error::Error;
use crate::limits::Limits;
use crate::listen;
use crate::nginx::Nginx;
use crate::plan::{LogFormat, Plan};
use minijinja::context;
use mod_wsgi_core::options::TABLE;
use nix::sys::resource::{Resource, getrlimit};

const CONFIGURATION: &str = include_str!("nginx.conf.j2");

/// Most processes of nginx itself: one of them serves more requests than Python answers.
const MOST_WORKERS: u64 = 4;

/// Connections of each of them, where the system allows as many files.
const CONNECTIONS: u64 = 8192;

/// A time for nginx, of at least a millisecond: 0 would be none.
fn milliseconds(seconds: f64) -> String {
    format!("{}ms", ((seconds * 1000.0) as u64).max(1))
}

/// What stands for "never" in nginx's timeouts.
const NEVER: &str = "365d";

/// Sizes of nginx's own processes.
#[derive(Debug, PartialEq, Eq)]
struct Sizes {
    workers: u64,
    /// Connections of each, those to Python included.
    connections: u64,
    /// Descriptors of each: a connection may have a file beside it.
    files: u64,
}

/// `allowed`: the most descriptors that a process may ask for.
fn sizes(processors: u64, allowed: u64) -> Sizes {
    let connections = (allowed.saturating_sub(64) / 2).clamp(64, CONNECTIONS);
    Sizes { workers: processors.clamp(1, MOST_WORKERS), connections, files: (connections * 2 + 64).min(allowed) }
}

/// nginx.conf.
pub fn configuration(plan: &Plan, nginx: &Nginx, places: Places<'_>) -> Result<String, Error> {
    let Some(spool) = places.spool else { return Err(Error::Internal("nginx without a spool directory".into())) };
    let (_, allowed) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let size = sizes(Limits::here().processors, allowed);
    // Some of the group's options are directives of nginx's.
    let directive = |name: &str| TABLE.iter().any(|o| o.name == name && o.instead_on_nginx().is_some());
    let (own, options): (Vec<_>, Vec<_>) = daemon_options(plan)?.into_iter().partition(|(name, _)| directive(name));
    let options: Vec<String> = options.iter().map(|(name, value)| word(&format!("{name}={value}"))).collect();
    let seconds = |name: &str| {
        let given = own.iter().find(|(n, _)| *n == name).and_then(|(_, v)| v.parse::<f64>().ok());
        given.filter(|n| *n > 0.0)
    };
    let socket = seconds("socket-timeout").unwrap_or(TIMEOUT.into());
    let locations = locations(plan);
    let rest = !plan.url_aliases.iter().any(|a| a.url == "/" && a.is_directory) && !locations.contains(&"/".into());
    let group = if plan.account.switched { plan.account.group_name()? } else { None };
    let values = context! {
        listen => addresses(plan.host.as_deref(), plan.port, listen::has_ipv6()),
        user => plan.account.switched.then(|| plan.account.name.clone()),
        group,
        workers => size.workers,
        connections => size.connections,
        files => size.files,
        log_level => log_level(&plan.log_level),
        log_format => plan.access_log.as_ref().and_then(log_format),
        log_json => plan.access_log == Some(LogFormat::Json),
        wsgi_log_level => wsgi_log_level(&plan.log_level),
        mime_types => nginx.mime_types.as_deref().map(text).transpose()?,
        upstreams => nginx.upstreams.clone(),
        spool => text(spool)?,
        never => NEVER,
        socket_timeout => milliseconds(socket),
        response_timeout => milliseconds(seconds("response-socket-timeout").unwrap_or(socket)),
        daemon_options => options.join(" "),
        locations,
        rest,
        ..common(plan, places)?
    };
    let mut environment = environment();
    environment.add_filter("q", |value: String| quote(&value));
    environment.add_filter("v", |value: String| quote(&literal(&value)));
    // Encoded, it needs no quotes, but a dollar stays what it is.
    let encoded = |value: String| value.bytes().map(crate::process::encode).collect::<String>().replace('$', "%24");
    environment.add_filter("url", encoded);
    let render = |dollar: bool| {
        let values = context! { dollar, ..values.clone() };
        environment.render_str(CONFIGURATION, values).map_err(|e| Error::Internal(format!("nginx.conf: {e:#}")))
    };
    let without = render(false)?;
    if without.contains(DOLLAR) { render(true) } else { Ok(without) }
}

/// The same members as the module for Apache writes; the time and the three last ones, numbers or null, come from maps.
const JSON: &str = concat!(
    r#"{"time":"$mod_wsgi_rs_time","client":"$remote_addr","user":"$remote_user","method":"$request_method","#,
    r#""target":"$request_uri","protocol":"$server_protocol","status":$status,"bytes":$body_bytes_sent,"#,
    r#""seconds":$request_time,"host":"$http_host","referer":"$http_referer","user_agent":"$http_user_agent","#,
    r#""request_id":"$connection-$connection_requests","process_group":"$wsgi_process_group","#,
    r#""worker_pid":$mod_wsgi_rs_worker,"queue_seconds":$mod_wsgi_rs_queue,"app_seconds":$mod_wsgi_rs_app}"#,
);

/// A line of the access log; `None`: one that nginx knows by name.
fn log_format(format: &LogFormat) -> Option<&str> {
    match format {
        LogFormat::Combined => None,
        LogFormat::Common => Some(r#"$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent"#),
        LogFormat::Json => Some(JSON),
        LogFormat::Own(text) => Some(text),
    }
}

/// Where the application's requests come in; nowhere if an alias covers all of it, as aliases come first.
fn locations(plan: &Plan) -> Vec<String> {
    let mount = plan.mount_point.as_str();
    let below = |url: &str| url == "/" || mount == url || mount.strip_prefix(url).is_some_and(|r| r.starts_with('/'));
    if plan.url_aliases.iter().any(|a| a.is_directory && below(&a.url)) {
        return Vec::new();
    }
    if mount == "/" {
        return vec!["/".into()];
    }
    let exact = !plan.url_aliases.iter().any(|a| a.url == mount);
    let below = format!("^~ {}", quote(&format!("{mount}/")));
    exact.then(|| format!("= {}", quote(mount))).into_iter().chain([below]).collect()
}

/// What to listen on. An address of IPv6 is never one of IPv4 too: clients' addresses would be written in its form.
fn addresses(host: Option<&str>, port: u16, ipv6: bool) -> Vec<String> {
    match host {
        None | Some("::") => {
            let six = ipv6.then(|| listen::display(Some("::"), port));
            [port.to_string()].into_iter().chain(six).collect()
        }
        Some(host) => vec![listen::display(Some(host), port)],
    }
}

/// nginx's level for one of Apache's.
fn log_level(level: &str) -> &str {
    if level.starts_with("trace") { "debug" } else { level }
}

/// The level of this module and its workers: at least info, where worker starts and application output are.
fn wsgi_log_level(level: &str) -> &str {
    if log_level(level) == "debug" { "debug" } else { "info" }
}

/// nginxctl.
pub fn control_script(plan: &Plan) -> String {
    let root = shell_quote(&plan.server_root);
    let nginx = shell_quote(&plan.server.program);
    format!(
        "#!/bin/sh\n# Generated by mod-wsgi-rs express --setup-only.\n\
         NGINX={nginx}\nROOT={root}\n\
         nginx() {{\n    exec \"$NGINX\" -p \"$ROOT\" -c \"$ROOT/nginx.conf\" -e stderr \"$@\"\n}}\n\
         case \"$1\" in\n\
         start)\n    nginx ;;\n\
         stop)\n    nginx -s stop ;;\n\
         restart|graceful)\n    nginx -s reload ;;\n\
         graceful-stop)\n    nginx -s quit ;;\n\
         reopen)\n    nginx -s reopen ;;\n\
         foreground)\n    nginx -g 'daemon off;' ;;\n\
         configtest)\n    nginx -t ;;\n\
         *)\n    echo \"usage: $0 start|stop|restart|graceful|graceful-stop|reopen|foreground|configtest\" >&2\n    exit 2 ;;\n\
         esac\n"
    )
}

/// One argument of a directive, quoted only where it must be, so that plain ones read as one writes them.
fn word(value: &str) -> String {
    if is_plain(value) { value.into() } else { quote(value) }
}

/// One argument of a directive.
fn quote(value: &str) -> String {
    format!("\"{}\"", escape(value))
}

/// The variable that holds a dollar.
const DOLLAR: &str = "${mod_wsgi_rs_dollar}";

/// A text where nginx takes variables, without any.
fn literal(value: &str) -> String {
    value.replace('$', DOLLAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_processors_and_files() {
        assert_eq!(sizes(16, 1 << 20), Sizes { workers: 4, connections: 8192, files: 16_448 });
        assert_eq!(sizes(1, 1024), Sizes { workers: 1, connections: 480, files: 1024 });
        assert_eq!(sizes(0, 100).files, 100);
    }

    #[test]
    fn quoting() {
        assert_eq!(quote(r#"a "b" \ c; {}"#), r#""a \"b\" \\ c; {}""#);
        assert_eq!(word("threads=5"), "threads=5");
        assert_eq!(word("home=/a b"), "\"home=/a b\"");
        assert_eq!(literal("$x"), "${mod_wsgi_rs_dollar}x");
    }

    #[test]
    fn listens_where_the_machine_can() {
        assert_eq!(addresses(None, 80, true), ["80", "[::]:80"]);
        assert_eq!(addresses(Some("::"), 80, false), ["80"]);
        assert_eq!(addresses(Some("::1"), 80, true), ["[::1]:80"]);
        assert_eq!(addresses(Some("127.0.0.1"), 80, true), ["127.0.0.1:80"]);
    }

    #[test]
    fn levels() {
        assert_eq!((log_level("warn"), wsgi_log_level("warn")), ("warn", "info"));
        assert_eq!((log_level("trace3"), wsgi_log_level("trace3")), ("debug", "debug"));
    }
}
