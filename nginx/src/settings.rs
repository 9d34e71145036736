//! The settings of nginx's upstream machinery under our names: how each is read, begun and inherited. The rules are those
//! of nginx's uwsgi module; each `match` names every setting, so that none can be forgotten.
#![allow(unsafe_code)]

use crate::config::{Location, UNSET, UNSET_MSEC, UNSET_SIZE, UNSET_UINT};
use crate::pool::{Pool, constant};
use crate::{cache, store, sys};
use mod_wsgi_core::directives::nginx::{Kind, NGINX, Setting};
use std::ffi::{CStr, c_char, c_void};
use std::mem::offset_of;
use std::ptr::null_mut;

pub type Set = unsafe extern "C" fn(*mut sys::ngx_conf_t, *mut sys::ngx_command_t, *mut c_void) -> *mut c_char;

const ONE: u32 = sys::NGX_CONF_TAKE1;
const FLAG: u32 = sys::NGX_CONF_FLAG;
const MANY: u32 = sys::NGX_CONF_1MORE;
/// `NGX_CONF_BITMASK_SET`
const BITMASK_SET: sys::ngx_uint_t = 1;
/// `NGX_CONF_UNSET_PTR`
const NO_ARRAY: *mut sys::ngx_array_t = usize::MAX as *mut sys::ngx_array_t;
const OFF: sys::ngx_uint_t = sys::NGX_HTTP_UPSTREAM_FT_OFF as sys::ngx_uint_t;

/// How nginx reads a directive: arguments, setter, where it writes in [`Location`], what the setter needs.
pub struct Reading {
    pub arguments: u32,
    pub set: Set,
    pub offset: usize,
    pub post: *mut c_void,
}

macro_rules! upstream {
    ($field:ident) => {
        offset_of!(Location, upstream) + offset_of!(sys::ngx_http_upstream_conf_t, $field)
    };
}

/// How a setting is read.
pub const fn reading(s: Setting) -> Reading {
    use sys::{
        ngx_conf_set_bitmask_slot as bits, ngx_conf_set_flag_slot as flag, ngx_conf_set_msec_slot as msec,
        ngx_conf_set_num_slot as num, ngx_conf_set_size_slot as size, ngx_conf_set_str_array_slot as strings,
    };
    const NO: *mut c_void = null_mut();
    let (arguments, set, offset, post): (u32, Set, usize, *mut c_void) = match s {
        Setting::Buffering => (FLAG, flag, upstream!(buffering), NO),
        Setting::RequestBuffering => (FLAG, flag, upstream!(request_buffering), NO),
        Setting::InterceptErrors => (FLAG, flag, upstream!(intercept_errors), NO),
        Setting::IgnoreClientAbort => (FLAG, flag, upstream!(ignore_client_abort), NO),
        Setting::ForceRanges => (FLAG, flag, upstream!(force_ranges), NO),
        Setting::PassRequestHeaders => (FLAG, flag, upstream!(pass_request_headers), NO),
        Setting::PassRequestBody => (FLAG, flag, upstream!(pass_request_body), NO),
        Setting::Buffers => (sys::NGX_CONF_TAKE2, sys::ngx_conf_set_bufs_slot, offset_of!(Location, buffers), NO),
        Setting::BufferSize => (ONE, size, upstream!(buffer_size), NO),
        Setting::BusyBuffersSize => (ONE, size, upstream!(busy_buffers_size_conf), NO),
        Setting::MaxTempFileSize => (ONE, size, upstream!(max_temp_file_size_conf), NO),
        Setting::TempFileWriteSize => (ONE, size, upstream!(temp_file_write_size_conf), NO),
        Setting::LimitRate => (ONE, sys::mwr_set_limit_rate, upstream!(limit_rate), NO),
        Setting::ConnectTimeout => (ONE, msec, upstream!(connect_timeout), NO),
        Setting::SendTimeout => (ONE, msec, upstream!(send_timeout), NO),
        Setting::ReadTimeout => (ONE, msec, upstream!(read_timeout), NO),
        Setting::NextUpstreamTimeout => (ONE, msec, upstream!(next_upstream_timeout), NO),
        Setting::NextUpstreamTries => (ONE, num, upstream!(next_upstream_tries), NO),
        Setting::NextUpstream => {
            (MANY, bits, offset_of!(Location, next_upstream), (&raw const NEXT_UPSTREAM).cast_mut().cast())
        }
        Setting::IgnoreHeaders => (
            MANY,
            bits,
            upstream!(ignore_headers),
            (&raw const sys::ngx_http_upstream_ignore_headers_masks).cast_mut().cast(),
        ),
        Setting::HideHeader => (ONE, strings, upstream!(hide_headers), NO),
        Setting::PassHeader => (ONE, strings, upstream!(pass_headers), NO),
        Setting::TempPath => (sys::NGX_CONF_TAKE1234, sys::ngx_conf_set_path_slot, upstream!(temp_path), NO),
        Setting::Store => (ONE, store::set, 0, NO),
        Setting::StoreAccess => (sys::NGX_CONF_TAKE123, sys::ngx_conf_set_access_slot, upstream!(store_access), NO),
        Setting::Cache
        | Setting::CachePath
        | Setting::CacheKey
        | Setting::CacheValid
        | Setting::CacheMethods
        | Setting::CacheMinUses
        | Setting::CacheBypass
        | Setting::NoCache
        | Setting::CacheUseStale
        | Setting::CacheBackgroundUpdate
        | Setting::CacheRevalidate
        | Setting::CacheLock
        | Setting::CacheLockTimeout
        | Setting::CacheLockAge
        | Setting::CacheMaxRangeOffset
        | Setting::CacheConvertHead => return cache::reading(s),
    };
    Reading { arguments, set, offset, post }
}

