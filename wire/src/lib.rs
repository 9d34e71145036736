//! What travels between the web server's processes, the supervisor and the Python workers.
//!
//! `frame`, `encode` and `decode` are the data plane: binary frames over a worker's Unix socket, sans-I/O, without
//! unsafe code, checked against [`limits`]. `control` and `plan` are the control plane: JSON messages off the request
//! path. `docs/protocol.md` describes both for readers.
#![forbid(unsafe_code)]

pub mod control;
pub mod decode;
pub mod encode;
pub mod fields;
pub mod frame;
pub mod keys;
pub mod limits;
pub mod plan;

/// Version of the data plane, first field of HELLO. Ends with different versions close the connection.
pub const VERSION: u16 = 2;
