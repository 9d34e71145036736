"""Bad applications and dead workers: a clear answer, a line in the log, and everybody else unaffected."""

from __future__ import annotations

import os
import pathlib
import signal
import threading
import time

import pytest

from harness import http, procs, product
from harness.apache import Apache
from harness.inspect import look
from harness.wait import wait_until

OK = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
GROUP = """
WSGIDaemonProcess g processes=1 threads=4
WSGIProcessGroup g
WSGIApplicationGroup %{GLOBAL}
"""
#: lines of a traceback and the record before it
TRACEBACK = r"WSGI\d{4}|MWR0[234]\d\d|Traceback|File |Error|  \S|deliberate"


def server_with(apache, script: str, config: str = GROUP, **kw) -> Apache:
    server = apache(
        config + "WSGIScriptAlias /app {apps}/broken.wsgi\nWSGIScriptAlias /other {apps}/inspect.wsgi\n",
        start=False,
        **kw,
    )
    server.write("broken.wsgi", script)
    return server.start()


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("import module_that_does_not_exist_deliberate", "module_that_does_not_exist_deliberate"),
        ("def application(:", "SyntaxError"),
        ("raise RuntimeError('deliberate at import')", "deliberate at import"),
        ("x = 1", "application"),
        ("application = 'text'", "callable|application"),
        ("import sys; sys.exit(3)", "SystemExit|exit"),
    ],
)
def test_script_that_cannot_load(apache, script: str, word: str) -> None:
    """R22: import error, missing callable, not callable: 500 with the reason in the log; others go on."""
    server = server_with(apache, script)
    server.expect_log(word)
    server.log.allow(TRACEBACK)
    assert server.get("/app").status == 500
    assert look(server, "/other")["name"] == "inspect"
    assert server.get("/app").status == 500
    assert look(server, "/other")["name"] == "inspect"


@pytest.mark.ours
def test_import_is_retried_once_a_second(apache) -> None:
    """R22: the traceback is logged once; the import is tried again at most once a second."""
    script = "open('{scratch}/tries', 'a').write('x')\nraise RuntimeError('deliberate at import')\n"
    server = server_with(apache, script)
    server.expect_log("deliberate at import")
    server.log.allow(TRACEBACK)
    began = time.monotonic()
    for _ in range(60):
        assert server.get("/app").status == 500
    wait_until(lambda: time.monotonic() - began > 1.5 or server.get("/app").status != 500, 5, interval=0.05)
    took = time.monotonic() - began
    tries = (server.scratch / "tries").stat().st_size
    assert 1 <= tries <= took + 2, f"{tries} imports in {took:.1f} s"
    assert len(server.log.find("Traceback")) <= tries
    assert len(server.log.find("RuntimeError: deliberate at import")) == 1, "logged once"


@pytest.mark.ours
def test_mended_script_recovers(apache) -> None:
    """R22: when the file is mended the application serves, without a restart."""
    server = server_with(apache, "raise RuntimeError('deliberate at import')")
    server.expect_log("deliberate at import")
    server.log.allow(TRACEBACK)
    assert server.get("/app").status == 500
    server.write("broken.wsgi", OK)
    wait_until(lambda: server.get("/app").status == 200, 10, "the mended script serves")
    assert all(server.get("/app").text == "ok" for _ in range(20))


@pytest.mark.ours
def test_interpreter_that_cannot_start(apache) -> None:
    """R22: a worker that cannot start: 503 with Retry-After, bounded in time, no fork bomb; it recovers."""
    server = apache(start=False)
    venv = product.make_venv(
        server.prefix / "venv", product.reachable_python((3, 11)) or pathlib.Path("/usr/bin/python3")
    )
    server.config = (f"WSGIDaemonProcess g python-home={venv} startup-timeout=5\nWSGIDaemonProcess fine\n"
                     "WSGIApplicationGroup %{GLOBAL}\nWSGIProcessGroup g\n"
                     "WSGIScriptAlias /fine {apps}/inspect.wsgi process-group=fine application-group=%{GLOBAL}\n"
                     "WSGIScriptAlias /app {apps}/inspect.wsgi process-group=g application-group=%{GLOBAL}\n")  # fmt: skip
    server.start()
    assert look(server, "/app")["process_group"] == "g"
    link = venv / "bin" / "python"
    real = os.readlink(link)
    link.unlink()
    link.symlink_to("/bin/false")
    server.log.allow(r"MWR0[1-4]\d\d")
    worker = look(server, "/app")["pid"]
    os.kill(worker, signal.SIGKILL)

    def refused() -> bool:
        r = server.get("/app", timeout=60)
        return r.status == 503 and bool(r.header("Retry-After"))

    wait_until(refused, 30, "503 with Retry-After")
    assert look(server, "/fine")["process_group"] == "fine"
    starts = len(server.log.find(r"MWR0[34]\d\d"))
    assert starts < 50, "back-off"
    link.unlink()
    link.symlink_to(real)
    wait_until(lambda: server.get("/app", timeout=60).status == 200, 45, "recovery")


