"""N13: what clients are told when something fails, each with its line in the log; error_page serves every one of them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import http, log
from harness.nginx import Nginx
from harness.notes import let
from harness.wait import wait_until

APP = """
import os, signal, time
def application(environ, start_response):
    name = environ["QUERY_STRING"]
    kind = environ["PATH_INFO"].split("/")[-1]
    body = environ["wsgi.input"].read()
    open("{scratch}/ran-" + name, "w").close()
    if kind == "hold":
        while not os.path.exists("{scratch}/go-" + name):
            time.sleep(0.005)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise RuntimeError("deliberate")
    if kind == "head":
        start_response("200 OK", [("X-A", "b\\r\\nc")])
        return []
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % len(body)]
"""
SITE = """
error_page 502 503 504 500 /page;
location = /page { internal; return 200 "own page\\n"; }
location / { wsgi_script {apps}/statuses.wsgi; wsgi_process_group g; %s }
location /plain { wsgi_script {apps}/statuses.wsgi; wsgi_process_group g; error_page 418 /none; %s }
"""


@pytest.fixture
def site(nginx: Callable[..., Nginx]) -> Callable[..., Nginx]:
    """Makes one: options of the group, settings of its places."""

    def make(options: str = "", settings: str = "", app: str = APP) -> Nginx:
        server = nginx(
            SITE % (settings, settings),
            http_config=f"wsgi_daemon_process g processes=1 {options};",
            workers=1,
            start=False,
        )
        server.write("statuses.wsgi", app)
        server.start()
        return server

    return make


def held(server: Nginx, name: str) -> threading.Thread:
    """A request that holds a thread of the application until `let`."""
    thread = threading.Thread(target=lambda: server.get(f"/hold?{name}", timeout=30))
    thread.start()
    wait_until(lambda: (server.scratch / f"ran-{name}").exists(), 10, "the application runs")
    return thread


def both(server: Nginx, target: str, status: int, **kw: object) -> http.Response:
    """The failure, with error_page's answer and with nginx's own; gives the second."""
    r = server.get(target, **kw)
    assert (r.status, r.text) == (status, "own page\n")
    r = server.get("/plain" + target, **kw)
    assert r.status == status and f"<title>{status} " in r.text
    return r


def test_500(site: Callable[..., Nginx]) -> None:
    """N13: an application that raises, or gives a head that is none."""
    server = site()
    server.expect_log("MWR0430.*RuntimeError")
    server.allow_log(log.EXCEPTION)
    both(server, "/raise?a", 500)
    both(server, "/head?b", 500)


def test_502(site: Callable[..., Nginx]) -> None:
    """N13: a worker that dies."""
    server = site()
    server.expect_log("MWR0207")
    server.allow_log("MWR0306")
    both(server, "/die?a", 502)
    server.log.wait("MWR0306")


def test_503_while_nothing_can_be_started(site: Callable[..., Nginx]) -> None:
    """N13: no worker becomes ready: 503, and when to come again."""
    server = site("startup-timeout=1", app="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    server.allow_log("MWR03|MWR020[34]")
    r = both(server, "/x", 503)
    assert r.header("Retry-After") == "5"
    assert server.log.find("MWR020[34]")


def test_503_after_wsgi_connect_timeout(site: Callable[..., Nginx]) -> None:
    """N2, N13: wsgi_connect_timeout bounds the wait for a first ready worker, below startup-timeout."""
    slow = """
import os, time
while not os.path.exists("{scratch}/go-start"):
    time.sleep(0.005)
"""
    server = site("startup-timeout=60", "wsgi_connect_timeout 1500ms;", app=slow + APP)
    server.expect_log("MWR0204")
    begun = time.monotonic()
    r = both(server, "/x", 503)
    assert r.header("Retry-After") == "5" and 3 <= time.monotonic() - begun < 15
    let(server, "start")
    wait_until(lambda: server.get("/x").status == 200, 20)


def test_waiting_costs_little(site: Callable[..., Nginx]) -> None:
    """N13: requests that wait for a first ready worker are looked at together, and only those that can go are woken."""
    slow = """
import os, time
while not os.path.exists("{scratch}/go-start"):
    time.sleep(0.005)
