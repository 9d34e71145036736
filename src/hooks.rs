//! httpd's life cycle: checks when a configuration has been read, the supervisor in post_config, registration in each
//! child, aliases when a URL is translated.
#![allow(unsafe_code)]

use crate::access;
use crate::config::{self, Host};
use crate::guard::callback;
use crate::handler;
use crate::ledger::Ledger;
use crate::log;
use crate::pool::{Pool, c_str};
use crate::request::Request;
use crate::runtime::Runtime;
use crate::sys;
use crate::walk::{self, Shadows};
use mod_wsgi_core::config::{Pattern, Surroundings, match_prefix, resolve};
use mod_wsgi_core::options::GroupOptions;
use mod_wsgi_core::runtime::{self, Groups, Interpreters, Site, Wanted};
use mod_wsgi_core::spool;
use mod_wsgi_wire::frame::Level;
use std::ffi::{CStr, c_int, c_void};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

const OK: c_int = sys::OK as c_int;
const FAILED: c_int = sys::HTTP_INTERNAL_SERVER_ERROR as c_int;

/// Where the parent's pconf cleanup finds the runtime, and how long it may wait.
struct Ending(*const Runtime, Duration);

pub unsafe extern "C" fn register(_: *mut sys::apr_pool_t) {
    callback("register_hooks", (), || {
        // mod_alias first, so that Alias /static/ beside WSGIScriptAlias / works in any order of the file.
        static AFTER_ALIAS: Names = Names([c"mod_alias.c".as_ptr(), std::ptr::null()]);
        static BEFORE: Names = Names([c"mod_userdir.c".as_ptr(), std::ptr::null()]);
        let none = std::ptr::null();
        // SAFETY: httpd calls this while it loads the module; functions and lists are static.
        unsafe {
            let middle = sys::APR_HOOK_MIDDLE as c_int;
            sys::ap_hook_pre_config(Some(access::pre_config), none, none, middle);
            sys::ap_hook_check_config(Some(check_config), none, none, middle);
            sys::ap_hook_post_config(Some(post_config), none, none, middle);
            sys::ap_hook_child_init(Some(child_init), none, none, middle);
            sys::ap_hook_translate_name(Some(translate), AFTER_ALIAS.0.as_ptr(), BEFORE.0.as_ptr(), middle);
            // Just before core's, which is last of all.
            sys::ap_hook_map_to_storage(Some(map_to_storage), none, none, sys::APR_HOOK_LAST as c_int);
            sys::ap_hook_handler(Some(handle), none, none, middle);
        }
    });
}

struct Names([*const std::ffi::c_char; 2]);
// SAFETY: constant pointers to static strings.
unsafe impl Sync for Names {}

fn state() -> (u32, u32) {
    // SAFETY: reads two global integers of httpd.
    unsafe {
        (
            sys::ap_state_query(sys::AP_SQ_MAIN_STATE as c_int) as u32,
            sys::ap_state_query(sys::AP_SQ_RUN_MODE as c_int) as u32,
        )
    }
}

fn mpm_number(what: u32) -> u32 {
    let mut n = 0;
    // SAFETY: fills one integer.
    let rv = unsafe { sys::ap_mpm_query(what as c_int, &mut n) };
    if rv == 0 { u32::try_from(n).unwrap_or(0) } else { 0 }
}

/// Whether this is a restart of a running server: an error would end it, so there is none.
fn is_restart() -> bool {
    mpm_number(sys::AP_MPMQ_GENERATION) > 0
}

fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Version of the running httpd.
fn server_version() -> String {
    // SAFETY: an all-zero record is valid (integers and a null string), and httpd only fills it.
    let v = unsafe {
        let mut v: sys::ap_version_t = std::mem::zeroed();
        sys::ap_get_server_revision(&mut v);
        v
    };
    format!("{}.{}.{}", v.major, v.minor, v.patch)
}

/// Who serves requests.
fn server_ids() -> (u32, u32) {
    if is_root() {
        // SAFETY: httpd's record of User and Group, filled while the configuration was read.
        unsafe { (sys::ap_unixd_config.user_id, sys::ap_unixd_config.group_id) }
    } else {
        // SAFETY: no arguments, cannot fail.
        unsafe { (libc::geteuid(), libc::getegid()) }
    }
}

