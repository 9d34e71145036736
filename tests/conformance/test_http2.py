"""HTTP/2 (cleartext, prior knowledge): a stream has no socket of its own, and a slow one must not hold a thread."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator

import pytest

from harness import kinds, log, product
from harness.apache import Apache
from harness.case import deploy
from harness.http2 import Client
from harness.nginx import Nginx
from harness.ports import Port
from harness.server import Server, running
from harness.wait import wait_until

THREADS = 5


APACHE = """
<Location /app/limited>
LimitRequestBody 1000000
</Location>
Protocols h2c http/1.1
WSGIDaemonProcess g processes=1 threads={THREADS}
WSGIProcessGroup g
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /app {apps}/neighbours.wsgi
WSGIScriptAlias /streamed {apps}/streaming.wsgi request-buffering=Off
WSGIScriptAlias /case {apps}/cases.wsgi
WSGIScriptAlias / {apps}/conform.wsgi
"""
NGINX = """
wsgi_daemon_process g processes=1 threads={THREADS};
wsgi_process_group g;
server {
    listen 127.0.0.1:{port};
    location / { wsgi_script {apps}/conform.wsgi; }
    location /case { wsgi_script {apps}/cases.wsgi mount=/case; }
}
server {
    listen 127.0.0.1:{more} http2;
    location / { wsgi_script {apps}/conform.wsgi; }
    location /app { wsgi_script {apps}/neighbours.wsgi mount=/app; }
    location /app/limited { wsgi_script {apps}/neighbours.wsgi mount=/app; client_max_body_size 1000000; }
    location /case { wsgi_script {apps}/cases.wsgi mount=/case; }
    location /streamed { wsgi_script {apps}/streaming.wsgi mount=/streamed; wsgi_request_buffering off; }
}
"""
ALL = [k for k in ("event", "nginx") if k in kinds.KINDS]


@pytest.fixture(scope="module", params=ALL)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The site; its attribute `http2` is the port that speaks HTTP/2 from the first byte on."""
    with contextlib.ExitStack() as stack:
        more = Port()
        stack.callback(more.release)
        if request.param == "nginx":
            config = NGINX.replace("{THREADS}", str(THREADS)).replace("{more}", str(more.number))
            made: Server = Nginx(config, server=False)
            made.http2 = more.number  # type: ignore[attr-defined]
        else:
            if not product.has_module("http2"):
                pytest.skip("no mod_http2")
            made = Apache(APACHE.replace("{THREADS}", str(THREADS)), modules=["http2"])
            made.http2 = made.port  # type: ignore[attr-defined]
        with running(made) as site:
            yield site


def client(server: Server, window: int | None = None) -> contextlib.closing[Client]:
    return contextlib.closing(Client(server.http2, window))  # type: ignore[attr-defined]


@pytest.mark.ours
def test_answers(server: Server) -> None:
    """R10: small and large answers, many streams on one connection."""
    with client(server) as c:
        streams = [c.get("/large?48") for _ in range(8)]
        small = c.get("/exact")
        assert c.read(small) and (c.status[small], c.ended[small]) == ("200", "whole")
        for s in streams:
            assert len(c.read(s)) == 48 * 65536 and c.ended[s] == "whole"


@pytest.mark.ours
def test_a_waiting_request_is_no_departed_client(server: Server) -> None:
    """R22: the socket of a stream says nothing about its client (H18)."""
    with client(server) as c:
        s = c.get("/slow?1.5")
        c.read(s)
        assert (c.status[s], c.ended[s]) == ("200", "whole")


@pytest.mark.ours
@pytest.mark.parametrize("length", [None, 50000])
@pytest.mark.parametrize("how", ["exception", "end", "system-exit", "file"])
def test_truncation_is_a_reset(server: Server, how: str, length: int | None) -> None:
    """R22, W8: a body that breaks off, or ends before its declared length, resets its stream; others go on."""

    def app(environ, start_response):
        import tempfile

        start_response("200 OK", [("Content-Type", "text/plain")] + [("Content-Length", str(length))] * bool(length))
        if how == "file":
            f = tempfile.TemporaryFile()  # noqa: SIM115
            f.write(b"x" * 30000)
            f.seek(0)

            class Breaks:
                def read(self, n):
                    data = f.read(n)
                    if not data:
                        raise OSError("deliberate")
                    return data

            yield from environ["wsgi.file_wrapper"](Breaks(), 10000)
        for _ in range(3):
            yield b"x" * 10000
        if how == "exception":
            raise RuntimeError("deliberate")
        if how == "system-exit":
            raise SystemExit

    if how == "end" and length is None:
        length = 40000
    server.expect_log("MWR0216" if how == "end" else "MWR043[01]")
    server.allow_log(log.CUT)
    path = deploy(server, app).path
    with client(server) as c:
        broken, whole = c.get(path), c.get("/large?3")
        body = c.read(broken)
        assert c.status.get(broken, "200") == "200" and c.ended[broken] == "reset" and set(body) <= set(b"x")
        assert len(c.read(whole)) == 3 * 65536 and c.ended[whole] == "whole"


