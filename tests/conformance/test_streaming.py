"""W5: places without request buffering: body and answer in both directions at once, 100 Continue only when the
application reads, early answers, and every way in which a body can fail."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from harness import http, kinds, procs
from harness.apache import Apache
from harness.nginx import Nginx
from harness.notes import noted, notes
from harness.server import Server, running
from harness.wait import wait_until

APACHE = """
WSGIDaemonProcess main processes=1 threads=8 request-buffering=off
WSGIProcessGroup main
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /aliased {apps}/streaming.wsgi request-buffering=On
WSGIScriptAlias / {apps}/streaming.wsgi
Timeout 20
<Location /keys/buffered>
WSGIRequestBuffering On
</Location>
<Location /tell/limited>
LimitRequestBody 100000
</Location>
"""
NGINX_HTTP = "wsgi_daemon_process main processes=1 threads=8 request-buffering=off;"
NGINX = """
wsgi_process_group main;
client_max_body_size 0;
client_body_timeout 20s;
location /aliased {
    wsgi_script {apps}/streaming.wsgi mount=/aliased;
    wsgi_request_buffering on;
}
location / {
    wsgi_script {apps}/streaming.wsgi;
    location /keys/buffered { wsgi_script {apps}/streaming.wsgi; wsgi_request_buffering on; }
    location /tell/limited { wsgi_script {apps}/streaming.wsgi; client_max_body_size 100000; }
}
"""
ALL = ["event", "worker", "prefork", *(["nginx"] if "nginx" in kinds.KINDS else [])]


def made(kind: str, timeout: int = 20, **kw: object) -> Server:
    """The site on a server of that kind, not started."""
    if kind == "nginx":
        config = NGINX.replace("timeout 20s", f"timeout {timeout}s")
        return Nginx(config, http_config=NGINX_HTTP, **kw)  # type: ignore[arg-type]
    return Apache(APACHE.replace("Timeout 20", f"Timeout {timeout}"), mpm=kind, **kw)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=ALL)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running(made(request.param, tls=True)) as site:
        yield site


def name_of(server: Server) -> str:
    """The kind of server, for names that must differ."""
    return server.mpm if isinstance(server, Apache) else server.NAME


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def post(target: str, *fields: tuple[str, str]) -> bytes:
    return http.build("POST", target, list(fields))


CHUNKED = ("Transfer-Encoding", "chunked")


def raises(server: Server) -> None:
    """The application will raise OSError: message, traceback with its indented lines, the exception at its end."""
    server.expect_log(r"OSError: \[Errno 5\] the client has closed")
    server.allow_log(r"MWR0430: exception OSError|Traceback|\]  +")


@pytest.mark.parametrize("tls", [False, True])
def test_a_conversation(server: Server, tls: bool) -> None:
    """W5: each line is answered before the next is sent."""
    with http.Connection(server.tls_port if tls else server.port, tls=tls) as c:
        c.send(post("/lines", CHUNKED))
        for i in range(20):
            c.send(chunk(b"line %d\n" % i))
            if i == 0:
                assert c.head().status == 200
            assert c.read_chunk() == b"LINE %d\n" % i
        c.send(b"0\r\n\r\n")
        assert c.read_chunk() == b""


@pytest.mark.parametrize("size", [100_000_000, 1_000_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_both_ways_at_once(server: Server, size: int, framing: str) -> None:
    """W5: 100 MB in each direction, sender and receiver side by side."""
    if size > 1_000_000 and (name_of(server) == "worker" or framing == "chunked"):
        pytest.skip("the large one runs once for each kind of process")
    block = os.urandom(1_000_000)
    with http.Connection(server.port) as c:
        field = ("Content-Length", str(size)) if framing == "length" else CHUNKED
        c.send(post("/echo", field))

        def sender() -> None:
            for _ in range(size // len(block)):
                c.send(chunk(block) if framing == "chunked" else block)
            if framing == "chunked":
                c.send(b"0\r\n\r\n")

        thread = threading.Thread(target=sender)
        thread.start()
        r = c.response()
        thread.join(30)
        assert not thread.is_alive()
    assert r.complete and len(r.body) == size
    assert hashlib.sha256(r.body).digest() == hashlib.sha256(block * (size // len(block))).digest()


def test_no_deadlock_when_nobody_reads_first(server: Server) -> None:
    """W5: the client sends everything before it reads, the application writes much before it reads."""
    data = os.urandom(1 << 20) * 20
    with http.Connection(server.port, timeout=60) as c:
        c.send(post("/answer_first?20", ("Content-Length", str(len(data)))))
        c.send(data)
        r = c.response()
    assert r.complete and r.body[: 20 << 20] == b"a" * (20 << 20)
    assert r.body[20 << 20 :].decode() == f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def test_refused_without_reading(server: Server) -> None:
    """W5: an application answers before the client has sent its body; the client is not asked for it, and a large one
    that it sends all the same does not keep the connection."""
    for size, kept in ((10_000_000, False), (100, True)):
        with http.Connection(server.port) as c:
            c.send(post("/refuse", ("Content-Length", str(size))))
            r = c.response()
            assert (r.status, r.body) == (403, b"no\n")
            assert (r.header("Connection") == "close") is not kept
            if kept:
                c.send(b"u" * size)
                assert c.request("POST", "/digest", body=b"next").text.startswith("4 ")
            else:
                assert c.ended() == "eof"


def test_refused_in_blocks(server: Server) -> None:
    """W5: the same where the answer's head is on its way before its end is known."""
    for size, kept in ((10_000_000, False), (100, True)):
        # less than the 20 s after which mod_reqtimeout would end it
        with http.Connection(server.port, timeout=8) as c:
            c.send(post("/refuse_in_blocks", ("Content-Length", str(size))))
            r = c.response()
            assert r.complete and (r.status, r.body) == (403, b"no\n")
            if kept:
                c.send(b"u" * size)
                assert c.request("POST", "/digest", body=b"next").text.startswith("4 ")
            else:
                assert c.ended() == "eof"


