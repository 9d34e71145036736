"""Loading scripts and modules: once each, in the main thread, tried again at most once a second after a failure."""

import _thread
import os
import sys
import time

from . import _worker, api, files, report

# Seconds for which a failure is the answer without a new try.
RETRY = 1.0


class Script:
    def __init__(self):
        self.lock = _thread.RLock()
        self.namespace = None
        self.mtime = 0
        self.failed_at = None
        self.failure = None


# A mainthread.MainThread, set at the start of the worker.
main_thread = None
_scripts = {}
_lock = _thread.allocate_lock()


def load(script, callable_name):
    """Loads `script` (bytes: a path, or the dotted name of a module) and registers its callable. False: it failed, and
    that has been logged."""
    with _lock:
        entry = _scripts.setdefault(script, Script())
    name = os.fsdecode(script)
    with entry.lock:
        if entry.namespace is None:
            if entry.failed_at is not None and time.monotonic() - entry.failed_at < RETRY:
                return False
            try:
                entry.namespace, entry.mtime = main_thread.call(lambda: _execute(name))
            except BaseException as error:
                _failed(entry, name, callable_name, error)
                return False
            finally:
                api.adopt_logging()
                files.report()
        first = callable_name.partition(".")[0]
        error = None
        if first not in entry.namespace:
            error = "WSGI script '%s' has no callable '%s'" % (name, callable_name)
        _worker.register_app(script, callable_name, entry.namespace, entry.mtime)
        _worker.loaded(report.printable(name), callable_name, entry.mtime, error and report.printable(error))
    return True


def preload(script, callable_name):
    """Loads a script before the first request; a missing callable is logged here already."""
    raw = os.fsencode(script)
    if load(raw, callable_name):
        namespace = _scripts[raw].namespace
        if callable_name.partition(".")[0] not in namespace:
            report.missing(script, callable_name, None)


def _failed(entry, name, callable_name, error):
    files.report(error)
    text = report.text_of(error)
    repeated = text == entry.failure
    entry.failure = text
    entry.failed_at = time.monotonic()
    kind = type(error).__name__
    if repeated:
        report.write(report.ERROR, "MWR0433: WSGI script '%s' still cannot be loaded: %s" % (name, kind))
        return
    report.write(report.ERROR, "MWR0433: WSGI script '%s' cannot be loaded: %s" % (name, kind))
    report.log_lines(text)
    _worker.loaded(report.printable(name), callable_name, _mtime(name), report.printable(text))


def _mtime(name):
    try:
        return os.stat(name).st_mtime_ns // 1000
    except OSError:
        return 0


def _execute(name):
    """The namespace and modification time (microseconds, 0 for modules) of a script or module."""
    if "/" not in name:
        import importlib

        return importlib.import_module(name).__dict__, 0
    with open(name, "rb") as f:
        mtime = os.fstat(f.fileno()).st_mtime_ns // 1000
        source = f.read()
    files.loaded(name, mtime)
    # Bytes, so that the script's encoding cookie counts; nothing of this file's own flags.
    code = compile(source, name, "exec", dont_inherit=True)
    module = type(sys)(module_name(name))
    module.__file__ = name
    module.__mtime__ = mtime
    sys.modules[module.__name__] = module
    try:
        exec(code, module.__dict__)  # noqa: S102
    except BaseException:
        sys.modules.pop(module.__name__, None)
        raise
    return module.__dict__, mtime


def module_name(path):
    """The name mod_wsgi gives a script's module."""
    raw = os.fsencode(path)
    try:
        import _md5

        return "_mod_wsgi_" + _md5.md5(raw).hexdigest()
    except ImportError:
        import hashlib

        return "_mod_wsgi_" + hashlib.md5(raw, usedforsecurity=False).hexdigest()
