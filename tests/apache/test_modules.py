"""Apache's own modules around an application: mod_deflate, mod_rewrite, mod_remoteip, mod_headers, mod_include, mod_dir,
mod_negotiation, mod_cache; byte ranges and conditional requests."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from harness import http, log, product
from harness.apache import Apache
from harness.server import running
from harness.wait import wait_until

MODULES = ["deflate", "filter", "include", "remoteip", "negotiation", "cache", "cache_disk"]
CONFIG = """
WSGIDaemonProcess g processes=1 threads=8
WSGIProcessGroup g
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /app {apps}/neighbours.wsgi
WSGIScriptAlias /z {apps}/neighbours.wsgi
WSGIScriptAlias /ssi {apps}/neighbours.wsgi
WSGIScriptAlias /fields {apps}/neighbours.wsgi
WSGIScriptAlias /cached {apps}/neighbours.wsgi
WSGIScriptAlias /site/mounted {apps}/neighbours.wsgi

<Location /z>
SetOutputFilter DEFLATE
</Location>

RemoteIPHeader X-Client
RemoteIPInternalProxy 127.0.0.1

<Location /fields>
Header set X-Set by-httpd
Header always set X-Always by-httpd
Header append X-App appended
Header unset X-Secret
Header edit Set-Cookie "^(.*)$" "$1; Secure"
Header onsuccess set X-Success yes
Header always edit WWW-Authenticate "^Basic" Own
RequestHeader set X-Added by-httpd
RequestHeader unset X-Dropped
RequestHeader edit X-Edited old new
SetEnv HTTP_X_SHADOW server
SetEnv QUERY_STRING server
SetEnv X_OWN server
</Location>

RewriteEngine On
RewriteRule ^/old/(.*)$ /app/$1 [PT,QSA,E=REWRITTEN:$1]
RewriteRule ^/by-handler$ {apps}/neighbours.wsgi [H=wsgi-script,L]
RewriteRule ^/auth-to-env - [E=HTTP_AUTHORIZATION:%{HTTP:Authorization}]
RewriteRule ^/auth-to-env(.*)$ /app$1 [PT]
RewriteRule ^/forbidden - [F]
RewriteRule ^/elsewhere/(.*)$ /app/$1 [R=307,L]

