//! The framer: it alone judges a response head, decides Content-Length and counts the body. Neither server compares a
//! body with its declared length; on a kept-alive connection a shortfall would hand the next user's bytes to this one.

use mod_wsgi_wire::fields::{is_control, is_hop_by_hop, is_token, parse_length};

/// A response that cannot be sent as it is. The application is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    #[error("status {0} is not a final status")]
    Status(u16),
    #[error("reason phrase has a control character")]
    Reason,
    #[error("header field {0} has an invalid name")]
    Name(usize),
    #[error("header field '{0}' has a control character in its value")]
    Value(String),
    #[error("header field '{0}' belongs to the connection, not to an application")]
    HopByHop(String),
    #[error("Content-Length '{0}' is no length")]
    Length(String),
    #[error("Content-Length is given more than once with different values")]
    Lengths,
}

/// What the server serves in place of an application's answer, whose body nobody gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead<'a> {
    /// Another path of this server, as the answer to a GET: status 200 with a local Location, as CGI has it (RFC 3875,
    /// 6.2.2) and mod_wsgi's daemon mode.
    Path(&'a [u8]),
    /// The server's own page for this status.
    ErrorPage(u16),
}

impl<'a> Instead<'a> {
    /// `error_pages`: the server's pages replace the application's for 4xx and 5xx.
    pub fn of(
        status: u16,
        mut fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        error_pages: bool,
    ) -> Option<Instead<'a>> {
        match status {
            200 => fields
                .find(|(name, _)| name.eq_ignore_ascii_case(b"location"))
                .filter(|(_, value)| value.starts_with(b"/"))
                .map(|(_, value)| Instead::Path(value)),
            400..=599 if error_pages => Some(Instead::ErrorPage(status)),
            _ => None,
        }
    }
}

/// The body had fewer bytes than its Content-Length: the connection must be aborted so that the client can see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("response body has {got} bytes, Content-Length said {declared}")]
pub struct Shortfall {
    pub declared: u64,
    pub got: u64,
}

/// Counts one response.
#[derive(Debug)]
pub struct Framer {
    declared: Option<u64>,
    body: bool,
    /// HEAD and 304 may declare a length without a body.
    exempt: bool,
    sent: u64,
    surplus: u64,
}

