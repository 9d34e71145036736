"""connect-timeout, socket-timeout and response-socket-timeout (L4): each works alone, on
each way of httpd to serve. On nginx its own directives decide; connect-timeout is tested in tests/nginx."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import time

import pytest

from harness import http
from harness.life import in_background
from harness.plan import Plan
from harness.server import Server
from harness.wait import Timeout, wait_until

pytestmark = [pytest.mark.ours, pytest.mark.on("event", "prefork")]


def server(serve, options: str, own: str = "") -> Server:
    one = serve(Plan(f"processes=1 threads=4 {options}", "paced.wsgi", own={"apache": own}))
    wait_until(one.ready, what="the worker is ready")
    return one


def noted(one: Server, name: str) -> None:
    wait_until((one.scratch / name).exists, 10, f"the application has noted {name}")


def move_socket(one: Server):
    """Takes the worker's socket out of the way; the result puts it back."""
    (path,) = [p for p in map(pathlib.Path, one.sockets()) if p.name[0].isdigit()]
    away = path.with_name("away")
    path.rename(away)
    return lambda: away.rename(path)


@pytest.mark.everywhere
def test_connect(serve) -> None:
    """L4: connect-timeout: what cannot be connected is tried for so long, then 503; the application has seen nothing."""
    one = server(serve, "connect-timeout=1")
    one.expect_log("MWR0209")
    put_back = move_socket(one)
    began = time.monotonic()
    r = one.get("/pid", timeout=10)
    assert (r.status, bool(r.header("Retry-After"))) == (503, True)
    assert 0.9 < time.monotonic() - began < 4
    put_back()
    assert one.get("/pid").status == 200


def test_connect_in_time(serve) -> None:
    """L4: a request is served as soon as a connection can be made again; the default is 15 s."""
    one = server(serve, "")
    put_back = move_socket(one)
    answer = in_background(lambda: one.get("/pid", timeout=20))
    with pytest.raises(Timeout):
        wait_until(lambda: answer, 2)
    put_back()
    assert wait_until(lambda: answer, 5)[0].status == 200


@pytest.mark.everywhere
def test_silence_before_the_head(serve) -> None:
    """L4: socket-timeout: 504, one line; the thread goes on and the worker is not replaced."""
    one = server(serve, "socket-timeout=1")
    one.expect_log("MWR0218.*for 1 s .socket-timeout")
    before = one.ready()
    began = time.monotonic()
    assert one.get("/wait?silent", timeout=10).status == 504
    assert 0.9 < time.monotonic() - began < 4
    (worker,) = one.workers()
    assert worker["running"] == 1, "the application has not come back"
    assert one.get("/pid").status == 200
    (one.scratch / "silent").touch()
    wait_until(lambda: not any(w["running"] for w in one.workers()))
    assert one.get("/pid").status == 200 and one.ready() == before


def test_silence_in_the_body(serve) -> None:
    """L4: a response that stops breaks off visibly; the application learns it at its next block."""
    one = server(serve, "socket-timeout=1")
    one.expect_log("MWR0218")
    r = one.get("/half?go", timeout=10)
    assert (r.status, r.body, r.complete) == (200, b"first", False)
    (one.scratch / "go").touch()
    noted(one, "closed-go")


def test_whoever_goes_on_is_not_cut(serve) -> None:
    """L4: not the whole time counts but each pause."""
    one = server(serve, "socket-timeout=1")
    r = one.get("/ticks?6,0.4")
    assert r.complete and r.body.count(b"tick") == 6


def test_waiting_for_a_thread_is_no_silence(serve) -> None:
    """L4: the wait in the queue is queue-timeout's; each timer works alone."""
    one = server(serve, "socket-timeout=1 queue-timeout=20")
    one.log.allow("MWR0218")
    busy = [in_background(lambda: one.get("/half?free", timeout=20)) for _ in range(4)]
    wait_until(lambda: one.workers()[0]["running"] == 4)
    waiting = in_background(lambda: one.get("/pid", timeout=20))
    # all four have been given up, their threads have not come back
    wait_until(lambda: all(busy), 10)
    assert not waiting
    (one.scratch / "free").touch()
    assert wait_until(lambda: waiting, 10)[0].status == 200


