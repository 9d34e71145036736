"""W14: each type of request to real applications, compared with the same application under waitress: status, fields and
body. What differs stands in the table DIFFERENCES with its reason, and nothing else may."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator

import pytest

from harness import http, kinds, product
from harness.peer import waitress
from harness.plan import Plan, Script
from harness.server import Server, running

pytestmark = pytest.mark.ours

FRAMEWORKS = ["flask", "django", "bottle", "pyramid"]
#: fields of the connection and of the server itself
SERVERS = {"date", "server", "connection", "keep-alive", "transfer-encoding", "via"}


@dataclasses.dataclass
class Both:
    """The two servers."""

    kind: str
    ours: Server
    waitress: int

    def ask(self, target: str, **kw: object) -> tuple[http.Response, http.Response]:
        """The answers of this module and of waitress."""
        return self.ours.get(target, **kw), http.fetch(self.waitress, target, **kw)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def both(server_kind: str) -> Iterator[Both]:
    server = kinds.on(server_kind, Plan(root=None))
    roots = {name: server.scratch / f"dav-{name}" for name in ("ours", "theirs")}
    for root in roots.values():
        root.mkdir()
        root.chmod(0o777)
    names = [*FRAMEWORKS, "webdav"]
    mounts = {f"/{name}": f"frameworks/{name}.wsgi" for name in names}
    options = f"threads=4 python-home={product.venv()} env=PYTHONWARNINGS=ignore::UserWarning env=MWR_DAV_ROOT={roots['ours']}"
    groups = {name: options for name in names}
    server.plan(Plan(root=None, groups=groups, scripts={f"/{n}": Script(mounts[f"/{n}"], n) for n in names}))
    env = {"MWR_DAV_ROOT": str(roots["theirs"]), "PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1"}
    log = server.scratch / "waitress.log"
    # the same files, for ETags are made of their paths
    with running(server) as live, waitress(server.apps, mounts, env, log) as port:
        yield Both(server_kind, live, port)


# --- Flask, Django, Bottle, Pyramid

BOUNDARY = "mwr-boundary-9e4"
FORM = [("Content-Type", "application/x-www-form-urlencoded")]
PART = [("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")]
JSON = [("Content-Type", "application/json")]


def multipart(size: int) -> bytes:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


CHUNKED = [("Transfer-Encoding", "chunked")]
#: name: method, target below the mount, fields, body
REQUESTS: dict[str, tuple[str, str, list[tuple[str, str]], bytes | None]] = {
    "get": ("GET", "/", [], None),
    "get-query": ("GET", "/?a=b%20c&d=%C3%A9", [], None),
    "head": ("HEAD", "/", [], None),
    "options": ("OPTIONS", "/", [], None),
    "wrong-method": ("DELETE", "/form", [], None),
    "form": ("POST", "/form?q=1", FORM, b"name=J%C3%BCrgen&tag=a&tag=b"),
    "form-of-100kB": ("POST", "/form?q=1", FORM, b"name=" + b"x" * 100_000 + b"&tag=a"),
    "cookie": ("GET", "/count", [], None),
    "upload-1": ("POST", "/upload", PART, multipart(1)),
    "upload-64KiB": ("POST", "/upload", PART, multipart(65536)),
    "upload-3MB": ("POST", "/upload", PART, multipart(3_000_000)),
    "upload-chunked": (
        "POST",
        "/upload",
        [*PART, *CHUNKED],
        http.chunked(multipart(1000)[:500], multipart(1000)[500:]),
    ),
    "json": ("POST", "/json", JSON, json.dumps({"a": [1, None, "\u20ac"]}).encode()),
    "redirect": ("GET", "/redirect", [], None),
    "static": ("GET", "/static/style.css", [], None),
    "static-head": ("HEAD", "/static/style.css", [], None),
    "static-unmodified": ("GET", "/static/style.css", [("If-Modified-Since", "Fri, 01 Jan 2038 00:00:00 GMT")], None),
    "static-range": ("GET", "/static/style.css", [("Range", "bytes=2-5")], None),
    "static-missing": ("GET", "/static/none.css", [], None),
    "stream": ("GET", "/stream", [], None),
    "stream-head": ("HEAD", "/stream", [], None),
    "missing": ("GET", "/no/such/page", [], None),
    "missing-coded": ("GET", "/a%2Fb/%C3%A9%20x", [], None),
}

HTTPD = "event|prefork"
#: (server, framework, request) as regular expressions: the fields that differ, and why
DIFFERENCES: list[tuple[str, str, str, set[str], str]] = [
    (
        HTTPD,
        "django",
        "static-range",
        {"status", "content-range", "content-length", "body"},
        "httpd makes ranges of a file that the application answers whole (a 200 from wsgi.file_wrapper)",
    ),
    (
        HTTPD,
        ".*",
        "missing-coded",
        {"content-type", "content-length", "body"},
        "AllowEncodedSlashes is Off in httpd: it answers 404 itself",
    ),
    (HTTPD, "flask", "missing-coded", {"status"}, "the reason phrase: httpd's is 'Not Found', Flask's 'NOT FOUND'"),
    (
        ".*",
        "pyramid",
        "wrong-method",
        {"content-type", "content-length", "body"},
        "an exception of the application: the page of the 500 is the server's",
    ),
]


def fields(r: http.Response) -> dict[str, list[str]]:
    """The fields that are the application's, values of a name in order. Cookies without their value: it has a time."""
    found: dict[str, list[str]] = {}
    for name, value in r.headers:
        if name.lower() == "set-cookie":
            value = re.sub(r"=[^;]*", "=…", value, count=1)
        if name.lower() == "allow":
            # made from a set, whose order is that of the process
            value = ", ".join(sorted(value.split(", ")))
        if name.lower() not in SERVERS:
            found.setdefault(name.lower(), []).append(value)
    return found