"""
    server = site("startup-timeout=60 queue-limit=400", app=slow + APP)
    [nginx] = wait_until(lambda: server.server_processes() or None, 10, "nginx's worker process")

    def used() -> float:
        """Seconds of the processor."""
        fields = Path(f"/proc/{nginx.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect(timeout=60)) for _ in range(300)]
        for c in clients:
            c.send(http.build(target="/x?w"))
        # measured is a time in which nothing else happens
        time.sleep(1)
        before, begun = used(), time.monotonic()
        time.sleep(2)
        assert (used() - before) / (time.monotonic() - begun) < 0.15
        let(server, "start")
        assert [c.response().status for c in clients] == [200] * 300


def test_503_with_a_full_queue(site: Callable[..., Nginx]) -> None:
    """N13: beyond threads and queue-limit."""
    server = site("threads=1 queue-limit=1")
    server.expect_log("MWR0205")
    first = held(server, "a")
    with server.connect() as c:
        c.send(http.build(target="/hold?b"))
        # one nginx process takes requests in the order they come
        r = both(server, "/x", 503)
        assert r.header("Retry-After") == "1"
        let(server, "a")
        let(server, "b")
        assert c.response().text == "0"
    first.join(10)


def test_who_leaves_the_queue_leaves_its_place(site: Callable[..., Nginx]) -> None:
    """N8, N13: the row of a client that has left while it waited is free at once, and its request never runs; a body for a
    full queue is refused before it is read."""
    server = site("threads=1 queue-limit=2")
    first = held(server, "a")
    server.expect_log("MWR0205")
    for name in "bcde":
        with server.connect() as c, server.connect() as d:
            for one, which in ((c, 1), (d, 2)):
                one.send(http.build(target=f"/hold?{name}{which}"))
            with server.connect() as full:
                # refused by its head alone
                full.send(http.build("POST", "/plain/x?body", [("Content-Length", "50000000")]))
                assert full.response().status == 503
    with server.connect() as c:
        # not refused: there is a place
        c.send(http.build(target="/x?last"))
        let(server, "a")
        first.join(10)
        assert c.response().status == 200
    assert not [n for n in "bcde" if (server.scratch / f"ran-{n}1").exists() or (server.scratch / f"ran-{n}2").exists()]


def test_504_in_the_queue(site: Callable[..., Nginx]) -> None:
    """N13: queue-timeout: the application has not seen it."""
    server = site("threads=1 queue-timeout=1")
    server.expect_log("MWR0206.*waited 1 s for a thread")
    first = held(server, "a")
    both(server, "/x?late", 504)
    let(server, "a")
    first.join(10)
    assert not (server.scratch / "ran-late").exists() and server.get("/x?next").status == 200


def test_a_slow_upload_is_no_time_in_the_queue(site: Callable[..., Nginx]) -> None:
    """N13: queue-timeout begins when the body is there."""
    server = site("threads=1 queue-timeout=1")
    first = held(server, "a")
    with server.connect() as c:
        c.send(http.build("POST", "/x?slow", [("Content-Length", "10")]) + b"01234")
        # longer than the limit
        c.sock.settimeout(1.3)
        with pytest.raises(TimeoutError):
            c.sock.recv(1)
        c.send(b"56789")
        # the looks at what has been sent, every 20 ms
        c.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            c.sock.recv(1)
        let(server, "a")
        c.sock.settimeout(10)
        assert c.response().text == "10"
    first.join(10)


def test_504_of_the_application(site: Callable[..., Nginx]) -> None:
    """N13: wsgi_read_timeout; a thread that goes on is free when it ends."""
    server = site("threads=2", "wsgi_read_timeout 300ms;")
    # the peer as in $upstream_addr
    server.expect_log('upstream timed out .* upstream: "wsgi:g", host')
    r = both(server, "/hold?a", 504)
    assert r.header("Retry-After") is None
    let(server, "a")
    wait_until(lambda: server.get("/x?next").status == 200, 10)


def test_400_and_413(site: Callable[..., Nginx]) -> None:
    """N13: what nginx refuses never reaches a worker."""
    server = site("", "client_max_body_size 100;")
    server.allow_log("client sent|client intended")
    assert server.get("/x?big", method="POST", body=b"x" * 101).status == 413
    for raw in (
        b"POST /x?bad HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\n",
        b"POST /x?bad HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /x?bad HTTP/1.1\r\n\r\n",
        b"GET /%zz?bad HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        with server.connect() as c:
            c.send(raw)
            assert c.response().status == 400
    assert not list(server.scratch.glob("ran-*"))


def test_connections_run_out(nginx: Callable[..., Nginx]) -> None:
    """N13, pitfall N15: without worker_connections left a request fails by itself; later ones are served."""
    server = nginx(
        SITE % ("", ""),
        http_config="wsgi_daemon_process g processes=1 threads=8;",
        main="",
        workers=1,
        start=False,
    )
    server.write("statuses.wsgi", APP)
    text = server.text().replace("worker_connections 1024", "worker_connections 24")
    server.text = lambda: text  # type: ignore[method-assign]
    server.start()
    server.allow_log("worker_connections are not enough|MWR02|MWR0230|reuse connections|connect\\(\\)")
    assert server.get("/x?first").status == 200
    idle = [server.connect() for _ in range(40)]
    for c in idle:
        c.close()
    wait_until(lambda: _served(server), 10, "served again")


def _served(server: Nginx) -> bool:
    try:
        return server.get("/x?again").status == 200
    except OSError:
        return False


def test_a_stopped_group_is_504_or_served(site: Callable[..., Nginx]) -> None:
    """N8, N13: the only worker is stopped: what it has not begun waits for queue-timeout, and then runs nowhere."""
    server = site("threads=2 queue-timeout=1")
    assert server.get("/x?warm").status == 200
    (pid,) = server.ready()
    server.expect_log("MWR0206")
    server.allow_log("MWR03")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert server.get("/x?stopped", timeout=10).status == 504
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: server.get("/x?next").status == 200, 10)
    assert not (server.scratch / "ran-stopped").exists()
