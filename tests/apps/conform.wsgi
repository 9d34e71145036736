"""The applications of the conformance tests: the first segment of PATH_INFO picks one of the functions below."""

import hashlib
import json
import os
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SCRATCH = os.path.join(os.path.dirname(HERE), "scratch")
PATTERN = bytes(range(256)) * 256  # 64 KiB


def text(start_response, body, status="200 OK", headers=()):
    if isinstance(body, str):
        body = body.encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *headers])
    return [body]


def environ_json(environ, start_response):
    """Every key with the name of its value's exact type, and the value where it is a plain one."""
    out = {}
    for key, value in environ.items():
        plain = isinstance(value, (str, int, float, bool, tuple, type(None)))
        out[key] = [type(value).__name__, value if plain else None]
    out["*exact-dict"] = ["bool", type(environ) is dict]
    return text(start_response, json.dumps(out))


def echo(environ, start_response):
    """The body, as read by the method named in the query."""
    how = environ["QUERY_STRING"]
    stream = environ["wsgi.input"]
    if how == "read" or not how:
        data = stream.read()
    elif how.startswith("read:"):
        n = int(how[5:])
        data = b""
        while True:
            piece = stream.read(n)
            assert len(piece) <= n
            if not piece:
                break
            data += piece
    elif how == "readline":
        data = b""
        while True:
            line = stream.readline()
            if not line:
                break
            assert line.find(b"\n") in (-1, len(line) - 1)
            data += line
    elif how.startswith("readline:"):
        n = int(how[9:])
        data = b""
        while True:
            line = stream.readline(n)
            assert len(line) <= n
            if not line:
                break
            data += line
    elif how == "readlines":
        lines = stream.readlines()
        assert isinstance(lines, list)
        data = b"".join(lines)
    elif how == "iter":
        data = b"".join(line for line in stream)
    elif how == "mixed":
        data = stream.read(1) + stream.readline() + stream.read(0) + stream.readline(3) + stream.read()
    elif how == "length":
        data = stream.read(int(environ.get("CONTENT_LENGTH") or 0))
    elif how == "none":
        return text(start_response, b"unread")
    assert stream.read() == b"" and stream.read(10) == b"" and stream.readline() == b"" and stream.readlines() == []
    return text(start_response, data, headers=[("X-Length", environ.get("CONTENT_LENGTH", "absent"))])


def digest(environ, start_response):
    h = hashlib.sha256()
    n = 0
    while True:
        piece = environ["wsgi.input"].read(50000)
        if not piece:
            break
        n += len(piece)
        h.update(piece)
    return text(start_response, f"{n} {h.hexdigest()}")


def as_list(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"one,", b"two,", b"", b"three"]


