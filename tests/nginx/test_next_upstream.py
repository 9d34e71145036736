"""N8: whether another worker gets a request, by what the first has done with it: the application counts how often it ran."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from harness import http, log, procs
from harness.nginx import Nginx
from harness.server import running
from harness.wait import wait_until

#: fails in the way of the query in its first run, and answers in every later one
APP = """
import os, signal, time

def application(environ, start_response):
    name, how = environ["QUERY_STRING"].split("&")
    fd = os.open("{scratch}/" + name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, b"%d\\n" % os.getpid())
    first = os.fstat(fd).st_size < 10
    os.close(fd)
    body = environ["wsgi.input"].read()
    if how.startswith("tired-"):
        # every time
        time.sleep(1)
        if how == "tired-raise":
            raise RuntimeError("deliberate")
        start_response("503 Own", [("Content-Type", "text/plain")])
        return [b"tired"]
    if first:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raise":
            raise RuntimeError("deliberate")
        if how == "slow":
            time.sleep(1.5)
        if how == "bad":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return ["no bytes"]
        if how in ("midway", "midway-500"):
            return midway(start_response, how)
        if how.startswith("large-"):
            start_response(how[6:] + " Own", [("Content-Type", "text/plain")])
            return (b"x" * 30000 for _ in range(10))
        if how.isdigit():
            start_response(how + " Own", [("Content-Type", "text/plain")])
            return [b"first"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"second:" + body]

def midway(start_response, how):
    start_response("500 Own" if how == "midway-500" else "200 OK", [("Content-Type", "text/plain")])
    yield b"x" * 100000
    os.kill(os.getpid(), signal.SIGKILL)
"""
SITE = """
wsgi_process_group g;
location / { wsgi_script {apps}/next.wsgi; }
location /error { wsgi_script {apps}/next.wsgi; wsgi_next_upstream error; }
location /any { wsgi_script {apps}/next.wsgi; wsgi_next_upstream error non_idempotent; }
location /once { wsgi_script {apps}/next.wsgi; wsgi_next_upstream error; wsgi_next_upstream_tries 1; }
location /brief { wsgi_script {apps}/next.wsgi; wsgi_next_upstream timeout error; wsgi_next_upstream_timeout 200ms;
    wsgi_read_timeout 500ms; }
location /timeout { wsgi_script {apps}/next.wsgi; wsgi_next_upstream timeout; wsgi_read_timeout 500ms; }
location /no-timeout { wsgi_script {apps}/next.wsgi; wsgi_next_upstream error; wsgi_read_timeout 500ms; }
location /invalid { wsgi_script {apps}/next.wsgi; wsgi_next_upstream invalid_header; }
location /statuses {
    wsgi_script {apps}/next.wsgi;
    wsgi_next_upstream http_500 http_503 http_403 http_404 http_429;
}
location /late {
    wsgi_script {apps}/next.wsgi;
    wsgi_next_upstream http_500 http_503; wsgi_next_upstream_tries 9; wsgi_next_upstream_timeout 1700ms;
}
location /off { wsgi_script {apps}/next.wsgi; wsgi_next_upstream off; }
location /streamed { wsgi_script {apps}/next.wsgi; wsgi_next_upstream error non_idempotent; wsgi_request_buffering off; }
"""


@contextlib.contextmanager
def started() -> Iterator[Nginx]:
    server = Nginx(SITE, http_config="wsgi_daemon_process g processes=2 threads=4;", workers=1)
    server.write("next.wsgi", APP)
    with running(server):
        server.log.wait("is ready after", count=2)
        yield server


@pytest.fixture(scope="module")
def site() -> Iterator[Nginx]:
    with started() as server:
        yield server


class Ask:
    """Requests with names of their own."""

    def __init__(self, server: Nginx):
        self.server = server

    def __call__(self, place: str, how: str, method: str = "GET", **kw: object) -> tuple[http.Response, list[str]]:
        """The answer, and the workers that have run it."""
        name = f"{time.monotonic_ns()}-{place.strip('/')}-{how}-{method}"
        r = self.server.get(f"{place}?{name}&{how}", method=method, timeout=15, **kw)
        return r, (self.server.scratch / name).read_text().split()


#: what deaths, time-outs and exceptions leave
FAULTS = r"MWR0207|MWR030[56]|upstream timed out|" + log.EXCEPTION


@pytest.fixture
def ask(site: Nginx) -> Ask:
    site.allow_log(FAULTS)
    return Ask(site)


@pytest.fixture
def fresh() -> Iterator[Ask]:
    """For tests that kill workers: a site of its own, because a supervisor whose workers die again and again waits."""
    with started() as server:
        server.allow_log(FAULTS)
        yield Ask(server)
        # the supervisor's word of it, before the log is judged
        server.log.wait("MWR0306")


@pytest.mark.parametrize(
    ("place", "method", "runs"),
    [
        ("/", "GET", 1),
        ("/off", "GET", 1),
        ("/error", "GET", 2),
        ("/error", "PUT", 2),
        ("/error", "POST", 1),
        ("/error", "PATCH", 1),
        ("/any", "POST", 2),
        ("/once", "GET", 1),
        ("/timeout", "GET", 1),
        ("/statuses", "GET", 1),
    ],
)
def test_a_worker_that_dies(fresh: Ask, place: str, method: str, runs: int) -> None:
    """N8: what a dead worker had begun runs again only where wsgi_next_upstream names the error and the method allows it,
    on another worker and with the same body."""
    body = b"b" * 100_000 if method in ("PUT", "POST") else None
    r, ran = fresh(place, "kill", method, body=body)
    assert len(ran) == runs
    if runs == 1:
        assert r.status == 502
    else:
        assert len(set(ran)) == 2 and (r.status, r.body) == (200, b"second:" + (body or b""))


@pytest.mark.parametrize("status", [500, 503, 403, 404, 429])
@pytest.mark.parametrize("size", ["", "large-"])
def test_statuses(ask: Ask, status: int, size: str) -> None:
    """N8: an answer with a named status is dropped for another worker's; without the name, or for a POST, it is served."""
    r, ran = ask("/statuses", f"{size}{status}")
    assert (r.status, r.body, len(ran), len(set(ran))) == (200, b"second:", 2, 2)
    for place, method in (("/error", "GET"), ("/statuses", "POST")):
        r, ran = ask(place, f"{size}{status}", method)
        assert (r.status, len(ran)) == (status, 1)
        assert r.body == (b"first" if not size else b"x" * 300_000) and r.complete


