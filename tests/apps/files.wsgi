"""Answers made with wsgi.file_wrapper: the first segment of PATH_INFO below the mount picks how, the query which file."""

import bz2
import gzip
import io
import os
import tempfile
import threading
from urllib.parse import parse_qs

SCRATCH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scratch")
lock = threading.Lock()
kept = {}


def note(name, line):
    fd = os.open(os.path.join(SCRATCH, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


class Noting:
    """A file that notes its close() and what is read by way of Python."""

    def __init__(self, f, tag):
        self.f, self.tag = f, tag

    def __getattr__(self, name):
        return getattr(self.f, name)

    def read(self, n=-1):
        data = self.f.read(n)
        note("reads", "%s %d %d" % (self.tag, n, len(data)))
        return data

    def close(self):
        self.f.close()
        note("closed", self.tag)


class NoFileno:
    def __init__(self, f):
        self.f = f

    def read(self, n=-1):
        return self.f.read(n)

    def close(self):
        self.f.close()


class NoTell(Noting):
    def tell(self):
        raise OSError("deliberate: no position")


class Kept:
    """A file that stays open from request to request."""

    def __init__(self, f):
        self.f = f

    def __getattr__(self, name):
        if name == "close":
            raise AttributeError(name)
        return getattr(self.f, name)


def application(environ, start_response):
    how = environ["PATH_INFO"].split("/")[1]
    q = {k: v[-1] for k, v in parse_qs(environ["QUERY_STRING"]).items()}
    wrapper, block = environ["wsgi.file_wrapper"], int(q.get("block", "8192"))
    path = q.get("path") or os.path.join(SCRATCH, q["name"])
    fields = [("Content-Type", "application/octet-stream")]
    if "length" in q:
        fields.append(("Content-Length", q["length"]))
    if how == "pipe":
        r, w = os.pipe()

        def fill():
            with open(path, "rb") as source, open(w, "wb") as sink:
                while data := source.read(10000):
                    sink.write(data)

        threading.Thread(target=fill, daemon=True).start()
        f = open(r, "rb")
    elif how == "kept":
        with lock:
            f = kept.get(path)
            if f is None:
                f = kept[path] = Kept(open(path, "rb"))
    elif how == "gzip":
        f = gzip.open(path)
    elif how == "bz2":
        f = bz2.open(path)
    elif how == "tempfile":
        f = tempfile.NamedTemporaryFile()
        with open(path, "rb") as source:
            f.write(source.read())
        f.seek(0)
    elif how == "spooled":
        f = tempfile.SpooledTemporaryFile(max_size=1000)
        with open(path, "rb") as source:
            f.write(source.read())
        f.seek(0)
    elif how == "unbuffered":
        f = open(path, "rb", buffering=0)
    elif how == "update":
        f = open(path, "r+b")
    else:
        f = open(path, "rb")
    if "seek" in q:
        f.seek(int(q["seek"]))
    if "readfirst" in q:
        f.read(int(q["readfirst"]))
    if how == "deleted":
        os.unlink(path)
    elif how == "shrink":
        os.truncate(path, int(q["to"]))
    elif how == "bytesio":
        f = Noting(io.BytesIO(f.read()), q["tag"])
    elif how == "nofileno":
        f = NoFileno(f)
    elif how == "notell":
        f = NoTell(f, q["tag"])
    elif how == "noting":
        f = Noting(f, q["tag"])
    write = start_response("200 OK", fields)
    if how == "written":
        write(b"written first,")
    if how == "grow":
        result = wrapper(f, block)
        with open(path, "ab") as more:
            more.write(b"x" * 100000)
        return result
    if how == "subclass":

        class Upper(wrapper):
            """Changes what it yields: a subclass is not to be passed over."""

            def __next__(self):
                return super().__next__().upper()

        return Upper(f, block)
    if how == "plain-subclass":

        class Same(wrapper):
            pass

        return Same(f, block)
    if how == "generator":
        return (data.lower() for data in wrapper(f, block))
    if how == "twice":
        # the same file through two wrappers, of which one is returned
        wrapper(f, block)
        return wrapper(f, block)
    return wrapper(f, block)
