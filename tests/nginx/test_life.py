"""nginx's own ways of starting, reloading and ending, with the same supervisor and workers behind them."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import threading
import time
from collections.abc import Callable

import pytest

from harness import inspect, procs
from harness.fake import worker_sockets
from harness.nginx import Nginx
from harness.wait import Timeout, wait_until

SITE = "location / { wsgi_script {apps}/inspect.wsgi; wsgi_process_group blog; }"
GROUP = "wsgi_daemon_process blog processes=2 threads=5;"


class Load:
    """Clients that ask without a pause; every answer is kept."""

    def __init__(self, server: Nginx, clients: int = 4):
        self.server, self.statuses, self._stop = server, [], threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.statuses.append(self.server.get("/").status)
            except OSError as e:
                self.statuses.append(repr(e))

    def __enter__(self) -> Load:
        for t in self._threads:
            t.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for t in self._threads:
            t.join()

    def lost(self) -> list[object]:
        return [s for s in self.statuses if s != 200]


def test_as_a_daemon(nginx: Callable[..., Nginx]) -> None:
    """N9: the process that starts the supervisor ends when nginx becomes a daemon; the workers stay, a reload reaches
    them, and a stop ends them."""
    server = nginx(SITE, http_config=GROUP, daemon=True)
    server.log.wait("goes on as")
    pid = inspect.look(server)["pid"]
    server.reload()
    assert inspect.look(server)["pid"] in {p.pid for p in server.processes()}
    assert pid in {p.pid for p in server.processes()}, "nothing has changed: the workers stay"
    server.stop()


def test_reload_keeps_workers_and_loses_nothing(nginx: Callable[..., Nginx]) -> None:
    """N9, N17: reloads under load lose no request and, where no setting has changed, replace no worker."""
    server = nginx(SITE, http_config=GROUP)
    server.log.wait("is ready after", count=2)
    before = server.ready("blog")
    with Load(server) as load:
        for _ in range(3):
            server.reload()
            wait_until(lambda: len(server.server_processes()) >= 2, 10)
    assert len(load.statuses) > 100 and not load.lost()
    assert len(before) == 2 and {inspect.look(server)["pid"] for _ in range(10)} <= before == server.ready("blog")


def test_reload_replaces_what_has_changed(nginx: Callable[..., Nginx]) -> None:
    """N9: a changed group gets new workers, under load, without a lost request."""
    server = nginx(SITE, http_config="wsgi_daemon_process blog processes=1 threads=3 env=MWR_V=1;")
    assert inspect.look(server)["environ"]["MWR_V"] == "1"
    server.http_config = "wsgi_daemon_process blog processes=1 threads=6 env=MWR_V=2;"
    server.write_config()
    with Load(server) as load:
        server.reload()
        wait_until(lambda: inspect.look(server)["environ"]["MWR_V"] == "2", 15)
    assert not load.lost()


def test_a_touched_script_is_loaded_anew(nginx: Callable[..., Nginx]) -> None:
    """N2: wsgi_script_reloading, under load, without a lost request."""
    text = "def application(e, s):\n    s('200 OK', [])\n    return [b'%s']\n"
    server = nginx("location / { wsgi_script {apps}/v.wsgi; }", start=False)
    server.write("v.wsgi", text % "one")
    server.start()
    assert server.get().text == "one"
    with Load(server) as load:
        server.write("v.wsgi", text % "two")
        wait_until(lambda: server.get().text == "two", 15)
    assert not load.lost()


def test_without_a_supervisor_nginx_goes_on(nginx: Callable[..., Nginx]) -> None:
    """N9: a start of ours that fails ends no master; requests get 503 until a reload mends it."""
    server = nginx(SITE, http_config=GROUP + "wsgi_supervisor /nowhere/mod-wsgi-rs;", start=False)
    server.allow_log("MWR0110|MWR0210")
    server.start()
    assert server.get().status == 503
    server.http_config = GROUP
    server.write_config()
    server.reload()
    wait_until(lambda: server.get().status == 200, 15)
    server.log.begin()


#: has a process of its own keep all sockets of the worker open
HOLDS = """
import os, subprocess

def application(environ, start_response):
    start_response("200 OK", [])
    if environ["PATH_INFO"] != "/hold":
        return [b"%d" % os.getpid()]
    held = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink("/proc/self/fd/" + fd).startswith("socket:"):
                held.append(os.dup(int(fd)))
        except OSError:
            pass
    child = subprocess.Popen(["sleep", "300"], pass_fds=held, stdout=-3, stderr=-3, start_new_session=True)
    return [b"%d" % child.pid]