<Directory {prefix}/htdocs>
Options +FollowSymLinks +Includes +MultiViews
AddOutputFilter INCLUDES .shtml
AddType text/html .shtml .html
</Directory>
<Directory {prefix}/htdocs/site>
Options +ExecCGI
AddHandler wsgi-script .wsgi
DirectoryIndex index.wsgi
MultiviewsMatch Handlers
RewriteEngine On
RewriteCond %{REQUEST_FILENAME} !-f
RewriteCond %{REQUEST_FILENAME} !-d
RewriteRule ^ctl/(.*)$ front.wsgi/$1 [QSA,L,E=FRONT:yes]
</Directory>
<Directory {prefix}/htdocs/fallback>
FallbackResource /app/environ-json
</Directory>
<Directory {prefix}/htdocs/indexed>
DirectoryIndex /app/part/index
</Directory>
<Location /ssi>
Options +Includes
SetOutputFilter INCLUDES
</Location>
CacheRoot {prefix}/cache
CacheEnable disk /cached
CacheEnable disk /cut.shtml
CacheIgnoreNoLastMod On
CacheDefaultExpire 600
CacheMaxFileSize 10000000
CacheDirLevels 1
CacheDirLength 1
<VirtualHost 127.0.0.1:{port}>
ServerName localhost
RewriteEngine On
RewriteOptions Inherit
</VirtualHost>
<VirtualHost 127.0.0.1:{port}>
ServerName late
CacheQuickHandler off
</VirtualHost>
"""


@pytest.fixture(scope="module", params=["event", "worker", "prefork"])
def server(request: pytest.FixtureRequest) -> Iterator[Apache]:
    apache = Apache(CONFIG, modules=MODULES, mpm=request.param)
    htdocs = apache.prefix / "htdocs"
    cache = apache.prefix / "cache"
    cache.mkdir()
    cache.chmod(0o1777)
    site = htdocs / "site"
    for d in (site, htdocs / "fallback", htdocs / "indexed"):
        d.mkdir()
    for name in ("front.wsgi", "index.wsgi", "choice.wsgi"):
        (site / name).write_text((apache.apps / "neighbours.wsgi").read_text())
    (site / "plain.txt").write_text("plain")
    (htdocs / "page.shtml").write_text(
        'A <!--#include virtual="/app/part/one?q=1" --> <!--#include virtual="/app/part/two" --> Z'
    )
    (htdocs / "cut.shtml").write_text('A <!--#include virtual="/app/stream?n=20&break=1&tag=included-cut" --> Z')
    (htdocs / "names.shtml").write_text('<!--#include virtual="/app/environ-json/x?y" -->')
    (htdocs / "broken.shtml").write_text('A <!--#include virtual="/app/fail" --> Z')
    (htdocs / "large.shtml").write_text('<!--#include virtual="/app/stream?n=20" -->')
    (apache.scratch / "file.bin").write_bytes(FILE)
    with running(apache) as live:
        yield live


BLOCK = bytes(range(256)) * 256
FILE = bytes(os.urandom(1000)) + BLOCK * 4 + b"end"
GZIP = [("Accept-Encoding", "gzip")]


def allow_break(server: Apache) -> None:
    server.allow_log(log.CUT)


# --- mod_deflate


@pytest.mark.parametrize(
    ("target", "plain"),
    [
        ("/z/whole?n=1000", BLOCK[:1000]),
        ("/z/whole?n=1000&plain", BLOCK[:1000]),
        ("/z/whole?n=500000", (BLOCK * 8)[:500000]),
        ("/z/stream?n=20", BLOCK * 20),
        ("/z/file?name=file.bin", FILE),
        ("/z/file?name=file.bin&seek=1000&h-Content-Length=70000", (BLOCK * 2)[:70000]),
    ],
)
def test_deflate(server: Apache, target: str, plain: bytes) -> None:
    """W12: mod_deflate over a whole answer, a stream, a file: no stale length, the connection stays in step."""
    with server.connect() as c:
        r = c.request(target=target, headers=GZIP)
        assert (r.status, r.header("Content-Encoding"), r.complete) == (200, "gzip", True)
        assert "Accept-Encoding" in (r.header("Vary") or "")
        assert gzip.decompress(r.body) == plain
        r = c.request(target=target)
        assert (r.header("Content-Encoding"), r.body) == (None, plain)
        assert c.request("HEAD", target, GZIP).body == b""
        assert c.request(target="/app/part/next").body == b"[GET /part/next  0]"


def test_deflate_leaves_coded_answers(server: Apache) -> None:
    """W12: what the application has compressed is not compressed again."""
    r = server.get("/z/zipped", headers=GZIP)
    assert r.all("Content-Encoding") == ["gzip"] and gzip.decompress(r.body) == BLOCK


def test_deflate_flushes(server: Apache) -> None:
    """W9, W12: a block reaches the client through mod_deflate while the application waits."""
    with server.connect() as c:
        c.send(http.build(target="/z/gated?deflate-gate", headers=GZIP))
        r = c.head()
        assert r.header("Content-Encoding") == "gzip"
        inflate, seen = zlib.decompressobj(31), b""
        while seen != b"before":
            chunk = c.read_chunk()
            assert chunk, f"the stream ended after {seen!r}"
            seen += inflate.decompress(chunk)
        (server.scratch / "deflate-gate").touch()
        while chunk := c.read_chunk():
            seen += inflate.decompress(chunk)
        assert seen == b"beforeafter" and inflate.eof


@pytest.mark.ours
@pytest.mark.parametrize("target", ["/z/stream?n=3&break=1", "/z/stream?n=3&length=999999"])
def test_deflate_truncated(server: Apache, target: str) -> None:
    """W8, W12: an answer that breaks off is visibly cut, also behind a filter that knows no length."""
    server.expect_log("deliberate-break|MWR02")
    allow_break(server)
    r = server.get(target, headers=GZIP)
    assert r.truncated or r.status >= 500


# --- mod_rewrite


def test_rewrite_per_server(server: Apache) -> None:
    """W12: a rule of the server, with its query and its variable."""
    seen = json.loads(server.get("/old/environ-json/more?a=b").body)
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/app", "/environ-json/more", "a=b")
    assert seen["REQUEST_URI"] == "/old/environ-json/more?a=b" and seen["REWRITTEN"] == "environ-json/more"


def test_rewrite_to_a_script(server: Apache) -> None:
    """W12: [H=wsgi-script] on a rewritten file needs ExecCGI as every handler does."""
    server.expect_log("ExecCGI|MWR0220|WSGI0134")
    assert server.get("/by-handler").status == 403


def test_rewrite_passes_authorization(server: Apache) -> None:
    """W2, W12: the usual rule that hands Authorization on as a variable."""
    fields = [("Authorization", "Basic YTpi")]
    assert (
        json.loads(server.get("/auth-to-env/environ-json", headers=fields).body)["HTTP_AUTHORIZATION"] == "Basic YTpi"
    )
    assert "HTTP_AUTHORIZATION" not in json.loads(server.get("/app/environ-json", headers=fields).body)


def test_rewrite_other_ends(server: Apache) -> None:
    """W12: rules that answer by themselves."""
    assert server.get("/forbidden").status == 403
    r = server.get("/elsewhere/part")
    assert r.status == 307 and r.header("Location").endswith("/app/part")


def test_rewrite_per_directory(server: Apache) -> None:
    """W12: the front-controller rule of a directory; files that exist stay files."""
    seen = json.loads(server.get("/site/ctl/environ-json/x%20y?q=1").body)
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/site/front.wsgi", "/environ-json/x y")
    assert (seen["QUERY_STRING"], seen["REQUEST_URI"]) == ("q=1", "/site/ctl/environ-json/x%20y?q=1")
    assert (seen["REDIRECT_FRONT"], seen["REDIRECT_URL"]) == ("yes", "/site/ctl/environ-json/x y")
    assert server.get("/site/plain.txt").text == "plain"
    body = os.urandom(200_000)
    seen = json.loads(server.get("/site/ctl/echo", method="POST", body=body).body)
    assert (seen["method"], seen["size"], seen["sha"]) == ("POST", len(body), hashlib.sha256(body).hexdigest())


# --- mod_remoteip


def test_remoteip(server: Apache) -> None:
    """W12: REMOTE_ADDR is what mod_remoteip made of it; the header is gone."""
    seen = json.loads(server.get("/app/environ-json", headers=[("X-Client", "192.0.2.7")]).body)
    assert seen["REMOTE_ADDR"] == "192.0.2.7" and "HTTP_X_CLIENT" not in seen
    seen = json.loads(server.get("/app/environ-json", headers=[("X-Client", "2001:db8::5")]).body)
    assert seen["REMOTE_ADDR"] == "2001:db8::5"
    assert json.loads(server.get("/app/environ-json").body)["REMOTE_ADDR"] == "127.0.0.1"


# --- mod_headers, mod_env


def test_response_fields(server: Apache) -> None:
    """W12: mod_headers sees the application's fields."""
    r = server.get("/fields/answer?h-X-Secret=1&h-Set-Cookie=a%3Db&h-X-Set=by-app")
    assert r.header("X-Set") == "by-httpd" and r.header("X-Secret") is None and r.header("X-Success") == "yes"
    assert r.all("X-Always") == ["by-httpd"] and r.header("Set-Cookie") == "a=b; Secure"
    assert ", ".join(r.all("X-App")) == "yes, appended"