def test_worker_killed_in_a_request(apache) -> None:
    """R22: a worker that is killed in a request: 502 before the head, an aborted body after it; then it goes on."""
    server = apache(GROUP + "WSGIScriptAlias / {apps}/conform.wsgi")
    server.log.allow(r"MWR0[234]\d\d|WSGI\d{4}|AH\d+|signal|killed|Premature")
    for _ in range(3):
        r = server.get("/die")
        assert r.status == 502 and b"never" not in r.body
        wait_until(lambda: server.get("/exact?on", timeout=30).status == 200, 15, "a new worker")
        r = server.get("/die?midway")
        assert b"never" not in r.body
        if product.is_ours():
            assert r.truncated or r.status == 502
        wait_until(lambda: server.get("/exact?on", timeout=30).status == 200, 15, "a new worker")


@pytest.mark.ours
def test_a_killed_worker_takes_only_its_own_requests(apache) -> None:
    """R22: of two workers one is killed under load: at most what ran in it fails (502 or cut), all else is served."""
    server = apache(GROUP.replace("processes=1", "processes=2") + "WSGIScriptAlias / {apps}/conform.wsgi")
    server.log.allow(r"MWR0[234]\d\d")
    stop = threading.Event()
    results: list[tuple[int, bool]] = []

    def client() -> None:
        while not stop.is_set():
            with http.Connection(server.port) as c:
                for _ in range(50):
                    if stop.is_set():
                        return
                    r = c.request(target="/exact?x")
                    results.append((r.status, r.complete))
                    if r.header("Connection") == "close":
                        break

    threads = [threading.Thread(target=client) for _ in range(6)]
    for t in threads:
        t.start()
    try:
        for _ in range(4):
            seen = len(results)
            wait_until(lambda seen=seen: len(results) > seen + 200, 20, "load")
            # one at a time, and none that has just been started: those count as workers that cannot start
            workers = wait_until(lambda: len(w := _old_workers(server)) == 2 and w, 20, "both workers run")
            workers[0].kill()
            wait_until(lambda w=workers[0]: not w.alive(), 5)
        seen = len(results)
        wait_until(lambda: len(results) > seen + 200, 20, "load after the last kill")
    finally:
        stop.set()
        for t in threads:
            t.join()
    bad = [r for r in results if r != (200, True)]
    assert all(status in (200, 502) for status, _ in bad), bad
    assert len(bad) <= 4 * 4, f"{len(bad)} of {len(results)}: more than ran in the killed workers"


