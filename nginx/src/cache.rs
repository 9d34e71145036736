//! nginx's cache and store in front of the application: their directives, the key, and what a stored head becomes. The
//! files hold the RESPONSE frame as the worker sent it, then the body.
#![allow(unsafe_code)]

use crate::config::{ERROR, Location, Main, UNSET, UNSET_MSEC, UNSET_UINT, compile, fail, location, main_of, words};
use crate::guard::callback;
use crate::pool::{Pool, bytes};
use crate::request::Request;
use crate::settings::{Reading, Set, USE_STALE, bits, or};
use crate::sys;
use mod_wsgi_core::directives::nginx::Setting;
use std::ffi::{CStr, c_char, c_void};
use std::mem::offset_of;
use std::ptr::{NonNull, null_mut};

const ONE: u32 = sys::NGX_CONF_TAKE1;
const MANY: u32 = sys::NGX_CONF_1MORE;
const FLAG: u32 = sys::NGX_CONF_FLAG;
const OFF: sys::ngx_uint_t = sys::NGX_HTTP_UPSTREAM_FT_OFF as sys::ngx_uint_t;
const UNSET_OFF: sys::off_t = -1;
/// `NGX_CONF_UNSET_PTR`
const NO_ARRAY: *mut sys::ngx_array_t = usize::MAX as *mut sys::ngx_array_t;

/// What marks the shared memory of our caches, and our buffers.
pub fn tag() -> *mut c_void {
    (&raw const crate::config::HTTP_CONTEXT).cast_mut().cast()
}

macro_rules! upstream {
    ($field:ident) => {
        offset_of!(Location, upstream) + offset_of!(sys::ngx_http_upstream_conf_t, $field)
    };
}

/// How a directive of the cache is read.
pub const fn reading(s: Setting) -> Reading {
    use sys::{ngx_conf_set_flag_slot as flag, ngx_conf_set_msec_slot as msec, ngx_http_set_predicate_slot as when};
    const NO: *mut c_void = null_mut();
    let (arguments, set, offset, post): (u32, Set, usize, *mut c_void) = match s {
        Setting::Cache => (ONE, set_cache, 0, NO),
        Setting::CachePath => (sys::NGX_CONF_2MORE, set_path, 0, NO),
        Setting::CacheKey => (ONE, set_key, 0, NO),
        Setting::CacheValid => (MANY, sys::ngx_http_file_cache_valid_set_slot, upstream!(cache_valid), NO),
        Setting::CacheMethods => (
            MANY,
            sys::ngx_conf_set_bitmask_slot,
            upstream!(cache_methods),
            (&raw const sys::ngx_http_upstream_cache_method_mask).cast_mut().cast(),
        ),
        Setting::CacheMinUses => (ONE, sys::ngx_conf_set_num_slot, upstream!(cache_min_uses), NO),
        Setting::CacheBypass => (MANY, when, upstream!(cache_bypass), NO),
        Setting::NoCache => (MANY, when, upstream!(no_cache), NO),
        Setting::CacheUseStale => {
            (MANY, sys::ngx_conf_set_bitmask_slot, upstream!(cache_use_stale), (&raw const USE_STALE).cast_mut().cast())
        }
        Setting::CacheBackgroundUpdate => (FLAG, flag, upstream!(cache_background_update), NO),
        Setting::CacheRevalidate => (FLAG, flag, upstream!(cache_revalidate), NO),
        Setting::CacheLock => (FLAG, flag, upstream!(cache_lock), NO),
        Setting::CacheLockTimeout => (ONE, msec, upstream!(cache_lock_timeout), NO),
        Setting::CacheLockAge => (ONE, msec, upstream!(cache_lock_age), NO),
        Setting::CacheMaxRangeOffset => (ONE, sys::ngx_conf_set_off_slot, upstream!(cache_max_range_offset), NO),
        Setting::CacheConvertHead => (FLAG, flag, upstream!(cache_convert_head), NO),
        _ => panic!("not a directive of the cache"),
    };
    Reading { arguments, set, offset, post }
}

