//! The shell of every callback nginx calls: a panic is logged and becomes that callback's failure value.

use crate::log;
use mod_wsgi_core::guard::guarded;
use mod_wsgi_wire::frame::Level;

/// Runs `f`; after a panic gives `failure`. Errors that belong to a request are handled inside `f`.
pub fn callback<T>(what: &str, failure: T, f: impl FnOnce() -> T) -> T {
    guarded(what, failure, f, |text| log::process(Level::Crit, text))
}
