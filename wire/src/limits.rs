//! Every limit of the data plane, in one place. Both ends check a length against these before they allocate
//! or wait for that many bytes.

/// Bytes of a frame header.
pub const HEADER: usize = 8;
/// Largest payload of any frame, bytes. A REQUEST with a full head and an inline body still fits.
pub const MAX_PAYLOAD: usize = MAX_ENVIRON + MAX_INLINE_BODY + 64;
/// Largest encoded environ of a REQUEST, bytes. httpd's own limits (100 fields of 8190 bytes) stay below it.
pub const MAX_ENVIRON: usize = 1024 * 1024;
/// Largest number of environ entries of a REQUEST.
pub const MAX_ENTRIES: usize = 4096;
/// Longest environ key, bytes.
pub const MAX_KEY: usize = 8 * 1024;
/// A request body up to this many bytes travels inside REQUEST; a larger one as a descriptor.
pub const MAX_INLINE_BODY: usize = 64 * 1024;
/// Largest payload of DATA and BODY, bytes; encoders split what is longer.
pub const MAX_DATA: usize = 64 * 1024;
/// Most FILE frames of one response: the server keeps each descriptor until the client has the response.
pub const MAX_FILES: u32 = 16;
/// Largest encoded head (status and headers) of a RESPONSE, bytes.
pub const MAX_RESPONSE_HEAD: usize = 256 * 1024;
/// Largest number of header fields of a RESPONSE.
pub const MAX_RESPONSE_HEADERS: usize = 1024;
/// Longest reason phrase, bytes.
pub const MAX_REASON: usize = 512;
/// Largest text of one LOG frame, bytes; longer records are cut by the sender.
pub const MAX_LOG: usize = 8 * 1024;
/// Bytes of row coordinates before what a lane's frame is about.
pub const COORDINATES: usize = 8;
/// Largest REQUEST on a lane with its header, bytes; a larger one goes over a connection of its own.
pub const MAX_LANE_REQUEST: usize = 16 * 1024;
/// Most bytes of an answer's frames in one REPLY; a larger answer gets a connection of its own.
pub const MAX_REPLY: usize = 32 * 1024;
/// Largest message of the control protocol, bytes of JSON.
pub const MAX_CONTROL: usize = 4 * 1024 * 1024;
/// Most descriptors that travel with one control message.
pub const MAX_CONTROL_FDS: usize = 8;