@pytest.mark.ours
def test_content_type_is_left_alone(server: Apache) -> None:
    """W6: the type is sent as the application gave it."""
    for kind in ("Text/PLAIN", "text/html; Charset=UTF-8", 'application/x; A="B;c"'):
        assert server.get("/app/answer?h-Content-Type=" + quote(kind)).header("Content-Type") == kind
    assert server.get("/app/answer?h-Content-Type=" + quote("Text/PLAIN")).body == b"the application's 200"


def test_response_fields_of_errors(server: Apache) -> None:
    """W12: `always` also on errors of the application and of the server; a stream as well as a whole answer."""
    r = server.get("/fields/answer?status=500&h-X-Secret=1")
    assert r.header("X-Always") == "by-httpd" and r.header("X-Secret") is None
    # a challenge is where those of mod_auth_* are
    r = server.get("/fields/answer?status=401&h-WWW-Authenticate=Basic+realm%3Dx")
    assert r.all("WWW-Authenticate") == ["Own realm=x"]
    server.expect_log("deliberate-fail")
    allow_break(server)
    r = server.get("/fields/fail")
    assert r.status == 500 and r.header("X-Always") == "by-httpd"
    assert server.get("/fields/stream?n=3&h-X-Secret=1").header("X-Secret") is None


def test_request_fields(server: Apache) -> None:
    """W12: RequestHeader changes what the application sees."""
    fields = [("X-Dropped", "1"), ("X-Edited", "old"), ("X-Added", "by-client")]
    seen = json.loads(server.get("/fields/environ-json", headers=fields).body)
    assert (seen["HTTP_X_ADDED"], seen["HTTP_X_EDITED"]) == ("by-httpd", "new") and "HTTP_X_DROPPED" not in seen


