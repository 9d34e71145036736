"""Exceptions in the error log: a line that says what and where, then the traceback line by line."""

import os

from . import _worker

ERROR = 3
_PACKAGE = os.path.dirname(__file__)


def text_of(error):
    """The traceback as text, without frames of this package."""
    tb = error.__traceback__
    while tb is not None and os.path.dirname(tb.tb_frame.f_code.co_filename) == _PACKAGE:
        tb = tb.tb_next
    try:
        import traceback

        return "".join(traceback.format_exception(type(error), error, tb))
    except BaseException as failure:
        # A __str__ or __repr__ of the application that fails, no memory, the recursion limit.
        return "%s (its traceback cannot be formatted: %s)\n" % (type(error).__name__, type(failure).__name__)


def log_lines(text):
    for line in text.splitlines():
        write(ERROR, line)


def printable(text):
    """Text without lone surrogates (from file names, or from bytes read leniently), which no log can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write(level, line):
    try:
        _worker.log_record(level, line)
    except UnicodeEncodeError:
        _worker.log_record(level, printable(line))


def exception(error, script):
    """An exception that left the application. Nothing ends the process: not SystemExit either, as in mod_wsgi."""
    if isinstance(error, SystemExit):
        write(ERROR, "MWR0431: SystemExit raised in WSGI script '%s' was ignored" % script)
    else:
        name = "%s.%s" % (type(error).__module__, type(error).__qualname__)
        name = name[len("builtins.") :] if name.startswith("builtins.") else name
        write(ERROR, "MWR0430: exception %s occurred processing WSGI script '%s'" % (name, script))
    log_lines(text_of(error))


def internal(error, what):
    """An exception in a callback or in our own thread, outside any application call."""
    write(ERROR, "MWR0432: exception in %s" % what)
    log_lines(text_of(error))


def missing(script, name, found):
    """A script without a usable callable."""
    if found is None:
        write(ERROR, "MWR0434: WSGI script '%s' has no callable '%s'" % (script, name))
    else:
        kind = type(found).__name__
        write(ERROR, "MWR0435: '%s' in WSGI script '%s' is of type %s and cannot be called" % (name, script, kind))
