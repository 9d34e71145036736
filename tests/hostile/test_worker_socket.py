"""R21: strangers and liars on the sockets between the server and the workers. The server lives, requests are answered."""

from __future__ import annotations

import array
import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from harness import http, procs, product
from harness.fake import (
    ADOPT,
    DATA,
    DONE,
    END,
    HELLO,
    REPLY,
    REQUEST,
    RESPONSE,
    VERSION,
    FakeWorker,
    Play,
    answering,
    dirfd,
    frame,
    greeting,
    hello,
    response,
    riding,
    worker_sockets,
)
from harness.plan import Plan
from harness.server import Server
from harness.wait import wait_until

pytestmark = [pytest.mark.ours]

PLAN = Plan("processes=1 threads=4", "conform.wsgi", settings={"reload_on_restart": "on"})


def talk(path: str, data: bytes, half_close: bool = False) -> bytes:
    """Sends to a worker's socket and reads to the end, which must come."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(20)
        s.connect(f"/proc/self/fd/{dirfd(path)}/{os.path.basename(path)}")
        got = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            s.sendall(data)
            if half_close:
                s.shutdown(socket.SHUT_WR)
            while piece := s.recv(65536):
                got += piece
        return got


@pytest.fixture(scope="module")
def server(serve_all) -> Server:
    return serve_all(PLAN)


CASES = {
    "wrong-token": hello(b"\x11" * 16),
    "zero-token": hello(),
    "unknown-version": hello(version=999),
    "no-hello": frame(REQUEST, b"\0" * 40),
    "garbage": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "binary-garbage": bytes(random.Random(1).randbytes(4096)),
    "huge-length": frame(HELLO, b"", length=0xFFFFFFFF),
    "unknown-kind": frame(200, b"abc"),
    "zeroes": b"\0" * 64,
    "short-hello": frame(HELLO, struct.pack("<H", VERSION)),
    "request-after-wrong-token": hello(b"\x22" * 16) + frame(REQUEST, b"\0" * 40),
}


@pytest.mark.parametrize("name", CASES)
def test_stranger_is_shown_the_door(server: Server, name: str) -> None:
    """R21: wrong token, unknown version, garbage: connection closed, coded log line, the worker goes on."""
    assert server.get("/exact?on").status == 200
    # the worker limits how often it logs such a thing: the first one must be there
    (server.expect_log if name == next(iter(CASES)) else server.allow_log)(r"MWR04\d\d")
    path = worker_sockets(server)[0]
    # the worker greets nobody whose HELLO it has not accepted
    assert talk(path, CASES[name]) == b""
    assert server.get("/exact?on").text == "exact:on"


@pytest.mark.parametrize("cut", [1, 7, 8, 20, 31])
def test_truncated_hello(server: Server, cut: int) -> None:
    """R21: a HELLO that ends early closes the connection without harm."""
    server.allow_log(r"MWR04\d\d")
    assert talk(worker_sockets(server)[0], hello()[:cut], half_close=True) == b""
    assert server.get("/exact?on").text == "exact:on"


def test_silent_connections(server: Server) -> None:
    """R21: connections that say nothing do not keep requests from the worker."""
    server.allow_log(r"MWR04\d\d")
    path = worker_sockets(server)[0]
    idle = []
    try:
        for _ in range(50):
            s = socket.socket(socket.AF_UNIX)
            s.connect(f"/proc/self/fd/{dirfd(path)}/{os.path.basename(path)}")
            idle.append(s)
        for _ in range(50):
            assert server.get("/exact?on", timeout=5).text == "exact:on"
    finally:
        for s in idle:
            s.close()


def test_flood_of_garbage(server: Server) -> None:
    """R21: garbage on many connections while requests run: all are answered, the log stays bounded."""
    server.allow_log(r"MWR04\d\d")
    path = worker_sockets(server)[0]
    randomness = random.Random(7)
    before = len(server.log.poll())
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            talk(path, randomness.randbytes(randomness.randrange(1, 2000)), half_close=True)

    threads = [threading.Thread(target=attack) for _ in range(3)]
    for t in threads:
        t.start()
    try:
        with server.connect() as c:
            for i in range(300):
                assert c.request(target=f"/exact?{i}").text == f"exact:{i}"
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert len(server.log.poll()) - before < 5000


def test_control_socket(server: Server) -> None:
    """R21: garbage and a wrong secret on ctl.sock: closed or refused; requests and restarts go on."""
    server.allow_log(r"MWR03\d\d")
    path = next(s for s in server.sockets() if s.endswith("/ctl.sock"))
    secret = b'{"op":"register","secret":"' + b"0" * 32 + b'","client":null}'
    table = b'{"op":"table","secret":"' + b"0" * 32 + b'","group":"g","application":""}'
    for data in (
        b"garbage garbage", b"\xff" * 64, b"\0" * 8, struct.pack("<I", 5) + b"{}{}{",
        struct.pack("<I", len(secret)) + secret, struct.pack("<I", len(table)) + table,
        struct.pack("<I", 1000) + b"short",
    ):  # fmt: skip
        answer = talk(path, data, half_close=True)
        assert b"token" not in answer
    assert server.get("/exact?on").text == "exact:on"
    server.graceful()
    assert server.get("/exact?on").text == "exact:on"


def adopting(file: Callable[[], socket.socket | IO[Any]] | None, then: bytes = b"") -> Play:
    """A play: an ADOPT with that descriptor, or without one; then these bytes."""

    def speak(s: socket.socket, at: bytes) -> None:
        with contextlib.ExitStack() as stack:
            fds = [stack.enter_context(file()).fileno()] if file else []
            s.sendmsg(
                [frame(ADOPT, at)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            )
            s.sendall(then)

    return riding(speak)


def elsewhere(s: socket.socket, at: bytes) -> None:
    """Answers for rows that nobody has, then the end."""
    for row in (0, 7, 65535):
        for generation in (0x7FFFFFFF, 0xFFFFFFFF):
            s.sendall(frame(REPLY, struct.pack("<HHI", row, 0, generation) + response(b"x", flags=3)))


#: what only those who speak of lanes can get wrong
LANES = {
    "lane-other-rows": riding(elsewhere),
    "lane-bare-answer": riding(lambda s, at: s.sendall(response(b"x", flags=3))),
    "lane-short-coordinates": riding(lambda s, at: s.sendall(frame(REPLY, at[:5]))),
    "lane-reserved-bytes": riding(
        lambda s, at: s.sendall(frame(REPLY, at[:2] + b"x" + at[3:] + response(b"x", flags=3)))
    ),
    "lane-huge-reply": riding(lambda s, at: s.sendall(frame(REPLY, length=0xFFFFFFF0))),
    "lane-large-reply": riding(lambda s, at: s.sendall(frame(REPLY, at, length=100_000))),
    "lane-cut-reply": riding(lambda s, at: s.sendall(frame(REPLY, at + response(b"x")[:15]))),
    "lane-second-hello": riding(lambda s, at: s.sendall(frame(HELLO, struct.pack("<HHI", VERSION, 0, 1)))),
    "adopt-nothing": adopting(None),
    "adopt-file": adopting(Path(__file__).open),
    "adopt-tcp": adopting(socket.socket),
    "adopt-datagram": adopting(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
    "adopt-unconnected": adopting(lambda: socket.socket(socket.AF_UNIX)),
    "adopt-twice": adopting(lambda: socket.socket(socket.AF_UNIX), frame(ADOPT, b"\0" * 8)),
}

PLAYS = {
    "closes-at-once": lambda fake, s: None,
    "garbage-hello": greeting(b"HTTP/1.1 200 OK\r\n\r\n" * 20),
    "hello-unknown-version": greeting(frame(HELLO, struct.pack("<HHI", 999, 0, 1))),
    "hello-other-slot": greeting(frame(HELLO, struct.pack("<HHI", VERSION, 77, 77777))),
    "hello-huge": greeting(frame(HELLO, length=0xFFFFFFF0)),
    "response-garbage": answering(b"\xff" * 500),
    "response-huge-length": answering(frame(RESPONSE, length=0xFFFFFFFF)),
    "response-truncated": answering(response(b"body")[:15]),
    "data-before-response": answering(frame(DATA, b"body")),
    "end-before-response": answering(frame(END)),
    "unknown-kind": answering(frame(99, b"x")),
    "bad-flags": answering(response(b"body", flags=0xFC)),
    "status-zero": answering(response(b"x", status=0, flags=3)),
    "status-9999": answering(response(b"x", status=9999, flags=3)),
    "status-100": answering(response(b"x", status=100, flags=3)),
    "header-newline": answering(response(b"x", ((b"A", b"b\r\nX-Injected: 1"),), flags=3)),
    "header-name-newline": answering(response(b"x", ((b"A\r\nX-Injected", b"b"),), flags=3)),
    "header-nul": answering(response(b"x", ((b"A", b"b\0c"),), flags=3)),
    "header-empty-name": answering(response(b"x", ((b"", b"b"),), flags=3)),
    "header-hop-by-hop": answering(response(b"x", ((b"Transfer-Encoding", b"chunked"),), flags=3)),
    "header-two-lengths": answering(response(b"x", ((b"Content-Length", b"1"), (b"Content-Length", b"2")), flags=3)),
    "header-bad-length": answering(response(b"x", ((b"Content-Length", b"1x"),), flags=3)),
    "header-count-lies": answering(frame(RESPONSE, struct.pack("<HHHHI", 200, 60000, 2, 0, 2) + b"OK")),
    "file-without-descriptor": answering(response() + frame(8, struct.pack("<QQ", 0, 10))),
    "second-head": answering(response(b"x") + response(b"y") + frame(END) + frame(DONE)),
    "data-after-end": answering(response(b"x") + frame(END) + frame(DATA, b"y") + frame(DONE)),
}


@pytest.mark.root
@pytest.mark.on("nginx")
@pytest.mark.parametrize("name", LANES)
def test_lying_worker_on_a_lane(serve, name: str) -> None:
    """R21: the same for what only a lane has."""
    test_lying_worker(serve, name)


@pytest.mark.root
@pytest.mark.on("nginx")
def test_an_answer_that_nobody_reads(serve) -> None:
    """R21, promise 4: on a lane a worker may send little that waits for a client; one that goes on is cut off, before it
    takes nginx's memory."""
    # what does not go to a file
    server = serve(PLAN.replace(own={"nginx": "wsgi_max_temp_file_size 0;"}))
    wait_until(lambda: worker_sockets(server), 10, "the worker's socket")
    sent: list[int] = []

    def speak(s: socket.socket, at: bytes) -> None:
        s.sendall(frame(REPLY, at + response()))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while len(sent) < 4000:
                s.sendall(frame(REPLY, at + frame(DATA, b"d" * 30_000)))
                sent.append(30_000)

    fake = _swap(server, riding(speak))
    server.log.allow(r"MWR02\d\d")
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(b"GET /exact?lie HTTP/1.1\r\nHost: x\r\n\r\n")
            assert server.log.wait(r"MWR02\d\d.*without a connection")
            # what sockets, nginx's buffers and the lane hold
            assert sum(sent) < 20 << 20
    finally:
        fake.close()