/// Names and bits of a directive that takes several words.
#[repr(transparent)]
pub struct Masks<const N: usize>([sys::ngx_conf_bitmask_t; N]);
// SAFETY: constant data that nginx only reads.
unsafe impl<const N: usize> Sync for Masks<N> {}

const fn mask(name: &'static CStr, mask: u32) -> sys::ngx_conf_bitmask_t {
    sys::ngx_conf_bitmask_t { name: constant(name), mask: mask as sys::ngx_uint_t }
}

const LAST: sys::ngx_conf_bitmask_t =
    sys::ngx_conf_bitmask_t { name: sys::ngx_str_t { len: 0, data: null_mut() }, mask: 0 };

/// The cases of a failed try, and one that is a directive's own.
const fn cases(own: sys::ngx_conf_bitmask_t) -> Masks<11> {
    Masks([
        mask(c"error", sys::NGX_HTTP_UPSTREAM_FT_ERROR),
        mask(c"timeout", sys::NGX_HTTP_UPSTREAM_FT_TIMEOUT),
        mask(c"invalid_header", sys::NGX_HTTP_UPSTREAM_FT_INVALID_HEADER),
        mask(c"http_500", sys::NGX_HTTP_UPSTREAM_FT_HTTP_500),
        mask(c"http_503", sys::NGX_HTTP_UPSTREAM_FT_HTTP_503),
        mask(c"http_403", sys::NGX_HTTP_UPSTREAM_FT_HTTP_403),
        mask(c"http_404", sys::NGX_HTTP_UPSTREAM_FT_HTTP_404),
        mask(c"http_429", sys::NGX_HTTP_UPSTREAM_FT_HTTP_429),
        mask(c"off", sys::NGX_HTTP_UPSTREAM_FT_OFF),
        own,
        LAST,
    ])
}

static NEXT_UPSTREAM: Masks<11> = cases(mask(c"non_idempotent", sys::NGX_HTTP_UPSTREAM_FT_NON_IDEMPOTENT));

pub static USE_STALE: Masks<11> = cases(mask(c"updating", sys::NGX_HTTP_UPSTREAM_FT_UPDATING));

fn all() -> impl Iterator<Item = Setting> {
    NGINX.iter().filter_map(|d| match d.kind {
        Kind::Upstream(s) => Some(s),
        _ => None,
    })
}