@pytest.mark.ours
def test_queue_limit(apache) -> None:
    """R22, DESIGN 4.1: beyond threads + queue-limit a request gets 503 with Retry-After at once; those inside are served."""
    server = apache("WSGIDaemonProcess g processes=1 threads=2 queue-limit=3\nWSGIProcessGroup g\n"
                    "WSGIApplicationGroup %{GLOBAL}\nWSGIScriptAlias / {apps}/conform.wsgi")  # fmt: skip
    server.log.allow(r"MWR02\d\d.*queue-limit|queue-limit.*MWR02\d\d|MWR02\d\d")
    assert server.get("/exact?warm").status == 200
    results: list[tuple[int, float, str | None]] = []

    def client() -> None:
        began = time.monotonic()
        r = server.get("/slow?1.5")
        results.append((r.status, time.monotonic() - began, r.header("Retry-After")))

    threads = [threading.Thread(target=client) for _ in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    served = [r for r in results if r[0] == 200]
    refused = [r for r in results if r[0] == 503]
    assert len(served) + len(refused) == 12
    assert 2 <= len(served) <= 5 and refused
    for _, took, retry in refused:
        assert retry and int(retry) >= 1 and took < 1.0, "refused at once"
    assert server.get("/exact?after").status == 200


@pytest.mark.ours
def test_queue_timeout(apache) -> None:
    """R22: a request that waits longer than queue-timeout gets 504 then, and never runs."""
    server = apache("WSGIDaemonProcess g processes=1 threads=1 queue-timeout=1\nWSGIProcessGroup g\n"
                    "WSGIApplicationGroup %{GLOBAL}\nWSGIScriptAlias / {apps}/conform.wsgi")  # fmt: skip
    server.log.allow(r"MWR02\d\d")
    assert server.get("/exact?warm").status == 200
    first: list[int] = []
    t = threading.Thread(target=lambda: first.append(server.get("/slow?4").status))
    t.start()
    wait_until(lambda: len([p for p in server.processes()]) > 0, 5)
    wait_until(lambda: _busy(server), 5, "the slow request runs")
    began = time.monotonic()
    r = server.get("/with-close?never-ran")
    took = time.monotonic() - began
    assert r.status == 504 and 0.8 <= took <= 3, (r.status, took)
    t.join()
    assert first == [200]
    assert server.get("/exact?after").status == 200
    closed = server.scratch / "closed"
    assert not closed.exists() or "never-ran" not in closed.read_text()


def _old_workers(server: Apache) -> list[procs.Process]:
    """Python processes below the supervisor that have run for a while."""
    found = [p for s in server.helpers("supervise") for p in procs.descendants([s.pid])]
    return [p for p in found if "python" in p.cmdline[0] and p.age() > 1.5]


def _busy(server: Apache) -> bool:
    """Whether a probe has to wait, that is, the only thread is taken."""
    with http.Connection(server.port, timeout=0.3) as c:
        c.send(http.build(target="/exact?probe"))
        try:
            c.response()
        except TimeoutError:
            return True
    return False


@pytest.mark.ours
def test_stuck_group_leaves_the_others_alone(apache) -> None:
    """Pitfall H19: with one group stuck to its queue limit, static files and other groups answer as before."""
    server = apache("WSGIDaemonProcess stuck threads=1\nWSGIDaemonProcess fine\nWSGIApplicationGroup %{GLOBAL}\n"
                    "WSGIScriptAlias /stuck {apps}/conform.wsgi process-group=stuck application-group=%{GLOBAL}\n"
                    "WSGIScriptAlias /fine {apps}/inspect.wsgi process-group=fine application-group=%{GLOBAL}\n",
                    start=False)  # fmt: skip
    (server.prefix / "htdocs" / "s.txt").write_text("static")
    server.start()
    server.log.allow(r"MWR02\d\d|AH00484|AH03490")
    connections = [server.connect() for _ in range(150)]
    try:
        for i, c in enumerate(connections):
            c.send(http.build(target=f"/stuck/gated?stuck-{i}"))
        for _ in range(10):
            began = time.monotonic()
            assert server.get("/s.txt", timeout=5).text == "static"
            assert look(server, "/fine")["process_group"] == "fine"
            assert time.monotonic() - began < 2
    finally:
        for c in connections:
            c.close()
        for i in range(150):
            (server.scratch / f"stuck-{i}").touch()


@pytest.mark.ours
def test_departed_clients_do_not_run(apache) -> None:
    """DESIGN 4.7: a request whose client has left while it waited is taken back and never runs."""
    server = apache("WSGIDaemonProcess g processes=1 threads=1\nWSGIProcessGroup g\n"
                    "WSGIApplicationGroup %{GLOBAL}\nWSGIScriptAlias / {apps}/conform.wsgi")  # fmt: skip
    server.log.allow(r"MWR02\d\d")
    with server.connect() as slow:
        slow.send(http.build(target="/gated?departed"))
        assert slow.head().status == 200
        for i in range(5):
            with server.connect() as c:
                c.send(http.build(target=f"/with-close?departed-{i}"))
        # the server looks at waiting clients at least every 250 ms
        end = time.monotonic() + 1.0
        wait_until(lambda: time.monotonic() > end, 2)
        (server.scratch / "departed").touch()
        slow.close()
    assert server.get("/exact?after").text == "exact:after"
    closed = server.scratch / "closed"
    assert not closed.exists() or "departed-" not in closed.read_text()


@pytest.mark.ours
def test_keeper_and_supervisor_are_not_httpds_children(apache) -> None:
    """Pitfalls H3, H4, H5: nothing of ours is a child of httpd's parent or in its process group."""
    server = apache(GROUP + "WSGIScriptAlias / {apps}/inspect.wsgi")
    worker = look(server)["pid"]
    httpd_group = os.getpgid(server.pid)
    helpers = server.helpers("keeper") + server.helpers("supervise")
    assert len(helpers) == 2, [str(p) for p in server.processes()]
    for pid in [worker, *(p.pid for p in helpers)]:
        p = procs.look(pid)
        assert p and p.ppid != server.pid and os.getpgid(pid) != httpd_group and os.getsid(pid) != os.getsid(server.pid)
