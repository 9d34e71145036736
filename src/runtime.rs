//! What one generation of httpd's configuration means at run time: what every server has, and httpd's own.

use crate::ledger::Ledger;
use crate::walk::Shadows;
use mod_wsgi_core::runtime;
use mod_wsgi_core::spool::Store;
use std::ops::Deref;

/// One generation.
pub struct Runtime {
    pub common: runtime::Runtime,
    /// For the directory walk of aliased scripts.
    pub shadows: Shadows,
    /// Version of the running server, `2.4.71`.
    pub version: String,
    pub spool_directory: String,
    pub ledger: Ledger,
}

impl Runtime {
    /// Where this server's temporary files go.
    pub fn store(&self) -> Store<'_> {
        Store { directory: &self.spool_directory, account: &self.ledger }
    }
}

impl Deref for Runtime {
    type Target = runtime::Runtime;

    fn deref(&self) -> &runtime::Runtime {
        &self.common
    }
}
