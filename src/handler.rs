//! The content handler: checks what is asked for, builds the REQUEST, gives it to a worker, sends the answer.

mod feed;
mod reply;
mod upload;

use crate::config;
use crate::log;
use crate::request::Request;
use crate::runtime::Runtime;
use crate::sys;
use feed::Feed;
use mod_wsgi_core::config::{DirConfig, Selector};
use mod_wsgi_core::conn::Inbox;
use mod_wsgi_core::environ::{Asked, Place, add_header, collapse_slashes, decimal, is_hidden, is_https, is_kept_back};
use mod_wsgi_core::error::RequestError;
use mod_wsgi_core::exchange::{self, Outgoing};
use mod_wsgi_core::pool::Limits;
use mod_wsgi_wire::encode::{Body, RequestBuilder};
use mod_wsgi_wire::frame::Level;
use mod_wsgi_wire::keys;
use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::c_int;
use std::os::fd::AsFd;

const OK: c_int = sys::OK as c_int;
const HTTP_FORBIDDEN: c_int = sys::HTTP_FORBIDDEN as c_int;
const HTTP_NOT_FOUND: c_int = sys::HTTP_NOT_FOUND as c_int;
/// Largest buffer a thread keeps from one request to the next.
const KEPT: usize = 16 * 1024;

/// Buffers of a serving thread, reused from request to request.
#[derive(Default)]
struct Scratch {
    frame: Vec<u8>,
    inbox: Inbox,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Where a request goes: everything configuration says about it.
struct Route<'r> {
    group: Cow<'r, str>,
    application: String,
    /// What mod_wsgi would call the application group, for the environ.
    shown_application: Cow<'r, str>,
    callable: Cow<'r, str>,
    limits: &'r Limits,
    pass_authorization: bool,
    reloading: bool,
    /// As REQUEST carries it.
    timeout: u32,
    error_override: bool,
    buffering: bool,
}

/// Serves a request whose handler is ours.
pub fn handle(r: Request<'_>) -> c_int {
    match r.handler() {
        Some(b"wsgi-script" | b"application/x-httpd-wsgi") => {}
        Some(b"wsgi-ready") => return ready(&r),
        _ => return sys::DECLINED,
    }
    if let Err(status) = check_target(&r) {
        return status;
    }
    let Some(runtime) = config::host(&r).and_then(config::Host::runtime) else {
        return refuse(&r, &RequestError::Supervisor("it was not started".to_owned()));
    };
    // A handler that is entered again on the same thread (an internal sub-request) gets buffers of its own.
    SCRATCH.with(|s| match s.try_borrow_mut() {
        Ok(mut scratch) => serve(r, runtime, &mut scratch),
        Err(_) => serve(r, runtime, &mut Scratch::default()),
    })
}

/// The handler `wsgi-ready`: 200 when applications are loaded and their queues have room, else 503. No worker hears of it.
fn ready(r: &Request<'_>) -> c_int {
    let unready = match config::host(r).and_then(config::Host::runtime) {
        Some(runtime) => runtime.unready(),
        None => Some("the supervisor was not started".to_owned()),
    };
    r.err_headers_out().set(c"Cache-Control", b"no-store");
    match unready {
        None => r.answer(c"text/plain", b"ready\n"),
        Some(why) => {
            log::request(r, Level::Info, &format!("not ready: {why}"));
            r.err_headers_out().set(c"Retry-After", b"1");
            sys::HTTP_SERVICE_UNAVAILABLE as c_int
        }
    }
}

/// The same answers as mod_wsgi for what is no script.
fn check_target(r: &Request<'_>) -> Result<(), c_int> {
    let name = || String::from_utf8_lossy(r.filename()).into_owned();
    let fail = |status, code: &str, text: &str| {
        log::request(r, Level::Error, &format!("{code}: {text}: {}", name()));
        Err(status)
    };
    let refuse = |e: RequestError| Err(self::refuse(r, &e));
    let aliased = r.notes().get(c"alias-forced-type") == Some(b"wsgi-script");
    if !aliased && !r.may_execute() {
        return fail(HTTP_FORBIDDEN, "MWR0220", "Options ExecCGI is off in this directory");
    }
    if !r.exists() {
        return refuse(RequestError::NoScript(name()));
    }
    if r.is_dir() {
        return refuse(RequestError::ScriptIsDirectory(name()));
    }
    if !r.is_file() {
        return refuse(RequestError::ScriptIsNoFile(name()));
    }
    if r.rejects_path_info() && !r.path_info().is_empty() {
        return fail(HTTP_NOT_FOUND, "MWR0224", "AcceptPathInfo is off and the URL goes on after the script");
    }
    Ok(())
}

