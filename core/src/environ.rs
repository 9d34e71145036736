//! Pieces of the environ that every server makes alike.

use crate::headers::{Incoming, incoming, push_key};
use mod_wsgi_wire::encode::RequestBuilder;
use mod_wsgi_wire::keys;
use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where a request has come to and what serves it: what every server says of that, in the order of [`keys::CONSTANT`].
pub struct Place<'a> {
    pub server_software: &'a [u8],
    /// Keys that one server alone has, with their values, for the place that the order gives them.
    pub after_software: &'a [(u8, &'a [u8])],
    /// Address and port of the listener that took the connection.
    pub local: (&'a [u8], u16),
    pub scheme: &'a [u8],
    pub document_root: &'a [u8],
    /// As `after_software`.
    pub after_root: &'a [(u8, &'a [u8])],
    pub script: &'a [u8],
    pub callable: &'a [u8],
    /// As the application sees it.
    pub application_group: &'a [u8],
}

impl Place<'_> {
    /// Writes the entries; they are the first of a request.
    pub fn write(&self, b: &mut RequestBuilder<'_>) {
        let (addr, port) = self.local;
        b.known(keys::SERVER_SOFTWARE, self.server_software);
        self.after_software.iter().for_each(|(key, value)| b.known(*key, value));
        b.known(keys::SERVER_ADDR, addr);
        b.known(keys::MW_LISTENER_HOST, addr);
        b.known(keys::MW_LISTENER_PORT, decimal(port.into(), &mut [0; 20]));
        b.known(keys::REQUEST_SCHEME, self.scheme);
        b.known(keys::DOCUMENT_ROOT, self.document_root);
        self.after_root.iter().for_each(|(key, value)| b.known(*key, value));
        b.known(keys::SCRIPT_FILENAME, self.script);
        b.known(keys::MW_CALLABLE_OBJECT, self.callable);
        b.known(keys::MW_APPLICATION_GROUP, self.application_group);
    }
}

/// What a client asks for, and who it is.
pub struct Asked<'a> {
    pub method: &'a [u8],
    /// The target of the request line, as it was sent.
    pub target: &'a [u8],
    pub script_name: &'a [u8],
    pub path_info: &'a [u8],
    pub args: &'a [u8],
    pub protocol: &'a [u8],
    /// SERVER_NAME and SERVER_PORT.
    pub server: (&'a [u8], u16),
    pub remote: (&'a [u8], u16),
    /// The server's process that has the request.
    pub process: u32,
    /// When the server began it: microseconds since the epoch.
    pub start: u64,
}

impl Asked<'_> {
    /// Writes the entries. The request waits for a worker from now on.
    pub fn write(&self, b: &mut RequestBuilder<'_>) {
        let mut num = [0; 20];
        b.known(keys::REQUEST_METHOD, self.method);
        b.known(keys::REQUEST_URI, self.target);
        b.known(keys::RAW_URI, self.target);
        b.known(keys::SCRIPT_NAME, self.script_name);
        b.known(keys::PATH_INFO, self.path_info);
        b.known(keys::QUERY_STRING, self.args);
        b.known(keys::SERVER_PROTOCOL, self.protocol);
        b.known(keys::SERVER_NAME, self.server.0);
        b.known(keys::SERVER_PORT, decimal(self.server.1.into(), &mut num));
        b.known(keys::REMOTE_ADDR, self.remote.0);
        b.known(keys::REMOTE_PORT, decimal(self.remote.1.into(), &mut num));
        b.known(keys::MW_SCRIPT_NAME, self.script_name);
        b.known(keys::MW_PATH_INFO, self.path_info);
        b.known(keys::MW_SERVER_PID, decimal(self.process.into(), &mut num));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        b.known(keys::MW_QUEUE_START, decimal(now.as_micros() as u64, &mut num));
        b.known(keys::MW_REQUEST_START, decimal(self.start, &mut num));
    }
}

/// Whether a header of the request stays with the server: Expect is its own to answer, credentials pass where that is
/// configured, and a body that is not streamed is presented whole, with its length.
pub fn is_kept_back(name: &[u8], streamed: bool, authorization: bool, proxy_authorization: bool) -> bool {
    match name.len() {
        6 => name.eq_ignore_ascii_case(b"Expect"),
        13 => !authorization && name.eq_ignore_ascii_case(b"Authorization"),
        17 => !streamed && name.eq_ignore_ascii_case(b"Transfer-Encoding"),
        19 => !proxy_authorization && name.eq_ignore_ascii_case(b"Proxy-Authorization"),
        _ => false,
    }
}

/// Adds a request header under its `HTTP_` key; says whether it was added.
pub fn add_header(b: &mut RequestBuilder<'_>, name: &[u8], value: &[u8]) -> bool {
    match incoming(name) {
        Incoming::Dropped => return false,
        Incoming::Known(id) => b.known(id, value),
        Incoming::Named => b.named_with(name.len() + 5, value, |out| push_key(out, name)),
    }
    true
}

