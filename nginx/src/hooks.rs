//! nginx's life cycle: checks when a configuration has been read, the supervisor when it comes into force, registration
//! in each worker process.
#![allow(unsafe_code)]

use crate::config::{ERROR, Main};
use crate::guard::callback;
use crate::log;
use crate::pool::{Pool, bytes};
use crate::process::{self, Generation};
use crate::sys;
use mod_wsgi_core::config::{ServerConfig, Surroundings, resolve};
use mod_wsgi_core::directives::nginx::spoken;
use mod_wsgi_core::options::GroupOptions;
use mod_wsgi_core::runtime::{self, Groups, Interpreters, Runtime, Site, Wanted};
use mod_wsgi_wire::frame::Level;
use std::ffi::{CStr, c_char, c_void};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::rc::Rc;
use std::time::Duration;

const OK: sys::ngx_int_t = sys::NGX_OK as sys::ngx_int_t;

/// The module of the core.
pub static CHECK_CONTEXT: CoreModule = CoreModule(sys::ngx_core_module_t {
    name: crate::pool::constant(c"wsgi_rs"),
    create_conf: None,
    init_conf: Some(check),
});
#[repr(transparent)]
pub struct CoreModule(sys::ngx_core_module_t);
// SAFETY: constant data that nginx only reads.
unsafe impl Sync for CoreModule {}

/// The http block's settings; `None` without one, or without anything of ours in it.
///
/// # Safety
/// `cycle` is a live cycle whose configuration has been read; nobody else has the settings while the result is used.
unsafe fn main_of<'c>(cycle: *mut sys::ngx_cycle_t) -> Option<&'c mut Main> {
    // SAFETY: see above; the slot is null or what `create_main` has made.
    let main = unsafe { sys::mwr_cycle_main_conf(cycle, crate::http_module()).cast::<Main>().as_mut() };
    main.filter(|m| !m.scripts.is_empty() || !m.settings.groups.is_empty())
}

/// The core's settings.
///
/// # Safety
/// `cycle` is a live cycle whose configuration has been read.
unsafe fn core_of<'c>(cycle: *mut sys::ngx_cycle_t) -> &'c sys::ngx_core_conf_t {
    // SAFETY: see above; the core's slot is always filled.
    unsafe { &*sys::mwr_core_conf(cycle, &raw mut sys::ngx_core_module).cast() }
}

fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn surroundings(core: &sys::ngx_core_conf_t, settings: &ServerConfig, connections: usize) -> Surroundings {
    let root = is_root();
    let (server_uid, server_gid) = if root {
        (core.user, core.group)
    } else {
        // SAFETY: no arguments, cannot fail.
        unsafe { (libc::geteuid(), libc::getegid()) }
    };
    let processes = u32::try_from(core.worker_processes).unwrap_or(1).max(1);
    Surroundings {
        root,
        server_uid,
        server_gid,
        python_home: settings.python_home.clone(),
        // Each waiting request takes two connections, the client's and the worker's.
        request_threads: (connections as u32 / 2).saturating_mul(processes).max(2),
        environ: runtime::environ(),
    }
}

/// Debian's service of nginx is killed 5 s after it was told to stop: the workers' end and its bound stay below.
const SHUTDOWN_TIMEOUT: f64 = 3.0;

/// Declared groups with nginx's defaults of `no-new-privileges` and `shutdown-timeout`, and the automatic one.
fn declared(main: &Main) -> Result<Vec<runtime::Declared>, String> {
    let site = Site { own: true, settings: &main.settings, defaults: None, virtual_name: None };
    let mut all = runtime::declared(&[site])?;
    for d in &mut all {
        d.options.no_new_privileges.get_or_insert(true);
        d.options.shutdown_timeout.get_or_insert(SHUTDOWN_TIMEOUT);
    }
    Ok(all)
}

fn is_used(main: &Main, o: &GroupOptions) -> bool {
    !o.name.is_empty() || main.scripts.iter().any(|(p, _)| p.group.is_empty())
}

