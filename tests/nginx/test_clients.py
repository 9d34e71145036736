"""N17, N8, N10: events one by one, clients that are slow, leave, or stay half; bodies by the descriptor of nginx's own file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator

import pytest

from harness import http, procs
from harness.nginx import Nginx
from harness.notes import APP as NOTES
from harness.notes import let, noted, notes
from harness.server import running
from harness.wait import wait_until

APP = (
    NOTES
    + """
import hashlib, json, os, time

def events(start_response, name, size):
    # each event waits for the one before to have been seen
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    for i in range(8):
        if i:
            wait("%s-%d" % (name, i))
        yield b"data: " + b"%d" % i + b"x" * (size - 9) + b"\\n\\n"

def endless(start_response, name):
    start_response("200 OK", [("Content-Type", "text/plain")])
    note(name + " began")
    try:
        while True:
            yield b"x" * 1000
            time.sleep(0.002)
    finally:
        note(name + " closed")

def drip(start_response, name):
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    try:
        while True:
            yield b"x"
            time.sleep(0.2)
    finally:
        note(name + " closed")

def slow_head(start_response, name):
    note(name + " began")
    wait(name)
    start_response("200 OK", [("Content-Type", "text/plain")])
    note(name + " ended")
    return [b"late"]

def between(start_response, name):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"first"
    note(name + " began")
    wait(name)
    note(name + " goes on")
    yield b"second"
    note(name + " ended")

def large(start_response, size):
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    for _ in range(size):
        yield b"y" * 65536

def body(environ, start_response):
    # what files of the server's directories are open while the body is read
    stream = environ["wsgi.input"]
    first = stream.read(10)
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink("/proc/self/fd/" + fd))
        except OSError:
            pass
    digest = hashlib.sha256(first)
    n = len(first)
    while data := stream.read(65536):
        n += len(data)
        digest.update(data)
    out = json.dumps([n, digest.hexdigest(), links]).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [out]

def application(environ, start_response):
    kind = environ["PATH_INFO"].split("/")[-1]
    name, _, size = environ["QUERY_STRING"].partition("&")
    if kind == "body":
        return body(environ, start_response)
    if kind == "events":
        return events(start_response, name, int(size))
    if kind == "large":
        return large(start_response, int(name))
    if kind == "pid":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % os.getpid()]
    return globals()[kind](start_response, name)
"""
)
SITE = """
wsgi_process_group g;
gzip_types text/event-stream;
gzip_proxied any;
location / { wsgi_script {apps}/clients.wsgi; }
location /unbuffered { wsgi_script {apps}/clients.wsgi; wsgi_buffering off; }
location /gzip { wsgi_script {apps}/clients.wsgi; gzip on; }
location /gzip-unbuffered { wsgi_script {apps}/clients.wsgi; gzip on; wsgi_buffering off; }
location /ignore { wsgi_script {apps}/clients.wsgi; wsgi_ignore_client_abort on; }
location /ignore-unbuffered { wsgi_script {apps}/clients.wsgi; wsgi_ignore_client_abort on; wsgi_buffering off; }
location /memory { wsgi_script {apps}/clients.wsgi; client_body_buffer_size 4m; }
location /small { wsgi_buffers 4 4k; wsgi_max_temp_file_size 0; location /small/inner { wsgi_script {apps}/clients.wsgi; } }
location /little-busy { wsgi_script {apps}/clients.wsgi; wsgi_busy_buffers_size 8k; wsgi_max_temp_file_size 0; }
location /little-written {
    wsgi_script {apps}/clients.wsgi; wsgi_temp_file_write_size 8k; wsgi_max_temp_file_size 0;
}
location /limited { wsgi_script {apps}/clients.wsgi; wsgi_limit_rate 1k; }
location /tiny { wsgi_script {apps}/clients.wsgi; client_body_buffer_size 1k; }
"""
THREADS = 4


@pytest.fixture(scope="module")
def site() -> Iterator[Nginx]:
    made = Nginx(SITE, http_config=f"wsgi_daemon_process g processes=1 threads={THREADS};", tls=True)
    made.write("clients.wsgi", APP)
    with running(made) as server:
        yield server


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """One that no other test has."""
    return f"n{time.monotonic_ns()}"


# --- events


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("place", ["", "/unbuffered"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("size", [20, 4088, 4096, 65536])
def test_events_come_one_by_one(site: Nginx, name: str, place: str, tls: bool, size: int) -> None:
    """N17: each event is with the client before the application makes the next, with buffering and without, over TLS, and
    whether it fills nginx's buffers exactly or not."""
    with http.Connection(site.tls_port if tls else site.port, tls=tls) as c:
        c.send(http.build(target=f"{place}/events?{name}&{size}"))
        assert c.head().status == 200
        for i in range(8):
            got = b""
            while len(got) < size:
                piece = c.read_chunk()
                assert piece
                got += piece
            assert got.startswith(b"data: %dx" % i) and len(got) == size
            let(site, f"{name}-{i + 1}")
        assert c.read_chunk() == b""


