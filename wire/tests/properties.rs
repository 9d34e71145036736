//! Properties of the wire: what an encoder writes its decoder reads as the same values; no bytes make a decoder panic; no
//! limit can be passed.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use mod_wsgi_wire::control::{
    self, Command, Config, Deadlines, FromSupervisor, FromWorker, Group, Preload, Recycle, RefusedReason, Secret,
};
use mod_wsgi_wire::control::{StuckReason, ToSupervisor, ToWorker};
use mod_wsgi_wire::decode::{self, Error, Key};
use mod_wsgi_wire::encode::{self, Body, RequestBuilder, RowRef, TooLong, patch_row};
use mod_wsgi_wire::frame::{AbortReason, Kind, Level, flags};
use mod_wsgi_wire::{keys, limits};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

fn one_frame(bytes: &[u8]) -> (decode::Whole<'_>, &[u8]) {
    let whole = decode::frame(bytes).unwrap().expect("a whole frame");
    (whole, &bytes[whole.2..])
}

// --- frames ----------------------------------------------------------------------------------------------------------

/// A key by id or by name, and its value.
type Entry = (Result<u8, Vec<u8>>, Vec<u8>);

#[derive(Debug, Clone)]
struct Req {
    entries: Vec<Entry>,
    body: Body,
    mtime: u64,
    row: RowRef,
    no_file: bool,
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=max)
}

fn requests() -> impl Strategy<Value = Req> {
    let key = prop_oneof![3 => (1..keys::NAMES.len() as u8).prop_map(Ok), 1 => bytes(40).prop_map(Err)];
    let body =
        prop_oneof![(0usize..300).prop_map(Body::Inline), any::<u64>().prop_map(Body::Descriptor), Just(Body::Stream)];
    let row = (any::<u32>(), any::<u16>(), any::<u32>(), any::<u32>()).prop_map(|(s, row, g, client)| RowRef {
        slot_generation: s,
        row,
        row_generation: g,
        client,
    });
    (vec((key, bytes(80)), 0..20), body, any::<u64>(), row, any::<bool>())
        .prop_map(|(entries, body, mtime, row, no_file)| Req { entries, body, mtime, row, no_file })
}

impl Req {
    fn inline(&self) -> Vec<u8> {
        match self.body {
            Body::Inline(n) => (0..n).map(|i| i as u8).collect(),
            _ => Vec::new(),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let mut b = RequestBuilder::new(out, self.mtime);
        for (key, value) in &self.entries {
            match key {
                Ok(id) => b.known(*id, value),
                Err(name) => b.named(name, value),
            }
        }
        if self.no_file {
            b.no_file();
        }
        b.finish(self.body).unwrap();
        out.extend(self.inline());
        patch_row(out, start, &self.row);
    }
}

#[derive(Debug, Clone)]
struct Resp {
    status: u16,
    reason: Vec<u8>,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    data: Vec<u8>,
    bits: u8,
}

fn responses() -> impl Strategy<Value = Resp> {
    let bits = prop::sample::select(vec![0, flags::END, flags::END | flags::DONE]);
    (any::<u16>(), bytes(40), vec((bytes(30), bytes(60)), 0..12), bytes(200), bits)
        .prop_map(|(status, reason, fields, data, bits)| Resp { status, reason, fields, data, bits })
}

impl Resp {
    fn write(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let fields = self.fields.iter().map(|(n, v)| (&n[..], &v[..]));
        encode::response(out, self.status, &self.reason, fields, &self.data, self.bits)
    }
}

fn levels() -> impl Strategy<Value = Level> {
    (0u8..9).prop_map(Level::from_u8)
}

/// Any valid frame.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    fn made(f: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        f(&mut out);
        out
    }
    let empty = prop::sample::select(vec![Kind::BodyEnd, Kind::Continue, Kind::End, Kind::Done]);
    prop_oneof![
        (any::<[u8; 16]>(), any::<u32>()).prop_map(|(t, c)| made(|o| encode::hello_server(o, &t, c))),
        (any::<u16>(), any::<u32>()).prop_map(|(s, g)| made(|o| encode::hello_worker(o, s, g))),
        requests().prop_map(|r| made(|o| r.write(o))),
        responses().prop_map(|r| made(|o| r.write(o).unwrap())),
        bytes(100).prop_map(|d| [&encode::data_header(d.len(), 0)[..], &d].concat()),
        bytes(100).prop_map(|d| [&encode::body_header(d.len())[..], &d].concat()),
        (any::<u64>(), any::<u64>()).prop_map(|(at, n)| made(|o| encode::file(o, at, n, flags::END))),
        (levels(), bytes(100)).prop_map(|(l, t)| made(|o| encode::log(o, l, &t))),
        (1u8..7).prop_map(|n| made(|o| encode::abort(o, AbortReason::from_u8(n).unwrap(), 0))),
        empty.prop_map(|k| made(|o| encode::empty(o, k, 0))),
    ]
}