/// The whole configuration has been read: users, interpreters, scripts. An error here fails `nginx -t`, a start, a reload;
/// a running server goes on with what it has.
unsafe extern "C" fn check(cycle: *mut sys::ngx_cycle_t, _: *mut c_void) -> *mut c_char {
    callback("init_conf", ERROR, || {
        // SAFETY: nginx passes the cycle it is making; its configuration has been read.
        let (main, core, cycle, signaller) = unsafe {
            let Some(main) = main_of(cycle) else { return null_mut() };
            (main, core_of(cycle), &*cycle, sys::ngx_process == sys::NGX_PROCESS_SIGNALLER as sys::ngx_uint_t)
        };
        if signaller {
            return null_mut();
        }
        // SAFETY: the cycle before; nginx's first one has no configuration.
        let reload = unsafe { !(*cycle.old_cycle).conf_ctx.is_null() };
        let problems = problems(main, core, cycle.connection_n, reload);
        for p in &problems {
            // The level of nginx's own messages about its configuration.
            for line in p.lines() {
                // SAFETY: a live log; the text is read during the call.
                unsafe { sys::mwr_log(cycle.log, sys::NGX_LOG_EMERG as _, line.as_ptr().cast(), line.len()) };
            }
        }
        if problems.is_empty() { null_mut() } else { ERROR }
    })
}

