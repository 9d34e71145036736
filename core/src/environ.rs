//! Pieces of the environ that every server makes alike.

use crate::headers::{Incoming, incoming, push_key};
use mod_wsgi_wire::encode::RequestBuilder;
use std::borrow::Cow;

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