@pytest.mark.parametrize("place", ["/gzip", "/gzip-unbuffered"])
def test_events_through_gzip(site: Nginx, name: str, place: str) -> None:
    """N17: compression does not keep events back."""
    import zlib

    with site.connect() as c:
        c.send(http.build(target=f"{place}/events?{name}&20", headers=[("Accept-Encoding", "gzip")]))
        r = c.head()
        assert r.header("Content-Encoding") == "gzip"
        unpack = zlib.decompressobj(31)
        for i in range(8):
            got = b""
            while len(got) < 20:
                piece = c.read_chunk()
                assert piece
                got += unpack.decompress(piece)
            assert got.startswith(b"data: %dx" % i)
            let(site, f"{name}-{i + 1}")


# --- long answers


@pytest.mark.parametrize("place", ["", "/small/inner", "/little-busy", "/little-written"])
def test_a_long_answer_goes_out_in_large_pieces(site: Nginx, place: str) -> None:
    """N15: where nothing is said of sizes; what is said of them holds."""
    r = site.get(f"{place}/large?30")
    assert r.complete and r.body == b"y" * 65536 * 30
    # at the end everything goes out that is left
    largest = max(r.chunks[:-1])
    assert largest <= 8192 if place else largest > 12_000


@pytest.mark.parametrize("size", [0, 20_000], ids=["lane", "own"])
def test_a_limit_holds_up_one_answer(site: Nginx, name: str, size: int) -> None:
    """wsgi_limit_rate: its pause at the end of an answer is none of the next answer on the same connection."""
    for i in range(3):
        with site.connect() as c:
            c.send(http.build("POST", f"/limited/between?{name}-{i}", body=b"x" * size))
            assert c.head().status == 200 and c.read_chunk() == b"first"
            let(site, f"{name}-{i}")
            assert c.read_chunk() == b"second" and c.read_chunk() == b""


# --- slow clients


@pytest.mark.parametrize("place", ["/large", "/memory/body"])
def test_slow_clients_hold_no_thread(site: Nginx, place: str) -> None:
    """DESIGN 1, promise 4, N17: many more clients than threads that read nothing of large answers, or send large bodies and
    stop: others are served at once."""
    connections = []
    try:
        for _ in range(5 * THREADS):
            c = site.connect()
            connections.append(c)
            if place == "/large":
                c.send(http.build(target="/large?100"))
            else:
                c.send(http.build("POST", place, [("Content-Length", "3000000")]) + b"b" * 100_000)
        if place == "/large":
            for c in connections:
                # its head: it has been served
                assert c.head().status == 200
        for _ in range(5 * THREADS):
            assert site.get("/pid", timeout=5).status == 200
        if place == "/large":
            for c in connections:
                r = http.Response("1.1", 200, "", [("Transfer-Encoding", "chunked")])
                c.body(r)
                assert r.complete and len(r.body) == 100 * 65536
    finally:
        for c in connections:
            c.close()


# --- clients that leave


@pytest.mark.parametrize("place", ["", "/unbuffered"], ids=["buffered", "unbuffered"])
def test_leaving_an_endless_answer(site: Nginx, name: str, place: str) -> None:
    """N8, N17: the application learns it at its next block: close() runs and the thread is free."""
    with site.connect() as c:
        c.send(http.build(target=f"{place}/endless?{name}"))
        assert c.head().status == 200 and c.read_chunk()
    noted(site, f"{name} closed")


def test_leaving_small_events(site: Nginx, name: str) -> None:
    """N8, N17: the same when they would take for ever to fill any buffer."""
    with site.connect() as c:
        c.send(http.build(target=f"/drip?{name}"))
        assert c.head().status == 200 and c.read_chunk()
    noted(site, f"{name} closed")


