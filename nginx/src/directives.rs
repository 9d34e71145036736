//! nginx's command table, made from the table in core.
#![allow(unsafe_code)]

use crate::config::{ERROR, Param, Script, Value, check_groups, compile, fail, location, main_of, place, words};
use crate::guard::callback;
use crate::handler;
use crate::pool::{Pool, bytes, constant};
use crate::ready;
use crate::settings::{self, Reading, Set};
use crate::sys;
use mod_wsgi_core::config::ServerConfig;
use mod_wsgi_core::directives::nginx::{Kind, NGINX, Place, spoken};
use mod_wsgi_core::directives::{self, Target};
use mod_wsgi_core::options;
use mod_wsgi_wire::frame::Level;
use std::ffi::{c_char, c_void};
use std::mem::offset_of;
use std::ptr::null_mut;
use std::rc::Rc;

/// Tables nginx only reads.
pub struct Commands<const N: usize>([sys::ngx_command_t; N]);
// SAFETY: constant data; the pointers lead to static strings and tables.
unsafe impl<const N: usize> Sync for Commands<N> {}

impl<const N: usize> Commands<N> {
    pub const fn as_ptr(&self) -> *const sys::ngx_command_t {
        self.0.as_ptr()
    }
}

const END: sys::ngx_command_t = sys::ngx_command_t {
    name: sys::ngx_str_t { len: 0, data: null_mut() },
    type_: 0,
    set: None,
    conf: 0,
    offset: 0,
    post: null_mut(),
};

/// For a module without directives.
pub static NONE: Commands<1> = Commands([END]);

const LOCATION: usize = offset_of!(sys::ngx_http_conf_ctx_t, loc_conf);

const fn contexts(place: Place) -> u32 {
    match place {
        Place::Http => sys::NGX_HTTP_MAIN_CONF,
        Place::Server => sys::NGX_HTTP_MAIN_CONF | sys::NGX_HTTP_SRV_CONF,
        Place::Location => sys::NGX_HTTP_MAIN_CONF | sys::NGX_HTTP_SRV_CONF | sys::NGX_HTTP_LOC_CONF,
        Place::Content => sys::NGX_HTTP_LOC_CONF | sys::NGX_HTTP_LIF_CONF,
    }
}

pub static COMMANDS: Commands<{ NGINX.len() + 1 }> = {
    let mut all = [END; NGINX.len() + 1];
    let mut i = 0;
    while i < NGINX.len() {
        let d = &NGINX[i];
        let (arguments, set, offset, post): (u32, Set, usize, *mut c_void) = match d.kind {
            Kind::Shared(_) => (sys::NGX_CONF_ANY, set_shared, 0, std::ptr::without_provenance_mut(i)),
            Kind::Script => (sys::NGX_CONF_TAKE12, set_script, 0, null_mut()),
            Kind::Param => (sys::NGX_CONF_TAKE23, add_param, 0, null_mut()),
            Kind::LogLevel => (sys::NGX_CONF_TAKE1, set_log_level, 0, null_mut()),
            Kind::Ready => (sys::NGX_CONF_NOARGS, set_ready, 0, null_mut()),
            Kind::Upstream(s) => {
                let Reading { arguments, set, offset, post } = settings::reading(s);
                (arguments, set, offset, post)
            }
        };
        all[i] = sys::ngx_command_t {
            name: constant(d.c_name),
            type_: (contexts(d.place) | arguments) as sys::ngx_uint_t,
            set: Some(set),
            conf: LOCATION as sys::ngx_uint_t,
            offset: offset as sys::ngx_uint_t,
            post,
        };
        i += 1;
    }
    Commands(all)
};

unsafe extern "C" fn set_shared(
    cf: *mut sys::ngx_conf_t,
    cmd: *mut sys::ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    callback("a directive", ERROR, || {
        // SAFETY: nginx passes its own copy of a command of the table, and the location's settings.
        let (index, loc) = unsafe { ((*cmd).post.addr(), location(conf)) };
        let words: Vec<String> = words(cf).iter().map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        let Some(d) = NGINX.get(index) else { return ERROR };
        let Kind::Shared(name) = d.kind else { return ERROR };
        let Some(shared) = directives::nginx::shared_index(name) else { return ERROR };
        if name == "WSGIDaemonProcess"
            && let Err(e) = options::check_for_nginx(&words)
        {
            return fail(cf, &spoken(&e));
        }
        let main = main_of(cf);
        let mut compile = |_: &str| Err("regular expressions have no place here".to_owned());
        let mut fresh = ServerConfig::default();
        let mut target = Target { server: &mut fresh, dir: &mut loc.dir, compile: &mut compile };
        if let Err(e) = directives::apply(shared, &mut target, &words) {
            return fail(cf, &spoken(&e));
        }
        if let Err(e) = check_groups(&loc.dir) {
            return fail(cf, &e);
        }
        let taken = |n: &str| main.settings.groups.iter().any(|g| g.name == n);
        if let Some(twice) = fresh.groups.iter().find(|g| taken(&g.name)) {
            let text = format!("{} {}: the name is used twice; choose another for one of them", d.name, twice.name);
            return fail(cf, &text);
        }
        let n = fresh.groups.len();
        main.declared.extend(std::iter::repeat_n(place(cf), n));
        take_over(&mut main.settings, fresh);
        null_mut()
    })
}