def _swap(server: Server, play) -> FakeWorker:
    """Puts a fake worker in place, and closes the connections that the server keeps to the real one by new children."""
    paths = worker_sockets(server)
    return FakeWorker(paths[-1], play)


@pytest.mark.root
@pytest.mark.on("prefork", "nginx")
@pytest.mark.everywhere
@pytest.mark.parametrize("name", PLAYS)
def test_lying_worker(serve, name: str) -> None:
    """R21: malformed frames from a worker: 502 (or 503 where nothing started), a coded line, and the server lives."""
    room = "StartServers 2\nMinSpareServers 1\nMaxSpareServers 4\nMaxRequestWorkers 8"
    server = serve(PLAN, room={"prefork": room})
    wait_until(lambda: worker_sockets(server), 10, "the worker's socket")
    fake = _swap(server, {**PLAYS, **LANES}[name])
    server.log.allow(r"MWR0[234]\d\d")
    try:
        children = {p.pid for p in server.server_processes()}
        for _ in range(3):
            r = server.get("/exact?lie", timeout=90)
            if r.status == 200:
                # what comes after END cannot make a whole answer another one
                whole = name == "data-after-end" and r.body == b"x"
                assert r.truncated or whole or fake.connections == 0, (name, r)
            else:
                assert r.status in (500, 502, 503), r.status
            assert r.header("X-Injected") is None
        assert fake.connections > 0
        assert server.log.wait(r"MWR02\d\d"), "a coded line"
        alive = {p.pid for p in server.server_processes()}
        assert children & alive == children, "no process of the server has died"
    finally:
        fake.close()
    server.graceful()
    wait_until(lambda: server.get("/exact?on", timeout=60).status == 200, 30, "honest workers serve again")


