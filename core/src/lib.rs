//! What is the same for every web server: how a request becomes an environ, how a response is judged and framed, the
//! table of directives and options, and the checks of users and interpreters. No server and no Python type appears here;
//! adapters pass bytes.
#![forbid(unsafe_code)]

pub mod config;
pub mod conn;
pub mod directives;
pub mod environ;
pub mod error;
pub mod exchange;
pub mod guard;
pub mod headers;
pub mod interpreter;
pub mod link;
pub mod options;
pub mod passed;
pub mod pool;
pub mod reader;
pub mod response;
pub mod runtime;
pub mod sparse;
pub mod spool;
pub mod times;
