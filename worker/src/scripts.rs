//! Which callable a request runs. Loading is the Python half's (`mod_wsgi_rs.scripts`); here lies what has been loaded,
//! found again without a call into it.

use crate::shared::{self, lock};
use mod_wsgi_wire::control::FromWorker;
use mod_wsgi_wire::decode::Request;
use mod_wsgi_wire::keys;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A loaded script with one of its callables.
pub struct App {
    script: Box<[u8]>,
    callable: Box<[u8]>,
    /// The module's namespace: looked into at each request, since applications may replace their callable.
    namespace: Py<PyDict>,
    name: Py<PyString>,
    /// Further names of a dotted callable.
    attributes: Vec<Py<PyString>>,
    /// Modification time when it was loaded, microseconds; 0 for modules.
    mtime: u64,
    /// The last other time that has been reported.
    reported: AtomicU64,
    /// The time for which nobody waits: that version could not be loaded.
    refused: AtomicU64,
}

static APPS: Mutex<Vec<Arc<App>>> = Mutex::new(Vec::new());

/// The application a request names.
pub struct Target<'a> {
    /// Path of the script, or name of a module.
    pub script: &'a [u8],
    pub callable: &'a [u8],
}

impl<'a> Target<'a> {
    pub fn of(request: &Request<'a>) -> Target<'a> {
        let get = |id| request.get(id);
        let (script, handler) = (get(keys::SCRIPT_FILENAME), get(keys::MW_HANDLER_SCRIPT));
        let callable = get(keys::MW_CALLABLE_OBJECT);
        let script = handler.filter(|h| !h.is_empty()).or(script).unwrap_or_default();
        Target { script, callable: callable.filter(|c| !c.is_empty()).unwrap_or(b"application") }
    }
}

/// Finds the loaded application; `last` is the one of the thread's last request.
pub fn find(target: &Target<'_>, last: &mut Option<Arc<App>>) -> Option<Arc<App>> {
    let fits = |a: &App| *a.script == *target.script && *a.callable == *target.callable;
    if let Some(app) = last
        && fits(app)
    {
        return Some(app.clone());
    }
    let app = lock(&APPS).iter().find(|a| fits(a)).cloned();
    if app.is_some() {
        last.clone_from(&app);
    }
    app
}

/// Keeps what the Python half has loaded.
#[pyfunction]
pub fn register_app(
    py: Python<'_>,
    script: Vec<u8>,
    callable: &str,
    namespace: Bound<'_, PyDict>,
    mtime: u64,
) -> PyResult<()> {
    let mut names = callable.split('.').map(|n| PyString::intern(py, n).unbind());
    let name = names.next().unwrap_or_else(|| PyString::intern(py, callable).unbind());
    let app = App {
        script: script.into(),
        callable: callable.as_bytes().into(),
        namespace: namespace.unbind(),
        name,
        attributes: names.collect(),
        mtime,
        reported: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    };
    let app = Arc::new(app);
    let mut apps = lock(&APPS);
    let old = apps.iter().position(|a| a.script == app.script && a.callable == app.callable).map(|i| apps.remove(i));
    apps.push(app);
    drop(apps);
    // Only now: the last reference to a namespace may run code of the application.
    drop(old);
    Ok(())
}

impl App {
    /// The callable as it is now; `None` when the module has no such name.
    pub fn callable<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(mut object) = self.namespace.bind(py).get_item(self.name.bind(py))? else { return Ok(None) };
        for name in &self.attributes {
            match object.getattr_opt(name.bind(py))? {
                Some(o) => object = o,
                None => return Ok(None),
            }
        }
        Ok(Some(object))
    }

    /// Reports once that the server sees another modification time than the one that was loaded. With strict reloading
    /// waits for the workers that have loaded it; `true`: this worker leaves, the request belongs to one of them.
    pub fn compare(&self, py: Python<'_>, mtime: u64) -> bool {
        if mtime == 0 || mtime == self.mtime || self.mtime == 0 {
            return false;
        }
        let Some(shared) = shared::get() else { return false };
        let stays = shared.reload.stays();
        if self.reported.swap(mtime, Relaxed) != mtime {
            let script = String::from_utf8_lossy(&self.script).into_owned();
            shared.tell(&FromWorker::Touched { script, mtime });
        }
        if !shared.plan.strict_reloading || self.refused.load(Relaxed) == mtime {
            return false;
        }
        let limit = shared.plan.startup_timeout;
        let limit = if limit > 0.0 { limit.min(3600.0) } else { 60.0 };
        let leaves = py.detach(|| shared.reload.wait(stays, Duration::from_secs_f64(limit)));
        if !leaves {
            // It cannot be loaded, or nobody knows: the old code goes on, and nobody waits for this version again.
            self.refused.store(mtime, Relaxed);
        }
        leaves
    }
}
