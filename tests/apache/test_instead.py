"""What httpd serves in place of an application's answer: the path of a local Location (status 200), ErrorDocument pages,
WSGIErrorOverride."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from harness import http, log, product
from harness.apache import Apache
from harness.server import running
from harness.wait import wait_until

CONFIG = """
Protocols h2c http/1.1
WSGIDaemonProcess g processes=1 threads=8
WSGIDaemonProcess h processes=1 threads=2
WSGIProcessGroup g
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /app {apps}/neighbours.wsgi
WSGIScriptAlias /other {apps}/neighbours.wsgi process-group=h application-group=%{GLOBAL}
WSGIScriptAlias /override {apps}/neighbours.wsgi
WSGIScriptAlias /paged {apps}/neighbours.wsgi
<Location /override>
WSGIErrorOverride On
</Location>
<Location /override/answer/back>
WSGIErrorOverride Off
</Location>
<Location /limited>
LimitRequestBody 100
</Location>
WSGIScriptAlias /limited {apps}/neighbours.wsgi
<LocationMatch "^/(override|paged|limited|missing)">
ErrorDocument 404 /error.html
ErrorDocument 413 /error.html
ErrorDocument 500 /error.html
ErrorDocument 503 /app/part/from-the-page?page
ErrorDocument 403 "in words"
</LocationMatch>
WSGIScriptAlias /known {apps}/neighbours.wsgi
<Location /known>
ErrorDocument 500 /app/environ-json
</Location>
WSGIScriptAlias /circle {apps}/circle.wsgi
"""
CIRCLE = """def application(environ, start_response):
    start_response("200 OK", [("Location", "/circle?again")])
    return [b"round"]
"""
PAGE = "<p>static page</p>\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Apache]:
    apache = Apache(CONFIG, modules=["http2"])
    apache.write("circle.wsgi", CIRCLE)
    (apache.prefix / "htdocs" / "error.html").write_text(PAGE)
    (apache.prefix / "htdocs" / "plain.css").write_text("p { }\n")
    (apache.prefix / "htdocs" / "untyped.zzz").write_text("text")
    with running(apache) as live:
        yield live


@pytest.fixture(scope="module")
def flowing() -> Iterator[Apache]:
    """The same with request bodies streamed."""
    if not product.is_ours():
        pytest.skip("a stand-in has no such option")
    apache = Apache(CONFIG.replace("threads=8", "threads=8 request-buffering=off"), modules=["http2"])
    apache.write("circle.wsgi", CIRCLE)
    (apache.prefix / "htdocs" / "error.html").write_text(PAGE)
    (apache.prefix / "htdocs" / "plain.css").write_text("p { }\n")
    with running(apache) as live:
        yield live


def to(path: str, **more: str) -> str:
    return "/app/go?" + "&".join(f"{k}={quote(v, safe='')}" for k, v in {"to": path, **more}.items())


def allow_break(server: Apache) -> None:
    server.allow_log(log.CUT)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_a_local_location_is_served(server: Apache, method: str) -> None:
    """W12: status 200 with `Location: /path` is served as a GET of that path, whatever the method was; nothing of the
    first answer is left."""
    body = None if method == "GET" else b"x" * 100_000
    with server.connect() as c:
        r = c.request(method, to("/other/echo/deep?a=b%20c"), body=body)
        assert (r.status, r.header("Content-Type"), r.complete) == (200, "application/json", True)
        seen = json.loads(r.body)
        assert (seen["method"], seen["path"], seen["query"], seen["script"]) == (
            "GET",
            "/echo/deep",
            "a=b%20c",
            "/other",
        )
        assert seen["size"] == 0 and seen["length"] in (None, "", "0")
        assert r.header("Location") is None and r.header("X-From") is None and r.header("Set-Cookie") is None
        # the connection is in step
        assert c.request(target="/app/part/next").body == b"[GET /part/next  0]"


def test_chunked_body_before_a_redirect(server: Apache) -> None:
    """W12, W13: a chunked body that the first application read is not read again."""
    if not product.is_ours():
        pytest.skip("a stand-in refuses chunked bodies")
    with server.connect() as c:
        for target in ("/other/echo", "/error.html"):
            r = c.request("POST", to(target), [("Transfer-Encoding", "chunked")], http.chunked(b"abc", b"d" * 70000))
            assert r.status == 200 and r.complete
        assert c.request(target="/app/part/next").body == b"[GET /part/next  0]"


def test_the_first_request_is_known(server: Apache) -> None:
    """Reference 5: REDIRECT_* tell of the request before, REQUEST_URI is what the client asked for."""
    seen = json.loads(server.get(to("/app/environ-json")).body)
    assert seen["REDIRECT_URL"] == "/app/go" and seen["REDIRECT_STATUS"] == "200"
    assert seen["REQUEST_URI"].startswith("/app/go?to=") and seen["PATH_INFO"] == "/environ-json"


def test_a_static_file(server: Apache) -> None:
    """W12: the other path may be a file, with its own type."""
    r = server.get(to("/plain.css"))
    assert (r.status, r.text, r.header("Content-Type")) == (200, "p { }\n", "text/css")
    assert r.header("Last-Modified") and r.header("Accept-Ranges") == "bytes"
    r = server.get(to("/plain.css"), headers=[("Range", "bytes=0-1")])
    assert (r.status, r.body) == (206, b"p ")


def test_type_is_not_inherited(server: Apache) -> None:
    """W12: a file without a type of its own does not get the application's, by which httpd might choose a handler."""
    if product.is_ours():
        r = server.get(to("/untyped.zzz"))
        assert (r.status, r.text, r.header("Content-Type")) == (200, "text", None)