/// Makes a setting of the cache unset.
pub fn begin(s: Setting, u: &mut sys::ngx_http_upstream_conf_t) {
    match s {
        Setting::CacheMinUses => u.cache_min_uses = UNSET_UINT,
        Setting::CacheMaxRangeOffset => u.cache_max_range_offset = UNSET_OFF,
        Setting::CacheBypass => u.cache_bypass = NO_ARRAY,
        Setting::NoCache => u.no_cache = NO_ARRAY,
        Setting::CacheValid => u.cache_valid = NO_ARRAY,
        Setting::CacheLock => u.cache_lock = UNSET,
        Setting::CacheLockTimeout => u.cache_lock_timeout = UNSET_MSEC,
        Setting::CacheLockAge => u.cache_lock_age = UNSET_MSEC,
        Setting::CacheRevalidate => u.cache_revalidate = UNSET,
        Setting::CacheConvertHead => u.cache_convert_head = UNSET,
        Setting::CacheBackgroundUpdate => u.cache_background_update = UNSET,
        // All zero, or `None`, says that these are not set.
        _ => {}
    }
}

/// Inherits a setting of the cache, but for the cache itself: see [`inherit`].
pub fn merge(s: Setting, outer: &Location, inner: &mut Location) {
    let (o, i) = (&outer.upstream, &mut inner.upstream);
    match s {
        Setting::CacheMinUses => or(&mut i.cache_min_uses, o.cache_min_uses, UNSET_UINT, 1),
        Setting::CacheMaxRangeOffset => {
            or(&mut i.cache_max_range_offset, o.cache_max_range_offset, UNSET_OFF, sys::off_t::MAX);
        }
        Setting::CacheUseStale => {
            bits(&mut i.cache_use_stale, o.cache_use_stale, sys::NGX_HTTP_UPSTREAM_FT_OFF);
            if i.cache_use_stale & OFF != 0 {
                i.cache_use_stale = 1 | OFF;
            }
            if i.cache_use_stale & sys::NGX_HTTP_UPSTREAM_FT_ERROR as sys::ngx_uint_t != 0 {
                i.cache_use_stale |= sys::NGX_HTTP_UPSTREAM_FT_NOLIVE as sys::ngx_uint_t;
            }
        }
        Setting::CacheMethods => {
            if i.cache_methods == 0 {
                i.cache_methods = o.cache_methods;
            }
            i.cache_methods |= (sys::NGX_HTTP_GET | sys::NGX_HTTP_HEAD) as sys::ngx_uint_t;
        }
        Setting::CacheBypass => or(&mut i.cache_bypass, o.cache_bypass, NO_ARRAY, null_mut()),
        Setting::NoCache => or(&mut i.no_cache, o.no_cache, NO_ARRAY, null_mut()),
        Setting::CacheValid => or(&mut i.cache_valid, o.cache_valid, NO_ARRAY, null_mut()),
        Setting::CacheKey => or(&mut inner.cache_key, outer.cache_key, null_mut(), null_mut()),
        Setting::CacheLock => or(&mut i.cache_lock, o.cache_lock, UNSET, 0),
        Setting::CacheLockTimeout => or(&mut i.cache_lock_timeout, o.cache_lock_timeout, UNSET_MSEC, 5000),
        Setting::CacheLockAge => or(&mut i.cache_lock_age, o.cache_lock_age, UNSET_MSEC, 5000),
        Setting::CacheRevalidate => or(&mut i.cache_revalidate, o.cache_revalidate, UNSET, 0),
        Setting::CacheConvertHead => or(&mut i.cache_convert_head, o.cache_convert_head, UNSET, 1),
        Setting::CacheBackgroundUpdate => {
            or(&mut i.cache_background_update, o.cache_background_update, UNSET, 0);
        }
        _ => {}
    }
}

/// Inherits the cache itself.
pub fn inherit(outer: &Location, inner: &mut Location) -> Result<(), String> {
    let (o, i) = (&outer.upstream, &mut inner.upstream);
    if inner.cache.is_none() {
        inner.cache = outer.cache.or(Some(false));
        (i.cache_zone, i.cache_value) = (o.cache_zone, o.cache_value);
    }
    i.set_cache((inner.cache == Some(true)).into());
    // SAFETY: null, or a zone in the configuration's pool; its data is set by the directive that declares it.
    match unsafe { i.cache_zone.as_ref() } {
        Some(zone) if zone.data.is_null() => {
            let name = String::from_utf8_lossy(bytes(&zone.shm.name)).into_owned();
            Err(format!("wsgi_cache zone '{name}' is unknown: declare it with wsgi_cache_path … keys_zone={name}:10m"))
        }
        _ => Ok(()),
    }
}