@pytest.mark.parametrize("how", ["close", "half", "reset"])
def test_leaving_before_the_head(site: Nginx, name: str, how: str) -> None:
    """N8, N13: 499 while the application works; its thread is free when it ends, and the next request is served."""
    with site.connect() as c:
        c.send(http.build(target=f"/slow_head?{name}"))
        noted(site, f"{name} began")
        if how == "half":
            c.sock.shutdown(1)
        elif how == "reset":
            c.sock.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            c.close()
        else:
            c.close()
        wait_until(lambda: f'/slow_head?{name} HTTP/1.1" 499 ' in access(site), 10, "499 in the access log")
    let(site, name)
    noted(site, f"{name} ended")
    assert site.get("/pid").status == 200


def access(server: Nginx) -> str:
    return (server.logs / "access.log").read_text()


@pytest.mark.parametrize("place", ["", "/unbuffered"], ids=["buffered", "unbuffered"])
def test_leaving_between_two_blocks(site: Nginx, name: str, place: str) -> None:
    """N8: the same after the first byte."""
    with site.connect() as c:
        c.send(http.build(target=f"{place}/between?{name}"))
        assert c.head().status == 200 and c.read_chunk() == b"first"
        noted(site, f"{name} began")
    wait_until(lambda: f"/between?{name} " in access(site), 10, "nginx has noticed")
    let(site, name)
    noted(site, f"{name} goes on")
    assert site.get("/pid").status == 200


@pytest.mark.parametrize("kind", ["slow_head", "between"])
@pytest.mark.parametrize("place", ["/ignore", "/ignore-unbuffered"])
def test_ignored_leaving(site: Nginx, name: str, place: str, kind: str) -> None:
    """N2: wsgi_ignore_client_abort: the application runs to its end."""
    with site.connect() as c:
        c.send(http.build(target=f"{place}/{kind}?{name}"))
        if kind == "between":
            assert c.head().status == 200 and c.read_chunk() == b"first"
        noted(site, f"{name} began")
    let(site, name)
    noted(site, f"{name} ended")
    assert site.get("/pid").status == 200


def test_leaving_in_a_buffered_body(site: Nginx, name: str) -> None:
    """N8: a body that is not whole reaches nobody."""
    before = len(notes(site))
    with site.connect() as c:
        c.send(http.build("POST", f"/slow_head?{name}", [("Content-Length", "1000")]) + b"some")
    wait_until(lambda: f"/slow_head?{name} " in access(site), 10, "nginx has noticed")
    assert site.get("/pid").status == 200 and len(notes(site)) == before


def test_connections_stay_bounded(site: Nginx) -> None:
    """N8: after clients that left at every point nothing is left behind in nginx or the workers."""

    def count() -> int:
        return sum(procs.descriptors(p.pid) for p in [*site.server_processes()]) + sum(
            procs.descriptors(pid) for pid in site.ready()
        )

    def once() -> None:
        for target in ("/large?100", "/unbuffered/large?100", "/pid", "/slow_head?bounded"):
            with site.connect() as c:
                c.send(http.build(target=target))
        with site.connect() as c:
            c.send(http.build("POST", "/body", [("Content-Length", "300000")]) + b"b" * 100_000)

    let(site, "bounded")
    for _ in range(3):
        once()
    site.get("/pid")
    before = count()
    for _ in range(20):
        once()
    wait_until(lambda: count() <= before + 8, 20, "descriptors back to where they were")


# --- bodies


@pytest.mark.parametrize("size", [65_536, 65_537, 1_000_000, 20_000_000])
@pytest.mark.parametrize("place", ["", "/memory", "/tiny"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_bodies_by_descriptor(site: Nginx, place: str, size: int, chunked: bool) -> None:
    """N10: above 64 KiB the worker gets the descriptor of nginx's own temporary file, which has no name any more."""
    data = os.urandom(size)
    if chunked:
        pieces = [data[i : i + 100_000] for i in range(0, size, 100_000)]
        r = site.get(
            f"{place}/body", method="POST", headers=[("Transfer-Encoding", "chunked")], body=http.chunked(*pieces)
        )
    else:
        r = site.get(f"{place}/body", method="POST", body=data)
    n, digest, links = json.loads(r.body)
    assert (n, digest) == (size, hashlib.sha256(data).hexdigest())
    files = [link for link in links if "/tmp-client_body/" in link]
    if size > 65536:
        assert len(files) == 1 and files[0].endswith(" (deleted)")
    wait_until(lambda: not list((site.prefix / "tmp-client_body").rglob("0*[0-9]")), 5, "no file is left")