fn problems(main: &Main, core: &sys::ngx_core_conf_t, connections: usize, reload: bool) -> Vec<String> {
    let around = surroundings(core, &main.settings, connections);
    let mut found = Vec::new();
    let names = match declared(main) {
        Ok(all) => {
            let mut interpreters = Interpreters::default();
            for (i, d) in all.iter().enumerate().filter(|(_, d)| is_used(main, &d.options)) {
                // On a reload requests are served meanwhile, but not by the master: each worker checks its interpreter.
                let checked = resolve(&d.options, &around)
                    .and_then(|g| if reload { Ok(()) } else { interpreters.check(&g, around.root) });
                if let Err(e) = checked {
                    let at = main.declared.get(i).map_or("the automatic group", String::as_str);
                    found.push(format!("{}: {} in {at}", e.code(), spoken(&e.to_string())));
                }
            }
            all.into_iter().map(|d| d.options.name).collect()
        }
        Err(e) => {
            found.push(format!("MWR0101: {}", spoken(&e)));
            Vec::new()
        }
    };
    for (p, at) in &main.scripts {
        if !std::path::Path::new(&p.script).exists() {
            found.push(format!("MWR0103: wsgi_script: script '{}' does not exist in {at}", p.script));
        }
        if !p.group.is_empty() && !names.is_empty() && !names.contains(&p.group) {
            let text = mod_wsgi_core::error::RequestError::UnknownGroup(p.group.clone()).to_string();
            found.push(format!("MWR0201: {} in {at}", spoken(&text)));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// A configuration comes into force, in the master (or the process that becomes it). Never an error: nginx would end,
/// also when it is running and only reloads.
pub unsafe extern "C" fn init_module(cycle: *mut sys::ngx_cycle_t) -> sys::ngx_int_t {
    callback("init_module", OK, || {
        // SAFETY: nginx passes the cycle that is coming into force.
        unsafe {
            if sys::ngx_test_config != 0 {
                return OK;
            }
            if let Some(main) = main_of(cycle) {
                log::set_least(main.log_level);
                keep_environment(cycle);
                match start(main, cycle) {
                    Ok(generation) => main.generation = Some(Rc::new(generation)),
                    Err(e) => log::write((*cycle).log, Level::Crit, &spoken(&e)),
                }
            }
        }
        OK
    })
}

/// nginx hands its next binary (USR2) only the variables that `env` names: the workers of an upgraded server would lose
/// what this one was started with. All of them are named; `env` of the configuration goes first.
fn keep_environment(cycle: *mut sys::ngx_cycle_t) {
    // SAFETY: a live cycle whose configuration has been read; the core's list lies in its pool, as do the new entries,
    // which end in NUL as nginx reads them.
    unsafe {
        let core = sys::mwr_core_conf(cycle, &raw mut sys::ngx_core_module).cast::<sys::ngx_core_conf_t>();
        let (list, pool) = (&raw mut (*core).env, Pool::new((*cycle).pool));
        let named: Vec<Vec<u8>> = std::slice::from_raw_parts((*list).elts.cast::<sys::ngx_str_t>(), (*list).nelts)
            .iter()
            .map(|s| bytes(s).split(|b| *b == b'=').next().unwrap_or_default().to_vec())
            .collect();
        // NGINX is nginx's own: what it has to say of sockets.
        for name in
            runtime::environ().into_keys().filter(|n| n != "NGINX" && !named.iter().any(|known| known == n.as_bytes()))
        {
            let Some(text) = pool.string(name.as_bytes()) else { return };
            let Some(entry) = sys::ngx_array_push(list).cast::<sys::ngx_str_t>().as_mut() else { return };
            *entry = text;
        }
    }
}

fn start(main: &Main, cycle: *mut sys::ngx_cycle_t) -> Result<Generation, String> {
    // SAFETY: nginx passes a live cycle.
    let (core, cycle) = unsafe { (core_of(cycle), &*cycle) };
    let around = surroundings(core, &main.settings, cycle.connection_n);
    let groups = Groups::of(
        declared(main)?,
        &around,
        |o| is_used(main, o),
        |text| log::write(cycle.log, Level::Warn, &spoken(text)),
    );
    let run_dir = format!("{}.mod-wsgi-rs", prefix(main, core, cycle));
    let program = runtime::find_program(main.settings.supervisor.as_deref(), module_file().as_deref());
    let program = program.map_err(|e| e.to_string())?;
    let ids = (around.server_uid, around.server_gid);
    let runtime = Runtime::start(&program, &run_dir, ids.0, ids.1, groups.entries).map_err(|e| e.to_string())?;
    let mut preloads: Vec<_> = main.scripts.iter().map(|(p, _)| p.clone()).collect();
    preloads.sort();
    preloads.dedup();
    let roll_all = main.settings.reload_all.unwrap_or(false);
    // SAFETY: a flag that nginx sets once it has become a daemon.
    let moves = core.daemon != 0 && unsafe { sys::ngx_daemonized } == 0;
    let log_level = log_level(cycle).max(main.log_level.unwrap_or(Level::Crit));
    let preload = preloads;
    let wanted = Wanted { server: ids, roll_all, groups: groups.wanted, preload, log_level, moves };
    runtime.tell(&run_dir, wanted, error_log(cycle)).map_err(|e| e.to_string())?;
    watch_log(cycle);
    Ok(Generation { runtime, run_dir, patience: groups.longest + 1.0, readiness: main.readiness })
}

/// Prefix of the run directory. Two nginx beside each other have different pid files.
fn prefix(main: &Main, core: &sys::ngx_core_conf_t, cycle: &sys::ngx_cycle_t) -> String {
    match &main.settings.socket_prefix {
        Some(p) if p.starts_with('/') => p.clone(),
        Some(p) => format!("{}{p}", String::from_utf8_lossy(bytes(&cycle.prefix))),
        None => {
            let pid = String::from_utf8_lossy(bytes(&core.pid)).into_owned();
            pid.strip_suffix(".pid").map_or(pid.clone(), str::to_owned)
        }
    }
}

/// The least level the error log takes.
fn log_level(cycle: &sys::ngx_cycle_t) -> Level {
    // SAFETY: a cycle has a log.
    let most = unsafe { (*cycle.log).log_level };
    let all = [Level::Error, Level::Warn, Level::Notice, Level::Info, Level::Debug];
    all.into_iter().take_while(|l| log::number(*l) <= most).last().unwrap_or(Level::Crit)
}

/// The descriptor of the error log; standard error where it has none (syslog, memory).
fn error_log(cycle: &sys::ngx_cycle_t) -> BorrowedFd<'_> {
    // SAFETY: the file of a log is null or open for as long as the cycle; standard error is always open in nginx.
    unsafe {
        let file = (*cycle.log).file.as_ref().map(|f| f.fd).filter(|fd| *fd >= 0);
        BorrowedFd::borrow_raw(file.unwrap_or(libc::STDERR_FILENO))
    }
}

/// Has nginx call [`on_reopen`] when it opens its logs anew. It has no hook for that, but a callback for each file it has
/// open: the error log is entered a second time, behind the first, so that it is the new one when the callback runs.
fn watch_log(cycle: &sys::ngx_cycle_t) {
    // SAFETY: a live cycle with its log and lists; nginx copies nothing, and what is entered lives as long as the cycle.
    // nginx closes the descriptor with the cycle.
    unsafe {
        let Some(log) = (*cycle.log).file.as_ref().filter(|f| f.name.len > 0 && f.fd >= 0) else { return };
        let fd = libc::fcntl(log.fd, libc::F_DUPFD_CLOEXEC, 0);
        if fd < 0 {
            return;
        }
        let files = (&raw const cycle.open_files).cast_mut();
        let Some(entry) = sys::ngx_list_push(files).cast::<sys::ngx_open_file_t>().as_mut() else {
            libc::close(fd);
            return;
        };
        *entry = sys::ngx_open_file_t { fd, name: log.name, flush: Some(on_reopen), data: null_mut() };
    }
}

/// The error log has been opened anew (USR1, log rotation): the supervisor writes there, too.
unsafe extern "C" fn on_reopen(_: *mut sys::ngx_open_file_t, _: *mut sys::ngx_log_t) {
    callback("the reopening of the log", (), || {
        // SAFETY: nginx's number of the kind of this process, and the cycle in force.
        unsafe {
            let alone = [sys::NGX_PROCESS_MASTER, sys::NGX_PROCESS_SINGLE];
            if sys::ngx_cycle.is_null() || !alone.iter().any(|p| sys::ngx_process == *p as sys::ngx_uint_t) {
                return;
            }
            let cycle = sys::ngx_cycle;
            let Some(g) = main_of(cycle).and_then(|m| m.generation.as_ref()) else { return };
            if let Err(e) = g.runtime.reopened(&g.run_dir, error_log(&*cycle)) {
                log::write((*cycle).log, Level::Error, &e.to_string());
            }
        }
    });
}

/// The file this code was loaded from.
fn module_file() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: null_mut(),
    };
    // Not one of the exported lists: nginx has lists of the same names, and the loader may take those.
    // SAFETY: the address lies in this file; `info` is filled with pointers to the loader's own strings.
    unsafe {
        if libc::dladdr(crate::http_module().cast_const().cast(), &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        Some(PathBuf::from(String::from_utf8_lossy(CStr::from_ptr(info.dli_fname).to_bytes()).into_owned()))
    }
}

/// A process begins its work: those that serve requests register, the others give up the master's connection.
pub unsafe extern "C" fn init_process(cycle: *mut sys::ngx_cycle_t) -> sys::ngx_int_t {
    callback("init_process", OK, || {
        // SAFETY: nginx passes the process's cycle, of which it has its own copy.
        unsafe {
            if let Some(main) = main_of(cycle) {
                if sys::ngx_process == sys::NGX_PROCESS_HELPER as sys::ngx_uint_t {
                    if let Some(g) = &main.generation {
                        g.runtime.leave_master();
                    }
                } else {
                    if let Some(g) = &main.generation
                        && sys::ngx_process == sys::NGX_PROCESS_SINGLE as sys::ngx_uint_t
                    {
                        g.runtime.adopt();
                    }
                    serve(main);
                }
            }
        }
        OK
    })
}

fn serve(main: &Main) {
    let Some(generation) = &main.generation else { return };
    if let Err(e) = process::begin(generation.clone()) {
        log::process(Level::Crit, &format!("MWR0210: supervisor cannot be reached: {e}"));
    }
}

pub unsafe extern "C" fn exit_process(_: *mut sys::ngx_cycle_t) {
    callback("exit_process", (), || {
        if let Some(p) = process::current() {
            p.end();
        }
    });
}

/// nginx ends: waits, bounded, until the workers have gone, so that a service manager that kills what is left finds
/// nothing.
pub unsafe extern "C" fn exit_master(cycle: *mut sys::ngx_cycle_t) {
    callback("exit_master", (), || {
        // SAFETY: nginx passes the last cycle.
        let main = unsafe { main_of(cycle) };
        if let Some(g) = main.and_then(|m| m.generation.as_ref()) {
            g.runtime.adopt();
            g.runtime.end(true, Duration::from_secs_f64(g.patience));
        }
    });
}
