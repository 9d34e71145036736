"""The module `mod_wsgi` as applications import it."""

import sys

from . import _worker, events, files

# The mod_wsgi whose interface this is.
VERSION = (6, 1, 1)


class RequestTimeout(BaseException):
    """Raised in a request that has taken too long."""


class FileWrapper:
    """`wsgi.file_wrapper`. Returned unmodified for a regular file, the server sends the file itself."""

    def __init__(self, filelike, blksize=8192):
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self):
        return self

    def __next__(self):
        data = self.filelike.read(self.blksize)
        if data:
            return data
        raise StopIteration


def _package_path():
    """Where PyPI's package mod_wsgi lies, if it is installed: its submodules stay importable, its own extension never
    is."""
    from _frozen_importlib_external import PathFinder

    spec = PathFinder.find_spec("mod_wsgi")
    locations = getattr(spec, "submodule_search_locations", None)
    return None if locations is None else list(locations)


def _log_handler():
    import logging

    levels = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    class LogHandler(logging.Handler):
        """Sends records to the server's error log at the level that fits."""

        def emit(self, record):
            from . import report

            try:
                text = self.format(record)
                level = next((n for least, n in levels if record.levelno >= least), 7)
                for line in text.splitlines():
                    report.write(level, line)
            except Exception:
                self.handleError(record)

    LogHandler.__module__ = "mod_wsgi"
    LogHandler.__qualname__ = "LogHandler"
    return LogHandler


_lazy = {}


def __getattr__(name):
    """Attributes of `mod_wsgi` that cost something."""
    if name == "active_requests":
        return {environ.get("mod_wsgi.request_id", ""): data for environ, data in _worker.active_requests()}
    if name == "LogHandler":
        if name not in _lazy:
            _lazy[name] = _log_handler()
        return _lazy[name]
    if name == "__path__":
        path = _package_path()
        if path is not None:
            return path
    raise AttributeError("module 'mod_wsgi' has no attribute %r" % name)


def adopt_logging():
    """Once an application has imported logging: what no handler takes goes to the log at its own level."""
    logging = sys.modules.get("logging")
    last = getattr(logging, "lastResort", None)
    if type(last).__name__ == "_StderrHandler":
        logging.lastResort = __getattr__("LogHandler")(logging.WARNING)


def install(plan):
    """Makes `import mod_wsgi` give this module, whatever else is called so."""
    module = type(sys)("mod_wsgi", "The server's side of this process, by mod-wsgi-rs.")
    for thing in (RequestTimeout, FileWrapper):
        thing.__module__ = "mod_wsgi"
    module.__dict__.update(
        version=VERSION,
        process_group=plan["group"],
        application_group=plan["application"],
        maximum_processes=plan["processes"],
        threads_per_process=plan["threads"],
        FileWrapper=FileWrapper,
        RequestTimeout=RequestTimeout,
        event_callbacks=events.event_callbacks,
        shutdown_callbacks=events.shutdown_callbacks,
        signal_callbacks=events.signal_callbacks,
        subscribe_events=events.subscribe_events,
        subscribe_shutdown=events.subscribe_shutdown,
        subscribe_signals=events.subscribe_signals,
        request_data=_worker.request_data,
        track_changes=files.track_changes,
        __getattr__=__getattr__,
    )
    sys.modules["mod_wsgi"] = module
