//! `_worker`: what the Python half (`mod_wsgi_rs`) needs done outside the interpreter. Loaded by `bootstrap.py` into the
//! interpreter of a daemon process group; one worker per process.
#![deny(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod call;
mod conn;
mod control;
mod environ;
mod fds;
mod file;
mod head;
mod input;
mod lane;
mod log;
mod respond;
mod scripts;
mod serve;
mod shared;
mod sys;
mod turn;
mod watch;

use mod_wsgi_wire::control::FromWorker;
use mod_wsgi_wire::frame::Level;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

fn shared() -> PyResult<&'static shared::Shared> {
    shared::get().ok_or_else(|| PyRuntimeError::new_err("not started"))
}

/// Reads the plan, takes over its descriptors, starts the control thread. Returns what the Python half needs of it.
#[pyfunction]
fn start(py: Python<'_>, plan_fd: i32) -> PyResult<Bound<'_, PyDict>> {
    let shared = shared::start(plan_fd).map_err(PyRuntimeError::new_err)?;
    control::spawn(shared)?;
    if shared.plan.threads == 1 {
        shared.turn.tick_for_one(|| shared.inside(), || shared.flush_lanes())?;
    }
    let plan = &shared.plan;
    let d = PyDict::new(py);
    d.set_item("group", &plan.group)?;
    d.set_item("application", &plan.application)?;
    d.set_item("slot", plan.slot)?;
    d.set_item("threads", plan.threads)?;
    d.set_item("processes", plan.processes)?;
    d.set_item("multiprocess", plan.multiprocess)?;
    d.set_item("home", &plan.home)?;
    d.set_item("python_path", &plan.python_path)?;
    d.set_item("shutdown_timeout", plan.shutdown_timeout)?;
    d.set_item("reload_on_changes", plan.reload_on_changes)?;
    let preload = PyList::empty(py);
    for p in plan.preload.iter().filter(|p| p.group == plan.group && p.application == plan.application) {
        preload.append((&p.script, &p.callable))?;
    }
    d.set_item("preload", preload)?;
    d.set_item("wakeup_fd", shared.wake_main.0.raw())?;
    if !plan.display_name.is_empty() {
        sys::set_command_line(plan.display_name.as_bytes())?;
        let name: Vec<u8> = plan.display_name.bytes().filter(|b| *b != 0).take(15).collect();
        if let Ok(name) = std::ffi::CString::new(name) {
            nix::sys::prctl::set_name(&name).map_err(|e| PyOSError::new_err(e as i32))?;
        }
    }
    Ok(d)
}

/// Begins to accept connections.
#[pyfunction]
fn listen() -> PyResult<()> {
    shared()?.listen().map_err(|e| PyOSError::new_err(format!("listening socket: {e}")))
}

/// Tells the supervisor that requests may come.
#[pyfunction]
fn ready(python: String) -> PyResult<()> {
    shared()?.tell(&FromWorker::Ready { python });
    Ok(())
}

/// Tells the supervisor that a script has been loaded, or why not.
#[pyfunction]
#[pyo3(signature = (script, callable, mtime, error = None))]
fn loaded(script: String, callable: String, mtime: u64, error: Option<String>) -> PyResult<()> {
    shared()?.tell(&FromWorker::Loaded { script, callable, mtime, error });
    Ok(())
}

/// Tells the supervisor of files whose changes bring new code, with the modification times of what was loaded
/// (microseconds, 0 = not known).
#[pyfunction]
fn files(files: Vec<(String, u64)>) -> PyResult<()> {
    shared()?.tell(&FromWorker::Files { files });
    Ok(())
}

/// Waits in the main thread until something wants Python's attention: a signal (its handlers have then run, and the
/// answer is `None`), the end of `timeout` milliseconds (likewise) or the order to end (its reason).
#[pyfunction]
#[pyo3(signature = (timeout = None))]
fn wait(py: Python<'_>, timeout: Option<u16>) -> PyResult<Option<String>> {
    let shared = shared()?;
    if let Some(exit) = shared.exit() {
        return Ok(Some(exit.reason));
    }
    py.detach(|| {
        // An interruption is as good as an event.
        let timeout = timeout.map_or(PollTimeout::NONE, PollTimeout::from);
        let _ = poll(&mut [PollFd::new(shared.wake_main.1.as_fd(), PollFlags::POLLIN)], timeout);
        let mut drop = [0; 256];
        let _ = nix::unistd::read(&shared.wake_main.1, &mut drop);
    });
    py.check_signals()?;
    Ok(shared.exit().map(|e| e.reason))
}

/// Asks the supervisor for a successor, after which this process ends. `False`: there is no supervisor.
#[pyfunction]
fn evict() -> PyResult<bool> {
    let shared = shared()?;
    shared.tell(&FromWorker::Evict);
    Ok(!shared.is_alone())
}

/// Number of the signal that writes the stacks of all threads.
#[pyfunction]
fn stacks_signal() -> i32 {
    sys::stacks_signal()
}

/// Orders the end of this process.
#[pyfunction]
fn request_exit(reason: &str, timeout: f64) -> PyResult<()> {
    shared()?.request_exit(reason, Duration::from_secs_f64(timeout.clamp(0.1, 1e6)));
    Ok(())
}

/// Waits until no request runs but those given up and their answers have been sent, at most half of the time that is left
/// until the deadline.
#[pyfunction]
fn wait_idle(py: Python<'_>) -> PyResult<bool> {
    let shared = shared()?;
    let Some(exit) = shared.exit() else { return Ok(true) };
    let until = Instant::now() + exit.deadline.saturating_duration_since(Instant::now()) / 2;
    Ok(py.detach(|| poll_until(until, || shared.inside() <= shared.watch.lost() && shared.lanes_sent())))
}

/// Waits until the supervisor has every message, at most a second.
#[pyfunction]
fn flush_messages(py: Python<'_>) -> PyResult<bool> {
    let shared = shared()?;
    let until = Instant::now() + Duration::from_secs(1);
    Ok(py.detach(|| {
        shared.wake(&shared.wake_control);
        poll_until(until, || shared.queue_empty())
    }))
}

fn poll_until(until: Instant, done: impl Fn() -> bool) -> bool {
    while !done() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Logs one record at a level (2 critical … 7 debug), tied to this thread's request if it serves one.
#[pyfunction]
fn log_record(level: u8, text: &str) {
    log::record(Level::from_u8(level), text);
}

/// Takes text written to a stream (0 stdout, 1 stderr, 2 wsgi.errors).
#[pyfunction]
fn write(stream: u8, text: &str) {
    log::write(log::Stream::from_u8(stream), text);
}

/// Sends the unfinished line of a stream, except inside a request, where it is sent at its end.
#[pyfunction]
fn flush(stream: u8) {
    if call::current_conn().is_none() {
        log::flush(log::Stream::from_u8(stream));
    }
}

/// In the child of a fork: closes every descriptor of ours.
#[pyfunction]
fn after_fork_in_child() {
    fds::close_all_in_child();
}

/// Whether events of requests are wanted.
#[pyfunction]
fn want_events(wanted: bool) -> PyResult<()> {
    shared()?.events.store(wanted, Relaxed);
    Ok(())
}

/// The extension module.
#[pymodule(gil_used = true)]
fn _worker(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("VERSION", env!("CARGO_PKG_VERSION"))?;
    m.add_function(wrap_pyfunction!(start, m)?)?;
    m.add_function(wrap_pyfunction!(listen, m)?)?;
    m.add_function(wrap_pyfunction!(ready, m)?)?;
    m.add_function(wrap_pyfunction!(loaded, m)?)?;
    m.add_function(wrap_pyfunction!(files, m)?)?;
    m.add_function(wrap_pyfunction!(wait, m)?)?;
    m.add_function(wrap_pyfunction!(request_exit, m)?)?;
    m.add_function(wrap_pyfunction!(evict, m)?)?;
    m.add_function(wrap_pyfunction!(stacks_signal, m)?)?;
    m.add_function(wrap_pyfunction!(wait_idle, m)?)?;
    m.add_function(wrap_pyfunction!(flush_messages, m)?)?;
    m.add_function(wrap_pyfunction!(log_record, m)?)?;
    m.add_function(wrap_pyfunction!(write, m)?)?;
    m.add_function(wrap_pyfunction!(flush, m)?)?;
    m.add_function(wrap_pyfunction!(after_fork_in_child, m)?)?;
    m.add_function(wrap_pyfunction!(want_events, m)?)?;
    m.add_function(wrap_pyfunction!(serve::configure, m)?)?;
    m.add_function(wrap_pyfunction!(serve::serve, m)?)?;
    m.add_function(wrap_pyfunction!(scripts::register_app, m)?)?;
    m.add_function(wrap_pyfunction!(call::request_data, m)?)?;
    m.add_function(wrap_pyfunction!(call::active_requests, m)?)?;
    Ok(())
}
