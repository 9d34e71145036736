"""R26: Flask, Django, Bottle and Pyramid from PyPI through the module: form, session, upload, static file, stream."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from harness import http, product
from harness.plan import Plan, Script
from harness.server import Server

pytestmark = pytest.mark.everywhere
FRAMEWORKS = ["flask", "django", "bottle", "pyramid"]
BOUNDARY = "mwr-boundary-7d1"


@pytest.fixture(scope="module")
def server(serve_all) -> Server:
    # pyramid imports a module whose deprecation newer versions of Python tell
    warnings = "env=PYTHONWARNINGS=ignore::UserWarning" if product.is_ours() else ""
    plan = Plan(
        root=None,
        groups={name: f"processes=2 threads=4 python-home={product.venv()} {warnings}" for name in FRAMEWORKS},
        scripts={f"/{name}": Script(f"frameworks/{name}.wsgi", name) for name in FRAMEWORKS},
        own={} if product.is_ours() else {"apache": "WSGIChunkedRequest On"},
    )
    return serve_all(plan)


@pytest.fixture(params=FRAMEWORKS)
def base(request) -> str:
    return f"/{request.param}"


def multipart(name: str, data: bytes) -> tuple[list[tuple[str, str]], bytes]:
    body = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()  # fmt: skip
    return [("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")], body


def test_index(server: Server, base: str) -> None:
    """R26: the framework answers below its mount."""
    r = server.get(base + "/")
    assert (r.status, r.text) == (200, f"{base[1:]} index")


def test_form(server: Server, base: str) -> None:
    """R26: a form post with UTF-8 and repeated fields."""
    r = server.get(
        base + "/form?q=x%20y",
        method="POST",
        headers=[("Content-Type", "application/x-www-form-urlencoded")],
        body=b"name=J%C3%BCrgen+M&tag=a&tag=b",
    )
    assert r.status == 200, r.text
    assert json.loads(r.body) == {"name": "J\xfcrgen M", "tags": ["a", "b"], "query": "x y"}


def test_session(server: Server, base: str) -> None:
    """R26: a session cookie over several requests and processes."""
    cookie: list[tuple[str, str]] = []
    for n in range(1, 6):
        r = server.get(base + "/count", headers=cookie)
        assert r.status == 200 and r.text == str(n)
        cookie = [("Cookie", "; ".join(v.split(";")[0] for v in r.all("Set-Cookie")))]


@pytest.mark.parametrize("size", [10, 65536, 3 << 20])
def test_upload(server: Server, base: str, size: int) -> None:
    """R26: a file upload, inline and spooled."""
    data = os.urandom(size)
    fields, body = multipart("file.bin", data)
    r = server.get(base + "/upload", method="POST", headers=fields, body=body)
    assert r.status == 200, r.text
    assert json.loads(r.body) == {"name": "file.bin", "size": size, "sha": hashlib.sha256(data).hexdigest()}


def test_chunked_upload(server: Server, base: str) -> None:
    """DESIGN 4.3: the same sent in chunks."""
    if not product.is_ours():
        pytest.skip("frameworks need CONTENT_LENGTH, which a stand-in does not provide")
    data = os.urandom(200000)
    fields, body = multipart("chunked.bin", data)
    pieces = [body[i : i + 7000] for i in range(0, len(body), 7000)]
    r = server.get(
        base + "/upload", method="POST", headers=[*fields, ("Transfer-Encoding", "chunked")], body=http.chunked(*pieces)
    )
    assert r.status == 200, r.text
    assert json.loads(r.body)["sha"] == hashlib.sha256(data).hexdigest()


def test_json(server: Server, base: str) -> None:
    """R26: a JSON body."""
    value = {"a": [1, 2, {"b": "\u00e9\u20ac"}]}
    r = server.get(
        base + "/json", method="POST", headers=[("Content-Type", "application/json")], body=json.dumps(value).encode()
    )
    assert json.loads(r.body) == value


def test_redirect(server: Server, base: str) -> None:
    """R26: a redirect reaches the client."""
    r = server.get(base + "/redirect")
    assert r.status in (302, 303) and r.header("Location").endswith(base + "/")


def test_static(server: Server, base: str) -> None:
    """R26: a static file served by the framework."""
    r = server.get(base + "/static/style.css")
    assert (r.status, r.text) == (200, "body { color: red }\n") and r.header("Content-Type").startswith("text/css")


def test_stream(server: Server, base: str) -> None:
    """R26: a streamed answer."""
    r = server.get(base + "/stream")
    assert r.complete and r.text == "".join(f"{i}\n" for i in range(1000))


def test_not_found(server: Server, base: str) -> None:
    """R26: the framework's own 404 page."""
    server.allow_log("Not Found: ")
    assert server.get(base + "/no/such/page").status == 404