fn serve(r: Request<'_>, runtime: &Runtime, scratch: &mut Scratch) -> c_int {
    let answered = run(&r, runtime, scratch);
    scratch.inbox.clear();
    if scratch.frame.capacity() > KEPT {
        scratch.frame = Vec::new();
    }
    match answered {
        Ok(status) => status,
        Err(e) => refuse(&r, &e),
    }
}

/// Logs a failure and gives the status httpd shall answer with.
fn refuse(r: &Request<'_>, e: &RequestError) -> c_int {
    let verdict = e.verdict();
    if let Some(line) = verdict.line(&e.to_string()) {
        log::request(r, verdict.level, &line);
    }
    if let Some(seconds) = verdict.retry_after {
        r.err_headers_out().set(c"Retry-After", seconds.to_string().as_bytes());
    }
    if verdict.status == 0 {
        r.mark_aborted();
        return OK;
    }
    c_int::from(verdict.status)
}

fn run(r: &Request<'_>, runtime: &Runtime, scratch: &mut Scratch) -> Result<c_int, RequestError> {
    let route = route(r, runtime)?;
    let unregistered = || RequestError::Supervisor("this server process has no link".to_owned());
    let link = runtime.link().ok_or_else(unregistered)?;
    let body = match upload::announced(r) {
        Err(status) => return Ok(c_int::from(status)),
        Ok(None) => upload::Received::Nothing,
        // What a filter makes of the body has another length than announced, which is known at its end alone.
        Ok(Some(expected)) if !route.buffering && !r.filters_body() => upload::Received::Streamed(expected),
        Ok(Some(expected)) => {
            // Refused before a byte of the body is read, or 100 Continue is sent.
            let pool = link.pool(&route.group, &route.application, route.limits)?;
            pool.check_room().inspect_err(|_| r.close_after())?;
            match upload::read(r, expected, runtime.store()) {
                Ok(Ok(body)) => body,
                Ok(Err(e)) => return Err(RequestError::Spool(e)),
                Err(0) => return Err(RequestError::ClientGone),
                Err(status) => return Ok(c_int::from(status)),
            }
        }
    };
    scratch.frame.clear();
    build(r, runtime, &route, &body, &mut scratch.frame)?;
    let file = match &body {
        upload::Received::Inline(bytes) => {
            scratch.frame.extend_from_slice(bytes);
            None
        }
        upload::Received::File(fd, ..) => Some(fd.as_fd()),
        upload::Received::Nothing | upload::Received::Streamed(_) => None,
    };
    // As in mod_wsgi, what is not set is the server's Timeout.
    let silence = route.limits.socket_timeout.unwrap_or(r.timeout());
    let patience = route.limits.response_socket_timeout.unwrap_or(silence);
    let silence_limit = (!silence.is_zero()).then_some(silence);
    let mut out = Outgoing { frame: &mut scratch.frame, body: file, silence: silence_limit };
    let key = (&*route.group, &*route.application);
    let feed = match body {
        upload::Received::Streamed(announced) => Some(Feed::new(*r, announced, silence)),
        _ => None,
    };
    let begun = exchange::begin(link, key, route.limits, &mut out, r, &mut scratch.inbox);
    if begun.is_err() && feed.is_some() {
        // httpd would ask for the body, and read it, before it sends the error.
        r.close_after();
    }
    let manner = reply::Manner { store: runtime.store(), error_pages: route.error_override, patience };
    reply::send(r, begun?, &mut scratch.inbox, feed, manner)
}

fn select<'r>(r: &Request<'r>, s: &Selector, env_only_literal: impl Fn(&Selector) -> Cow<'r, str>) -> Cow<'r, str> {
    match s {
        Selector::Env(name) => variable(r, name).map_or(Cow::Borrowed(""), |v| Cow::Owned(v.trim().to_owned())),
        other => env_only_literal(other),
    }
}

/// `%{ENV:name}`: a note of the request, its variables, the server's environment.
fn variable(r: &Request<'_>, name: &str) -> Option<String> {
    let c = std::ffi::CString::new(name).ok()?;
    let found = r.notes().get(&c).or_else(|| r.subprocess_env().get(&c));
    found.map(|v| String::from_utf8_lossy(v).into_owned()).or_else(|| std::env::var(name).ok())
}

