"""How the application reads the request body."""

from __future__ import annotations

import hashlib
import os

import pytest

from harness import http
from harness.site import Site
from harness.wait import wait_until


@pytest.mark.parametrize("size", [0, 1, 100, 8191, 8192, 65535, 65536, 65537, 131072, 1 << 20])
@pytest.mark.parametrize("chunked", [False, True])
def test_sizes(server: Site, size: int, chunked: bool) -> None:
    """R14: around the 64 KiB border between inline and descriptor, and 1 MiB."""
    data = os.urandom(size)
    if chunked:
        pieces = [data[i : i + 10000] for i in range(0, size, 10000)]
        r = server.get("/digest", method="POST", headers=[("Transfer-Encoding", "chunked")], body=http.chunked(*pieces))
    else:
        r = server.get("/digest", method="POST", body=data)
    assert (r.status, r.text) == (200, f"{size} {hashlib.sha256(data).hexdigest()}")


@pytest.mark.ours
@pytest.mark.parametrize("size", [5, 100000])
def test_chunked_is_presented_with_its_length(server: Site, size: int) -> None:
    """DESIGN 4.3: a buffered chunked body has CONTENT_LENGTH and no Transfer-Encoding, so that frameworks read it."""
    data = b"z" * size
    r = server.get("/echo?length", method="POST", headers=[("Transfer-Encoding", "chunked")], body=http.chunked(data))
    assert (r.status, r.body, r.header("X-Length")) == (200, data, str(size))


def test_unread_body(server: Site) -> None:
    """R10: an application may leave the body unread; the next request on the connection is intact."""
    with server.connect() as c:
        for size in (10, 50000, 60000):
            r = c.request("POST", "/echo?none", body=b"u" * size)
            assert (r.status, r.body) == (200, b"unread")
        assert c.request("POST", "/echo", body=b"next").body == b"next"


def test_slow_sender(server: Site) -> None:
    """R10: a body that comes in pieces is put together."""
    with server.connect() as c:
        c.send(http.build("POST", "/echo", [("Content-Length", "6")]))
        c.send(b"ab")
        c.send(b"cd")
        c.send(b"ef")
        assert c.response().body == b"abcdef"


def test_limit_request_body(server: Site) -> None:
    """DESIGN 4.1: over LimitRequestBody the answer is 413 and the application does not run."""
    server.allow_log(server.TOO_LARGE)
    r = server.get("/limited", method="POST", body=b"x" * 1001)
    assert r.status == 413
    assert server.get("/limited", method="POST", body=b"x" * 1000).status in (200, 404)


@pytest.mark.ours
def test_limit_request_body_chunked(server: Site) -> None:
    """DESIGN 4.1: a chunked body over the limit is a 413 as well."""
    server.allow_log(server.TOO_LARGE)
    body = http.chunked(*[b"x" * 300] * 5)
    r = server.get("/limited", method="POST", headers=[("Transfer-Encoding", "chunked")], body=body)
    assert r.status == 413


def test_expect_continue(server: Site) -> None:
    """Pitfall H20: the body is asked for with 100, and the request is answered."""
    with server.connect() as c:
        c.send(http.build("POST", "/echo", [("Expect", "100-continue"), ("Content-Length", "5")]))
        interim = c._one_head()
        assert interim.status == 100
        c.send(b"12345")
        assert c.response().body == b"12345"


@pytest.mark.ours
def test_expect_continue_over_the_limit(server: Site) -> None:
    """DESIGN 4.1: a body that will be refused is not asked for."""
    server.allow_log(server.TOO_LARGE)
    with server.connect() as c:
        c.send(http.build("POST", "/limited", [("Expect", "100-continue"), ("Content-Length", "2000")]))
        r = c.response()
        assert r.status == 413 and r.interim == []


@pytest.mark.parametrize(
    "head",
    [[("Content-Length", "abc")], [("Content-Length", "-5")], [("Transfer-Encoding", "gzip")]],
)
def test_bad_framing(server: Site, head: list[tuple[str, str]]) -> None:
    """R21: framing that is not HTTP is refused; the server goes on."""
    server.allow_log(server.CLIENT_FAULTS)
    r = server.get("/echo", method="POST", headers=head, body=b"")
    assert r.status in (400, 411, 501)
    assert server.get("/exact?on").status == 200


def test_client_leaves_in_its_body(server: Site) -> None:
    """DESIGN 4.3: a body that ends early never reaches a buffered application; others are unaffected."""
    server.allow_log(server.CLIENT_FAULTS)
    with server.connect() as c:
        c.send(http.build("POST", "/echo", [("Content-Length", "1000")]) + b"only some")
    assert server.get("/exact?on").text == "exact:on"


def test_bad_chunk(server: Site) -> None:
    """R21: broken chunked coding is a 400, not a crash."""
    server.allow_log(server.CLIENT_FAULTS)
    for bad in (b"zz\r\nabc\r\n0\r\n\r\n", b"5\r\nabc", b"ffffffffffffffffff\r\nx"):
        with server.connect() as c:
            c.send(http.build("POST", "/echo", [("Transfer-Encoding", "chunked")]) + bad)
            c.sock.shutdown(1)
            try:
                r = c.response()
                assert r.status in (400, 408, 413, 500), r
            except ConnectionError:
                pass
    assert server.get("/exact?on").status == 200


@pytest.mark.ours
def test_descriptor_count_stays_flat(server: Site) -> None:
    """Pitfall S10: spooled bodies leave no descriptor behind in the children."""
    from harness import procs

    data = b"s" * 200000

    def count() -> int:
        return sum(procs.descriptors(p.pid) for p in server.server_processes() if p.alive())

    with server.connect() as c:
        for _ in range(5):
            assert c.request("POST", "/digest", body=data).status == 200
        before = count()
        for _ in range(50):
            assert c.request("POST", "/digest", body=data).status == 200
    wait_until(lambda: count() <= before + 4, 10, "descriptors back to where they were")
