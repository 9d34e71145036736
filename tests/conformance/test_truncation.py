"""W8, W7: an answer that is not whole never looks whole, in the bytes that the client gets. Nothing here is parsed by
a client library."""

from __future__ import annotations

import pytest

from harness import http
from harness.case import note
from harness.site import Site

END_OF_CHUNKS = b"0\r\n\r\n"


def raw_answer(server: Site, request: bytes, linger: bool = False) -> tuple[bytes, str]:
    """Everything that comes for the request, and how the connection ended: "eof" or "reset"."""
    data = b""
    with server.connect(timeout=15) as c:
        c.send(request)
        while True:
            try:
                piece = c.sock.recv(1 << 16)
            except ConnectionResetError:
                return data, "reset"
            if not piece:
                return data, "eof"
            data += piece


def get(path: str, version: str = "1.1") -> bytes:
    return http.build("GET", path, version=version)


#: how an application breaks off after its first bytes
BREAKS = ["exception", "system-exit", "generator-exit", "wrong-type", "start-response", "write-then-exception"]


def broken(environ, start_response):
    """Sends 20,000 bytes, then fails in the way of the query."""
    how = environ["QUERY_STRING"]

    def parts():
        yield b"a" * 20000
        if how == "exception":
            raise RuntimeError("deliberate")
        if how == "system-exit":
            raise SystemExit(0)
        if how == "generator-exit":
            raise GeneratorExit
        if how == "wrong-type":
            yield "text"
        if how == "start-response":
            start_response("200 OK", [])
        yield b"never"

    write = start_response("200 OK", [("Content-Type", "text/plain")])
    if how == "write-then-exception":
        write(b"a" * 20000)
        raise RuntimeError("deliberate")
    return parts()


@pytest.mark.parametrize("how", BREAKS)
def test_chunked_without_terminator(server: Site, case, how: str) -> None:
    """HTTP/1.1: the last chunk never comes, and nothing that could pass for it."""
    server.expect_log("MWR043[01]")
    server.allow_log(server.TRACEBACK)
    data, _ = raw_answer(server, get(case(broken).path + "?" + how))
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and b"\r\ntransfer-encoding: chunked" in head.lower()
    assert b"aaaa" in body and b"never" not in body
    assert not body.endswith(END_OF_CHUNKS) and END_OF_CHUNKS not in body


@pytest.mark.parametrize("how", BREAKS)
def test_http10_reset(server: Site, case, how: str) -> None:
    """HTTP/1.0 without a length: the end of the connection would be the end of the body, so it is a reset."""
    server.expect_log("MWR043[01]")
    server.allow_log(server.TRACEBACK)
    data, ended = raw_answer(server, get(case(broken).path + "?" + how, "1.0"))
    assert ended == "reset"
    assert b"never" not in data


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("pieces", [1, 2, 50])
def test_content_length_short(server: Site, case, version: str, pieces: int) -> None:
    """W7: fewer bytes than declared: 500 when nothing has been sent, else the connection ends before the length is
    reached; a request behind it gets no answer that could fill the gap."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2000000")])
        return iter([b"x" * 1000] * pieces) if pieces > 1 else [b"x" * 1000]

    server.expect_log(r"MWR0216: response body has \d+ bytes, Content-Length said 2000000; the connection was aborted")
    path = case(app).path
    data, _ = raw_answer(server, get(path, version) + get("/exact?filler", version))
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"exact:filler" not in data and data.count(b"HTTP/1.") == 1
    if head.startswith(b"HTTP/1.1 200 "):
        assert b"\r\ncontent-length: 2000000" in head.lower() and body == b"x" * len(body) and len(body) < 2000000
    else:
        assert head.startswith(b"HTTP/1.1 500 ")


def test_content_length_short_and_exception(server: Site, case) -> None:
    """An exception in a body of declared length: the length is not reached."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "50000")])
        yield b"x" * 30000
        raise RuntimeError("deliberate")

    server.expect_log("MWR0430")
    server.allow_log(server.TRACEBACK)
    data, _ = raw_answer(server, get(case(app).path) + get("/exact?filler"))
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"\r\ncontent-length: 50000" in head.lower() and len(body) <= 30000 and b"exact:" not in data


