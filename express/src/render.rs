//! Text of the generated files, one module for each server.

pub mod httpd;