def as_generator(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"g1,"
    yield b""
    yield b"g2"


def note_close(tag):
    """Tells the test, whichever process this is, that close() has run."""
    with open(os.path.join(SCRATCH, "closed"), "a") as f:
        f.write(tag + "\n")


class Custom:
    """An iterable with close(), neither list nor generator."""

    def __init__(self, tag, items, error=None):
        self.tag, self.items, self.error = tag, items, error

    def __iter__(self):
        yield from self.items
        if self.error:
            raise self.error

    def close(self):
        note_close(self.tag)


def with_close(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return Custom(environ["QUERY_STRING"], [b"closing"])


def empty(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Empty", "1")])
    return []


def status(environ, start_response):
    """Any status line, URL-decoded from the query; with a body unless it has none."""
    from urllib.parse import unquote

    line = unquote(environ["QUERY_STRING"])
    start_response(line, [("X-Here", "1")])
    return [] if line[:3] in ("204", "304") else [b"body"]


def raises(environ, start_response):
    raise RuntimeError("deliberate-" + environ["QUERY_STRING"])


def exact(environ, start_response):
    return text(start_response, "exact:" + environ["QUERY_STRING"])


def error_midway(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"first part " * 1000
    raise RuntimeError("deliberate-midway")


def large(environ, start_response):
    """n times 64 KiB."""
    n = int(environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return (PATTERN for _ in range(n))


def large_one(environ, start_response):
    """n bytes as one block with Content-Length."""
    n = int(environ["QUERY_STRING"])
    return text(start_response, (PATTERN * (n // len(PATTERN) + 1))[:n])


def small_yields(environ, start_response):
    n = int(environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (b"%d\n" % i for i in range(n))


def gated(environ, start_response):
    """One block, then a wait until the test has made the file of the query's name, then the other block."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"before"
    end = time.monotonic() + 20
    while not os.path.exists(os.path.join(SCRATCH, environ["QUERY_STRING"])) and time.monotonic() < end:
        time.sleep(0.01)
    yield b"after"


def file_wrapper(environ, start_response):
    """A regular file: whole, from an offset, with a length of its own, or one without fileno()."""
    import io
    import tempfile

    how, _, size = environ["QUERY_STRING"].partition(":")
    size = int(size or 100000)
    data = (PATTERN * (size // len(PATTERN) + 1))[:size]
    f = tempfile.TemporaryFile()
    f.write(data)
    f.flush()
    f.seek(0)
    out = [("Content-Type", "application/octet-stream")]
    if how == "offset":
        f.seek(1000)
    elif how == "length":
        out.append(("Content-Length", "5000"))
    elif how == "bytesio":
        f = io.BytesIO(data)
    start_response("200 OK", out)
    return environ["wsgi.file_wrapper"](f, 8192)


def file_wrapper_close(environ, start_response):
    class File:
        def __init__(self):
            self.left = 3

        def read(self, n=-1):
            self.left -= 1
            return b"block," if self.left >= 0 else b""

        def close(self):
            note_close("file-wrapper")

    start_response("200 OK", [("Content-Type", "text/plain")])
    return environ["wsgi.file_wrapper"](File())


def errors(environ, start_response):
    """Writes to each channel that leads to the error log."""
    import logging

    tag = environ["QUERY_STRING"]
    environ["wsgi.errors"].write(f"errors-{tag}\n")
    environ["wsgi.errors"].writelines([f"lines1-{tag}\n", f"lines2-{tag}\n"])
    environ["wsgi.errors"].flush()
    print(f"stdout-{tag}")
    print(f"stderr-{tag}", file=sys.stderr)
    logging.getLogger("conform").warning("logging-%s", tag)
    return text(start_response, "logged")


def forged(environ, start_response):
    environ["wsgi.errors"].write("forged-begin\r[Sun Jan 01 00:00:00 2023] [core:emerg] [pid 1] forged\x1b[31m-end\n")
    return text(start_response, "forged")


def partial_line(environ, start_response):
    environ["wsgi.errors"].write("partial-" + environ["QUERY_STRING"])
    return text(start_response, "partial")


def raw_fd(environ, start_response):
    os.write(2, b"rawfd-" + environ["QUERY_STRING"].encode() + b"\n")
    return text(start_response, "raw")


local = threading.local()


def thread_local(environ, start_response):
    """Counts the requests of this thread in a thread-local."""
    local.count = getattr(local, "count", 0) + 1
    return text(start_response, f"{os.getpid()}:{threading.get_ident()}:{threading.current_thread().name} {local.count}")


def waits(environ, start_response):
    """20 short waits, for the fairness test."""
    began = time.monotonic()
    for _ in range(20):
        time.sleep(0.0002)
    return text(start_response, str(time.monotonic() - began))


def process(environ, start_response):
    body = {"pid": os.getpid(), "ppid": os.getppid(), "uid": os.getuid(), "gid": os.getgid(), "thread": threading.get_ident(),
            "main": threading.current_thread() is threading.main_thread()}
    return text(start_response, json.dumps(body))


def slow(environ, start_response):
    time.sleep(float(environ["QUERY_STRING"]))
    return text(start_response, str(os.getpid()))


def die(environ, start_response):
    """Ends the worker by SIGKILL, before or in the middle of the answer."""
    import signal

    if environ["QUERY_STRING"] == "midway":
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"part " * 5000
        time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
    yield b"never"


def forks(environ, start_response):
    """multiprocessing inside the application, with the start method of the query."""
    import multiprocessing

    context = multiprocessing.get_context(environ["QUERY_STRING"])
    with context.Pool(2) as pool:
        result = pool.map(abs, [-1, -2, -3])
    return text(start_response, str(result))


def routes():
    return {name: value for name, value in globals().items() if callable(value)}


def application(environ, start_response):
    name = (environ["PATH_INFO"] + "/").split("/")[1].replace("-", "_") or "exact"
    function = routes().get(name)
    if function is None:
        return text(start_response, "no such application", "404 Not Found")
    return function(environ, start_response)
