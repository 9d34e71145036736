"""What surrounds an answer: records of the log before its head, ends that must not look orderly, and what is still under way
when a process of nginx ends."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import ssl
from collections.abc import Callable

import pytest

from harness import http, log
from harness.nginx import Nginx, has_cache
from harness.wait import wait_until

APP = """
import os, time

def wait(name):
    while not os.path.exists("{scratch}/" + name):
        time.sleep(0.005)

class Answer:
    def __init__(self, name):
        self.name = name
    def __iter__(self):
        yield b"one"
        wait("end-" + self.name)
        yield b"two"
    def close(self):
        open("{scratch}/closing-" + self.name, "w").close()
        wait("close-" + self.name)
        open("{scratch}/closed-" + self.name, "w").close()

def broken():
    yield b"a" * 20000
    raise RuntimeError("deliberate")

def application(environ, start_response):
    word, argument = environ["PATH_INFO"].split("/")[-1], environ["QUERY_STRING"]
    if word == "records":
        for _ in range(int(argument)):
            environ["wsgi.errors"].write("record " + "x" * 900 + "\\n")
            time.sleep(0.001)
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Long", "h" * 6000)])
    if word == "broken":
        return broken()
    if word == "answer":
        return Answer(argument)
    return [b"answered " * 2000]
"""
SITE = """
wsgi_process_group g;
location / { wsgi_script {apps}/ends.wsgi; }
location /unbuffered { wsgi_script {apps}/ends.wsgi; wsgi_buffering off; }
"""
GROUP = "wsgi_daemon_process g processes=1 threads=5;"
KEPT = """
location /kept { wsgi_script {apps}/ends.wsgi; wsgi_cache z; wsgi_cache_valid 1h; wsgi_buffer_size 16k; wsgi_buffers 8 16k; }
"""
ZONE = "wsgi_cache_path {prefix}/cache keys_zone=z:1m;"


@pytest.fixture
def site(nginx: Callable[..., Nginx]) -> Callable[..., Nginx]:
    def make(**kw: object) -> Nginx:
        site, group = (SITE + KEPT, GROUP + ZONE) if has_cache() else (SITE, GROUP)
        server = nginx(site, http_config=group, workers=1, start=False, **kw)
        server.write("ends.wsgi", APP)
        return server.start()  # type: ignore[return-value]

    return make


def peak_kib(pid: int) -> int:
    """The most memory that a process has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def test_requests_whose_clients_leave_take_no_memory(nginx: Callable[..., Nginx]) -> None:
    """N8: a worker that is busy reads nothing; what nobody waits for any more is not kept for it."""
    site = "location / { wsgi_process_group g; wsgi_script {apps}/ends.wsgi; }"
    server = nginx(site, http_config="wsgi_daemon_process g processes=1 threads=1;", workers=1, start=False)
    server.write("ends.wsgi", APP)
    server.start()
    many, access = 4000, server.logs / "access.log"
    with server.connect() as busy:
        busy.send(http.build(target="/answer?busy"))
        assert busy.head().status == 200
        (process,) = server.server_processes()
        before = peak_kib(process.pid)
        for _ in range(many):
            with server.connect() as c:
                c.send(http.build("POST", "/answer?none", body=b"x" * 7000))
        wait_until(lambda: access.read_text().count('" 499 ') == many, 30, "all have left")
        assert peak_kib(process.pid) - before < 12 << 10
        for what in ("end", "close"):
            (server.scratch / f"{what}-busy").touch()
        assert busy.body(http.Response("1.1", 200, "", [("Transfer-Encoding", "chunked")])).body == b"onetwo"
    assert server.get("/small").status == 200


@pytest.mark.parametrize("place", ["", "/unbuffered", "/kept"])
def test_records_before_the_head_take_no_memory(site: Callable[..., Nginx], place: str) -> None:
    """N7, N21: what an application logs before its head goes through nginx's first buffer, however much it is; a buffer that
    grew with it would take 100 MB for these records."""
    if place == "/kept" and not has_cache():
        pytest.skip("this nginx has no cache")
    server = site()
    server.expect_log("record xxx")
    server.allow_log("MWR0427")
    (nginx,) = server.server_processes()
    answer = server.get(place + "/plain")
    before = peak_kib(nginx.pid)
    assert server.get(place + "/records?1000").body == answer.body
    assert peak_kib(nginx.pid) - before < 8 << 10
    wait_until(lambda: len(server.log.find("record xxx")) > 500)
    if place == "/kept":
        again = server.get(place + "/records?1000")
        assert (again.body, again.header("X-Long")) == (answer.body, "h" * 6000)


@pytest.mark.parametrize("place", ["", "/unbuffered"])
def test_a_cut_answer_over_tls(site: Callable[..., Nginx], place: str) -> None:
    """N17: where only the end of the connection tells the end of the body, one that broke off has no close_notify; a whole
    one has."""
    server = site(tls=True)
    server.expect_log("MWR043[01]")
    server.allow_log(log.EXCEPTION)

    def ended(word: str) -> str:
        with http.Connection(server.tls_port, tls=True) as c:
            c.send(http.build("GET", f"{place}/{word}", version="1.0"))
            try:
                while c.sock.recv(1 << 16):
                    pass
            except (ssl.SSLEOFError, ConnectionResetError):
                return "cut"
            return "whole"

    assert [ended("plain"), ended("broken"), ended("plain")] == ["whole", "cut", "whole"]


def test_quitting_while_an_application_closes(site: Callable[..., Nginx]) -> None:
    """N14: a process of nginx that is to end does not wait for an application whose answer has gone out, and does not
    complain of its connection either; the application closes in peace."""
    server = site()
    with server.connect() as c:
        c.send(http.build("GET", "/answer?a", version="1.0"))
        data = b""
        while not data.endswith(b"one"):
            data += c.sock.recv(4096)
        (nginx,) = server.server_processes()
        scratch = server.prefix / "scratch"
        os.kill(server.pid, signal.SIGHUP)
        server.log.wait("gracefully shutting down")
        (scratch / "end-a").touch()
        while piece := c.sock.recv(4096):
            data += piece
        assert data.endswith(b"onetwo")
    wait_until(lambda: (scratch / "closing-a").exists(), 10)
    wait_until(lambda: not nginx.alive(), 10, "nginx's process has ended")
    assert not (scratch / "closed-a").exists()
    (scratch / "close-a").touch()
    wait_until(lambda: (scratch / "closed-a").exists(), 10)
    assert server.get("/plain").status == 200