def test_head(server: Apache) -> None:
    """W12: HEAD has the fields of the other path, and no body, as with mod_wsgi."""
    with server.connect() as c:
        r = c.request("HEAD", to("/plain.css"))
        assert (r.status, r.header("Content-Type"), r.header("Content-Length"), r.body) == (200, "text/css", "6", b"")
        assert c.request(target="/app/part/next").body == b"[GET /part/next  0]"


@pytest.mark.parametrize(
    ("status", "location"),
    [
        ("200 OK", "http://example.org/x"),
        ("200 OK", "relative"),
        ("200 OK", ""),
        ("201 Created", "/plain.css"),
        ("302 Found", "/plain.css"),
        ("303 See Other", "/plain.css"),
        ("404 Not Found", "/plain.css"),
    ],
)
def test_everything_else_is_untouched(server: Apache, status: str, location: str) -> None:
    """W12: another status, or a Location that is no path of this server, reaches the client."""
    r = server.get(to(location, status=status))
    assert (r.status, r.header("Location"), r.header("X-From")) == (int(status[:3]), location, "redirect")
    assert r.body == b"body of the redirect\n" * 3


def test_body_is_dropped_and_closed(server: Apache) -> None:
    """W6, W12: the body of the first answer is read to its end and closed once."""
    closed = server.scratch / "closed"
    r = server.get(to("/plain.css", blocks="20000", tag="dropped"))
    assert r.text == "p { }\n"
    wait_until(lambda: closed.exists() and closed.read_text().split().count("dropped") == 1, what="close()")


@pytest.mark.ours
def test_broken_first_answer(server: Apache) -> None:
    """W8: an answer that breaks off leads nowhere: 500."""
    server.expect_log("deliberate-break")
    allow_break(server)
    r = server.get(to("/plain.css", **{"break": "1"}))
    assert r.status == 500 and b"p {" not in r.body


def test_a_chain(server: Apache) -> None:
    """W12: redirects may follow each other."""
    assert server.get(to(to(to("/plain.css")))).text == "p { }\n"


def test_a_circle(server: Apache) -> None:
    """W12: LimitInternalRecursion ends a circle with 500, and the server goes on."""
    server.expect_log("LimitInternalRecursion")
    r = server.get("/circle?x")
    assert r.status == 500 and b"round" not in r.body
    assert server.get(to("/plain.css")).status == 200


