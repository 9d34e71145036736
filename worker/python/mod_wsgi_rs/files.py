"""With reload-on-changes: which files the code of this worker came from. The supervisor has them watched and starts new
workers when one changes. Only the main thread looks for modules that requests have imported, twice a second."""

import os
import sys
import time

from . import _worker

# Milliseconds between two looks; None: nothing is watched.
interval = None
# What the supervisor has been told.
_told = set()
# The modules when they were last looked through.
_names = None
_registered = []
# Modification times of what was loaded, microseconds, by path: it may have changed before anybody watches.
_versions = {}


def track_changes(path):
    """Where the group has reload-on-changes, the application is also loaded anew when this file changes, or when
    something comes, goes or is replaced in this directory."""
    path = os.path.abspath(os.fspath(path))
    if interval is not None:
        _registered.append(path)
        _note(path)
        report()


def begin():
    global interval
    interval = 500
    _look_over_loaders()


def _note(path):
    try:  # noqa: SIM105 - contextlib is not loaded in every worker
        _versions[path] = os.stat(path).st_mtime_ns // 1000
    except (OSError, ValueError):
        pass


def loaded(path, mtime):
    """A script has been read in this version."""
    if interval is not None:
        _versions[path] = mtime


def report(error=None):
    """Tells the supervisor of files it has not been told of: those of the modules, those named by the application, and
    those an error came from."""
    if interval is None:
        return
    found = list(_modules())
    found += _registered
    # Where the application uses mod_wsgi-express's own way to name files.
    found += getattr(sys.modules.get("mod_wsgi.express.reloader"), "_files", ())
    found += _places(error)
    new = []
    for path in found:
        if type(path) is str and path not in _told:
            _told.add(path)
            try:
                absolute = os.path.abspath(path)
                absolute.encode()
            except (OSError, UnicodeEncodeError):
                # Relative to a directory that has gone; or a name that is no text and cannot be told.
                continue
            new.append((absolute, _versions.get(path, 0)))
    for first in range(0, len(new), 1000):
        _worker.files(new[first : first + 1000])


def _modules():
    global _names
    # Twice a second nothing is new: that costs a comparison of two lists.
    names = list(sys.modules)
    if names == _names:
        return
    _names = names
    for module in list(sys.modules.values()):
        try:
            # Past the module's own __getattr__, which may import or fail.
            path = object.__getattribute__(module, "__dict__").get("__file__")
        except Exception:
            continue
        if type(path) is str and not path.startswith("<"):
            yield path


def _places(error):
    """The files in the tracebacks of an error and of what led to it."""
    for _ in range(20):
        if error is None:
            return
        if isinstance(error, SyntaxError) and error.filename:
            yield error.filename
        tb = error.__traceback__
        while tb is not None:
            name = tb.tb_frame.f_code.co_filename
            if not name.startswith("<"):
                yield name
            tb = tb.tb_next
        error = error.__cause__ or error.__context__


def _look_over_loaders():
    """Notes the version of each source that is imported.

    And sources younger than two seconds are not compiled to a file: such a file knows its source by size and the second of
    its change, so one that is saved twice within a second would be taken for the former version."""
    from importlib.machinery import SourceFileLoader
    from importlib.util import source_from_cache

    path_stats = SourceFileLoader.path_stats
    set_data = SourceFileLoader.set_data

    def noted_path_stats(self, path):
        _note(path)
        return path_stats(self, path)

    def set_data_unless_young(self, path, data, **more):
        try:
            young = time.time() - os.stat(source_from_cache(path)).st_mtime < 2
        except (OSError, ValueError):
            young = False
        if not young:
            set_data(self, path, data, **more)

    SourceFileLoader.path_stats = noted_path_stats
    SourceFileLoader.set_data = set_data_unless_young
