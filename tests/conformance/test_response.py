"""What the client gets for each thing an application may do."""

from __future__ import annotations

import hashlib
import pathlib

import pytest

from harness import http, product
from harness.apache import Apache
from harness.wait import wait_until

PATTERN = bytes(range(256)) * 256


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("as-list", b"one,two,three"),
        ("as-tuple", b"ab"),
        ("as-generator", b"g1,g2"),
        ("late-start", b"late"),
        ("by-write", b"w1,w2,rest"),
        ("only-write", b"only-write"),
        ("empty", b""),
        ("empty-bytes", b""),
        ("exact?x", b"exact:x"),
    ],
)
def test_forms(server: Apache, name: str, body: bytes) -> None:
    """PEP 3333: list, tuple, generator, write(), nothing at all."""
    r = server.get(f"/{name}")
    assert (r.status, r.reason, r.body, r.complete) == (200, "OK", body, True)
    assert r.header("Content-Type") == "text/plain"


def test_keep_alive(server: Apache) -> None:
    """R10: every form leaves the connection fit for the next request."""
    with server.connect() as c:
        for _ in range(3):
            for name, body in (
                ("as-list", b"one,two,three"),
                ("empty", b""),
                ("as-generator", b"g1,g2"),
                ("by-write", b"w1,w2,rest"),
            ):
                r = c.request(target=f"/{name}")
                assert (r.status, r.body, r.complete) == (200, body, True)


def test_pipelined(server: Apache) -> None:
    """R10: pipelined requests are answered in order."""
    with server.connect() as c:
        c.send(b"".join(http.build(target=f"/exact?{i}") for i in range(20)))
        assert [c.response().text for _ in range(20)] == [f"exact:{i}" for i in range(20)]


def test_headers(server: Apache) -> None:
    """PEP 3333: fields keep their values; Set-Cookie is never folded."""
    r = server.get("/headers")
    assert r.all("Set-Cookie") == ["a=1; Path=/", "b=2, with comma"]
    assert r.all("X-Twice") in (["one", "two"], ["one, two"])
    assert r.header("X-Latin") == "caf\xe9" and r.header("X-Empty") == ""
    assert r.header("Content-Length") == "2" and r.body == b"ok"


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        ("200 OK", 200, "OK"),
        ("201 Created", 201, "Created"),
        ("404 Nothing Here", 404, "Nothing Here"),
        ("418 I'm a teapot", 418, "I'm a teapot"),
        ("500 Own Error", 500, "Own Error"),
        ("599 Far", 599, "Far"),
        ("299 Custom Reason", 299, "Custom Reason"),
    ],
)
def test_status(server: Apache, line: str, status: int, reason: str) -> None:
    """PEP 3333: the application's status line, with its own reason and body also for errors."""
    r = server.get("/status?" + line.replace(" ", "%20"))
    assert (r.status, r.reason, r.body) == (status, reason, b"body")


@pytest.mark.parametrize("status", ["204", "304"])
def test_no_body_statuses(server: Apache, status: str) -> None:
    """R10: 204 and 304 carry no body, even if the application yields one; the next answer is intact."""
    server.allow_log(r"MWR02\d\d")
    with server.connect() as c:
        for target in (f"/status?{status}%20X", f"/body-with-204?{status}"):
            r = c.request(target=target)
            assert r.status == int(status) and r.body == b""
        assert c.request(target="/exact?after").text == "exact:after"


@pytest.mark.parametrize(
    "name", ["as-list", "as-generator", "exact?x", "large-one?200000", "file-wrapper?whole:200000"]
)
def test_head(server: Apache, name: str) -> None:
    """R10: HEAD gives the same head without a body."""
    with server.connect() as c:
        r = c.request("HEAD", "/" + name)
        assert r.status == 200 and r.body == b""
        assert c.request(target="/exact?after").text == "exact:after"


def test_head_keeps_content_length(server: Apache) -> None:
    """R10: HEAD keeps the Content-Length of the application."""
    with server.connect() as c:
        assert c.request("HEAD", "/exact?12345").header("Content-Length") == "11"


def test_http10_response(server: Apache) -> None:
    """R10: HTTP/1.0 gets no chunks; the end of the connection ends the body."""
    r = server.get("/as-generator", version="1.0")
    assert r.framing in ("close", "length") and r.complete and r.body == b"g1,g2"


