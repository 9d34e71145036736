//! One-byte ids of the commonest environ keys: half of a request's bytes are keys, and the worker keeps an interned
//! string object for each id. Append only; a change of order needs a new [`crate::VERSION`].

macro_rules! keys {
    ($($id:literal $konst:ident $name:literal),* $(,)?) => {
        $(#[doc = concat!("`", $name, "`")] pub const $konst: u8 = $id;)*
        /// Names by id; index 0 is unused (id 0 says that the key itself follows).
        pub const NAMES: &[&str] = &["", $($name),*];
    };
}

keys! {
    1 REQUEST_METHOD "REQUEST_METHOD",
    2 REQUEST_URI "REQUEST_URI",
    3 SCRIPT_NAME "SCRIPT_NAME",
    4 PATH_INFO "PATH_INFO",
    5 QUERY_STRING "QUERY_STRING",
    6 SERVER_NAME "SERVER_NAME",
    7 SERVER_PORT "SERVER_PORT",
    8 SERVER_PROTOCOL "SERVER_PROTOCOL",
    9 SERVER_SOFTWARE "SERVER_SOFTWARE",
    10 SERVER_ADDR "SERVER_ADDR",
    11 SERVER_ADMIN "SERVER_ADMIN",
    12 REMOTE_ADDR "REMOTE_ADDR",
    13 REMOTE_PORT "REMOTE_PORT",
    14 REMOTE_USER "REMOTE_USER",
    15 AUTH_TYPE "AUTH_TYPE",
    16 DOCUMENT_ROOT "DOCUMENT_ROOT",
    17 SCRIPT_FILENAME "SCRIPT_FILENAME",
    18 REQUEST_SCHEME "REQUEST_SCHEME",
    19 CONTEXT_PREFIX "CONTEXT_PREFIX",
    20 CONTEXT_DOCUMENT_ROOT "CONTEXT_DOCUMENT_ROOT",
    21 CONTENT_TYPE "CONTENT_TYPE",
    22 CONTENT_LENGTH "CONTENT_LENGTH",
    23 RAW_URI "RAW_URI",
    24 URL_SCHEME "wsgi.url_scheme",
    25 UNIQUE_ID "UNIQUE_ID",
    26 HTTPS "HTTPS",
    27 HTTP_HOST "HTTP_HOST",
    28 HTTP_USER_AGENT "HTTP_USER_AGENT",
    29 HTTP_ACCEPT "HTTP_ACCEPT",
    30 HTTP_ACCEPT_ENCODING "HTTP_ACCEPT_ENCODING",
    31 HTTP_ACCEPT_LANGUAGE "HTTP_ACCEPT_LANGUAGE",
    32 HTTP_ACCEPT_CHARSET "HTTP_ACCEPT_CHARSET",
    33 HTTP_AUTHORIZATION "HTTP_AUTHORIZATION",
    34 HTTP_CACHE_CONTROL "HTTP_CACHE_CONTROL",
    35 HTTP_CONNECTION "HTTP_CONNECTION",
    36 HTTP_COOKIE "HTTP_COOKIE",
    37 HTTP_DNT "HTTP_DNT",
    38 HTTP_EXPECT "HTTP_EXPECT",
    39 HTTP_FORWARDED "HTTP_FORWARDED",
    40 HTTP_IF_MATCH "HTTP_IF_MATCH",
    41 HTTP_IF_MODIFIED_SINCE "HTTP_IF_MODIFIED_SINCE",
    42 HTTP_IF_NONE_MATCH "HTTP_IF_NONE_MATCH",
    43 HTTP_IF_RANGE "HTTP_IF_RANGE",
    44 HTTP_IF_UNMODIFIED_SINCE "HTTP_IF_UNMODIFIED_SINCE",
    45 HTTP_KEEP_ALIVE "HTTP_KEEP_ALIVE",
    46 HTTP_ORIGIN "HTTP_ORIGIN",
    47 HTTP_PRAGMA "HTTP_PRAGMA",
    48 HTTP_RANGE "HTTP_RANGE",
    49 HTTP_REFERER "HTTP_REFERER",
    50 HTTP_SEC_FETCH_DEST "HTTP_SEC_FETCH_DEST",
    51 HTTP_SEC_FETCH_MODE "HTTP_SEC_FETCH_MODE",
    52 HTTP_SEC_FETCH_SITE "HTTP_SEC_FETCH_SITE",
    53 HTTP_SEC_FETCH_USER "HTTP_SEC_FETCH_USER",
    54 HTTP_SEC_CH_UA "HTTP_SEC_CH_UA",
    55 HTTP_SEC_CH_UA_MOBILE "HTTP_SEC_CH_UA_MOBILE",
    56 HTTP_SEC_CH_UA_PLATFORM "HTTP_SEC_CH_UA_PLATFORM",
    57 HTTP_TE "HTTP_TE",
    58 HTTP_TRANSFER_ENCODING "HTTP_TRANSFER_ENCODING",
    59 HTTP_UPGRADE_INSECURE_REQUESTS "HTTP_UPGRADE_INSECURE_REQUESTS",
    60 HTTP_VIA "HTTP_VIA",
    61 HTTP_X_FORWARDED_FOR "HTTP_X_FORWARDED_FOR",
    62 HTTP_X_FORWARDED_HOST "HTTP_X_FORWARDED_HOST",
    63 HTTP_X_FORWARDED_PORT "HTTP_X_FORWARDED_PORT",
    64 HTTP_X_FORWARDED_PROTO "HTTP_X_FORWARDED_PROTO",
    65 HTTP_X_REAL_IP "HTTP_X_REAL_IP",
    66 HTTP_X_REQUEST_ID "HTTP_X_REQUEST_ID",
    67 HTTP_X_REQUESTED_WITH "HTTP_X_REQUESTED_WITH",
    68 HTTP_PRIORITY "HTTP_PRIORITY",
    69 MW_PROCESS_GROUP "mod_wsgi.process_group",
    70 MW_APPLICATION_GROUP "mod_wsgi.application_group",
    71 MW_CALLABLE_OBJECT "mod_wsgi.callable_object",
    72 MW_REQUEST_HANDLER "mod_wsgi.request_handler",
    73 MW_HANDLER_SCRIPT "mod_wsgi.handler_script",
    74 MW_SCRIPT_NAME "mod_wsgi.script_name",
    75 MW_PATH_INFO "mod_wsgi.path_info",
    76 MW_LISTENER_HOST "mod_wsgi.listener_host",
    77 MW_LISTENER_PORT "mod_wsgi.listener_port",
    78 MW_REQUEST_ID "mod_wsgi.request_id",
    79 MW_CONNECTION_ID "mod_wsgi.connection_id",
    80 MW_REQUEST_START "mod_wsgi.request_start",
    81 MW_QUEUE_START "mod_wsgi.queue_start",
    82 MW_SERVER_PID "mod_wsgi.server_pid",
    83 APACHE_VERSION "apache.version",
    84 MW_DAEMON_START "mod_wsgi.daemon_start",
    85 MW_APPLICATION_START "mod_wsgi.application_start",
}

/// Keys whose values hardly ever change from request to request of one script. A server sends them first, in this order,
/// so that a worker can keep what it has made of them: see [`crate::decode::Request::beginning`].
pub const CONSTANT: &[u8] = &[
    SERVER_SOFTWARE,
    APACHE_VERSION,
    SERVER_ADMIN,
    SERVER_ADDR,
    MW_LISTENER_HOST,
    MW_LISTENER_PORT,
    REQUEST_SCHEME,
    DOCUMENT_ROOT,
    CONTEXT_PREFIX,
    CONTEXT_DOCUMENT_ROOT,
    SCRIPT_FILENAME,
    MW_CALLABLE_OBJECT,
    MW_APPLICATION_GROUP,
];

/// Whether `name` is that of a constant key: the server's own value has been sent by then.
pub fn is_constant(name: &[u8]) -> bool {
    CONSTANT.iter().any(|id| NAMES[*id as usize].as_bytes() == name)
}

/// The id of `name`, or 0. A linear scan: for tables built once, not for the request path.
pub fn id_of(name: &str) -> u8 {
    NAMES.iter().skip(1).position(|n| *n == name).map_or(0, |i| i as u8 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_their_index_and_are_unique() {
        for (i, name) in NAMES.iter().enumerate().skip(1) {
            assert_eq!(id_of(name) as usize, i, "{name}");
        }
        assert_eq!(NAMES[HTTP_HOST as usize], "HTTP_HOST");
        assert_eq!(NAMES[MW_SERVER_PID as usize], "mod_wsgi.server_pid");
        assert_eq!(id_of("HTTP_X_NOT_LISTED"), 0);
    }
}
