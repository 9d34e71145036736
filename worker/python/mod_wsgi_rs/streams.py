"""Text streams into the server's error log: sys.stdout, sys.stderr and wsgi.errors."""

import io

from . import _worker

STDOUT, STDERR, ERRORS = 0, 1, 2


class LogBuffer(io.RawIOBase):
    """The binary side of a LogStream, for those who write bytes."""

    def __init__(self, stream):
        self._stream = stream

    def writable(self):
        return True

    def write(self, data):
        data = bytes(data)
        self._stream.write(data.decode("utf-8", "backslashreplace"))
        return len(data)

    def fileno(self):
        return self._stream.fileno()

    def flush(self):
        self._stream.flush()

    def close(self):
        self.flush()


class LogStream(io.TextIOBase):
    """Each line written becomes one record; an unfinished line is held back until its end or the request's."""

    encoding = "utf-8"
    errors = "backslashreplace"
    mode = "w"
    line_buffering = True
    write_through = False

    def __init__(self, number, name, descriptor):
        self._number = number
        self._descriptor = descriptor
        self.name = name
        self.buffer = LogBuffer(self)

    def write(self, text):
        try:
            _worker.write(self._number, text)
        except UnicodeEncodeError:
            # Lone surrogates.
            _worker.write(self._number, text.encode(self.encoding, self.errors).decode(self.encoding))
        return len(text)

    def flush(self):
        _worker.flush(self._number)

    def writable(self):
        return True

    def isatty(self):
        return False

    def fileno(self):
        """The process's own descriptor, for subprocesses and faulthandler: what they write belongs to no request."""
        return self._descriptor

    def reconfigure(self, **_options):
        """Accepted for programs that set the encoding of their output; it is always UTF-8 here."""

    def close(self):
        """The stream belongs to the server."""
        self.flush()

    def __repr__(self):
        return "<mod_wsgi log stream %s>" % self.name


errors = LogStream(ERRORS, "<wsgi.errors>", 2)