def test_exc_info_replaces(server: Apache) -> None:
    """PEP 3333: start_response with exc_info before the first byte replaces status and headers."""
    r = server.get("/exc-info-replace")
    assert (r.status, r.reason, r.body) == (503, "Replaced", b"replaced")
    assert r.header("X-Second") == "1" and r.header("X-First") is None


def test_close_is_called(server: Apache) -> None:
    """PEP 3333: close() runs once, after the last item, also after an error."""
    closed = server.scratch / "closed"
    r = server.get("/with-close?c1")
    assert r.body == b"closing"
    wait_until(lambda: closed.exists() and closed.read_text().split().count("c1") == 1, what="close()")
    server.expect_log("deliberate-in-iteration")
    server.allow_log("WSGI0174|MWR02|Traceback|File |raise |RuntimeError|yield|application|return |\\^")
    r = server.get("/close-after-error?c2")
    assert not product.is_ours() or r.status == 500 or r.truncated
    wait_until(lambda: closed.read_text().split().count("c2") == 1, what="close() after an error")
    assert closed.read_text().split().count("c1") == 1


def test_close_error(server: Apache) -> None:
    """PEP 3333: an error in close() is logged; the answer is whole."""
    server.expect_log("deliberate-in-close")
    allow_traceback(server)
    r = server.get("/close-raises")
    assert (r.status, r.body, r.complete) == (200, b"body", True)


def test_file_wrapper_close(server: Apache) -> None:
    """PEP 3333: file_wrapper calls the file's close()."""
    closed = server.scratch / "closed"
    before = closed.read_text().count("file-wrapper") if closed.exists() else 0
    assert server.get("/file-wrapper-close").body == b"block,block,block,"
    wait_until(lambda: closed.exists() and closed.read_text().count("file-wrapper") == before + 1)