def test_content_length_reached_before_the_exception(server: Site, case) -> None:
    """All declared bytes have been given when the application fails: the client has a whole answer or sees the break,
    and the failure is logged."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        yield b"12345"
        raise RuntimeError("deliberate")

    server.expect_log("MWR0430")
    server.allow_log(server.TRACEBACK)
    data, _ = raw_answer(server, get(case(app).path))
    assert data.partition(b"\r\n\r\n")[2] == b"12345"


def test_file_that_shrinks(server: Site, case) -> None:
    """A file that became shorter after its length was announced."""

    def app(environ, start_response):
        import os
        import tempfile

        f = tempfile.NamedTemporaryFile(delete=False)  # noqa: SIM115
        f.write(b"x" * 3_000_000)
        f.seek(0)

        class Shrinking:
            def __init__(self):
                self.reads = 0

            def read(self, n):
                self.reads += 1
                if self.reads == 2:
                    os.truncate(f.name, 100_000)
                return f.read(n)

            def close(self):
                os.unlink(f.name)

        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3000000")])
        return environ["wsgi.file_wrapper"](Shrinking(), 50_000)

    server.expect_log("MWR0216")
    data, _ = raw_answer(server, get(case(app).path) + get("/exact?filler"))
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"\r\ncontent-length: 3000000" in head.lower() and len(body) < 3_000_000 and b"exact:" not in body


def test_declared_length_beyond_the_file(server: Site, case) -> None:
    """file_wrapper with a regular file that is shorter than the application declares."""

    def app(environ, start_response):
        import tempfile

        f = tempfile.TemporaryFile()  # noqa: SIM115
        f.write(b"x" * 1000)
        f.seek(0)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5000")])
        return environ["wsgi.file_wrapper"](f)

    server.expect_log("MWR0216")
    data, _ = raw_answer(server, get(case(app).path) + get("/exact?filler"))
    assert b"exact:filler" not in data
    head, _, body = data.partition(b"\r\n\r\n")
    assert b" 500 " in head.split(b"\r\n")[0] or len(body) <= 1000


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_worker_dies_midway(server: Site, case, version: str) -> None:
    """A worker that is killed in the middle of its answer: the same as for an exception."""

    def app(environ, start_response):
        import os
        import signal

        start_response("200 OK", [("Content-Type", "text/plain")])
        note("running")
        yield b"a" * 100_000
        os.kill(os.getpid(), signal.SIGKILL)
        yield b"never"

    server.expect_log("MWR0306")
    server.allow_log(r"MWR0207|MWR0305|MWR0306")
    c = case(app, "/single")
    data, ended = raw_answer(server, get(c.path, version))
    assert END_OF_CHUNKS not in data and b"never" not in data
    if version == "1.0":
        assert ended == "reset"
    # its replacement serves
    assert server.get(case(alive, "/single").path).body == b"alive"


def alive(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"alive"]


def test_whole_answers_look_whole(server: Site, case) -> None:
    """The counterpart: terminator, exact length, an orderly end on HTTP/1.0."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"a" * 20000, b"b" * 20000])

    path = case(app).path
    data, _ = raw_answer(server, http.build("GET", path, [("Connection", "close")]))
    assert data.endswith(b"\r\n" + END_OF_CHUNKS)
    data, ended = raw_answer(server, get(path, "1.0"))
    assert ended == "eof" and data.endswith(b"b" * 20000)
    data, _ = raw_answer(server, http.build("GET", "/exact?whole", [("Connection", "close")]))
    assert data.endswith(b"\r\n\r\nexact:whole") and b"\r\nContent-Length: 11\r\n" in data