/// Makes every setting of a zeroed configuration unset.
pub fn begin(l: &mut Location) {
    for s in all() {
        let u = &mut l.upstream;
        match s {
            Setting::Buffering => u.buffering = UNSET,
            Setting::RequestBuffering => u.request_buffering = UNSET,
            Setting::InterceptErrors => u.intercept_errors = UNSET,
            Setting::IgnoreClientAbort => u.ignore_client_abort = UNSET,
            Setting::ForceRanges => u.force_ranges = UNSET,
            Setting::PassRequestHeaders => u.pass_request_headers = UNSET,
            Setting::PassRequestBody => u.pass_request_body = UNSET,
            Setting::BufferSize => u.buffer_size = UNSET_SIZE,
            Setting::BusyBuffersSize => u.busy_buffers_size_conf = UNSET_SIZE,
            Setting::MaxTempFileSize => u.max_temp_file_size_conf = UNSET_SIZE,
            Setting::TempFileWriteSize => u.temp_file_write_size_conf = UNSET_SIZE,
            Setting::LimitRate => *limit_rate(u) = UNSET_SIZE,
            Setting::ConnectTimeout => u.connect_timeout = UNSET_MSEC,
            Setting::SendTimeout => u.send_timeout = UNSET_MSEC,
            Setting::ReadTimeout => u.read_timeout = UNSET_MSEC,
            Setting::NextUpstreamTimeout => u.next_upstream_timeout = UNSET_MSEC,
            Setting::NextUpstreamTries => u.next_upstream_tries = UNSET_UINT,
            Setting::HideHeader => u.hide_headers = NO_ARRAY,
            Setting::PassHeader => u.pass_headers = NO_ARRAY,
            Setting::StoreAccess => u.store_access = UNSET_UINT,
            // All zero, or `None`, says that these are not set.
            Setting::Buffers | Setting::NextUpstream | Setting::IgnoreHeaders | Setting::TempPath | Setting::Store => {}
            Setting::Cache
            | Setting::CachePath
            | Setting::CacheKey
            | Setting::CacheValid
            | Setting::CacheMethods
            | Setting::CacheMinUses
            | Setting::CacheBypass
            | Setting::NoCache
            | Setting::CacheUseStale
            | Setting::CacheBackgroundUpdate
            | Setting::CacheRevalidate
            | Setting::CacheLock
            | Setting::CacheLockTimeout
            | Setting::CacheLockAge
            | Setting::CacheMaxRangeOffset
            | Setting::CacheConvertHead => cache::begin(s, u),
        }
    }
}

/// The place of a setting that is a size or, in later releases of nginx, a pointer: as wide, with the same values for
/// "unset" and "none".
fn limit_rate(u: &mut sys::ngx_http_upstream_conf_t) -> &mut usize {
    // SAFETY: both types have the size and the alignment of a usize, and any bits of theirs are a usize.
    unsafe { &mut *(&raw mut u.limit_rate).cast() }
}

/// Inherits a value, or takes the default.
pub fn or<T: Copy + PartialEq>(inner: &mut T, outer: T, unset: T, default: T) {
    if *inner == unset {
        *inner = if outer == unset { default } else { outer };
    }
}

/// The same for words that are bits; `off` rules out the others.
pub fn bits(inner: &mut sys::ngx_uint_t, outer: sys::ngx_uint_t, default: u32) {
    if *inner == 0 {
        *inner = if outer == 0 { BITMASK_SET | default as sys::ngx_uint_t } else { outer };
    }
}

