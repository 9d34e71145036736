//! This module's slots in nginx's configuration: created, merged, found.
#![allow(unsafe_code)]

use crate::guard::callback;
use crate::handler;
use crate::peer;
use crate::pool::{Pool, bytes};
use crate::process::Generation;
use crate::sys;
use mod_wsgi_core::config::{DirConfig, Selector, ServerConfig};
use mod_wsgi_wire::control::Preload;
use mod_wsgi_wire::frame::Level;
use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::rc::Rc;

/// `NGX_CONF_ERROR`
pub const ERROR: *mut c_char = usize::MAX as *mut c_char;
/// `NGX_CONF_UNSET`: of request buffering, the group decides.
pub const UNSET: sys::ngx_flag_t = sys::NGX_CONF_UNSET as sys::ngx_flag_t;
const UNSET_UINT: sys::ngx_uint_t = sys::ngx_uint_t::MAX;
const UNSET_SIZE: usize = usize::MAX;
const UNSET_MSEC: sys::ngx_msec_t = sys::ngx_msec_t::MAX;
/// `NGX_CONF_BITMASK_SET`
const BITMASK_SET: sys::ngx_uint_t = 1;

/// Settings of the http block, and the run time once there is one.
#[derive(Default)]
pub struct Main {
    pub settings: ServerConfig,
    /// Where each group of `settings.groups` was declared, `file:line`.
    pub declared: Vec<String>,
    /// Scripts of locations, and where they were named.
    pub scripts: Vec<(Preload, String)>,
    /// wsgi_log_level.
    pub log_level: Option<Level>,
    /// Made in init_module.
    pub generation: Option<Rc<Generation>>,
}

/// An application that a location hands its requests to.
#[derive(Debug)]
pub struct Script {
    pub file: String,
    /// SCRIPT_NAME: a prefix of the URL without a final slash, or nothing.
    pub mount: Vec<u8>,
    /// Where the configuration names it, `file:line`.
    pub at: String,
    /// What the file was when it was last looked at.
    pub seen: Cell<Seen>,
}

/// What a script's file was at a time of nginx's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Milliseconds; 0 = never looked at.
    pub at: usize,
    /// Modification time, microseconds since the epoch.
    pub modified: u64,
}

/// An entry of the environ.
#[derive(Clone)]
pub struct Param {
    pub key: Vec<u8>,
    pub value: Value,
    pub if_not_empty: bool,
}

#[derive(Clone)]
pub enum Value {
    Constant(Vec<u8>),
    /// Lives in the configuration's pool.
    Variable(*mut sys::ngx_http_complex_value_t),
}

/// Settings of a location. nginx's setters write into `upstream` and `next_upstream` by offset.
#[repr(C)]
pub struct Location {
    pub upstream: sys::ngx_http_upstream_conf_t,
    /// wsgi_next_upstream as configured; nginx's own mask lets every case through, and the row decides.
    pub next_upstream: sys::ngx_uint_t,
    server: sys::ngx_http_upstream_srv_conf_t,
    pub dir: DirConfig,
    pub script: Option<Rc<Script>>,
    pub params: Option<Rc<Vec<Param>>>,
    pub route: Rc<Route>,
}

/// What configuration alone says about a location's requests.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Route {
    pub group: String,
    /// Key of the application group.
    pub application: String,
    /// What `mod_wsgi.application_group` shows.
    pub callable: String,
    pub reloading: bool,
    /// `request-timeout` of this place as REQUEST carries it: milliseconds, 0 = the group's, `u32::MAX` = never.
    pub timeout: u32,
    pub pass_authorization: bool,
}

pub static HTTP_CONTEXT: sys::ngx_http_module_t = sys::ngx_http_module_t {
    preconfiguration: None,
    postconfiguration: None,
    create_main_conf: Some(create_main),
    init_main_conf: None,
    create_srv_conf: None,
    merge_srv_conf: None,
    create_loc_conf: Some(create_location),
    merge_loc_conf: Some(merge_location),
};

unsafe extern "C" fn create_main(cf: *mut sys::ngx_conf_t) -> *mut c_void {
    callback("create_main_conf", null_mut(), || {
        // SAFETY: nginx passes a live configuration with its pool.
        let pool = unsafe { Pool::new((*cf).pool) };
        pool.own(Main::default()).map_or(null_mut(), |p| p.cast())
    })
}