fn route<'r>(r: &Request<'r>, runtime: &'r Runtime) -> Result<Route<'r>, RequestError> {
    let place = config::dir(r);
    let alias = config::alias(r);
    fn field<'r, T>(
        alias: Option<&'r DirConfig>,
        place: Option<&'r DirConfig>,
        get: impl Fn(&'r DirConfig) -> Option<T>,
    ) -> Option<T> {
        alias.and_then(&get).or_else(|| place.and_then(&get))
    }
    let named = |s: &Selector| match s {
        Selector::Literal(n) => Cow::Owned(n.clone()),
        Selector::Server => Cow::Owned(String::from_utf8_lossy(r.server_hostname().unwrap_or_default()).into_owned()),
        Selector::Host => Cow::Owned(String::from_utf8_lossy(r.hostname().unwrap_or_default()).into_owned()),
        _ => Cow::Borrowed(""),
    };
    let group = match field(alias, place, |d| d.process_group.as_ref()) {
        None | Some(Selector::Global) => Cow::Borrowed(""),
        Some(Selector::Literal(n)) => Cow::Borrowed(n.as_str()),
        Some(s) => match select(r, s, named) {
            g if g == "%{GLOBAL}" => Cow::Borrowed(""),
            g => g,
        },
    };
    let host = config::host(r);
    if group.is_empty() && host.is_some_and(|h| h.settings.restrict_embedded == Some(true)) {
        return Err(RequestError::Refused(
            "WSGIRestrictEmbedded is On and no WSGIProcessGroup is set for this URL".to_owned(),
        ));
    }
    let entry = runtime.groups.get(&*group);
    let entry = entry.filter(|e| e.host.is_none() || e.host.as_deref() == r.server_hostname());
    let entry = entry.ok_or_else(|| RequestError::UnknownGroup(group.clone().into_owned()))?;
    let limits = entry.limits.as_ref().ok_or_else(|| RequestError::GroupFailed(group.clone().into_owned()))?;
    // Workers are keyed by configuration alone: the server's own name and port and the script, never the client's.
    let (site, port) = r.configured_name();
    let (application, shown_application) = match field(alias, place, |d| d.application_group.as_ref()) {
        Some(Selector::Global) => (String::new(), Cow::Borrowed("")),
        Some(Selector::Literal(n)) => (n.clone(), Cow::Borrowed(n.as_str())),
        None | Some(Selector::Resource) => {
            let script = String::from_utf8_lossy(r.filename());
            (format!("{site}:{port}|{script}"), Cow::Owned(resource(r)))
        }
        Some(s @ (Selector::Server | Selector::Host)) => (format!("{site}:{port}|"), named(s)),
        Some(s @ Selector::Env(_)) => match select(r, s, named) {
            a if a == "%{GLOBAL}" => (String::new(), Cow::Borrowed("")),
            a => (a.clone().into_owned(), a),
        },
    };
    let callable = match field(alias, place, |d| d.callable_object.as_deref()) {
        None => Cow::Borrowed("application"),
        Some(c) => match c.strip_prefix("%{ENV:").and_then(|c| c.strip_suffix('}')) {
            Some(name) => Cow::Owned(variable(r, name).unwrap_or_else(|| "application".to_owned())),
            None => Cow::Borrowed(c),
        },
    };
    Ok(Route {
        group,
        application,
        shown_application,
        callable,
        limits,
        pass_authorization: field(alias, place, |d| d.pass_authorization).unwrap_or(false),
        reloading: field(alias, place, |d| d.script_reloading).unwrap_or(true),
        timeout: field(alias, place, |d| d.request_timeout).unwrap_or(0),
        error_override: field(alias, place, |d| d.error_override).unwrap_or(false),
        buffering: field(alias, place, |d| d.request_buffering).unwrap_or(limits.request_buffering),
    })
}

/// mod_wsgi's %{RESOURCE}: server name, port unless 80 or 443, `|`, script name.
fn resource(r: &Request<'_>) -> String {
    let name = String::from_utf8_lossy(r.server_hostname().unwrap_or_default()).to_ascii_lowercase();
    let script = String::from_utf8_lossy(&script_name(r, &collapse_slashes(r.path_info()))).into_owned();
    match r.server_port() {
        80 | 443 => format!("{name}|{script}"),
        port => format!("{name}:{port}|{script}"),
    }
}

/// SCRIPT_NAME: the URL without its path info, slashes collapsed in both.
fn script_name<'r>(r: &Request<'r>, path_info: &[u8]) -> Cow<'r, [u8]> {
    match collapse_slashes(r.uri()) {
        Cow::Borrowed(uri) => Cow::Borrowed(uri.strip_suffix(path_info).unwrap_or(uri)),
        Cow::Owned(uri) => Cow::Owned(uri.strip_suffix(path_info).unwrap_or(&uri).to_vec()),
    }
}

