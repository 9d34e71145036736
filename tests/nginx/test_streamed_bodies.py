"""N2, N8, N17: what is nginx's own in places without request buffering: its buffers and time limits, requests that are taken
back, and what becomes of a body that nobody has read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from harness import http, log, procs
from harness.nginx import Nginx
from harness.notes import APP as NOTES
from harness.notes import let, noted, notes
from harness.server import running
from harness.wait import wait_until

APP = (
    NOTES
    + """
import hashlib, os, signal, time

def answer(start_response, text, status="200 OK", more=()):
    body = text.encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *more])
    return [body]

def application(environ, start_response):
    kind = environ["PATH_INFO"].split("/")[-1]
    name = environ["QUERY_STRING"]
    stream = environ["wsgi.input"]
    note("%s %d" % (name, os.getpid()))
    if kind == "digest":
        data = stream.read()
        return answer(start_response, "%d %s" % (len(data), hashlib.sha256(data).hexdigest()))
    if kind == "stall":
        # reads a little, and then not on before it is told to
        stream.read(10)
        note(name + " read")
        wait(name)
        try:
            rest = stream.read()
        except OSError:
            note(name + " OSError")
            raise
        return answer(start_response, str(len(rest)))
    if kind == "begin":
        return begin(start_response, stream, name)
    if kind == "die":
        stream.read(10)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hold":
        wait(name)
        return answer(start_response, "held")
    if kind == "unread":
        return answer(start_response, "unread")
    if kind == "redirect":
        return answer(start_response, "never", more=[("X-Accel-Redirect", name)])
    if kind == "redirect-amid":
        stream.read(10)
        return answer(start_response, "never", more=[("X-Accel-Redirect", name)])
    if kind == "raise":
        raise RuntimeError("deliberate")
    if kind == "stays":
        environ["wsgi.input"].read(5)
        note(name + " read")
        return Closing(start_response, stream, name)
    return answer(start_response, "what?", "404 Not Found")

def begin(start_response, stream, name):
    # answers, and reads on when it is told to
    stream.read(10)
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"begun"
    wait(name)
    try:
        yield b"%d" % len(stream.read())
    except OSError:
        note(name + " OSError")
        raise

class Closing:
    # reads on in its close()
    def __init__(self, start_response, stream, name):
        start_response("200 OK", [("Content-Type", "text/plain")])
        self.stream, self.name = stream, name
    def __iter__(self):
        yield b"body"
    def close(self):
        try:
            data = self.stream.read()
            note("%s closed %d" % (self.name, len(data)))
        except OSError:
            note(self.name + " closed OSError")
"""
)
SITE = """
wsgi_process_group g;
wsgi_request_buffering off;
location / { wsgi_script {apps}/streamed.wsgi; }
location /tiny { wsgi_script {apps}/streamed.wsgi; client_body_buffer_size 1k; }
location /huge { wsgi_script {apps}/streamed.wsgi; client_body_buffer_size 2m; }
location /brief { wsgi_script {apps}/streamed.wsgi; wsgi_send_timeout 700ms; wsgi_read_timeout 30s; }
location /brief-huge { wsgi_script {apps}/streamed.wsgi; wsgi_send_timeout 700ms; client_body_buffer_size 2m; }
location /patient { wsgi_script {apps}/streamed.wsgi; wsgi_read_timeout 400ms; }
location /static/ { alias {prefix}/htdocs/; }
location /buffered { wsgi_script {apps}/streamed.wsgi; wsgi_request_buffering on; }
location /own-page { wsgi_script {apps}/streamed.wsgi; wsgi_intercept_errors on; error_page 500 /static/page; }
"""
GROUP = "wsgi_daemon_process g processes=%d threads=%d;"


def made(processes: int = 1, threads: int = 8) -> Nginx:
    server = Nginx(SITE, http_config=GROUP % (processes, threads), workers=1)
    server.write("streamed.wsgi", APP)
    (server.prefix / "htdocs" / "page").write_text("static")
    return server


@pytest.fixture(scope="module")
def site() -> Iterator[Nginx]:
    with running(made()) as server:
        yield server


@pytest.fixture
def fresh() -> Iterator[Callable[..., Nginx]]:
    """Servers of one test."""
    servers: list[Nginx] = []

    def start(**kw: int) -> Nginx:
        servers.append(made(**kw))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
        server.finished = True


def runs(server: Nginx, name: str) -> list[int]:
    """Workers that have begun the request of that name."""
    return [int(n.split()[1]) for n in notes(server) if n.split()[0] == name and n.split()[1].isdigit()]


def raises(server: Nginx) -> None:
    server.expect_log(r"OSError: \[Errno 5\] the client has closed")
    server.allow_log(r"MWR0430: exception OSError|Traceback|\]  +")


@pytest.mark.parametrize("place", ["", "/tiny", "/huge"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("size", [1, 1023, 1024, 65_537, 10_000_000])
def test_buffers(site: Nginx, place: str, chunked: bool, size: int) -> None:
    """N2: frames of any of nginx's buffers: smaller than one, and larger than a frame may be."""
    data = os.urandom(size)
    with site.connect() as c:
        for _ in range(2):
            if chunked:
                pieces = [data[i : i + 300_000] for i in range(0, size, 300_000)]
                r = c.request("POST", f"{place}/digest", [("Transfer-Encoding", "chunked")], http.chunked(*pieces))
            else:
                r = c.request("POST", f"{place}/digest", body=data)
            assert (r.status, r.text) == (200, f"{size} {hashlib.sha256(data).hexdigest()}")


