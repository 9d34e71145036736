"""W5, W8: workers and clients that break off in the middle, or send what no sound one sends."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator

import pytest

from harness import http
from harness.apache import Apache
from harness.server import running
from harness.wait import wait_until

APP = """
import array, gc, os, select, socket, struct
import mod_wsgi

def connections():
    for n in os.listdir("/proc/self/fd"):
        try:
            s = socket.socket(fileno=os.dup(int(n)))
            if s.family == socket.AF_UNIX and s.getsockname() and s.getpeername() is not None:
                yield s
        except OSError:
            pass

def files(environ, start_response):
    start_response("200 OK", [])(b"x" * 10)
    frame = struct.pack("<IBBHQQ", 16, 8, 0, 0, 0, 1)
    with open("/etc/passwd", "rb") as f:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [f.fileno()]))]
        for s in list(connections()):
            for _ in range(3000):
                select.select([], [s], [])
                try:
                    s.sendmsg([frame], rights)
                except OSError:
                    break
    return [b"end"]

class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        mod_wsgi.request_data()

def collected(environ, start_response):
    data = mod_wsgi.request_data
    thresholds = gc.get_threshold()
    gc.disable()
    kept = [{} for _ in range(500)]
    for _ in range(100):
        Cycle()
    gc.set_threshold(1, 1, 1)
    kept += [[] for _ in range(3000)]
    gc.enable()
    data()
    gc.set_threshold(*thresholds)
    start_response("200 OK", [])
    return [b"collected"]

def short(environ, start_response):
    start_response("200 OK", [("Content-Length", "999999"), ("Content-Type", "text/plain")])
    for _ in range(4):
        yield os.urandom(100000)

def little(environ, start_response):
    environ["wsgi.input"].read(10)
    start_response("200 OK", [])
    return [b"little"]

def killed(environ, start_response):
    environ["wsgi.input"].read(10)
    os.kill(os.getpid(), 9)

def application(environ, start_response):
    return globals()[environ["PATH_INFO"][1:]](environ, start_response)
"""
CONFIG = """
WSGIDaemonProcess g processes=1 threads=4 request-buffering=off
WSGIProcessGroup g
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias / {apps}/site/app.wsgi
Timeout 10
<Location /short>
SetOutputFilter DEFLATE
</Location>
"""


@pytest.fixture(scope="module", params=["event", "prefork"])
def server(request: pytest.FixtureRequest) -> Iterator[Apache]:
    apache = Apache(CONFIG, modules=["deflate"], mpm=request.param)
    apache.write("site/app.wsgi", APP, expand=False)
    with running(apache) as live:
        yield live


def test_a_flood_of_files(server: Apache) -> None:
    """A worker that passes file after file cannot take the descriptors of the server."""
    server.expect_log("MWR0208.*more than 16 files")
    most = 0
    with http.Connection(server.port) as c:
        c.send(http.build("GET", "/files"))

        def over() -> bool:
            nonlocal most
            for p in server.server_processes():
                most = max(most, len(os.listdir(f"/proc/{p.pid}/fd")))
            return "more than 16 files" in server.error_log.read_text()

        wait_until(over, 10, "the server refuses the worker's answer")
        assert c.response().truncated
    assert most < 100


def test_the_collector_may_ask_for_the_request(server: Apache) -> None:
    """Code that the garbage collector runs while `request_data()` makes the dictionary can call it, too."""
    assert server.get("/collected", timeout=10).body == b"collected"


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_a_shortfall_over_http_1_0(server: Apache, coding: str) -> None:
    """W7, W8: an answer that breaks off over HTTP/1.0 is reset where nothing else shows it: a filter has taken the
    length away, and ended its own format as if all were well."""
    server.expect_log("MWR0216")
    r = server.get("/short", version="1.0", headers=[("Accept-Encoding", coding)])
    assert r.status == 200 and r.header("Content-Encoding") == ("gzip" if coding == "gzip" else None)
    assert r.truncated
    if coding == "gzip":
        with pytest.raises(EOFError):
            gzip.decompress(r.body)


def test_a_large_body_that_nobody_reads(server: Apache) -> None:
    """W5: an answer amid a large body ends the connection to the worker in the middle of a frame; that is no fault."""
    for _ in range(3):
        with http.Connection(server.port) as c:
            c.send(http.build("POST", "/little", [("Content-Length", "50000000")]) + b"y" * 4_000_000)
            assert c.response().body == b"little"
    assert server.get("/little", method="POST", body=b"x").body == b"little"


def test_worker_killed_amid_a_body(server: Apache) -> None:
    """W5, F1: the client, which waits, is told at once, and what it sends of its body later is no request."""
    server.expect_log("MWR0207")
    server.expect_log("MWR0306")
    with http.Connection(server.port, timeout=5) as c:
        c.send(http.build("POST", "/killed", [("Content-Length", "20000")]) + b"z" * 10_000)
        r = c.response()
        assert (r.status, r.header("Connection")) == (502, "close")
        assert c.ended() in ("eof", "reset")
    wait_until(lambda: bool(server.ready()), 10, "a new worker")


def test_requests_in_an_unread_body(server: Apache) -> None:
    """W5, W13: what looks like requests inside a streamed body that the application does not read is never served."""
    body = (http.build("GET", "/collected") * 1000)[:20_000]
    with http.Connection(server.port) as c:
        c.send(http.build("POST", "/little", [("Content-Length", "20000")]) + body)
        c.send(http.build("POST", "/little?next", body=b"q" * 30))
        assert c.response().body == b"little"
        assert c.response().body == b"little"