def test_variables_do_not_replace_the_request(server: Apache) -> None:
    """W2: SetEnv adds; what the request itself says wins, as with mod_wsgi."""
    seen = json.loads(server.get("/fields/environ-json?mine", headers=[("X-Shadow", "client")]).body)
    assert (seen["QUERY_STRING"], seen["X_OWN"], seen["HTTP_X_SHADOW"]) == ("mine", "server", "client")
    assert json.loads(server.get("/fields/environ-json").body)["HTTP_X_SHADOW"] == "server"


# --- subrequests: mod_include, mod_dir, mod_negotiation


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_included(server: Apache, method: str) -> None:
    """W12: a page includes two answers of the application: each has its own path and query, and no body."""
    body = b"x" * 5000 if method == "POST" else None
    with server.connect() as c:
        r = c.request(method, "/page.shtml?page-query", body=body)
        assert (r.status, r.text) == (200, "A [GET /part/one q=1 0] [GET /part/two  0] Z")
        assert c.request(target="/app/part/next").body == b"[GET /part/next  0]"


@pytest.mark.parametrize("body", [None, b"x" * 5000])
def test_included_names(server: Apache, body: bytes | None) -> None:
    """W2, W12: in an included answer SCRIPT_NAME and PATH_INFO divide its own URL, REQUEST_URI is the page's; the page's
    body and its type are not the included answer's."""
    method, fields = ("GET", []) if body is None else ("POST", [("Content-Type", "text/x-page")])
    seen = json.loads(server.get("/names.shtml?page", method=method, headers=fields, body=body).body)
    assert (seen["SERVER_PROTOCOL"], seen["REQUEST_URI"], seen["QUERY_STRING"]) == (
        "INCLUDED",
        "/names.shtml?page",
        "y",
    )
    assert (seen["DOCUMENT_URI"], seen["PATH_INFO"]) == ("/names.shtml", "/environ-json/x")
    if product.is_ours():
        assert seen["SCRIPT_NAME"] == "/app" and "CONTENT_LENGTH" not in seen and "CONTENT_TYPE" not in seen


def test_included_failure(server: Apache) -> None:
    """W12: an exception in an included answer leaves the page whole."""
    server.expect_log("deliberate-fail")
    server.allow_log("unable to include")
    allow_break(server)
    r = server.get("/broken.shtml")
    assert r.status == 200 and re.fullmatch(r"A .*an error occurred.* Z", r.text, re.S), r.text


def test_included_stream(server: Apache) -> None:
    """W12: a large streamed answer inside a page."""
    r = server.get("/large.shtml")
    assert r.complete and r.body == BLOCK * 20


def test_includes_of_the_application(server: Apache) -> None:
    """W12: server-side includes in the application's own page; the included answer comes from the same process."""
    r = server.get("/ssi/ssi?outer")
    assert (r.status, r.text) == (200, "A [GET /part/x y 0] Z")


def test_directory_index(server: Apache) -> None:
    """W12: mod_dir: a script of the directory, a URL of an application, FallbackResource."""
    seen = json.loads(server.get("/site/").body)
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/site/index.wsgi", "")
    assert server.get("/indexed/").text == "[GET /part/index  0]"
    r = server.get("/fallback/what/ever?x=1")
    assert json.loads(r.body)["QUERY_STRING"] == "x=1"