"""


@pytest.mark.parametrize("kw", [{}, {"method": "POST", "body": b"b" * 20_000}], ids=["lane", "connection"])
def test_a_connection_to_an_earlier_worker_gets_no_request(nginx: Callable[..., Nginx], kw: dict[str, object]) -> None:
    """DESIGN 4: a kept connection, or a lane, leads to one incarnation of its slot, also where its other end stays open."""
    site = "location / { wsgi_script {apps}/holds.wsgi; wsgi_process_group blog; }"
    server = nginx(site, http_config="wsgi_daemon_process blog processes=1 threads=1;", workers=1, start=False)
    server.write("holds.wsgi", HOLDS)
    server.start()
    server.allow_log("MWR0306")
    child = int(server.get("/hold", **kw).text)
    try:
        [path] = worker_sockets(server)
        slot, first = os.path.basename(path).split(".")

        def back() -> bool:
            # a worker that has died is replaced in another slot, and that one in this
            [pid] = server.ready("blog")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: server.ready("blog") - {pid}, 20, "its successor")
            return any(s == slot and n != first for s, n in names())

        def names() -> list[list[str]]:
            return [os.path.basename(s).split(".") for s in worker_sockets(server)]

        wait_until(back, 20, "a worker in the slot of the first")
        assert {int(server.get(timeout=10, **kw).text)} == server.ready("blog")
    finally:
        os.kill(child, signal.SIGKILL)


def test_no_line_for_each_request_while_there_is_no_supervisor(nginx: Callable[..., Nginx]) -> None:
    """N13: each process of nginx says so once a second at most, and counts what it has left out."""
    server = nginx(SITE, http_config=GROUP + "wsgi_supervisor /nowhere/mod-wsgi-rs;", workers=1, start=False)
    server.allow_log("MWR0110|MWR0210")
    server.start()
    before = len(server.log.find("MWR0210"))
    asked, began = 0, time.monotonic()
    with server.connect() as c:
        while not (left_out := server.log.find(r"MWR0210: .*; \d+ more requests since")):
            r = c.request(target="/")
            assert (r.status, r.header("Retry-After")) == (503, "5")
            asked += 1
            assert time.monotonic() < began + 20
    lines = len(server.log.find("MWR0210")) - before
    assert lines <= time.monotonic() - began + 1
    # the last of them has been written for the last request
    assert lines + sum(int(n) for n in re.findall(r"; (\d+) more requests", " ".join(left_out))) == asked


def test_one_process_for_everything(nginx: Callable[..., Nginx]) -> None:
    """N9: `master_process off` serves and ends as ever (a reload is beyond nginx itself then: it serves nobody after)."""
    server = nginx(SITE, http_config=GROUP, main="master_process off;", start=False)
    server.start()
    assert inspect.look(server)["pid"] in {p.pid for p in server.processes()}
    seen = server.processes()
    server.stop()
    assert not [p for p in seen if p.alive()]


def test_a_stop_holds_the_time_of_debians_service(nginx: Callable[..., Nginx]) -> None:
    """N9: QUIT, then SIGKILL after 5 s to what is left: also with an exit handler that hangs nothing is."""
    server = nginx(SITE, http_config=GROUP, start=False)
    app = (server.apps / "inspect.wsgi").read_text()
    server.write("inspect.wsgi", app + "\nimport atexit, time\natexit.register(time.sleep, 60)\n", expand=False)
    server.start()
    server.log.allow("MWR0309")
    wait_until(lambda: len(server.ready("blog")) == 2, 15)
    assert inspect.look(server)["pid"] in server.ready("blog")
    server.snapshot()
    began = time.monotonic()
    os.kill(server.pid, signal.SIGQUIT)
    assert server.process
    server.process.wait(30)
    assert time.monotonic() - began < 5
    assert not server.leftovers()


WAITS = """
import os, time
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    name = environ["QUERY_STRING"]
    if name:
        open("{scratch}/" + name, "w").write(str(os.getpid()))
        while not os.path.exists("{scratch}/go-" + name):
            time.sleep(0.005)
    return [str(os.getpid()).encode()]
