//! What keeper and supervisor say to each other, and the records that a supervisor of another build may have left. One
//! function, run over seeds in every `cargo test` and by the fuzz target `keeper` of `wire/fuzz`.

#[path = "../../src/held.rs"]
#[allow(dead_code)]
pub mod held;

use held::{FromKeeper, MasterRecord, PoolRecord, ToKeeper, WorkerRecord};
use mod_wsgi_wire::control;
use serde::{Serialize, de::DeserializeOwned};

/// `data`: a message as it comes on the socket, and the text of a record.
pub fn run(data: &[u8]) {
    message::<ToKeeper>(data);
    message::<FromKeeper>(data);
    if let Ok(text) = std::str::from_utf8(data) {
        record::<MasterRecord>(text);
        record::<PoolRecord>(text);
        record::<WorkerRecord>(text);
        record::<u32>(text);
    }
}

fn message<T: Serialize + DeserializeOwned>(data: &[u8]) {
    if let Ok(Some((message, used))) = control::decode::<T>(data) {
        assert!(used >= 4 && used <= data.len());
        let again = control::encode(&message).expect("what was understood can be sent");
        let (_, used) = control::decode::<T>(&again).unwrap().expect("a whole message");
        assert_eq!(used, again.len());
    }
}

fn record<T: Serialize + DeserializeOwned>(text: &str) {
    if let Ok(record) = serde_json::from_str::<T>(text) {
        let again = serde_json::to_string(&record).expect("what was understood can be kept");
        serde_json::from_str::<T>(&again).expect("and be understood again");
    }
}
