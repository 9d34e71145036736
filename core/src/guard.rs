//! Every callback a server calls goes through here: a panic fails the request or the configuration under way, never
//! the server's process.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `f`; a panic is told to `log`, with what was under way, and gives `failure`.
pub fn guarded<T>(what: &str, failure: T, f: impl FnOnce() -> T, log: impl FnOnce(&str)) -> T {
    guard(f).unwrap_or_else(|message| {
        log(&format!("MWR0199: panic in {what}: {message}"));
        failure
    })
}

/// Runs `f`; a panic becomes the message for the log. State that `f` was changing is abandoned by the caller.
fn guard<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        if let Some(s) = payload.downcast_ref::<&str>() {
            (*s).to_owned()
        } else if let Some(s) = payload.downcast_ref::<String>() {
            s.clone()
        } else {
            "panic without a message".to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(super::guard(|| 3), Ok(3));
        assert_eq!(super::guard(|| -> u8 { panic!("row {}", 7) }), Err("row 7".to_owned()));
    }
}
