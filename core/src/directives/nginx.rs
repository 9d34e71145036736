//! nginx's directives: those that mean the same as one of httpd's are read by it, the others are nginx's upstream
//! machinery under our prefix, with the meaning and the defaults of `uwsgi_…`.

use super::{TABLE, c_string};
use std::ffi::CStr;

/// Where a directive may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Http,
    /// http, server
    Server,
    /// http, server, location
    Location,
    /// location, if in location
    Content,
}

/// What reads the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The directive of httpd with this name.
    Shared(&'static str),
    /// The adapter, with this setting of nginx's upstream configuration.
    Upstream(Setting),
    /// The script of a location.
    Script,
    /// An entry of the environ.
    Param,
    /// Least level of the module's own lines.
    LogLevel,
    /// Answers for the health checks of load balancers.
    Ready,
}

/// A setting of nginx's upstream machinery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    Buffering,
    RequestBuffering,
    Buffers,
    BufferSize,
    BusyBuffersSize,
    ConnectTimeout,
    SendTimeout,
    ReadTimeout,
    NextUpstream,
    NextUpstreamTries,
    NextUpstreamTimeout,
    InterceptErrors,
    IgnoreClientAbort,
    HideHeader,
    PassHeader,
    IgnoreHeaders,
    TempPath,
    MaxTempFileSize,
    TempFileWriteSize,
    LimitRate,
    ForceRanges,
    PassRequestHeaders,
    PassRequestBody,
    Cache,
    CachePath,
    CacheKey,
    CacheValid,
    CacheMethods,
    CacheMinUses,
    CacheBypass,
    NoCache,
    CacheUseStale,
    CacheBackgroundUpdate,
    CacheRevalidate,
    CacheLock,
    CacheLockTimeout,
    CacheLockAge,
    CacheMaxRangeOffset,
    CacheConvertHead,
    Store,
    StoreAccess,
}

/// Parts of the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Applications,
    Requests,
    Responses,
    Failures,
    Cache,
    Store,
}

impl Section {
    /// Every section, in the order of the documentation.
    pub const ALL: [Section; 6] = {
        use Section::*;
        [Applications, Requests, Responses, Failures, Cache, Store]
    };

    /// Heading and introduction.
    pub fn title(self) -> (&'static str, &'static str) {
        match self {
            Section::Applications => ("Applications and processes", "What runs where, and what it is told."),
            Section::Requests => ("Requests", "What a worker gets of a request."),
            Section::Responses => ("Responses", "How a response reaches the client."),
            Section::Failures => {
                ("Time-outs and failures", "How long something may take, and what happens when it fails.")
            }
            Section::Cache => (
                "Cache",
                "nginx's own cache in front of the application. An answer from it takes no worker, waits for none, and is \
                 given also while no worker can be had, stale ones where wsgi_cache_use_stale says so. A response that \
                 broke off is never stored, nor one whose head is larger than wsgi_buffer_size or that comes with \
                 wsgi_buffering off.",
            ),
            Section::Store => ("Store", "Copies of responses as plain files."),
        }
    }
}

/// One directive: everything that is said about it anywhere.
pub struct Directive {
    pub name: &'static str,
    pub c_name: &'static CStr,
    pub syntax: &'static str,
    pub default: &'static str,
    pub place: Place,
    pub kind: Kind,
    pub help: &'static str,
}

impl Directive {
    /// Where the documentation has it.
    pub fn section(&self) -> Section {
        use Setting::*;
        let Kind::Upstream(setting) = self.kind else { return Section::Applications };
        match setting {
            RequestBuffering | PassRequestHeaders | PassRequestBody | IgnoreClientAbort => Section::Requests,
            Buffering | Buffers | BufferSize | BusyBuffersSize | TempPath | MaxTempFileSize | TempFileWriteSize
            | LimitRate | ForceRanges | HideHeader | PassHeader | IgnoreHeaders => Section::Responses,
            ConnectTimeout | SendTimeout | ReadTimeout | NextUpstream | NextUpstreamTries | NextUpstreamTimeout
            | InterceptErrors => Section::Failures,
            Cache
            | CachePath
            | CacheKey
            | CacheValid
            | CacheMethods
            | CacheMinUses
            | CacheBypass
            | NoCache
            | CacheUseStale
            | CacheBackgroundUpdate
            | CacheRevalidate
            | CacheLock
            | CacheLockTimeout
            | CacheLockAge
            | CacheMaxRangeOffset
            | CacheConvertHead => Section::Cache,
            Store | StoreAccess => Section::Store,
        }
    }
}

macro_rules! directives {
    ($($name:literal $syntax:literal $default:literal $place:ident $kind:expr, $help:literal;)*) => {
        /// Every directive, in the order of the documentation.
        pub const NGINX: &[Directive] = &[$(Directive {
            name: $name, c_name: c_string(concat!($name, "\0")), syntax: $syntax, default: $default,
            place: Place::$place, kind: $kind, help: $help,
        }),*];
    };
}