/// `path` with runs of slashes made one, as mod_wsgi does for SCRIPT_NAME and PATH_INFO.
pub fn collapse_slashes(path: &[u8]) -> Cow<'_, [u8]> {
    if !path.windows(2).any(|w| w == b"//") {
        return Cow::Borrowed(path);
    }
    let mut out = Vec::with_capacity(path.len());
    for b in path {
        if *b != b'/' || out.last() != Some(&b'/') {
            out.push(*b);
        }
    }
    Cow::Owned(out)
}

/// Whether the value of the variable HTTPS means that the client came over TLS.
pub fn is_https(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"on") || value == b"1"
}

/// Variables of the server's own table that never reach an application: HTTPS becomes `wsgi.url_scheme`, PATH and
/// LD_LIBRARY_PATH describe the server's process, not the request, and the names of the two interfaces are no place for
/// strings.
pub fn is_hidden(name: &[u8]) -> bool {
    matches!(name, b"HTTPS" | b"PATH" | b"LD_LIBRARY_PATH")
        || name.is_empty()
        || name.starts_with(b"wsgi.")
        || name.starts_with(b"mod_wsgi.")
}

/// The digits of `n`, written into `buf`: environ values that are numbers, without an allocation.
pub fn decimal(n: u64, buf: &mut [u8; 20]) -> &[u8] {
    let mut at = buf.len();
    let mut n = n;
    loop {
        at -= 1;
        buf[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return &buf[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mod_wsgi_wire::{decode, encode, keys};

    #[test]
    fn slashes() {
        assert_eq!(&*collapse_slashes(b"/a//b///c/"), b"/a/b/c/");
        assert!(matches!(collapse_slashes(b"/a/b"), Cow::Borrowed(_)));
    }

    #[test]
    fn the_interfaces_own_names_are_not_set_from_outside() {
        for name in ["", "HTTPS", "PATH", "wsgi.errors", "mod_wsgi.process_group"] {
            assert!(is_hidden(name.as_bytes()), "{name}");
        }
        assert!(!is_hidden(b"wsgi") && !is_hidden(b"SSL_PROTOCOL") && !is_hidden(b"app.wsgi.mode"));
    }

    #[test]
    fn the_place_is_written_in_the_order_of_the_constant_keys() {
        let mut out = Vec::new();
        let mut b = RequestBuilder::new(&mut out, 0);
        let place = Place {
            server_software: b"s",
            after_software: &[(keys::APACHE_VERSION, b"2"), (keys::SERVER_ADMIN, b"a")],
            local: (b"127.0.0.1", 80),
            scheme: b"http",
            document_root: b"/",
            after_root: &[(keys::CONTEXT_PREFIX, b""), (keys::CONTEXT_DOCUMENT_ROOT, b"/")],
            script: b"/app.wsgi",
            callable: b"application",
            application_group: b"",
        };
        place.write(&mut b);
        b.finish(encode::Body::Inline(0)).unwrap();
        let (h, p, _) = decode::frame(&out).unwrap().unwrap();
        let r = decode::request(h, p).unwrap();
        let got: Vec<_> = r.entries().map(|(key, _)| key).collect();
        let wanted: Vec<_> = keys::CONSTANT.iter().map(|id| decode::Key::Known(*id)).collect();
        assert_eq!(got, wanted);
    }

    #[test]
    fn headers_that_stay_with_the_server() {
        let all = ["expect", "Authorization", "Transfer-Encoding", "Proxy-Authorization", "Accept"];
        let kept = |streamed, own, proxy| all.map(|n| is_kept_back(n.as_bytes(), streamed, own, proxy));
        assert_eq!(kept(false, false, false), [true, true, true, true, false]);
        assert_eq!(kept(true, false, false), [true, true, false, true, false]);
        assert_eq!(kept(false, true, false), [true, false, true, true, false]);
        assert_eq!(kept(false, false, true), [true, true, true, false, false]);
    }

    #[test]
    fn headers_reach_the_frame_under_their_keys() {
        let mut out = Vec::new();
        let mut b = RequestBuilder::new(&mut out, 0);
        assert!(add_header(&mut b, b"Host", b"h"));
        assert!(add_header(&mut b, b"X-Own", b"1"));
        assert!(!add_header(&mut b, b"X_Own", b"forged"));
        b.finish(encode::Body::Inline(0)).unwrap();
        let (h, p, _) = decode::frame(&out).unwrap().unwrap();
        let r = decode::request(h, p).unwrap();
        let got: Vec<_> = r.entries().collect();
        assert_eq!(got, [(decode::Key::Known(keys::HTTP_HOST), &b"h"[..]), (decode::Key::Named(b"HTTP_X_OWN"), b"1")]);
    }
}