def test_a_status_that_is_no_case(ask: Ask) -> None:
    """N8: 502 and 504 of an application are its answer."""
    for status in (502, 504, 400):
        r, ran = ask("/statuses", str(status))
        assert (r.status, r.body, len(ran)) == (status, b"first", 1)


def test_an_exception_is_http_500(ask: Ask, site: Nginx) -> None:
    """N8: a request whose application raises counts as one that is answered with 500."""
    site.expect_log("MWR0430")
    r, ran = ask("/statuses", "raise")
    assert (r.status, r.body, len(set(ran))) == (200, b"second:", 2)
    r, ran = ask("/error", "raise")
    assert (r.status, len(ran)) == (500, 1)


def test_invalid_header(ask: Ask, site: Nginx) -> None:
    """N8: an answer that breaks the rules."""
    site.expect_log("MWR043")
    r, ran = ask("/invalid", "bad")
    assert (r.status, r.body, len(set(ran))) == (200, b"second:", 2)
    r, ran = ask("/invalid", "bad", "POST")
    assert (r.status, len(ran)) == (500, 1)
    r, ran = ask("/error", "bad")
    assert (r.status, len(ran)) == (500, 1)


def test_timeout(ask: Ask, site: Nginx) -> None:
    """N8, N13: 504 for an application that says nothing within wsgi_read_timeout, or another worker where that is asked."""
    site.expect_log("upstream timed out")
    r, ran = ask("/timeout", "slow")
    assert (r.status, r.body, len(set(ran))) == (200, b"second:", 2)
    for place, method in (("/timeout", "POST"), ("/no-timeout", "GET")):
        r, ran = ask(place, "slow", method)
        assert (r.status, len(ran)) == (504, 1)


def test_tries_and_timeout(fresh: Ask) -> None:
    """N8: wsgi_next_upstream_timeout: too late for another one."""
    fresh.server.expect_log("upstream timed out")
    r, ran = fresh("/brief", "slow")
    assert (r.status, len(ran)) == (504, 1)
    r, ran = fresh("/brief", "kill")
    assert (r.status, len(ran)) == (200, 2)


@pytest.mark.parametrize(("how", "status"), [("tired-503", 503), ("tired-raise", 500)])
def test_a_later_try_is_refused_once_the_time_has_passed(ask: Ask, site: Nginx, how: str, status: int) -> None:
    """N8: wsgi_next_upstream_timeout is counted from the first try: the second begins in time and the third would not. What
    the second has come to is the answer, and nobody is said to be asked after it."""
    if how == "tired-raise":
        site.expect_log("MWR0430")
    asked = len(site.log.find("another worker is asked"))
    r, ran = ask("/late", how)
    assert (r.status, len(ran)) == (status, 2)
    assert how == "tired-raise" or r.body == b"tired"
    assert len(site.log.find("another worker is asked")) == asked


@pytest.mark.parametrize("how", ["midway", "midway-500"])
@pytest.mark.parametrize("place", ["/any", "/error"])
def test_never_after_the_first_byte(fresh: Ask, place: str, how: str) -> None:
    """N8: an answer that has begun breaks off, whatever configuration says."""
    r, ran = fresh(place, how)
    assert len(ran) == 1 and r.truncated and set(r.body) <= {ord("x")}


def test_a_streamed_body_is_sent_once(fresh: Ask) -> None:
    """N8: whoever has begun to read a streamed body is the only one to run it."""
    r, ran = fresh("/streamed", "kill", "POST", body=b"b" * 200_000)
    assert (r.status, len(ran)) == (502, 1)


@pytest.mark.parametrize("place", ["/off", "/streamed"])
def test_unclaimed_goes_elsewhere(ask: Ask, site: Nginx, place: str) -> None:
    """N8: what no worker has begun is given to another one, any method and without any directive, once."""
    pids = sorted(site.ready())
    for stopped in pids:
        os.kill(stopped, signal.SIGSTOP)
        try:
            wait_until(lambda stopped=stopped: procs.threads_stopped(stopped), 10, "every thread has stopped")
            for _ in range(4):
                r, ran = ask(place, "fine", "POST", body=b"b" * 70_000)
                assert (r.status, r.body) == (200, b"second:" + b"b" * 70_000)
                assert len(ran) == 1 and ran[0] != str(stopped)
        finally:
            os.kill(stopped, signal.SIGCONT)
