"""What the client gets for each thing an application may do."""

from __future__ import annotations

import hashlib

import pytest

from harness import http
from harness.site import Site
from harness.wait import wait_until

PATTERN = bytes(range(256)) * 256


def test_pipelined(server: Site) -> None:
    """R10: pipelined requests are answered in order."""
    with server.connect() as c:
        c.send(b"".join(http.build(target=f"/exact?{i}") for i in range(20)))
        assert [c.response().text for _ in range(20)] == [f"exact:{i}" for i in range(20)]


def test_file_wrapper_close(server: Site) -> None:
    """PEP 3333: file_wrapper calls the file's close()."""
    closed = server.scratch / "closed"
    before = closed.read_text().count("file-wrapper") if closed.exists() else 0
    assert server.get("/file-wrapper-close").body == b"block,block,block,"
    wait_until(lambda: closed.exists() and closed.read_text().count("file-wrapper") == before + 1)


@pytest.mark.parametrize("how", ["whole", "bytesio"])
@pytest.mark.parametrize("size", [0, 1, 8192, 100000, 3000000])
def test_file_wrapper(server: Site, how: str, size: int) -> None:
    """PEP 3333: file_wrapper sends the whole file, real or file-like."""
    r = server.get(f"/file-wrapper?{how}:{size}" if size else f"/file-wrapper?{how}:1")
    n = size or 1
    assert r.complete and r.body == (PATTERN * (n // len(PATTERN) + 1))[:n]


def test_file_wrapper_offset(server: Site) -> None:
    """The reference: a file is sent from its current position."""
    data = PATTERN * 2
    r = server.get("/file-wrapper?offset:100000")
    assert r.body == data[1000:100000] and r.complete


def test_file_wrapper_length(server: Site) -> None:
    """The reference: an explicit Content-Length bounds it."""
    with server.connect() as c:
        r = c.request(target="/file-wrapper?length:100000")
        assert r.body == PATTERN[:5000] and r.header("Content-Length") == "5000"
        assert c.request(target="/exact?after").text == "exact:after"


def test_large_stream(server: Site) -> None:
    """R10: 50 MB from a generator, by checksum."""
    n = 800
    expected = hashlib.sha256()
    for _ in range(n):
        expected.update(PATTERN)
    r = server.get(f"/large?{n}")
    assert r.complete and len(r.body) == n * len(PATTERN)
    assert hashlib.sha256(r.body).digest() == expected.digest()


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 262143, 262144, 262145, 5000000])
def test_one_block(server: Site, size: int) -> None:
    """R14: a single block around the sizes where framing changes."""
    with server.connect() as c:
        r = c.request(target=f"/large-one?{size}")
        assert r.complete and r.body == (PATTERN * (size // len(PATTERN) + 1))[:size]
        assert c.request(target="/exact?after").text == "exact:after"


def test_many_small_yields(server: Site) -> None:
    """R10: 20,000 small blocks arrive whole and in order."""
    r = server.get("/small-yields?20000")
    assert r.complete and r.body == b"".join(b"%d\n" % i for i in range(20000))


def test_location_is_left_alone(server: Site) -> None:
    """R10: a redirect of the application reaches the client."""
    r = server.get("/status?302%20Found")
    assert r.status == 302