unsafe extern "C" fn create_location(cf: *mut sys::ngx_conf_t) -> *mut c_void {
    callback("create_loc_conf", null_mut(), || {
        // SAFETY: nginx's structures of numbers and pointers, for which all zero is a value; nginx's modules make them so.
        let (mut u, server): (sys::ngx_http_upstream_conf_t, sys::ngx_http_upstream_srv_conf_t) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        u.buffering = UNSET;
        u.request_buffering = UNSET;
        u.ignore_client_abort = UNSET;
        u.intercept_errors = UNSET;
        u.pass_request_headers = 1;
        u.pass_request_body = 1;
        u.next_upstream_tries = UNSET_UINT;
        u.connect_timeout = UNSET_MSEC;
        u.send_timeout = UNSET_MSEC;
        u.read_timeout = UNSET_MSEC;
        u.next_upstream_timeout = UNSET_MSEC;
        u.buffer_size = UNSET_SIZE;
        u.busy_buffers_size_conf = UNSET_SIZE;
        u.max_temp_file_size_conf = UNSET_SIZE;
        u.temp_file_write_size_conf = UNSET_SIZE;
        u.hide_headers = usize::MAX as *mut sys::ngx_array_t;
        u.pass_headers = usize::MAX as *mut sys::ngx_array_t;
        u.set_change_buffering(1);
        u.module = crate::pool::constant(c"wsgi");
        // SAFETY: the record is ours; the shim writes one field whose type differs by release.
        unsafe { sys::mwr_unset_limit_rate(&raw mut u) };
        let location = Location {
            upstream: u,
            next_upstream: 0,
            server,
            dir: DirConfig::default(),
            script: None,
            params: None,
            route: Rc::default(),
        };
        // SAFETY: as in `create_main`.
        let pool = unsafe { Pool::new((*cf).pool) };
        pool.own(location).map_or(null_mut(), |p| p.cast())
    })
}

fn error(cf: *mut sys::ngx_conf_t, text: &str) -> *mut c_char {
    // SAFETY: nginx passes a live configuration; the text is read during the call.
    unsafe { sys::mwr_conf_error(cf, text.as_ptr().cast(), text.len()) };
    ERROR
}

/// The http block's settings while the configuration is being read.
pub fn main_of<'c>(cf: *mut sys::ngx_conf_t) -> &'c mut Main {
    // SAFETY: nginx has called `create_main` for this http block; while it reads a configuration nobody else has it.
    unsafe { &mut *sys::mwr_main_conf(cf, crate::http_module()).cast::<Main>() }
}

/// `file:line` of the directive under way.
pub fn place(cf: *mut sys::ngx_conf_t) -> String {
    // SAFETY: a live configuration; without a file (`-g`) the pointer is null.
    unsafe {
        match (*cf).conf_file.as_ref() {
            Some(f) => format!("{}:{}", String::from_utf8_lossy(bytes(&f.file.name)), f.line),
            None => "command line".to_owned(),
        }
    }
}

unsafe extern "C" fn merge_location(cf: *mut sys::ngx_conf_t, outer: *mut c_void, inner: *mut c_void) -> *mut c_char {
    callback("merge_loc_conf", ERROR, || {
        // SAFETY: nginx passes two values that `create_location` made; they differ.
        let (outer, inner) = unsafe { (&*outer.cast::<Location>(), &mut *inner.cast::<Location>()) };
        match merge_upstream(cf, outer, inner) {
            Ok(()) => {}
            Err(text) => return if text.is_empty() { ERROR } else { error(cf, &text) },
        }
        inner.dir = outer.dir.merged(&inner.dir);
        if inner.params.is_none() {
            inner.params = outer.params.clone();
        }
        inherit_script(cf, outer, inner);
        if let Some(script) = inner.script.clone() {
            inner.server.peer.init = Some(peer::init);
            inner.upstream.upstream = &raw mut inner.server;
            match route(&inner.dir, &script) {
                Ok(route) => inner.route = Rc::new(route),
                Err(text) => return error(cf, &text),
            }
            let r = &inner.route;
            let preload = Preload {
                group: r.group.clone(),
                application: r.application.clone(),
                script: script.file.clone(),
                callable: r.callable.clone(),
            };
            main_of(cf).scripts.push((preload, script.at.clone()));
        }
        null_mut()
    })
}

