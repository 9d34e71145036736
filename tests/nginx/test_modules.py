"""nginx's own modules around applications (N11): subrequests, internal and named locations, redirects inside the server,
error pages, filters, limits, TLS and HTTP/2."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness.http import Response
from harness.nginx import Nginx
from harness.wait import wait_until

GROUP = "wsgi_daemon_process g processes=1 threads=5;"
SITE = """
wsgi_process_group g;
real_ip_header X-Real-IP;
set_real_ip_from 127.0.0.1;
location / { wsgi_script {apps}/told.wsgi; }
location /inner { internal; wsgi_script {apps}/told.wsgi; wsgi_param REDIRECTED yes; }
location /files/ { internal; alias {scratch}/files/; add_header X-From files; }
location @named { wsgi_script {apps}/told.wsgi; wsgi_param REDIRECTED yes; add_header X-From named always; }
location /tried { root {scratch}/none; try_files $uri @named; }
location /ssi { ssi on; ssi_types *; wsgi_script {apps}/told.wsgi; }
location /page { wsgi_script {apps}/told.wsgi; wsgi_callable_object page; ssi on; }
location /guarded { auth_request /auth; auth_request_set $who $upstream_http_x_who; add_header X-Who $who;
                    wsgi_script {apps}/told.wsgi; }
location = /auth { internal; wsgi_script {apps}/told.wsgi; wsgi_callable_object auth; }
location /mirrored { mirror /copy; wsgi_script {apps}/told.wsgi; }
location /single { mirror /copy; mirror_request_body off; wsgi_script {apps}/told.wsgi; }
location = /copy { internal; wsgi_script {apps}/told.wsgi; wsgi_param COPY of-$request_method; }
location /errors { wsgi_intercept_errors on; error_page 404 = @named; error_page 500 /inner/500; error_page 403 /files/403;
                   wsgi_script {apps}/told.wsgi; }
location /own-errors { error_page 404 /inner/404; wsgi_script {apps}/told.wsgi; }
location /gzip { gzip on; gzip_types text/plain; gzip_min_length 10; wsgi_script {apps}/told.wsgi; }
location /limited { limit_req zone=few; wsgi_script {apps}/told.wsgi; }
"""


class Site:
    """One server, apps/told.wsgi at most of its places."""

    def __init__(self, server: Nginx):
        self.server = server

    def does(self, **what: Any) -> None:
        new = self.server.scratch / "does.new"
        new.write_text(json.dumps(what))
        new.rename(self.server.scratch / "does.json")

    def calls(self) -> list[dict[str, str]]:
        path = self.server.scratch / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def get(self, target: str, **kw: Any) -> Response:
        return self.server.get(target, **kw)


@pytest.fixture(scope="module")
def server(shared: Callable[..., Nginx]) -> Site:
    s = shared(SITE, http_config=GROUP + "limit_req_zone $uri zone=few:1m rate=1r/m;", tls=True)
    files = s.scratch / "files"
    files.mkdir()
    (files / "text").write_bytes(b"of a file" * 1000)
    (files / "403").write_bytes(b"forbidden, says a file")
    return Site(s)


@pytest.fixture
def site(server: Site) -> Iterator[Site]:
    server.does()
    yield server


def test_subrequests_of_ssi(site: Site) -> None:
    """N11: fragments come from the application, each its own request without the page's body."""
    before = len(site.calls())
    r = site.get("/page", method="POST", body=b"a body")
    assert r.complete and r.text.startswith("<a>") and " of /first by" in r.text and " of /second by" in r.text, r
    one, two = sorted(site.calls()[before:], key=lambda c: c["PATH_INFO"])
    assert (one["PATH_INFO"], one["QUERY_STRING"], one["REQUEST_METHOD"]) == ("/first", "x=1", "GET")
    assert one["body"] == two["body"] == "" and "CONTENT_LENGTH" not in one


def test_a_passed_file_under_ssi(site: Site) -> None:
    """N11: a filter that reads the body gets a passed file too."""
    site.does(how="file", body='<!--# echo var="arg_x" -->end', headers=[["Content-Type", "text/html"]])
    assert site.get("/ssi?x=12").text == "12end"


def test_auth_request(site: Site) -> None:
    """N11: an application decides; neither the client's body reaches it nor its body the client."""
    r = site.get("/guarded", method="POST", body=b"text")
    assert r.status == 401 and "not for the client" not in r.text
    r = site.get("/guarded", method="POST", body=b"text", headers=[("X-Key", "1")])
    assert (r.status, r.header("X-Who")) == (200, "somebody") and site.calls()[-1]["body"] == "text"