/// What one directive has set goes into the http block's settings.
fn take_over(to: &mut ServerConfig, from: ServerConfig) {
    let ServerConfig {
        aliases: _,
        groups,
        socket_prefix,
        restrict_embedded: _,
        python_home,
        python_path,
        reload_all,
        supervisor,
        without_effect,
        ..
    } = from;
    to.groups.extend(groups);
    to.socket_prefix = socket_prefix.or(to.socket_prefix.take());
    to.python_home = python_home.or(to.python_home.take());
    to.python_path.extend(python_path);
    to.reload_all = reload_all.or(to.reload_all);
    to.supervisor = supervisor.or(to.supervisor.take());
    to.without_effect.extend(without_effect);
}

unsafe extern "C" fn set_script(
    cf: *mut sys::ngx_conf_t,
    _: *mut sys::ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    callback("wsgi_script", ERROR, || {
        // SAFETY: nginx passes a live configuration and the location's settings.
        let loc = unsafe { location(conf) };
        if loc.script.is_some() {
            return c"is duplicate".as_ptr().cast_mut();
        }
        let words = words(cf);
        let (file, mount): (&[u8], &[u8]) = match words[..] {
            [file] => (file, b""),
            [file, option] => match option.strip_prefix(b"mount=") {
                Some(m) if m.starts_with(b"/") => (file, m.strip_suffix(b"/").unwrap_or(m)),
                _ => {
                    let option = String::from_utf8_lossy(option).into_owned();
                    return fail(cf, &format!("wsgi_script: '{option}' is not mount=/prefix"));
                }
            },
            _ => return ERROR,
        };
        if file.contains(&b'$') {
            return fail(
                cf,
                "wsgi_script: the file's name cannot contain variables: use a location for each application",
            );
        }
        // SAFETY: as above; the core's settings of this location are made before any module's directive is read. nginx
        // makes a relative name absolute in the configuration's pool.
        let name = unsafe {
            let mut name = match Pool::new((*cf).pool).string(file) {
                Some(name) => name,
                None => return ERROR,
            };
            if sys::ngx_conf_full_name((*cf).cycle, &raw mut name, 0) != 0 {
                return ERROR;
            }
            let ctx = (*cf).ctx.cast::<sys::ngx_http_conf_ctx_t>();
            let core = *(*ctx).loc_conf.add(sys::ngx_http_core_module.ctx_index);
            let core = &mut *core.cast::<sys::ngx_http_core_loc_conf_t>();
            core.handler = Some(handler::handle);
            if bytes(&core.name).ends_with(b"/") {
                core.set_auto_redirect(1);
            }
            String::from_utf8_lossy(bytes(&name)).into_owned()
        };
        loc.script = Some(Rc::new(Script {
            file: name,
            mount: mount.to_vec(),
            at: place(cf),
            seen: Default::default(),
            aside: Default::default(),
        }));
        null_mut()
    })
}

unsafe extern "C" fn set_ready(cf: *mut sys::ngx_conf_t, _: *mut sys::ngx_command_t, _: *mut c_void) -> *mut c_char {
    callback("wsgi_ready", ERROR, || {
        main_of(cf).readiness = true;
        // SAFETY: nginx passes a live configuration; the core's settings of this location are made before any module's
        // directive is read.
        unsafe {
            let ctx = (*cf).ctx.cast::<sys::ngx_http_conf_ctx_t>();
            let core = *(*ctx).loc_conf.add(sys::ngx_http_core_module.ctx_index);
            (*core.cast::<sys::ngx_http_core_loc_conf_t>()).handler = Some(ready::handle);
        }
        null_mut()
    })
}

unsafe extern "C" fn set_log_level(
    cf: *mut sys::ngx_conf_t,
    _: *mut sys::ngx_command_t,
    _: *mut c_void,
) -> *mut c_char {
    callback("wsgi_log_level", ERROR, || {
        let main = main_of(cf);
        if main.log_level.is_some() {
            return c"is duplicate".as_ptr().cast_mut();
        }
        main.log_level = match words(cf)[..] {
            [b"error"] => Some(Level::Error),
            [b"warn"] => Some(Level::Warn),
            [b"notice"] => Some(Level::Notice),
            [b"info"] => Some(Level::Info),
            [b"debug"] => Some(Level::Debug),
            _ => return fail(cf, "wsgi_log_level: must be error, warn, notice, info or debug"),
        };
        null_mut()
    })
}

unsafe extern "C" fn add_param(cf: *mut sys::ngx_conf_t, _: *mut sys::ngx_command_t, conf: *mut c_void) -> *mut c_char {
    callback("wsgi_param", ERROR, || {
        // SAFETY: nginx passes a live configuration and the location's settings.
        let loc = unsafe { location(conf) };
        let words = words(cf);
        let [key, value, rest @ ..] = &words[..] else { return ERROR };
        let if_not_empty = match rest {
            [] => false,
            [b"if_not_empty"] => true,
            [other, ..] => {
                let text = format!("wsgi_param: '{}' is not known; if_not_empty is", String::from_utf8_lossy(other));
                return fail(cf, &text);
            }
        };
        let value = if value.contains(&b'$') {
            match compile(cf, value) {
                Some(v) => Value::Variable(v),
                None => return ERROR,
            }
        } else {
            Value::Constant(value.to_vec())
        };
        let mut all = loc.params.take().map(|p| (*p).clone()).unwrap_or_default();
        all.push(Param { key: key.to_vec(), value, if_not_empty });
        loc.params = Some(Rc::new(all));
        null_mut()
    })
}