def test_negotiation(server: Apache) -> None:
    """W12: MultiViews finds the script of the name."""
    r = server.get("/site/choice?x=2")
    assert r.status == 200 and json.loads(r.body)["QUERY_STRING"] == "x=2"


# --- mod_cache_disk


def calls(server: Apache, tag: str) -> int:
    path = pathlib.Path(server.scratch / "calls")
    return path.read_text().split().count(tag) if path.exists() else 0


@pytest.mark.parametrize("host", ["localhost", "late"])
@pytest.mark.parametrize("kind", ["n=1", "n=20", "n=2&length=131072"])
def test_cache(server: Apache, host: str, kind: str) -> None:
    """W12: whole answers are stored and served again."""
    tag = f"whole.{host}.{kind.replace('&', '.').replace('=', '.')}"
    target = f"/cached/cached?tag={tag}&{kind}"
    first = server.get(target, host=host)
    assert first.complete and first.header("X-Count") == "1"

    def hit() -> bool:
        r = server.get(target, host=host)
        assert r.complete and r.body == first.body
        return r.header("Age") is not None

    wait_until(hit, what="an answer from the cache")
    before = calls(server, tag)
    assert server.get(target, host=host).body == first.body and calls(server, tag) == before


@pytest.mark.ours
@pytest.mark.parametrize("host", ["localhost", "late"])
@pytest.mark.parametrize("kind", ["n=1&break=1", "n=20&break=1", "n=2&length=999999", "n=2&length=131072&break=1"])
def test_cache_does_not_keep_what_broke_off(server: Apache, host: str, kind: str) -> None:
    """W8, W12: a truncated answer is never stored: each request is a call, none comes whole from the cache."""
    server.expect_log("deliberate-break|MWR02")
    allow_break(server)
    tag = f"cut.{host}.{kind.replace('&', '.').replace('=', '.')}"
    for n in (1, 2, 3):
        r = server.get(f"/cached/cached?tag={tag}&{kind}", host=host)
        assert r.header("Age") is None and (r.truncated or r.status >= 500 or "length=131072" in kind)
        assert calls(server, tag) == n


@pytest.mark.ours
def test_cache_does_not_keep_a_page_with_a_cut(server: Apache) -> None:
    """W8, W12: where an included answer breaks off, the page around it is cut visibly and not stored either."""
    server.expect_log("deliberate-break")
    allow_break(server)
    for n in (1, 2, 3):
        r = server.get("/cut.shtml")
        assert r.truncated or r.status >= 500 or "an error occurred" in r.text, r.text[-200:]
        assert r.header("Age") is None and calls(server, "included-cut") == n


# --- byte ranges and conditions


RANGES = [
    ("bytes=0-99", 0, 100),
    ("bytes=1000-1000", 1000, 1),
    ("bytes=200000-", 200000, None),
    ("bytes=-5", -5, None),
    ("bytes=5-99999999", 5, None),
]


def cut(data: bytes, start: int, length: int | None) -> bytes:
    start = start if start >= 0 else len(data) + start
    return data[start:] if length is None else data[start : start + length]


@pytest.mark.ours
@pytest.mark.parametrize(("spec", "start", "length"), RANGES)
@pytest.mark.parametrize("seek", [0, 1000])
def test_range_of_a_file(server: Apache, spec: str, start: int, length: int | None, seek: int) -> None:
    """W10: httpd cuts ranges out of a file_wrapper's file (mod_wsgi's daemon mode answers 200 with everything)."""
    data = FILE[seek:]
    with server.connect() as c:
        r = c.request(target=f"/app/file?name=file.bin&seek={seek}", headers=[("Range", spec)])
        want = cut(data, start, length)
        assert (r.status, r.body, r.header("Content-Length")) == (206, want, str(len(want)))
        first = start if start >= 0 else len(data) + start
        assert r.header("Content-Range") == f"bytes {first}-{first + len(want) - 1}/{len(data)}"
        assert c.request(target="/app/part/next").body == b"[GET /part/next  0]"