@pytest.mark.parametrize("body", [b"short", b"x" * 200_000])
def test_mirror(site: Site, body: bytes) -> None:
    """N11: a mirrored request has the client's method and body; without mirror_request_body none."""
    for target, copied in (("/mirrored", body.decode()), ("/single", "")):
        before = len(site.calls())
        assert site.get(target, method="POST", body=body).status == 200
        both = wait_until(lambda before=before: len(c := site.calls()[before:]) == 2 and c)
        (copy,) = [c for c in both if "COPY" in c]
        (original,) = [c for c in both if "COPY" not in c]
        assert original["body"] == body.decode()
        assert (copy["REQUEST_METHOD"], copy["body"]) == ("POST", copied)


def test_internal_and_named_locations(site: Site) -> None:
    """N11: internal places are for nginx alone; a named one serves what is tried last."""
    assert site.get("/inner").status == 404
    r = site.get("/tried/a")
    assert (r.status, r.header("X-From")) == (200, "named") and " of /tried/a by" in r.text


@pytest.mark.parametrize(
    ("to", "status", "text"),
    [("/files/text", 200, "of a file" * 1000), ("/inner/x", 200, "secret"), ("@named", 200, "secret")],
)
def test_x_accel_redirect(site: Site, to: str, status: int, text: str) -> None:
    """N11: another place answers in the application's stead; what it has sent itself goes nowhere, and its connection
    serves on."""
    site.does(accel=to, headers=[["Content-Disposition", "attachment"]], body="secret" * 100)
    for _ in range(3):
        r = site.get("/accel")
        assert (r.status, r.complete) == (status, True) and text in r.text, r
        assert r.header("X-Accel-Redirect") is None


def test_error_pages(site: Site) -> None:
    """N11: with wsgi_intercept_errors nginx's pages take the place of the application's, from files and applications;
    without it they do not."""
    site.does(status="403 Forbidden", body="own page")
    r = site.get("/errors")
    assert (r.status, r.text) == (403, "forbidden, says a file")
    site.does(status="404 Not Found", body="own page")
    r = site.get("/errors")
    assert (r.status, r.header("X-From")) == (404, "named")
    assert site.get("/own-errors").text == "own page"


def test_gzip(site: Site) -> None:
    """N11"""
    site.does(headers=[["Content-Type", "text/plain"]], body="text " * 5000)
    for how in ("list", "blocks", "file"):
        site.does(how=how, headers=[["Content-Type", "text/plain"]], body="text " * 5000)
        r = site.get("/gzip", headers=[("Accept-Encoding", "gzip")])
        assert r.header("Content-Encoding") == "gzip" and len(r.body) < 1000
        assert gzip.decompress(r.body) == b"text " * 5000
        assert site.get("/gzip").body == b"text " * 5000


def test_limit_req(site: Site) -> None:
    """N11: what nginx limits does not reach the application."""
    assert site.get("/limited").status == 200
    site.server.expect_log("limiting requests")
    before = len(site.calls())
    assert site.get("/limited").status == 503 and len(site.calls()) == before


def test_realip(site: Site) -> None:
    """N11: the address that the realip module finds is the application's REMOTE_ADDR."""
    site.get("/", headers=[("X-Real-IP", "192.0.2.7")])
    assert site.calls()[-1]["REMOTE_ADDR"] == "192.0.2.7"


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_tls_and_http2(site: Site, version: str) -> None:
    """N11: over TLS, in both versions: scheme, protocol, bodies both ways, a passed file."""
    data = b"x" * 300_000
    site.does(how="file", body="y" * 1000, times=1000)
    command = ["curl", "-sk", version, "--data-binary", "@-", "-w", "%{http_version}", "-H", "Expect:"]
    url = f"https://127.0.0.1:{site.server.tls_port}/tls?a=b"
    done = subprocess.run([*command, url], input=data, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    wanted = version[6:]
    assert done.stdout == b"y" * 1_000_000 + wanted.removesuffix(".0").encode()
    seen = site.calls()[-1]
    assert (seen["wsgi.url_scheme"], seen["QUERY_STRING"], seen["body"]) == ("https", "a=b", data.decode())
    assert seen["SERVER_PROTOCOL"] == ("HTTP/2.0" if wanted == "2" else "HTTP/1.1")
