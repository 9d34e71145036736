"""TLS (mod_ssl): what an application sees of it, bodies both ways, HTTP/2 by ALPN, and cuts that a client can see."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator

import pytest

from harness import http, log, product
from harness.apache import Apache
from harness.server import running

CONFIG = """
WSGIDaemonProcess g processes=1 threads=8
WSGIProcessGroup g
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /app {apps}/neighbours.wsgi
WSGIScriptAlias /bare {apps}/neighbours.wsgi
Protocols h2 http/1.1
<Location /app>
SSLOptions +StdEnvVars
</Location>
"""
BLOCK = bytes(range(256)) * 256


@pytest.fixture(scope="module")
def server() -> Iterator[Apache]:
    for name in ("ssl", "http2"):
        if not product.has_module(name):
            pytest.skip(f"no mod_{name}")
    with running(Apache(CONFIG, tls=True, modules=["http2"])) as apache:
        yield apache


def connect(server: Apache) -> http.Connection:
    return http.Connection(server.tls_port, tls=True)


def get(server: Apache, target: str, **kw: object) -> http.Response:
    return http.fetch(server.tls_port, target, tls=True, **kw)  # type: ignore[arg-type]


def allow_break(server: Apache) -> None:
    server.allow_log(log.CUT)


def test_environ(server: Apache) -> None:
    """W2, W12: wsgi.url_scheme, SSL_* where StdEnvVars is on, HTTPS nowhere."""
    with connect(server) as c:
        seen = json.loads(c.request(target="/app/environ-json").body)
        assert isinstance(c.sock, ssl.SSLSocket)
        assert (seen["wsgi.url_scheme"], seen["REQUEST_SCHEME"]) == ("https", "https")
        assert (seen["SSL_PROTOCOL"], seen["SSL_SERVER_S_DN_CN"]) == (c.sock.version(), "localhost")
        assert seen["SSL_CIPHER"] == c.sock.cipher()[0] and seen["SSL_CLIENT_VERIFY"] == "NONE"
        # the port of the Host field, or that of the scheme
        assert seen["SERVER_PORT"] == "443" and "HTTPS" not in seen
        bare = json.loads(c.request(target="/bare/environ-json").body)
        assert bare["wsgi.url_scheme"] == "https" and not [k for k in bare if k.startswith("SSL_C")]
    assert json.loads(server.get("/app/environ-json").body)["wsgi.url_scheme"] == "http"


@pytest.mark.parametrize("size", [1, 65536, 65537, 5_000_000])
def test_upload(server: Apache, size: int) -> None:
    """W4, W12: bodies around the size where they are spooled, and the connection stays in step."""
    data = os.urandom(size)
    with connect(server) as c:
        for _ in range(2):
            seen = json.loads(c.request("POST", "/app/echo", body=data).body)
            assert (seen["size"], seen["sha"]) == (size, hashlib.sha256(data).hexdigest())


@pytest.mark.ours
def test_chunked_upload(server: Apache) -> None:
    """W4, W12: a chunked body."""
    pieces = [os.urandom(n) for n in (1, 5000, 100_000)]
    with connect(server) as c:
        r = c.request("POST", "/app/echo", [("Transfer-Encoding", "chunked")], http.chunked(*pieces))
        seen = json.loads(r.body)
        assert (seen["size"], seen["length"]) == (105_001, "105001")


def test_answers(server: Apache) -> None:
    """W6, W10, W12: whole answers, streams and files of some size, one after the other."""
    (server.scratch / "tls.bin").write_bytes(BLOCK * 50)
    with connect(server) as c:
        for _ in range(2):
            for target in (f"/app/whole?n={50 * len(BLOCK)}", "/app/stream?n=50", "/app/file?name=tls.bin"):
                r = c.request(target=target)
                assert r.complete and r.body == BLOCK * 50, target


def test_stream_is_not_held_back(server: Apache) -> None:
    """W9, W12: a block reaches the client while the application waits."""
    with connect(server) as c:
        c.send(http.build(target="/app/gated?tls-gate"))
        c.head()
        assert c.read_chunk() == b"before"
        (server.scratch / "tls-gate").touch()
        assert c.read_chunk() == b"after" and c.read_chunk() == b""


@pytest.mark.ours
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("target", ["/app/stream?n=30&break=1", "/app/stream?n=30&length=9999999"])
def test_truncation(server: Apache, version: str, target: str) -> None:
    """W8, W12: a body that breaks off is visibly cut: no last chunk, too few bytes, or no close_notify."""
    server.expect_log("deliberate-break|MWR02")
    allow_break(server)
    r = get(server, target, version=version)
    assert r.truncated or r.status >= 500, f"{r.framing} {r.ended} {len(r.body)}"
    if r.framing == "close" and r.status == 200:
        assert r.ended == "reset", "nothing but a missing close_notify marks a cut close-delimited body"


def test_end_of_a_whole_answer(server: Apache) -> None:
    """W8, W12: the end of a whole close-delimited body is announced (close_notify)."""
    r = get(server, "/app/stream?n=30", version="1.0")
    assert (r.framing, r.ended, len(r.body)) == ("close", "eof", 30 * len(BLOCK)) and r.complete


def test_http2(server: Apache) -> None:
    """W12: HTTP/2 by ALPN, with curl: an upload, a download, a body that breaks off."""
    curl = shutil.which("curl")
    if not curl or "HTTP2" not in subprocess.run([curl, "-V"], capture_output=True, text=True).stdout:
        pytest.skip("no curl with HTTP/2")
    base = [curl, "-sSk", "--http2", "-w", "%{stderr}%{http_version} %{http_code}", "--max-time", "30"]
    url = f"https://127.0.0.1:{server.tls_port}/app"
    data = os.urandom(3_000_000)
    done = subprocess.run([*base, "--data-binary", "@-", f"{url}/echo"], input=data, capture_output=True)
    assert done.returncode == 0 and done.stderr == b"2 200", done.stderr
    seen = json.loads(done.stdout)
    assert (seen["sha"], seen["protocol"], seen["scheme"]) == (hashlib.sha256(data).hexdigest(), "HTTP/2.0", "https")
    done = subprocess.run([*base, f"{url}/stream?n=100"], capture_output=True)
    assert done.returncode == 0 and done.stdout == BLOCK * 100
    if product.is_ours():
        server.expect_log("deliberate-break")
        allow_break(server)
        done = subprocess.run([*base, f"{url}/stream?n=100&break=1"], capture_output=True)
        assert done.returncode != 0 or done.stderr.endswith(b" 502"), "the cut was not seen"
