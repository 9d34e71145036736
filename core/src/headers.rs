//! Request header names on their way into the environ.

use mod_wsgi_wire::keys;
use std::sync::LazyLock;

/// What becomes of a request header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// Has an id; value goes under it.
    Known(u8),
    /// `HTTP_` + name in upper case with `-` as `_`.
    Named,
    /// Never reaches the environ.
    Dropped,
}

const SLOTS: usize = 512;

fn hash(name: impl Iterator<Item = u8>) -> usize {
    // FNV-1a over the upper-cased name; only the spread over 512 cells matters.
    let mut h = 0x811c_9dc5u32;
    for b in name {
        h = (h ^ b as u32).wrapping_mul(0x0100_0193);
    }
    (h ^ h >> 15) as usize % SLOTS
}

fn normal(b: u8) -> u8 {
    if b == b'-' { b'_' } else { b.to_ascii_uppercase() }
}

static TABLE: LazyLock<[u8; SLOTS]> = LazyLock::new(|| {
    let mut t = [0u8; SLOTS];
    for (id, name) in keys::NAMES.iter().enumerate().skip(1) {
        if let Some(bare) = name.strip_prefix("HTTP_") {
            let mut at = hash(bare.bytes());
            while t[at] != 0 {
                at = (at + 1) % SLOTS;
            }
            t[at] = id as u8;
        }
    }
    t
});

/// Decides about a request header by its name. Names with anything but letters, digits and `-` are dropped (an
/// underscore could forge another header), and so are `Proxy` (it would become HTTP_PROXY) and the two that have keys
/// of their own, Content-Type and Content-Length.
pub fn incoming(name: &[u8]) -> Incoming {
    if name.is_empty() || !name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-') {
        return Incoming::Dropped;
    }
    for special in [&b"content-type"[..], b"content-length", b"proxy"] {
        if name.len() == special.len() && name.eq_ignore_ascii_case(special) {
            return Incoming::Dropped;
        }
    }
    let mut at = hash(name.iter().map(|b| normal(*b)));
    loop {
        let id = TABLE[at];
        if id == 0 {
            return Incoming::Named;
        }
        let known = &keys::NAMES[id as usize].as_bytes()[5..];
        if known.len() == name.len() && known.iter().zip(name).all(|(k, n)| *k == normal(*n)) {
            return Incoming::Known(id);
        }
        at = (at + 1) % SLOTS;
    }
}

/// Appends the environ key of a header without an id: `HTTP_X_NAME`.
pub fn push_key(out: &mut Vec<u8>, name: &[u8]) {
    out.extend_from_slice(b"HTTP_");
    out.extend(name.iter().map(|b| normal(*b)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_names_are_found_whatever_their_case() {
        for (id, name) in keys::NAMES.iter().enumerate().skip(1) {
            if let Some(bare) = name.strip_prefix("HTTP_") {
                let header = bare.replace('_', "-");
                assert_eq!(incoming(header.as_bytes()), Incoming::Known(id as u8));
                assert_eq!(incoming(header.to_lowercase().as_bytes()), Incoming::Known(id as u8));
            }
        }
    }

    #[test]
    fn what_could_forge_is_dropped() {
        for n in ["", "X_Real_IP", "Proxy", "pROXY", "Content-Length", "content-type", "X Y", "X\0", "a:b", "X-\u{e9}"]
        {
            assert_eq!(incoming(n.as_bytes()), Incoming::Dropped, "{n:?}");
        }
        assert_eq!(incoming(b"X-Anything"), Incoming::Named);
        let mut k = Vec::new();
        push_key(&mut k, b"X-Any-2");
        assert_eq!(k, b"HTTP_X_ANY_2");
    }

    proptest! {
        #[test]
        fn no_name_gives_a_key_outside_its_alphabet(name in proptest::collection::vec(any::<u8>(), 0..40)) {
            if incoming(&name) != Incoming::Dropped {
                let mut k = Vec::new();
                push_key(&mut k, &name);
                prop_assert!(k.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_'));
            }
        }
    }
}
