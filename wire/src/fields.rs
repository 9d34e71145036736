//! What a field of a response may be (RFC 9110): judged where the application gives it, so that it gets the exception,
//! and again where the server takes it, which believes no worker.

/// A byte of a token (RFC 9110, 5.6.2): what names of fields consist of.
pub fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// A byte that neither a field value nor a reason phrase may have; a tab is white space.
pub fn is_control(b: u8) -> bool {
    (b < 0x20 && b != b'\t') || b == 0x7f
}

/// Fields that belong to one connection (RFC 9110, 7.6.1; the list of wsgiref.util) and therefore to the server, not to
/// an application.
pub fn is_hop_by_hop(name: &[u8]) -> bool {
    const HOP: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    // Common names cost a comparison of lengths.
    HOP.iter().any(|h| h.len() == name.len() && h.as_bytes().eq_ignore_ascii_case(name))
}

/// The value of a Content-Length: digits only.
pub fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_fields_are_known_whatever_their_case() {
        for name in ["Connection", "TE", "transfer-encoding", "UPGRADE", "Proxy-Authorization"] {
            assert!(is_hop_by_hop(name.as_bytes()), "{name}");
        }
        for name in ["", "T", "Content-Length", "WWW-Authenticate", "Connections"] {
            assert!(!is_hop_by_hop(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn lengths_are_digits() {
        assert_eq!(parse_length(b"0017"), Some(17));
        for bad in ["", "-1", "+3", "1 ", "0x1", "1,1", "99999999999999999999", "\u{664}"] {
            assert_eq!(parse_length(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn tokens_and_controls_exclude_what_splits_a_head() {
        for b in *b" :\r\n\0\t\"(),/;<=>?@[\\]{}\x7f\x80" {
            assert!(!is_token(b), "{b:#x}");
        }
        assert!(is_control(0) && is_control(b'\r') && is_control(b'\n') && is_control(0x7f));
        assert!(!is_control(b'\t') && !is_control(b' ') && !is_control(0x80));
    }
}