def test_http2(server: Apache) -> None:
    """W12: the same on a stream of HTTP/2."""
    if not shutil.which("curl"):
        pytest.skip("no curl")
    url = f"http://127.0.0.1:{server.port}{to('/plain.css')}"
    done = subprocess.run(
        ["curl", "-sS", "--http2-prior-knowledge", "-w", "%{http_version} %{http_code}", url],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout == "p { }\n2 200"


def test_bodies_that_nobody_read(flowing: Apache) -> None:
    """W5, W12, W13: where bodies are streamed, the first application may leave its body unread: what follows it is
    served, and not a byte of the body is taken for a request."""
    body = b"GET /app/part/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000
    for chunks in (False, True):
        framing = [("Transfer-Encoding", "chunked")] if chunks else []
        sent = http.chunked(body[:100_000], body[100_000:]) if chunks else body
        for read in ({}, {"unread": "1"}):
            for target, status, text in (
                (to("/plain.css", **read), 200, "p { }\n"),
                (to("/app/part/x", **read), 200, "[GET /part/x  0]"),
                ("/override/go?to=x&status=404%20Not&" + "&".join(read), 404, PAGE),
            ):
                with flowing.connect() as c:
                    c.send(http.build("POST", target, framing, sent) + http.build(target="/app/part/next"))
                    r = c.response("POST")
                    assert (r.status, r.text, r.complete) == (status, text, True), (target, chunks)
                    # or closed with the rest of the body unread: nothing of it was served
                    with contextlib.suppress(ConnectionError):
                        assert c.response().body == b"[GET /part/next  0]"


# --- ErrorDocument and WSGIErrorOverride


def test_own_error_pages_are_the_applications(server: Apache) -> None:
    """W12: ErrorDocument does not touch an answer of the application."""
    for status in ("404", "500", "503"):
        r = server.get(f"/paged/answer?status={status}")
        assert (r.status, r.reason, r.header("X-App")) == (int(status), "Own", "yes")
        assert r.text == f"the application's {status}"


def test_exception_gets_the_static_page(server: Apache) -> None:
    """W12: ErrorDocument for an exception: a file, for GET, POST and HEAD (httpd closes the connection)."""
    server.expect_log("deliberate-fail")
    allow_break(server)
    for method, body in (("GET", None), ("POST", b"x" * 70_000), ("HEAD", None)):
        r = server.get("/paged/fail", method=method, body=body)
        assert (r.status, r.text) == (500, "" if method == "HEAD" else PAGE)
        assert r.header("X-App") is None


def test_limit_gets_the_static_page(server: Apache) -> None:
    """W4, W12: ErrorDocument for a body that is too large."""
    server.allow_log("AH01587|AH00588|Requested content-length")
    r = server.get("/limited/echo", method="POST", body=b"x" * 101)
    assert (r.status, r.text) == (413, PAGE)
    assert server.get("/limited/echo", method="POST", body=b"x" * 100).status == 200


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
@pytest.mark.parametrize("blocks", [1, 40])
def test_override(server: Apache, method: str, blocks: int) -> None:
    """W12: WSGIErrorOverride On: 4xx and 5xx of the application get the server's pages; the connection goes on."""
    with server.connect() as c:
        r = c.request(method, "/override/answer?status=404", body=b"abc" if method == "POST" else None)
        assert (r.status, r.reason, r.header("X-App")) == (404, "Not Found", None)
        assert r.text == ("" if method == "HEAD" else PAGE)
        r = c.request(method, f"/override/stream?n={blocks}&status=x")
        assert r.status == 200 and r.complete


def test_override_by_an_application(server: Apache) -> None:
    """W12: the page may be an application, which is told what the status was."""
    r = server.get("/override/answer?status=503&h-X-Gone=1", method="POST", body=b"y" * 1000)
    # the page's own status stands, as for every local ErrorDocument that is a script
    assert (r.status, r.text, r.header("X-Gone")) == (200, "[GET /part/from-the-page page 0]", None)


def test_override_in_words(server: Apache) -> None:
    """W12: the page may be a text."""
    assert server.get("/override/answer?status=403").text == "in words"


def test_override_leaves_the_rest(server: Apache) -> None:
    """W12: other statuses, and places where it is Off, keep the application's answer."""
    for status in ("200", "204", "302", "399", "600"):
        assert server.get(f"/override/answer?status={status}").header("X-App") == "yes"
    r = server.get("/override/answer/back?status=404")
    assert (r.status, r.text) == (404, "the application's 404")


def test_override_keeps_the_challenge(server: Apache) -> None:
    """W12: a 401 keeps WWW-Authenticate whoever writes its page."""
    r = server.get("/override/answer?status=401&h-WWW-Authenticate=Basic%20realm%3Dx")
    assert (r.status, r.all("WWW-Authenticate"), r.header("X-App")) == (401, ["Basic realm=x"], None)
    r = server.get("/app/answer?status=401&h-WWW-Authenticate=Basic%20realm%3Dx")
    assert (r.status, r.all("WWW-Authenticate"), r.header("X-App")) == (401, ["Basic realm=x"], "yes")


def test_page_knows_the_failed_request(server: Apache) -> None:
    """Reference 5: an application that writes a page finds what failed in REDIRECT_*."""
    server.expect_log("deliberate-fail")
    allow_break(server)
    seen = json.loads(server.get("/known/fail?a=b", method="POST", body=b"z").body)
    assert (seen["REDIRECT_URL"], seen["REDIRECT_QUERY_STRING"], seen["REDIRECT_STATUS"]) == (
        "/known/fail",
        "a=b",
        "500",
    )
    assert (seen["REQUEST_METHOD"], seen["PATH_INFO"]) == ("GET", "/environ-json")
    # a stand-in shows the length of a body that the page cannot read
    assert not product.is_ours() or "CONTENT_LENGTH" not in seen
    assert seen["REDIRECT_REQUEST_METHOD"] == "POST"