/// Blocks without a name (`if`, `limit_except`) hand requests to the application of the location they stand in.
fn inherit_script(cf: *mut sys::ngx_conf_t, outer: &Location, inner: &mut Location) {
    // SAFETY: nginx merges the core's location before a module's; both live as long as the configuration.
    unsafe {
        let ctx = (*cf).ctx.cast::<sys::ngx_http_conf_ctx_t>();
        let core = *(*ctx).loc_conf.add(sys::ngx_http_core_module.ctx_index);
        let core = &mut *core.cast::<sys::ngx_http_core_loc_conf_t>();
        if core.noname() != 0 && inner.script.is_none() {
            inner.script = outer.script.clone();
        }
        if core.lmt_excpt() != 0 && core.handler.is_none() && inner.script.is_some() {
            core.handler = Some(handler::handle);
        }
    }
}

fn route(d: &DirConfig, script: &Script) -> Result<Route, String> {
    let refused = |name: &str| {
        format!("{name}: a name is expected here; %{{GLOBAL}} is known too, other %{{…}} depend on the request")
    };
    let group = match &d.process_group {
        None | Some(Selector::Global) => String::new(),
        Some(Selector::Literal(n)) => n.clone(),
        Some(_) => return Err(refused("wsgi_process_group")),
    };
    let application = match &d.application_group {
        None | Some(Selector::Global) => String::new(),
        Some(Selector::Literal(n)) => n.clone(),
        Some(Selector::Resource) => script.file.clone(),
        Some(_) => return Err(refused("wsgi_application_group")),
    };
    Ok(Route {
        group,
        application,
        callable: d.callable_object.clone().unwrap_or_else(|| "application".to_owned()),
        reloading: d.script_reloading.unwrap_or(true),
        timeout: d.request_timeout.unwrap_or(0),
        pass_authorization: d.pass_authorization.unwrap_or(true),
    })
}

fn or<T: Copy + PartialEq>(inner: &mut T, outer: T, unset: T, default: T) {
    if *inner == unset {
        *inner = if outer == unset { default } else { outer };
    }
}