def test_a_worker_that_does_not_read_on(site: Nginx) -> None:
    """N2: wsgi_send_timeout: 504, the application is told at its next read, and its thread is free again."""
    raises(site)
    site.expect_log(r"MWR0231: worker has read nothing of the request's body")
    data = b"x" * 20_000_000
    with site.connect() as c:
        c.send(http.build("POST", "/brief/stall?stalled", [("Content-Length", str(len(data)))]))
        sender = threading.Thread(target=_send, args=(c, data))
        sender.start()
        assert c.response().status == 504
        sender.join(10)
    let(site, "stalled")
    noted(site, "stalled OSError")
    assert site.get("/digest", method="POST", body=b"abc").text.startswith("3 ")


def test_an_answer_breaks_off_with_its_body(site: Nginx) -> None:
    """N2, N17: the same amid the answer, when nginx has the body whole and could keep the connection: the answer has no end,
    and nothing follows it on its connection."""
    raises(site)
    site.expect_log(r"MWR0231: worker has read nothing of the request's body")
    data = b"x" * 1_500_000
    got = b""
    with site.connect() as c:
        c.send(http.build("POST", "/brief-huge/begin?amid", body=data))
        while b"begun" not in got:
            got += c.sock.recv(4096)
        c.send(http.build("GET", "/unread?behind"))
        with contextlib.suppress(ConnectionResetError):
            while piece := c.sock.recv(4096):
                got += piece
    assert got.startswith(b"HTTP/1.1 200 ") and got.count(b"HTTP/1.1 ") == 1 and b"0\r\n\r\n" not in got
    let(site, "amid")
    noted(site, "amid OSError")


def _send(c: http.Connection, data: bytes) -> None:
    with contextlib.suppress(OSError):
        c.send(data)


def test_back_pressure(site: Nginx) -> None:
    """N2: while the application reads nothing, nginx takes no more of the client than its buffers and sockets hold, and
    its worker process serves others."""
    with site.connect(timeout=60) as c:
        c.send(http.build("POST", "/stall?pressed", [("Content-Length", "50000000")]))
        noted(site, f"pressed {runs_of(site, 'pressed')}")
        c.sock.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 50_000_000:
                sent += c.sock.send(b"x" * min(65536, 50_000_000 - sent))
        (process,) = site.server_processes()
        assert sent < 30_000_000 and procs.memory_kib(process.pid) < 60_000
        assert site.get("/unread").text == "unread"
        let(site, "pressed")
        c.sock.settimeout(60)
        c.send(b"x" * (50_000_000 - sent))
        assert c.response().text == "49999990"


def runs_of(server: Nginx, name: str) -> int:
    wait_until(lambda: runs(server, name), 10, f"{name} runs")
    return runs(server, name)[0]


def test_a_slow_client_is_no_slow_application(site: Nginx) -> None:
    """N2: wsgi_read_timeout counts the application's pauses, not the client's."""
    with site.connect() as c:
        c.send(http.build("POST", "/patient/digest?slow", [("Content-Length", "6")]))
        runs_of(site, "slow")
        for piece in (b"ab", b"cd", b"ef"):
            # longer than the limit
            c.sock.settimeout(0.7)
            with pytest.raises(TimeoutError):
                c.sock.recv(1)
            c.send(piece)
        c.sock.settimeout(10)
        assert c.response().text == f"6 {hashlib.sha256(b'abcdef').hexdigest()}"


