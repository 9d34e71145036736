//! Frame kinds, flags and the fixed header: `length:u32 | kind:u8 | flags:u8 | zero:u16`, little-endian.
//! `length` counts the payload only.

use crate::limits;

/// Kinds of frames. The direction is from the web server's process (S) to the worker (W) or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// S→W then W→S: version, token (S→W) and slot generation (W→S). First frame of each direction.
    Hello = 1,
    /// S→W: row coordinates, environ, inline body or the size of a body descriptor.
    Request = 2,
    /// S→W: a piece of a streamed request body.
    Body = 3,
    /// S→W: the streamed request body is complete.
    BodyEnd = 4,
    /// W→S: the application has asked for the body (streaming groups).
    Continue = 5,
    /// W→S: status, header fields, optional inline data.
    Response = 6,
    /// W→S: body bytes of the response.
    Data = 7,
    /// W→S: offset and length of a passed file descriptor, to be sent next.
    File = 8,
    /// W→S: a log record tied to the request under way.
    Log = 9,
    /// W→S: the response is whole.
    End = 10,
    /// W→S: `close()` has run, the row is free, the connection may carry the next request.
    Done = 11,
    /// W→S: the response cannot be given or finished.
    Abort = 12,
    /// W→S, on a lane: row coordinates, then whole frames of that row's answer.
    Reply = 13,
    /// W→S, on a lane: row coordinates. The rest of that row's answer comes on the connection whose end accompanies
    /// this frame.
    Adopt = 14,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub fn from_u8(n: u8) -> Option<Kind> {
        use Kind::*;
        Some(match n {
            1 => Hello,
            2 => Request,
            3 => Body,
            4 => BodyEnd,
            5 => Continue,
            6 => Response,
            7 => Data,
            8 => File,
            9 => Log,
            10 => End,
            11 => Done,
            12 => Abort,
            13 => Reply,
            14 => Adopt,
            _ => return None,
        })
    }

    /// Largest payload this kind may carry, bytes.
    pub fn max_payload(self) -> usize {
        match self {
            Kind::Hello => 64,
            Kind::Request => limits::MAX_PAYLOAD,
            Kind::Body | Kind::Data => limits::MAX_DATA,
            Kind::BodyEnd | Kind::Continue | Kind::End | Kind::Done => 0,
            Kind::Response => limits::MAX_RESPONSE_HEAD + limits::MAX_DATA,
            Kind::File => 16,
            Kind::Log => limits::MAX_LOG + 1,
            Kind::Abort => 1,
            Kind::Reply => limits::COORDINATES + limits::MAX_REPLY,
            Kind::Adopt => limits::COORDINATES,
        }
    }

    /// Flags this kind may carry.
    fn allowed_flags(self) -> u8 {
        match self {
            Kind::Request => flags::BODY_FD | flags::BODY_STREAM | flags::NO_FILE | flags::LANE,
            Kind::Response => flags::END | flags::DONE,
            Kind::Data | Kind::File => flags::END | flags::DONE,
            Kind::End | Kind::Abort => flags::DONE,
            _ => 0,
        }
    }
}

/// Frame flags.
pub mod flags {
    /// The response is whole with this frame (stands for a following END).
    pub const END: u8 = 1;
    /// The worker is free after this frame (stands for a following DONE). Only together with END, or on END and ABORT.
    pub const DONE: u8 = 2;
    /// REQUEST: the body comes as one descriptor attached to this frame.
    pub const BODY_FD: u8 = 4;
    /// REQUEST: BODY frames follow until BODY_END.
    pub const BODY_STREAM: u8 = 8;
    /// REQUEST: the response must not come as a FILE; its bytes are wanted.
    pub const NO_FILE: u8 = 16;
    /// REQUEST: the connection is a lane; the answer comes in REPLY frames, or after ADOPT. The body is inline.
    pub const LANE: u8 = 32;
}

/// Why a response could not be given: payload of ABORT, and what the web server makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AbortReason {
    /// The application raised; the traceback has been logged. 500 before the head, else an aborted response.
    Application = 1,
    /// The script could not be loaded, or has no usable callable; logged. 500.
    Load = 2,
    /// The response broke a rule of WSGI or HTTP (fewer bytes than declared, bad chunk type); logged. 500.
    Protocol = 3,
    /// The worker itself failed (a panic, no memory). 500.
    Internal = 4,
    /// A deadline of the worker passed. 504.
    Timeout = 5,
    /// The worker is ending and did not run the request; the row has been given back. Send it elsewhere.
    NotRun = 6,
}

impl AbortReason {
    /// The reason with this number, if there is one.
    pub fn from_u8(n: u8) -> Option<AbortReason> {
        use AbortReason::*;
        Some(match n {
            1 => Application,
            2 => Load,
            3 => Protocol,
            4 => Internal,
            5 => Timeout,
            6 => NotRun,
            _ => return None,
        })
    }
}

/// Severity of a LOG record; the numbers are those of syslog and of httpd's `APLOG_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Level {
    Crit = 2,
    Error = 3,
    Warn = 4,
    Notice = 5,
    Info = 6,
    Debug = 7,
}

impl Level {
    /// The level with this number; numbers outside the range become the nearest level.
    pub fn from_u8(n: u8) -> Level {
        match n {
            0..=2 => Level::Crit,
            3 => Level::Error,
            4 => Level::Warn,
            5 => Level::Notice,
            6 => Level::Info,
            _ => Level::Debug,
        }
    }
}

/// A decoded frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub flags: u8,
    /// Bytes of payload that follow.
    pub len: usize,
}

impl Header {
    /// The response is whole with this frame.
    pub fn is_end(&self) -> bool {
        self.kind == Kind::End || self.flags & flags::END != 0
    }

    /// The worker is free after this frame.
    pub fn is_done(&self) -> bool {
        self.kind == Kind::Done || self.flags & flags::DONE != 0
    }

    /// Whether `flags` fits `kind`.
    pub(crate) fn flags_valid(kind: Kind, flags: u8) -> bool {
        if flags & !kind.allowed_flags() != 0 {
            return false;
        }
        match kind {
            Kind::Response | Kind::Data | Kind::File => flags & flags::DONE == 0 || flags & flags::END != 0,
            // At most one of them: a body travels one way, and on a lane it is inline.
            Kind::Request => (flags & (flags::BODY_FD | flags::BODY_STREAM | flags::LANE)).count_ones() <= 1,
            _ => true,
        }
    }
}
