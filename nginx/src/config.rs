//! This module's slots in nginx's configuration: created, merged, found.
#![allow(unsafe_code)]

use crate::guard::callback;
use crate::handler;
use crate::peer;
use crate::pool::{Pool, bytes};
use crate::process::Generation;
use crate::settings;
use crate::sys;
use crate::variables;
use mod_wsgi_core::config::{DirConfig, Selector, ServerConfig};
use mod_wsgi_wire::control::Preload;
use mod_wsgi_wire::frame::Level;
use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;

/// `NGX_CONF_ERROR`
pub const ERROR: *mut c_char = usize::MAX as *mut c_char;
/// `NGX_CONF_UNSET`: of request buffering, the group decides.
pub const UNSET: sys::ngx_flag_t = sys::NGX_CONF_UNSET as sys::ngx_flag_t;
pub const UNSET_UINT: sys::ngx_uint_t = sys::ngx_uint_t::MAX;
pub const UNSET_SIZE: usize = usize::MAX;
pub const UNSET_MSEC: sys::ngx_msec_t = sys::ngx_msec_t::MAX;

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
    /// Some location has wsgi_ready.
    pub readiness: bool,
    /// The caches that wsgi_cache_path has declared: an array of pointers that nginx fills.
    pub caches: Option<NonNull<sys::ngx_array_t>>,
    /// Where nginx has the two variables that say what is to be asked of an expired response.
    pub conditions: Option<[sys::ngx_int_t; 2]>,
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
    /// So many of its next requests get connections of their own: an answer has needed one.
    pub aside: Cell<u32>,
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

