//! The shell of every callback nginx calls: a panic is logged and becomes that callback's failure value.

use crate::log;
use mod_wsgi_core::guard::guard;
use mod_wsgi_wire::frame::Level;

/// Runs `f`; after a panic gives `failure`. Errors that belong to a request are handled inside `f`.
pub fn callback<T>(what: &str, failure: T, f: impl FnOnce() -> T) -> T {
    match guard(f) {
        Ok(v) => v,
        Err(message) => {
            log::process(Level::Crit, &format!("MWR0199: panic in {what}: {message}"));
            failure
        }
    }
}
