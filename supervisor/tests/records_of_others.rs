//! Messages and records that this build does not write, see `records`.

mod records;

use mod_wsgi_wire::control;
use records::held::{FromKeeper, MasterRecord, PoolRecord, ProcessId, ToKeeper, WorkerRecord};
use std::path::{Path, PathBuf};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/fuzz/corpus/keeper")
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let group = r#"{"name":"g"}"#;
    let worker = WorkerRecord { pool: 1, slot: 2, generation: 3, process: ProcessId { pid: 4, start: 5 } };
    let record = serde_json::to_string(&worker).unwrap();
    let said = |m: &ToKeeper| control::encode(m).unwrap();
    let told = |m: &FromKeeper| control::encode(m).unwrap();
    let start = FromKeeper::Start {
        run_directory: "/run/wsgi".into(),
        executable: "/usr/lib/mod-wsgi-rs".into(),
        server_uid: 33,
        server_gid: 33,
        restarted: true,
    };
    vec![
        ("hold", said(&ToKeeper::Hold { key: "worker:1".into(), record: record.clone(), fds: 4 })),
        ("hold-many", said(&ToKeeper::Hold { key: String::new(), record: String::new(), fds: usize::MAX })),
        ("forget", said(&ToKeeper::Forget { key: "pool:\n1".into() })),
        ("log-then-replace", [said(&ToKeeper::Log), said(&ToKeeper::Replace)].concat()),
        ("start", told(&start)),
        ("held", told(&FromKeeper::Held { key: "worker:1".into(), record: record.clone(), fds: 4 })),
        ("begin", told(&FromKeeper::Begin)),
        ("reaped", told(&FromKeeper::Reaped { pid: -1, how: "signal 9".into() })),
        ("worker", record.into_bytes()),
        ("worker-negative-slot", br#"{"pool":1,"slot":-2,"generation":3,"process":{"pid":4,"start":5}}"#.to_vec()),
        (
            "pool-of-an-older-build",
            format!(r#"{{"id":1,"master":{{"pid":1,"start":2}},"group":{group}}}"#).into_bytes(),
        ),
        ("clients", b"16777215".to_vec()),
    ]
}

#[test]
fn every_file_of_the_corpus_is_handled() {
    let write = std::env::var_os("MWR_WRITE_CORPUS").is_some();
    for (name, data) in seeds() {
        let path = corpus().join(name);
        if write {
            std::fs::create_dir_all(corpus()).unwrap();
            std::fs::write(&path, &data).unwrap();
        }
        let there = std::fs::read(&path).unwrap_or_default();
        assert!(there == data, "{} differs: run this test with MWR_WRITE_CORPUS=1", path.display());
    }
    for entry in std::fs::read_dir(corpus()).unwrap() {
        let mut data = std::fs::read(entry.unwrap().path()).unwrap();
        records::run(&data);
        for n in 0..data.len() {
            records::run(&data[..n]);
            for bits in [0x01, 0x80, 0xff] {
                data[n] ^= bits;
                records::run(&data);
                data[n] ^= bits;
            }
        }
    }
}

/// A supervisor drops what it does not understand and takes the rest.
#[test]
fn what_is_no_record_is_refused() {
    for text in ["", "{}", "[]", "null", r#"{"pool":1}"#, r#"{"pool":1,"slot":70000,"generation":3,"process":{}}"#] {
        assert!(serde_json::from_str::<MasterRecord>(text).is_err(), "{text}");
        assert!(serde_json::from_str::<PoolRecord>(text).is_err(), "{text}");
        assert!(serde_json::from_str::<WorkerRecord>(text).is_err(), "{text}");
    }
}
