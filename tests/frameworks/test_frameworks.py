"""R26: Flask, Django, Bottle and Pyramid from PyPI through the module: form, session, upload, static file, stream."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from harness import http, product
from harness.apache import Apache

FRAMEWORKS = ["flask", "django", "bottle", "pyramid"]
BOUNDARY = "mwr-boundary-7d1"


@pytest.fixture(scope="module", params=["event", "prefork"])
def server(request, shared) -> Apache:
    warnings = "env=PYTHONWARNINGS=ignore::UserWarning" if product.is_ours() else ""
    config = "WSGIApplicationGroup %{GLOBAL}\n"
    if not product.is_ours():
        config += "WSGIChunkedRequest On\n"
    for name in FRAMEWORKS:
        config += (
            # pyramid imports a module whose deprecation newer versions of Python tell
            f"WSGIDaemonProcess {name} processes=2 threads=4 python-home={product.venv()} "
            f"{warnings}\n"
            f"WSGIScriptAlias /{name} {{apps}}/frameworks/{name}.wsgi process-group={name} application-group=%{{GLOBAL}}\n"
        )
    return shared(config, mpm=request.param)


@pytest.fixture(params=FRAMEWORKS)
def base(request) -> str:
    return f"/{request.param}"


def multipart(name: str, data: bytes) -> tuple[list[tuple[str, str]], bytes]:
    body = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()  # fmt: skip
    return [("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")], body


def test_index(server: Apache, base: str) -> None:
    """R26: the framework answers below its mount."""
    r = server.get(base + "/")
    assert (r.status, r.text) == (200, f"{base[1:]} index")


def test_form(server: Apache, base: str) -> None:
    """R26: a form post with UTF-8 and repeated fields."""
    r = server.get(
        base + "/form?q=x%20y",
        method="POST",
        headers=[("Content-Type", "application/x-www-form-urlencoded")],
        body=b"name=J%C3%BCrgen+M&tag=a&tag=b",
    )
    assert r.status == 200, r.text
    assert json.loads(r.body) == {"name": "J\xfcrgen M", "tags": ["a", "b"], "query": "x y"}


def test_session(server: Apache, base: str) -> None:
    """R26: a session cookie over several requests and processes."""
    cookie: list[tuple[str, str]] = []
    for n in range(1, 6):
        r = server.get(base + "/count", headers=cookie)
        assert r.status == 200 and r.text == str(n)
        cookie = [("Cookie", "; ".join(v.split(";")[0] for v in r.all("Set-Cookie")))]


@pytest.mark.parametrize("size", [10, 65536, 3 << 20])
def test_upload(server: Apache, base: str, size: int) -> None:
    """R26: a file upload, inline and spooled."""
    data = os.urandom(size)
    fields, body = multipart("file.bin", data)
    r = server.get(base + "/upload", method="POST", headers=fields, body=body)
    assert r.status == 200, r.text
    assert json.loads(r.body) == {"name": "file.bin", "size": size, "sha": hashlib.sha256(data).hexdigest()}


def test_chunked_upload(server: Apache, base: str) -> None:
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


def test_json(server: Apache, base: str) -> None:
    """R26: a JSON body."""
    value = {"a": [1, 2, {"b": "\u00e9\u20ac"}]}
    r = server.get(
        base + "/json", method="POST", headers=[("Content-Type", "application/json")], body=json.dumps(value).encode()
    )
    assert json.loads(r.body) == value


def test_redirect(server: Apache, base: str) -> None:
    """R26: a redirect reaches the client."""
    r = server.get(base + "/redirect")
    assert r.status in (302, 303) and r.header("Location").endswith(base + "/")


def test_static(server: Apache, base: str) -> None:
    """R26: a static file served by the framework."""
    r = server.get(base + "/static/style.css")
    assert (r.status, r.text) == (200, "body { color: red }\n") and r.header("Content-Type").startswith("text/css")


def test_stream(server: Apache, base: str) -> None:
    """R26: a streamed answer."""
    r = server.get(base + "/stream")
    assert r.complete and r.text == "".join(f"{i}\n" for i in range(1000))


def test_not_found(server: Apache, base: str) -> None:
    """R26: the framework's own 404 page."""
    server.allow_log("Not Found: ")
    assert server.get(base + "/no/such/page").status == 404