fn sites<'s>(main: *mut sys::server_rec) -> Vec<Site<'s>> {
    // A virtual host without a directive of ours shares the main server's settings: the same pointer.
    let mut seen: Vec<*const Host> = Vec::new();
    config::servers(main)
        .filter_map(|s| {
            let host: &Host = config::host_of(s)?;
            let own = !seen.contains(&std::ptr::from_ref(host));
            seen.push(host);
            // SAFETY: a live server of the list.
            let virtual_name = unsafe { ((*s).is_virtual != 0).then(|| c_str((*s).server_hostname)) };
            let virtual_name = virtual_name.map(|n| n.unwrap_or_default().to_vec());
            Some(Site { own, settings: &host.settings, defaults: config::server_dir(s), virtual_name })
        })
        .collect()
}

fn surroundings(main: &Site<'_>) -> Surroundings {
    let (server_uid, server_gid) = server_ids();
    Surroundings {
        root: is_root(),
        server_uid,
        server_gid,
        python_home: main.settings.python_home.clone(),
        request_threads: mpm_number(sys::AP_MPMQ_MAX_DAEMONS)
            .saturating_mul(mpm_number(sys::AP_MPMQ_MAX_THREADS))
            .max(2),
        environ: runtime::environ(),
    }
}

/// Checks users, interpreters and scripts. An error in `configtest` and at the first start; on a restart a warning,
/// and the group answers 503.
unsafe extern "C" fn check_config(
    _: *mut sys::apr_pool_t,
    _: *mut sys::apr_pool_t,
    _: *mut sys::apr_pool_t,
    main: *mut sys::server_rec,
) -> c_int {
    callback("check_config", FAILED, || {
        let (at, mode) = state();
        let restart = is_restart();
        let first_pass = at == sys::AP_SQ_MS_CREATE_PRE_CONFIG || mode == sys::AP_SQ_RM_CONFIG_TEST;
        if !first_pass && !restart {
            // The second reading of the first start: the same as the first a moment ago.
            return OK;
        }
        let sites = sites(main);
        let Some(first) = sites.first() else { return OK };
        let around = surroundings(first);
        let mut problems = Vec::new();
        match runtime::declared(&sites) {
            Err(e) => problems.push(format!("MWR0101: {e}")),
            Ok(all) => {
                let automatic = runtime::needs_automatic(&sites);
                let mut interpreters = Interpreters::default();
                for d in all.iter().filter(|d| !d.options.name.is_empty() || automatic) {
                    // On a restart nobody is served meanwhile: that the file is there must do, and each worker checks
                    // its interpreter again.
                    let checked = resolve(&d.options, &around)
                        .and_then(|g| if restart { Ok(()) } else { interpreters.check(&g, around.root) });
                    if let Err(e) = checked {
                        problems.push(format!("{}: {e}", e.code()));
                    }
                }
                for found in interpreters.found() {
                    let level = if mode == sys::AP_SQ_RM_CONFIG_TEST { Level::Notice } else { Level::Info };
                    log::process(level, &format!("interpreter {found}"));
                }
            }
        }
        for site in &sites {
            for a in site.settings.aliases.iter() {
                if let Some(script) = a.single_script()
                    && !std::path::Path::new(script).exists()
                {
                    problems.push(format!("MWR0103: WSGIScriptAlias {}: script '{script}' does not exist", a.from));
                }
            }
        }
        problems.sort();
        problems.dedup();
        for p in &problems {
            log::process(if restart { Level::Warn } else { Level::Error }, p);
        }
        if problems.is_empty() || restart { OK } else { FAILED }
    })
}

