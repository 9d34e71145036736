//! What one generation of httpd's configuration means at run time: what every server has, and httpd's own.

use crate::walk::Shadows;
use mod_wsgi_core::runtime;
use std::ops::Deref;

/// One generation.
pub struct Runtime {
    pub common: runtime::Runtime,
    /// For the directory walk of aliased scripts.
    pub shadows: Shadows,
    /// Version of the running server, `2.4.71`.
    pub version: String,
}

impl Deref for Runtime {
    type Target = runtime::Runtime;

    fn deref(&self) -> &runtime::Runtime {
        &self.common
    }
}
