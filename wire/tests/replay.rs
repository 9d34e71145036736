//! Replays the fuzz corpus on stable Rust, and makes its seeds: `MWR_WRITE_CORPUS=1 cargo test -p mod-wsgi-wire --test
//! replay` writes them.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use mod_wsgi_wire::control::{
    self, Config, Deadlines, FromSupervisor, FromWorker, Group, Preload, Recycle, RefusedReason, Secret,
};
use mod_wsgi_wire::control::{ToSupervisor, ToWorker};
use mod_wsgi_wire::encode::{self, Body, RequestBuilder, RowRef, patch_row};
use mod_wsgi_wire::frame::{AbortReason, Kind, Level, flags};
use mod_wsgi_wire::plan::{ExecPlan, WorkerFds, WorkerPlan};
use mod_wsgi_wire::{keys, limits};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Target = (&'static str, fn(&[u8]));

const TARGETS: &[Target] = &[
    ("frame", targets::frame::run),
    ("hello_server", targets::hello_server::run),
    ("hello_worker", targets::hello_worker::run),
    ("request", targets::request::run),
    ("response", targets::response::run),
    ("file_log_abort", targets::file_log_abort::run),
    ("control_to_supervisor", targets::control_to_supervisor::run),
    ("control_from_worker", targets::control_from_worker::run),
];

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

#[test]
fn every_file_of_the_corpus_is_handled() {
    let mut files = 0;
    for (name, run) in TARGETS {
        let mut of_target = 0;
        for entry in std::fs::read_dir(corpus(name)).unwrap() {
            let path = entry.unwrap().path();
            let data = std::fs::read(&path).unwrap();
            assert!(data.len() <= 8192, "{} is too large", path.display());
            if std::panic::catch_unwind(|| run(&data)).is_err() {
                panic!("{} fails", path.display());
            }
            of_target += 1;
        }
        assert!(of_target > 0, "no corpus for {name}");
        files += of_target;
    }
    assert!(files <= 200, "{files} files");
}

/// Every file also goes to every other target, and cut short, and with single bytes changed.
#[test]
fn the_corpus_cut_and_changed_is_handled() {
    for (name, run) in TARGETS {
        for entry in std::fs::read_dir(corpus(name)).unwrap() {
            let data = std::fs::read(entry.unwrap().path()).unwrap();
            for (_, other) in TARGETS {
                other(&data);
            }
            for n in 0..data.len().min(256) {
                run(&data[..n]);
            }
            let mut changed = data.clone();
            for i in 0..data.len().min(128) {
                for bits in [0x01, 0x80, 0xff] {
                    changed[i] = data[i] ^ bits;
                    run(&changed);
                }
                changed[i] = data[i];
            }
        }
    }
}

#[test]
fn the_seeds_are_in_the_corpus() {
    let write = std::env::var_os("MWR_WRITE_CORPUS").is_some();
    for (target, name, data) in seeds() {
        let path = corpus(target).join(name);
        if write {
            std::fs::create_dir_all(corpus(target)).unwrap();
            std::fs::write(&path, &data).unwrap();
        }
        let there = std::fs::read(&path).unwrap_or_default();
        assert!(there == data, "{} differs: run this test with MWR_WRITE_CORPUS=1", path.display());
    }
}

// --- seeds -----------------------------------------------------------------------------------------------------------

type Seed = (&'static str, &'static str, Vec<u8>);

fn made(f: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    f(&mut out);
    out
}

fn payload(frame: &[u8]) -> Vec<u8> {
    frame[limits::HEADER..].to_vec()
}

fn with(first: u8, rest: &[u8]) -> Vec<u8> {
    [&[first], rest].concat()
}

fn patched(mut data: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    data[at..at + bytes.len()].copy_from_slice(bytes);
    data
}

fn request(body: Body, inline: &[u8], entries: &[(&str, &[u8])]) -> Vec<u8> {
    made(|out| {
        let mut b = RequestBuilder::new(out, 1_700_000_000_000_000);
        for (k, v) in entries {
            match keys::id_of(k) {
                0 => b.named(k.as_bytes(), v),
                id => b.known(id, v),
            }
        }
        b.finish(body).unwrap();
        out.extend_from_slice(inline);
        patch_row(out, 0, &RowRef { slot_generation: 3, row: 2, row_generation: 77, client: 5 });
    })
}

fn response(status: u16, reason: &str, fields: &[(&str, &str)], data: &[u8], bits: u8) -> Vec<u8> {
    let fields: Vec<_> = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
    made(|out| encode::response(out, status, reason.as_bytes(), fields.into_iter(), data, bits).unwrap())
}

fn hellos() -> Vec<Seed> {
    let server = made(|o| encode::hello_server(o, b"0123456789abcdef", 9));
    let worker = made(|o| encode::hello_worker(o, 4, 11));
    vec![
        ("frame", "hello-server", server.clone()),
        ("frame", "hello-worker", worker.clone()),
        ("hello_server", "valid", payload(&server)),
        ("hello_server", "version-1", patched(payload(&server), 0, &[1])),
        ("hello_server", "no-token", payload(&server)[..8].to_vec()),
        ("hello_server", "token-short-by-one", payload(&server)[..23].to_vec()),
        ("hello_server", "one-byte-too-many", [payload(&server), vec![0]].concat()),
        ("hello_server", "reserved-set", patched(payload(&server), 2, &[1, 1])),
        ("hello_server", "empty", Vec::new()),
        ("hello_worker", "valid", payload(&worker)),
        ("hello_worker", "version-0", patched(payload(&worker), 0, &[0])),
        ("hello_worker", "version-65535", patched(payload(&worker), 0, &[255, 255])),
        ("hello_worker", "short", payload(&worker)[..7].to_vec()),
        ("hello_worker", "long", [payload(&worker), vec![0]].concat()),
    ]
}

fn requests() -> Vec<Seed> {
    let entries: &[(&str, &[u8])] = &[
        ("REQUEST_METHOD", b"POST"),
        ("PATH_INFO", b"/caf\xe9"),
        ("HTTP_HOST", b"example.org"),
        ("HTTP_X_ODD", b""),
        ("wsgi.url_scheme", b"http"),
    ];
    let inline = request(Body::Inline(5), b"hello", entries);
    let fd = request(Body::Descriptor(1 << 20), b"", entries);
    let stream = request(Body::Stream, b"", entries);
    let p = payload(&inline);
    let environ_len = u32::from_le_bytes(p[32..36].try_into().unwrap());
    let s = |name, data: Vec<u8>| ("request", name, with(0, &data));
    vec![
        ("frame", "request-inline", inline.clone()),
        ("frame", "request-descriptor", fd.clone()),
        ("frame", "request-stream-body", {
            let piece = [&encode::body_header(3)[..], b"abc"].concat();
            [stream.clone(), piece, made(|o| encode::empty(o, Kind::BodyEnd, 0))].concat()
        }),
        ("frame", "request-both-body-flags", patched(inline.clone(), 5, &[flags::BODY_FD | flags::BODY_STREAM])),
        ("frame", "request-lane", patched(inline.clone(), 5, &[flags::LANE])),
        ("frame", "request-lane-with-descriptor", patched(fd.clone(), 5, &[flags::BODY_FD | flags::LANE])),
        ("frame", "request-over-limit", patched(inline.clone(), 0, &[255, 255, 255, 127])),
        ("request", "descriptor", with(1, &payload(&fd))),
        ("request", "stream", with(2, &payload(&stream))),
        ("request", "descriptor-with-inline-bytes", with(1, &p)),
        ("request", "stream-with-inline-bytes", with(2, &p)),
        s("inline", p.clone()),
        s("no-entries", payload(&request(Body::Inline(0), b"", &[]))),
        s("same-key-twice", payload(&request(Body::Inline(0), b"", &[("HTTPS", b"on"), ("HTTPS", b"off")]))),
        s("empty-named-key", payload(&request(Body::Inline(0), b"", &[("", b"x")]))),
        s("fixed-part-cut", p[..39].to_vec()),
        s("environ-cut", p[..p.len() - 20].to_vec()),
        s("one-entry-too-few-announced", patched(p.clone(), 6, &[4])),
        s("one-entry-too-many-announced", patched(p.clone(), 6, &[6])),
        s("entries-65535", patched(p.clone(), 6, &[255, 255])),
        s("environ-length-max", patched(p.clone(), 32, &u32::MAX.to_le_bytes())),
        s("environ-length-over-limit", patched(p.clone(), 32, &(limits::MAX_ENVIRON as u32 + 1).to_le_bytes())),
        s("environ-length-one-less", patched(p.clone(), 32, &(environ_len - 1).to_le_bytes())),
        s("environ-swallows-body", patched(p.clone(), 32, &(environ_len + 5).to_le_bytes())),
        s("body-length-differs", patched(p.clone(), 24, &6u64.to_le_bytes())),
        s("body-length-max", patched(p.clone(), 24, &u64::MAX.to_le_bytes())),
        s("key-id-254", patched(p.clone(), 40, &[254])),
        s("key-id-255", patched(p.clone(), 40, &[255])),
        s("value-length-max", patched(p.clone(), 41, &u32::MAX.to_le_bytes())),
        s("named-key-over-limit", [&p[..40], &[0, 1, 32], &[0; 64][..]].concat()),
        s("row-and-client-max", patched(p.clone(), 0, &[255; 6])),
        s("reserved-set", patched(p.clone(), 36, &[1, 2, 3, 4])),
    ]
}

fn responses() -> Vec<Seed> {
    let fields = [("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")];
    let whole = response(200, "OK", &fields, b"Hello, world\n", flags::END | flags::DONE);
    let p = payload(&whole);
    let s = |name, data| ("response", name, data);
    let data = |n: usize, bits| [&encode::data_header(n, bits)[..], &vec![b'x'; n]].concat();
    let file = made(|o| encode::file(o, 4096, 1 << 30, flags::END));
    let log = made(|o| encode::log(o, Level::Error, "Traceback …\n".as_bytes()));
    let abort = made(|o| encode::abort(o, AbortReason::Application, flags::DONE));
    let small = |n, frame: &[u8]| with(n, &payload(frame));
    vec![
        ("frame", "response-whole", whole.clone()),
        ("frame", "response-in-pieces", {
            let marks = made(|o| {
                encode::empty(o, Kind::End, 0);
                encode::empty(o, Kind::Done, 0);
            });
            [response(200, "OK", &fields, b"", 0), data(5, 0), log.clone(), data(0, 0), marks].concat()
        }),
        ("frame", "response-file-then-done", {
            let done = made(|o| encode::empty(o, Kind::Done, 0));
            [response(200, "OK", &fields, b"", 0), file.clone(), done].concat()
        }),
        ("frame", "reply", made(|o| encode::reply(o, 7, 9, &[&whole]))),
        ("frame", "reply-short", patched(made(|o| encode::reply(o, 7, 9, &[])), 0, &[5])),
        ("frame", "reply-reserved-set", patched(made(|o| encode::reply(o, 7, 9, &[&whole])), limits::HEADER + 2, &[1])),
        ("frame", "adopt", made(|o| encode::adopt(o, 65_535, u32::MAX))),
        ("frame", "abort", abort.clone()),
        ("frame", "continue", made(|o| encode::empty(o, Kind::Continue, 0))),
        ("frame", "done-without-end", patched(whole.clone(), 5, &[flags::DONE])),
        ("frame", "end-and-done-in-one", made(|o| encode::empty(o, Kind::End, flags::DONE))),
        ("frame", "end-with-payload", patched(made(|o| encode::empty(o, Kind::End, 0)), 0, &[1])),
        ("frame", "kind-0", vec![0; 8]),
        ("frame", "kind-13", patched(vec![0; 8], 4, &[13])),
        ("frame", "zero-bytes-not-zero", patched(data(1, 0), 6, &[1])),
        ("frame", "data-of-one-byte-cut", data(1, 0)[..8].to_vec()),
        ("frame", "data-over-limit", patched(data(0, 0), 0, &(limits::MAX_DATA as u32 + 1).to_le_bytes())),
        ("frame", "header-cut", whole[..7].to_vec()),
        ("frame", "data-with-unknown-flag", patched(data(1, 0), 5, &[16])),
        s("whole", p.clone()),
        s("no-fields", payload(&response(204, "", &[], b"", 0))),
        s("empty-name-and-value", payload(&response(200, "OK", &[("", "")], b"", 0))),
        s("status-0", patched(p.clone(), 0, &[0, 0])),
        s("fields-1025", patched(p.clone(), 2, &1025u16.to_le_bytes())),
        s("one-field-too-many-announced", patched(p.clone(), 2, &[4])),
        s("one-field-too-few-announced", patched(p.clone(), 2, &[2])),
        s("reason-over-limit", patched(p.clone(), 4, &513u16.to_le_bytes())),
        s("reason-longer-than-head", patched(p.clone(), 4, &500u16.to_le_bytes())),
        s("head-length-max", patched(p.clone(), 8, &u32::MAX.to_le_bytes())),
        s("head-swallows-data", patched(p.clone(), 8, &((p.len() - 12) as u32).to_le_bytes())),
        s("head-cut", p[..30].to_vec()),
        s("fixed-part-cut", p[..11].to_vec()),
        s("value-length-max", patched(p.clone(), 16, &u32::MAX.to_le_bytes())),
        s("reserved-set", patched(p, 6, &[9, 9])),
        ("answer", "whole", [&[0; 3], &whole[..]].concat()),
        ("answer", "whole-to-head", [&[1, 4, 4], &whole[..]].concat()),
        ("answer", "in-pieces", {
            let marks = made(|o| {
                encode::empty(o, Kind::End, 0);
                encode::log(o, Level::Info, b"after");
                encode::empty(o, Kind::Done, 0);
            });
            let begun = response(200, "OK", &[("Content-Length", "9")], b"abc", 0);
            [vec![0, 6, 9], log.clone(), begun, data(5, 0), log.clone(), data(3, 0), file.clone(), marks].concat()
        }),
        ("answer", "asks-then-aborts", {
            let asks = made(|o| encode::empty(o, Kind::Continue, 0));
            [vec![0, 0, 1], asks, abort.clone()].concat()
        }),
        ("answer", "two-heads", [vec![0, 30, 2], response(200, "OK", &fields, b"", 0), whole.clone()].concat()),
        ("answer", "split-field", {
            [vec![0, 0, 0], response(200, "OK", &[("X", "a\r\nSet-Cookie: b")], b"", 0)].concat()
        }),
        ("file_log_abort", "file", small(0, &file)),
        ("file_log_abort", "file-empty", small(0, &made(|o| encode::file(o, 0, 0, 0)))),
        ("file_log_abort", "file-to-the-last-byte", small(0, &made(|o| encode::file(o, 1, i64::MAX as u64 - 1, 0)))),
        ("file_log_abort", "file-over-the-end", small(0, &made(|o| encode::file(o, 1, i64::MAX as u64, 0)))),
        ("file_log_abort", "file-sum-overflows", small(0, &made(|o| encode::file(o, u64::MAX, u64::MAX, 0)))),
        ("file_log_abort", "file-short", small(0, &file)[..16].to_vec()),
        ("file_log_abort", "file-long", [small(0, &file), vec![0]].concat()),
        ("file_log_abort", "log", small(1, &log)),
        ("file_log_abort", "log-level-0", patched(small(1, &log), 1, &[0])),
        ("file_log_abort", "log-level-255", patched(small(1, &log), 1, &[255])),
        ("file_log_abort", "log-without-level", vec![1]),
        ("file_log_abort", "log-controls", with(1, b"\x03\x1b[31m\r\nfaked line\0")),
        ("file_log_abort", "abort", small(2, &abort)),
        ("file_log_abort", "abort-not-run", small(2, &made(|o| encode::abort(o, AbortReason::NotRun, 0)))),
        ("file_log_abort", "abort-0", vec![2, 0]),
        ("file_log_abort", "abort-7", vec![2, 7]),
        ("file_log_abort", "abort-long", vec![2, 1, 1]),
        ("file_log_abort", "abort-empty", vec![2]),
    ]
}

fn group() -> Group {
    Group {
        name: "blog".into(),
        processes: 2,
        threads: 15,
        queue_limit: 100,
        multiprocess: true,
        uid: 33,
        gid: 33,
        groups: vec![33, 44],
        user_name: "www-data".into(),
        user_home: "/var/www".into(),
        python: "/srv/venv/bin/python".into(),
        python_path: vec!["/srv/blog".into()],
        home: String::new(),
        umask: Some(0o027),
        lang: "C.UTF-8".into(),
        locale: String::new(),
        display_name: "(wsgi:blog)".into(),
        env: BTreeMap::from([("A".into(), "b=\"c\"\n\u{1f40d}".into())]),
        no_new_privileges: false,
        startup_timeout: 15.0,
        graceful_timeout: 0.5,
        shutdown_timeout: 5.0,
        application_idle: 600.0,
        maximum_application_groups: 32,
        recycle: Recycle { maximum_requests: 1000, health_check_path: vec!["/live".into()], ..Recycle::default() },
        deadlines: Deadlines { request: 60.0, deadlock: 300.0, ..Deadlines::default() },
        strict_reloading: false,
        minimum_processes: 0,
        reload_on_changes: true,
        reload_extra_files: vec!["/srv/blog/site.toml".into()],
    }
}

fn preload() -> Preload {
    Preload {
        group: "blog".into(),
        application: String::new(),
        script: "/srv/blog/app.wsgi".into(),
        callable: "application".into(),
    }
}

fn controls() -> Vec<Seed> {
    let secret = || Secret::from_bytes(b"0123456789abcdef");
    let config = Config {
        secret: secret(),
        server_uid: 33,
        server_gid: 33,
        roll_all: true,
        groups: vec![group()],
        preload: vec![preload()],
        log_level: Level::Warn,
    };
    let configure =
        control::encode(&ToSupervisor::Configure { build: "0.1.0".into(), config: Box::new(config), moves: false });
    let configure = configure.unwrap();
    let ask = ToSupervisor::Table { secret: secret(), group: "blog".into(), application: "host|/x".into() };
    let table = FromSupervisor::Table { token: secret(), slots: 8, threads: 15, rows: 65 };
    let refused = FromSupervisor::Refused { reason: RefusedReason::ApplicationGroups, text: "too many".into() };
    let plan = ExecPlan {
        group: group(),
        worker_dir: "/opt/worker".into(),
        worker: WorkerPlan {
            group: "blog".into(),
            application: String::new(),
            slot: 1,
            slot_generation: 2,
            slots: 8,
            rows: 65,
            threads: 15,
            processes: 2,
            multiprocess: true,
            token: secret(),
            preload: vec![preload()],
            python_path: vec![],
            home: String::new(),
            display_name: String::new(),
            startup_timeout: 15.0,
            shutdown_timeout: 5.0,
            graceful_timeout: 15.0,
            orphan_timeout: 10.0,
            request_timeout: 60.0,
            interrupt_timeout: 0.0,
            deadlock_timeout: 300.0,
            strict_reloading: false,
            reload_on_changes: true,
            maximum_requests: 1040,
            health_check_path: vec!["/live".into()],
            fds: WorkerFds { control: 3, table: 4, listener: 5, journal: 7, worker_dir: 6 },
        },
    };
    let loaded = FromWorker::Loaded {
        script: "/srv/blog/app.wsgi".into(),
        callable: "application".into(),
        mtime: u64::MAX,
        error: Some("Traceback (most recent call last):\n".into()),
    };
    let json = |text: &str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let up = |name, data| ("control_to_supervisor", name, data);
    let to = |name, m: &ToSupervisor| up(name, control::encode(m).unwrap());
    let from = |name, m: &FromSupervisor| up(name, control::encode(m).unwrap());
    let worker = |name, data| ("control_from_worker", name, data);
    let said = |name, m: &FromWorker| worker(name, control::encode(m).unwrap());
    vec![
        up("configure", configure.clone()),
        up("configure-cut", configure[..configure.len() - 1].to_vec()),
        up("two-messages", [configure, control::encode(&ToSupervisor::Stop).unwrap()].concat()),
        to("reloading", &ToSupervisor::Reloading),
        to("register", &ToSupervisor::Register { secret: secret(), client: None }),
        to("register-again", &ToSupervisor::Register { secret: secret(), client: Some(7) }),
        to("table", &ask),
        to("status", &ToSupervisor::Status),
        from("accepted", &FromSupervisor::Accepted),
        from("registered", &FromSupervisor::Registered { client: 0xff_ffff }),
        from("table-answer", &table),
        from("refused", &refused),
        from("status-answer", &FromSupervisor::Status { status: serde_json::json!({"groups": [1, 2.5, null, "x"]}) }),
        up("empty", Vec::new()),
        up("length-cut", vec![1, 0, 0]),
        up("length-zero", json("")),
        up("length-over-limit", (limits::MAX_CONTROL as u32 + 1).to_le_bytes().to_vec()),
        up("length-max", vec![255; 4]),
        up("unknown-op", json(r#"{"op":"shutdown"}"#)),
        up("no-op", json("{}")),
        up("not-an-object", json("[1]")),
        up("not-utf-8", [&2u32.to_le_bytes()[..], b"\xff\xfe"].concat()),
        up("op-twice", json(r#"{"op":"stop","op":"status"}"#)),
        up("unknown-field", json(r#"{"op":"register","secret":"x","client":null,"uid":0}"#)),
        up("negative-client", json(r#"{"op":"register","secret":"x","client":-1}"#)),
        up("number-too-large", json(r#"{"op":"status","status":1e999}"#)),
        up("trailing-bytes-inside", json(r#"{"op":"stop"} x"#)),
        up("lone-surrogate", json(r#"{"op":"table","secret":"\ud800","group":"","application":""}"#)),
        up("deeply-nested", json(&format!(r#"{{"op":"status","status":{}"#, "[".repeat(300)))),
        said("ready", &FromWorker::Ready { python: "3.11.2".into() }),
        said("loaded", &loaded),
        said("touched", &FromWorker::Touched { script: "/srv/blog/app.wsgi".into(), mtime: 1 }),
        said("files", &FromWorker::Files { files: vec![("/srv/blog/app.wsgi".into(), 1), (String::new(), 0)] }),
        said("log", &FromWorker::Log { level: Level::Crit, text: "\u{0}\r\n".into() }),
        worker("drain", control::encode(&ToWorker::Drain).unwrap()),
        worker("exit", control::encode(&ToWorker::Exit { timeout: 5.0, reason: "restart".into() }).unwrap()),
        worker("plan", control::encode(&plan).unwrap()),
        worker("unknown-level", json(r#"{"op":"log","level":"loud","text":""}"#)),
        worker("mtime-fraction", json(r#"{"op":"touched","script":"","mtime":1.5}"#)),
        worker("exit-timeout-null", json(r#"{"op":"exit","timeout":null,"reason":""}"#)),
        worker("length-longer-than-text", patched(json(r#"{"op":"drain"}"#), 0, &[200])),
    ]
}

fn seeds() -> Vec<Seed> {
    [hellos(), requests(), responses(), controls()].concat()
}