@pytest.mark.ours
def test_slow_readers_hold_no_thread(server: Server) -> None:
    """DESIGN 1, promise 4: as many streams as there are threads whose clients read nothing."""
    with client(server, window=0) as c:
        streams = [c.get("/app/stream?n=300&tag=slow") for _ in range(THREADS + 3)]
        # mod_http2 runs a few streams at a time; which heads it sends before a window opens is its own affair
        calls = server.scratch / "calls"
        wait_until(lambda: calls.exists() and calls.read_text().split().count("slow") >= THREADS, 30, "running streams")
        begun = time.monotonic()
        for _ in range(10 * THREADS):
            assert server.get("/exact", timeout=5).status == 200
        assert time.monotonic() - begun < 5, "quick requests waited for slow readers"
        # and whoever reads at last gets everything
        first = streams[0]
        c.renew = True
        c.h2.increment_flow_control_window(30_000_000)
        c.h2.increment_flow_control_window(30_000_000, first)
        c.flush()
        assert len(c.read(first)) == 300 * 65536 and c.ended[first] == "whole"


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3_000_000])
@pytest.mark.parametrize("announced", [True, False])
def test_upload(server: Server, size: int, announced: bool) -> None:
    """W4, W12: bodies with and without content-length; without one CONTENT_LENGTH is what came."""
    if not announced and not product.is_ours():
        pytest.skip("a stand-in shows no length")
    data = os.urandom(size)
    with client(server) as c:
        s = c.post("/app/echo/x?q", data, [("content-length", str(size))] if announced else ())
        seen = json.loads(c.read(s))
        assert (c.status[s], seen["size"], seen["sha"]) == ("200", size, hashlib.sha256(data).hexdigest())
        assert (seen["protocol"], seen["scheme"], seen["path"], seen["query"]) == ("HTTP/2.0", "http", "/echo/x", "q")
        assert seen["length"] == str(size) or size == 0


@pytest.mark.ours
def test_upload_beyond_the_limit(server: Server) -> None:
    """W4, W12: 413 for a body that is too large, and the connection goes on."""
    server.allow_log("AH01587|AH00588|Requested content-length|intended to send too large body")
    with client(server) as c:
        s = c.get("/app/limited", "POST", [("content-length", "2000000")], end=False)
        c.read(s)
        assert c.status[s] == "413"
        assert c.read(c.get("/app/part/next")) == b"[GET /part/next  0]"


def test_head_range_and_file(server: Server) -> None:
    """W10, W12: HEAD without a body; files whole and in part."""
    data = bytes(range(256)) * 2000
    (server.scratch / "h2.bin").write_bytes(data)
    with client(server) as c:
        s = c.get("/app/whole?n=5000", "HEAD")
        assert c.read(s) == b"" and c.fields[s]["content-length"] == "5000"
        s = c.get("/app/file?name=h2.bin")
        assert c.read(s) == data and c.ended[s] == "whole"
        if product.is_ours() and server.NAME != "nginx":
            # nginx makes ranges of an application's answer only where it is told to
            s = c.get("/app/file?name=h2.bin", fields=[("range", "bytes=1000-1999")])
            assert c.read(s) == data[1000:2000] and c.status[s] == "206"
            s = c.get("/app/file?name=h2.bin", fields=[("range", "bytes=9999999-")])
            c.read(s)
            assert c.status[s] == "416"
        assert c.read(c.get("/app/part/next")) == b"[GET /part/next  0]"


@pytest.mark.ours
def test_short_body_is_a_reset(server: Server) -> None:
    """W8, W12: fewer bytes than Content-Length says: a reset, not an end."""
    server.expect_log("MWR02")
    with client(server) as c:
        s = c.get("/app/stream?n=3&length=999999")
        c.read(s)
        assert c.ended[s] == "reset" or int(c.status[s]) >= 500
        assert c.read(c.get("/app/part/next")) == b"[GET /part/next  0]"