@pytest.mark.ours
def test_ranges_of_a_file(server: Apache) -> None:
    """W10: several ranges, ranges outside, ranges that are none."""
    with server.connect() as c:
        r = c.request(target="/app/file?name=file.bin", headers=[("Range", "bytes=0-9,1000-1009")])
        assert r.status == 206 and r.header("Content-Type").startswith("multipart/byteranges")
        assert FILE[:10] in r.body and FILE[1000:1010] in r.body and r.complete
        r = c.request(target="/app/file?name=file.bin", headers=[("Range", f"bytes={len(FILE)}-")])
        assert r.status == 416 and r.body != FILE
        r = c.request(target="/app/file?name=file.bin", headers=[("Range", "lines=1-2")])
        assert (r.status, r.body) == (200, FILE)
        r = c.request("HEAD", "/app/file?name=file.bin", [("Range", "bytes=0-9")])
        assert r.status in (200, 206) and r.body == b""
        assert c.request(target="/app/part/next").body == b"[GET /part/next  0]"


def test_range_of_a_whole_answer(server: Apache) -> None:
    """W10: of an answer that is complete at once, httpd makes the range; of a stream it cannot, and sends all."""
    r = server.get("/app/whole?n=1000", headers=[("Range", "bytes=10-19")])
    if product.is_ours():
        assert (r.status, r.body, r.header("Content-Range")) == (206, BLOCK[10:20], "bytes 10-19/1000")
    else:
        assert r.body in (BLOCK[:1000], BLOCK[10:20])
    r = server.get("/app/stream?n=2", headers=[("Range", "bytes=10-19")])
    assert (r.status, r.body) == (200, BLOCK * 2)


def test_ranges_of_the_application(server: Apache) -> None:
    """W10: an application that makes ranges itself is left alone, and one that refuses them too."""
    fields = "&h-Content-Range=bytes%205-9/1000&h-Content-Length=5&status=206%20Partial%20Content"
    r = server.get(f"/app/file?name=file.bin&seek=5{fields}", headers=[("Range", "bytes=5-9")])
    assert (r.status, r.body, r.all("Content-Range")) == (206, FILE[5:10], ["bytes 5-9/1000"])
    r = server.get("/app/file?name=file.bin&h-Accept-Ranges=none", headers=[("Range", "bytes=5-9")])
    assert (r.status, r.body, r.all("Accept-Ranges")) == (200, FILE, ["none"])


def test_if_range(server: Apache) -> None:
    """W10: If-Range is judged by the application's own validators."""
    target = "/app/file?name=file.bin&h-ETag=%22v1%22&h-Content-Length=" + str(len(FILE))
    r = server.get(target, headers=[("Range", "bytes=0-4"), ("If-Range", '"v2"')])
    assert (r.status, r.body) == (200, FILE)
    if product.is_ours():
        r = server.get(target, headers=[("Range", "bytes=0-4"), ("If-Range", '"v1"')])
        assert (r.status, r.body, r.header("ETag")) == (206, FILE[:5], '"v1"')


@pytest.mark.parametrize(
    "field",
    [
        ("If-None-Match", '"v1"'),
        ("If-Modified-Since", "Fri, 01 Jan 2038 00:00:00 GMT"),
        ("If-Match", '"v2"'),
        ("If-Unmodified-Since", "Thu, 01 Jan 1998 00:00:00 GMT"),
    ],
)
def test_conditions_are_the_applications(server: Apache, field: tuple[str, str]) -> None:
    """W10, W12: httpd judges no condition on an application's answer, as with mod_wsgi: the application does."""
    fields = "&h-ETag=%22v1%22&h-Last-Modified=Fri,%2001%20Jan%202010%2000:00:00%20GMT"
    for target in (f"/app/file?name=file.bin{fields}", f"/app/whole?n=100{fields}"):
        r = server.get(target, headers=[field])
        assert (r.status, r.header("ETag")) == (200, '"v1"'), target
        assert r.header("Last-Modified") == "Fri, 01 Jan 2010 00:00:00 GMT"
    r = server.get("/app/answer?status=304&h-ETag=%22v1%22", headers=[field])
    assert (r.status, r.body, r.header("ETag")) == (304, b"", '"v1"')