"""


def test_a_stuck_worker_does_not_hold_what_others_can_run(nginx: Callable[..., Nginx]) -> None:
    """N8: requests that wait for a stopped worker are recalled and run elsewhere, also a POST, exactly once."""
    server = nginx(
        "location / { wsgi_script {apps}/waits.wsgi; wsgi_process_group blog; }",
        http_config="wsgi_daemon_process blog processes=2 threads=2;",
        workers=1,
        start=False,
    )
    server.write("waits.wsgi", WAITS)
    server.start()
    server.allow_log("MWR03")
    pids = set()
    wait_until(lambda: (pids.add(server.get().text), len(server.log.find("is ready after")) >= 2)[1], 10)
    stopped = int(pids.pop())
    os.kill(stopped, signal.SIGSTOP)
    try:
        wait_until(lambda: procs.threads_stopped(stopped), 10, "every thread has stopped")
        answers = [server.get(method="POST", body=b"x", timeout=10) for _ in range(20)]
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert {a.status for a in answers} == {200} and str(stopped) not in {a.text for a in answers}


def test_a_full_queue_is_503(nginx: Callable[..., Nginx]) -> None:
    """N13: beyond threads and queue-limit 503 with Retry-After; the others are answered."""
    server = nginx(
        "location / { wsgi_script {apps}/waits.wsgi; wsgi_process_group one; }",
        http_config="wsgi_daemon_process one processes=1 threads=1 queue-limit=1;",
        workers=1,
        start=False,
    )
    server.write("waits.wsgi", WAITS)
    server.start()
    assert server.get().status == 200
    server.expect_log("MWR0205")
    answers: list[int] = []
    first = threading.Thread(target=lambda: answers.append(server.get("/?a").status))
    first.start()
    wait_until(lambda: (server.scratch / "a").exists(), 10)
    with server.connect() as c:
        # one nginx process takes requests in the order they come
        c.send(b"GET /?b HTTP/1.1\r\nHost: localhost\r\n\r\n")
        refused = server.get()
        assert refused.status == 503 and refused.header("Retry-After") == "1"
        for n in ("a", "b"):
            (server.scratch / f"go-{n}").touch()
        first.join(10)
        assert answers == [200] and c.response("GET").status == 200


def test_a_client_that_leaves_costs_no_row(nginx: Callable[..., Nginx]) -> None:
    """N8: a request that waits when its client leaves is taken back, and never runs."""
    server = nginx(
        "location / { wsgi_script {apps}/waits.wsgi; wsgi_process_group one; }",
        http_config="wsgi_daemon_process one processes=1 threads=1;",
        start=False,
    )
    server.write("waits.wsgi", WAITS)
    server.start()
    answers: list[int] = []
    first = threading.Thread(target=lambda: answers.append(server.get("/?a").status))
    first.start()
    wait_until(lambda: (server.scratch / "a").exists(), 10)
    with server.connect() as c:
        c.send(b"GET /?b HTTP/1.1\r\nHost: localhost\r\n\r\n")
    server.log.wait("client prematurely closed connection")
    (server.scratch / "go-a").touch()
    first.join(10)
    assert answers == [200] and server.get().status == 200
    assert not (server.scratch / "b").exists()


def test_the_supervisor_follows_a_rotated_log(nginx: Callable[..., Nginx]) -> None:
    """N9: when nginx opens its error log anew (USR1), lines of the supervisor and of workers go to the new file too."""
    server = nginx(SITE, http_config=GROUP)
    assert server.get().status == 200
    server.log.wait("is ready after", count=2)
    old = server.error_log.with_suffix(".1")
    server.error_log.rename(old)
    os.kill(server.pid, signal.SIGUSR1)
    wait_until(server.error_log.exists, 10)
    wait_until(lambda: "reopening logs" in old.read_text(), 10)
    worker = inspect.look(server)["pid"]
    server.allow_log("MWR0306")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: f"worker {worker} " in server.error_log.read_text(), 10, "the supervisor writes to the new file")
    assert f"worker {worker} of" in old.read_text() and "MWR0306" not in old.read_text()


def test_a_level_of_its_own(nginx: Callable[..., Nginx]) -> None:
    """N2: wsgi_log_level shows what an application prints where error_log itself takes warnings only."""
    text = "def application(e, s):\n    print('printed here', flush=True)\n    s('200 OK', [])\n    return [b'x']\n"
    site = "location / { error_log {logs}/quiet.log warn; wsgi_script {apps}/p.wsgi; }"
    for level, shown in ((None, False), ("info", True)):
        server = nginx("", http_config=f"wsgi_log_level {level};" if level else "", start=False)
        server.config = site.replace("{logs}", str(server.logs))
        server.write("p.wsgi", text)
        server.start()
        assert server.get().text == "x"
        server.stop()
        log = (server.logs / "quiet.log").read_text()
        assert ("printed here" in log) is shown, log
        assert not [line for line in log.splitlines() if "[info]" in line and "printed here" not in line], "only ours"


def test_connect_timeout(nginx: Callable[..., Nginx]) -> None:
    """L4: a worker that cannot be connected is tried for connect-timeout, then 503; in time it is served."""
    server = nginx(
        "location / { wsgi_script {apps}/paced.wsgi; wsgi_process_group one; }",
        http_config="wsgi_daemon_process one processes=1 threads=2 connect-timeout=2;",
    )
    wait_until(lambda: server.ready("one"))
    [path] = [pathlib.Path(s) for s in server.sockets() if pathlib.Path(s).name[0].isdigit()]
    away = path.rename(path.with_name("away"))
    server.expect_log("MWR0209")
    began = time.monotonic()
    r = server.get("/pid", timeout=10)
    assert r.status == 503 and 1.9 < time.monotonic() - began < 5
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(server.get("/pid", timeout=10).status))
    waiting.start()
    with pytest.raises(Timeout):
        wait_until(lambda: answers, 0.7)
    away.rename(path)
    waiting.join(10)
    assert answers == [200]