def test_a_slow_application_is_one(site: Nginx) -> None:
    """N2, N13: and from the body's end on it does: 504."""
    site.expect_log("upstream timed out")
    with site.connect() as c:
        c.send(http.build("POST", "/patient/stall?late", body=b"x" * 100))
        assert c.response().status == 504
    let(site, "late")


def test_taken_back_before_it_is_read(fresh: Callable[..., Nginx]) -> None:
    """N8: until the application asks for its body a request is recalled like any other: it goes from a stopped worker to
    the other one, with its body, once."""
    server = fresh(processes=2, threads=2)
    server.log.wait("is ready after", count=2)
    stopped = sorted(server.ready())[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        wait_until(lambda: procs.threads_stopped(stopped), 10, "every thread has stopped")
        for i in range(6):
            r = server.get(f"/digest?back{i}", method="POST", body=b"b" * 100_000)
            assert r.text == f"100000 {hashlib.sha256(b'b' * 100_000).hexdigest()}"
            assert len(runs(server, f"back{i}")) == 1 and stopped not in runs(server, f"back{i}")
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_leaving_while_it_waits(fresh: Callable[..., Nginx]) -> None:
    """N8: a client that leaves before its request has been begun: it never runs."""
    server = fresh(processes=1, threads=1)
    answers: list[int] = []
    first = threading.Thread(target=lambda: answers.append(server.get("/hold?a").status))
    first.start()
    runs_of(server, "a")
    with server.connect() as c:
        c.send(http.build("POST", "/digest?b", [("Content-Length", "100000")]) + b"some")
    server.log.wait("client prematurely closed connection")
    let(server, "a")
    first.join(10)
    assert answers == [200] and server.get("/unread").status == 200 and not runs(server, "b")


def test_a_worker_that_dies_amid_the_body(fresh: Callable[..., Nginx]) -> None:
    """N8: 502, and it is run once."""
    server = fresh()
    server.expect_log("MWR0207")
    server.expect_log("MWR0306")
    with server.connect() as c:
        c.send(http.build("POST", "/die?dead", [("Content-Length", "1000000")]) + b"x" * 1000)
        assert c.response().status == 502
    server.log.wait("MWR0306")
    assert len(runs(server, "dead")) == 1


@pytest.mark.parametrize("kind", ["redirect", "redirect-amid"])
@pytest.mark.parametrize("to", ["/static/page", "/buffered/digest", "/digest"])
@pytest.mark.parametrize("size", [100, 1_000_000])
def test_handed_on(site: Nginx, kind: str, to: str, size: int) -> None:
    """N11: X-Accel-Redirect of a request whose body was not read, or in part: who serves it then sees all of it, or none,
    and nothing of it is taken for a request."""
    request = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    data = (request * (size // len(request) + 1))[:size]
    with site.connect() as c:
        c.send(http.build("POST", f"/{kind}?{to}", [("Content-Length", str(size))]))
        sender = threading.Thread(target=_send, args=(c, data))
        sender.start()
        r = c.response()
        sender.join(10)
        assert r.status == 200
        if to == "/static/page":
            assert r.text == "static"
        elif kind == "redirect":
            assert r.text == f"{size} {hashlib.sha256(data).hexdigest()}"
        else:
            assert r.text.startswith("0 ")
        try:
            c.send(http.build(target="/unread?next"))
            again = c.response()
        except ConnectionError:
            pass
        else:
            assert again.text == "unread"
    assert not [n for n in notes(site) if "smuggled" in n]


def test_an_error_before_the_body(site: Nginx) -> None:
    """N11, N13: nginx's own page for an application that raises unread; the connection stays in step."""
    site.expect_log("MWR0430")
    site.allow_log(log.EXCEPTION)
    for place, text in (("", "500 Internal Server Error"), ("/own-page", "static")):
        with site.connect() as c:
            r = c.request("POST", f"{place}/raise", body=b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
            assert r.status == 500 and text in r.text
            if r.header("Connection") == "close":
                assert c.ended() == "eof"
            else:
                assert c.request(target="/unread?after").text == "unread"


def test_reading_on_in_close(site: Nginx) -> None:
    """N2: an application that reads on after its answer is told that the body is not whole, and holds no thread."""
    with site.connect() as c:
        c.send(http.build("POST", "/stays?stays", [("Content-Length", "1000000")]) + b"x" * 1000)
        assert c.response().text == "body"
        noted(site, "stays closed OSError")
    assert site.get("/unread").text == "unread"
