//! httpd's command table, made from the one table in core. Every directive takes raw arguments and is read there.
#![allow(unsafe_code)]

use crate::config::Host;
use crate::guard::callback;
use crate::pool::{Pool, c_str};
use crate::sys;
use mod_wsgi_core::config::{DirConfig, ServerConfig};
use mod_wsgi_core::directives::{self, Context, TABLE, Target};
use std::ffi::{c_char, c_int, c_void};

/// A table httpd only reads.
pub struct Commands([sys::command_rec; TABLE.len() + 1]);

// SAFETY: constant data; the pointers lead to static strings.
unsafe impl Sync for Commands {}

impl Commands {
    pub const fn as_ptr(&self) -> *const sys::command_rec {
        self.0.as_ptr()
    }
}

const fn overrides(context: Context) -> c_int {
    (match context {
        // `Server` is refused elsewhere by the setter: httpd has one flag for both.
        Context::Server | Context::Host => sys::RSRC_CONF,
        Context::Directory => sys::RSRC_CONF | sys::ACCESS_CONF,
        Context::File => sys::OR_FILEINFO,
        Context::Auth => sys::OR_AUTHCFG,
    }) as c_int
}

const END: sys::command_rec = sys::command_rec {
    name: std::ptr::null(),
    func: sys::cmd_func { no_args: None },
    cmd_data: std::ptr::null_mut(),
    req_override: 0,
    args_how: sys::RAW_ARGS,
    errmsg: std::ptr::null(),
};

pub static COMMANDS: Commands = {
    let mut all = [END; TABLE.len() + 1];
    let mut i = 0;
    while i < TABLE.len() {
        all[i] = sys::command_rec {
            name: TABLE[i].c_name.as_ptr(),
            func: sys::cmd_func { raw_args: Some(set) },
            cmd_data: std::ptr::without_provenance_mut(i),
            req_override: overrides(TABLE[i].context),
            args_how: sys::RAW_ARGS,
            errmsg: TABLE[i].c_help.as_ptr(),
        };
        i += 1;
    }
    Commands(all)
};

unsafe extern "C" fn set(cmd: *mut sys::cmd_parms, dir: *mut c_void, args: *const c_char) -> *const c_char {
    callback("a directive", c"mod_wsgi_rs: internal error".as_ptr(), || {
        // SAFETY: httpd passes live parameters; `dir` is a DirConfig made by `create_dir` that only this call refers to.
        let (index, pool, dir, in_host, htaccess) = unsafe {
            let c = &*cmd;
            let main = (sys::RSRC_CONF | sys::ACCESS_CONF) as sys::overrides_t;
            (
                (*c.cmd).cmd_data.addr(),
                Pool::new(c.pool),
                &mut *dir.cast::<DirConfig>(),
                (*c.server).is_virtual != 0,
                c.override_ as sys::overrides_t & main == 0,
            )
        };
        // A `.htaccess` is read while requests are served: the server's settings are shared then, and none of the
        // directives that may stand there changes them.
        let mut nobody = ServerConfig::default();
        let server = if htaccess {
            &mut nobody
        } else {
            // SAFETY: the server's slot holds a Host made by `create_server`; during configuration nobody else refers
            // to it.
            unsafe {
                let host = sys::mwr_module_config((*(*cmd).server).module_config, &raw const crate::wsgi_module);
                &mut (*host.cast::<Host>()).settings
            }
        };
        let fail = |message: String| pool.c_string(message.as_bytes()).cast_const();
        if in_host && TABLE.get(index).is_some_and(|d| d.context == Context::Server) {
            return fail(format!("{} stands in the main server's configuration only", TABLE[index].name));
        }
        let text = String::from_utf8_lossy(c_str(args).unwrap_or_default()).into_owned();
        let mut compile = |p: &str| pool.regex(p).ok_or_else(|| format!("regular expression '{p}' cannot be compiled"));
        let mut target = Target { server, dir, compile: &mut compile };
        match directives::apply(index, &mut target, &directives::split_words(&text)) {
            Ok(()) => std::ptr::null(),
            Err(message) => fail(message),
        }
    })
}