unsafe extern "C" fn post_config(
    pconf: *mut sys::apr_pool_t,
    _: *mut sys::apr_pool_t,
    _: *mut sys::apr_pool_t,
    main: *mut sys::server_rec,
) -> c_int {
    callback("post_config", FAILED, || {
        let (at, mode) = state();
        if at == sys::AP_SQ_MS_CREATE_PRE_CONFIG || mode != sys::AP_SQ_RM_NORMAL {
            // httpd reads its configuration twice at start, and what the first pass starts loses its parent.
            return OK;
        }
        // SAFETY: httpd passes its live configuration pool.
        let pool = unsafe { Pool::new(pconf) };
        match start(pool, main) {
            Ok(()) => OK,
            Err(e) if is_restart() => {
                // An error now would end a running server: requests get 503 until the next restart.
                log::process(Level::Crit, &e);
                OK
            }
            Err(e) => {
                log::process(Level::Crit, &e);
                FAILED
            }
        }
    })
}

fn start(pool: Pool<'_>, main: *mut sys::server_rec) -> Result<(), String> {
    let sites = sites(main);
    let Some(first) = sites.first() else { return Ok(()) };
    for name in sites.iter().flat_map(|s| &s.settings.without_effect).collect::<std::collections::BTreeSet<_>>() {
        log::process(Level::Warn, &format!("MWR0104: {name} is accepted but has no effect in this version"));
    }
    let around = surroundings(first);
    let used = |o: &GroupOptions| !o.name.is_empty() || runtime::needs_automatic(&sites);
    let groups = Groups::of(runtime::declared(&sites)?, &around, used, |text| log::process(Level::Warn, text));
    let own_pools = sites.iter().filter(|s| shares_nothing(s)).count();
    if own_pools > 0 {
        log::process(
            Level::Notice,
            "applications without WSGIApplicationGroup get worker processes of their own; \
             'WSGIApplicationGroup %{GLOBAL}' lets them share those of their process group and saves that memory",
        );
    }
    let prefix = first.settings.socket_prefix.as_deref().unwrap_or("wsgi");
    let base = pool.runtime_path(prefix).ok_or_else(|| format!("MWR0107: WSGISocketPrefix '{prefix}' is no path"))?;
    let run_dir = format!("{base}.mod-wsgi-rs");
    let program = runtime::find_program(first.settings.supervisor.as_deref(), module_file().as_deref());
    let program = program.map_err(|e| e.to_string())?;
    let ids = server_ids();
    let common =
        runtime::Runtime::start(&program, &run_dir, ids.0, ids.1, groups.entries).map_err(|e| e.to_string())?;
    let spool_directory = first.settings.spool_directory.clone().unwrap_or_else(|| spool::DIRECTORY.to_owned());
    let spool_limit = first.settings.spool_limit.unwrap_or_else(|| spool::default_limit(&spool_directory));
    let ledger = Ledger::new(spool_limit).map_err(|e| format!("MWR0109: shared memory cannot be had: {e}"))?;
    let shadows = Shadows::of(pool, config::servers(main));
    let rt = Runtime { common, shadows, version: server_version(), spool_directory, ledger };
    let roll_all = first.settings.reload_all.unwrap_or(true);
    let (preload, log_level) = (runtime::preloads(&sites), log_level(main));
    let wanted = Wanted { server: ids, roll_all, groups: groups.wanted, preload, log_level, moves: false };
    rt.tell(&run_dir, wanted, std::io::stderr().as_fd()).map_err(|e| e.to_string())?;
    let rt = pool.own(rt);
    let ending = pool.own(Ending(rt, Duration::from_secs_f64(groups.longest + 1.0)));
    // SAFETY: the pool is live; registered after `own`, so that it runs before the runtime is dropped (last in, first
    // out). Nothing of ours goes into the process pool: this file is unmapped at every restart.
    unsafe {
        sys::apr_pool_cleanup_register(pool.raw(), ending.cast(), Some(end), Some(sys::apr_pool_cleanup_null));
    }
    for s in config::servers(main) {
        if let Some(host) = config::host_of(s) {
            host.set_runtime(rt);
        }
    }
    Ok(())
}

/// Whether a site has an alias whose application group is left at its default.
fn shares_nothing(site: &Site<'_>) -> bool {
    let outer = site.defaults.cloned().unwrap_or_default();
    site.settings.aliases.iter().any(|a| outer.merged(&a.dir).application_group.is_none())
}