@pytest.mark.root
@pytest.mark.on("prefork", "nginx")
@pytest.mark.parametrize("end", ["close", "short", "surplus"])
def test_lying_length(serve, end: str) -> None:
    """Pitfall S14: fewer or more bytes than declared on a keep-alive connection: the next answer is intact."""
    room = "StartServers 1\nMinSpareServers 1\nMaxSpareServers 1\nMaxRequestWorkers 4"
    server = serve(PLAN, room={"prefork": room})
    wait_until(lambda: worker_sockets(server), 10)
    head = response(
        b"12345", ((b"Content-Length", b"10" if end != "surplus" else b"3"),), flags=3 if end == "surplus" else 0
    )
    data = {"close": head, "short": head + frame(END) + frame(DONE), "surplus": head}[end]
    fake = _swap(server, answering(data))
    server.log.allow(r"MWR0[234]\d\d")
    try:
        with server.connect(timeout=90) as c:
            r = c.request(target="/exact?lie")
            if end == "surplus":
                assert (r.status, r.body) == (200, b"123") and server.log.wait("MWR0215")
                # a surplus byte would be the first of this one
                r = c.request(target="/exact?again")
                assert (r.status, r.body) == (200, b"123")
            else:
                assert r.status in (500, 502, 503) or (r.truncated and r.body == b"12345"), r
    finally:
        fake.close()


def test_hostile_tokens_do_not_leak(server: Server) -> None:
    """DESIGN 9: no process shows a token or secret in its command line or environment."""
    import re

    assert server.get("/exact?x").status == 200
    for p in server.processes():
        text = " ".join(p.cmdline)
        with contextlib.suppress(OSError), open(f"/proc/{p.pid}/environ", "rb") as f:
            text += f.read().decode("latin-1")
        assert not re.search(r"\b[0-9a-f]{32}\b", text), p
    assert procs.look(server.pid) and product.is_ours()
    assert http.fetch(server.port, "/exact?y").status == 200