def compare(ours: http.Response, theirs: http.Response) -> dict[str, tuple[object, object]]:
    """What differs, by name, with both values."""
    a, b = fields(ours), fields(theirs)
    # streamed bodies have a length where a server knows it
    if "content-length" not in a or "content-length" not in b:
        a.pop("content-length", None), b.pop("content-length", None)
    found: dict[str, tuple[object, object]] = {
        k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)
    }
    if (ours.status, ours.reason) != (theirs.status, theirs.reason):
        found["status"] = (ours.status, ours.reason), (theirs.status, theirs.reason)
    if ours.body != theirs.body:
        found["body"] = ours.body[:200], theirs.body[:200]
    if not (ours.complete and theirs.complete):
        found["complete"] = ours.complete, theirs.complete
    return found


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_request(both: Both, framework: str, request_name: str) -> None:
    """W14: the same answer as under waitress."""
    both.ours.allow_log("Not Found|Method Not Allowed")
    if (framework, request_name) == ("pyramid", "wrong-method"):
        both.ours.expect_log("MWR0430: exception KeyError")
        both.ours.allow_log(r"\[wsgi:error\]")
    method, target, extra, body = REQUESTS[request_name]
    found = compare(*both.ask(f"/{framework}{target}", method=method, headers=extra, body=body))
    expected: set[str] = set()
    for s, f, r, names, _ in DIFFERENCES:
        if re.fullmatch(s, both.kind) and re.fullmatch(f, framework) and re.fullmatch(r, request_name):
            expected |= names
    assert found.keys() == expected, found


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_upload_of_50_mb(both: Both, framework: str) -> None:
    """W14: 50 MB, by checksum."""
    body = multipart(50_000_000)
    r = both.ours.get(f"/{framework}/upload", method="POST", headers=PART, body=body, timeout=120)
    digest = hashlib.sha256(b"0123456789abcdef" * 3_125_000).hexdigest()
    assert json.loads(r.body) == {"name": "f", "size": 50_000_000, "sha": digest}


# --- WebDAV

XML = [("Content-Type", "application/xml")]
LOCK = (
    b'<?xml version="1.0"?><D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope>'
    b"<D:locktype><D:write/></D:locktype><D:owner>tests</D:owner></D:lockinfo>"
)
PATCH = (
    b'<?xml version="1.0"?><D:propertyupdate xmlns:D="DAV:" xmlns:Z="urn:z"><D:set><D:prop><Z:colour>red</Z:colour>'
    b"</D:prop></D:set></D:propertyupdate>"
)
ALL = b'<?xml version="1.0"?><D:propfind xmlns:D="DAV:"><D:allprop/></D:propfind>'
BIG = os.urandom(1 << 20) * 30


def where(path: str) -> list[tuple[str, str]]:
    return [("Destination", f"http://localhost/webdav{path}")]