fn log_level(main: *mut sys::server_rec) -> Level {
    let mut level = Level::Crit;
    for l in [Level::Error, Level::Warn, Level::Notice, Level::Info, Level::Debug] {
        // SAFETY: a live server; the index is this module's.
        let logged = unsafe { sys::mwr_logs_s(main, crate::wsgi_module.module_index, l as c_int) != 0 };
        if logged {
            level = l;
        }
    }
    level
}

/// The file this code was loaded from.
fn module_file() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: the address lies in this file; `info` is filled with pointers to the loader's own strings.
    unsafe {
        if libc::dladdr((&raw const crate::wsgi_module).cast(), &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        Some(PathBuf::from(String::from_utf8_lossy(CStr::from_ptr(info.dli_fname).to_bytes()).into_owned()))
    }
}

/// The configuration pool is being cleared: a restart or the end.
unsafe extern "C" fn end(data: *mut c_void) -> sys::apr_status_t {
    callback("the configuration's cleanup", 0, || {
        // SAFETY: `data` is the Ending of `start`, in the same pool; the runtime it names is dropped after this.
        unsafe {
            let e = &*data.cast::<Ending>();
            (*e.0).end(state().0 == sys::AP_SQ_MS_EXITING, e.1);
        }
        0
    })
}

unsafe extern "C" fn child_init(_: *mut sys::apr_pool_t, main: *mut sys::server_rec) {
    callback("child_init", (), || {
        if let Some(rt) = config::host_of(main).and_then(Host::runtime)
            && let Err(e) = rt.begin_child()
        {
            log::process(Level::Crit, &format!("MWR0108: this process cannot register with the supervisor: {e}"));
        }
    });
}

/// WSGIScriptAlias and WSGIScriptAliasMatch: the first that matches maps the request.
unsafe extern "C" fn translate(r: *mut sys::request_rec) -> c_int {
    callback("translate_name", FAILED, || {
        // SAFETY: httpd passes a live request.
        let r = unsafe { Request::new(r) };
        let Some(host) = config::host(&r) else { return sys::DECLINED };
        let uri = r.uri();
        if host.settings.aliases.is_empty() || !uri.starts_with(b"/") {
            return sys::DECLINED;
        }
        for a in &host.settings.aliases {
            let file = match &a.pattern {
                Pattern::Prefix(p) => {
                    let Some(n) = match_prefix(uri, p) else { continue };
                    // "/" leads to the script itself: all of the URL is its path info.
                    let rest = if p == "/" { uri } else { &uri[n..] };
                    if a.is_file && (rest.is_empty() || rest[0] == b'/') {
                        // httpd's directory walk keeps a path info it finds set, and has one file to stat instead of
                        // every prefix of script and path info.
                        r.set_path_info(rest);
                        a.script.clone().into_bytes()
                    } else {
                        [a.script.as_bytes(), rest].concat()
                    }
                }
                Pattern::Regex(re) => match r.substitute(*re, uri, &a.script) {
                    Some(file) => file,
                    None => continue,
                },
            };
            r.set_filename(&file);
            r.set_handler(c"wsgi-script");
            r.notes().set(c"alias-forced-type", b"wsgi-script");
            config::set_alias(&r, &a.dir);
            return OK;
        }
        sys::DECLINED
    })
}

/// The directory walk for what `translate` has mapped.
unsafe extern "C" fn map_to_storage(r: *mut sys::request_rec) -> c_int {
    callback("map_to_storage", FAILED, || {
        // SAFETY: httpd passes a live request.
        let r = unsafe { Request::new(r) };
        match config::alias(&r).and(config::host(&r)).and_then(Host::runtime) {
            Some(rt) => walk::run(&r, &rt.shadows),
            None => sys::DECLINED,
        }
    })
}

unsafe extern "C" fn handle(r: *mut sys::request_rec) -> c_int {
    callback("the handler", FAILED, || {
        // SAFETY: httpd passes a live request, valid until this returns.
        handler::handle(unsafe { Request::new(r) })
    })
}