/// The array of the http block's caches; null when there is no memory.
fn caches(cf: *mut sys::ngx_conf_t, main: &mut Main) -> *mut sys::ngx_array_t {
    if main.caches.is_none() {
        // SAFETY: nginx passes a live configuration, in whose pool the array lives.
        let made = unsafe { sys::ngx_array_create((*cf).pool, 4, size_of::<*mut sys::ngx_http_file_cache_t>()) };
        main.caches = NonNull::new(made);
    }
    main.caches.map_or(null_mut(), NonNull::as_ptr)
}

unsafe extern "C" fn set_path(cf: *mut sys::ngx_conf_t, cmd: *mut sys::ngx_command_t, _: *mut c_void) -> *mut c_char {
    callback("wsgi_cache_path", ERROR, || {
        let caches = caches(cf, main_of(cf));
        if caches.is_null() {
            return ERROR;
        }
        // SAFETY: nginx passes a live configuration and its own copy of a command of the table; the setter appends to the
        // array it is told.
        unsafe {
            let mut own = *cmd;
            (own.offset, own.post) = (0, tag());
            sys::ngx_http_file_cache_set_slot(cf, &raw mut own, caches.cast())
        }
    })
}

unsafe extern "C" fn set_cache(cf: *mut sys::ngx_conf_t, _: *mut sys::ngx_command_t, conf: *mut c_void) -> *mut c_char {
    callback("wsgi_cache", ERROR, || {
        // SAFETY: nginx passes the location's settings.
        let loc = unsafe { location(conf) };
        let Some(&name) = words(cf).first() else { return ERROR };
        match (loc.cache, loc.store, name) {
            (Some(_), ..) => return c"is duplicate".as_ptr().cast_mut(),
            (_, _, b"off") => {
                loc.cache = Some(false);
                return null_mut();
            }
            (_, Some(true), _) => return c"is incompatible with \"wsgi_store\"".as_ptr().cast_mut(),
            _ => loc.cache = Some(true),
        }
        let main = main_of(cf);
        if main.conditions.is_none() {
            let index = |name: &'static CStr| {
                let mut name = crate::pool::constant(name);
                // SAFETY: nginx passes a live configuration; the name's bytes are static.
                unsafe { sys::ngx_http_get_variable_index(cf, &raw mut name) }
            };
            main.conditions = Some([index(c"upstream_cache_last_modified"), index(c"upstream_cache_etag")]);
        }
        if main.conditions.is_some_and(|all| all.contains(&(sys::NGX_ERROR as sys::ngx_int_t))) {
            return ERROR;
        }
        if name.contains(&b'$') {
            if caches(cf, main).is_null() {
                return ERROR;
            }
            loc.upstream.cache_value = compile(cf, name).unwrap_or(null_mut());
            return if loc.upstream.cache_value.is_null() { ERROR } else { null_mut() };
        }
        // SAFETY: nginx passes a live configuration, which keeps the name.
        loc.upstream.cache_zone = unsafe {
            let Some(mut name) = Pool::new((*cf).pool).string(name) else { return ERROR };
            sys::ngx_shared_memory_add(cf, &raw mut name, 0, tag())
        };
        if loc.upstream.cache_zone.is_null() { ERROR } else { null_mut() }
    })
}

unsafe extern "C" fn set_key(cf: *mut sys::ngx_conf_t, _: *mut sys::ngx_command_t, conf: *mut c_void) -> *mut c_char {
    callback("wsgi_cache_key", ERROR, || {
        // SAFETY: nginx passes the location's settings.
        let loc = unsafe { location(conf) };
        if !loc.cache_key.is_null() {
            return c"is duplicate".as_ptr().cast_mut();
        }
        let Some(&key) = words(cf).first() else { return ERROR };
        if key.is_empty() {
            return fail(cf, "wsgi_cache_key: an empty key would be that of every request");
        }
        loc.cache_key = compile(cf, key).unwrap_or(null_mut());
        if loc.cache_key.is_null() { ERROR } else { null_mut() }
    })
}

// --- requests -------------------------------------------------------------------------------------------------------

/// Whether the answer may come from the cache.
pub fn may_answer(r: &Request<'_>, location: &Location) -> bool {
    // SAFETY: a live request.
    let method = unsafe { (*r.raw()).method };
    location.cache == Some(true) && location.upstream.cache_methods & method != 0
}