proptest! {
    #[test]
    fn hello_is_read_as_written(token: [u8; 16], client: u32, slot: u16, generation: u32) {
        let mut out = Vec::new();
        encode::hello_server(&mut out, &token, client);
        encode::hello_worker(&mut out, slot, generation);
        let ((h, p, _), rest) = one_frame(&out);
        prop_assert_eq!(h.kind, Kind::Hello);
        let hello = decode::hello_server(p).unwrap();
        prop_assert_eq!((hello.client, hello.token), (client, token));
        prop_assert!(decode::hello_worker(p).is_err(), "the two HELLOs cannot be confused");
        let ((_, p, _), rest) = one_frame(rest);
        let hello = decode::hello_worker(p).unwrap();
        prop_assert_eq!((hello.slot, hello.slot_generation), (slot, generation));
        prop_assert!(decode::hello_server(p).is_err() && rest.is_empty());
    }

    #[test]
    fn request_is_read_as_written(r in requests(), before in bytes(20)) {
        let mut out = before.clone();
        r.write(&mut out);
        let ((h, p, _), rest) = one_frame(&out[before.len()..]);
        prop_assert!(h.kind == Kind::Request && rest.is_empty());
        let got = decode::request(h, p).unwrap();
        prop_assert_eq!((got.row, got.script_mtime, got.no_file), (r.row, r.mtime, r.no_file));
        prop_assert_eq!(got.body, r.inline());
        let (len, fd, stream) = match r.body {
            Body::Inline(n) => (n as u64, false, false),
            Body::Descriptor(n) => (n, true, false),
            Body::Stream => (0, false, true),
        };
        prop_assert_eq!((got.body_len, got.body_fd, got.body_stream), (len, fd, stream));
        let entries: Vec<_> = got
            .entries()
            .map(|(k, v)| (match k { Key::Known(id) => Ok(id), Key::Named(n) => Err(n.to_vec()) }, v.to_vec()))
            .collect();
        for (key, _) in &r.entries {
            if let Ok(id) = key {
                let last = r.entries.iter().rev().find(|(k, _)| k == key).map(|(_, v)| &v[..]);
                prop_assert_eq!(got.get(*id), last);
            }
        }
        prop_assert_eq!(entries, r.entries);
    }

    #[test]
    fn a_value_in_pieces_is_the_value(pieces in prop::collection::vec(bytes(20), 0..5)) {
        let parts: Vec<&[u8]> = pieces.iter().map(|p| &p[..]).collect();
        let (mut split, mut whole) = (Vec::new(), Vec::new());
        let mut b = RequestBuilder::new(&mut split, 0);
        b.known_parts(keys::MW_REQUEST_ID, &parts);
        b.finish(Body::Inline(0)).unwrap();
        let mut b = RequestBuilder::new(&mut whole, 0);
        b.known(keys::MW_REQUEST_ID, &pieces.concat());
        b.finish(Body::Inline(0)).unwrap();
        prop_assert_eq!(split, whole);
    }

    /// What a worker keeps of one request holds for the next: equal bytes are equal entries.
    #[test]
    fn the_beginning_of_an_environ_is_its_constant_entries(
        first in vec((0..keys::CONSTANT.len(), bytes(80)), 0..8),
        rest in vec((keys::HTTP_HOST..keys::HTTP_VIA, bytes(80)), 0..4),
        named in any::<bool>(),
    ) {
        let mut out = Vec::new();
        let mut b = RequestBuilder::new(&mut out, 0);
        first.iter().for_each(|(i, value)| b.known(keys::CONSTANT[*i], value));
        if named {
            // Spelt out it is an entry like any other.
            b.named(b"SERVER_SOFTWARE", b"x");
        }
        rest.iter().for_each(|(id, value)| b.known(*id, value));
        b.finish(Body::Inline(0)).unwrap();
        let ((h, p, _), _) = one_frame(&out);
        let got = decode::request(h, p).unwrap();
        let kept: Vec<_> = decode::entries(got.beginning()).collect();
        let sent: Vec<_> = first.iter().map(|(i, value)| (Key::Known(keys::CONSTANT[*i]), &value[..])).collect();
        prop_assert_eq!(&kept, &sent);
        let all: Vec<_> = kept.into_iter().chain(got.entries_from(got.beginning().len())).collect();
        prop_assert_eq!(all, got.entries().collect::<Vec<_>>());
        prop_assert!(first.iter().all(|(i, _)| keys::is_constant(keys::NAMES[keys::CONSTANT[*i] as usize].as_bytes())));
    }

    #[test]
    fn response_is_read_as_written(r in responses(), ms in 0u64..40_000_000) {
        let mut out = Vec::new();
        r.write(&mut out).unwrap();
        encode::patch_ran(&mut out, 0, Duration::from_millis(ms));
        let ((h, p, _), rest) = one_frame(&out);
        prop_assert_eq!((h.kind, h.flags, rest.len()), (Kind::Response, r.bits, 0));
        let got = decode::response(p).unwrap();
        prop_assert_eq!((got.status, got.reason, got.data), (r.status, &r.reason[..], &r.data[..]));
        let fields: Vec<_> = got.headers().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
        prop_assert_eq!(fields, r.fields);
        // exact up to half a minute, then by the second, and no more than nine hours
        let told = if ms < 32_768 { ms } else { (ms / 1000).min(32_767) * 1000 };
        prop_assert_eq!(got.ran, Duration::from_millis(told));
    }

    #[test]
    fn small_frames_are_read_as_written(
        at in 0u64..i64::MAX as u64, len: u64, level in levels(), text in bytes(300), reason in 1u8..7, bits in 0u8..3,
    ) {
        let len = len.min(i64::MAX as u64 - at);
        let reason = AbortReason::from_u8(reason).unwrap();
        let bits = [0, flags::END, flags::END | flags::DONE][bits as usize];
        let mut out = Vec::new();
        encode::file(&mut out, at, len, bits);
        encode::log(&mut out, level, &text);
        encode::abort(&mut out, reason, bits & flags::DONE);
        encode::empty(&mut out, Kind::End, bits & flags::DONE);
        let ((h, p, _), rest) = one_frame(&out);
        prop_assert_eq!((h.kind, h.flags, decode::file(p).unwrap()), (Kind::File, bits, (at, len)));
        let ((h, p, _), rest) = one_frame(rest);
        prop_assert_eq!((h.kind, decode::log(p).unwrap()), (Kind::Log, (level, &text[..])));
        let ((h, p, _), rest) = one_frame(rest);
        prop_assert_eq!((h.kind, decode::abort(p).unwrap(), h.is_end()), (Kind::Abort, reason, false));
        let ((h, _, _), rest) = one_frame(rest);
        prop_assert!(h.is_end() && h.is_done() == (bits & flags::DONE != 0) && rest.is_empty());
    }

    #[test]
    fn frames_of_a_lane_are_read_as_written(row: u16, generation: u32, a in bytes(300), b in bytes(300), f in frames()) {
        let mut out = Vec::new();
        encode::reply(&mut out, row, generation, &[&a, &b]);
        encode::adopt(&mut out, row, generation);
        let ((h, p, _), rest) = one_frame(&out);
        let of = decode::of_row(p).unwrap();
        prop_assert_eq!((h.kind, of.row, of.row_generation, of.frames), (Kind::Reply, row, generation, &[a, b].concat()[..]));
        let ((h, p, _), rest) = one_frame(rest);
        let of = decode::of_row(p).unwrap();
        prop_assert_eq!((h.kind, of.row, of.row_generation, of.frames), (Kind::Adopt, row, generation, &[][..]));
        prop_assert!(rest.is_empty());
        // a REQUEST becomes one for a lane and back; one whose body does not ride is refused there
        if f[4] == Kind::Request as u8 {
            let mut lane = f.clone();
            encode::for_lane(&mut lane, 0, true);
            match decode::frame(&lane) {
                Ok(Some((h, p, _))) => prop_assert!(decode::request(h, p).unwrap().lane),
                other => {
                    prop_assert!(f[5] & (flags::BODY_FD | flags::BODY_STREAM) != 0, "{:?}", other);
                    prop_assert_eq!(other, Err(decode::Error::Flags { at: 5 }));
                }
            }
            encode::for_lane(&mut lane, 0, false);
            prop_assert_eq!(lane, f);
        }
    }

    /// However the bytes arrive: a cut frame is never a frame and never an error.
    #[test]
    fn a_cut_frame_waits_for_more(f in frames(), cut in any::<prop::sample::Index>()) {
        let n = cut.index(f.len());
        prop_assert!(decode::frame(&f[..n]).unwrap().is_none());
        targets::frame::run(&f[..n]);
    }

    #[test]
    fn a_stream_of_frames_is_cut_where_it_was_joined(all in vec(frames(), 0..6)) {
        let joined = all.concat();
        let mut rest = &joined[..];
        for f in &all {
            let ((_, p, total), next) = one_frame(rest);
            prop_assert_eq!((p, total), (&f[limits::HEADER..], f.len()));
            rest = next;
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn a_changed_byte_is_handled(f in frames(), at in any::<prop::sample::Index>(), to: u8) {
        let mut f = f;
        let n = at.index(f.len());
        f[n] = to;
        targets::frame::run(&f);
    }

    #[test]
    fn a_payload_cut_or_lengthened_is_handled(f in frames(), cut in any::<prop::sample::Index>(), more in bytes(8)) {
        let p = &f[limits::HEADER..];
        let longer = [p, &more].concat();
        for p in [&p[..cut.index(p.len() + 1)], &longer] {
            targets::hello_server::run(p);
            targets::hello_worker::run(p);
            targets::response::run(p);
            for first in 0..3 {
                let selected = [&[first], p].concat();
                targets::request::run(&selected);
                targets::file_log_abort::run(&selected);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_handled(b in bytes(400)) {
        targets::frame::run(&b);
        targets::hello_server::run(&b);
        targets::hello_worker::run(&b);
        targets::request::run(&b);
        targets::response::run(&b);
        targets::file_log_abort::run(&b);
        targets::control_to_supervisor::run(&b);
        targets::control_from_worker::run(&b);
    }

    /// Every header that the decoder accepts is within the limit of its kind and has flags that fit.
    #[test]
    fn headers_are_judged_alone(len: u32, kind: u8, bits: u8, zero in 0u16..2) {
        let z = zero.to_le_bytes();
        let n = len.to_le_bytes();
        let buf = [n[0], n[1], n[2], n[3], kind, bits, z[0], z[1]];
        match decode::header(&buf) {
            Ok(h) => {
                let h = h.unwrap();
                prop_assert!(h.len == len as usize && h.len <= h.kind.max_payload() && zero == 0);
                prop_assert_eq!((Kind::from_u8(kind), h.flags), (Some(h.kind), bits));
                prop_assert!(bits <= 8 && (bits & flags::DONE == 0 || h.is_done()));
            }
            Err(Error::Kind { at }) => prop_assert!(at == 4 && Kind::from_u8(kind).is_none()),
            Err(Error::Flags { at }) => prop_assert!(at == 5 && bits != 0),
            Err(Error::Value { at }) => prop_assert!(at == 6 && zero != 0),
            Err(Error::TooLong { len: n }) => {
                prop_assert!(n == len as usize && n > Kind::from_u8(kind).unwrap().max_payload())
            }
            Err(e) => prop_assert!(false, "{e}"),
        }
    }
}

// --- limits ----------------------------------------------------------------------------------------------------------

/// A REQUEST with one entry per value, or what was too long in it.
fn request_of(values: &[&[u8]], key: usize, body: Body) -> Result<Vec<u8>, TooLong> {
    let mut out = Vec::new();
    let mut b = RequestBuilder::new(&mut out, 0);
    for v in values {
        b.named(&vec![b'K'; key], v);
    }
    b.finish(body)?;
    if let Body::Inline(n) = body {
        out.resize(out.len() + n, b'b');
    }
    Ok(out)
}

fn accepted(frame: &[u8]) -> bool {
    let ((h, p, _), _) = one_frame(frame);
    decode::request(h, p).is_ok()
}

#[test]
fn request_limits_hold_to_the_byte() {
    let value = vec![b'v'; limits::MAX_ENVIRON - 1 - 2 - 1 - 4];
    assert!(accepted(&request_of(&[&value], 1, Body::Inline(limits::MAX_INLINE_BODY)).unwrap()));
    assert_eq!(request_of(&[&value], 2, Body::Stream).unwrap_err().limit, limits::MAX_ENVIRON);
    assert_eq!(request_of(&[], 0, Body::Inline(limits::MAX_INLINE_BODY + 1)).unwrap_err().what, "inline body");
    assert!(accepted(&request_of(&[b""], limits::MAX_KEY, Body::Stream).unwrap()));
    assert_eq!(request_of(&[b""], limits::MAX_KEY + 1, Body::Stream).unwrap_err().limit, limits::MAX_KEY);
    let many = vec![&b""[..]; limits::MAX_ENTRIES + 1];
    assert!(accepted(&request_of(&many[1..], 1, Body::Stream).unwrap()));
    assert_eq!(request_of(&many, 1, Body::Stream).unwrap_err().what, "environ entries");
    let huge = vec![0; limits::MAX_ENVIRON + 1];
    assert_eq!(request_of(&[&huge], 1, Body::Stream).unwrap_err().what, "environ value");
    // What no encoder of ours writes is refused by the decoder itself.
    let mut frame = request_of(&many[1..], 1, Body::Stream).unwrap();
    frame[limits::HEADER + 6..limits::HEADER + 8].copy_from_slice(&(limits::MAX_ENTRIES as u16 + 1).to_le_bytes());
    let ((h, p, _), _) = one_frame(&frame);
    assert_eq!(decode::request(h, p).err(), Some(Error::Value { at: 32 }));
}

fn response_of(reason: usize, fields: &[(usize, usize)], data: usize) -> Result<Vec<u8>, TooLong> {
    let fields = fields.iter().map(|(n, v)| (vec![b'N'; *n], vec![b'v'; *v])).collect();
    let mut out = vec![7];
    let r = Resp { status: 200, reason: vec![b'r'; reason], fields, data: vec![b'd'; data], bits: 0 };
    let result = r.write(&mut out);
    assert_eq!(out[0], 7);
    if result.is_err() {
        assert_eq!(out.len(), 1, "a refused response leaves nothing behind");
    }
    result.map(|()| out[1..].to_vec())
}

#[test]
fn response_limits_hold_to_the_byte() {
    let head = limits::MAX_RESPONSE_HEAD - 12;
    let full = response_of(limits::MAX_REASON, &[(10, head - 512 - 16)], limits::MAX_DATA).unwrap();
    let ((_, p, _), _) = one_frame(&full);
    assert!(decode::response(p).is_ok());
    assert_eq!(response_of(0, &[(10, head - 16 + 1)], 0).unwrap_err().what, "response head");
    assert_eq!(response_of(513, &[], 0).unwrap_err().what, "reason phrase");
    assert_eq!(response_of(0, &[(65_536, 0)], 0).unwrap_err().what, "response header");
    assert_eq!(response_of(0, &vec![(1, 1); 1025], 0).unwrap_err().what, "response headers");
    assert_eq!(response_of(0, &[], limits::MAX_DATA + 1).unwrap_err().what, "response data");
    assert!(decode::response(&response_of(0, &vec![(1, 1); 1024], 0).unwrap()[limits::HEADER..]).is_ok());
    // A head over its limit with the payload within its own.
    let long = vec![0; head + 1];
    let mut p = [&[200, 0, 1, 0, 0, 0, 0, 0][..], &(head as u32 + 1).to_le_bytes(), &long].concat();
    p[14..18].copy_from_slice(&(head as u32 - 5).to_le_bytes());
    assert_eq!(decode::response(&p).err(), Some(Error::Value { at: 8 }));
}

#[test]
fn log_text_is_cut() {
    let mut out = Vec::new();
    encode::log(&mut out, Level::Info, &vec![b'x'; limits::MAX_LOG + 100]);
    let ((_, p, _), rest) = one_frame(&out);
    assert!(rest.is_empty() && decode::log(p).unwrap().1.len() == limits::MAX_LOG);
}

// --- control ---------------------------------------------------------------------------------------------------------

/// Seconds with milliseconds: such numbers survive JSON exactly.
fn seconds() -> impl Strategy<Value = f64> {
    (0u32..31_536_000).prop_map(|n| n as f64 / 1000.0)
}

fn secrets() -> impl Strategy<Value = Secret> {
    any::<[u8; 16]>().prop_map(|b| Secret::from_bytes(&b))
}

prop_compose! {
    fn recycles()(
        counts in vec(0u64..1 << 53, 5), times in vec(seconds(), 4), health_check_path in vec("/.{0,9}", 0..3), surge: u16,
    ) -> Recycle {
        Recycle {
            maximum_requests: counts[0], maximum_requests_jitter: counts[1], health_check_path,
            restart_interval: times[0], restart_interval_jitter: times[1], inactivity_timeout: times[2],
            cpu_time_limit: times[3], max_rss: counts[2], memory_limit: counts[3], virtual_memory_limit: counts[4], surge,
        }
    }
}

prop_compose! {
    fn groups()(
        texts in vec(".{0,12}", 9), numbers in any::<[u16; 3]>(), ids in any::<[u32; 3]>(), times in vec(seconds(), 4),
        bits in any::<[bool; 2]>(), groups in vec(any::<u32>(), 0..4), python_path in vec(".{0,9}", 0..3),
        umask in proptest::option::of(0u32..0o1000), env in btree_map(".{1,8}", ".{0,20}", 0..5), recycle in recycles(),
        deadlines in vec(seconds(), 4),
    ) -> Group {
        let mut t = texts.into_iter();
        let mut text = || t.next().unwrap();
        Group {
            name: text(), processes: numbers[0], threads: numbers[1], queue_limit: ids[2], multiprocess: bits[0],
            uid: ids[0], gid: ids[1], groups, user_name: text(), user_home: text(), python: text(), python_path,
            home: text(), umask, lang: text(), locale: text(), display_name: text(), env, no_new_privileges: bits[1],
            startup_timeout: times[0], graceful_timeout: times[1], shutdown_timeout: times[2],
            application_idle: times[3], maximum_application_groups: numbers[2], recycle,
            deadlines: Deadlines {
                request: deadlines[0], interrupt: deadlines[1], deadlock: deadlines[2], eviction: deadlines[3],
            },
            strict_reloading: bits[0], minimum_processes: numbers[0] / 2,
            reload_on_changes: bits[1], reload_extra_files: Vec::new(),
        }
    }
}

prop_compose! {
    fn preloads()(t in vec(".{0,20}", 4)) -> Preload {
        Preload { group: t[0].clone(), application: t[1].clone(), script: t[2].clone(), callable: t[3].clone() }
    }
}

prop_compose! {
    fn configs()(
        secret in secrets(), ids in any::<[u32; 2]>(), roll_all: bool, groups in vec(groups(), 0..3),
        preload in vec(preloads(), 0..3), log_level in levels(),
    ) -> Config {
        Config { secret, server_uid: ids[0], server_gid: ids[1], roll_all, groups, preload, log_level }
    }
}

fn to_supervisor() -> impl Strategy<Value = ToSupervisor> {
    prop_oneof![
        (".{0,9}", configs(), any::<bool>()).prop_map(|(build, c, moves)| ToSupervisor::Configure {
            build,
            config: Box::new(c),
            moves
        }),
        Just(ToSupervisor::Reloading),
        Just(ToSupervisor::Reopened),
        Just(ToSupervisor::Stop),
        (".{0,9}", any::<u16>())
            .prop_map(|(group, processes)| ToSupervisor::Command { command: Command::Scale { group, processes } }),
        any::<bool>().prop_map(|ready| ToSupervisor::Command { command: Command::Readiness { ready } }),
        (secrets(), any::<Option<u32>>()).prop_map(|(secret, client)| ToSupervisor::Register { secret, client }),
        (secrets(), ".{0,20}", ".{0,20}").prop_map(|(secret, group, application)| ToSupervisor::Table {
            secret,
            group,
            application
        }),
        Just(ToSupervisor::Status),
    ]
}

fn from_supervisor() -> impl Strategy<Value = FromSupervisor> {
    use RefusedReason::*;
    let reason = prop::sample::select(vec![Secret, Group, ApplicationGroups, Protocol, Internal]);
    prop_oneof![
        Just(FromSupervisor::Accepted),
        Just(FromSupervisor::Stopped),
        any::<u32>().prop_map(|client| FromSupervisor::Registered { client }),
        (secrets(), any::<[u16; 3]>()).prop_map(|(token, n)| FromSupervisor::Table {
            token,
            slots: n[0],
            threads: n[1],
            rows: n[2]
        }),
        (reason, ".{0,30}").prop_map(|(reason, text)| FromSupervisor::Refused { reason, text }),
        vec(".{0,9}", 0..4).prop_map(|v| FromSupervisor::Status { status: serde_json::json!({ "groups": v }) }),
    ]
}

fn from_worker() -> impl Strategy<Value = FromWorker> {
    let error = proptest::option::of(".{0,60}");
    prop_oneof![
        ".{0,12}".prop_map(|python| FromWorker::Ready { python }),
        (".{0,20}", ".{0,12}", any::<u64>(), error).prop_map(|(script, callable, mtime, error)| FromWorker::Loaded {
            script,
            callable,
            mtime,
            error
        }),
        (".{0,20}", any::<u64>()).prop_map(|(script, mtime)| FromWorker::Touched { script, mtime }),
        vec((".{0,20}", any::<u64>()), 0..4).prop_map(|files| FromWorker::Files { files }),
        Just(FromWorker::Spent),
        Just(FromWorker::Deadlocked),
        Just(FromWorker::Evict),
        (any::<u16>(), any::<u32>()).prop_map(|(row, row_generation)| FromWorker::Stuck {
            reason: StuckReason::Request,
            row,
            row_generation
        }),
        (levels(), ".{0,60}").prop_map(|(level, text)| FromWorker::Log { level, text }),
    ]
}

/// Read as written (the messages are compared by what they encode to), and never read from fewer bytes.
fn survives<T: Serialize + DeserializeOwned>(message: &T, cut: &prop::sample::Index) {
    let bytes = control::encode(message).unwrap();
    let followed = [&bytes[..], b"rest"].concat();
    let (again, used) = control::decode::<T>(&followed).unwrap().expect("a whole message");
    assert_eq!(used, bytes.len());
    assert_eq!(control::encode(&again).unwrap(), bytes);
    assert!(control::decode::<T>(&bytes[..cut.index(bytes.len())]).unwrap().is_none());
}

proptest! {
    #[test]
    fn control_messages_are_read_as_written(
        a in to_supervisor(), b in from_supervisor(), c in from_worker(), timeout in seconds(),
        cut in any::<prop::sample::Index>(),
    ) {
        survives(&a, &cut);
        survives(&b, &cut);
        survives(&c, &cut);
        survives(&ToWorker::Exit { timeout, reason: "stop".into() }, &cut);
    }

    #[test]
    fn a_configuration_is_equal_after_its_journey(config in configs()) {
        let bytes = control::encode(&config).unwrap();
        let (again, _) = control::decode::<Config>(&bytes).unwrap().unwrap();
        prop_assert!(again == config);
    }

    #[test]
    fn a_changed_control_message_is_handled(m in to_supervisor(), at in any::<prop::sample::Index>(), to: u8) {
        let mut bytes = control::encode(&m).unwrap();
        let n = at.index(bytes.len());
        bytes[n] = to;
        targets::control_to_supervisor::run(&bytes);
    }

    #[test]
    fn secrets_are_kept_and_not_shown(b: [u8; 16], other: [u8; 16]) {
        let s = Secret::from_bytes(&b);
        prop_assert_eq!(s.bytes(), Some(b));
        prop_assert_eq!(s.matches(&Secret::from_bytes(&other)), b == other);
        prop_assert_eq!(format!("{s:?}"), "Secret(..)");
        prop_assert!(!s.matches(&Secret(s.0[1..].to_owned())) && Secret(s.0[1..].to_owned()).bytes().is_none());
    }
}

#[test]
fn an_oversized_control_message_is_refused_before_it_is_read() {
    let long = FromWorker::Ready { python: "x".repeat(limits::MAX_CONTROL) };
    assert!(matches!(control::encode(&long), Err(control::Error::TooLong { .. })));
    let announced = (limits::MAX_CONTROL as u32 + 1).to_le_bytes();
    assert!(matches!(control::decode::<FromWorker>(&announced), Err(control::Error::TooLong { .. })));
    let most = (limits::MAX_CONTROL as u32).to_le_bytes();
    assert!(control::decode::<FromWorker>(&most).unwrap().is_none());
}
