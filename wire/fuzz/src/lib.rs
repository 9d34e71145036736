//! Bodies of the fuzz targets, one module for each. Only the crate under test is used here, so that `wire/tests/replay.rs`
//! compiles this file too and runs it over the corpus on stable Rust. Each asserts more than the absence of panics: what
//! is accepted stays within the limits, and encodes to the same bytes again.

/// An offset in an error lies within what was looked at.
fn offset_within(e: mod_wsgi_wire::decode::Error, len: usize) {
    use mod_wsgi_wire::decode::Error::*;
    match e {
        Kind { at } | Flags { at } | Truncated { at } | Trailing { at } | Value { at } => {
            assert!(at <= len, "offset {at} of {len} bytes")
        }
        TooLong { .. } | Version { .. } | Unexpected { .. } => {}
    }
}

/// The header and the stream of frames, as a receiver cuts them out of its buffer.
pub mod frame {
    use mod_wsgi_wire::frame::{Header, Kind};
    use mod_wsgi_wire::{decode, limits};

    pub fn run(data: &[u8]) {
        let mut rest = data;
        loop {
            match decode::header(rest) {
                Err(e) => {
                    assert!(rest.len() >= limits::HEADER, "a verdict without a whole header");
                    assert_eq!(decode::frame(rest).unwrap_err(), e);
                    return super::offset_within(e, limits::HEADER);
                }
                Ok(None) => return assert!(rest.len() < limits::HEADER),
                Ok(Some(h)) => assert!(h.len <= h.kind.max_payload() && h.len <= limits::MAX_PAYLOAD),
            }
            let Ok(Some((h, payload, total))) = decode::frame(rest) else { return };
            assert_eq!((h.len, total), (payload.len(), limits::HEADER + payload.len()));
            body(h, payload);
            rest = &rest[total..];
        }
    }

    /// Every decoder that this kind of frame may reach, in either direction.
    fn body(h: Header, payload: &[u8]) {
        let selected = |n: u8| [&[n], payload].concat();
        match h.kind {
            Kind::Hello => {
                super::hello_server::run(payload);
                super::hello_worker::run(payload);
            }
            Kind::Request => super::request::decoded(h, payload),
            Kind::Response => super::response::run(payload),
            Kind::File => super::file_log_abort::run(&selected(0)),
            Kind::Log => super::file_log_abort::run(&selected(1)),
            Kind::Abort => super::file_log_abort::run(&selected(2)),
            Kind::BodyEnd | Kind::Continue | Kind::End | Kind::Done => assert!(payload.is_empty()),
            Kind::Body | Kind::Data => assert!(payload.len() <= limits::MAX_DATA),
            Kind::Reply | Kind::Adopt => super::of_row::run(h.kind, payload),
        }
    }
}

/// What a lane's frames begin with.
pub mod of_row {
    use mod_wsgi_wire::frame::Kind;
    use mod_wsgi_wire::{decode, encode, limits};

    pub fn run(kind: Kind, data: &[u8]) {
        match decode::of_row(data) {
            Err(e) => super::offset_within(e, data.len()),
            Ok(of) => {
                let mut out = Vec::new();
                match kind {
                    Kind::Reply if of.frames.len() <= limits::MAX_REPLY => {
                        encode::reply(&mut out, of.row, of.row_generation, &[of.frames]);
                    }
                    _ => encode::adopt(&mut out, of.row, of.row_generation),
                }
                let again = &out[limits::HEADER..];
                assert_eq!(again, &data[..again.len()]);
            }
        }
    }
}

/// HELLO as a worker reads it.
pub mod hello_server {
    use mod_wsgi_wire::{decode, encode, limits};

    pub fn run(data: &[u8]) {
        match decode::hello_server(data) {
            Err(e) => super::offset_within(e, data.len()),
            Ok(h) => {
                let mut out = Vec::new();
                encode::hello_server(&mut out, &h.token, h.client);
                let again = &out[limits::HEADER..];
                assert_eq!((&again[..2], &again[4..]), (&data[..2], &data[4..]));
            }
        }
    }
}

/// HELLO as a server process reads it.
pub mod hello_worker {
    use mod_wsgi_wire::{decode, encode, limits};

    pub fn run(data: &[u8]) {
        match decode::hello_worker(data) {
            Err(e) => super::offset_within(e, data.len()),
            Ok(h) => {
                let mut out = Vec::new();
                encode::hello_worker(&mut out, h.slot, h.slot_generation);
                assert_eq!(&out[limits::HEADER..], data);
            }
        }
    }
}

/// REQUEST. The first byte chooses how the body travels, the rest is the payload.
pub mod request {
    use mod_wsgi_wire::decode::{self, Key};
    use mod_wsgi_wire::encode::{Body, RequestBuilder, for_lane, patch_row};
    use mod_wsgi_wire::frame::{Header, Kind, flags};
    use mod_wsgi_wire::{keys, limits};

    pub fn run(data: &[u8]) {
        let Some((first, payload)) = data.split_first() else { return };
        let flags = [0, flags::BODY_FD, flags::BODY_STREAM, flags::NO_FILE][*first as usize % 4];
        decoded(Header { kind: Kind::Request, flags, len: payload.len() }, payload);
    }

