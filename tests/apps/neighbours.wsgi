"""What the tests of Apache's own modules need of an application: the first segment of PATH_INFO picks a function."""

import gzip
import hashlib
import json
import os
import time
from urllib.parse import parse_qs

SCRATCH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scratch")
PATTERN = bytes(range(256)) * 256  # 64 KiB


def query(environ):
    return {k: v[-1] for k, v in parse_qs(environ["QUERY_STRING"], keep_blank_values=True).items()}


def note(name, line):
    """Appends a line to a file of the tests', whole."""
    fd = os.open(os.path.join(SCRATCH, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


def environ_json(environ, start_response):
    body = json.dumps({k: v for k, v in environ.items() if isinstance(v, str)}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def go(environ, start_response):
    """An answer with a Location; its body, which says so, takes some time and has a close()."""
    q = query(environ)

    class Body:
        def __iter__(self):
            for _ in range(int(q.get("blocks", "3"))):
                yield b"body of the redirect\n"
            if "break" in q:
                raise RuntimeError("deliberate-break")

        def close(self):
            note("closed", q.get("tag", "go"))

    if "unread" not in q:
        environ["wsgi.input"].read()
    start_response(
        q.get("status", "200 OK"),
        [("Content-Type", "text/html"), ("Location", q["to"]), ("Set-Cookie", "from=redirect"), ("X-From", "redirect")],
    )
    return Body()


def answer(environ, start_response):
    """An answer with the status and the fields of the query, and a body that says which one it is."""
    q = query(environ)
    body = b"the application's " + q.get("status", "200").encode()
    fields = [("Content-Length", str(len(body))), ("X-App", "yes")]
    fields += [(k[2:], v) for k, v in q.items() if k.startswith("h-")]
    if "h-Content-Type" not in q:
        fields.append(("Content-Type", "text/plain"))
    start_response(q.get("status", "200") + " Own", fields)
    return [body]


def echo(environ, start_response):
    """Length and checksum of the body, and how it was announced."""
    digest, total = hashlib.sha256(), 0
    while block := environ["wsgi.input"].read(65536):
        digest.update(block)
        total += len(block)
    body = json.dumps({
        "sha": digest.hexdigest(), "size": total, "method": environ["REQUEST_METHOD"], "path": environ["PATH_INFO"],
        "query": environ["QUERY_STRING"], "script": environ["SCRIPT_NAME"], "length": environ.get("CONTENT_LENGTH"),
        "protocol": environ["SERVER_PROTOCOL"], "scheme": environ["wsgi.url_scheme"],
    }).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def whole(environ, start_response):
    """n bytes in one block; `plain`: without a Content-Length."""
    q = query(environ)
    n = int(q["n"])
    fields = [("Content-Type", "text/plain")]
    if "plain" not in q:
        fields.append(("Content-Length", str(n)))
    fields += [(k[2:], v) for k, v in q.items() if k.startswith("h-")]
    start_response("200 OK", fields)
    return [(PATTERN * (n // len(PATTERN) + 1))[:n]]


def stream(environ, start_response):
    """n times 64 KiB from a generator; `break`: it raises after that, `length`: what Content-Length says."""
    q = query(environ)
    fields = [("Content-Type", "text/plain")]
    if "length" in q:
        fields.append(("Content-Length", q["length"]))
    fields += [(k[2:], v) for k, v in q.items() if k.startswith("h-")]
    note("calls", q.get("tag", "stream"))
    start_response("200 OK", fields)

    def blocks():
        for _ in range(int(q["n"])):
            yield PATTERN
        if "break" in q:
            raise RuntimeError("deliberate-break")

    return blocks()


def endless(environ, start_response):
    """Blocks until the client has gone."""
    start_response("200 OK", [("Content-Type", "text/plain")])

    class Body:
        def __iter__(self):
            return self

        def __next__(self):
            time.sleep(0.001)
            return PATTERN

        def close(self):
            note("closed", environ["QUERY_STRING"])

    return Body()


def gated(environ, start_response):
    """One block, then a wait until the test has made the file of the query's name, then the other block."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"before"
    end = time.monotonic() + 20
    while not os.path.exists(os.path.join(SCRATCH, environ["QUERY_STRING"])) and time.monotonic() < end:
        time.sleep(0.01)
    yield b"after"


def file(environ, start_response):
    """The file of the query's name in scratch/ through wsgi.file_wrapper, with the fields of the query."""
    q = query(environ)
    f = open(os.path.join(SCRATCH, q["name"]), "rb")
    f.seek(int(q.get("seek", "0")))
    fields = [("Content-Type", q.get("type", "text/plain"))]
    fields += [(k[2:], v) for k, v in q.items() if k.startswith("h-")]
    start_response(q.get("status", "200 OK"), fields)
    return environ["wsgi.file_wrapper"](f, int(q.get("block", "8192")))


def zipped(environ, start_response):
    """An answer that the application has compressed itself."""
    body = gzip.compress(PATTERN)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Encoding", "gzip"), ("Content-Length", str(len(body)))])
    return [body]


def cached(environ, start_response):
    """A cacheable answer that counts its calls; `n`: how many 64 KiB blocks; `break`: it breaks off after those."""
    q = query(environ)
    note("calls", q["tag"])
    with open(os.path.join(SCRATCH, "calls")) as f:
        count = f.read().split().count(q["tag"])
    fields = [("Content-Type", "text/plain"), ("Cache-Control", "max-age=600"), ("X-Count", str(count))]
    if "length" in q:
        fields.append(("Content-Length", q["length"]))
    start_response("200 OK", fields)
    for _ in range(int(q.get("n", "1"))):
        yield PATTERN
    if "break" in q:
        raise RuntimeError("deliberate-break")


def fail(environ, start_response):
    raise RuntimeError("deliberate-fail")


def part(environ, start_response):
    """A piece of a page for server-side includes."""
    data = environ["wsgi.input"].read()
    body = "[%s %s %s %d]" % (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], len(data))
    start_response("200 OK", [("Content-Type", "text/html")])
    return [body.encode()]


def ssi(environ, start_response):
    """A page whose server-side includes httpd resolves."""
    start_response("200 OK", [("Content-Type", "text/html")])
    yield b"A "
    yield b'<!--#include virtual="/app/part/x?y" -->'
    yield b" Z"


def application(environ, start_response):
    name = (environ["PATH_INFO"] + "/").split("/")[1].replace("-", "_") or "environ_json"
    function = globals().get(name)
    if not callable(function):
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"no such function"]
    return function(environ, start_response)