def test_no_continue_inside_an_answer(server: Server) -> None:
    """W5: an application that reads after it has begun to answer: too late for `100 Continue`."""
    with http.Connection(server.port) as c:
        c.send(post("/answer_first?1", ("Content-Length", "5"), ("Expect", "100-continue")))
        r = c.head()
        c.send(b"hello")
        c.body(r, "POST")
        assert (r.status, r.interim, r.complete) == (200, [], True)
        assert r.body == b"a" * (1 << 20) + f"5 {hashlib.sha256(b'hello').hexdigest()}".encode()


def test_refused_with_expect(server: Server) -> None:
    """W5: `Expect: 100-continue` and an application that does not read: the final answer alone."""
    with http.Connection(server.port) as c:
        c.send(post("/refuse", ("Content-Length", "10000"), ("Expect", "100-continue")))
        r = c.response()
        assert (r.status, r.interim) == (403, [])


def test_refused_in_the_middle(server: Server) -> None:
    """W5: an application that has read enough answers; the worker serves on."""
    with http.Connection(server.port) as c:
        c.send(post("/refuse_later", CHUNKED) + chunk(b"0123456789abcdef"))
        r = c.response()
        assert (r.status, r.body) == (403, b"enough\n")
    for _ in range(20):
        assert server.get("/digest", method="POST", body=b"abc").text.startswith("3 ")


def test_continue_only_when_the_application_reads(server: Server) -> None:
    """W5: 100 Continue is sent at the first read, not before."""
    (server.scratch / "gate").unlink(missing_ok=True)
    (server.scratch / "notes").unlink(missing_ok=True)
    with http.Connection(server.port) as c:
        c.send(post("/gated", ("Content-Length", "5"), ("Expect", "100-continue")))
        noted(server, "gated")
        c.sock.settimeout(0.4)
        with pytest.raises(TimeoutError):
            c.sock.recv(1, socket.MSG_PEEK)
        c.sock.settimeout(30)
        (server.scratch / "gate").touch()
        assert c._one_head().status == 100
        c.send(b"hello")
        assert c.response().body == b"hello"


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 3_000_000])
@pytest.mark.parametrize("how", ["length", "chunked", "tls"])
def test_sizes(server: Server, size: int, how: str) -> None:
    """W5: bodies of every size arrive whole, several on one connection."""
    data = os.urandom(size)
    tls = how == "tls"
    want = f"{size} {hashlib.sha256(data).hexdigest()}"
    with http.Connection(server.tls_port if tls else server.port, tls=tls) as c:
        for _ in range(3):
            if how == "chunked":
                pieces = [data[i : i + 70_000] for i in range(0, size, 70_000)]
                r = c.request("POST", "/digest", [CHUNKED], http.chunked(*pieces))
            else:
                r = c.request("POST", "/digest", body=data)
            assert (r.status, r.text) == (200, want)


def test_environ(server: Server) -> None:
    """W5: only a streamed chunked body is seen as chunked; places and aliases choose."""

    def keys(target: str, *fields: tuple[str, str], body: bytes) -> list[object]:
        r = server.get(target, method="POST", headers=list(fields), body=body)
        assert r.status == 200
        return json.loads(r.text)

    assert keys("/keys", body=b"abc") == ["3", None, None, True, "abc"]
    assert keys("/keys", CHUNKED, body=http.chunked(b"abc")) == [None, "chunked", None, True, "abc"]
    assert keys("/keys/buffered", CHUNKED, body=http.chunked(b"abc")) == ["3", None, None, True, "abc"]
    assert keys("/aliased/keys", CHUNKED, body=http.chunked(b"abc")) == ["3", None, None, True, "abc"]