#: method, path, fields, body, status
STEPS: list[tuple[str, str, list[tuple[str, str]], bytes | None, int]] = [
    ("OPTIONS", "/", [], None, 200),
    ("MKCOL", "/col", [], None, 201),
    ("MKCOL", "/col", [], None, 405),
    ("PUT", "/col/a.txt", [], b"first", 201),
    ("PUT", "/col/a.txt", [], b"second text", 204),
    ("PUT", "/none/a.txt", [], b"x", 409),
    ("PUT", "/col/empty", [], b"", 201),
    ("PUT", "/col/big.bin", [], BIG, 201),
    ("PUT", "/col/chunked.bin", CHUNKED, http.chunked(b"abc", b"d" * 100_000, b"e"), 201),
    ("PROPFIND", "/col", [("Depth", "0")], None, 207),
    ("PROPFIND", "/col/", [("Depth", "1"), *XML], ALL, 207),
    ("GET", "/col/a.txt", [], None, 200),
    ("GET", "/col/chunked.bin", [], None, 200),
    ("GET", "/col/a.txt", [("Range", "bytes=2-5")], None, 206),
    ("HEAD", "/col/a.txt", [], None, 200),
    ("GET", "/col/big.bin", [], None, 200),
    ("GET", "/col/big.bin", [("Range", "bytes=1000000-2000000")], None, 206),
    ("COPY", "/col/a.txt", where("/col/b.txt"), None, 201),
    ("COPY", "/col/a.txt", [*where("/col/b.txt"), ("Overwrite", "F")], None, 412),
    ("COPY", "/col", where("/col2"), None, 201),
    ("MOVE", "/col/b.txt", where("/col/c%20d.txt"), None, 201),
    ("GET", "/col/b.txt", [], None, 404),
    ("GET", "/col/c%20d.txt", [], None, 200),
    ("PROPPATCH", "/col/a.txt", XML, PATCH, 207),
    ("PROPFIND", "/col/a.txt", [("Depth", "0"), *XML], ALL, 207),
    ("LOCK", "/col/a.txt", [("Timeout", "Second-600"), *XML], LOCK, 200),
    ("PUT", "/col/a.txt", [], b"refused", 423),
    ("PUT", "/col/a.txt", [("If", "(<TOKEN>)")], b"third", 204),
    ("UNLOCK", "/col/a.txt", [("Lock-Token", "<TOKEN>")], None, 204),
    ("DELETE", "/col2", [], None, 204),
    ("DELETE", "/col", [], None, 204),
    ("PROPFIND", "/col", [("Depth", "0")], None, 404),
]


def neutral(body: bytes) -> bytes:
    """An XML answer without what differs from moment to moment and between two directories: times, tokens, tags, free
    space, the order of entries."""
    text = body.decode("utf-8", "replace")
    text = re.sub(r"(opaquelocktoken|urn:uuid):[-0-9a-fx]+", "TOKEN", text)
    text = re.sub(r"<(\w+:)?(getlastmodified|creationdate|getetag|quota-[a-z]+-bytes)>[^<]*<", r"<\2>…<", text)
    text = re.sub(r"\d\d:\d\d:\d\d(\.\d+)?|\d{4}-\d\d-\d\d[T ]", "…", text)
    first, *responses = re.split(r"(?=<\w+:response>)", re.sub(r"</\w+:multistatus>\s*$", "", text))
    return "".join([first, *sorted(responses)]).encode()


def test_webdav(both: Both) -> None:
    """W14: WebDAV's methods, large PUTs, locks: every step as under waitress."""
    both.ours.allow_log(r"wsgidav|HTTP/1|\[wsgi:(error|warn)\]")
    tokens = ["", ""]
    for number, (method, path, extra, body, status) in enumerate(STEPS):
        answers = []
        for i, port in enumerate((both.ours.port, both.waitress)):
            sent = [(k, v.replace("TOKEN", tokens[i])) for k, v in extra]
            r = http.fetch(port, f"/webdav{path}", method=method, headers=sent, body=body)
            if method == "LOCK" and (token := r.header("Lock-Token")):
                tokens[i] = token.strip("<>")
            answers.append(r)
        ours, theirs = answers
        step = f"{number} {method} {path}"
        assert ours.status == status, f"{step}: {ours.status} {ours.text[:300]}"
        if path == "/col/big.bin" and method == "GET":
            want = BIG if status == 200 else BIG[1_000_000:2_000_001]
            assert ours.complete and ours.body == want, step
        for r in answers:
            r.body = neutral(r.body) if b"<?xml" in r.body[:10] or b"<html" in r.body[:200].lower() else r.body
            r.headers = [(k, v) for k, v in r.headers if k.lower() not in ("etag", "last-modified", "lock-token")]
            if b"TOKEN" in r.body or method in ("LOCK", "PROPFIND"):
                r.headers = [(k, v) for k, v in r.headers if k.lower() != "content-length"]
        found = compare(ours, theirs)
        assert not found, f"{step}: {found}\n{ours.text}\n{theirs.text}"