@pytest.mark.parametrize("how", ["whole", "bytesio"])
@pytest.mark.parametrize("size", [0, 1, 8192, 100000, 3000000])
def test_file_wrapper(server: Apache, how: str, size: int) -> None:
    """PEP 3333: file_wrapper sends the whole file, real or file-like."""
    r = server.get(f"/file-wrapper?{how}:{size}" if size else f"/file-wrapper?{how}:1")
    n = size or 1
    assert r.complete and r.body == (PATTERN * (n // len(PATTERN) + 1))[:n]


def test_file_wrapper_offset(server: Apache) -> None:
    """The reference: a file is sent from its current position."""
    data = PATTERN * 2
    r = server.get("/file-wrapper?offset:100000")
    assert r.body == data[1000:100000] and r.complete


def test_file_wrapper_length(server: Apache) -> None:
    """The reference: an explicit Content-Length bounds it."""
    with server.connect() as c:
        r = c.request(target="/file-wrapper?length:100000")
        assert r.body == PATTERN[:5000] and r.header("Content-Length") == "5000"
        assert c.request(target="/exact?after").text == "exact:after"


def allow_traceback(server: Apache) -> None:
    """A traceback's lines, however they are split into records."""
    server.allow_log(r"WSGI\d{4}|MWR0[24]\d\d|Traceback|File \"|Error|Exception|SystemExit|deliberate|  \S|\^\^")


BAD_OF_BOTH = [
    "status-int", "status-short", "status-word", "status-bytes", "status-newline", "headers-dict", "headers-tuple",
    "header-three", "header-bytes", "header-value-int", "header-value-newline", "header-value-lf", "header-name-space",
    "header-name-empty", "header-name-newline", "header-not-latin", "length-word", "length-negative",
]  # fmt: skip
BAD_OF_OURS = [
    "header-value-nul",
    "header-name-colon",
    "hop-by-hop",
    "hop-by-hop-connection",
    "length-twice",
    "status-100",
]


@pytest.mark.parametrize("kind", BAD_OF_BOTH + [pytest.param(k, marks=pytest.mark.ours) for k in BAD_OF_OURS])
def test_bad_start_response(server: Apache, kind: str) -> None:
    """DESIGN 9: a bad status or header is an error in the log and a 500, never repaired or dropped silently."""
    server.expect_log(r"wsgi:(error|warn|crit)")
    allow_traceback(server)
    with server.connect() as c:
        r = c.request(target=f"/bad?{kind}")
        assert r.status == 500 and r.header("X-Injected") is None and r.body != b"ok"
    assert server.get("/exact?on").text == "exact:on"


@pytest.mark.parametrize(
    "name", ["no-start", "yields-str", "returns-none", "raises?x", "raises-after-start", "raises-system-exit"]
)
def test_error_before_the_first_byte(server: Apache, name: str) -> None:
    """R22: 500 with the traceback in the log; the worker goes on."""
    server.expect_log(r"wsgi:(error|crit)")
    allow_traceback(server)
    r = server.get(f"/{name}")
    assert r.status == 500 and "Internal Server Error" in r.text
    assert server.get("/exact?on").text == "exact:on"


@pytest.mark.parametrize("name", ["", "?two"])
def test_body_longer_than_declared(server: Apache, name: str) -> None:
    """Pitfall S14: a surplus is cut; the next answer on the connection is intact."""
    server.allow_log(r"MWR02\d\d")
    with server.connect() as c:
        r = c.request(target="/too-long" + name)
        assert (r.body, r.header("Content-Length")) == (b"12345", "5")
        assert c.request(target="/exact?after").text == "exact:after"


@pytest.mark.ours
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_body_shorter_than_declared(server: Apache, version: str) -> None:
    """Pitfall S14: a short body is visible as cut, or refused as a whole; no later byte fills it up."""
    server.expect_log(r"MWR02\d\d")
    with server.connect() as c:
        c.send(http.build(target="/too-short", version=version) + http.build(target="/exact?after", version=version))
        r = c.response()
        if r.status == 200:
            assert r.truncated and b"exact" not in r.body
        else:
            assert r.status in (500, 502)


@pytest.mark.ours
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_error_midway(server: Apache, version: str) -> None:
    """Pitfall H15: an exception after the first bytes never looks like the end of a whole answer."""
    server.expect_log("deliberate-midway")
    allow_traceback(server)
    with server.connect() as c:
        c.send(http.build(target="/error-midway", version=version))
        r = c.response()
        assert r.truncated, f"{r.framing} {r.ended} {len(r.body)}"
        if version == "1.0":
            assert r.ended == "reset", "nothing but a reset marks a cut close-delimited body"
    assert server.get("/exact?on").text == "exact:on"


@pytest.mark.parametrize("name", ["exc-info-too-late", "start-twice-after-body"])
def test_start_response_after_the_first_byte(server: Apache, name: str) -> None:
    """PEP 3333: after bytes have been sent start_response raises; the answer is cut."""
    server.expect_log(r"wsgi:(error|crit)")
    allow_traceback(server)
    r = server.get(f"/{name}")
    assert b"never" not in r.body
    if product.is_ours():
        assert r.truncated or r.status == 500


def test_large_stream(server: Apache) -> None:
    """R10: 50 MB from a generator, by checksum."""
    n = 800
    expected = hashlib.sha256()
    for _ in range(n):
        expected.update(PATTERN)
    r = server.get(f"/large?{n}")
    assert r.complete and len(r.body) == n * len(PATTERN)
    assert hashlib.sha256(r.body).digest() == expected.digest()


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 262143, 262144, 262145, 5000000])
def test_one_block(server: Apache, size: int) -> None:
    """R14: a single block around the sizes where framing changes."""
    with server.connect() as c:
        r = c.request(target=f"/large-one?{size}")
        assert r.complete and r.body == (PATTERN * (size // len(PATTERN) + 1))[:size]
        assert c.request(target="/exact?after").text == "exact:after"


def test_many_small_yields(server: Apache) -> None:
    """R10: 20,000 small blocks arrive whole and in order."""
    r = server.get("/small-yields?20000")
    assert r.complete and r.body == b"".join(b"%d\n" % i for i in range(20000))


def test_first_block_is_not_held_back(server: Apache) -> None:
    """DESIGN 4.6: what has been yielded reaches the client while the application waits."""
    gate = f"gate-{server.mpm}"
    with server.connect() as c:
        c.send(http.build(target=f"/gated?{gate}"))
        r = c.head()
        assert r.status == 200
        assert c.read_chunk() == b"before"
        pathlib.Path(server.scratch / gate).touch()
        assert c.read_chunk() == b"after"
        assert c.read_chunk() == b""


def test_location_is_left_alone(server: Apache) -> None:
    """R10: a redirect of the application reaches the client."""
    r = server.get("/status?302%20Found")
    assert r.status == 302


def test_date_and_server_come_from_httpd(server: Apache) -> None:
    """R10: httpd's own fields are there once."""
    r = server.get("/exact?x")
    assert len(r.all("Date")) == 1 and len(r.all("Server")) == 1