/// The rules of nginx's own upstream modules. An empty error: nginx has said what is wrong.
fn merge_upstream(cf: *mut sys::ngx_conf_t, outer: &Location, inner: &mut Location) -> Result<(), String> {
    // SAFETY: an integer that nginx sets at its start.
    let page = unsafe { sys::ngx_pagesize };
    let (o, i) = (&outer.upstream, &mut inner.upstream);
    or(&mut i.buffering, o.buffering, UNSET, 1);
    or(&mut i.request_buffering, o.request_buffering, UNSET, UNSET);
    or(&mut i.ignore_client_abort, o.ignore_client_abort, UNSET, 0);
    or(&mut i.intercept_errors, o.intercept_errors, UNSET, 0);
    or(&mut i.next_upstream_tries, o.next_upstream_tries, UNSET_UINT, 0);
    or(&mut i.connect_timeout, o.connect_timeout, UNSET_MSEC, 60_000);
    or(&mut i.send_timeout, o.send_timeout, UNSET_MSEC, 60_000);
    or(&mut i.read_timeout, o.read_timeout, UNSET_MSEC, 60_000);
    or(&mut i.next_upstream_timeout, o.next_upstream_timeout, UNSET_MSEC, 0);
    or(&mut i.buffer_size, o.buffer_size, UNSET_SIZE, page);
    if i.bufs.num == 0 {
        i.bufs = if o.bufs.num == 0 { sys::ngx_bufs_t { num: 8, size: page } } else { o.bufs };
    }
    if i.bufs.num < 2 {
        return Err("there must be at least 2 wsgi_buffers".to_owned());
    }
    let size = i.buffer_size.max(i.bufs.size);
    or(&mut i.busy_buffers_size_conf, o.busy_buffers_size_conf, UNSET_SIZE, UNSET_SIZE);
    i.busy_buffers_size = if i.busy_buffers_size_conf == UNSET_SIZE { 2 * size } else { i.busy_buffers_size_conf };
    let largest = "the maximum of wsgi_buffer_size and one of the wsgi_buffers";
    if i.busy_buffers_size < size {
        return Err(format!("wsgi_busy_buffers_size must be equal to or greater than {largest}"));
    }
    if i.busy_buffers_size > (i.bufs.num as usize - 1) * i.bufs.size {
        return Err("wsgi_busy_buffers_size must be less than the size of all wsgi_buffers minus one buffer".to_owned());
    }
    or(&mut i.temp_file_write_size_conf, o.temp_file_write_size_conf, UNSET_SIZE, UNSET_SIZE);
    i.temp_file_write_size =
        if i.temp_file_write_size_conf == UNSET_SIZE { 2 * size } else { i.temp_file_write_size_conf };
    if i.temp_file_write_size < size {
        return Err(format!("wsgi_temp_file_write_size must be equal to or greater than {largest}"));
    }
    or(&mut i.max_temp_file_size_conf, o.max_temp_file_size_conf, UNSET_SIZE, UNSET_SIZE);
    i.max_temp_file_size = if i.max_temp_file_size_conf == UNSET_SIZE { 1 << 30 } else { i.max_temp_file_size_conf };
    if i.max_temp_file_size != 0 && i.max_temp_file_size < size {
        return Err(format!(
            "wsgi_max_temp_file_size must be 0, which disables temporary files, or equal to or greater than {largest}"
        ));
    }
    if i.ignore_headers == 0 {
        i.ignore_headers = if o.ignore_headers == 0 { BITMASK_SET } else { o.ignore_headers };
    }
    if inner.next_upstream == 0 {
        inner.next_upstream = if outer.next_upstream == 0 { BITMASK_SET } else { outer.next_upstream };
    }
    if inner.next_upstream & sys::NGX_HTTP_UPSTREAM_FT_OFF as sys::ngx_uint_t != 0 {
        inner.next_upstream = BITMASK_SET;
    }
    // Everything may go on to the next worker as far as nginx is concerned; `peer::free` decides by the row.
    i.next_upstream = !(sys::NGX_HTTP_UPSTREAM_FT_OFF as sys::ngx_uint_t);
    merge_paths(cf, o, i)
}

/// Headers of nginx's own that are not for clients, as in its uwsgi module.
const HIDDEN: [sys::ngx_str_t; 6] = [
    crate::pool::constant(c"X-Accel-Expires"),
    crate::pool::constant(c"X-Accel-Redirect"),
    crate::pool::constant(c"X-Accel-Limit-Rate"),
    crate::pool::constant(c"X-Accel-Buffering"),
    crate::pool::constant(c"X-Accel-Charset"),
    sys::ngx_str_t { len: 0, data: null_mut() },
];

fn merge_paths(
    cf: *mut sys::ngx_conf_t,
    o: &sys::ngx_http_upstream_conf_t,
    i: &mut sys::ngx_http_upstream_conf_t,
) -> Result<(), String> {
    // SAFETY: a constant of the shim, NUL-terminated.
    let near = unsafe { std::ffi::CStr::from_ptr((&raw const sys::mwr_uwsgi_temp_path).cast()) };
    let name = near.to_string_lossy().replace("uwsgi", "wsgi");
    // SAFETY: nginx passes a live configuration; everything handed over lives in its pool or during the call (nginx
    // copies the default path's name, and the list of hidden headers).
    unsafe {
        let pool = Pool::new((*cf).pool);
        let mut init =
            sys::ngx_path_init_t { name: pool.string(name.as_bytes()).ok_or_else(String::new)?, level: [1, 2, 0] };
        if !sys::ngx_conf_merge_path_value(cf, &raw mut i.temp_path, o.temp_path, &raw mut init).is_null() {
            return Err(String::new());
        }
        let mut hash = sys::ngx_hash_init_t {
            hash: null_mut(),
            key: None,
            max_size: 512,
            bucket_size: 64,
            name: c"wsgi_hide_headers_hash".as_ptr().cast_mut(),
            pool: null_mut(),
            temp_pool: null_mut(),
        };
        let (hidden, outer) = (HIDDEN.as_ptr().cast_mut(), std::ptr::from_ref(o).cast_mut());
        if sys::ngx_http_upstream_hide_headers_hash(cf, i, outer, hidden, &raw mut hash) != 0 {
            return Err(String::new());
        }
    }
    Ok(())
}