def test_timeout_of_the_server(serve) -> None:
    """L4: what is not set is Apache's Timeout, as in mod_wsgi."""
    one = server(serve, "", "Timeout 1\n")
    one.expect_log("MWR0218.*for 1 s")
    assert one.get("/wait?never", timeout=10).status == 504


def test_an_option_beyond_the_servers_timeout(serve) -> None:
    """L4: the option wins over Timeout, also when it is longer."""
    one = server(serve, "socket-timeout=20", "Timeout 1\n")
    answer = in_background(lambda: one.get("/wait?long", timeout=20))
    with pytest.raises(Timeout):
        wait_until(lambda: answer, 1.8)
    (one.scratch / "long").touch()
    assert wait_until(lambda: answer, 5)[0].text == "waited"


@pytest.mark.everywhere
def test_a_body_that_stops(serve) -> None:
    """L4: streamed: a client that does not go on gets 408, the application OSError."""
    one = server(serve, "socket-timeout=1 request-buffering=off")
    one.log.allow("MWR043|Traceback|  File|OSError|    ")
    with one.connect() as c:
        c.send(http.build("POST", "/read?stops", [("Content-Length", "100")]) + b"half")
        began = time.monotonic()
        assert c.response().status == 408
        assert 0.9 < time.monotonic() - began < 4
    noted(one, "oserror-stops")


def test_a_body_that_is_not_taken(serve) -> None:
    """L4: streamed: an application that neither takes the body nor answers for so long: 504."""
    one = server(serve, "socket-timeout=1 request-buffering=off")
    one.expect_log("MWR0218")
    with one.connect() as c:
        c.sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            c.send(http.build("POST", "/begin?let-go", [("Content-Length", str(32 << 20))]) + b"x" * (32 << 20))
        c.sock.settimeout(10)
        assert c.head().status == 504
    (one.scratch / "let-go").touch()


def test_a_body_that_is_taken_slowly(serve) -> None:
    """L4: streamed: progress in either direction counts."""
    one = server(serve, "socket-timeout=1 request-buffering=off")
    r = one.get("/slowly?0.3", method="POST", body=b"x" * (3 << 20), timeout=30)
    assert (r.status, r.body) == (200, b"%d" % (3 << 20))


def small(one: Server) -> socket.socket:
    """A client whose socket holds little."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(20)
    s.connect(("127.0.0.1", one.port))
    s.sendall(http.build(target="/endless?65536"))
    return s


@pytest.mark.everywhere
def test_a_client_that_takes_nothing(serve) -> None:
    """L4: response-socket-timeout: it is given up, and the application learns it; nothing else is set."""
    one = server(serve, "response-socket-timeout=1")
    with small(one):
        began = time.monotonic()
        noted(one, "closed-endless")
        assert 0.9 < time.monotonic() - began < 6
    one.log.wait(r"taken nothing for 1 s \(response-socket-timeout\)")


def test_a_client_of_socket_timeout(serve) -> None:
    """L4: where it is not set, socket-timeout is the limit, and where that is not, Timeout."""
    for options, extra in (("socket-timeout=1", ""), ("", "Timeout 1\n")):
        one = server(serve, options, extra)
        with small(one):
            noted(one, "closed-endless")
        one.log.wait(r"taken nothing for 1 s \(response-socket-timeout\)")


def test_a_slow_reader_is_never_cut(serve) -> None:
    """L4: a client that takes a few bytes at a time gets on, however long its socket has no room."""
    one = server(serve, "response-socket-timeout=1")
    with small(one) as s:
        end = time.monotonic() + 3
        got = 0
        while time.monotonic() < end:
            got += len(s.recv(2048))
            # the pace of the client is the subject here
            time.sleep(0.1)
    assert got > 30_000
    assert not one.log.find("response-socket-timeout")