def test_a_stream_that_the_client_resets(server: Server) -> None:
    """W11, W12: the application's iterable is closed, its thread is free, the connection's other streams go on."""
    closed = server.scratch / "closed"
    with client(server) as c:
        streams = []
        for n in range(THREADS):
            s = c.get(f"/app/endless?reset-{n}")
            wait_until(lambda s=s: (c.step(), c.body[s])[1], interval=0)
            streams.append(s)
        for s in streams:
            c.h2.reset_stream(s)
        c.flush()
        expected = [f"reset-{n}" for n in range(THREADS)]
        wait_until(lambda: closed.exists() and sorted(closed.read_text().split()) == expected, 20, "close()")
        s = c.get("/app/part/next")
        assert c.read(s) == b"[GET /part/next  0]"


@pytest.mark.ours
def test_a_conversation(server: Server) -> None:
    """W5: without request buffering each line is answered before the next is sent."""
    with client(server) as c:
        s = c.get("/streamed/lines", "POST", end=False)
        for i in range(10):
            c.h2.send_data(s, b"line %d\n" % i)
            c.flush()
            want = b"".join(b"LINE %d\n" % k for k in range(i + 1))
            while bytes(c.body[s]) != want:
                c.step()
        c.h2.end_stream(s)
        c.flush()
        c.read(s)
        assert c.ended[s] == "whole"


@pytest.mark.ours
@pytest.mark.parametrize("announced", [True, False])
def test_both_ways_at_once(server: Server, announced: bool) -> None:
    """W5: a large body in both directions at once, over the same connection."""
    data = os.urandom(5_000_000)
    with client(server) as c:
        s = c.post("/streamed/echo", data, [("content-length", str(len(data)))] if announced else ())
        assert c.read(s) == data and c.ended[s] == "whole"


@pytest.mark.ours
@pytest.mark.parametrize("size", [1, 5000, 60_000])
def test_a_body_that_has_come_before_it_is_read(server: Server, size: int) -> None:
    """W5: the whole of it, and its end, before the application asks."""
    gate = server.scratch / "gate"
    gate.unlink(missing_ok=True)
    data = b"g" * size
    told = server.scratch / "notes"
    before = told.read_text().count("gated") if told.exists() else 0
    with client(server) as c:
        s = c.post("/streamed/gated", data)
        wait_until(lambda: told.exists() and told.read_text().count("gated") > before, 10, "the application runs")
        # an answer behind it on the same connection: the body has been read from the socket
        assert c.read(c.get("/app/part/next")) == b"[GET /part/next  0]"
        gate.touch()
        assert c.read(s) == data and c.ended[s] == "whole"


@pytest.mark.ours
def test_refused_without_reading(server: Server) -> None:
    """W5: an early answer ends the stream, and the others go on."""
    with client(server) as c:
        s = c.get("/streamed/refuse", "POST", [("content-length", "5000000")], end=False)
        assert c.read(s) == b"no\n" and c.status[s] == "403"
        assert c.read(c.get("/app/part/next")) == b"[GET /part/next  0]"


@pytest.mark.ours
def test_the_client_resets_its_body(server: Server) -> None:
    """W5, W11: the application that reads gets OSError."""
    server.expect_log(r"OSError: \[Errno 5\] the client has closed")
    server.allow_log(r"MWR0430: exception OSError|Traceback|\]  +")
    told = server.scratch / "notes"
    with client(server) as c:
        s = c.get("/streamed/tell?resets", "POST", [("content-length", "5000000")], end=False)
        c.h2.send_data(s, b"abc")
        c.flush()
        wait_until(lambda: told.exists() and "resets started" in told.read_text(), 10, "the application reads")
        c.h2.reset_stream(s)
        c.flush()
        wait_until(lambda: "resets OSError 5" in told.read_text(), 10, "the application is told")
        assert c.read(c.get("/app/part/next")) == b"[GET /part/next  0]"


@pytest.mark.ours
def test_files_on_many_streams(server: Server) -> None:
    """W10, pitfalls S11, H16: one file in 30 streams at once, every third of which its client resets."""
    data = os.urandom(1 << 20)
    (server.scratch / "many.bin").write_bytes(data)
    with client(server) as c:
        streams = [c.get("/app/file?name=many.bin") for _ in range(30)]
        for s in streams[::3]:
            c.h2.reset_stream(s)
        c.flush()
        for s in streams:
            if s not in streams[::3]:
                assert c.read(s) == data and c.ended[s] == "whole"
        assert c.read(c.get("/app/part/next")) == b"[GET /part/next  0]"