/// Inherits every setting. An empty error: nginx has said what is wrong.
pub fn merge(cf: *mut sys::ngx_conf_t, outer: &mut Location, inner: &mut Location) -> Result<(), String> {
    // SAFETY: an integer that nginx sets at its start.
    let page = unsafe { sys::ngx_pagesize };
    for s in all() {
        let (o, i) = (&mut outer.upstream, &mut inner.upstream);
        match s {
            Setting::Buffering => or(&mut i.buffering, o.buffering, UNSET, 1),
            Setting::RequestBuffering => or(&mut i.request_buffering, o.request_buffering, UNSET, UNSET),
            Setting::InterceptErrors => or(&mut i.intercept_errors, o.intercept_errors, UNSET, 0),
            Setting::IgnoreClientAbort => or(&mut i.ignore_client_abort, o.ignore_client_abort, UNSET, 0),
            Setting::ForceRanges => or(&mut i.force_ranges, o.force_ranges, UNSET, 0),
            Setting::PassRequestHeaders => or(&mut i.pass_request_headers, o.pass_request_headers, UNSET, 1),
            Setting::PassRequestBody => or(&mut i.pass_request_body, o.pass_request_body, UNSET, 1),
            Setting::Buffers if inner.buffers.num == 0 => inner.buffers = outer.buffers,
            Setting::Buffers => {}
            Setting::BufferSize => or(&mut i.buffer_size, o.buffer_size, UNSET_SIZE, page),
            // The defaults of these follow from the others: see `sizes`.
            Setting::BusyBuffersSize => inherit(&mut i.busy_buffers_size_conf, o.busy_buffers_size_conf),
            Setting::TempFileWriteSize => inherit(&mut i.temp_file_write_size_conf, o.temp_file_write_size_conf),
            Setting::MaxTempFileSize => inherit(&mut i.max_temp_file_size_conf, o.max_temp_file_size_conf),
            Setting::LimitRate => or(limit_rate(i), *limit_rate(o), UNSET_SIZE, 0),
            Setting::ConnectTimeout => or(&mut i.connect_timeout, o.connect_timeout, UNSET_MSEC, 60_000),
            Setting::SendTimeout => or(&mut i.send_timeout, o.send_timeout, UNSET_MSEC, 60_000),
            Setting::ReadTimeout => or(&mut i.read_timeout, o.read_timeout, UNSET_MSEC, 60_000),
            Setting::NextUpstreamTimeout => or(&mut i.next_upstream_timeout, o.next_upstream_timeout, UNSET_MSEC, 0),
            Setting::NextUpstreamTries => or(&mut i.next_upstream_tries, o.next_upstream_tries, UNSET_UINT, 0),
            Setting::NextUpstream => {
                bits(&mut inner.next_upstream, outer.next_upstream, 0);
                if inner.next_upstream & OFF != 0 {
                    inner.next_upstream = BITMASK_SET;
                }
                // Everything may go on to the next worker as far as nginx is concerned; `peer::free` decides by the row.
                inner.upstream.next_upstream = !OFF;
            }
            Setting::IgnoreHeaders => bits(&mut i.ignore_headers, o.ignore_headers, 0),
            Setting::TempPath => temp_path(cf, o, i)?,
            // Both at once, below.
            Setting::HideHeader | Setting::PassHeader => {}
            Setting::StoreAccess => or(&mut i.store_access, o.store_access, UNSET_UINT, 0o600),
            Setting::Store | Setting::Cache => {}
            Setting::CachePath
            | Setting::CacheKey
            | Setting::CacheValid
            | Setting::CacheMethods
            | Setting::CacheMinUses
            | Setting::CacheBypass
            | Setting::NoCache
            | Setting::CacheUseStale
            | Setting::CacheBackgroundUpdate
            | Setting::CacheRevalidate
            | Setting::CacheLock
            | Setting::CacheLockTimeout
            | Setting::CacheLockAge
            | Setting::CacheMaxRangeOffset
            | Setting::CacheConvertHead => cache::merge(s, outer, inner),
        }
    }
    store::decide(inner);
    store::inherit(outer, inner);
    cache::inherit(outer, inner)?;
    sizes(inner, page)?;
    hidden_headers(cf, &mut outer.upstream, &mut inner.upstream)
}

fn inherit(inner: &mut usize, outer: usize) {
    or(inner, outer, UNSET_SIZE, UNSET_SIZE);
}

/// Size of a buffer for a long answer where configuration says nothing of sizes. Each buffer costs a call to read and one
/// to write it: of 4 KiB they are most of what a stream costs.
pub const LARGE: usize = 16 * 1024;