def test_the_client_leaves(server: Server) -> None:
    """W5, W11: whoever reads a body whose client leaves gets OSError, never a short body; the row is free again."""
    raises(server)
    for i, start in enumerate((("Content-Length", "1000000"), CHUNKED)):
        name = f"leaves{name_of(server)}{i}"
        c = http.Connection(server.port)
        c.send(post(f"/tell?{name}", start) + (chunk(b"abc") if start == CHUNKED else b"abc"))
        noted(server, f"{name} started")
        c.close()
        noted(server, f"{name} OSError 5")
    server.log.wait(r"OSError: \[Errno 5\] the client has closed", count=2)
    assert server.get("/digest", method="POST", body=b"abc").text.startswith("3 ")


@pytest.mark.parametrize("kind", [k for k in ALL if k != "worker"])
def test_the_client_stops_sending(kind: str) -> None:
    """W5: a client that sends nothing for Timeout (client_body_timeout) gets 408 from httpd, no answer from nginx, as ever;
    the application gets OSError."""
    with running(made(kind, timeout=1)) as short:
        raises(short)
        with short.connect() as c:
            c.send(post("/tell?stops", ("Content-Length", "1000")) + b"abc")
            if kind == "nginx":
                assert c.ended() == "eof"
            else:
                assert c.response().status == 408
        noted(short, "stops OSError 5")
        short.log.wait("OSError: .Errno 5. the client has closed")


def test_over_the_limit(server: Server) -> None:
    """W4, W5: LimitRequestBody holds for streamed bodies: an announced one is refused unread, a chunked one while it
    comes."""
    raises(server)
    server.allow_log(r"AH0158\d|AH01591|client intended to send too large")
    with http.Connection(server.port) as c:
        c.send(post("/tell/limited?refused", ("Content-Length", "100001")))
        r = c.response()
        assert (r.status, r.interim) == (413, [])
    assert "refused started" not in notes(server)
    name = f"cut{name_of(server)}"
    with http.Connection(server.port) as c:
        c.send(post(f"/tell/limited?{name}", CHUNKED) + chunk(b"x" * 50_000))
        noted(server, f"{name} started")
        c.send(chunk(b"x" * 50_001))
        assert c.response().status == 413
    noted(server, f"{name} OSError 5")


def test_a_bad_chunk(server: Server) -> None:
    """W5, W13: broken framing in a streamed body is a 400 and an OSError, never the end of the body."""
    raises(server)
    server.allow_log(r"AH01590|client sent invalid chunked body")
    name = f"bad{name_of(server)}"
    with http.Connection(server.port) as c:
        c.send(post(f"/tell?{name}", CHUNKED) + chunk(b"good"))
        noted(server, f"{name} started")
        c.send(b"zz\r\nbad\r\n0\r\n\r\n")
        assert c.response().status == 400
    noted(server, f"{name} OSError 5")


def test_an_unread_rest_leaves_the_worker_connection_usable(server: Server) -> None:
    """W5: after bodies that were not read, or half, the connection to the worker serves on; nothing piles up."""

    def once() -> None:
        with http.Connection(server.port) as c:
            c.send(post("/refuse_later", ("Content-Length", "20000")) + b"y" * 20_000)
            assert c.response().status == 403
            assert c.request("POST", "/refuse", body=b"z" * 50).status == 403
            assert c.request("POST", "/digest", body=b"abc").text.startswith("3 ")

    def descriptors() -> int:
        return sum(procs.descriptors(w["pid"]) for w in server.workers("main"))

    for _ in range(5):
        once()
    before = descriptors()
    for _ in range(30):
        once()
    wait_until(lambda: descriptors() <= before + 4, 10, "descriptors of the worker")


def test_a_slow_reader_does_not_hold_the_body(server: Server) -> None:
    """W5: while the client reads nothing of the answer, its body still goes to the application."""
    data = b"b" * 30_000_000
    with http.Connection(server.port, timeout=60) as c:
        c.send(post("/echo", ("Content-Length", str(len(data)))))
        started = time.monotonic()
        c.send(data)
        assert time.monotonic() - started < 30
        r = c.response()
    assert r.complete and r.body == data


@pytest.mark.parametrize("target", ["/aliased/digest", "/digest", "/refuse", "/refuse_later"])
def test_connections_to_the_worker_are_kept(server: Server, target: str) -> None:
    """DESIGN 5, W5: requests of one process follow each other on one connection to the worker, also after bodies that
    were not read."""
    (worker,) = server.workers("main")
    with server.connect() as c:
        c.request("POST", target, body=b"first" * 20)
        before = procs.sockets(worker["pid"])
        for _ in range(20):
            assert c.request("POST", target, body=b"again" * 20).status in (200, 403)
        assert procs.sockets(worker["pid"]) == before