/// Settings of a location. nginx's setters write into `upstream`, `next_upstream` and `buffers` by offset.
#[repr(C)]
pub struct Location {
    pub upstream: sys::ngx_http_upstream_conf_t,
    /// wsgi_next_upstream as configured; nginx's own mask lets every case through, and the row decides.
    pub next_upstream: sys::ngx_uint_t,
    /// wsgi_buffers as configured; no buffers: it is not.
    pub buffers: sys::ngx_bufs_t,
    /// Long answers may have larger buffers: see [`settings::LARGE`].
    pub enlarges: bool,
    server: sys::ngx_http_upstream_srv_conf_t,
    /// wsgi_cache: on or off. The zone is in `upstream`, or a value with variables.
    pub cache: Option<bool>,
    /// Null: the default key.
    pub cache_key: *mut sys::ngx_http_complex_value_t,
    /// wsgi_store: on or off.
    pub store: Option<bool>,
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
    preconfiguration: Some(variables::add),
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
        let (mut upstream, server): (sys::ngx_http_upstream_conf_t, sys::ngx_http_upstream_srv_conf_t) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        upstream.set_change_buffering(1);
        upstream.module = crate::pool::constant(c"wsgi");
        let mut location = Location {
            upstream,
            next_upstream: 0,
            buffers: sys::ngx_bufs_t { num: 0, size: 0 },
            enlarges: false,
            server,
            cache: None,
            cache_key: null_mut(),
            store: None,
            dir: DirConfig::default(),
            script: None,
            params: None,
            route: Rc::default(),
        };
        settings::begin(&mut location);
        // SAFETY: as in `create_main`.
        let pool = unsafe { Pool::new((*cf).pool) };
        pool.own(location).map_or(null_mut(), |p| p.cast())
    })
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
        let (outer, inner) = unsafe { (&mut *outer.cast::<Location>(), &mut *inner.cast::<Location>()) };
        match settings::merge(cf, outer, inner) {
            Ok(()) => {}
            Err(text) if text.is_empty() => return ERROR,
            Err(text) => {
                // nginx itself names the end of the block that was read last.
                let at = inner.script.as_ref().map(|s| format!(" (location of wsgi_script at {})", s.at));
                return fail(cf, &format!("{text}{}", at.unwrap_or_default()));
            }
        }
        // All fields, so that none is forgotten; the first eight are nginx's upstream settings, which have been merged.
        let Location {
            upstream: _,
            next_upstream: _,
            buffers: _,
            enlarges: _,
            server: _,
            cache: _,
            cache_key: _,
            store: _,
            dir,
            script: _,
            params,
            route: _,
        } = &*outer;
        inner.dir = dir.merged(&inner.dir);
        if inner.params.is_none() {
            inner.params = params.clone();
        }
        inherit_script(cf, outer, inner);
        if let Some(script) = inner.script.clone() {
            inner.server.peer.init = Some(peer::init);
            inner.upstream.upstream = &raw mut inner.server;
            match route(&inner.dir, &script) {
                Ok(route) => inner.route = Rc::new(route),
                Err(text) => return fail(cf, &text),
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

/// The name that a selector of configuration alone gives; `None`: it depends on the request.
fn literal(s: Option<&Selector>) -> Option<&str> {
    match s {
        None | Some(Selector::Global) => Some(""),
        Some(Selector::Literal(n)) => Some(n),
        Some(_) => None,
    }
}

/// Whether the groups that a place names are known without a request.
pub fn check_groups(d: &DirConfig) -> Result<(), String> {
    let refused = |name: &str, more: &str| {
        Err(format!("{name}: a name or %{{GLOBAL}}{more} is expected here, other %{{…}} depend on the request"))
    };
    if literal(d.process_group.as_ref()).is_none() {
        return refused("wsgi_process_group", "");
    }
    match &d.application_group {
        Some(Selector::Resource) => Ok(()),
        other if literal(other.as_ref()).is_some() => Ok(()),
        _ => refused("wsgi_application_group", " or %{RESOURCE}"),
    }
}

fn route(d: &DirConfig, script: &Script) -> Result<Route, String> {
    check_groups(d)?;
    let group = literal(d.process_group.as_ref()).unwrap_or_default().to_owned();
    let application = match &d.application_group {
        Some(Selector::Resource) => script.file.clone(),
        other => literal(other.as_ref()).unwrap_or_default().to_owned(),
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

/// The arguments of the directive under way, without its name.
pub fn words<'c>(cf: *mut sys::ngx_conf_t) -> Vec<&'c [u8]> {
    // SAFETY: nginx passes a live configuration; its arguments are an array of strings in the configuration's pool.
    unsafe {
        let args = &*(*cf).args;
        let all = std::slice::from_raw_parts(args.elts.cast::<sys::ngx_str_t>(), args.nelts);
        all.iter().skip(1).map(bytes).collect()
    }
}

pub fn fail(cf: *mut sys::ngx_conf_t, text: &str) -> *mut c_char {
    // SAFETY: a live configuration; the text is read during the call.
    unsafe { sys::mwr_conf_error(cf, text.as_ptr().cast(), text.len()) };
    ERROR
}

/// A location's settings, for one setter.
///
/// # Safety
/// `conf` is what nginx passes to a setter of a location: made by `create_location`, nobody else has it.
pub unsafe fn location<'c>(conf: *mut c_void) -> &'c mut Location {
    // SAFETY: see above.
    unsafe { &mut *conf.cast() }
}

/// A value with variables, compiled; nginx says what is wrong with it.
pub fn compile(cf: *mut sys::ngx_conf_t, text: &[u8]) -> Option<*mut sys::ngx_http_complex_value_t> {
    // SAFETY: nginx passes a live configuration; the compiled value and the text lie in its pool. All zero is how nginx's
    // own modules begin this record.
    unsafe {
        let pool = Pool::new((*cf).pool);
        let mut value = pool.string(text)?;
        let compiled = pool.zeroed::<sys::ngx_http_complex_value_t>();
        if compiled.is_null() {
            return None;
        }
        let mut ccv: sys::ngx_http_compile_complex_value_t = std::mem::zeroed();
        ccv.cf = cf;
        ccv.value = &raw mut value;
        ccv.complex_value = compiled;
        (sys::ngx_http_compile_complex_value(&raw mut ccv) == 0).then_some(compiled)
    }
}