use Kind::{LogLevel, Param, Ready, Script, Shared, Upstream};

directives! {
    "wsgi_script" "file [mount=/prefix]" "" Content Script,
        "Hands the location's requests to the WSGI application in the file. With mount= that prefix of the URL is SCRIPT_NAME, and what is not below it is 404; without it SCRIPT_NAME is empty and PATH_INFO the whole path, whichever location it is.";
    "wsgi_daemon_process" "name [option=value …]" "" Server Shared("WSGIDaemonProcess"),
        "Declares a daemon process group: supervised Python processes that run applications. Options as for WSGIDaemonProcess.";
    "wsgi_process_group" "name | %{GLOBAL}" "%{GLOBAL}" Location Shared("WSGIProcessGroup"),
        "The daemon process group that runs the application; %{GLOBAL} is the automatic group.";
    "wsgi_application_group" "name | %{GLOBAL} | %{RESOURCE}" "%{GLOBAL}" Location Shared("WSGIApplicationGroup"),
        "Applications of one application group share processes. %{GLOBAL} is the group's own pool; every other group, and with %{RESOURCE} every script, gets worker processes of its own, started at its first request.";
    "wsgi_callable_object" "name" "application" Location Shared("WSGICallableObject"),
        "Name of the WSGI callable in the script.";
    "wsgi_pass_authorization" "on | off" "on" Location Shared("WSGIPassAuthorization"),
        "Whether the application sees the Authorization and Proxy-Authorization headers.";
    "wsgi_script_reloading" "on | off" "on" Location Shared("WSGIScriptReloading"),
        "Whether a changed modification time of the script replaces the workers that have loaded it.";
    "wsgi_request_timeout" "seconds" "request-timeout of the daemon process group" Location Shared("WSGIRequestTimeout"),
        "The request-timeout of requests to this place; 0 = never, for streams and long downloads. wsgi_read_timeout ends what says nothing for long all the same.";
    "wsgi_socket_prefix" "path" "the pid file without .pid" Http Shared("WSGISocketPrefix"),
        "Prefix of the run directory, which holds the supervisor's and the workers' sockets: PREFIX.mod-wsgi-rs.";
    "wsgi_python_home" "directory" "/usr" Http Shared("WSGIPythonHome"),
        "Default of python-home for groups that do not set it.";
    "wsgi_python_path" "dir:dir" "" Http Shared("WSGIPythonPath"),
        "python-path of the automatic group.";
    "wsgi_reload_on_restart" "on | changed" "changed" Http Shared("WSGIReloadOnRestart"),
        "Whether a reload of the server replaces the workers of every group or only of groups whose settings changed.";
    "wsgi_supervisor" "file" "mod-wsgi-rs beside the module" Http Shared("WSGISupervisor"),
        "The program that supervises the workers.";
    "wsgi_ready" "" "" Content Ready,
        "Answers requests for the location with 200 when the applications of all groups are loaded and their queues have room, else with 503: readiness for a load balancer. No worker is asked.";
    "wsgi_log_level" "error | warn | notice | info | debug" "that of error_log" Http LogLevel,
        "Least level of what the module, the supervisor and the workers write to the error log, where it is more than error_log itself takes: info shows starts of workers and what applications print.";
    "wsgi_param" "name value [if_not_empty]" "" Location Param,
        "Adds an entry to the environ, after all others; the value may contain variables. Inherited from the outer level only where the inner one has none.";
    "wsgi_buffering" "on | off" "on" Location Upstream(Setting::Buffering),
        "As uwsgi_buffering: whether a response is read as fast as the application writes and kept for a slow client. Events reach the client one by one in both cases.";
    "wsgi_buffers" "number size" "8 4k|8k" Location Upstream(Setting::Buffers),
        "As uwsgi_buffers: memory for one response. Where neither this nor wsgi_busy_buffers_size or wsgi_temp_file_write_size is set, a response that is longer than these buffers, or of unknown length, has 8 of 16k, half of which may be busy: it costs far fewer calls.";
    "wsgi_buffer_size" "size" "4k|8k" Location Upstream(Setting::BufferSize),
        "The first buffer of a response. Larger heads than it are read all the same, up to 256 KiB.";
    "wsgi_busy_buffers_size" "size" "8k|16k" Location Upstream(Setting::BusyBuffersSize),
        "As uwsgi_busy_buffers_size.";
    "wsgi_request_buffering" "on | off" "request-buffering of the process group, else on" Location Upstream(Setting::RequestBuffering),
        "on: a request's body is read whole before a worker hears of the request, so that a slow sender holds no Python thread. off: the application reads the body while the client sends it, and may answer meanwhile; nothing of it is read before the application asks for it.";
    "wsgi_connect_timeout" "time" "60s" Location Upstream(Setting::ConnectTimeout),
        "Longest wait for a first ready worker, then 503; startup-timeout and queue-timeout of the group bound it too.";
    "wsgi_send_timeout" "time" "60s" Location Upstream(Setting::SendTimeout),
        "As uwsgi_send_timeout.";
    "wsgi_read_timeout" "time" "60s" Location Upstream(Setting::ReadTimeout),
        "As uwsgi_read_timeout: longest pause of the application before its head and between two blocks; then 504, or the response breaks off. Applies beside request-timeout, also where wsgi_request_timeout is 0: give a place that says nothing for longer a longer one.";
    "wsgi_next_upstream" "error | timeout | invalid_header | http_500 | http_503 | http_403 | http_404 | http_429 | non_idempotent | off …" "off" Location Upstream(Setting::NextUpstream),
        "When a request that a worker has begun may be given to another one, as long as nothing of an answer has been passed on: for the failures and statuses named here, and only for methods that nginx takes for repeatable unless non_idempotent is named. An exception of the application counts as http_500, an answer that breaks WSGI's or HTTP's rules as invalid_header and as http_500, request-timeout as timeout. A request that no worker has begun always goes to another one, whatever its method.";
    "wsgi_next_upstream_tries" "number" "0" Location Upstream(Setting::NextUpstreamTries),
        "How many workers may begin a request; 0 = two. Workers that gave it back unrun do not count.";
    "wsgi_next_upstream_timeout" "time" "0" Location Upstream(Setting::NextUpstreamTimeout),
        "As uwsgi_next_upstream_timeout.";
    "wsgi_intercept_errors" "on | off" "off" Location Upstream(Setting::InterceptErrors),
        "As uwsgi_intercept_errors: whether error_page serves the application's statuses from 300 on.";
    "wsgi_ignore_client_abort" "on | off" "off" Location Upstream(Setting::IgnoreClientAbort),
        "As uwsgi_ignore_client_abort.";
    "wsgi_hide_header" "field" "" Location Upstream(Setting::HideHeader),
        "As uwsgi_hide_header.";
    "wsgi_pass_header" "field" "" Location Upstream(Setting::PassHeader),
        "As uwsgi_pass_header.";
    "wsgi_ignore_headers" "field …" "" Location Upstream(Setting::IgnoreHeaders),
        "As uwsgi_ignore_headers.";
    "wsgi_temp_path" "path [level1 [level2 [level3]]]" "beside uwsgi_temp_path's default" Location Upstream(Setting::TempPath),
        "As uwsgi_temp_path.";
    "wsgi_max_temp_file_size" "size" "1024m" Location Upstream(Setting::MaxTempFileSize),
        "As uwsgi_max_temp_file_size.";
    "wsgi_temp_file_write_size" "size" "8k|16k" Location Upstream(Setting::TempFileWriteSize),
        "As uwsgi_temp_file_write_size.";
    "wsgi_limit_rate" "rate" "0" Location Upstream(Setting::LimitRate),
        "As uwsgi_limit_rate: bytes per second that are read of a buffered response; 0 = no limit.";
    "wsgi_force_ranges" "on | off" "off" Location Upstream(Setting::ForceRanges),
        "As uwsgi_force_ranges: ranges are served of every response, whatever its Accept-Ranges.";
    "wsgi_pass_request_headers" "on | off" "on" Location Upstream(Setting::PassRequestHeaders),
        "As uwsgi_pass_request_headers: whether the environ has the request's header fields. CONTENT_TYPE and CONTENT_LENGTH belong to the body.";
    "wsgi_pass_request_body" "on | off" "on" Location Upstream(Setting::PassRequestBody),
        "As uwsgi_pass_request_body. Without it the environ has no CONTENT_LENGTH.";
    "wsgi_cache" "zone | off" "off" Location Upstream(Setting::Cache),
        "As uwsgi_cache: the zone (of a wsgi_cache_path) that responses of this location are kept in; the name may contain variables.";
    "wsgi_cache_path" "path [levels=levels] [use_temp_path=on|off] keys_zone=name:size [inactive=time] [max_size=size] [min_free=size] [manager_files=number] [manager_sleep=time] [manager_threshold=time] [loader_files=number] [loader_sleep=time] [loader_threshold=time]" "" Http Upstream(Setting::CachePath),
        "As uwsgi_cache_path: directory of a cache, and the zone of shared memory with its keys.";
    "wsgi_cache_key" "string" "$scheme://$host:$server_port$request_uri" Location Upstream(Setting::CacheKey),
        "As uwsgi_cache_key, which has no default. Ours takes, for subrequests and after internal redirects, the path and arguments that the application is asked for. The method is no part of it: see wsgi_cache_convert_head and, for more methods than GET and HEAD, name $request_method in a key of your own.";
    "wsgi_cache_valid" "[code …] time" "" Location Upstream(Setting::CacheValid),
        "As uwsgi_cache_valid: how long responses of these statuses are good that do not say it themselves (X-Accel-Expires, Cache-Control, Expires). Without codes: 200, 301 and 302; `any`: all.";
    "wsgi_cache_methods" "GET | HEAD | POST …" "GET HEAD" Location Upstream(Setting::CacheMethods),
        "As uwsgi_cache_methods; GET and HEAD are always among them.";
    "wsgi_cache_min_uses" "number" "1" Location Upstream(Setting::CacheMinUses),
        "As uwsgi_cache_min_uses: the request after which a response is kept.";
    "wsgi_cache_bypass" "string …" "" Location Upstream(Setting::CacheBypass),
        "As uwsgi_cache_bypass: the response does not come from the cache when one of the strings is neither empty nor 0.";
    "wsgi_no_cache" "string …" "" Location Upstream(Setting::NoCache),
        "As uwsgi_no_cache: the response is not kept when one of the strings is neither empty nor 0.";
    "wsgi_cache_use_stale" "error | timeout | invalid_header | updating | http_500 | http_503 | http_403 | http_404 | http_429 | off …" "off" Location Upstream(Setting::CacheUseStale),
        "As uwsgi_cache_use_stale: when an expired response is given. error: also when no worker can be had, or all rows are taken; timeout: also startup-timeout, queue-timeout and request-timeout; http_500: also an application that raised.";
    "wsgi_cache_background_update" "on | off" "off" Location Upstream(Setting::CacheBackgroundUpdate),
        "As uwsgi_cache_background_update: an expired response is given at once while a subrequest renews it.";
    "wsgi_cache_revalidate" "on | off" "off" Location Upstream(Setting::CacheRevalidate),
        "As uwsgi_cache_revalidate: the application is asked with If-Modified-Since and If-None-Match whether an expired response still holds.";
    "wsgi_cache_lock" "on | off" "off" Location Upstream(Setting::CacheLock),
        "As uwsgi_cache_lock: of several requests for what is not in the cache one asks the application, the others wait, without a row, for its answer.";
    "wsgi_cache_lock_timeout" "time" "5s" Location Upstream(Setting::CacheLockTimeout),
        "As uwsgi_cache_lock_timeout: after it a request asks the application itself, and its answer is not kept.";
    "wsgi_cache_lock_age" "time" "5s" Location Upstream(Setting::CacheLockAge),
        "As uwsgi_cache_lock_age: after it one more request may ask the application.";
    "wsgi_cache_max_range_offset" "number" "" Location Upstream(Setting::CacheMaxRangeOffset),
        "As uwsgi_cache_max_range_offset: a range that begins beyond it is passed to the application, and its answer not kept. Without it there is no limit.";
    "wsgi_cache_convert_head" "on | off" "on" Location Upstream(Setting::CacheConvertHead),
        "As proxy_cache_convert_head: for the cache a HEAD request becomes a GET. When off, wsgi_cache_key has to name $request_method.";
    "wsgi_store" "on | off | string" "off" Location Upstream(Setting::Store),
        "As uwsgi_store: keeps responses of status 200 as files, below root or alias, or where the string with its variables says.";
    "wsgi_store_access" "users:permissions …" "user:rw" Location Upstream(Setting::StoreAccess),
        "As uwsgi_store_access: mode of the files and directories that wsgi_store makes.";
}