    pub(super) fn decoded(h: Header, payload: &[u8]) {
        let r = match decode::request(h, payload) {
            Err(e) => return super::offset_within(e, payload.len()),
            Ok(r) => r,
        };
        assert!(r.body.len() <= limits::MAX_INLINE_BODY);
        let mut out = Vec::new();
        let mut b = RequestBuilder::new(&mut out, r.script_mtime);
        b.timeout(r.timeout);
        if r.no_file {
            b.no_file();
        }
        let mut entries = 0;
        for (key, value) in r.entries() {
            entries += 1;
            match key {
                Key::Known(id) => {
                    assert!(id != 0 && (id as usize) < keys::NAMES.len());
                    b.known(id, value);
                }
                Key::Named(name) => b.named(name, value),
            }
        }
        assert_eq!(entries, u16::from_le_bytes([payload[6], payload[7]]), "every announced entry is given");
        let begun = r.beginning();
        assert!(r.environ().starts_with(begun));
        assert!(decode::entries(begun).chain(r.entries_from(begun.len())).eq(r.entries()), "the same in two parts");
        let body = match h.flags & !flags::NO_FILE {
            flags::BODY_FD => Body::Descriptor(r.body_len),
            flags::BODY_STREAM => Body::Stream,
            _ => Body::Inline(r.body.len()),
        };
        b.finish(body).expect("what was accepted can be encoded");
        out.extend_from_slice(r.body);
        patch_row(&mut out, 0, &r.row);
        for_lane(&mut out, 0, r.lane);
        let (h2, again, total) = decode::frame(&out).unwrap().expect("a whole frame");
        assert_eq!((h2, total), (h, out.len()));
        // Bytes 36..40 are not looked at, and the length of a stream is not either.
        assert_eq!((&again[..24], &again[32..36], &again[40..]), (&payload[..24], &payload[32..36], &payload[40..]));
        if h.flags & flags::BODY_STREAM == 0 {
            assert_eq!(again[24..32], payload[24..32]);
        }
    }
}

/// RESPONSE.
pub mod response {
    use mod_wsgi_wire::{decode, encode, limits};

    pub fn run(data: &[u8]) {
        let r = match decode::response(data) {
            Err(e) => return super::offset_within(e, data.len()),
            Ok(r) => r,
        };
        let fields: Vec<_> = r.headers().collect();
        assert_eq!(fields.len(), u16::from_le_bytes([data[2], data[3]]) as usize, "every announced field is given");
        assert!(r.data.len() <= limits::MAX_DATA && r.reason.len() <= limits::MAX_REASON);
        let mut out = Vec::new();
        encode::response(&mut out, r.status, r.reason, fields.into_iter(), r.data, 0)
            .expect("what was accepted can be encoded");
        let again = &out[limits::HEADER..];
        assert_eq!((&again[..6], &again[8..]), (&data[..6], &data[8..]));
    }
}

/// The three small payloads; the first byte chooses FILE, LOG or ABORT.
pub mod file_log_abort {
    use mod_wsgi_wire::{decode, encode, limits};

    pub fn run(data: &[u8]) {
        let Some((first, payload)) = data.split_first() else { return };
        let mut out = Vec::new();
        match first % 3 {
            0 => match decode::file(payload) {
                Err(e) => super::offset_within(e, payload.len()),
                Ok((offset, len)) => {
                    assert!(offset.checked_add(len).is_some_and(|end| end <= i64::MAX as u64));
                    encode::file(&mut out, offset, len, 0);
                    assert_eq!(&out[limits::HEADER..], payload);
                }
            },
            1 => match decode::log(payload) {
                Err(e) => super::offset_within(e, payload.len()),
                Ok((level, text)) => {
                    encode::log(&mut out, level, text);
                    let (again, kept) = decode::log(&out[limits::HEADER..]).unwrap();
                    assert_eq!((again, kept), (level, &text[..text.len().min(limits::MAX_LOG)]));
                }
            },
            _ => match decode::abort(payload) {
                Err(e) => super::offset_within(e, payload.len()),
                Ok(reason) => {
                    encode::abort(&mut out, reason, 0);
                    assert_eq!(&out[limits::HEADER..], payload);
                }
            },
        }
    }
}

/// What is understood can be sent again and is understood again. (Not compared: reading a number with a fraction is
/// exact to one unit in the last place only.)
fn control<T: serde::Serialize + serde::de::DeserializeOwned>(data: &[u8]) {
    if let Ok(Some((message, used))) = mod_wsgi_wire::control::decode::<T>(data) {
        assert!(used >= 4 && used <= data.len());
        let again = mod_wsgi_wire::control::encode(&message).expect("what was understood can be sent");
        let (_, used) = mod_wsgi_wire::control::decode::<T>(&again).unwrap().expect("a whole message");
        assert_eq!(used, again.len());
    }
}

/// `ctl.sock`, both directions.
pub mod control_to_supervisor {
    use mod_wsgi_wire::control::{FromSupervisor, ToSupervisor};

    pub fn run(data: &[u8]) {
        super::control::<ToSupervisor>(data);
        super::control::<FromSupervisor>(data);
    }
}

/// The control socket of a worker, both directions, and the plan it starts with.
pub mod control_from_worker {
    use mod_wsgi_wire::control::{FromWatcher, FromWorker, ToWatcher, ToWorker};
    use mod_wsgi_wire::plan::ExecPlan;

    pub fn run(data: &[u8]) {
        super::control::<FromWorker>(data);
        super::control::<ToWorker>(data);
        super::control::<FromWatcher>(data);
        super::control::<ToWatcher>(data);
        super::control::<ExecPlan>(data);
    }
}