impl Framer {
    /// Judges a head. `whole`: the number of body bytes when the response is complete already and came from an exact
    /// list or tuple; it becomes the Content-Length when the application gave none.
    pub fn new<'a>(
        head_request: bool,
        status: u16,
        reason: &[u8],
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        whole: Option<u64>,
    ) -> Result<Framer, ResponseError> {
        if !(200..=999).contains(&status) {
            return Err(ResponseError::Status(status));
        }
        if reason.iter().any(|b| is_control(*b)) {
            return Err(ResponseError::Reason);
        }
        let mut declared = None;
        for (i, (name, value)) in fields.enumerate() {
            if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
                return Err(ResponseError::Name(i));
            }
            let text = || String::from_utf8_lossy(name).into_owned();
            if value.iter().any(|b| is_control(*b)) {
                return Err(ResponseError::Value(text()));
            }
            if is_hop_by_hop(name) {
                return Err(ResponseError::HopByHop(text()));
            }
            if name.eq_ignore_ascii_case(b"content-length") {
                let n = parse_length(value)
                    .ok_or_else(|| ResponseError::Length(String::from_utf8_lossy(value).into_owned()))?;
                if declared.is_some_and(|d| d != n) {
                    return Err(ResponseError::Lengths);
                }
                declared = Some(n);
            }
        }
        let no_body = matches!(status, 204 | 304);
        if declared.is_none() && !no_body && !(head_request && whole == Some(0)) {
            declared = whole;
        }
        if status == 204 {
            declared = None;
        }
        Ok(Framer { declared, body: !(head_request || no_body), exempt: head_request || no_body, sent: 0, surplus: 0 })
    }

    /// Content-Length to send; `None`: the server frames the body itself.
    pub fn content_length(&self) -> Option<u64> {
        self.declared
    }

    /// How many of the next `n` body bytes may be passed to the server; the rest is surplus and dropped.
    pub fn accept(&mut self, n: u64) -> u64 {
        if !self.body {
            return 0;
        }
        let room = self.declared.map_or(u64::MAX, |d| d - self.sent);
        let take = n.min(room);
        self.sent += take;
        self.surplus = self.surplus.saturating_add(n - take);
        take
    }

    /// Bytes beyond the declared length so far; worth one log line at the end.
    pub fn surplus(&self) -> u64 {
        self.surplus
    }

    /// Bytes passed on.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// The worker has said END: is the response whole?
    pub fn finish(&self) -> Result<(), Shortfall> {
        match self.declared {
            Some(declared) if !self.exempt && self.sent < declared => Err(Shortfall { declared, got: self.sent }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framer(head: bool, status: u16, cl: Option<&str>, whole: Option<u64>) -> Result<Framer, ResponseError> {
        let f: Vec<(&[u8], &[u8])> = cl.iter().map(|v| (&b"Content-Length"[..], v.as_bytes())).collect();
        Framer::new(head, status, b"OK", f.into_iter(), whole)
    }

    #[test]
    fn a_local_location_with_200_names_another_path() {
        fn instead(status: u16, location: &[u8], pages: bool) -> Option<Instead<'_>> {
            Instead::of(status, [(&b"X"[..], &b"/x"[..]), (&b"LOCATION"[..], location)].into_iter(), pages)
        }
        assert_eq!(instead(200, b"/a?b", true), Some(Instead::Path(b"/a?b")));
        assert_eq!(instead(200, b"http://host/a", true), None);
        assert_eq!(instead(200, b"", false), None);
        assert_eq!(instead(201, b"/a", true), None);
        assert_eq!(instead(302, b"/a", true), None);
        assert_eq!(instead(404, b"/a", false), None);
        assert_eq!(instead(404, b"/a", true), Some(Instead::ErrorPage(404)));
        assert_eq!(instead(600, b"/a", true), None);
    }

    #[test]
    fn whole_answers_get_a_length_where_one_is_allowed() {
        assert_eq!(framer(false, 200, None, Some(13)).unwrap().content_length(), Some(13));
        assert_eq!(framer(false, 200, None, None).unwrap().content_length(), None);
        assert_eq!(framer(true, 200, None, Some(0)).unwrap().content_length(), None);
        assert_eq!(framer(false, 204, None, Some(0)).unwrap().content_length(), None);
        assert_eq!(framer(false, 304, None, Some(0)).unwrap().content_length(), None);
        assert_eq!(framer(false, 200, Some("5"), Some(13)).unwrap().content_length(), Some(5));
        // RFC 9110, 8.6: not in a 204, whoever declares it.
        assert_eq!(framer(false, 204, Some("5"), None).unwrap().content_length(), None);
    }

    #[test]
    fn bad_heads_are_refused() {
        assert_eq!(framer(false, 103, None, None).unwrap_err(), ResponseError::Status(103));
        for bad in ["-1", "", "1 ", "99999999999999999999", "0x1", "1,1"] {
            assert!(framer(false, 200, Some(bad), None).is_err(), "{bad:?}");
        }
        let one = |n: &'static [u8], v: &'static [u8]| Framer::new(false, 200, b"OK", [(n, v)].into_iter(), None);
        assert!(matches!(one(b"Transfer-Encoding", b"chunked"), Err(ResponseError::HopByHop(_))));
        assert!(matches!(one(b"X Y", b"1"), Err(ResponseError::Name(0))));
        assert!(matches!(one(b"X", b"a\r\nSet-Cookie: b"), Err(ResponseError::Value(_))));
        assert!(matches!(one(b"X", b"a\0b"), Err(ResponseError::Value(_))));
        let two = [(&b"content-length"[..], &b"1"[..]), (b"Content-Length", b"2")];
        assert_eq!(Framer::new(false, 200, b"OK", two.into_iter(), None).unwrap_err(), ResponseError::Lengths);
    }

    proptest! {
        /// The client never gets more than declared, and never less without an error.
        #[test]
        fn a_body_is_exact_or_an_error(declared in 0u64..200, pieces in proptest::collection::vec(0u64..60, 0..10)) {
            let mut f = framer(false, 200, Some(&declared.to_string()), None).unwrap();
            let total: u64 = pieces.iter().sum();
            let passed: u64 = pieces.iter().map(|p| f.accept(*p)).sum();
            prop_assert_eq!(passed, total.min(declared));
            prop_assert_eq!(f.surplus(), total.saturating_sub(declared));
            prop_assert_eq!(f.finish().is_err(), total < declared);
        }

        #[test]
        fn without_a_body_nothing_passes(kind in 0..3, n in 1u64..1000) {
            let (head, status) = [(true, 200), (false, 204), (false, 304)][kind as usize];
            let mut f = framer(head, status, Some("10"), None).unwrap();
            prop_assert_eq!(f.accept(n), 0);
            prop_assert!(f.finish().is_ok());
        }
    }
}