/// Index in [`TABLE`] of the directive that reads this one's arguments.
pub fn shared_index(name: &str) -> Option<usize> {
    TABLE.iter().position(|d| d.name == name)
}

/// A message in nginx's words: every directive that it names by httpd's name gets its own.
pub fn spoken(text: &str) -> String {
    let mut out = text.to_owned();
    for d in NGINX {
        if let Shared(name) = d.kind {
            out = out.replace(name, d.name);
        }
    }
    out.replace("(or User of the server, when the option is absent)", "(or user of nginx, when the option is absent)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_directives_exist_under_names_of_the_same_words() {
        for d in NGINX {
            let Shared(name) = d.kind else { continue };
            assert!(shared_index(name).is_some(), "{name}");
            let mut snake = String::from("wsgi");
            for c in name["WSGI".len()..].chars() {
                if c.is_ascii_uppercase() {
                    snake.push('_');
                }
                snake.push(c.to_ascii_lowercase());
            }
            assert_eq!(snake, d.name);
        }
    }

    #[test]
    fn messages_name_nginx_directives() {
        assert_eq!(spoken("WSGIDaemonProcess blog: x"), "wsgi_daemon_process blog: x");
        assert_eq!(spoken("change WSGIProcessGroup"), "change wsgi_process_group");
    }
}