/// What follows from the sizes of buffers, and which of them do not fit each other.
fn sizes(l: &mut Location, page: usize) -> Result<(), String> {
    let u = &mut l.upstream;
    let given = |n: usize, default: usize| if n == UNSET_SIZE { default } else { n };
    l.enlarges = l.buffers.num == 0
        && u.buffer_size <= LARGE
        && page <= LARGE
        && u.busy_buffers_size_conf == UNSET_SIZE
        && u.temp_file_write_size_conf == UNSET_SIZE
        && !(1..LARGE).contains(&u.max_temp_file_size_conf);
    u.bufs = if l.buffers.num == 0 { sys::ngx_bufs_t { num: 8, size: page } } else { l.buffers };
    if u.bufs.num < 2 {
        return Err("there must be at least 2 wsgi_buffers".to_owned());
    }
    let size = u.buffer_size.max(u.bufs.size);
    let largest = "the maximum of wsgi_buffer_size and one of the wsgi_buffers";
    u.busy_buffers_size = given(u.busy_buffers_size_conf, 2 * size);
    if u.busy_buffers_size < size {
        return Err(format!("wsgi_busy_buffers_size must be equal to or greater than {largest}"));
    }
    if u.busy_buffers_size > (u.bufs.num as usize - 1) * u.bufs.size {
        return Err("wsgi_busy_buffers_size must be less than the size of all wsgi_buffers minus one buffer".to_owned());
    }
    u.temp_file_write_size = given(u.temp_file_write_size_conf, 2 * size);
    if u.temp_file_write_size < size {
        return Err(format!("wsgi_temp_file_write_size must be equal to or greater than {largest}"));
    }
    u.max_temp_file_size = given(u.max_temp_file_size_conf, 1 << 30);
    if u.max_temp_file_size != 0 && u.max_temp_file_size < size {
        return Err(format!(
            "wsgi_max_temp_file_size must be 0, which disables temporary files, or equal to or greater than {largest}"
        ));
    }
    Ok(())
}

fn temp_path(
    cf: *mut sys::ngx_conf_t,
    o: &sys::ngx_http_upstream_conf_t,
    i: &mut sys::ngx_http_upstream_conf_t,
) -> Result<(), String> {
    // SAFETY: a constant of the shim, NUL-terminated.
    let near = unsafe { CStr::from_ptr((&raw const sys::mwr_uwsgi_temp_path).cast()) };
    let name = near.to_string_lossy().replace("uwsgi", "wsgi");
    // SAFETY: nginx passes a live configuration; what is handed over lives in its pool or is read during the call.
    unsafe {
        let pool = Pool::new((*cf).pool);
        let mut init =
            sys::ngx_path_init_t { name: pool.string(name.as_bytes()).ok_or_else(String::new)?, level: [1, 2, 0] };
        if !sys::ngx_conf_merge_path_value(cf, &raw mut i.temp_path, o.temp_path, &raw mut init).is_null() {
            return Err(String::new());
        }
    }
    Ok(())
}

/// Headers of nginx's own that are not for clients, as in its uwsgi module.
const HIDDEN: [sys::ngx_str_t; 6] = [
    constant(c"X-Accel-Expires"),
    constant(c"X-Accel-Redirect"),
    constant(c"X-Accel-Limit-Rate"),
    constant(c"X-Accel-Buffering"),
    constant(c"X-Accel-Charset"),
    sys::ngx_str_t { len: 0, data: null_mut() },
];

fn hidden_headers(
    cf: *mut sys::ngx_conf_t,
    o: &mut sys::ngx_http_upstream_conf_t,
    i: &mut sys::ngx_http_upstream_conf_t,
) -> Result<(), String> {
    let mut hash = sys::ngx_hash_init_t {
        hash: null_mut(),
        key: None,
        max_size: 512,
        bucket_size: 64,
        name: c"wsgi_hide_headers_hash".as_ptr().cast_mut(),
        pool: null_mut(),
        temp_pool: null_mut(),
    };
    let hidden = HIDDEN.as_ptr().cast_mut();
    // SAFETY: nginx passes a live configuration; it copies the list of hidden headers.
    if unsafe { sys::ngx_http_upstream_hide_headers_hash(cf, i, o, hidden, &raw mut hash) } != 0 {
        return Err(String::new());
    }
    Ok(())
}