/// Encodes the environ, straight from httpd's structures into the frame.
fn build(
    r: &Request<'_>,
    runtime: &Runtime,
    route: &Route<'_>,
    body: &upload::Received<'_>,
    frame: &mut Vec<u8>,
) -> Result<(), RequestError> {
    let mut num = [0u8; 20];
    let mtime = if route.reloading { u64::try_from(r.mtime()).unwrap_or(0) } else { 0 };
    let mut b = RequestBuilder::new(frame, mtime);
    b.timeout(route.timeout);
    let software = [
        (keys::APACHE_VERSION, runtime.version.as_bytes()),
        (keys::SERVER_ADMIN, r.server_admin().unwrap_or_default()),
    ];
    let place = Place {
        server_software: crate::request::server_banner(),
        // an administrator who is not named has no entry
        after_software: &software[..1 + usize::from(r.server_admin().is_some())],
        local: (r.local_addr(), r.local_port()),
        scheme: r.scheme(),
        document_root: r.document_root(),
        after_root: &[
            (keys::CONTEXT_PREFIX, r.context_prefix()),
            (keys::CONTEXT_DOCUMENT_ROOT, r.context_document_root()),
        ],
        script: r.filename(),
        callable: route.callable.as_bytes(),
        application_group: route.shown_application.as_bytes(),
    };
    place.write(&mut b);
    // SetEnv, mod_ssl, mod_rewrite, UNIQUE_ID. What describes this request comes after the server's own table and wins,
    // also over what mod_include has put there for the page around it; so do the constant keys above.
    let mut https = false;
    for (name, value) in r.subprocess_env().iter() {
        if name == b"HTTPS" {
            https = is_https(value);
            continue;
        }
        let of_a_body = match name {
            b"CONTENT_LENGTH" => true,
            b"CONTENT_TYPE" => r.has_no_body_of_its_own(),
            _ => false,
        };
        if !is_hidden(name) && !of_a_body && !keys::is_constant(name) {
            b.named(name, value);
        }
    }
    if let Some(before) = r.previous() {
        b.named(b"REDIRECT_URL", before.uri());
        if !before.args().is_empty() {
            b.named(b"REDIRECT_QUERY_STRING", before.args());
        }
        let user = std::iter::successors(Some(before), |p| p.previous()).find_map(|p| p.user());
        if let Some(user) = user.filter(|_| r.user().is_none()) {
            b.named(b"REDIRECT_REMOTE_USER", user);
        }
    }
    let headers = r.headers_in();
    let streamed = matches!(body, upload::Received::Streamed(_));
    let (passes, cgi_passes) = (route.pass_authorization, r.cgi_passes_authorization());
    for (name, value) in headers.iter() {
        if !is_kept_back(name, streamed, passes || cgi_passes, cgi_passes) {
            add_header(&mut b, name, value);
        }
    }
    if let Some(t) = headers.get(c"Content-Type") {
        b.known(keys::CONTENT_TYPE, t);
    }
    match body {
        upload::Received::Streamed(upload::Announced::Chunked) => {}
        upload::Received::Streamed(upload::Announced::Length(n)) => {
            b.known(keys::CONTENT_LENGTH, decimal(*n, &mut num))
        }
        upload::Received::Nothing => {
            if let Some(n) = headers.get(c"Content-Length").filter(|_| !r.has_no_body_of_its_own()) {
                b.known(keys::CONTENT_LENGTH, n);
            }
        }
        other => b.known(keys::CONTENT_LENGTH, decimal(other.len(), &mut num)),
    }
    let path_info = collapse_slashes(r.path_info());
    let script_name = script_name(r, &path_info);
    let asked = Asked {
        method: r.method(),
        target: r.raw_target(),
        script_name: &script_name,
        path_info: &path_info,
        args: r.args(),
        protocol: r.protocol(),
        server: (r.server_name(), r.server_port()),
        remote: (r.remote_addr(), r.remote_port()),
        process: runtime.process_id(),
        start: u64::try_from(r.request_time()).unwrap_or(0),
    };
    asked.write(&mut b);
    if let Some(user) = r.user() {
        b.known(keys::REMOTE_USER, user);
    }
    if let Some(kind) = r.auth_type() {
        b.known(keys::AUTH_TYPE, kind);
    }
    if let Some(id) = r.log_id() {
        b.known(keys::MW_REQUEST_ID, id);
    }
    if let Some(id) = r.connection_log_id() {
        b.known(keys::MW_CONNECTION_ID, id);
    }
    if let Some(handler) = r.handler() {
        b.known(keys::MW_REQUEST_HANDLER, handler);
    }
    b.known(keys::URL_SCHEME, if https { b"https" } else { b"http" });
    b.finish(match body {
        upload::Received::Nothing => Body::Inline(0),
        upload::Received::Inline(bytes) => Body::Inline(bytes.len()),
        upload::Received::File(_, n, _) => Body::Descriptor(*n),
        upload::Received::Streamed(_) => Body::Stream,
    })?;
    Ok(())
}