/// Gives nginx's upstream what it needs for the cache.
pub fn prepare(r: &Request<'_>, u: &mut sys::ngx_http_upstream_t) {
    u.caches = r.main().caches.map_or(null_mut(), NonNull::as_ptr);
    u.create_key = Some(create_key);
}

/// nginx asks for the head of a file of the cache, not of a worker.
pub fn is_sending(r: &Request<'_>) -> bool {
    // SAFETY: a live request.
    unsafe { (*r.raw()).cached() != 0 }
}

/// Where in nginx's first buffer the head of a response begins that may be kept, and how much of the buffer a later
/// reader has room for; `None` where it is not kept.
pub fn head(r: &Request<'_>, u: &sys::ngx_http_upstream_t) -> Option<(usize, usize)> {
    // SAFETY: a live request, whose cache record lives as long as it, and the settings of its location.
    unsafe {
        let cache = (*r.raw()).cache.as_ref()?;
        // nginx keeps the length in 16 bits.
        (u.cacheable() != 0).then(|| (cache.header_start, (*u.conf).buffer_size.min(u16::MAX.into())))
    }
}

/// How much nginx has left free in its first buffer for what a file of the cache begins with.
pub fn reserved(r: &Request<'_>) -> usize {
    // SAFETY: a live request, whose cache record lives as long as it.
    unsafe { (*r.raw()).cache.as_ref() }.map_or(0, |c| c.header_start)
}

/// A failure of ours counts as one of the cases of wsgi_cache_use_stale: nginx itself knows only the status.
pub fn allow_stale(r: &Request<'_>, u: &sys::ngx_http_upstream_t, case: u32) {
    // SAFETY: as in `head`.
    unsafe {
        if let Some(cache) = (*r.raw()).cache.as_mut()
            && (*u.conf).cache_use_stale & case as sys::ngx_uint_t != 0
        {
            cache.set_stale_error(1);
        }
    }
}

/// nginx wants the key of a request.
pub unsafe extern "C" fn create_key(r: *mut sys::ngx_http_request_t) -> sys::ngx_int_t {
    callback("create_key", sys::NGX_ERROR as sys::ngx_int_t, || {
        // SAFETY: nginx passes a live request whose cache record it has just made.
        unsafe {
            let view = Request::new(r);
            let key = sys::ngx_array_push(&raw mut (*(*r).cache).keys).cast::<sys::ngx_str_t>();
            if key.is_null() {
                return sys::NGX_ERROR as sys::ngx_int_t;
            }
            let own = view.location().cache_key;
            if !own.is_null() {
                return sys::ngx_http_complex_value(r, own, key);
            }
            match view.pool().string(&default_key(&view)) {
                Some(text) => *key = text,
                None => return sys::NGX_ERROR as sys::ngx_int_t,
            }
        }
        0
    })
}

fn default_key(r: &Request<'_>) -> Vec<u8> {
    let scheme: &[u8] = if r.is_tls() { b"https" } else { b"http" };
    let port = r.local(&mut [0; 64]).1.to_string();
    let mut key = [scheme, b"://", r.host(), b":", port.as_bytes()].concat();
    if r.is_target_current() {
        key.extend_from_slice(r.target());
    } else {
        key.extend_from_slice(r.uri());
        if !r.args().is_empty() {
            key.push(b'?');
            key.extend_from_slice(r.args());
        }
    }
    key
}

/// What a header field of the client's becomes in a request whose response is to be kept: that of everybody, whole.
pub fn replaced(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 6] =
        [b"If-Modified-Since", b"If-Unmodified-Since", b"If-None-Match", b"If-Match", b"Range", b"If-Range"];
    NAMES.iter().any(|n| n.eq_ignore_ascii_case(name))
}

/// The conditions nginx asks with whether what it has still holds: fields and their values.
pub fn conditions<'r>(r: &Request<'r>) -> impl Iterator<Item = (&'static [u8], &'r [u8])> {
    let r = *r;
    let of = move |(field, index): (&'static [u8], _)| Some((field, r.variable(index)?));
    r.main()
        .conditions
        .into_iter()
        .flat_map(|[date, tag]| [(&b"If-Modified-Since"[..], date), (b"If-None-Match", tag)])
        .filter_map(of)
}
