"""Bodies that are not the request's own, or not as long as announced: ErrorDocument, input filters."""

from __future__ import annotations

import gzip
import os

import pytest

from harness.apache import Apache
from harness.server import running

APP = """def application(environ, start_response):
    body = environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/fail":
        raise RuntimeError("deliberate-failure")
    start_response("200 OK", [("X-Length", environ.get("CONTENT_LENGTH", "none"))])
    return [environ["PATH_INFO"].encode() + b":" + body]
"""


@pytest.mark.ours
def test_error_document_after_a_post() -> None:
    """R22: an ErrorDocument that is an application answers after a POST as well as after a GET."""
    apache = Apache(
        "WSGIDaemonProcess g\nWSGIProcessGroup g\nWSGIApplicationGroup %{GLOBAL}\n"
        "WSGIScriptAlias / {apps}/site/app.wsgi\nErrorDocument 500 /page"
    )
    apache.write("site/app.wsgi", APP)
    with running(apache) as server:
        server.expect_log("deliberate-failure")
        server.allow_log(r"Traceback|File |RuntimeError|MWR0430|    raise|  \\S")
        # the status is that which the application of the page gives, as with mod_wsgi
        for method, body in (("GET", None), ("POST", b"x" * 10), ("POST", b"x" * 200_000)):
            r = server.get("/fail", method=method, body=body)
            assert (r.status, r.body) == (200, b"/page:"), (method, body and len(body), r.body[:200])
            assert r.header("X-Length") in ("none", "0")


@pytest.mark.ours
@pytest.mark.parametrize("buffering", ["On", "Off"])
def test_inflated_body(buffering: str) -> None:
    """R10, W5: a filter that changes a body's length: the application gets what came out of it, and its length, also
    where bodies are streamed otherwise."""
    apache = Apache(
        f"WSGIDaemonProcess g request-buffering={buffering}\nWSGIProcessGroup g\nWSGIApplicationGroup %{{GLOBAL}}\n"
        "WSGIScriptAlias / {apps}/site/app.wsgi\nSetInputFilter DEFLATE",
        modules=["deflate"],
    )
    apache.write("site/app.wsgi", APP)
    with running(apache) as server:
        for plain in (b"a" * 1000, os.urandom(100_000) + b"b" * 100_000):
            body = gzip.compress(plain)
            r = server.get("/in", method="POST", body=body, headers=[("Content-Encoding", "gzip")])
            assert r.status == 200 and r.body == b"/in:" + plain
            assert r.header("X-Length") == str(len(plain))


def test_a_rewritten_get_keeps_its_body(apache) -> None:
    """W4, W12: a GET with a body that mod_rewrite redirects internally reaches the application with it."""
    server = apache(
        "WSGIScriptAlias /app {apps}/conform.wsgi application-group=%{GLOBAL}\n"
        "<Directory {prefix}/htdocs>\nRewriteEngine On\nRewriteRule ^old$ /app/digest [L]\n</Directory>"
    )
    for body in (b"small", b"x" * 100_000):
        r = server.get("/old", method="GET", body=body)
        assert r.status == 200 and r.text.startswith(f"{len(body)} ")
